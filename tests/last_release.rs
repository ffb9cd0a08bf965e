//! The programs of the last release beside this build's: they meet in a tunnel either way round, and
//! take each other's state over, forward and back. Skipped, and said, while there is no earlier release.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{BridgeSite, SatelliteSite, succeed, wait_for};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

/// What `scripts/last-release` ends with when there is none.
const NO_RELEASE: i32 = 3;

/// Where the programs are; `None`, said aloud, when there is no release.
fn last_release(test: &str) -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/last-release");
        let output = Command::new(script).output().unwrap();
        if output.status.code() == Some(NO_RELEASE) {
            return None;
        }
        Some(succeed(&output).trim().into())
    });
    if found.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: {test} because there is no earlier release"
        );
    }
    found.clone()
}

fn satellite_of(directory: &Path) -> PathBuf {
    directory.join("powernode-satellite")
}

fn bridge_of(directory: &Path) -> PathBuf {
    directory.join("powernode-host-bridge")
}

fn answers(bridge: &BridgeSite) {
    bridge.wait_status("shop-17", "active");
    wait_for("the satellite answers through the tunnel", || {
        let answer = bridge.output(&["request", "shop-17", CATALOG]);
        answer.status.success().then_some(())
    });
}

/// From the invitation to an answer through the tunnel.
fn meet(bridge: &BridgeSite, satellite: &SatelliteSite) {
    let _bridge = bridge.run();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let _satellite = satellite.run();
    answers(bridge);
}

#[test]
fn a_released_satellite_is_served() {
    let Some(released) = last_release("a_released_satellite_is_served") else {
        return;
    };
    let mut satellite = SatelliteSite::new();
    satellite.program = satellite_of(&released);
    meet(&BridgeSite::init(), &satellite);
}

#[test]
fn a_released_bridge_is_spoken_to() {
    let Some(released) = last_release("a_released_bridge_is_spoken_to") else {
        return;
    };
    meet(
        &BridgeSite::init_of(bridge_of(&released), Vec::new()),
        &SatelliteSite::new(),
    );
}

#[test]
fn both_are_updated_in_place_and_taken_back_or_refused_whole() {
    let Some(released) = last_release("both_are_updated_in_place_and_taken_back_or_refused_whole") else {
        return;
    };
    let new = (SatelliteSite::new().program, BridgeSite::init().program);
    let mut bridge = BridgeSite::init_of(bridge_of(&released), Vec::new());
    let mut satellite = SatelliteSite::new();
    satellite.program = satellite_of(&released);
    meet(&bridge, &satellite);

    (satellite.program, bridge.program) = new;
    succeed(&satellite.output(&["self-check"]));
    succeed(&bridge.output(&["self-check"]));
    let (daemon, running) = (bridge.run(), satellite.run());
    answers(&bridge);
    assert!(running.stop().success() && daemon.stop().success());

    (satellite.program, bridge.program) = (satellite_of(&released), bridge_of(&released));
    let store = satellite.state_dir().join("satellite.redb");
    let before = std::fs::read(&store).unwrap();
    // The release before the first with self-check cannot be asked.
    let verdict = satellite.output(&["self-check"]);
    if verdict.status.code() == Some(1) {
        assert!(!satellite.output(&["run"]).status.success());
        assert_eq!(
            std::fs::read(&store).unwrap(),
            before,
            "refused before anything is written"
        );
        return;
    }
    let (daemon, running) = (bridge.run(), satellite.run());
    answers(&bridge);
    assert!(running.stop().success() && daemon.stop().success());
}
