//! Metrics and probes of both real programs: what moves when something happens, and that documents, alerts and
//! dashboard speak of metrics that exist.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/small_disk.rs"]
mod small_disk;
mod support;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use small_disk::SmallDisk;
use support::{BridgeSite, DEADLINE, SatelliteSite, free_port, succeed, wait_for};

/// Status and body of a GET over a connection that ends with it.
fn get(mut connection: impl std::io::Read + std::io::Write, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

fn get_local(socket: &Path, path: &str) -> (u16, String) {
    let stream = wait_for("the admin socket answers", || UnixStream::connect(socket).ok());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    get(stream, path)
}

/// The sample of this name and these labels.
fn sample(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The names of the metrics that a text declares.
fn declared(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

/// The names that a document speaks of.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| {
            word.starts_with("powernode_satellite_")
                || word.starts_with("powernode_host_bridge_")
                || *word == "process_start_time_seconds"
        })
        .map(str::to_owned)
        .collect()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// That the documents speak of these metrics: one of each, the others of no others.
fn check_documents(all: &BTreeSet<String>) {
    assert_eq!(
        mentioned(&document("metrics.md")),
        *all,
        "docs/metrics.md names every metric"
    );
    for name in ["alerts.yaml", "grafana-dashboard.json"] {
        let unknown: Vec<String> = mentioned(&document(name)).difference(all).cloned().collect();
        assert_eq!(
            unknown,
            Vec::<String>::new(),
            "docs/{name} speaks of metrics that are not there"
        );
    }
    serde_json::from_str::<serde_json::Value>(&document("grafana-dashboard.json")).unwrap();
}

#[test]
fn numbers_move_when_something_happens_and_documents_name_them_all() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let bridge = BridgeSite::init_with(vec![("POWERNODE_HOST_BRIDGE_METRICS_LISTEN", listen.into())]);
    let _daemon = bridge.run();
    let bridge_metrics = || {
        let stream = wait_for("the metrics port answers", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        get(stream, "/metrics").1
    };
    assert_eq!(
        sample(&bridge_metrics(), "powernode_host_bridge_peers_connected"),
        Some(0)
    );

    let bridge_socket = bridge.dir.path().join("admin.sock");
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let _running = satellite.run();
    let socket = satellite.dir.path().join("admin.sock");
    assert_eq!(get_local(&socket, "/healthz"), (200, "ok\n".to_owned()));
    wait_for("the satellite is ready", || {
        (get_local(&socket, "/readyz").0 == 200).then_some(())
    });
    // The listener of the status is a moment behind what happened.
    let text = wait_for("the heartbeat is counted", || {
        let (_, text) = get_local(&socket, "/metrics");
        let acknowledged = sample(
            &text,
            "powernode_satellite_heartbeats_total{outcome=\"acknowledged\"}",
        );
        (acknowledged >= Some(1)).then_some(text)
    });
    for (name, value) in [
        ("powernode_satellite_joined", 1),
        ("powernode_satellite_connected", 1),
        ("powernode_satellite_peer_status{status=\"active\"}", 1),
        ("powernode_satellite_tunnels{rung=\"quic\"}", 1),
        ("powernode_satellite_store_failing", 0),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name} in {text}");
    }
    let remaining = sample(
        &text,
        "powernode_satellite_certificate_remaining_seconds{identity=\"federation\"}",
    );
    assert!(remaining > Some(80 * 86_400), "{remaining:?}");

    // A service that is not there is refused, and both sides count it.
    let refused = bridge.output(&["connect", "shop-17", "nothing"]);
    assert!(!refused.status.success());
    wait_for("the refusal is counted by the satellite", || {
        let (_, text) = get_local(&socket, "/metrics");
        sample(
            &text,
            "powernode_satellite_streams_refused_total{reason=\"unknown_service\"}",
        )
    });
    let bridge_text = bridge_metrics();
    for name in [
        "powernode_host_bridge_peers_connected",
        "powernode_host_bridge_peers{status=\"active\"}",
        "powernode_host_bridge_tunnels{transport=\"quic\"}",
        "powernode_host_bridge_sessions_refused_total{reason=\"unknown_service\"}",
    ] {
        assert_eq!(sample(&bridge_text, name), Some(1), "{name} in {bridge_text}");
    }
    let heartbeats = sample(
        &bridge_text,
        "powernode_host_bridge_federation_requests_total{request=\"heartbeat\",status=\"200\"}",
    );
    assert!(heartbeats >= Some(1), "{bridge_text}");
    let age = bridge_text
        .lines()
        .find(|line| line.starts_with("powernode_host_bridge_peer_heartbeat_age_seconds{peer=\""));
    assert!(age.unwrap().contains("name=\"shop-17\""), "{bridge_text}");
    assert_eq!(get_local(&bridge_socket, "/readyz").0, 200);
    assert_eq!(get_local(&bridge_socket, "/metrics").0, 200);

    let (_, satellite_text) = get_local(&socket, "/metrics");
    let all: BTreeSet<String> = declared(&satellite_text)
        .union(&declared(&bridge_text))
        .cloned()
        .collect();
    check_documents(&all);

    // Nobody is to be called for a peer that was paused.
    succeed(&bridge.output(&["peers", "suspend", "shop-17", "--reason", "moving"]));
    let paused = bridge_metrics();
    assert_eq!(
        sample(&paused, "powernode_host_bridge_peers{status=\"suspended\"}"),
        Some(1)
    );
    for awaited in ["peer_connected", "peer_heartbeat_age_seconds"] {
        assert!(
            !paused.contains(&format!("powernode_host_bridge_{awaited}{{peer=")),
            "{paused}"
        );
    }
}

#[test]
fn a_box_that_has_not_joined_is_alive_and_not_ready() {
    let satellite = SatelliteSite::new();
    let _running = satellite.run_unwatched();
    let socket = satellite.dir.path().join("admin.sock");
    assert_eq!(get_local(&socket, "/healthz").0, 200);
    let (status, why) = get_local(&socket, "/readyz");
    assert_eq!(
        (status, why.as_str()),
        (503, "this box has not joined a parent\n")
    );
}

#[test]
fn a_host_bridge_that_cannot_write_is_not_ready_until_it_can() {
    let Some(disk) = SmallDisk::mount() else { return };
    let bridge = BridgeSite::init_with(vec![(
        "POWERNODE_HOST_BRIDGE_STATE_DIR",
        disk.path().join("state"),
    )]);
    let _daemon = bridge.run();
    let socket = bridge.dir.path().join("admin.sock");
    assert_eq!(get_local(&socket, "/readyz").0, 200);
    disk.fill();
    let mut invited = 0;
    let why = wait_for("the host-bridge is not ready", || {
        // What is free within the file can still be written to.
        invited += 1;
        let _ = bridge.output(&["invite", "--name", &format!("shop-{invited}")]);
        let (status, why) = get_local(&socket, "/readyz");
        (status == 503).then_some(why)
    });
    assert!(
        why.starts_with("the registry cannot be written: ") && why.contains("full"),
        "{why}"
    );
    assert_eq!(get_local(&socket, "/healthz").0, 200, "a restart would not help");
    disk.empty();
    wait_for("the host-bridge is ready again", || {
        (get_local(&socket, "/readyz").0 == 200).then_some(())
    });
    succeed(&bridge.output(&["invite", "--name", "after"]));
}
