//! Both real programs with throw-away state on loopback, for tests that see what an operator sees.
//! Processes are ended by their ids; every wait is for a condition, with a deadline.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test support")]
#![allow(
    clippy::disallowed_methods,
    reason = "deadlines of real processes are measured in real time"
)]

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Patience of every wait: generous, because the machine may be busy; a test that passes never
/// waits this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until the condition gives a value.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// The same where the programs themselves may take a known time.
pub fn wait_within<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < deadline, "gave up waiting until {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A port that is free for TCP and UDP on loopback at this moment.
pub fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running program, ended when it is dropped.
pub struct Running {
    child: Child,
    pub log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// The end of the process, within the deadline.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        wait_for("the process has ended", || self.child.try_wait().unwrap())
    }

    /// As a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// TERM, and what it ends with.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end with a text on standard input.
pub fn run_with_input(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output of a command that must succeed.
pub fn succeed(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{:?}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit code and standard error of a command that must fail.
pub fn fail(output: &Output) -> (i32, String) {
    assert!(
        !output.status.success(),
        "succeeded: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A host-bridge with its state.
pub struct BridgeSite {
    pub dir: tempfile::TempDir,
    pub program: PathBuf,
    /// By which satellites know it.
    pub host: &'static str,
    pub port: u16,
    pub operator_token: String,
    /// PEM file with the authority's certificate.
    pub ca_file: PathBuf,
    /// Further variables of every command.
    pub variables: Vec<(&'static str, PathBuf)>,
}

impl BridgeSite {
    /// Initialised, not running.
    pub fn init() -> Self {
        Self::init_with(Vec::new())
    }

    /// The same with further variables, also for `init` itself.
    pub fn init_with(variables: Vec<(&'static str, PathBuf)>) -> Self {
        Self::init_of(env!("CARGO_BIN_EXE_powernode-host-bridge").into(), variables)
    }

    /// The same with another program than this build's.
    pub fn init_of(program: PathBuf, variables: Vec<(&'static str, PathBuf)>) -> Self {
        Self::init_named("127.0.0.1", program, variables)
    }

    /// The same under a name of its own.
    pub fn init_named(host: &'static str, program: PathBuf, variables: Vec<(&'static str, PathBuf)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut site = Self {
            ca_file: dir.path().join("ca.pem"),
            dir,
            program,
            host,
            port: free_port(),
            operator_token: String::new(),
            variables,
        };
        let url = site.url();
        let output = succeed(
            &site
                .command(&["init", "--public-url", &url, "--json"])
                .output()
                .unwrap(),
        );
        let answer: Value = serde_json::from_str(&output).unwrap();
        answer["operator_token"]
            .as_str()
            .unwrap()
            .clone_into(&mut site.operator_token);
        std::fs::write(&site.ca_file, answer["ca_certificate_pem"].as_str().unwrap()).unwrap();
        site
    }

    pub fn url(&self) -> String {
        format!("https://{}:{}", self.host, self.port)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let listen = format!("127.0.0.1:{}", self.port);
        command
            .args(arguments)
            .env("POWERNODE_HOST_BRIDGE_STATE_DIR", self.dir.path().join("state"))
            .env(
                "POWERNODE_HOST_BRIDGE_ADMIN_SOCKET",
                self.dir.path().join("admin.sock"),
            )
            .env("POWERNODE_HOST_BRIDGE_LISTEN_HTTPS", &listen)
            .env("POWERNODE_HOST_BRIDGE_LISTEN_QUIC", &listen)
            .env("POWERNODE_HOST_BRIDGE_LOG_LEVEL", "debug")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The JSON of a command that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&succeed(&self.output(&all))).unwrap()
    }

    /// Runs the daemon; returns when it answers.
    pub fn run(&self) -> Running {
        let running = Running::start(self.command(&["run"]), self.dir.path().join("bridge.log"));
        wait_for("the host-bridge answers", || {
            assert!(
                Path::new(&format!("/proc/{}", running.id())).exists(),
                "{}",
                running.log_text()
            );
            std::os::unix::net::UnixStream::connect(self.dir.path().join("admin.sock")).ok()
        });
        running
    }

    /// Runs the daemon without waiting for anything.
    pub fn run_unwatched(&self) -> Running {
        Running::start(self.command(&["run"]), self.dir.path().join("bridge.log"))
    }

    /// The invitation as `--json` prints it.
    pub fn invite(&self, name: &str) -> Value {
        self.json(&["invite", "--name", name])
    }

    pub fn join_code(&self, name: &str) -> String {
        self.invite(name)["join_code"].as_str().unwrap().to_owned()
    }

    /// The peers.
    pub fn peers(&self) -> Vec<Value> {
        self.json(&["peers", "list", "--all"])["data"]
            .as_array()
            .unwrap()
            .clone()
    }

    pub fn peer_status(&self, name: &str) -> String {
        let peers = self.peers();
        let peer = peers.iter().find(|peer| peer["name"] == name);
        peer.and_then(|peer| peer["status"].as_str())
            .unwrap_or("absent")
            .to_owned()
    }

    pub fn wait_status(&self, name: &str, status: &str) {
        wait_for(&format!("{name} is {status}"), || {
            (self.peer_status(name) == status).then_some(())
        });
    }
}

/// A satellite with its state.
pub struct SatelliteSite {
    pub dir: tempfile::TempDir,
    pub program: PathBuf,
    /// Further variables of every command.
    pub variables: Vec<(&'static str, PathBuf)>,
}

impl SatelliteSite {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            program: env!("CARGO_BIN_EXE_powernode-satellite").into(),
            variables: Vec::new(),
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("POWERNODE_SATELLITE_STATE_DIR", self.state_dir())
            .env(
                "POWERNODE_SATELLITE_ADMIN_SOCKET",
                self.dir.path().join("admin.sock"),
            )
            .env(
                "POWERNODE_SATELLITE_PAYLOAD_FILE",
                self.dir.path().join("payload.json"),
            )
            .env(
                "POWERNODE_SATELLITE_PAYLOAD_FW_CFG_DIR",
                self.dir.path().join("fw"),
            )
            .env("POWERNODE_SATELLITE_LOG_LEVEL", "debug")
            // The routers of this machine are not ours to ask.
            .env("POWERNODE_SATELLITE_REACH_PORT_MAPPING", "false")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The arguments that every join needs.
    pub fn join_command(&self, more: &[&str]) -> Command {
        let mut arguments = vec!["join"];
        arguments.extend_from_slice(more);
        arguments.extend_from_slice(&["--contact", "ops@example.com", "--location", "DE"]);
        self.command(&arguments)
    }

    /// `join -` with the code on standard input.
    pub fn join(&self, code: &str) -> Output {
        run_with_input(self.join_command(&["-"]), code)
    }

    /// Runs the daemon; returns when it answers.
    pub fn run(&self) -> Running {
        self.run_as(self.command(&["run"]), &self.dir.path().join("admin.sock"))
    }

    /// The same by a command of the test's, which has it answer at this socket.
    pub fn run_as(&self, command: Command, socket: &Path) -> Running {
        let running = Running::start(command, self.dir.path().join("satellite.log"));
        wait_for("the satellite answers", || {
            assert!(
                Path::new(&format!("/proc/{}", running.id())).exists(),
                "{}",
                running.log_text()
            );
            std::os::unix::net::UnixStream::connect(socket).ok()
        });
        running
    }

    /// Runs the daemon without waiting for anything.
    pub fn run_unwatched(&self) -> Running {
        Running::start(self.command(&["run"]), self.dir.path().join("satellite.log"))
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&succeed_or_code(&self.output(&["status", "--json"]), 3)).unwrap()
    }
}

/// A bridge and a satellite that has joined it as `shop-17`; the satellite is not running.
pub fn joined() -> (BridgeSite, Running, SatelliteSite) {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    (bridge, daemon, satellite)
}

/// Standard output of a command that succeeds or ends with one other code.
pub fn succeed_or_code(output: &Output, code: i32) -> String {
    if output.status.code() == Some(code) {
        return String::from_utf8(output.stdout.clone()).unwrap();
    }
    succeed(output)
}
