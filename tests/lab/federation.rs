//! Both products' programs in a lab, as their operators see them: through command lines, their JSON
//! and their logs. Remembers every secret that was told, to look for them where none may be.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Finished, Process, finish, succeed};
use crate::topology::{Lab, PARENT_V4};
use crate::wait::wait_until;
use crate::{HOST_BRIDGE_BIN, SATELLITE_BIN};

/// Time for what takes milliseconds, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// The peer's name in every scenario.
pub const NAME: &str = "shop-17";

/// What the parent asks the satellite through the tunnel.
pub const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

/// The host-bridge's port, for HTTPS and for tunnels.
pub const PORT: u16 = 8443;

/// Characters of a join code that are looked for: more than a chance hit, and any piece of the
/// code this long gives it away.
const CODE_PIECE_CHARS: usize = 24;

/// What marks a private key in text.
const PRIVATE_KEY_MARK: &str = "PRIVATE KEY";

/// A parent whose registry is made, and a box that was never invited.
pub struct Federation {
    /// Where they stand.
    pub lab: Lab,
    /// The CA that the parent's `init` made, as a file.
    pub ca_file: PathBuf,
    host: String,
    /// Not in the lab's directory: the system limits the length of a socket's path.
    sockets: TempDir,
    bridge_settings: Vec<(&'static str, String)>,
    satellite_settings: Vec<(&'static str, String)>,
    secrets: RefCell<Vec<String>>,
}

/// What `invite` told, once.
pub struct Invitation {
    /// The one string for the box.
    pub join_code: String,
    /// The token in it.
    pub token: String,
}

impl Federation {
    /// A parent that is known by its address. `None` when this machine cannot hold a lab.
    pub fn open(test: &str) -> Option<Self> {
        Self::open_as(test, &PARENT_V4.to_string())
    }

    /// A parent that is known by this name or address.
    pub fn open_as(test: &str, host: &str) -> Option<Self> {
        let lab = Lab::open(test)?;
        let federation = Self {
            ca_file: lab.directory("parent").join("ca.pem"),
            lab,
            host: host.to_owned(),
            sockets: tempfile::tempdir().unwrap(),
            bridge_settings: Vec::new(),
            satellite_settings: Vec::new(),
            secrets: RefCell::new(vec![PRIVATE_KEY_MARK.to_owned()]),
        };
        let url = federation.url();
        let made = federation.bridge_json(&["init", "--public-url", &url]);
        federation.remember(made["operator_token"].as_str().unwrap());
        std::fs::write(&federation.ca_file, made["ca_certificate_pem"].as_str().unwrap()).unwrap();
        Some(federation)
    }

    /// The parent's URL.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.host)
    }

    /// Sets a key of the host-bridge's configuration, by its variable's ending.
    pub fn set_bridge(&mut self, key: &'static str, value: impl Into<String>) {
        self.bridge_settings.push((key, value.into()));
    }

    /// Sets a key of the satellite's configuration.
    pub fn set_satellite(&mut self, key: &'static str, value: impl Into<String>) {
        self.satellite_settings.push((key, value.into()));
    }

    /// A command of the host-bridge.
    pub fn bridge(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.parent.command(HOST_BRIDGE_BIN);
        command
            .args(arguments)
            .env("POWERNODE_HOST_BRIDGE_STATE_DIR", self.path("parent/state"))
            .env("POWERNODE_HOST_BRIDGE_ADMIN_SOCKET", self.socket("bridge.sock"));
        configure(&mut command, "POWERNODE_HOST_BRIDGE_", &self.bridge_settings);
        command
    }

    /// The JSON of a host-bridge's command that must succeed.
    pub fn bridge_json(&self, arguments: &[&str]) -> Value {
        let mut command = self.bridge(arguments);
        command.arg("--json");
        succeed(command).json()
    }

    /// A command of the satellite.
    pub fn satellite(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.satellite.command(SATELLITE_BIN);
        command
            .args(arguments)
            .env("POWERNODE_SATELLITE_STATE_DIR", self.path("satellite/state"))
            .env("POWERNODE_SATELLITE_ADMIN_SOCKET", self.socket("satellite.sock"))
            .env("POWERNODE_SATELLITE_PAYLOAD_FILE", self.payload_file())
            .env(
                "POWERNODE_SATELLITE_PAYLOAD_FW_CFG_DIR",
                self.path("satellite/fw"),
            );
        configure(&mut command, "POWERNODE_SATELLITE_", &self.satellite_settings);
        command
    }

    /// Starts the host-bridge; returns when it answers.
    pub fn run_bridge(&self) -> Process {
        let mut running = self.lab.spawn("bridge", self.bridge(&["run"]));
        self.wait_for_socket(&mut running, "bridge.sock");
        running
    }

    /// The port of the second host-bridge.
    pub const TWIN_PORT: u16 = 9443;

    /// A command of the second host-bridge.
    pub fn twin(&self, arguments: &[&str]) -> Command {
        let mut twin = self.bridge(arguments);
        let listen = format!("[::]:{}", Self::TWIN_PORT);
        twin.env("POWERNODE_HOST_BRIDGE_STATE_DIR", self.path("twin/state"))
            .env("POWERNODE_HOST_BRIDGE_ADMIN_SOCKET", self.socket("twin.sock"))
            .env("POWERNODE_HOST_BRIDGE_LISTEN_HTTPS", &listen)
            .env("POWERNODE_HOST_BRIDGE_LISTEN_QUIC", &listen);
        twin
    }

    /// Starts a second host-bridge that knows the same peers: as two in front of one platform do. Here it
    /// has a copy of the first one's registry.
    pub fn run_twin(&self) -> Process {
        let (from, to) = (self.path("parent/state"), self.path("twin/state"));
        let mut copy = Command::new("cp");
        copy.args(["-a", &from, &to]);
        succeed(copy);
        let mut running = self.lab.spawn("twin", self.twin(&["run"]));
        self.wait_for_socket(&mut running, "twin.sock");
        running
    }

    /// Starts the satellite; returns when it answers.
    pub fn run_satellite(&self) -> Process {
        let mut running = self.lab.spawn("satellite", self.satellite(&["run"]));
        self.wait_for_socket(&mut running, "satellite.sock");
        running
    }

    /// Invites the box.
    pub fn invite(&self) -> Invitation {
        let told = self.bridge_json(&["invite", "--name", NAME]);
        let text = |key: &str| told[key].as_str().unwrap().to_owned();
        let invitation = Invitation {
            join_code: text("join_code"),
            token: text("acceptance_token"),
        };
        self.remember(&invitation.token);
        for piece in pieces(&invitation.join_code) {
            self.remember(&piece);
            self.remember(&piece.to_ascii_uppercase());
        }
        invitation
    }

    /// Lays the invitation ready for `run`, as the platform does for a box that it spawns.
    pub fn lay_payload(&mut self, invitation: &Invitation) {
        let payload = json!({
            "parent_url": self.url(),
            "acceptance_token": invitation.token,
            "spawn_mode": "managed_child",
            "contract_version": "v1",
        });
        self.lab.directory("satellite");
        std::fs::write(self.payload_file(), payload.to_string()).unwrap();
        let ca_file = self.ca_file.to_str().unwrap().to_owned();
        self.set_satellite("PARENT_CA_FILE", ca_file);
        self.set_satellite("DISCLOSURE_OPERATOR_CONTACT", "ops@example.com");
        self.set_satellite("DISCLOSURE_LOCATION", "Hamburg, DE");
    }

    /// `join -` with the code on standard input.
    pub fn join(&self, invitation: &Invitation, more: &[&str]) -> Finished {
        let contact = ["--contact", "ops@example.com", "--location", "Hamburg, DE"];
        let arguments = [&["join", "-"], more, &contact].concat();
        let mut child = self
            .satellite(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(invitation.join_code.as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        Finished {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A host-bridge and a satellite that run and are active on both sides.
    pub fn run_joined(&self) -> (Process, Process) {
        let bridge = self.run_bridge();
        let satellite = self.run_satellite();
        let joined = self.join(&self.invite(), &[]);
        assert_eq!(joined.code, 0, "{}", joined.stderr);
        self.wait_active(SOON);
        (bridge, satellite)
    }

    /// The peers as `peers list` shows them.
    pub fn peers(&self) -> Vec<Value> {
        let listed = self.bridge_json(&["peers", "list", "--all"]);
        listed["data"]
            .as_array()
            .unwrap_or_else(|| panic!("not a list of peers: {listed}"))
            .clone()
    }

    /// The one peer that there is.
    pub fn peer(&self) -> Value {
        let peers = self.peers();
        assert_eq!(peers.len(), 1, "{peers:?}");
        peers[0].clone()
    }

    /// The satellite's report.
    pub fn status(&self) -> Value {
        finish(self.satellite(&["status", "--json"])).json()
    }

    /// Whether both sides call the satellite active, over a tunnel.
    pub fn is_active(&self) -> bool {
        let (peer, status) = (self.peer(), self.status());
        peer["status"] == "active"
            && peer["tunnel"].is_object()
            && status["peer"]["status"] == "active"
            && status["link"]["state"] == "connected"
    }

    /// Waits until both sides call the satellite active.
    pub fn wait_active(&self, at_most: Duration) {
        wait_until("both sides call the satellite active", at_most, || {
            self.is_active().then_some(())
        });
    }

    /// Asks the satellite through the tunnel.
    pub fn request(&self) -> Finished {
        finish(self.bridge(&["request", NAME, CATALOG]))
    }

    /// Waits until the satellite answers the parent through the tunnel.
    pub fn wait_answered(&self, at_most: Duration) {
        wait_until("the satellite answers through the tunnel", at_most, || {
            (self.request().code == 0).then_some(())
        });
    }

    /// No log of this lab holds a secret that was told in it, nor does the command line or the
    /// environment of a running program.
    pub fn assert_nothing_told(&self, running: &[&Process]) {
        let logs = self.lab.directory("logs");
        let logs = std::fs::read_dir(logs).unwrap();
        let of_processes = running.iter().flat_map(|process| {
            ["cmdline", "environ"].map(|what| PathBuf::from(format!("/proc/{}/{what}", process.pid())))
        });
        for path in logs.map(|log| log.unwrap().path()).chain(of_processes) {
            let content = std::fs::read(&path).unwrap();
            for secret in &*self.secrets.borrow() {
                let found = contains(&content, secret.as_bytes());
                assert!(!found, "{} holds {}…", path.display(), &secret[..6]);
            }
        }
    }

    /// A path in this lab's directory.
    fn path(&self, below: &str) -> String {
        let (directory, rest) = below.split_once('/').unwrap();
        let path = self.lab.directory(directory).join(rest);
        path.to_str().unwrap().to_owned()
    }

    fn payload_file(&self) -> String {
        self.path("satellite/payload.json")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    fn wait_for_socket(&self, running: &mut Process, name: &str) {
        let socket = self.socket(name);
        wait_until(&format!("a daemon answers at {name}"), SOON, || {
            assert!(running.is_running(), "it ended at once");
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
    }

    fn remember(&self, secret: &str) {
        self.secrets.borrow_mut().push(secret.to_owned());
    }
}

/// Whether a memory or file holds these bytes.
pub fn contains(content: &[u8], needle: &[u8]) -> bool {
    content.windows(needle.len()).any(|window| window == needle)
}

/// Pieces of a join code that can be looked for on their own: the code is a secret as a whole, but
/// its beginning, which names the parent, is none. The token lies in the second half.
pub fn pieces(code: &str) -> Vec<String> {
    let half = &code.as_bytes()[code.len() / 2..];
    half.chunks_exact(CODE_PIECE_CHARS)
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect()
}

fn configure(command: &mut Command, prefix: &str, settings: &[(&'static str, String)]) {
    for (key, value) in settings {
        command.env(format!("{prefix}{key}"), value);
    }
}

/// The lines of a JSON log that have this message.
pub fn logged(program: &Process, message: &str) -> Vec<Value> {
    lines(program)
        .into_iter()
        .filter(|line| line["message"] == message)
        .collect()
}

/// All lines of a JSON log.
pub fn lines(program: &Process) -> Vec<Value> {
    let log = program.stderr();
    // The last line may be half written yet.
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
