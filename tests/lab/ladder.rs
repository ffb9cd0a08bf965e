//! Which way the satellite takes through networks that let this or that through, how long it needs to
//! get there, and that an open stream does not notice.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::federation::{Federation, PORT, SOON, logged};
use crate::flood::Flood;
use crate::proxy::{PROXY_PORT, Proxy};
use crate::stream::{CONNECT, Reader, publish_counter};
use crate::topology::{PARENT_V4, PARENT_V6, ROUTER_LAN_V4, ROUTER_WAN_V4, SATELLITE_V4};
use crate::wait::{wait_timed, wait_until};

/// From the program's start, or from the loss of a tunnel, to another way: the head start of 300 ms, two
/// handshakes, and what command lines on a busy machine need to show it.
const OTHER_WAY_WITHIN: Duration = Duration::from_secs(5);

/// Ceiling of the wait between two tries of a better way, in these scenarios.
const CLIMB_MAX: &str = "3s";

/// From the moment at which a better way opens to its use: a dial into the void that is under way (10 s),
/// the wait, the trial (10 s), and room.
const BACK_UP_WITHIN: Duration = Duration::from_secs(10 + 3 + 10 + 7);

/// Silence with streams open, and what is left of it for a new dial.
const LOST_AND_FOUND_WITHIN: Duration = Duration::from_secs(5 + 5);

/// Five seconds between two heartbeats; then a ping, another a second later, and the word of the bridge's
/// host that nobody is there any more.
const LOSS_NOTICED_WITHIN: Duration = Duration::from_secs(5 + 2);

/// Two looks at the socket, five seconds apart, and room.
const OVERRUN_WITHIN: Duration = Duration::from_secs(2 * 5 + 10);

/// A pause that the network itself makes in a stream: a ping after two seconds of silence, and a round
/// trip or two over the new path.
const PAUSE_WITHIN: Duration = Duration::from_secs(5);

/// `shutdown.drain` of the host-bridge, and room to end.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);

/// The way in use.
pub fn rung(federation: &Federation) -> Value {
    federation.status()["link"]["transport"].clone()
}

/// Waits until it is this one.
pub fn wait_rung(federation: &Federation, wanted: &str, at_most: Duration) -> Duration {
    let on_rung = || (rung(federation) == wanted).then_some(());
    wait_timed(&format!("the tunnel goes over {wanted}"), at_most, on_rung).1
}

