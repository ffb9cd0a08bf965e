//! `doctor`: found out by trying, before the join and beside a running satellite.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use serde_json::Value;
use support::{BridgeSite, SatelliteSite, succeed, succeed_or_code, wait_for};

/// The report, whose verdict is the exit code's.
fn examine(satellite: &SatelliteSite, more: &[(&str, &str)]) -> Value {
    let mut command = satellite.command(&["doctor", "--json"]);
    for (name, value) in more {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let works = output.status.success();
    let report: Value = serde_json::from_str(&succeed_or_code(&output, 1)).unwrap();
    assert_eq!(
        report["verdict"] != "fail",
        works,
        "the exit code is the verdict: {report}"
    );
    report
}

/// Verdict, finding and advice of the check whose name begins so.
fn check<'v>(report: &'v Value, name: &str) -> (&'v str, &'v str, &'v str) {
    let text = |value: &'v Value| value.as_str().unwrap_or_default();
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| text(&check["name"]).starts_with(name));
    let found = found.unwrap_or_else(|| panic!("no check `{name}` in {report}"));
    (
        text(&found["verdict"]),
        text(&found["finding"]),
        text(&found["advice"]),
    )
}

#[test]
fn a_box_that_knows_no_parent_is_told_what_to_set() {
    let satellite = SatelliteSite::new();
    let report = examine(&satellite, &[]);
    assert_eq!(check(&report, "store").0, "ok");
    assert_eq!(check(&report, "disk").0, "ok");
    let (verdict, _, advice) = check(&report, "host-bridge");
    assert_eq!(verdict, "warn");
    assert!(advice.contains("parent.url"), "{advice}");
    let (verdict, finding, _) = check(&report, "routers");
    assert_eq!(verdict, "ok");
    assert!(finding.contains("reach.port_mapping is false"), "{finding}");
    assert!(!satellite.state_dir().exists(), "nothing is made by looking");
}

#[test]
fn a_key_that_everybody_reads_is_found() {
    let satellite = SatelliteSite::new();
    let key = satellite.dir.path().join("key");
    std::fs::write(&key, "ab12".repeat(16)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let report = examine(
        &satellite,
        &[("POWERNODE_SATELLITE_STATE_KEY_FILE", key.to_str().unwrap())],
    );
    let (verdict, finding, advice) = check(&report, "secret file");
    assert_eq!(verdict, "warn");
    assert!(
        finding.contains("`state_key_file`") && finding.contains("can read"),
        "{finding}"
    );
    assert!(advice.contains("chmod"), "{advice}");
}

#[test]
fn both_ways_to_a_bridge_are_tried_for_real_and_no_tunnel_is_displaced() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let _running = satellite.run();
    let session = wait_for("the tunnel", || {
        let status = satellite.status();
        (status["link"]["state"] == "connected").then(|| status["link"]["since"].clone())
    });
    let report = examine(&satellite, &[]);
    for way in ["UDP to ", "TCP to "] {
        let (verdict, finding, _) = check(&report, way);
        assert_eq!(verdict, "ok", "{finding}");
        assert!(finding.contains("powernode-host-bridge/"), "{finding}");
    }
    assert_eq!(check(&report, "certificate").0, "ok");
    assert_eq!(
        satellite.status()["link"]["since"],
        session,
        "the daemon's tunnel lives on"
    );
}

#[test]
fn a_parent_is_known_by_the_authority_that_has_followed_the_invitations() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    bridge.json(&["ca", "rotate"]);
    let _running = satellite.run();
    wait_for("both authorities are trusted", || {
        let status = satellite.status();
        (status["certificate"]["anchors"].as_array()?.len() == 2).then_some(())
    });
    succeed(&bridge.output(&["ca", "retire", "--force"]));
    let report = examine(&satellite, &[]);
    for way in ["UDP to ", "TCP to "] {
        let (verdict, finding, _) = check(&report, way);
        assert_eq!(verdict, "ok", "{finding}");
    }
}

