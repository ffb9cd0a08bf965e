//! How a member stays one: cut lines, routers that forget, crashes and restarts of either side.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::federation::{Federation, NAME, SOON, logged};
use crate::namespace::Link;
use crate::wait::{wait_timed, wait_until};

/// From the cut to the moment at which both sides show that the other one is gone, while somebody
/// waits on a stream: five seconds, and what busy command lines need to show it.
const NOTICED_WITHIN: Duration = Duration::from_secs(7);

/// From a line's return to active: what is left of a dial's or of a wait's time after few failures.
const BACK_WITHIN: Duration = Duration::from_secs(12);

/// From the moment at which a router has forgotten a tunnel to its next answer.
const REBOUND_WITHIN: Duration = Duration::from_secs(15);

/// Keepalive of scenarios that wait for an idle tunnel's death: this and ten seconds.
const SHORT_KEEPALIVE: &str = "2s";

/// What it takes to notice that on an idle tunnel the other side has gone without a word, and to
/// be connected again.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(20);

/// Two first silences: the join's own traffic may fall into the one; what the other side's question is late,
/// and room.
const FOUND_OUT_SILENT_WITHIN: Duration = Duration::from_secs(2 * 20 + 4 + 10);

/// `shutdown.drain` of the host-bridge, and room to start and end.
const DRAINED_WITHIN: Duration = Duration::from_secs(11);

/// The host-bridge's shortest `heartbeat.stale_after`.
const STALE_AFTER: &str = "2m";

/// That, the interval of its look at all peers, and room.
const DEGRADED_WITHIN: Duration = Duration::from_secs(120 + 15 + 10);

fn is_connected(federation: &Federation) -> bool {
    federation.status()["link"]["state"] == "connected"
}

fn session(federation: &Federation) -> Value {
    federation.peer()["tunnel"]["session"].clone()
}

