//! Both real programs where UDP does not get through: over TLS on TCP, directly and through an HTTP
//! CONNECT proxy.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;
use support::{BridgeSite, Running, SatelliteSite, fail, free_port, run_with_input, succeed, wait_for};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

/// A name that nobody on this machine resolves.
const BRIDGE: &str = "bridge.powernode.test";

/// A host-bridge that takes tunnels over TCP, and over UDP where nobody looks for them.
fn bridge(host: &'static str) -> (BridgeSite, Running) {
    let elsewhere = format!("127.0.0.1:{}", free_port());
    let program = env!("CARGO_BIN_EXE_powernode-host-bridge").into();
    let mut bridge = BridgeSite::init_named(host, program, Vec::new());
    bridge.variables = vec![("POWERNODE_HOST_BRIDGE_LISTEN_QUIC", elsewhere.into())];
    let daemon = bridge.run();
    (bridge, daemon)
}

fn satellite(more: &[(&'static str, &str)]) -> SatelliteSite {
    let mut satellite = SatelliteSite::new();
    satellite.variables = vec![("POWERNODE_SATELLITE_TUNNEL_TRANSPORT", "tls".into())];
    let more = more.iter().map(|(name, value)| (*name, PathBuf::from(value)));
    satellite.variables.extend(more);
    satellite
}

/// Joins, runs, is active, and answers through its tunnel.
fn joins_and_answers(bridge: &BridgeSite, satellite: &SatelliteSite) {
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    bridge.wait_status("shop-17", "active");
    let running = satellite.run();
    wait_for("the satellite is connected", || {
        let status = satellite.status();
        (status["link"]["state"] == "connected" && status["peer"]["status"] == "active").then_some(())
    });
    wait_for("the satellite answers", || {
        bridge
            .output(&["request", "shop-17", CATALOG])
            .status
            .success()
            .then_some(())
    });
    assert!(running.stop().success());
}

#[test]
fn from_a_join_code_to_active_over_tcp_alone() {
    let (bridge, daemon) = bridge("127.0.0.1");
    joins_and_answers(&bridge, &satellite(&[]));
    assert!(daemon.stop().success());
}

/// What a proxy does with a request.
#[derive(Clone, Copy)]
enum Manner {
    /// Opens the way for whoever shows these credentials, or for all.
    Open(Option<&'static str>),
    /// Answers with this status line.
    Refuse(&'static str),
}

/// A CONNECT proxy that sends everything to one address. Its threads end with their connections.
struct Proxy {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(manner: Manner, to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let targets = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&targets);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.unwrap(), Arc::clone(&seen));
                std::thread::spawn(move || {
                    // A client that hangs up is its own business.
                    let _ = serve(stream, manner, to, &seen);
                });
            }
        });
        Self { address, targets }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, manner: Manner, to: u16, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let target = lines.next().unwrap().strip_prefix("CONNECT ").unwrap();
    seen.lock()
        .unwrap()
        .push(target.strip_suffix(" HTTP/1.1").unwrap().to_owned());
    match manner {
        Manner::Refuse(status) => return write!(stream, "HTTP/1.1 {status}\r\n\r\n"),
        Manner::Open(Some(credentials)) => {
            let wanted = format!(
                "Proxy-Authorization: Basic {}",
                BASE64.encode(credentials.as_bytes())
            );
            if !lines.any(|line| line == wanted) {
                return write!(
                    stream,
                    "HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n"
                );
            }
        }
        Manner::Open(None) => {}
    }
    let mut far = TcpStream::connect(("127.0.0.1", to))?;
    write!(stream, "HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut up_from, mut up_to) = (stream.try_clone()?, far.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut up_from, &mut up_to);
        let _ = up_to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut far, &mut stream);
    let _ = stream.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}

#[test]
fn through_a_proxy_that_resolves_the_name() {
    let (bridge, _daemon) = bridge(BRIDGE);
    let proxy = Proxy::start(Manner::Open(None), bridge.port);
    let satellite = satellite(&[("POWERNODE_SATELLITE_TUNNEL_PROXY", &proxy.url())]);
    joins_and_answers(&bridge, &satellite);
    let target = format!("{BRIDGE}:{}", bridge.port);
    let targets = proxy.targets();
    assert!(targets.len() >= 2, "the join and the daemon");
    assert!(targets.iter().all(|seen| *seen == target), "{targets:?}");
}

#[test]
fn through_a_proxy_that_asks_for_a_password() {
    let (bridge, _daemon) = bridge(BRIDGE);
    let proxy = Proxy::start(Manner::Open(Some("anna:p@ss:word")), bridge.port);
    // By the environment, as other programs take it.
    let with_password = format!("http://anna:p%40ss:word@{}", proxy.address);
    let environment = satellite(&[("HTTPS_PROXY", &with_password)]);
    joins_and_answers(&bridge, &environment);

    // By a file.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credentials");
    std::fs::write(&file, "anna:p@ss:word\n").unwrap();
    let configured = satellite(&[
        ("POWERNODE_SATELLITE_TUNNEL_PROXY", &proxy.url()),
        (
            "POWERNODE_SATELLITE_TUNNEL_PROXY_CREDENTIALS_FILE",
            file.to_str().unwrap(),
        ),
    ]);
    succeed(&configured.join(&bridge.join_code("shop-18")));

    // And a wrong one is told as such, without being shown.
    std::fs::write(&file, "anna:hunter2\n").unwrap();
    let said = refused(&bridge, &configured.variables);
    assert!(said.contains("refuses user and password (407)"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// What a join says that does not come through.
fn refused(bridge: &BridgeSite, variables: &[(&'static str, PathBuf)]) -> String {
    let mut satellite = SatelliteSite::new();
    satellite.variables = variables.to_vec();
    let mut join = satellite.join_command(&["-", "--timeout", "3s"]);
    join.env("POWERNODE_SATELLITE_LOG_LEVEL", "warn");
    let code = bridge.join_code(&format!("box-{}", free_port()));
    fail(&run_with_input(join, &code)).1
}

#[test]
fn what_a_proxy_answers_is_told_in_words_that_say_what_to_do() {
    let (bridge, _daemon) = bridge(BRIDGE);
    for (manner, words) in [
        (Manner::Open(Some("anna:secret")), "tunnel.proxy_credentials_file"),
        (
            Manner::Refuse("403 Forbidden by policy"),
            "does not allow this target (403 Forbidden by policy)",
        ),
        (
            Manner::Refuse("502 Bad Gateway"),
            "could not reach the host-bridge itself (502 Bad Gateway)",
        ),
        (Manner::Refuse("302 Found"), "is it a proxy that forwards HTTPS?"),
    ] {
        let proxy = Proxy::start(manner, bridge.port);
        let satellite = satellite(&[("POWERNODE_SATELLITE_TUNNEL_PROXY", &proxy.url())]);
        let said = refused(&bridge, &satellite.variables);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn exceptions_and_none_go_around_the_proxy() {
    let (bridge, _daemon) = bridge("localhost");
    let proxy = Proxy::start(Manner::Refuse("500 Nobody should come here"), bridge.port);
    let satellite = satellite(&[("HTTPS_PROXY", &proxy.url())]);
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    assert!(proxy.targets().is_empty());
}
