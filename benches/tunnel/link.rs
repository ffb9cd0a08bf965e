//! Two namespaces and a link between them that delays and loses packets (`impaired-link.py`).
//! Everything is gone when the value is dropped.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};

use crate::End;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/tunnel/impaired-link.py");

const NETWORK: &str = "10.77.0.0/24";

const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

pub struct ImpairedLink {
    namespaces: [String; 2],
    relay: Child,
}

impl ImpairedLink {
    /// Packets take so many milliseconds each way, and so many of a hundred are lost.
    pub fn new(delay_millis: u32, loss_percent: u32) -> Result<Self, String> {
        let namespaces = ["near", "far"].map(|end| format!("pnbench-{end}-{}", std::process::id()));
        for namespace in &namespaces {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let mut relay = Command::new("python3")
            .arg(SCRIPT)
            .args(&namespaces)
            .args([delay_millis.to_string(), loss_percent.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("python3 cannot be run: {error}"))?;
        let mut ready = String::new();
        let said = relay
            .stdout
            .take()
            .map(|out| BufReader::new(out).read_line(&mut ready));
        let link = Self { namespaces, relay };
        match said {
            Some(Ok(1..)) => Ok(link),
            _ => Err("the link could not be set up".to_owned()),
        }
    }

    /// Sets what TCP does about loss at both ends, where the kernel has it.
    pub fn set_tcp_congestion_control(&self, algorithm: &str) -> Result<(), String> {
        // Of the route: what a namespace may set as its default is for the whole system to say.
        let route = ["replace", NETWORK, "dev", "link0", "congctl", algorithm];
        let set = |namespace: &String| ip(&[&["-n", namespace, "route"][..], &route].concat());
        self.namespaces.iter().try_for_each(set)
    }

    /// Where the serving end listens.
    pub const fn far_address() -> IpAddr {
        IpAddr::V4(FAR)
    }

    /// A program at one end.
    pub fn command(&self, end: End, program: &OsStr) -> Command {
        let namespace = match end {
            End::Near => &self.namespaces[0],
            End::Far => &self.namespaces[1],
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }
}

impl Drop for ImpairedLink {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
        for namespace in &self.namespaces {
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    match Command::new("ip").args(arguments).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("`ip {}` failed (root is needed)", arguments.join(" "))),
        Err(error) => Err(format!("`ip` cannot be run: {error}")),
    }
}
