//! A box that changes its way out: another gateway, another interface, a cable that is pulled and put
//! back. It must notice by itself, at once, and lose nothing that is open.

use std::time::Duration;

use serde_json::Value;

use crate::federation::{Federation, SOON, logged};
use crate::namespace::Link;
use crate::process::Process;
use crate::stream::{Reader, publish_counter};
use crate::topology::{SATELLITE_V4, SecondRouter};
use crate::wait::{wait_timed, wait_until};

/// From a change of the box's own network to traffic over the new way: the kernel's news, which settle
/// for 150 ms, one ping over the new path and its validation, and what busy command lines need.
const MOVED_WITHIN: Duration = Duration::from_secs(3);

fn session(federation: &Federation) -> Value {
    federation.peer()["tunnel"]["session"].clone()
}

/// How often the satellite has said that its network is another one.
fn changes(satellite: &Process) -> usize {
    logged(
        satellite,
        "the network of this box has changed; looking at all tunnels",
    )
    .len()
}

/// Whether the parent sees the satellite at an address of this beginning.
fn is_seen_at(federation: &Federation, beginning: &str) -> bool {
    let address = federation.peer()["tunnel"]["address"].clone();
    address
        .as_str()
        .is_some_and(|address| address.contains(beginning))
}

#[test]
fn another_gateway_for_the_same_address_is_noticed_at_once() {
    let Some(federation) = Federation::open("roam_gateway") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    let second = SecondRouter::attach(&federation.lab);
    let before = session(&federation);
    // Nothing is open, so nobody would send for up to a keepalive.
    federation.lab.router.add_rule("counter drop");
    federation.lab.satellite.ip(&format!(
        "route replace default via {} dev up1 src {SATELLITE_V4}",
        SecondRouter::LAN_V4
    ));
    wait_timed("the parent sees the new way", MOVED_WITHIN, || {
        is_seen_at(&federation, &SecondRouter::WAN_V4.to_string()).then_some(())
    });
    federation.wait_answered(SOON);
    assert_eq!(session(&federation), before);
    assert!(logged(&satellite, "tunnel lost").is_empty());
    assert_eq!(changes(&satellite), 1);
    // What is told of interfaces that no way leads over is none of its business.
    let edge = &federation.lab.satellite;
    edge.ip("link add inside0 type veth peer name inside1");
    edge.set_link("inside0", Link::Up);
    edge.ip("address add 192.0.2.77/24 dev inside0");
    second.namespace().ip("link set lan0 alias other");
    federation.wait_answered(SOON);
    assert_eq!(changes(&satellite), 1);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_cable_that_is_moved_to_another_interface_ends_no_stream() {
    let Some(federation) = Federation::open("roam_interface") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    let second = SecondRouter::attach(&federation.lab);
    publish_counter(&federation);
    let reader = Reader::start(&federation);
    let before = session(&federation);

    federation.lab.set_uplink(Link::Down);
    federation
        .lab
        .satellite
        .ip(&format!("route add default via {} dev up1", SecondRouter::LAN_V4));
    reader.goes_on_within(MOVED_WITHIN);
    assert!(is_seen_at(&federation, &SecondRouter::WAN_V4.to_string()));

    // And back: the better line has a smaller metric, as a network manager gives it.
    federation.lab.set_uplink(Link::Up);
    second.namespace().set_link("lan0", Link::Down);
    reader.goes_on_within(MOVED_WITHIN);
    assert_eq!(session(&federation), before);
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_cable_that_was_out_for_long_is_found_again_at_once() {
    let Some(mut federation) = Federation::open("roam_cable") else {
        return;
    };
    // Waits between dials grow beyond what this test waits.
    federation.set_satellite("RECONNECT_INITIAL", "60s");
    federation.set_satellite("RECONNECT_MAX", "5m");
    let (bridge, satellite) = federation.run_joined();
    federation.lab.router.set_satellite_link(Link::Down);
    wait_until("the satellite knows", Duration::from_secs(30), || {
        (federation.status()["link"]["state"] == "waiting").then_some(())
    });
    federation.lab.router.set_satellite_link(Link::Up);
    wait_timed("connected again", SOON, || {
        (federation.status()["link"]["state"] == "connected").then_some(())
    });
    federation.wait_active(SOON);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}
