//! Programs under test: started with their output in files, stopped by pid, gone when dropped.

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::wait_until;

/// Lines of each log that a failed test shows.
const SHOWN_LINES: usize = 60;

/// A running program. Killed when dropped; its logs stay as long as the lab.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a program. A second one of the same name adds to the first one's logs, so that
    /// the logs of a restarted daemon are read as one.
    pub fn spawn(name: &str, logs: &Path, mut command: Command) -> Self {
        let stdout = logs.join(format!("{name}.out"));
        let stderr = logs.join(format!("{name}.err"));
        let log = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(log(&stdout))
            .stderr(log(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// The program's own process id: `ip netns exec` becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, as a service manager does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it where it stands, as a power cut does.
    pub fn kill_and_wait(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap_or_else(|error| panic!("signal to {}: {error}", self.name));
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn exit_within(&mut self, at_most: Duration) -> ExitStatus {
        let child = &mut self.child;
        wait_until(&format!("{} has ended", self.name), at_most, || {
            child.try_wait().unwrap()
        })
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read_log(&self.stdout)
    }

    /// What it has written to standard error so far: its log.
    pub fn stderr(&self) -> String {
        read_log(&self.stderr)
    }

    /// Waits until its log holds a text; fails at once when the program ends before that.
    pub fn wait_for_log(&mut self, text: &str, at_most: Duration) {
        let what = format!("{} logs `{text}`", self.name);
        wait_until(&what, at_most, || {
            let ended = !self.is_running();
            let found = self.stderr().contains(text);
            assert!(found || !ended, "{} ended before it logged `{text}`", self.name);
            found.then_some(())
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for (kind, log) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                let lines: Vec<_> = log.lines().collect();
                let last = lines.len().saturating_sub(SHOWN_LINES);
                eprintln!(
                    "--- {} {kind}, last lines:\n{}",
                    self.name,
                    lines[last..].join("\n")
                );
            }
        }
    }
}

/// What a program that ran to its end has left.
pub struct Finished {
    /// Its exit code; 128 and the signal's number when a signal ended it, as shells tell it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr))
    }
}

/// Runs a program to its end, whatever its exit code.
pub fn finish(mut command: Command) -> Finished {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let signal = output.status.signal().map(|signal| 128 + signal);
    Finished {
        code: output.status.code().or(signal).unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program that must succeed.
pub fn succeed(command: Command) -> Finished {
    let shown = format!("{command:?}");
    let finished = finish(command);
    assert_eq!(
        finished.code, 0,
        "{shown}\n{}{}",
        finished.stdout, finished.stderr
    );
    finished
}

fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
