//! Waiting for a store that another process has. A command holds it for moments while no daemon runs, and no
//! daemon should fail to start because of one. Owns how long is waited, and must not know whose store it is.

use std::thread;
use std::time::Duration;

use super::error::Holder;
use crate::process::clock::{BUILD_TIME, Clock};

/// How long a daemon waits for its store. Commands have it for milliseconds, and one that asks the parent for
/// longer than this is better waited for by the service manager; whoever starts a second daemon by mistake should
/// soon hear of the first.
pub const HOLD_WAIT: Duration = Duration::from_secs(5);

/// How long is waited between two tries.
const HOLD_PAUSE: Duration = Duration::from_millis(100);

/// What `open` gives, tried again for up to [`HOLD_WAIT`] while by its error somebody else has the store. The log is
/// told of the waiting, once. Blocks.
pub fn once_free<T, E>(
    mut open: impl FnMut() -> Result<T, E>,
    held_by: impl Fn(&E) -> Option<&Holder>,
) -> Result<T, E> {
    let clock = Clock::start(BUILD_TIME);
    let mut told = false;
    loop {
        let opened = open();
        let Some(holder) = opened.as_ref().err().and_then(&held_by) else {
            return opened;
        };
        if clock.now().since_start() >= HOLD_WAIT {
            return opened;
        }
        if !told {
            let wait_s = HOLD_WAIT.as_secs();
            tracing::info!(%holder, wait_s, "another process has the store; waiting for it to end");
            told = true;
        }
        thread::sleep(HOLD_PAUSE);
    }
}
