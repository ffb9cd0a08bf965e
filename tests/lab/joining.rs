//! How a box behind a router becomes a member, whatever is missing at that moment.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::federation::{Federation, SOON, lines, logged};
use crate::namespace::Link;
use crate::topology::{PARENT_V4, ROUTER_WAN_V4, SATELLITE_V4};
use crate::wait::{wait_timed, wait_until};

/// From the command to active on both sides. On an idle machine it takes less than a second.
const JOINS_WITHIN: Duration = Duration::from_secs(10);

/// From the parent's or the network's return to active: the rest of a dial that is under way, or of
/// a wait after the few failures of these scenarios.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// Half of the resolver's time, which is ten seconds.
const REMEMBERED_WITHIN: Duration = Duration::from_secs(5);

/// How long an inward connection is tried. In the lab packets need microseconds.
const INWARD_TRY: Duration = Duration::from_secs(1);

/// Log lines of a box that cannot reach its parent for a while. Each kind of failure is one line.
const QUIET_LOG_LINES: usize = 12;

/// Speed at which an accept's answer is on the way for half a second, in kbit/s.
const SLOW_LINE: u32 = 32;

#[test]
fn a_box_behind_nat_joins_and_keeps_its_heartbeat() {
    let Some(federation) = Federation::open("plain_nat") else {
        return;
    };
    let bridge = federation.run_bridge();
    let invitation = federation.invite();
    assert_eq!(federation.peer()["status"], "proposed");
    let satellite = federation.run_satellite();
    assert_eq!(federation.status()["state"], "not_invited");

    let (joined, _) = wait_timed("`join` has ended", JOINS_WITHIN, || {
        Some(federation.join(&invitation, &[]))
    });
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    federation.wait_active(JOINS_WITHIN);
    let tunnel_from: SocketAddr = federation.peer()["tunnel"]["address"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(tunnel_from.ip(), ROUTER_WAN_V4, "the parent sees the router");

    // Even a parent that knows the way does not get in, and still it has its answer.
    federation
        .lab
        .parent
        .ip(&format!("route add 10.77.0.0/24 via {ROUTER_WAN_V4}"));
    let listener = federation
        .lab
        .satellite
        .enter(|| TcpListener::bind((SATELLITE_V4, 0)))
        .unwrap();
    let inward = listener.local_addr().unwrap();
    let refused = federation
        .lab
        .parent
        .enter(|| TcpStream::connect_timeout(&inward, INWARD_TRY))
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    let answer = federation.request();
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.json()["data"]["offerings"].is_array(), "{}", answer.stdout);

    let (told, acknowledged) = heartbeat_times(&federation);
    let (next, took) = wait_timed("the next heartbeat", Duration::from_secs(70), || {
        Some(heartbeat_times(&federation)).filter(|(parents, own)| *parents != told && *own != acknowledged)
    });
    assert!(
        took > Duration::from_secs(50),
        "heartbeats come once a minute: {next:?}"
    );
    assert!(federation.is_active());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

/// The last heartbeat as the parent and as the satellite show it.
fn heartbeat_times(federation: &Federation) -> (Value, Value) {
    (
        federation.peer()["last_heartbeat_at"].clone(),
        federation.status()["heartbeat"]["last_acknowledged_at"].clone(),
    )
}

#[test]
fn a_box_whose_parent_is_away_joins_when_it_is_back() {
    let Some(federation) = Federation::open("parent_away") else {
        return;
    };
    let invitation = federation.invite();
    let given_up = federation.join(&invitation, &["--timeout", "2s"]);
    assert_eq!(given_up.code, 5, "{}", given_up.stderr);
    assert!(given_up.stderr.contains("is stored"), "{}", given_up.stderr);

    let mut satellite = federation.run_satellite();
    wait_until("a try has failed and a person can see it", SOON, || {
        let link = &federation.status()["link"];
        (link["failures"].as_u64() > Some(0) && link["last_error"].is_string()).then_some(())
    });
    assert!(satellite.is_running());
    let bridge = federation.run_bridge();
    federation.wait_active(BACK_WITHIN);
    federation.wait_answered(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_box_that_boots_without_network_joins_when_it_has_one() {
    let Some(mut federation) = Federation::open("no_network") else {
        return;
    };
    let bridge = federation.run_bridge();
    let invitation = federation.invite();
    federation.lay_payload(&invitation);
    federation.lab.set_uplink(Link::Down);

    let mut satellite = federation.run_satellite();
    wait_until("several tries have failed", SOON, || {
        (federation.status()["link"]["failures"].as_u64() >= Some(5)).then_some(())
    });
    let why = federation.status()["link"]["last_error"].to_string();
    assert!(why.contains("no route"), "{why}");
    assert!(satellite.is_running());
    let said = lines(&satellite);
    assert!(said.len() <= QUIET_LOG_LINES, "{said:#?}");
    assert!(!logged(&satellite, "no tunnel; trying again").is_empty());

    federation.lab.set_uplink(Link::Up);
    federation.wait_active(BACK_WITHIN);
    assert!(satellite.is_running());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn an_accept_whose_answer_is_lost_is_answered_again() {
    let Some(mut federation) = Federation::open("lost_answer") else {
        return;
    };
    let mut bridge = federation.run_bridge();
    let invitation = federation.invite();
    federation.lay_payload(&invitation);
    federation.lab.slow_parent_down(SLOW_LINE);

    let satellite = federation.run_satellite();
    bridge.wait_for_log("a peer has accepted", SOON);
    federation.lab.router.block_from_parent();
    federation.lab.speed_parent_up();
    wait_until("the satellite has lost its answer", SOON, || {
        (!logged(&satellite, "accept not answered with a membership").is_empty()).then_some(())
    });
    assert!(federation.lab.router.counted_packets() > 0);
    assert_eq!(federation.status()["state"], "sent");
    assert_eq!(federation.peer()["status"], "enrolled");
    assert_eq!(repeated(&bridge), [false]);

    federation.lab.router.clear_rules();
    federation.wait_active(BACK_WITHIN);
    assert_eq!(repeated(&bridge), [false, true]);
    assert_eq!(federation.status()["peer"]["id"], federation.peer()["id"]);
    federation.wait_answered(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

/// Of each accept that the host-bridge has answered: whether it was a repetition.
fn repeated(bridge: &crate::process::Process) -> Vec<Value> {
    logged(bridge, "a peer has accepted")
        .iter()
        .map(|line| line["repeated"].clone())
        .collect()
}

#[test]
fn a_box_that_lost_its_resolver_finds_its_parent() {
    const HOST: &str = "bridge.lab.test";
    let Some(mut federation) = Federation::open_as("no_resolver", HOST) else {
        return;
    };
    federation.set_satellite("RECONNECT_MAX", "2s");
    let lab = &federation.lab;
    lab.satellite
        .set_etc_file("hosts", &format!("127.0.0.1 localhost\n{PARENT_V4} {HOST}\n"));
    // A resolver that swallows its questions: worse than one that refuses them.
    lab.satellite
        .set_etc_file("resolv.conf", &format!("nameserver {PARENT_V4}\n"));
    lab.router.add_rule("udp dport 53 counter drop");

    let (bridge, mut satellite) = federation.run_joined();
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    let lab = &federation.lab;
    lab.satellite.set_etc_file("hosts", "127.0.0.1 localhost\n");

    let satellite = federation.run_satellite();
    // What is remembered is dialled while the resolver is asked.
    wait_until("connected to the remembered address", REMEMBERED_WITHIN, || {
        (federation.status()["link"]["state"] == "connected").then_some(())
    });
    assert!(lab.router.counted_packets() > 0, "nobody asked the resolver");
    assert!(federation.is_active());
    federation.wait_answered(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}
