//! The host-bridge beside a platform: both real programs on loopback, and a small platform that shares no
//! code with them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../support/authority.rs"]
mod authority;
mod callers;
mod direct;
mod https;
mod platform;
mod standing;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use authority::{Authority, Identity};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use https::{Answer, ask};
use platform::{PEER, Platform, Seen, TOKEN, decoded};
use serde_json::{Value, json};
use support::{BridgeSite, Running, SatelliteSite, fail, free_port, run_with_input, succeed, wait_for};

const API: &str = "/api/v1/system/federation_api";

/// The network on which the listener stands.
const NETWORK: &str = "0192f0c1-7c1e-7a53-9d0e-000000000009";

/// The common name of the platform's client.
const CALLER: &str = "platform.example.com";

/// A platform over TLS.
const SECURE: &str = "https://localhost:PORT";

/// A credential of the platform's.
const CREDENTIAL: &str = "0123456789abcdef0123456789abcdef";

/// A host-bridge beside a platform, running.
struct Sidecar {
    platform: Platform,
    servers: Authority,
    callers: Authority,
    bridge: BridgeSite,
    daemon: Running,
}

impl Sidecar {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// Beside a platform that speaks TLS, and is known by the authorities of a file. It shows nothing good yet.
    fn start_secure(trusted: &Path) -> Self {
        Self::start_with(&[
            (
                "POWERNODE_HOST_BRIDGE_PLATFORM_SERVER_CA_FILE",
                &trusted.display().to_string(),
            ),
            ("POWERNODE_HOST_BRIDGE_PLATFORM_URL", SECURE),
        ])
    }

    /// Host and port of the platform as its URL names them.
    fn platform_name(&self) -> String {
        format!("localhost:{}", self.platform.address.port())
    }

    /// With further variables of the host-bridge.
    fn start_with(more: &[(&'static str, &str)]) -> Self {
        let platform = Platform::start();
        let (servers, callers) = (Authority::new("Server CA"), Authority::new("Caller CA"));
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("ca.pem"), &servers.pem).unwrap();
        std::fs::write(at("federation-ca.pem"), &platform.authority().pem).unwrap();
        std::fs::write(at("callers-ca.pem"), &callers.pem).unwrap();
        std::fs::write(at("credential"), CREDENTIAL).unwrap();
        let port = free_port();
        let text = |name: &'static str, value: String| (name, PathBuf::from(value));
        let mut variables = vec![
            text(
                "POWERNODE_HOST_BRIDGE_PLATFORM_URL",
                format!("http://{}", platform.address),
            ),
            text(
                "POWERNODE_HOST_BRIDGE_PLATFORM_NETWORKS",
                format!("127.0.0.1:{port}={NETWORK}"),
            ),
            text(
                "POWERNODE_HOST_BRIDGE_PUBLIC_URL",
                format!("https://127.0.0.1:{port}"),
            ),
            text("POWERNODE_HOST_BRIDGE_PLATFORM_TIMEOUT", "3s".to_owned()),
            text("POWERNODE_HOST_BRIDGE_CALLERS_SUBJECTS", CALLER.to_owned()),
            ("POWERNODE_HOST_BRIDGE_PLATFORM_CA_FILE", at("federation-ca.pem")),
            ("POWERNODE_HOST_BRIDGE_SERVER_CERTIFICATE_FILE", at("server.pem")),
            ("POWERNODE_HOST_BRIDGE_SERVER_KEY_FILE", at("server.key")),
            ("POWERNODE_HOST_BRIDGE_CALLERS_CA_FILE", at("callers-ca.pem")),
            ("POWERNODE_HOST_BRIDGE_CALLERS_CREDENTIAL_FILE", at("credential")),
        ];
        variables.extend(more.iter().map(|(name, value)| {
            let port = platform.address.port().to_string();
            text(name, value.replace("PORT", &port))
        }));
        show(dir.path(), &servers.server(&["127.0.0.1", "localhost"]));
        let bridge = BridgeSite {
            program: env!("CARGO_BIN_EXE_powernode-host-bridge").into(),
            host: "127.0.0.1",
            port,
            operator_token: String::new(),
            ca_file: at("ca.pem"),
            dir,
            variables,
        };
        let daemon = bridge.run();
        Self {
            platform,
            servers,
            callers,
            bridge,
            daemon,
        }
    }

    fn ask(&self, identity: Option<&Identity>, request: Request<Full<Bytes>>) -> Option<Answer> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.bridge.port));
        ask(address, &self.servers.pem, identity, request)
    }

    fn asked(&self, identity: Option<&Identity>, request: Request<Full<Bytes>>) -> Answer {
        self.ask(identity, request)
            .unwrap_or_else(|| panic!("no answer: {}", self.daemon.log_text()))
    }

    /// A satellite that has joined and runs.
    fn satellite(&self) -> (SatelliteSite, Running) {
        self.joined(SatelliteSite::new())
    }

    fn joined(&self, satellite: SatelliteSite) -> (SatelliteSite, Running) {
        let (url, ca) = (self.bridge.url(), self.bridge.ca_file.display().to_string());
        let join = satellite.join_command(&["--parent-url", &url, "--ca-file", &ca, "--token-stdin"]);
        succeed(&run_with_input(join, TOKEN));
        let running = satellite.run();
        wait_for("the satellite is active", || {
            let status = satellite.status();
            (status["link"]["state"] == "connected" && status["peer"]["status"] == "active").then_some(())
        });
        (satellite, running)
    }

    /// The bridge's row of the peer.
    fn peer(&self) -> Option<Value> {
        self.bridge.peers().into_iter().find(|peer| peer["id"] == PEER)
    }

    fn wait_peer<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        wait_for(what, || look(&self.peer()?))
    }
}

