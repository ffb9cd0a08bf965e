//! Grants, emancipation and leaving with both real programs on loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use serde_json::{Value, json};
use support::{BridgeSite, Running, SatelliteSite, fail, succeed, wait_for};

const RESOURCES: &str = "/api/v1/system/federation_api/resources";

/// What an Ed25519 private key in PKCS#8 begins with.
const PRIVATE_KEY_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

struct Pair {
    bridge: BridgeSite,
    daemon: Running,
    satellite: SatelliteSite,
    running: Running,
    peer: String,
}

impl Pair {
    /// A satellite that runs and whose parent holds its operator grant.
    fn joined() -> Self {
        let bridge = BridgeSite::init();
        let daemon = bridge.run();
        let satellite = SatelliteSite::new();
        succeed(&satellite.join(&bridge.join_code("shop-17")));
        let running = satellite.run();
        let pair = Self {
            peer: satellite.status()["peer"]["id"].as_str().unwrap().to_owned(),
            bridge,
            daemon,
            satellite,
            running,
        };
        wait_for("the operator grant is handed over", || {
            let grants = pair.json(&["grants", "list", "--json"]);
            (grants[0]["handover"] == "done").then_some(())
        });
        pair
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&succeed(&self.satellite.output(arguments))).unwrap()
    }

    /// What the satellite answers to an operator's question after the box itself.
    fn ask(&self) -> (bool, Value) {
        let path = format!("{RESOURCES}/managed_child_operator/{}", self.peer);
        let output = self.bridge.output(&["request", "shop-17", &path]);
        let text = if output.status.success() {
            output.stdout
        } else {
            output.stderr
        };
        let text = String::from_utf8(text).unwrap();
        let answer = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (output.status.success(), answer)
    }
}

fn holds_a_private_key(satellite: &SatelliteSite) -> bool {
    let files = std::fs::read_dir(satellite.state_dir()).unwrap();
    files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .any(|bytes| {
            bytes
                .windows(PRIVATE_KEY_HEAD.len())
                .any(|window| window == PRIVATE_KEY_HEAD)
        })
}

#[test]
fn an_operator_acts_under_the_held_grant_until_the_box_emancipates_itself() {
    let pair = Pair::joined();
    let (good, answer) = pair.ask();
    assert!(good, "{answer}");
    assert_eq!(answer["data"]["exists"], true);

    let said = succeed(&pair.satellite.output(&[
        "grants",
        "issue",
        "--subject",
        "anna",
        "--service",
        "ssh",
        "--source",
        "203.0.113.0/24",
    ]));
    assert!(said.contains("fgs.") && said.contains("service ssh"), "{said}");
    let list = succeed(&pair.satellite.output(&["grants", "list"]));
    assert!(
        !list.contains("fgs.") && list.contains("everything (operator)"),
        "{list}"
    );
    let grants = pair.json(&["grants", "list", "--json"]);
    let anna = grants.as_array().unwrap().iter();
    let anna = anna.filter(|grant| grant["remote_subject"] == "anna");
    let anna = anna.map(|grant| grant["id"].as_str().unwrap()).next().unwrap();
    let shown = pair.json(&["grants", "show", anna, "--json"]);
    assert_eq!(shown["source_cidrs"], json!(["203.0.113.0/24"]));
    let (code, why) = fail(
        &pair
            .satellite
            .output(&["grants", "revoke", anna, "--reason", " "]),
    );
    assert_eq!(code, 1, "{why}");
    succeed(
        &pair
            .satellite
            .output(&["grants", "revoke", anna, "--reason", "moved on"]),
    );
    assert_eq!(pair.json(&["grants", "show", anna, "--json"])["state"], "revoked");

    let (code, why) = fail(&pair.satellite.output(&["emancipate"]));
    assert!(code == 2 && why.contains("--yes"), "{why}");
    let said = succeed(
        &pair
            .satellite
            .output(&["emancipate", "--yes", "--reason", "on our own"]),
    );
    assert!(said.contains("emancipated"), "{said}");
    wait_for("the parent counts the box as its own master", || {
        (pair.bridge.peers()[0]["spawn_mode"] == "autonomous_peer").then_some(())
    });
    // Nothing is held any more that could be shown.
    let (good, answer) = pair.ask();
    assert!(
        !good && answer.to_string().contains("grant token required"),
        "{answer}"
    );
    let status = wait_for("the status says so", || {
        let status = pair.satellite.status();
        (status["grants"]["emancipated"] == true).then_some(status)
    });
    assert_eq!(status["peer"]["status"], "active", "the peering goes on");
    assert!(pair.running.stop().success());
    assert!(pair.daemon.stop().success());

    // What was done is in the log, by whom and under which grant.
    let log = succeed(&pair.satellite.output(&["audit", "export"]));
    for action in ["grant_issued", "grant_revoked", "emancipated", "request"] {
        assert!(log.contains(action), "{action}: {log}");
    }
    assert!(!log.contains("fgs."));
    // And what the box has told is in the parent's.
    let log = succeed(&pair.bridge.output(&["audit", "export"]));
    for (action, object) in [
        ("grant_received", "managed_child_operator"),
        ("grant_received", "service"),
        ("grant_revoked", "moved on"),
        ("grant_revoked", "on our own"),
    ] {
        let noted = log.lines().any(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["action"] == action
                && row["object"] == object
                && row["federation_peer_id"] == pair.peer.as_str()
                && !row["grant_id"].is_null()
        });
        assert!(noted, "{action} {object}: {log}");
    }
    assert!(!log.contains("fgs."));
}

