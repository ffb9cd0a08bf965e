//! Services of a real satellite, reached with the real command line and with real programs through a
//! real host-bridge on loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod endings;
mod forward;
mod grpc;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use serde_json::Value;
use support::{BridgeSite, Running, SatelliteSite, fail, succeed, wait_for};

/// A bridge and a satellite, both running, with services for programs of this test.
struct Site {
    bridge: BridgeSite,
    daemon: Option<Running>,
    satellite: SatelliteSite,
    agent: Option<Running>,
}

impl Site {
    fn start() -> Self {
        let bridge = BridgeSite::init();
        let daemon = bridge.run();
        let satellite = SatelliteSite::new();
        succeed(&satellite.join(&bridge.join_code("shop-17")));
        let agent = satellite.run();
        let site = Self {
            bridge,
            daemon: Some(daemon),
            satellite,
            agent: Some(agent),
        };
        site.publish("echo", &echo_server(), &[]);
        site.publish("down", &format!("127.0.0.1:{}", support::free_port()), &[]);
        site.wait_reachable();
        site
    }

    fn publish(&self, name: &str, address: &str, more: &[&str]) {
        let arguments = [&["services", "publish", name, address], more].concat();
        succeed(&self.satellite.output(&arguments));
    }

    /// Waits until the satellite is in and has handed its grant over.
    fn wait_reachable(&self) {
        wait_for("the echo service is reached", || {
            let (status, out, _) = piped(
                &mut self.bridge.command(&["connect", "shop-17", "echo"]),
                b"x".to_vec(),
            );
            (status.success() && out == b"x").then_some(())
        });
    }

    /// The arguments by which another machine reaches the bridge.
    fn elsewhere(&self, command: &[&str], token: &str) -> Command {
        let file = self.bridge.dir.path().join("operator-token");
        std::fs::write(&file, token).unwrap();
        let mut elsewhere = Command::new(&self.bridge.program);
        elsewhere
            .args(command)
            .args(["--bridge", &self.bridge.url(), "--ca-file"])
            .arg(&self.bridge.ca_file)
            .arg("--token-file")
            .arg(file);
        elsewhere
    }
}

/// A server on loopback that handles each connection in a thread of its own; its address.
fn server(handle: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            thread::spawn(move || handle(stream));
        }
    });
    address
}

fn echo_server() -> String {
    server(|mut stream| {
        let mut write = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut write);
        let _ = write.shutdown(Shutdown::Write);
    })
}