fn show(dir: &Path, identity: &Identity) {
    std::fs::write(dir.join("server.key"), &identity.key).unwrap();
    std::fs::write(dir.join("server.pem"), &identity.certificate).unwrap();
}

fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

fn read_metrics(mut socket: std::os::unix::net::UnixStream) -> String {
    let mut text = String::new();
    socket
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    socket.read_to_string(&mut text).unwrap();
    text
}

fn get(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    request(Method::GET, path, headers, Vec::new())
}

/// What the platform is told of the caller.
fn assert_vouched(seen: &Seen, peer: &str) {
    let info = decoded(seen.header("x-forwarded-tls-client-cert-info").unwrap());
    assert_eq!(info, format!("Subject=\"CN=fed:{peer}\""));
    let pem = decoded(seen.header("x-forwarded-tls-client-cert").unwrap());
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"), "{pem}");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-sdwan-network"), Some(NETWORK));
    assert_eq!(seen.header("x-calling-instance"), None);
}

#[test]
fn a_satellite_is_active_at_the_platform_as_long_as_that_takes_its_heartbeat() {
    let side = Sidecar::start();
    let (satellite, running) = side.satellite();
    let heartbeat = side.platform.last("heartbeat").unwrap();
    assert_vouched(&heartbeat, PEER);
    // Where the platform reaches the satellite: at this bridge, whatever the platform says of itself.
    let body: Value = serde_json::from_slice(&heartbeat.body).unwrap();
    let url = format!("{}/peers/{PEER}", side.bridge.url());
    assert_eq!(body["endpoints"][0]["url"], url.as_str());
    side.wait_peer("the bridge knows the peer", |peer| {
        let known = peer["status"] == "active" && peer["standing"] == "taken" && peer["tunnel"].is_object();
        known.then_some(())
    });
    let shown = succeed(&side.bridge.output(&["peers", "show", PEER]));
    assert!(shown.contains("taken: HTTP 200 to its heartbeat"), "{shown}");
    let status = succeed(&side.bridge.output(&["status"]));
    assert!(
        status.contains(&format!("http://{}, answered", side.platform.address)),
        "{status}"
    );

    side.platform.book().suspended = true;
    // What is published belongs into a heartbeat, at once.
    succeed(&satellite.output(&["services", "publish", "web", "localhost:9"]));
    side.wait_peer("the tunnel is closed", |peer| {
        let closed = peer["standing"] == "refused" && peer["tunnel"].is_null();
        closed.then_some(())
    });
    let refused = side.peer().unwrap();
    assert_eq!(refused["status"], "suspended");
    assert_eq!(refused["heartbeat_answer"]["http_status"], 401);
    let why = refused["metadata"]["suspended_reason"].as_str().unwrap();
    assert!(why.contains("No reachable FederationPeer"), "{why}");

    wait_for("the satellite knows that it is suspended", || {
        (satellite.status()["peer"]["status"] == "suspended").then_some(())
    });
    side.platform.book().suspended = false;
    running.signal("HUP");
    side.wait_peer("the satellite is taken again", |peer| {
        (peer["standing"] == "taken").then_some(())
    });
    wait_for("the satellite knows", || {
        (satellite.status()["peer"]["status"] == "active").then_some(())
    });
    assert!(running.stop().success());
    assert!(side.daemon.stop().success());
}