#[test]
fn whoever_leaves_tells_the_parent_and_keeps_no_key() {
    let mut pair = Pair::joined();
    assert!(holds_a_private_key(&pair.satellite));
    let said = succeed(
        &pair
            .satellite
            .output(&["leave", "--yes", "--reason", "the shop closes"]),
    );
    assert!(said.contains("was told"), "{said}");
    assert!(pair.running.wait().success(), "the daemon ends by itself");
    let peer = pair.bridge.json(&["peers", "show", "shop-17"]);
    assert_eq!(peer["status"], "revoked", "{peer}");
    assert!(peer.to_string().contains("the shop closes"), "{peer}");
    assert!(!holds_a_private_key(&pair.satellite));
    let (code, why) = fail(&pair.satellite.output(&["status"]));
    assert!(code == 3 && why.contains("has left"), "{code}: {why}");
    let log = succeed(&pair.satellite.output(&["audit", "export"]));
    assert!(log.contains("\"left\""), "{log}");
    succeed(&pair.satellite.output(&["audit", "verify"]));
    // It may join again, as another peer.
    succeed(&pair.satellite.join(&pair.bridge.join_code("shop-17-again")));
    assert_ne!(pair.satellite.status()["peer"]["id"], pair.peer.as_str());
    assert!(pair.daemon.stop().success());
    let log = succeed(&pair.bridge.output(&["audit", "export"]));
    assert!(
        log.contains("\"left\"") && log.contains("the shop closes"),
        "{log}"
    );
}

#[test]
fn a_grant_for_a_service_that_nobody_publishes_is_warned_of() {
    let pair = Pair::joined();
    let issue = |service: &str| {
        let issued = pair.satellite.output(&[
            "grants",
            "issue",
            "--subject",
            "anna",
            "--service",
            service,
            "--json",
        ]);
        let answer: Value = serde_json::from_str(&succeed(&issued)).unwrap();
        let warned = String::from_utf8(issued.stderr).unwrap();
        (answer["grant"]["resource_id"].clone(), warned)
    };
    let (granted, warned) = issue("ssh");
    assert_eq!(granted, "ssh");
    assert!(
        warned.starts_with("warning: no service `ssh` is published"),
        "{warned}"
    );
    succeed(
        &pair
            .satellite
            .output(&["services", "publish", "ssh", "127.0.0.1:22"]),
    );
    let published = || {
        let (granted, warned) = issue("SSH");
        assert_eq!(granted, "ssh", "as services are called");
        assert_eq!(warned, "");
        let (_, warned) = issue("shs");
        assert!(
            warned.contains("no service `shs`") && warned.contains("published are: ssh"),
            "{warned}"
        );
    };
    published();
    assert!(pair.running.stop().success());
    published();
}

#[test]
fn without_a_daemon_the_commands_work_and_say_what_is_left_to_do() {
    let pair = Pair::joined();
    assert!(pair.running.stop().success());
    let satellite = &pair.satellite;
    let said = succeed(&satellite.output(&["grants", "issue", "--subject", "anna", "--ttl", "7d"]));
    assert!(said.contains("when the satellite runs"), "{said}");
    let (code, said) = fail(&satellite.output(&["grants", "issue", "--subject", "anna", "--ttl", "1d"]));
    assert_eq!(code, 1);
    assert!(said.contains("from 7 to 3650 days"), "{said}");
    let said = succeed(&satellite.output(&["emancipate", "--yes"]));
    assert!(said.contains("when the satellite runs again"), "{said}");
    assert_eq!(satellite.status()["grants"]["undelivered"], 2);

    let running = satellite.run();
    wait_for("the parent is told", || {
        let status = satellite.status();
        (status["daemon_running"] == true && status["grants"]["undelivered"] == 0).then_some(())
    });
    assert_eq!(pair.bridge.peers()[0]["spawn_mode"], "autonomous_peer");
    assert!(running.stop().success());

    let said = succeed(&satellite.output(&["leave", "--yes"]));
    assert!(
        said.contains("was not told") && said.contains(&pair.peer),
        "{said}"
    );
    assert!(!holds_a_private_key(satellite));
    let (code, _) = fail(&satellite.output(&["leave", "--yes"]));
    assert_eq!(code, 3);
    assert!(pair.daemon.stop().success());
}

/// A program of the box's that answers each byte with the same, once.
fn echo() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut answers = stream.try_clone().unwrap();
        // Ends with the connection.
        let _ = std::io::copy(&mut &stream, &mut answers);
    });
    address
}

#[test]
fn an_open_connection_is_cut_when_the_box_emancipates_itself() {
    let pair = Pair::joined();
    succeed(
        &pair
            .satellite
            .output(&["services", "publish", "echo", &echo().to_string()]),
    );
    let mut open = pair
        .bridge
        .command(&["connect", "shop-17", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = open.stdin.take().unwrap();
    input.write_all(b"hello").unwrap();
    input.flush().unwrap();
    let mut answer = [0; 5];
    open.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");

    succeed(
        &pair
            .satellite
            .output(&["emancipate", "--yes", "--reason", "on our own"]),
    );
    let log = wait_for("the connection is cut", || {
        let log = succeed(&pair.satellite.output(&["audit", "export"]));
        log.contains("service_closed").then_some(log)
    });
    assert!(log.contains("was revoked: on our own"), "{log}");
    drop(input);
    // Bounded, however the program at the other end takes it.
    open.kill().unwrap();
    open.wait().unwrap();
    let (code, why) = fail(&pair.bridge.output(&["connect", "shop-17", "echo"]));
    assert!(why.contains("grant"), "{code}: {why}");
}
