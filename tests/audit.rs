//! The audit logs of both programs as operators meet them: what is noted, what is shown, what is found
//! when somebody has been at the store, and what outlives a kill.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use powernode_satellite::audit::chain::AuditRow;
use powernode_satellite::bridge::registry::REGISTRY_FILE;
use powernode_satellite::bridge::registry::record::SCHEMA;
use powernode_satellite::store::audit_log::AUDIT_ROWS;
use powernode_satellite::store::database::{Database, StoreError};
use serde_json::Value;
use support::{BridgeSite, SatelliteSite, fail, succeed, wait_for};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn exported(bridge: &BridgeSite, more: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["audit", "export"];
    arguments.extend_from_slice(more);
    lines(&succeed(&bridge.output(&arguments)))
}

fn actions(entries: &[Value]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect()
}

/// Changes the log behind the program's back.
fn tamper(bridge: &BridgeSite, change: impl FnOnce(&Path)) {
    change(&bridge.dir.path().join("state").join(REGISTRY_FILE));
}

#[test]
fn both_sides_note_what_crosses_the_peering_and_keep_it_over_a_kill() {
    let bridge = BridgeSite::init();
    let satellite = SatelliteSite::new();
    let bridge_daemon = bridge.run();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let daemon = satellite.run();
    bridge.wait_status("shop-17", "active");
    wait_for("the satellite answers through the tunnel", || {
        bridge
            .output(&["request", "shop-17", CATALOG])
            .status
            .success()
            .then_some(())
    });
    let peer = bridge.json(&["peers", "show", "shop-17"])["id"]
        .as_str()
        .unwrap()
        .to_owned();

    // The satellite's log, while it runs.
    let seen = wait_for("the request is in the satellite's log", || {
        let seen = lines(&succeed(
            &satellite.output(&["audit", "export", "--since", "72h", "--peer", &peer]),
        ));
        seen.iter()
            .any(|entry| entry["action"] == "request")
            .then_some(seen)
    });
    assert_eq!(actions(&seen)[0], "joined");
    for entry in &seen {
        assert_eq!(entry["federation_peer_id"], peer.as_str());
    }
    assert_eq!(
        seen[0]["remote_subject"], "127.0.0.1",
        "joined: the parent by its host"
    );
    let request = seen.iter().find(|entry| entry["action"] == "request").unwrap();
    assert_eq!(request["actor"], "local");
    assert_eq!(request["object"], format!("GET {CATALOG}"));
    assert_eq!(request["outcome"], "done");
    let table = succeed(&satellite.output(&["audit", "show", "--last", "1"]));
    assert!(table.contains(CATALOG) && !table.contains("joined"), "{table}");

    // Killed: what was durable stays, and the chain is whole without a daemon and goes on with the next.
    daemon.kill();
    let whole = succeed(&satellite.output(&["audit", "verify"]));
    assert!(whole.contains("as they were written"), "{whole}");
    let noted = whole.trim().rsplit(' ').next().unwrap().to_owned();
    let again = satellite.run();
    succeed(&satellite.output(&["audit", "verify", "--noted", &noted]));
    assert!(again.stop().success());

    // The bridge's log: the operator at the socket, and the peer.
    let seen = wait_for("the bridge's log has the join", || {
        let seen = exported(&bridge, &["--peer", "shop-17"]);
        actions(&seen).contains(&"joined").then_some(seen)
    });
    assert_eq!(actions(&seen)[..2], ["peer_invited", "joined"]);
    assert_eq!(seen[0]["actor"], "local");
    assert_eq!(seen[1]["remote_subject"], format!("fed:{peer}"));
    assert_eq!(seen[1]["source"], "127.0.0.1");
    bridge_daemon.kill();
    succeed(&bridge.output(&["audit", "verify"]));
}

#[test]
fn what_was_done_to_the_store_is_found_and_named() {
    let bridge = BridgeSite::init();
    let revoked = bridge.invite("shop-1")["peer"]["id"].as_str().unwrap().to_owned();
    for name in ["shop-2", "shop-3", "shop-4"] {
        bridge.invite(name);
    }
    succeed(&bridge.output(&["peers", "revoke", "shop-1", "--reason", "never came"]));
    let entries = exported(&bridge, &[]);
    assert_eq!(entries.len(), 5, "commands without a daemon are noted, too");
    assert_eq!(exported(&bridge, &["--peer", &revoked]).len(), 2);
    assert!(exported(&bridge, &["--until", "1h"]).is_empty());
    succeed(&bridge.output(&["audit", "verify"]));

    tamper(&bridge, |path| {
        let database = Database::open(path, &SCHEMA).unwrap();
        database
            .write(|w| {
                let row: AuditRow = w.get(&AUDIT_ROWS, &3)?.unwrap();
                w.put(&AUDIT_ROWS, &2, &row)?;
                Ok::<_, StoreError>(())
            })
            .unwrap();
    });
    let (code, said) = fail(&bridge.output(&["audit", "verify"]));
    assert_eq!(code, 1);
    assert!(said.contains("row 3 stands in the place of row 2"), "{said}");
    let daemon = bridge.run();
    let (code, said) = fail(&bridge.output(&["audit", "verify"]));
    assert_eq!(code, 1, "the daemon says the same");
    assert!(said.contains("row 3 stands in the place of row 2"), "{said}");
    assert!(daemon.stop().success());

    tamper(&bridge, |path| {
        let database = Database::open(path, &SCHEMA).unwrap();
        database
            .write(|w| w.remove(&AUDIT_ROWS, &1).map(|_| ()))
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
    });
    let (_, said) = fail(&bridge.output(&["audit", "verify"]));
    assert!(said.contains("1 to 1 were removed"), "{said}");
}

#[test]
fn what_cannot_be_asked_is_said() {
    let bridge = BridgeSite::init();
    assert_eq!(succeed(&bridge.output(&["audit", "show"])), "no entries\n");
    let whole = succeed(&bridge.output(&["audit", "verify"]));
    assert!(whole.contains("no rows yet"), "{whole}");
    let (code, said) = fail(&bridge.output(&["audit", "show", "--since", "yesterday"]));
    assert_eq!(code, 2);
    assert!(said.contains("72h"), "{said}");
    let (code, said) = fail(&bridge.output(&["audit", "verify", "--noted", "7"]));
    assert_eq!(code, 2);
    assert!(said.contains("NUMBER:HASH"), "{said}");
    let (code, _) = fail(&bridge.output(&["audit", "export", "--peer", "shop-71"]));
    assert_eq!(code, 4);
}