#[test]
fn a_cut_line_is_noticed_on_both_sides_and_comes_back() {
    let Some(federation) = Federation::open("cut_line") else {
        return;
    };
    let (bridge, satellite) = federation.run_joined();
    // Two heartbeats are at least five seconds apart.
    wait_until("a heartbeat may be sent", SOON, || {
        (federation.peer()["heartbeat_age_seconds"].as_u64() > Some(5)).then_some(())
    });

    federation.lab.router.set_parent_link(Link::Down);
    // Both sides wait for something now: the satellite for the answer to the heartbeat that a
    // reload sends, the parent for the answer to a request.
    satellite.signal(Signal::HUP);
    let request = federation.bridge(&["request", NAME, crate::federation::CATALOG]);
    let mut request = federation.lab.spawn("request", request);
    let (mut satellite_knows, mut parent_knows) = (false, false);
    wait_timed("both sides have noticed", NOTICED_WITHIN, || {
        satellite_knows |= !is_connected(&federation);
        parent_knows |= federation.peer()["tunnel"].is_null();
        (satellite_knows && parent_knows).then_some(())
    });
    assert_eq!(request.exit_within(SOON).code(), Some(5), "{}", request.stderr());
    // The loss counts as one; a dial into the void takes ten seconds.
    wait_until("two dials have failed", Duration::from_secs(40), || {
        (federation.status()["link"]["failures"].as_u64() >= Some(3)).then_some(())
    });
    assert_eq!(
        federation.peer()["status"],
        "active",
        "a short cut degrades nobody"
    );

    federation.lab.router.set_parent_link(Link::Up);
    federation.wait_active(BACK_WITHIN);
    federation.wait_answered(SOON);
    assert_eq!(federation.bridge_json(&["status"])["connected"], 1);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_router_that_forgets_does_not_end_the_peering() {
    let Some(mut federation) = Federation::open("forgetful_router") else {
        return;
    };
    federation.set_satellite("TUNNEL_KEEPALIVE", SHORT_KEEPALIVE);
    let (bridge, satellite) = federation.run_joined();
    let before = session(&federation);

    federation.lab.router.forget_flows();
    federation.wait_answered(REBOUND_WITHIN);
    federation.lab.router.move_ports();
    wait_timed("answered from the moved port", REBOUND_WITHIN, || {
        (federation.request().code == 0).then_some(())
    });
    federation.wait_active(SOON);
    println!(
        "          the tunnel survived: {}",
        session(&federation) == before
    );
    assert_eq!(federation.bridge_json(&["status"])["connected"], 1);
    assert!(logged(&bridge, "a peer is degraded").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn either_side_may_be_killed_and_comes_back_as_who_it_was() {
    let Some(mut federation) = Federation::open("killed") else {
        return;
    };
    federation.set_satellite("TUNNEL_KEEPALIVE", SHORT_KEEPALIVE);
    let (mut bridge, mut satellite) = federation.run_joined();
    let identity = |federation: &Federation| {
        let status = federation.status();
        (
            status["peer"]["id"].clone(),
            status["certificate"]["serial"].clone(),
        )
    };
    let before = identity(&federation);

    bridge.kill_and_wait();
    let bridge = federation.run_bridge();
    federation.wait_active(FOUND_OUT_WITHIN);
    federation.wait_answered(SOON);

    let half_open = session(&federation);
    satellite.kill_and_wait();
    let mut satellite = federation.run_satellite();
    wait_until("the new session has taken over", SOON, || {
        let now = session(&federation);
        (now.is_string() && now != half_open).then_some(())
    });
    federation.wait_active(SOON);
    federation.wait_answered(SOON);
    assert_eq!(identity(&federation), before);
    assert_eq!(federation.bridge_json(&["status"])["connected"], 1);
    assert!(satellite.is_running());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_host_bridge_that_is_stopped_says_so() {
    let Some(federation) = Federation::open("stopped") else {
        return;
    };
    let (mut bridge, mut satellite) = federation.run_joined();
    bridge.terminate();
    assert!(bridge.exit_within(DRAINED_WITHIN).success());
    wait_until("the satellite knows why", SOON, || {
        let lost = logged(&satellite, "tunnel lost");
        let reason = lost.last()?["reason"].as_str()?;
        assert!(reason.contains("stops or restarts"), "{reason}");
        Some(())
    });
    assert!(satellite.is_running());

    let bridge = federation.run_bridge();
    federation.wait_active(BACK_WITHIN);
    federation.assert_nothing_told(&[&bridge, &satellite]);

    satellite.terminate();
    assert!(satellite.exit_within(DRAINED_WITHIN).success());
    wait_until("the parent sees that the satellite has left", SOON, || {
        federation.peer()["tunnel"].is_null().then_some(())
    });
}

#[test]
fn a_long_absence_degrades_and_a_heartbeat_recovers() {
    let Some(mut federation) = Federation::open("degraded") else {
        return;
    };
    federation.set_bridge("HEARTBEAT_STALE_AFTER", STALE_AFTER);
    federation.set_satellite("RECONNECT_MAX", "2s");
    let (bridge, satellite) = federation.run_joined();
    federation.lab.router.set_parent_link(Link::Down);
    wait_timed("the parent calls it degraded", DEGRADED_WITHIN, || {
        (federation.peer()["status"] == "degraded").then_some(())
    });
    let reason = federation.peer()["metadata"]["degraded_reason"].to_string();
    assert!(reason.contains("heartbeat"), "{reason}");
    let table = crate::process::succeed(federation.bridge(&["peers", "list"])).stdout;
    assert!(
        table.contains("degraded") && table.contains("heartbeat"),
        "{table}"
    );
    // The cut is one line, the failing dials another; they are not told again for two minutes.
    let told = logged(&satellite, "no tunnel; trying again");
    assert!(told.len() <= 3, "{told:#?}");

    federation.lab.router.set_parent_link(Link::Up);
    federation.wait_active(BACK_WITHIN);
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_router_that_forgets_soon_is_found_out_and_outpaced() {
    let Some(federation) = Federation::open("short_memory") else {
        return;
    };
    // Shorter than the first silence.
    let router = federation.lab.router.namespace();
    for kind in ["udp_timeout", "udp_timeout_stream"] {
        router.set_parameter(&format!("netfilter/nf_conntrack_{kind}"), "18");
    }
    let (bridge, satellite) = federation.run_joined();
    let before = session(&federation);
    let learned = wait_timed("it is found out", FOUND_OUT_SILENT_WITHIN, || {
        let learned = "the routers on the way forget a silent tunnel; it is silent for less from now on";
        logged(&satellite, learned).pop()
    });
    assert!(learned.0["silence_seconds"].as_u64() < Some(18), "{}", learned.0);

    // From now on the way in is open at every moment: two questions of the bridge's come through, and the
    // router has known the flow all the time.
    federation.lab.router.add_rule(&format!(
        "iifname \"wan0\" udp sport {} counter",
        crate::federation::PORT
    ));
    let known = || {
        let flows = federation.lab.router.flows();
        flows
            .lines()
            .any(|flow| flow.starts_with("udp") && flow.contains("dport=8443"))
    };
    wait_timed("two silences have passed", Duration::from_secs(45), || {
        assert!(known(), "the way in is shut");
        (federation.lab.router.counted_packets() >= 3).then_some(())
    });
    federation.wait_answered(SOON);
    assert_eq!(session(&federation), before);
    assert!(logged(&satellite, "tunnel lost").is_empty());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}
