//! Real programs on both sides of the tunnel: servers on a box behind a router, and at its parent those
//! that people use to reach them, by all the ways that the host-bridge has.

mod crowd;
mod endings;
mod kubernetes;
mod packets;
mod ssh;
mod web;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::HOST_BRIDGE_BIN;
use crate::federation::{Federation, NAME, SOON};
use crate::prerequisites;
use crate::process::{Process, succeed};
use crate::wait::wait_until;

/// A program that a scenario needs, and the Debian package that has it.
type Needed = (&'static str, &'static str);

const CURL: Needed = ("curl", "curl");
const OPENSSL: Needed = ("openssl", "openssl");

/// Debian's own, which has Debian's modules; another one may come first in the search path.
const PYTHON: &str = "/usr/bin/python3";

/// Where the proxy of every scenario listens.
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// Time for what moves very many bytes.
const LONG: Duration = Duration::from_secs(300);

/// A technician of the parent's who may reach all services.
const ANNA: &str = "anna";

/// A box and its parent, joined, with what runs on both.
struct Site {
    federation: Federation,
    bridge: Process,
    satellite: Process,
    /// Anna's.
    token: String,
}

/// A port at the parent's that leads to a service.
struct Forward {
    program: Process,
    address: SocketAddr,
}

impl Site {
    /// Joined, and the parent holds the operator grant. `None` where something is missing, which has been
    /// said then.
    fn open(test: &str, needed: &[Needed]) -> Option<Self> {
        let mut federation = Federation::open(test)?;
        if !prerequisites::have(test, needed) {
            return None;
        }
        federation.set_bridge("PROXY_LISTEN", PROXY.to_string());
        let (bridge, satellite) = federation.run_joined();
        wait_until("the operator grant is handed over", SOON, || {
            let listed = succeed(federation.satellite(&["grants", "list", "--json"])).json();
            (listed[0]["handover"] == "done").then_some(())
        });
        let added =
            federation.bridge_json(&["operators", "add", ANNA, "--role", "operator", "--expires", "90d"]);
        let token = added["operator_token"].as_str().unwrap().to_owned();
        Some(Self {
            federation,
            bridge,
            satellite,
            token,
        })
    }

    /// A directory of this scenario's.
    fn directory(&self, name: &str) -> PathBuf {
        self.federation.lab.directory(name)
    }

    /// Publishes a program of the box's.
    fn publish(&self, service: &str, address: &str, more: &[&str]) {
        let publish = [&["services", "publish", service, address], more].concat();
        succeed(self.federation.satellite(&publish));
    }

    /// Starts a server on the box; returns when it listens on this port of loopback (TCP).
    fn serve(&self, name: &str, mut command: Command, port: u16) -> Process {
        command.env_remove("POWERNODE_HOST_BRIDGE_ADMIN_SOCKET");
        let mut server = self.federation.lab.spawn(name, command);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until(&format!("{name} listens"), SOON, || {
            assert!(server.is_running(), "{name} ended at once");
            let connected = self
                .federation
                .lab
                .satellite
                .enter(|| TcpStream::connect(address));
            connected.ok().map(drop)
        });
        server
    }

    /// A program on the box.
    fn on_box(&self, program: &str) -> Command {
        self.federation.lab.satellite.command(program)
    }

    /// A program at the parent's, for which the host-bridge's commands work as they are documented.
    fn at_parent(&self, program: &str) -> Command {
        let mut command = self.federation.bridge(&[]);
        let variables: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command = self.federation.lab.parent.command(program);
        let own = Path::new(HOST_BRIDGE_BIN).parent().unwrap();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let places = std::iter::once(own.to_owned()).chain(std::env::split_paths(&others));
        command
            .envs(variables)
            .env("PATH", std::env::join_paths(places).unwrap());
        command
    }

    /// `curl` at the parent's, in silence but for errors.
    fn curl(&self) -> Command {
        let mut curl = self.at_parent("curl");
        curl.args(["-q", "--silent", "--show-error", "--fail", "--cacert"])
            .arg(&self.federation.ca_file);
        curl
    }

    /// The same with anna's token.
    fn annas_curl(&self) -> Command {
        let mut curl = self.curl();
        curl.args(["-H", &format!("Authorization: Bearer {}", self.token)]);
        curl
    }

    /// A service's URL in the HTTPS ingress.
    fn url(&self, service: &str, path: &str) -> String {
        format!("{}/satellites/{NAME}/{service}/{path}", self.federation.url())
    }

    /// The proxy's URL for this scheme, with anna's name and token.
    fn proxy(&self, scheme: &str) -> String {
        format!("{scheme}://{ANNA}:{}@{PROXY}", self.token)
    }

    /// `forward` to a service; returns when it listens.
    fn forward(&self, service: &str, more: &[&str]) -> Forward {
        self.forward_at(service, "127.0.0.1:0", more)
    }

    fn forward_at(&self, service: &str, listen: &str, more: &[&str]) -> Forward {
        let forward = [&["forward", NAME, service, "--listen", listen], more].concat();
        let name = format!("forward-{}", forward[2..].join("-").replace([':', '.'], "-"));
        let mut program = self.federation.lab.spawn(&name, self.federation.bridge(&forward));
        let address = wait_until("forward listens", SOON, || {
            assert!(program.is_running(), "{}", program.stderr());
            let said = program.stdout();
            said.split([' ', ',']).nth(2)?.parse().ok()
        });
        Forward { program, address }
    }

    /// What the audit log of the box says of services, oldest first.
    fn noted(&self) -> Vec<Value> {
        let log = succeed(self.federation.satellite(&["audit", "export"])).stdout;
        log.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|row| row["action"].as_str().unwrap().starts_with("service_"))
            .collect()
    }

    /// Both daemons still run, and no log nor command line shows a secret.
    fn assert_well(mut self) {
        assert!(self.bridge.is_running() && self.satellite.is_running());
        self.federation
            .assert_nothing_told(&[&self.bridge, &self.satellite]);
    }
}

/// A file of so many MiB that no compression makes smaller.
fn random_file(path: &Path, mebibytes: u32) -> String {
    let mut head = Command::new("head");
    head.args(["-c", &format!("{mebibytes}M"), "/dev/urandom"])
        .stdout(std::fs::File::create(path).unwrap());
    assert!(head.status().unwrap().success());
    checksum(path)
}

/// A file's SHA-256.
fn checksum(path: &Path) -> String {
    let mut sum = Command::new("sha256sum");
    sum.arg(path);
    let said = succeed(sum).stdout;
    said.split(' ').next().unwrap().to_owned()
}

/// Memory that a process has in use, in MiB.
fn resident_mebibytes(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes / 1024
}