#[test]
fn a_platform_that_is_away_is_told_as_such_and_asked_again() {
    let mut side = Sidecar::start();
    let heartbeat = || request(Method::POST, &format!("{API}/heartbeat"), &[], b"{}".to_vec());
    let peer = side.platform.authority().client(&format!("fed:{PEER}"));
    assert_eq!(side.asked(Some(&peer), heartbeat()).status, 200);
    // One that takes a request and says nothing may have done it.
    let answer = side.asked(Some(&peer), get(&format!("{API}/resources/silence/1"), &[]));
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains("PLATFORM_ANSWER_LOST"),
        "{}",
        answer.text()
    );

    side.platform.go_away();
    let answer = side.asked(Some(&peer), heartbeat());
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(
        answer.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .unwrap()
            > 0
    );
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (&told["success"], &told["code"]),
        (&json!(false), &json!("PLATFORM_UNREACHABLE"))
    );
    let status = side.bridge.json(&["status"]);
    assert_eq!(status["platform"]["found"]["reachable"], false);
    assert_eq!(
        side.peer().unwrap()["standing"],
        "taken",
        "nothing was said of the peer"
    );

    let metrics = std::os::unix::net::UnixStream::connect(side.bridge.dir.path().join("admin.sock"));
    let metrics = read_metrics(metrics.unwrap());
    assert!(
        metrics.contains("powernode_host_bridge_platform_reachable 0\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"_requests_total{request="heartbeat",status="503"}"#),
        "{metrics}"
    );

    // A join that falls into the outage goes on when the platform is back, by the same token.
    let satellite = SatelliteSite::new();
    let (url, ca) = (side.bridge.url(), side.bridge.ca_file.display().to_string());
    let join = satellite.join_command(&[
        "--parent-url",
        &url,
        "--ca-file",
        &ca,
        "--token-stdin",
        "--timeout",
        "2s",
    ]);
    let (code, why) = fail(&run_with_input(join, TOKEN));
    assert_eq!(code, 5, "{why}");
    side.platform.come_back();
    let running = satellite.run();
    wait_for("the satellite is active", || {
        (satellite.status()["peer"]["status"] == "active").then_some(())
    });
    assert_eq!(side.asked(Some(&peer), heartbeat()).status, 200);
    assert!(running.stop().success());
}

