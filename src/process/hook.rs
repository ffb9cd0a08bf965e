//! Runs an executable that the operator has configured: JSON on its standard input, no shell, an
//! environment of its own, a bounded time. It gets a process group, and what is left of that when the time is
//! over, or when the caller goes away, is killed.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

use super::blocking;
use crate::base::secret::Secret;

/// Where a hook finds programs; nothing of this process's environment is passed on.
const HOOK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An executable and its arguments, as they are passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its path, absolute.
    pub program: PathBuf,
    /// What it is called with.
    pub arguments: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Why a hook did not do its work. It may have done a part of it.
#[derive(Debug, Error)]
pub enum HookFailure {
    /// It did not start.
    #[error("{program} could not be started; is it there, and may this user execute it?")]
    Start {
        /// The executable.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("{program} ended with {status}; what it wrote to standard error is in the log")]
    Status {
        /// The executable.
        program: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("{program} did not end within {} s and was killed with all that it had started", .timeout.as_secs())]
    TimedOut {
        /// The executable.
        program: String,
        /// The time that it had.
        timeout: Duration,
    },
    /// Its end could not be awaited.
    #[error("the end of {program} could not be awaited")]
    Wait {
        /// The executable.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Kills the group when it goes, unless it has been disarmed.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // It may have ended meanwhile.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Hook {
    /// Runs it to its end with this on its standard input. Dropped before that, everything that it started
    /// is killed.
    pub async fn run(&self, input: Secret) -> Result<(), HookFailure> {
        let program = self.program.display().to_string();
        let failed_to_start = |source| HookFailure::Start {
            program: self.program.display().to_string(),
            source,
        };
        let child = self.spawn().map_err(failed_to_start)?;
        let mut group = Group(i32::try_from(child.id()).ok().and_then(Pid::from_raw));
        let ending = blocking::start(move || feed(child, &input));
        let ended = match tokio::time::timeout(self.timeout, ending).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(failed)) => Err(io::Error::other(failed)),
            Err(_) => {
                group.kill();
                return Err(HookFailure::TimedOut {
                    program,
                    timeout: self.timeout,
                });
            }
        };
        match ended {
            Ok(status) if status.success() => {
                // What it left running on purpose may go on.
                group.0 = None;
                Ok(())
            }
            Ok(status) => Err(HookFailure::Status { program, status }),
            Err(source) => Err(HookFailure::Wait { program, source }),
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", HOOK_PATH)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Into this program's log.
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
    }
}

/// Blocking: a hook that does not read is as slow as one that does not end.
fn feed(mut child: Child, input: &Secret) -> io::Result<ExitStatus> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to know has closed its end.
        let _ = stdin.write_all(input.expose());
    }
    child.wait()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn hook(directory: &Path, script: &str, timeout: Duration) -> Hook {
        let program = directory.join("hook");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        Hook {
            program,
            arguments: vec![directory.display().to_string(), "$HOME; false".to_owned()],
            timeout,
        }
    }

    fn input() -> Secret {
        Secret::from_text(r#"{"a":1}"#.to_owned())
    }

    #[tokio::test]
    async fn it_gets_its_input_its_arguments_and_an_environment_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"cat > "$1/input"; echo "$2" > "$1/argument"; env | cut -d= -f1 | sort > "$1/names"; pwd > "$1/where""#;
        hook(directory.path(), script, PATIENCE)
            .run(input())
            .await
            .unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("input"), r#"{"a":1}"#);
        assert_eq!(read("argument"), "$HOME; false\n");
        assert_eq!(read("where"), "/\n");
        for name in read("names").lines() {
            // What the shell sets by itself.
            assert!(["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_and_so_is_a_program_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let failing = hook(directory.path(), "exit 3", PATIENCE);
        let failed = failing.run(input()).await.unwrap_err();
        assert!(
            matches!(&failed, HookFailure::Status { status, .. } if status.code() == Some(3)),
            "{failed}"
        );
        let absent = Hook {
            program: directory.path().join("absent"),
            ..failing
        };
        let failed = absent.run(input()).await.unwrap_err();
        assert!(matches!(failed, HookFailure::Start { .. }), "{failed}");
    }

    /// Whether the process is gone.
    async fn ends(pid: &Path) {
        let pid = fs::read_to_string(pid).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = async {
            // A zombie has ended, too.
            while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    #[tokio::test]
    async fn when_the_time_is_over_it_ends_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"sleep 600 & echo $! > "$1/pid"; wait"#;
        let hook = hook(directory.path(), script, Duration::from_secs(1));
        let failed = hook.run(input()).await.unwrap_err();
        assert!(matches!(failed, HookFailure::TimedOut { .. }), "{failed}");
        ends(&directory.path().join("pid")).await;
    }

    #[tokio::test]
    async fn it_does_not_outlive_its_caller() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"sleep 600 & echo $! > "$1/new"; mv "$1/new" "$1/pid"; wait"#;
        let hook = hook(directory.path(), script, PATIENCE);
        let pid = directory.path().join("pid");
        let started = async {
            while !pid.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = hook.run(input()) => panic!("{ended:?}"),
            () = started => {}
        }
        ends(&pid).await;
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let much = Secret::new(vec![b' '; 1024 * 1024]);
        hook(directory.path(), "exit 0", PATIENCE)
            .run(much)
            .await
            .unwrap();
    }
}
