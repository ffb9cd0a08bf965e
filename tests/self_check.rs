//! `self-check`: the verdict before an update, on states that the real programs made.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use powernode_satellite::bridge::registry::{REGISTRY_FILE, record};
use powernode_satellite::satellite::membership_store::{COPY_FILE, SCHEMA, STORE_FILE};
use powernode_satellite::store::database::{Database, Migration, Schema};
use serde_json::Value;
use support::{BridgeSite, SatelliteSite, fail, succeed, succeed_or_code};

/// What a later version could make of the store.
static LATER: Schema = Schema {
    name: SCHEMA.name,
    // Later than any that this build writes, for a while.
    version: 100,
    migrations: &[NOTHING; 99],
    sealed: SCHEMA.sealed,
};

/// What a later version could make of the host-bridge's.
static LATER_REGISTRY: Schema = Schema {
    name: record::SCHEMA.name,
    sealed: record::SCHEMA.sealed,
    ..LATER
};

const NOTHING: Migration = |_| Ok(());

fn verdict(satellite: &SatelliteSite) -> Value {
    verdict_of(&satellite.output(&["self-check", "--json"]))
}

fn verdict_of(output: &Output) -> Value {
    let usable = output.status.success();
    let verdict: Value = serde_json::from_str(&succeed_or_code(output, 1)).unwrap();
    assert_eq!(verdict["usable"], usable, "the exit code is the verdict");
    verdict
}

fn check<'v>(verdict: &'v Value, name: &str) -> (&'v str, &'v str) {
    let checks = verdict["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap();
    (
        check["outcome"].as_str().unwrap(),
        check["detail"].as_str().unwrap(),
    )
}

#[test]
fn a_new_box_can_run_and_is_left_as_it_was() {
    let satellite = SatelliteSite::new();
    let verdict = verdict(&satellite);
    assert_eq!(verdict["usable"], true);
    assert!(check(&verdict, "store").1.contains("the first run makes it"));
    assert!(!satellite.state_dir().exists());
}

#[test]
fn a_joined_box_is_examined_while_its_daemon_runs() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let running = satellite.run();

    let live = verdict(&satellite);
    let (outcome, detail) = check(&live, "store");
    assert_eq!(outcome, "ok");
    assert!(detail.contains(&running.id().to_string()), "{detail}");
    assert_eq!(check(&live, "membership"), ("ok", "joined"));
    let (outcome, detail) = check(&live, "certificate");
    assert!(
        outcome == "ok" && detail.starts_with("valid, ends 20"),
        "{detail}"
    );
    assert_eq!(check(&live, "second copy").0, "ok");
    assert!(running.stop().success());
    drop(daemon);

    let copy = satellite.state_dir().join(COPY_FILE);
    std::fs::write(&copy, "half").unwrap();
    assert_eq!(check(&verdict(&satellite), "second copy").0, "warning");
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(
        check(&verdict(&satellite), "second copy"),
        ("warning", "missing; a start writes it anew")
    );
    assert!(!copy.exists(), "a check changes nothing");

    let store = satellite.state_dir().join(STORE_FILE);
    std::fs::write(&store, "not a store").unwrap();
    let lost = verdict(&satellite);
    assert_eq!(lost["usable"], false);
    assert_eq!(std::fs::read(&store).unwrap(), b"not a store");
}

#[test]
fn a_store_of_a_later_version_is_refused_before_anything_is_written() {
    let satellite = SatelliteSite::new();
    assert!(satellite.run().stop().success());
    let store = satellite.state_dir().join(STORE_FILE);
    drop(Database::open(&store, &LATER).unwrap());
    let before = std::fs::read(&store).unwrap();

    let verdict = verdict(&satellite);
    assert_eq!(verdict["usable"], false);
    let (outcome, detail) = check(&verdict, "store");
    assert_eq!(outcome, "failed");
    assert!(detail.contains("Update the program"), "{detail}");
    let (exit, said) = fail(&satellite.output(&["run"]));
    assert_eq!(exit, 1, "{said}");
    assert_eq!(std::fs::read(&store).unwrap(), before);
}