#[test]
fn the_platform_hears_what_the_handshake_verified_and_no_claim() {
    let side = Sidecar::start();
    let other = "0192f0c1-7c1e-7a53-9d0e-00000000000a";
    let identity = side.platform.authority().client(&format!("fed:{other}"));
    let forged = [
        (
            "X-Forwarded-Tls-Client-Cert-Info",
            "Subject%3D%22CN%3Dfed%3A0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e%22",
        ),
        (
            "x_forwarded_tls_client_cert_info",
            "Subject%3D%22CN%3Dfed%3A0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e%22",
        ),
        ("X-FORWARDED-TLS-CLIENT-CERT", "x"),
        ("X-Calling-Instance", NETWORK),
        ("x-sdwan-network", PEER),
        ("X-Forwarded-For", "198.51.100.1"),
        ("Connection", "x-forwarded-tls-client-cert-info"),
        ("authorization", "Bearer fgs.x"),
    ];
    let heartbeat = request(Method::POST, &format!("{API}/heartbeat"), &forged, b"{}".to_vec());
    let answer = side.asked(Some(&identity), heartbeat);
    // As the platform said it, of the one who called.
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["x-request-id"], "of-the-platform");
    assert!(
        answer.text().contains("No reachable FederationPeer"),
        "{}",
        answer.text()
    );
    let seen = side.platform.last("heartbeat").unwrap();
    assert_vouched(&seen, other);
    assert_eq!(seen.header("authorization"), Some("Bearer fgs.x"));

    // Whose heartbeat was refused has nothing else to ask.
    let before = side.platform.book().seen.len();
    assert_eq!(
        side.asked(Some(&identity), get(&format!("{API}/trust_bundle"), &[]))
            .status,
        401
    );
    assert_eq!(side.platform.book().seen.len(), before);

    // Without a certificate there is a token to show, and nothing else to ask.
    let accept = request(Method::POST, &format!("{API}/accept"), &forged, b"{}".to_vec());
    let answer = side.asked(None, accept);
    assert_eq!(answer.status, 401);
    assert!(
        answer.text().contains("acceptance_token not recognized"),
        "{}",
        answer.text()
    );
    assert_eq!(
        side.platform
            .last("accept")
            .unwrap()
            .header("x-forwarded-tls-client-cert-info"),
        None
    );
    let before = side.platform.book().seen.len();
    for (method, path) in [
        (Method::POST, format!("{API}/heartbeat")),
        (Method::GET, format!("{API}/accept")),
        (Method::GET, format!("{API}/trust_bundle")),
        (Method::POST, "/api/v1/system/node_api/enroll/refresh".to_owned()),
        (Method::POST, format!("{API}/../federation_api/accept")),
        (Method::POST, format!("{API}/%61ccept")),
    ] {
        let refused = side.asked(None, request(method, &path, &[], Vec::new())).status;
        assert!(matches!(refused, 401 | 404), "{path}: {refused}");
    }
    let third = side.platform.authority().client(&format!("fed:{NETWORK}"));
    for path in [
        "/api/v1/system/sdwan/federation_peers",
        "/api/v1/system/federation_api/../sdwan/federation_peers",
        "/api/v1/system/federation_api/%2e%2e/sdwan/federation_peers",
        "/api/v1/system/federation_api/..%2fsdwan/federation_peers",
        "http://elsewhere/api/v1/system/federation_api/service_catalog",
        "/admin",
    ] {
        let refused = side.asked(Some(&third), get(path, &[])).status;
        assert!(matches!(refused, 400 | 401 | 404), "{path}: {refused}");
    }
    assert_eq!(side.platform.book().seen.len(), before);

    // Another authority's certificate ends in the handshake.
    let foreign = Authority::new("Foreign CA").client(&format!("fed:{PEER}"));
    assert!(
        side.ask(Some(&foreign), get(&format!("{API}/trust_bundle"), &[]))
            .is_none()
    );
    // A caller's authority speaks for no peer.
    let caller = side.callers.client(&format!("fed:{PEER}"));
    let heartbeat = request(Method::POST, &format!("{API}/heartbeat"), &[], b"{}".to_vec());
    assert_eq!(side.asked(Some(&caller), heartbeat).status, 401);
}