#[test]
fn a_parent_that_is_not_there_or_not_trusted_fails_with_advice() {
    let bridge = BridgeSite::init();
    let url = bridge.url();
    let satellite = SatelliteSite::new();
    let named = [
        ("POWERNODE_SATELLITE_PARENT_URL", url.as_str()),
        ("POWERNODE_SATELLITE_PARENT_CA_SHA256", &"0".repeat(64)),
        ("POWERNODE_SATELLITE_TUNNEL_TRANSPORT", "tls"),
    ];
    let report = examine(&satellite, &named);
    let (verdict, _, advice) = check(&report, "TCP to ");
    assert_eq!(verdict, "fail");
    assert!(advice.contains("whether the host-bridge runs"), "{advice}");

    // Whoever answered is no matter of the network, and says itself what is wrong.
    let daemon = bridge.run();
    let report = examine(&satellite, &named);
    let (verdict, finding, advice) = check(&report, "TCP to ");
    assert_eq!((verdict, advice), ("fail", ""));
    assert!(finding.contains("expected CA"), "{finding}");
    assert!(daemon.stop().success());

    let unknown = [
        ("POWERNODE_SATELLITE_PARENT_URL", "https://bridge.invalid"),
        named[1],
        named[2],
    ];
    let report = examine(&satellite, &unknown);
    assert!(check(&report, "DNS ").2.contains("resolv.conf"), "{report}");
    let (verdict, _, advice) = check(&report, "TCP to ");
    assert_eq!((verdict, advice), ("fail", ""), "{report}");
}

#[test]
fn a_daemon_that_cannot_be_asked_is_not_said_to_be_away() {
    let satellite = SatelliteSite::new();
    assert_eq!(check(&examine(&satellite, &[]), "daemon").0, "ok");
    let socket = satellite.dir.path().join("deaf.sock");
    let deaf = UnixListener::bind(&socket).unwrap();
    let hanging_up = std::thread::spawn(move || drop(deaf.accept().unwrap()));
    let report = examine(
        &satellite,
        &[("POWERNODE_SATELLITE_ADMIN_SOCKET", socket.to_str().unwrap())],
    );
    hanging_up.join().unwrap();
    let (verdict, finding, _) = check(&report, "daemon");
    assert_eq!(verdict, "fail", "{report}");
    assert!(finding.contains("hung up"), "{finding}");
}

#[test]
fn a_host_bridge_finds_out_whether_it_is_reached() {
    let bridge = BridgeSite::init();
    let examine = || {
        let output = bridge.output(&["doctor", "--json"]);
        let reached = output.status.success();
        let report: Value = serde_json::from_str(&succeed_or_code(&output, 1)).unwrap();
        assert_eq!(
            report["verdict"] != "fail",
            reached,
            "the exit code is the verdict: {report}"
        );
        report
    };
    let down = examine();
    let (verdict, _, advice) = check(&down, "daemon");
    assert_eq!(verdict, "fail");
    assert!(advice.contains("start it"), "{advice}");
    assert_eq!(check(&down, "TCP 127.0.0.1:").1, "free for the daemon");
    assert!(check(&down, "public address").1.contains("does not run"));

    let taken = std::net::UdpSocket::bind(("127.0.0.1", bridge.port)).unwrap();
    let (verdict, finding, advice) = {
        let report = examine();
        let (verdict, finding, advice) = check(&report, "UDP 127.0.0.1:");
        (verdict.to_owned(), finding.to_owned(), advice.to_owned())
    };
    assert_eq!((&*verdict, &*finding), ("fail", "taken by another process"));
    assert!(advice.contains("listen.quic"), "{advice}");
    drop(taken);

    let running = bridge.run();
    let up = examine();
    assert_ne!(up["verdict"], "fail", "{up}");
    assert_eq!(check(&up, "daemon").1, "runs; 0 of 0 peers connected");
    for way in ["UDP to ", "TCP to "] {
        let (verdict, finding, _) = check(&up, way);
        assert!(verdict == "ok" && finding.contains("greeted by"), "{finding}");
    }
    let store = check(&up, "store").1;
    assert!(store.contains(&running.id().to_string()), "{store}");
    let text = succeed(&bridge.output(&["doctor"]));
    assert!(text.contains("taken, as it should be"), "{text}");

    // Where nobody is, a look from here cannot tell whether nobody comes in.
    let mut elsewhere = bridge.command(&["doctor", "--json"]);
    elsewhere.env("POWERNODE_HOST_BRIDGE_PUBLIC_URL", "https://127.0.0.1:1");
    let report: Value = serde_json::from_str(&succeed_or_code(&elsewhere.output().unwrap(), 1)).unwrap();
    let (verdict, _, advice) = check(&report, "TCP to 127.0.0.1:1");
    assert_eq!(verdict, "warn");
    assert!(advice.contains("from outside"), "{advice}");
    assert!(running.stop().success());
}
