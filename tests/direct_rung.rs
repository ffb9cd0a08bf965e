//! Both real programs where the host-bridge can dial the satellite: at an endpoint that the configuration names.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::{BridgeSite, DEADLINE, SatelliteSite, fail, free_port, succeed, wait_for, wait_within};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

fn set(site: &mut SatelliteSite, name: &'static str, value: &str) {
    site.variables.push((name, PathBuf::from(value)));
}

/// A satellite to whose port something leads that is its own address.
fn open_to_the_world() -> SatelliteSite {
    let mut satellite = SatelliteSite::new();
    let port = free_port();
    set(
        &mut satellite,
        "POWERNODE_SATELLITE_REACH_LISTEN_PORT",
        &port.to_string(),
    );
    let endpoint = format!("127.0.0.1:{port}");
    set(&mut satellite, "POWERNODE_SATELLITE_REACH_ENDPOINT", &endpoint);
    set(&mut satellite, "POWERNODE_SATELLITE_REACH_ALLOW_PRIVATE", "true");
    set(&mut satellite, "POWERNODE_SATELLITE_TUNNEL_CLIMB_MAX", "2s");
    satellite
}

fn wait_direct(satellite: &SatelliteSite) {
    wait_for("the host-bridge has dialled", || {
        (satellite.status()["link"]["transport"] == "direct").then_some(())
    });
}

/// In which an idle tunnel is given up whose other side has died without a word (docs/ARCHITECTURE.md).
const IDLE_GIVEN_UP: Duration = Duration::from_secs(60);

fn answers(bridge: &BridgeSite) {
    wait_within(IDLE_GIVEN_UP + DEADLINE, "the satellite answers", || {
        let asked = bridge.output(&["request", "shop-17", CATALOG]);
        asked.status.success().then_some(())
    });
}

#[test]
fn the_host_bridge_dials_where_the_configuration_says_and_again_after_its_crash() {
    let lab = vec![("POWERNODE_HOST_BRIDGE_REACH_ALLOW_PRIVATE", "true".into())];
    let bridge = BridgeSite::init_with(lab);
    let daemon = bridge.run();
    let satellite = open_to_the_world();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let running = satellite.run();
    wait_direct(&satellite);
    answers(&bridge);
    let status = satellite.status();
    assert_eq!(
        status["reach"]["mappings"][0]["protocol"], "configured",
        "{status}"
    );
    let shown = succeed(&satellite.output(&["status"]));
    assert!(shown.contains("direct"), "{shown}");
    let checks = satellite.output(&["doctor"]);
    let checks = String::from_utf8(checks.stdout).unwrap();
    assert!(
        checks.contains("the host-bridge has dialled this satellite"),
        "{checks}"
    );

    daemon.kill();
    let daemon = bridge.run();
    bridge.wait_status("shop-17", "active");
    wait_direct(&satellite);
    answers(&bridge);
    assert!(running.stop().success());
    assert!(daemon.stop().success());
}

#[test]
fn an_endpoint_leads_to_a_fixed_port() {
    let mut satellite = SatelliteSite::new();
    set(
        &mut satellite,
        "POWERNODE_SATELLITE_REACH_ENDPOINT",
        "203.0.113.7:41234",
    );
    let (code, said) = fail(&satellite.output(&["status"]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("reach.listen_port"), "{said}");
}
