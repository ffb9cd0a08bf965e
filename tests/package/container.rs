//! A container with systemd in it: its root is an overlay of this machine's root on a tmpfs, its
//! network a loopback of its own. Gone, with all that was done in it, when it is dropped.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::prerequisites::{has, is_root, skip};
use crate::support::{run_with_input, succeed, wait_for};

/// What systemd starts: itself, and what the tests ask for. Nothing that this machine has enabled.
const TARGET: &str =
    "[Unit]\nDescription=Quiet machine for tests\nWants=dbus.socket systemd-journald.socket\n";

/// Mounts the overlay where only the container sees it, and becomes the container.
const BOOT: &str = r#"
mount -t tmpfs -o size=2g,mode=0755 tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
printf '%s' "$2" >root/etc/systemd/system/quiet.target
: >root/etc/machine-id
# What keeps packages from starting services where there is no init.
rm -rf root/usr/sbin/policy-rc.d
# What this machine itself has of the product must not be there.
rm -rf root/etc/powernode* root/var/lib/powernode* root/var/lib/private root/run/powernode*
exec systemd-nspawn --quiet --register=no --keep-unit --machine=powernode-test --directory="$1/root" \
    --private-network --resolv-conf=off --timezone=off --link-journal=no --console=pipe \
    /lib/systemd/systemd --unit=quiet.target
"#;

pub struct Container {
    nspawn: Child,
    leader: u32,
    log: PathBuf,
    _directory: tempfile::TempDir,
    /// Containers share the place of their control groups: one at a time on one machine.
    _turn: File,
}

impl Container {
    /// Boots one; `None`, said aloud, where that cannot be.
    pub fn boot(test: &str) -> Option<Self> {
        if !is_root(test) || !has(test, &["systemd-nspawn"]) {
            return None;
        }
        let turn = File::create(std::env::temp_dir().join("powernode-test-container.lock")).unwrap();
        turn.lock().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mounts = directory.path().join("mounts");
        std::fs::create_dir(&mounts).unwrap();
        let log = directory.path().join("console.log");
        let console = File::create(&log).unwrap();
        let nspawn = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", BOOT, "sh"])
            .args([mounts.as_os_str(), TARGET.as_ref()])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        let mut container = Self {
            nspawn,
            leader: 0,
            log,
            _directory: directory,
            _turn: turn,
        };
        let booted = wait_for("the container has booted, or cannot", || {
            if container.nspawn.try_wait().unwrap().is_some() {
                return Some(false);
            }
            container.leader = leader_of(container.nspawn.id())?;
            let state = container.output(&["systemctl", "is-active", "quiet.target"]);
            state.status.success().then_some(true)
        });
        if booted {
            return Some(container);
        }
        let why = format!(
            "no container with systemd runs here: {}",
            container.console().trim()
        );
        skip(test, &why);
        None
    }

    /// Runs a command in the container.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The standard output of a command that must succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {:?}\n{}{}\njournal:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.journal(),
        );
        succeed(&output)
    }

    /// The same with a text on standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> String {
        succeed(&run_with_input(self.command(arguments), input))
    }

    /// The path, as this side sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.leader)).join(inside.trim_start_matches('/'))
    }

    /// Copies a file in.
    pub fn install(&self, from: &Path, inside: &str) {
        std::fs::copy(from, self.path(inside)).unwrap();
    }

    /// Writes a file inside.
    pub fn write(&self, inside: &str, text: &str) {
        std::fs::write(self.path(inside), text).unwrap();
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", unit, "--property", name, "--value"])
            .trim()
            .to_owned()
    }

    /// Everything that units have said.
    pub fn journal(&self) -> String {
        let output = self.output(&["journalctl", "--no-pager", "--output=cat"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn console(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.leader))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
            ])
            .args(arguments)
            .env_clear()
            .envs([
                (
                    "PATH",
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                ),
                ("LC_ALL", "C.UTF-8"),
                ("DEBIAN_FRONTEND", "noninteractive"),
            ]);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "journal of the container:\n{}", self.journal());
        }
        // The container's first process ends all others with it.
        let leader = i32::try_from(self.leader)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            let _ = rustix::process::kill_process(leader, rustix::process::Signal::KILL);
        } else {
            let _ = self.nspawn.kill();
        }
        let _ = self.nspawn.wait();
    }
}

/// The first process of the container that this process keeps.
fn leader_of(nspawn: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let inner = status.lines().find(|line| line.starts_with("NSpid:"))?;
        let is_first = inner.split_whitespace().count() == 3 && inner.ends_with("\t1");
        let is_systemd = status.starts_with("Name:\tsystemd\n");
        if is_first && is_systemd {
            child.parse().ok()
        } else {
            None
        }
    })
}