/// Runs a command with input and output of any size.
fn piped(command: &mut Command, input: Vec<u8>) -> (ExitStatus, Vec<u8>, String) {
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    let feeding = thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    (
        output.status,
        output.stdout,
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A session that has passed its first bytes and stays open.
fn open_session(command: &mut Command) -> Child {
    let mut child = spawn(command);
    child.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    let mut got = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    child
}

/// How a session ended by itself: its code, and what it said.
fn ended(mut child: Child) -> (i32, String) {
    let status = wait_for("the session has ended", || child.try_wait().unwrap());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    (status.code().unwrap(), said)
}

fn audit(output: &str) -> Vec<Value> {
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn connect_carries_standard_input_and_output_from_here_and_elsewhere() {
    let site = Site::start();
    let sent: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut remote = site.elsewhere(&["connect", "shop-17", "echo"], &site.bridge.operator_token);
    for command in [
        &mut site.bridge.command(&["connect", "shop-17", "echo"]),
        &mut remote,
    ] {
        let (status, got, said) = piped(command, sent.clone());
        assert!(status.success(), "{said}");
        assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
        assert_eq!(said, "");
    }
    for (peer, service, code, words) in [
        ("shop-71", "echo", 4, "did you mean shop-17"),
        ("shop-17", "nothing", 4, "echo"),
        ("shop-17", "down", 5, "does not answer"),
    ] {
        let (got, said) = fail(&site.bridge.output(&["connect", peer, service]));
        assert_eq!(got, code, "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
    let mut stranger = site.elsewhere(&["connect", "shop-17", "echo"], &"x".repeat(43));
    let (code, said) = fail(&stranger.output().unwrap());
    assert_eq!(code, 4, "{said}");
    assert!(!said.contains("xxx"), "{said}");

    // Both sides have noted who it was.
    let both = [
        wait_for("the bridge has noted both", || {
            let log = succeed(&site.bridge.output(&["audit", "export"]));
            log.contains("\"actor\":\"admin\"").then_some(log)
        }),
        wait_for("the satellite has noted both", || {
            let log = succeed(&site.satellite.output(&["audit", "export"]));
            log.contains("admin").then_some(log)
        }),
    ];
    for log in both {
        let opened = |actor: &str| {
            audit(&log).iter().any(|row| {
                row["action"] == "service_opened" && row["actor"] == actor && row.to_string().contains("echo")
            })
        };
        assert!(opened("local") && opened("admin"), "{log}");
    }
}

#[test]
fn a_session_that_is_cut_tells_its_user_why() {
    let site = Site::start();
    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "echo"]));
    let list = site.bridge.json(&["sessions", "list"]);
    let row = &list["data"][0];
    assert_eq!(
        (&row["peer"], &row["service"]),
        (&"shop-17".into(), &"echo".into()),
        "{list}"
    );
    let id = row["id"].as_str().unwrap();
    succeed(
        &site
            .bridge
            .output(&["sessions", "cut", &id[..12], "--reason", "maintenance"]),
    );
    let (code, said) = ended(session);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("local cut the session: maintenance"), "{said}");
}

#[test]
fn a_bridge_or_a_satellite_that_goes_is_told_and_comes_back() {
    let mut site = Site::start();
    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "echo"]));
    assert!(site.agent.take().unwrap().stop().success());
    let (code, said) = ended(session);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("the tunnel of shop-17 has ended"), "{said}");
    site.agent = Some(site.satellite.run());
    site.wait_reachable();

    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "echo"]));
    assert!(site.daemon.take().unwrap().stop().success());
    let (code, said) = ended(session);
    assert!(code == 1 || code == 5, "{said}");
    assert!(said.contains("stop") && said.contains("restart"), "{said}");
    site.daemon = Some(site.bridge.run());
    site.wait_reachable();
}

/// How a connection to a service's program ended: the bytes that came, or the break.
fn received(mut stream: TcpStream) -> Result<usize, std::io::ErrorKind> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).map_err(|error| error.kind())
}