#[test]
fn bodies_of_any_size_pass_and_answers_are_the_platforms() {
    let side = Sidecar::start();
    let third = side.platform.authority().client(&format!("fed:{NETWORK}"));
    let large: Vec<u8> = (0..4 * 1024 * 1024_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let echo = request(
        Method::POST,
        &format!("{API}/resources/echo/1"),
        &[],
        large.clone(),
    );
    let answer = side.asked(Some(&third), echo);
    assert_eq!(answer.status, 201);
    assert!(answer.body == large);
    let answer = side.asked(Some(&third), get(&format!("{API}/service_catalog"), &[]));
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (422, r#"{"error":"unknown kind"}"#)
    );
    for _ in 0..8 {
        assert_eq!(
            side.asked(Some(&third), get(&format!("{API}/service_catalog"), &[]))
                .status,
            422
        );
    }
    let (connections, requests) = {
        let book = side.platform.book();
        (book.connections, book.seen.len())
    };
    assert!(
        connections < requests / 2,
        "{connections} connections for {requests} requests"
    );
}

#[test]
fn files_are_read_again_and_tunnels_stay() {
    let side = Sidecar::start();
    let (_satellite, running) = side.satellite();
    let session = side.wait_peer("a tunnel is up", |peer| {
        peer["tunnel"]["session"].as_str().map(str::to_owned)
    });
    let dir = side.bridge.dir.path();
    let shown = || side.asked(None, get("/nothing", &[])).shown;
    let first = shown();
    // A file that is half written changes nothing.
    std::fs::write(dir.join("server.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    side.daemon.signal("HUP");
    wait_for("the log tells of it", || {
        side.daemon
            .log_text()
            .contains("the old ones stay in force")
            .then_some(())
    });
    assert_eq!(shown(), first);
    show(dir, &side.servers.server(&["127.0.0.1"]));
    wait_for("the new certificate is shown", || {
        (shown() != first).then_some(())
    });

    // The authorities of the satellites change, too.
    let next = Authority::new("Next CA");
    let peer = next.client(&format!("fed:{NETWORK}"));
    let catalog = || get(&format!("{API}/service_catalog"), &[]);
    assert!(side.ask(Some(&peer), catalog()).is_none());
    let both = format!("{}{}", side.platform.authority().pem, next.pem);
    std::fs::write(dir.join("federation-ca.pem"), both).unwrap();
    wait_for("the new authority is trusted", || {
        (side.ask(Some(&peer), catalog())?.status == 422).then_some(())
    });
    let now = side.peer().unwrap()["tunnel"]["session"]
        .as_str()
        .map(str::to_owned);
    assert_eq!(now, Some(session));
    assert!(running.stop().success());
}

#[test]
fn what_is_the_platforms_is_refused_with_a_word_where_to_do_it() {
    let side = Sidecar::start();
    for command in [
        &["invite", "--name", "shop-17"][..],
        &["peers", "revoke", PEER, "--reason", "x"],
        &["token", "mint", PEER],
        &["grants", "list"],
        &["ca", "show"],
    ] {
        let (code, why) = fail(&side.bridge.output(command));
        assert_eq!(code, 4, "{command:?}: {why}");
        assert!(why.contains("runs beside a platform"), "{command:?}: {why}");
    }
    let list = succeed(&side.bridge.output(&["peers", "list"]));
    assert!(list.contains("no peers yet"), "{list}");
    succeed(&side.bridge.output(&["config", "check"]));
    std::fs::write(side.bridge.dir.path().join("server.key"), "none").unwrap();
    let (code, why) = fail(&side.bridge.output(&["config", "check"]));
    assert_eq!(code, 2, "{why}");
    assert!(
        why.contains("server.key_file") && why.contains("holds no private key"),
        "{why}"
    );
    // Operators are this end's.
    let added = side
        .bridge
        .json(&["operators", "add", "anna", "--role", "viewer"]);
    assert!(added.to_string().contains("anna"), "{added}");
    assert!(!side.bridge.dir.path().join("state/registry.redb").exists());
    assert!(side.daemon.stop().success());
}
