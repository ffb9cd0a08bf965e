//! The host-bridge dials the satellite where a real router gives it a port: streams move there, and back when the
//! port goes.

use std::net::SocketAddr;
use std::time::Duration;

use crate::federation::{SOON, logged};
use crate::ladder::{rung, wait_rung};
use crate::port_mapping::{Home, MAPPED_WITHIN, PCP_AND_NAT_PMP, REMAPPED_WITHIN, UPNP_ALONE};
use crate::stream::{Reader, publish_counter};
use crate::wait::wait_until;

/// From a proven endpoint to streams on it: the news, a dial, the trial of 10 s, and room.
const DIRECT_WITHIN: Duration = Duration::from_secs(25);

/// Five seconds of silence with streams open, a race, and room.
const FALLEN_BACK_WITHIN: Duration = Duration::from_secs(15);

/// From the loss to the bridge's own dial: fifteen seconds, one wait of up to thirty where it came too early, a dial
/// and room.
const DIALLED_AGAIN_WITHIN: Duration = Duration::from_secs(75);

/// Where the bridge sees the satellite on the tunnel that carries.
fn seen_at(home: &Home) -> Option<String> {
    let peer = home.federation.peer();
    Some(peer["tunnel"]["address"].as_str()?.to_owned())
}

fn wait_direct(home: &Home, endpoint: SocketAddr) {
    wait_rung(&home.federation, "direct", DIRECT_WITHIN);
    wait_until("the bridge's streams go to the endpoint", SOON, || {
        (seen_at(home)? == endpoint.to_string()).then_some(())
    });
}

#[test]
fn a_router_that_gives_a_port_has_the_bridge_dial_and_streams_move_there_and_back() {
    for (test, options, protocol) in [
        ("direct_upnp", UPNP_ALONE, "UPnP"),
        ("direct_pcp", PCP_AND_NAT_PMP, "PCP"),
    ] {
        let Some(mut home) = Home::open(test, options) else {
            return;
        };
        home.federation.set_satellite("TUNNEL_CLIMB_MAX", "3s");
        let mut router = home.run_router();
        let (bridge, satellite) = home.federation.run_joined();
        wait_rung(&home.federation, "quic", SOON);
        publish_counter(&home.federation);
        let before = Reader::start(&home.federation);
        let (endpoint, _) = home.wait_proven(protocol, MAPPED_WITHIN);
        wait_direct(&home, endpoint);
        before.goes_on_within(SOON);
        let during = Reader::start(&home.federation);
        during.goes_on_within(SOON);
        assert!(logged(&satellite, "tunnel lost").is_empty());

        // The port is gone, and yet the satellite's own packets keep the tunnel open that is there.
        router.kill_and_wait();
        home.forget();
        during.goes_on_within(SOON);
        before.goes_on_within(SOON);

        // Nothing of it passes any more.
        let port = home.internal_port();
        for side in ["sport", "dport"] {
            let rule = format!("udp {side} {port} counter drop");
            home.federation.lab.router.add_rule(&rule);
        }
        wait_rung(&home.federation, "quic", FALLEN_BACK_WITHIN);
        wait_until("the stream of the lost tunnel has ended", SOON, || {
            during.has_ended().then_some(())
        });
        before.goes_on_within(SOON);
        let after = Reader::start(&home.federation);
        after.goes_on_within(SOON);

        home.federation.lab.router.clear_rules();
        drop(router);
        let _router = home.run_router();
        let (endpoint, _) = home.wait_proven(protocol, REMAPPED_WITHIN + MAPPED_WITHIN);
        wait_direct(&home, endpoint);
        before.goes_on_within(SOON);
        after.goes_on_within(SOON);
        home.federation.assert_nothing_told(&[&bridge, &satellite]);
    }
}

#[test]
fn a_bridge_that_restarts_is_dialled_first_and_dials_then() {
    let Some(mut home) = Home::open("direct_restart", UPNP_ALONE) else {
        return;
    };
    home.federation.set_satellite("TUNNEL_CLIMB_MAX", "3s");
    let _router = home.run_router();
    let (mut bridge, mut satellite) = home.federation.run_joined();
    let (endpoint, _) = home.wait_proven("UPnP", MAPPED_WITHIN);
    wait_direct(&home, endpoint);
    bridge.kill_and_wait();
    let bridge = home.federation.run_bridge();
    home.federation.wait_active(SOON * 3);
    wait_direct(&home, endpoint);
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    wait_until("the bridge was told", SOON, || {
        let told = logged(&bridge, "a satellite's tunnel has ended");
        told.iter()
            .any(|line| line.to_string().contains("the satellite stops"))
            .then_some(())
    });
}

#[test]
fn a_satellite_whose_way_out_is_gone_is_dialled_by_the_bridge_itself() {
    let Some(home) = Home::open("direct_again", UPNP_ALONE) else {
        return;
    };
    let _router = home.run_router();
    let (bridge, satellite) = home.federation.run_joined();
    publish_counter(&home.federation);
    let (endpoint, _) = home.wait_proven("UPnP", MAPPED_WITHIN);
    wait_direct(&home, endpoint);
    let reader = Reader::start(&home.federation);

    let router = &home.federation.lab.router;
    for way_out in ["udp dport 8443", "tcp dport 8443"] {
        router.add_rule(&format!("{way_out} counter drop"));
    }
    router
        .namespace()
        .nft("add chain inet lab outage; insert rule inet lab forward jump outage");
    for side in ["sport", "dport"] {
        let rule = format!("udp {side} {} counter drop", home.internal_port());
        router
            .namespace()
            .nft(&format!("add rule inet lab outage {rule}"));
    }
    wait_until("the stream of the lost tunnel has ended", SOON, || {
        reader.has_ended().then_some(())
    });
    wait_until("the satellite has noticed", SOON, || {
        (rung(&home.federation) != "direct").then_some(())
    });
    router.namespace().nft("flush chain inet lab outage");
    wait_rung(&home.federation, "direct", DIALLED_AGAIN_WITHIN);
    let reader = Reader::start(&home.federation);
    reader.goes_on_within(SOON);
    home.federation.assert_nothing_told(&[&bridge, &satellite]);
}
