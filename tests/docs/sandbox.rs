//! Where a document's commands run: a directory with both programs in its path, their state in it, and
//! addresses on loopback.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use powernode_satellite::contract::join_code::JoinCode;

use crate::support::{BridgeSite, Running, SatelliteSite, free_port, run_with_input, succeed, wait_for};
use crate::{BRIDGE, SATELLITE};

/// The name of a parent in the documents.
const PARENT_URL: &str = "https://bridge.example.com:8443";

pub struct Sandbox {
    bridge: BridgeSite,
    satellite: SatelliteSite,
    daemons: Vec<Running>,
    join_code: String,
    operator_token: String,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bridge = BridgeSite {
            ca_file: dir.path().join("ca.pem"),
            dir,
            host: "localhost",
            program: env!("CARGO_BIN_EXE_powernode-host-bridge").into(),
            port: free_port(),
            operator_token: String::new(),
            variables: Vec::new(),
        };
        let sandbox = Self {
            bridge,
            satellite: SatelliteSite::new(),
            daemons: Vec::new(),
            join_code: String::new(),
            operator_token: String::new(),
        };
        let path = sandbox.place();
        // A name as downloads have it, too.
        for (name, program) in [
            (BRIDGE, env!("CARGO_BIN_EXE_powernode-host-bridge")),
            (SATELLITE, env!("CARGO_BIN_EXE_powernode-satellite")),
            (
                "powernode-satellite-VERSION-linux-ARCH",
                env!("CARGO_BIN_EXE_powernode-satellite"),
            ),
        ] {
            symlink(program, path.join(name)).unwrap();
        }
        sandbox
    }

    fn place(&self) -> PathBuf {
        let place = self.bridge.dir.path().join("bin");
        std::fs::create_dir_all(&place).unwrap();
        place
    }

    pub fn has_registry(&self) -> bool {
        self.bridge.dir.path().join("state").exists()
    }

    /// Runs a command of a document, as a shell with this sandbox for its machine.
    pub fn run(&mut self, text: &str) -> String {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c"])
            .arg(text.replace(PARENT_URL, &self.bridge.url()))
            .current_dir(self.place())
            .stdin(Stdio::piped());
        for known in [self.bridge.command(&[]), self.satellite.command(&[])] {
            for (name, value) in known.get_envs() {
                match value {
                    Some(value) => shell.env(name, value),
                    None => shell.env_remove(name),
                };
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", self.place().display()));
        shell.env("TOKEN", &self.operator_token);
        let said = succeed(&run_with_input(shell, &self.join_code));
        for line in said.lines().map(str::trim) {
            if JoinCode::parse(line.to_owned()).is_ok() {
                line.clone_into(&mut self.join_code);
            }
            if let Some(token) = line.strip_prefix("operator token") {
                token.trim().clone_into(&mut self.operator_token);
            }
        }
        said
    }

    /// Starts the daemon that a document starts, and waits until it is of use.
    pub fn start(&mut self, program: &str) {
        if program == BRIDGE {
            self.daemons.push(self.bridge.run());
        } else {
            self.daemons.push(self.satellite.run());
            wait_for("the satellite is connected", || {
                (self.satellite.status()["link"]["state"] == "connected").then_some(())
            });
        }
    }
}
