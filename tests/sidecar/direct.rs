//! A satellite that the host-bridge dials, beside a platform: the platform hears of it what it hears over other tunnels.

use super::platform::{PEER, decoded};
use super::support::{SatelliteSite, free_port, succeed, wait_for};
use super::{API, CALLER, Sidecar, get};

/// A satellite to whose port something leads that is its own address.
fn open_to_the_world() -> SatelliteSite {
    let mut satellite = SatelliteSite::new();
    let port = free_port();
    for (name, value) in [
        ("POWERNODE_SATELLITE_REACH_LISTEN_PORT", port.to_string()),
        ("POWERNODE_SATELLITE_REACH_ENDPOINT", format!("127.0.0.1:{port}")),
        ("POWERNODE_SATELLITE_REACH_PORT_MAPPING", "false".to_owned()),
        ("POWERNODE_SATELLITE_REACH_ALLOW_PRIVATE", "true".to_owned()),
        ("POWERNODE_SATELLITE_TUNNEL_CLIMB_MAX", "2s".to_owned()),
    ] {
        satellite.variables.push((name, value.into()));
    }
    satellite
}

#[test]
fn the_platform_hears_of_a_satellite_that_was_dialled_what_the_handshake_verified() {
    let side = Sidecar::start_with(&[("POWERNODE_HOST_BRIDGE_REACH_ALLOW_PRIVATE", "true")]);
    let (satellite, running) = side.joined(open_to_the_world());
    let direct = || {
        side.wait_peer("the host-bridge has dialled, and that tunnel carries", |peer| {
            (peer["tunnel"]["direct"] == true).then_some(())
        });
        wait_for("the satellite says so", || {
            (satellite.status()["link"]["transport"] == "direct").then_some(())
        });
    };
    direct();
    let heartbeats = || {
        let book = side.platform.book();
        book.seen
            .iter()
            .filter(|seen| seen.target.ends_with("/heartbeat"))
            .count()
    };
    let before = heartbeats();
    // What is published belongs into a heartbeat, at once.
    succeed(&satellite.output(&["services", "publish", "web", "localhost:9"]));
    wait_for("a heartbeat goes over it", || {
        (heartbeats() > before).then_some(())
    });
    let seen = side.platform.last("heartbeat").unwrap();
    let info = decoded(seen.header("x-forwarded-tls-client-cert-info").unwrap());
    assert_eq!(info, format!("Subject=\"CN=fed:{PEER}\""));
    let pem = decoded(seen.header("x-forwarded-tls-client-cert").unwrap());
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"), "{pem}");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    // It came in by no listener.
    assert_eq!(seen.header("x-sdwan-network"), None);

    // The way back.
    let caller = side.callers.client(CALLER);
    let catalog = get(&format!("/peers/{PEER}{API}/service_catalog"), &[]);
    let answer = side.asked(Some(&caller), catalog);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("web"), "{}", answer.text());

    // Who is suspended is not dialled, either.
    side.platform.book().suspended = true;
    succeed(&satellite.output(&["services", "withdraw", "web"]));
    side.wait_peer("the tunnels are closed", |peer| {
        (peer["standing"] == "refused" && peer["tunnel"].is_null()).then_some(())
    });
    side.platform.book().suspended = false;
    running.signal("HUP");
    direct();
    assert!(running.stop().success());
    assert!(side.daemon.stop().success());
}