/// A better way of the first bridge and why it is not in use.
pub fn better(federation: &Federation, rung: &str) -> Value {
    let better = federation.status()["link"]["bridges"][0]["better"].clone();
    let ways = better.as_array().into_iter().flatten();
    ways.into_iter()
        .find(|way| way["rung"] == rung)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn behind_a_plain_nat_quic_carries() {
    let Some(federation) = Federation::open("ladder_nat") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    wait_rung(&federation, "quic", OTHER_WAY_WITHIN);
    let link = federation.status()["link"].clone();
    assert_eq!(link["bridges"].as_array().unwrap().len(), 1);
    assert!(link["bridges"][0]["primary"].as_bool().unwrap());
    assert_eq!(
        better(&federation, "direct")["why"],
        "no way in from outside is proven"
    );
    assert_eq!(better(&federation, "quic"), Value::Null);
    publish_counter(&federation);
    Reader::start(&federation).goes_on_within(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn where_udp_is_blocked_tls_carries_and_quic_takes_over_when_it_opens() {
    let Some(mut federation) = Federation::open("ladder_udp") else {
        return;
    };
    federation.set_satellite("TUNNEL_CLIMB_MAX", CLIMB_MAX);
    let (bridge, satellite) = federation.run_joined();
    drop(satellite);
    federation.lab.router.block_udp();
    let satellite = federation.run_satellite();
    wait_rung(&federation, "tls", OTHER_WAY_WITHIN);
    federation.wait_active(SOON);
    wait_until("the reason why not QUIC is shown", SOON, || {
        let quic = better(&federation, "quic");
        quic["why"].as_str()?.contains("UDP").then_some(())
    });

    publish_counter(&federation);
    let reader = Reader::start(&federation);
    federation.lab.router.clear_rules();
    wait_rung(&federation, "quic", BACK_UP_WITHIN);
    reader.goes_on_within(SOON);
    assert_eq!(federation.status()["link"]["bridges"][0]["draining"], 1);
    let new = Reader::start(&federation);
    drop(reader);
    wait_until("the old tunnel has ended with its stream", SOON, || {
        (federation.status()["link"]["bridges"][0]["draining"] == 0).then_some(())
    });
    new.goes_on_within(SOON);
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn udp_that_is_blocked_in_mid_life_costs_seconds_once() {
    let Some(mut federation) = Federation::open("ladder_udp_cut") else {
        return;
    };
    federation.set_satellite("TUNNEL_CLIMB_MAX", CLIMB_MAX);
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let busy = Reader::start(&federation);
    wait_rung(&federation, "quic", OTHER_WAY_WITHIN);
    federation.lab.router.block_udp();
    wait_rung(&federation, "tls", LOST_AND_FOUND_WITHIN);
    wait_until("the stream of the lost tunnel has ended", SOON, || {
        busy.has_ended().then_some(())
    });
    let reader = Reader::start(&federation);
    federation.lab.router.clear_rules();
    wait_rung(&federation, "quic", BACK_UP_WITHIN);
    reader.goes_on_within(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn where_only_a_proxy_leads_out_the_tunnel_goes_through_it() {
    let Some(mut federation) = Federation::open("ladder_proxy") else {
        return;
    };
    let proxy = Proxy::start(federation.lab.router.namespace(), ROUTER_LAN_V4);
    federation.lab.router.add_rule("iifname \"lan0\" counter drop");
    federation.set_satellite("TUNNEL_PROXY", format!("http://{ROUTER_LAN_V4}:{PROXY_PORT}"));
    let (bridge, satellite) = federation.run_joined();
    wait_rung(&federation, "proxy", OTHER_WAY_WITHIN);
    assert!(proxy.opened() >= 2, "the join and the daemon");
    publish_counter(&federation);
    Reader::start(&federation).goes_on_within(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn where_a_proxy_is_named_tcp_goes_through_it_alone() {
    let Some(mut federation) = Federation::open("ladder_proxied") else {
        return;
    };
    let _proxy = Proxy::start(federation.lab.router.namespace(), ROUTER_LAN_V4);
    federation.lab.router.add_rule("meta l4proto udp drop");
    // It would get through.
    federation
        .lab
        .router
        .add_rule(&format!("tcp dport {PORT} counter"));
    federation.set_satellite("TUNNEL_PROXY", format!("http://{ROUTER_LAN_V4}:{PROXY_PORT}"));
    let (bridge, satellite) = federation.run_joined();
    wait_rung(&federation, "proxy", OTHER_WAY_WITHIN);
    assert_eq!(
        federation.lab.router.counted_packets(),
        0,
        "somebody went around it"
    );
    let better = federation.status()["link"]["bridges"][0]["better"].clone();
    let tls = better
        .as_array()
        .unwrap()
        .iter()
        .find(|better| better["rung"] == "tls");
    let why = tls.unwrap()["why"].as_str().unwrap().to_owned();
    assert!(why.contains("the proxy"), "{why}");
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_router_that_forgets_in_mid_transfer_ends_no_stream() {
    let Some(federation) = Federation::open("ladder_flush") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    federation.lab.router.forget_flows();
    reader.goes_on_within(PAUSE_WITHIN);
    federation.lab.router.move_ports();
    reader.goes_on_within(PAUSE_WITHIN);
    assert_eq!(rung(&federation), "quic");
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn another_wan_address_in_mid_transfer_ends_no_stream() {
    let Some(federation) = Federation::open("ladder_wan") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    let router = federation.lab.router.namespace();
    router.ip(&format!("address delete {ROUTER_WAN_V4}/24 dev wan0"));
    router.ip("address add 198.51.100.77/24 dev wan0");
    reader.goes_on_within(PAUSE_WITHIN);
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn another_address_of_the_box_in_mid_transfer_ends_no_stream() {
    let Some(federation) = Federation::open("ladder_roaming") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    let edge = &federation.lab.satellite;
    edge.ip(&format!("address delete {SATELLITE_V4}/24 dev up0"));
    edge.ip("address add 10.77.0.99/24 dev up0");
    edge.ip(&format!("route replace default via {ROUTER_LAN_V4}"));
    reader.goes_on_within(PAUSE_WITHIN);
    wait_until("the change was noticed", SOON, || {
        let noticed = logged(
            &satellite,
            "the network of this box has changed; looking at all tunnels",
        );
        (!noticed.is_empty()).then_some(())
    });
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn an_idle_satellite_costs_less_than_four_mebibytes_a_day() {
    let Some(federation) = Federation::open("ladder_idle") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    wait_until("the join is over", SOON, || {
        (federation.peer()["heartbeat_age_seconds"].as_u64() >= Some(10)).then_some(())
    });
    // Both directions, with all headers.
    federation.lab.router.add_rule("counter");
    let acknowledged = || federation.status()["heartbeat"]["last_acknowledged_at"].clone();
    let mut last = acknowledged();
    let minutes = 3;
    for minute in 0..minutes {
        wait_until(&format!("heartbeat {minute}"), Duration::from_secs(75), || {
            let latest = acknowledged();
            (latest != last).then(|| last = latest)
        });
    }
    let bytes = federation.lab.router.counted_bytes();
    let a_day = bytes / minutes * 24 * 60;
    println!(
        "          {bytes} bytes in {minutes} minutes, {} KiB a day",
        a_day / 1_024
    );
    assert!(bytes > 0 && a_day < 4 * 1_024 * 1_024, "{a_day} bytes a day");
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_port_from_which_nothing_comes_back_is_left() {
    let Some(federation) = Federation::open("ladder_port") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    // The router keeps ports where it can.
    let address = federation.peer()["tunnel"]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let port = address.rsplit(':').next().unwrap();
    federation
        .lab
        .router
        .add_rule(&format!("udp sport {port} counter drop"));
    reader.goes_on_within(PAUSE_WITHIN);
    assert!(federation.lab.router.counted_packets() > 0);
    assert_eq!(rung(&federation), "quic");
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn five_percent_loss_is_no_reason_to_leave() {
    let Some(federation) = Federation::open("ladder_loss") else {
        return;
    };
    federation
        .lab
        .router
        .add_rule("numgen random mod 100 < 5 counter drop");
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    for _ in 0..5 {
        reader.goes_on_within(SOON);
    }
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_small_mtu_without_a_word_stalls_nothing() {
    let Some(federation) = Federation::open("ladder_mtu") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    // Larger packets vanish, and nobody says so: as behind a tunnel with a broken firewall.
    let router = federation.lab.router.namespace();
    router.nft("add chain inet lab output { type filter hook output priority filter; }");
    router.nft("add rule inet lab output meta l4proto icmp counter drop");
    router.ip("link set wan0 mtu 1280");
    reader.goes_on_within(SOON);
    Reader::start(&federation).goes_on_within(SOON);
    let untold = federation.lab.router.counted_in("output", "packets");
    assert!(untold > 0, "the path had been found to be larger");
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_box_that_does_not_keep_up_with_udp_goes_on_over_tcp() {
    let Some(federation) = Federation::open("ladder_overrun") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    wait_rung(&federation, "quic", OTHER_WAY_WITHIN);
    publish_counter(&federation);
    Reader::start(&federation).goes_on_within(SOON);
    // The router keeps ports where it can.
    let address = federation.peer()["tunnel"]["address"].to_string();
    let port = address.rsplit(':').next().unwrap().trim_end_matches('"');
    let port = port.parse().unwrap();

    let flood = Flood::start(federation.lab.router.namespace(), (SATELLITE_V4, port));
    let dropped = || federation.status()["link"]["bridges"][0]["udp_dropped"].as_u64();
    wait_timed("what was dropped is counted", OVERRUN_WITHIN, || {
        (dropped() > Some(0)).then_some(())
    });
    wait_rung(&federation, "tls", OVERRUN_WITHIN);
    drop(flood);
    Reader::start(&federation).goes_on_within(SOON);
    let better = better(&federation, "quic");
    let why = better["why"].as_str().unwrap();
    assert!(
        better["rung"] == "quic" && why.contains("does not keep up"),
        "{better}"
    );
    let said = crate::federation::lines(&satellite);
    let said = said.iter().filter(|line| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .unwrap_or_default()
                .contains("UDP packets were dropped")
    });
    assert_eq!(said.count(), 1);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn ipv6_alone_is_enough() {
    let Some(federation) = Federation::open_as("ladder_v6", &format!("[{PARENT_V6}]")) else {
        return;
    };
    federation.lab.satellite.ip("-4 address flush dev up0");
    let (bridge, satellite) = federation.run_joined();
    wait_rung(&federation, "quic", OTHER_WAY_WITHIN);
    federation.lab.router.block_udp();
    satellite.signal(Signal::HUP);
    wait_rung(&federation, "tls", Duration::from_secs(60));
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_host_bridge_that_stops_lets_a_stream_end_first() {
    let Some(federation) = Federation::open("ladder_drain") else {
        return;
    };
    let (mut bridge, satellite) = federation.run_joined();
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    bridge.terminate();
    // Half of `shutdown.drain` is theirs.
    reader.goes_on_within(Duration::from_secs(4));
    drop(reader);
    assert!(bridge.exit_within(DRAINED_WITHIN).success());
    wait_until("the satellite was told", SOON, || {
        let lost = logged(&satellite, "tunnel lost");
        let reason = lost.last()?["reason"].as_str()?.to_owned();
        assert!(reason.contains("stops or restarts"), "{reason}");
        Some(())
    });
    let bridge = federation.run_bridge();
    federation.wait_active(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn of_two_host_bridges_one_may_die() {
    let Some(mut federation) = Federation::open("ladder_two") else {
        return;
    };
    let (mut first, satellite) = federation.run_joined();
    publish_counter(&federation);
    // The parent has its grant by then.
    drop(Reader::start(&federation));
    drop(satellite);
    let twin = federation.run_twin();
    let bridges = format!("{PARENT_V4}:{PORT},{PARENT_V4}:{}", Federation::TWIN_PORT);
    federation.set_satellite("PARENT_BRIDGES", bridges);
    let satellite = federation.run_satellite();
    wait_timed("both have a tunnel", SOON, || {
        let bridges = federation.status()["link"]["bridges"].clone();
        let mut states = bridges.as_array()?.iter();
        (bridges.as_array()?.len() == 2 && states.all(|bridge| bridge["state"] == "connected")).then_some(())
    });
    publish_counter(&federation);
    let reader = Reader::start_at(federation.twin(&CONNECT));
    first.kill_and_wait();
    reader.goes_on_within(SOON);
    let start = || Some(Reader::start_at(federation.twin(&CONNECT)));
    let (_, took) = wait_timed("a new stream flows", SOON, start);
    assert!(took < Duration::from_secs(3), "{took:?}");
    wait_timed("the other is the primary", LOSS_NOTICED_WITHIN, || {
        // A heartbeat on the tunnel that is dead makes the satellite look.
        satellite.signal(Signal::HUP);
        let link = federation.status()["link"].clone();
        assert_eq!(link["state"], "connected", "there is no gap");
        (link["bridges"][1]["primary"] == true).then_some(())
    });
    wait_until("a heartbeat was acknowledged over it", SOON, || {
        federation.status()["heartbeat"]["last_error"]
            .is_null()
            .then_some(())
    });
    reader.goes_on_within(SOON);
    federation.assert_nothing_told(&[&twin, &satellite]);
}
