//! What follows a panic in a program whose panics abort: the daemon starts afresh in its own process, and whoever
//! watches the process sees no other. Owns when that is done. Must not know what the daemon does: that
//! it can be cut off at any moment is the promise of its store.
//!
//! The static satellite is built so (docs/ARCHITECTURE.md, "Size"); where panics unwind, the supervisor
//! ends the task alone and nothing here is used.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::clock::Clock;

/// Time that a daemon must have run for a panic to start it afresh. One that comes to its end sooner is likely to
/// do so again: it is left to the service manager, which waits between two starts.
pub const RUN_AT_LEAST: Duration = Duration::from_secs(60);

/// Has every panic from now on start the program afresh, with its own arguments and environment, if by `clock`,
/// started with the daemon, it has run for `run_at_least`. To be set behind whatever logs a panic. The process id stays;
/// open files, sockets and locks are closed on the way, as all of ours are by the kernel when a program is replaced.
pub fn after_panics(clock: Clock, run_at_least: Duration) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let ran = clock.now().since_start();
        if ran < run_at_least {
            tracing::error!("the program ends: it has not run for long enough to start afresh by itself");
            return;
        }
        tracing::warn!("the program starts afresh");
        let error = replaced();
        tracing::error!(%error, "the program could not start afresh; it ends");
    }));
}

/// Replaces this program by a new run of the same file, also where an upgrade has put another in its place: that one
/// runs when whoever upgrades says so. Returns only if that fails.
fn replaced() -> io::Error {
    let mut arguments = env::args_os();
    let name = arguments.next();
    // The path, so that the process keeps its name. For a file that is not there any more the kernel gives none that
    // exists, and its own link still leads to it.
    let program = match env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => "/proc/self/exe".into(),
    };
    let mut next = Command::new(program);
    if let Some(name) = name {
        next.arg0(name);
    }
    next.args(arguments).exec()
}
