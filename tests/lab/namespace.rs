//! One network namespace: made with a name that tells whose it is, removed when dropped, with
//! everything that still runs in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{finish, succeed};

/// Where `ip netns` keeps its namespaces.
const NAMESPACE_DIR: &str = "/run/netns";

/// Files below `<namespace>/` here take the place of those in `/etc` for programs inside.
const FILES_DIR: &str = "/etc/netns";

/// Names are `powernode-lab-<pid>-<start of that process>-<number>-<role>`: unique at a time,
/// and told from those of a later process with the same pid.
const NAME_PREFIX: &str = "powernode-lab-";

/// `ip netns add` mounts its directory the first time; two at once would mount it twice.
static ADDING: Mutex<()> = Mutex::new(());

/// The directory of the files is made with the first one's and goes with the last one's: one at a time, too.
static FILES: Mutex<()> = Mutex::new(());

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// An interface that is up, or as good as unplugged.
#[derive(Debug, Clone, Copy)]
pub enum Link {
    /// Carries packets.
    Up,
    /// Carries none; the other end loses its carrier.
    Down,
}

/// A network namespace of this test's.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one in which loopback is up.
    pub fn create(role: &str) -> Result<Self, String> {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let started = start_of(pid).ok_or("/proc does not tell when this process started")?;
        Self::create_named(format!("{NAME_PREFIX}{pid}-{started}-{number}-{role}"))
    }

    /// Makes one as a process that is dead by now would have left it.
    pub fn create_leftover(dead_pid: u32) -> Result<Self, String> {
        Self::create_named(format!("{NAME_PREFIX}{dead_pid}-0-0-leftover"))
    }

    fn create_named(name: String) -> Result<Self, String> {
        let added = {
            let _one_at_a_time = ADDING.lock().unwrap();
            let mut add = Command::new("ip");
            add.args(["netns", "add", &name]);
            finish(add)
        };
        if added.code != 0 {
            return Err(format!("`ip netns add` says: {}", added.stderr.trim()));
        }
        let namespace = Self { name };
        namespace.set_link("lo", Link::Up);
        Ok(namespace)
    }

    /// Its name, for commands that connect two of them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file by which it is entered; there as long as the namespace has its name.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACE_DIR).join(&self.name)
    }

    /// A program that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `ip` on it; the arguments are words.
    pub fn ip(&self, arguments: &str) {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name]).args(arguments.split_whitespace());
        succeed(ip);
    }

    /// Runs `nft` inside; the argument is one command or a whole ruleset.
    pub fn nft(&self, commands: &str) {
        let mut nft = self.command("nft");
        nft.arg(commands);
        succeed(nft);
    }

    /// Gives programs inside a file of their own in the place of `/etc/<name>`. Those that run
    /// already see it too if the file had been given before they were started.
    pub fn set_etc_file(&self, name: &str, content: &str) {
        let directory = Path::new(FILES_DIR).join(&self.name);
        {
            let _one_at_a_time = FILES.lock().unwrap();
            fs::create_dir_all(&directory).unwrap();
        }
        // Written in place: what runs has this very file mounted.
        fs::write(directory.join(name), content).unwrap();
    }

    /// Plugs or unplugs an interface.
    pub fn set_link(&self, interface: &str, link: Link) {
        let state = match link {
            Link::Up => "up",
            Link::Down => "down",
        };
        self.ip(&format!("link set {interface} {state}"));
    }

    /// Sets a `net.…` kernel parameter; the key is its path below `/proc/sys/net`.
    pub fn set_parameter(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Runs a closure on a thread that is inside. Sockets that it makes stay inside, wherever
    /// they are used afterwards.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                inside()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes what lab processes that are dead by now have left behind.
pub fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(NAMESPACE_DIR) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner_of);
        if let (Some(name), Some((pid, started))) = (name.to_str(), owner)
            && start_of(pid).as_deref() != Some(started)
        {
            remove(name);
        }
    }
}

/// Kills what still runs in a namespace of ours, and removes it. Errors are left alone: this
/// runs in drops, and what cannot be removed now is a leftover to the next run.
fn remove(name: &str) {
    let mut pids = Command::new("ip");
    pids.args(["netns", "pids", name]);
    for pid in finish(pids)
        .stdout
        .lines()
        .filter_map(|pid| pid.parse::<i32>().ok())
    {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let mut delete = Command::new("ip");
    delete.args(["netns", "delete", name]);
    finish(delete);
    let _one_at_a_time = FILES.lock();
    let _ = fs::remove_dir_all(Path::new(FILES_DIR).join(name));
    // Goes when the last one has gone, and only if nobody else uses it.
    let _ = fs::remove_dir(FILES_DIR);
}

/// Pid and start of the process that made a namespace of this name.
fn owner_of(name: &str) -> Option<(u32, &str)> {
    let mut parts = name.strip_prefix(NAME_PREFIX)?.splitn(3, '-');
    Some((parts.next()?.parse().ok()?, parts.next()?))
}

/// When a process started, in clock ticks since boot: field 22 of its `stat`, the twentieth
/// behind the command's closing parenthesis.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_command) = stat.rsplit_once(')')?;
    behind_command.split_whitespace().nth(19).map(str::to_owned)
}