#[test]
fn a_sealed_state_cannot_be_run_without_its_key() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let mut satellite = SatelliteSite::new();
    let key = satellite.dir.path().join("state-key");
    std::fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    satellite
        .variables
        .push(("POWERNODE_SATELLITE_STATE_KEY_FILE", key));
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let with_key = verdict(&satellite);
    assert_eq!(with_key["usable"], true);
    assert_eq!(check(&with_key, "second copy").0, "ok");

    satellite.variables.clear();
    let without = verdict(&satellite);
    assert_eq!(without["usable"], false);
    let (outcome, detail) = check(&without, "store");
    assert_eq!(outcome, "failed");
    assert!(detail.contains("state key"), "{detail}");
}

#[test]
fn a_bad_configuration_is_a_failed_check() {
    let satellite = SatelliteSite::new();
    let mut command = satellite.command(&["self-check", "--json"]);
    command.env("POWERNODE_SATELLITE_RECONNECT_MAX", "never");
    let output = command.output().unwrap();
    let verdict: Value = serde_json::from_str(&succeed_or_code(&output, 1)).unwrap();
    assert_eq!(verdict["usable"], false);
    assert_eq!(check(&verdict, "configuration").0, "failed");
}

fn verdict_of_bridge(bridge: &BridgeSite) -> Value {
    verdict_of(&bridge.output(&["self-check", "--json"]))
}

#[test]
fn a_host_bridge_is_examined_beside_its_daemon_and_without_it() {
    let bridge = BridgeSite::init();
    let store = bridge.dir.path().join("state").join(REGISTRY_FILE);
    let before = std::fs::read(&store).unwrap();
    let still = verdict_of_bridge(&bridge);
    assert_eq!(still["usable"], true);
    assert_eq!(check(&still, "configuration"), ("ok", "good"));
    assert!(check(&still, "store").1.starts_with("whole, "));
    assert_eq!(std::fs::read(&store).unwrap(), before);

    let running = bridge.run();
    let live = verdict_of_bridge(&bridge);
    assert_eq!(live["usable"], true);
    let (outcome, detail) = check(&live, "store");
    assert!(
        outcome == "ok" && detail.contains(&running.id().to_string()),
        "{detail}"
    );
    let (outcome, detail) = check(&live, "authority");
    assert!(
        outcome == "ok" && detail.starts_with("valid, ends 20"),
        "{detail}"
    );
    succeed(&bridge.output(&["ca", "rotate"]));
    assert!(
        check(&verdict_of_bridge(&bridge), "authority")
            .1
            .contains("the one before counts until 20")
    );
    assert!(running.stop().success());
}

#[test]
fn a_registry_that_this_program_cannot_use_is_refused_as_it_is() {
    let bridge = BridgeSite::init();
    let store = bridge.dir.path().join("state").join(REGISTRY_FILE);
    let refused = |what: &str, why: &str| {
        let before = std::fs::read(&store).ok();
        let verdict = verdict_of_bridge(&bridge);
        assert_eq!(verdict["usable"], false, "{what}");
        let (outcome, detail) = check(&verdict, "store");
        assert!(outcome == "failed" && detail.contains(why), "{what}: {detail}");
        let (_, said) = fail(&bridge.output(&["run"]));
        assert_eq!(std::fs::read(&store).ok(), before, "{what}: {said}");
    };
    drop(Database::open(&store, &LATER_REGISTRY).unwrap());
    refused("of a later version", "Update the program");
    std::fs::write(&store, "not a store").unwrap();
    refused("no store", "is not a store");
    std::fs::remove_file(&store).unwrap();
    refused("gone", "powernode-host-bridge init");
}

#[test]
fn a_host_bridge_beside_a_platform_is_examined_before_its_first_run() {
    let mut bridge = BridgeSite::init();
    let absent = bridge.dir.path().join("absent.pem");
    bridge.variables = vec![
        (
            "POWERNODE_HOST_BRIDGE_PLATFORM_URL",
            "http://127.0.0.1:3000".into(),
        ),
        ("POWERNODE_HOST_BRIDGE_PLATFORM_CA_FILE", bridge.ca_file.clone()),
        ("POWERNODE_HOST_BRIDGE_SERVER_CERTIFICATE_FILE", absent.clone()),
        ("POWERNODE_HOST_BRIDGE_SERVER_KEY_FILE", absent),
    ];
    let verdict = verdict_of_bridge(&bridge);
    assert_eq!(verdict["usable"], false);
    let (outcome, detail) = check(&verdict, "certificates");
    assert!(
        outcome == "failed" && detail.contains("server.certificate_file"),
        "{detail}"
    );
    assert!(check(&verdict, "store").1.contains("the first run makes it"));
}