#[test]
fn an_upload_whose_program_is_killed_is_no_whole_one() {
    let site = Site::start();
    let (tell, told) = std::sync::mpsc::channel();
    let sink = server(move |stream| {
        let _ = tell.send(received(stream));
    });
    site.publish("sink", &sink, &[]);
    let upload = || {
        let mut child = spawn(&mut site.bridge.command(&["connect", "shop-17", "sink"]));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"half").unwrap();
        wait_for("the half is under way", || {
            let list = site.bridge.json(&["sessions", "list"]);
            (list["data"][0]["bytes_to_service"] == 4).then_some(())
        });
        (child, stdin)
    };
    let (mut child, stdin) = upload();
    drop(stdin);
    assert_eq!(told.recv_timeout(support::DEADLINE).unwrap(), Ok(4));
    assert!(child.wait().unwrap().success());

    let (mut child, _stdin) = upload();
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = told.recv_timeout(support::DEADLINE).unwrap();
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_download_that_is_cut_is_no_whole_one() {
    let site = Site::start();
    let endless = server(|mut stream| {
        while stream.write_all(b"more").is_ok() {
            thread::park_timeout(std::time::Duration::from_millis(10));
        }
    });
    site.publish("endless", &endless, &[]);
    let forward = ["forward", "shop-17", "endless", "--listen", "127.0.0.1:0"];
    for mut forward in [
        site.bridge.command(&forward),
        site.elsewhere(&forward, &site.bridge.operator_token),
    ] {
        let mut forward = spawn(&mut forward);
        let address = forward::address_of(&mut forward);
        let stream = TcpStream::connect(&address).unwrap();
        let reader = thread::spawn(move || received(stream));
        let id = wait_for("the download is under way", || {
            let list = site.bridge.json(&["sessions", "list"]);
            let row = &list["data"][0];
            (row["bytes_from_service"].as_u64() > Some(4)).then(|| row["id"].as_str().unwrap().to_owned())
        });
        let cut = ["sessions", "cut", &id, "--reason", "maintenance"];
        succeed(&site.bridge.output(&cut));
        assert_eq!(reader.join().unwrap(), Err(std::io::ErrorKind::ConnectionReset));
        let mut said = String::new();
        BufReader::new(forward.stderr.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert!(said.contains("local cut the session: maintenance"), "{said}");
        forward.kill().unwrap();
        forward.wait().unwrap();
    }
}

#[test]
fn who_is_limited_reaches_no_further() {
    let site = Site::start();
    let added = site.bridge.json(&[
        "operators",
        "add",
        "anna",
        "--role",
        "operator",
        "--peers",
        "shop-*",
        "--services",
        "echo",
        "--expires",
        "90d",
    ]);
    let token = added["operator_token"].as_str().unwrap();
    let try_to = |peer: &str, service: &str| {
        piped(
            &mut site.elsewhere(&["connect", peer, service], token),
            b"x".to_vec(),
        )
    };
    let (status, got, said) = try_to("shop-17", "echo");
    assert!(status.success() && got == b"x", "{said}");
    for (peer, service) in [("shop-17", "down"), ("stall-3", "echo")] {
        let (status, _, said) = try_to(peer, service);
        assert_eq!(status.code(), Some(4), "{said}");
        assert!(said.contains("anna is limited"), "{said}");
    }
    let token = site
        .bridge
        .json(&["operators", "add", "bert", "--role", "viewer", "--expires", "90d"]);
    let token = token["operator_token"].as_str().unwrap();
    let mut viewer = site.elsewhere(&["connect", "shop-17", "echo"], token);
    let (code, said) = fail(&viewer.output().unwrap());
    assert_eq!(code, 4, "{said}");
}

#[test]
fn ssh_finds_its_server_through_connect() {
    let site = Site::start();
    let (tell, lines) = std::sync::mpsc::channel();
    let address = server(move |mut stream| {
        let _ = stream.write_all(b"SSH-2.0-test\r\n");
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        let _ = tell.send(line);
    });
    site.publish("ssh", &address, &[]);
    let proxy = format!(
        "ProxyCommand={} --admin-socket {} connect %h ssh",
        site.bridge.program.display(),
        site.bridge.dir.path().join("admin.sock").display()
    );
    let output = Command::new("ssh")
        .args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
        ])
        .args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            &proxy,
            "shop-17",
            "true",
        ])
        .output();
    if output.is_err() {
        println!("SKIPPED: ssh is not installed");
        return;
    }
    // The server hangs up after the first line: that it was ssh's is what counts.
    let line = lines.recv_timeout(support::DEADLINE).unwrap();
    assert!(line.starts_with("SSH-2.0-OpenSSH"), "{line} {output:?}");
}

#[test]
fn the_shells_learn_names_of_peers_and_services() {
    let site = Site::start();
    let complete = |words: &[&str]| {
        let arguments = [&["complete", "--"], words].concat();
        succeed(&site.bridge.output(&arguments))
    };
    assert_eq!(complete(&["connect", "sh"]), "shop-17\n");
    assert_eq!(complete(&["connect", "x"]), "");
    // The heartbeat that follows a publication tells the names.
    wait_for("the services are told", || {
        (complete(&["forward", "shop-17", ""]) == "down\necho\n").then_some(())
    });
}
