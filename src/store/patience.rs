//! Waiting for a store that another process has. A command holds it for moments while no daemon runs, a daemon before
//! it answers at its socket: nothing should fail because of that. Owns how long is waited, and must not know whose
//! store it is.

use std::thread;
use std::time::Duration;

use super::error::Holder;
use crate::process::clock::{BUILD_TIME, Clock};

/// How long a store is waited for. Commands have it for milliseconds, and one that asks the parent for longer than
/// this is better waited for by the service manager; whoever starts a second daemon by mistake, or looks for one at the
/// wrong socket, should soon hear of the first.
pub const HOLD_WAIT: Duration = Duration::from_secs(5);

/// How long is waited between two tries.
const HOLD_PAUSE: Duration = Duration::from_millis(100);

/// The waiting for one store.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    told: bool,
}

impl Patience {
    /// Begins it.
    pub fn begin() -> Self {
        Self {
            clock: Clock::start(BUILD_TIME),
            told: false,
        }
    }

    /// Time to the next try, as long as there is one. The log is told of the waiting, once.
    pub fn pause(&mut self, holder: &Holder) -> Option<Duration> {
        if self.clock.now().since_start() >= HOLD_WAIT {
            return None;
        }
        if !std::mem::replace(&mut self.told, true) {
            let wait_s = HOLD_WAIT.as_secs();
            tracing::info!(%holder, wait_s, "another process has the store; waiting for it to end");
        }
        Some(HOLD_PAUSE)
    }
}

/// What `open` gives, tried again for up to [`HOLD_WAIT`] while by its error somebody else has the store. Blocks.
pub fn once_free<T, E>(
    mut open: impl FnMut() -> Result<T, E>,
    held_by: impl Fn(&E) -> Option<&Holder>,
) -> Result<T, E> {
    let mut patience = Patience::begin();
    loop {
        let opened = open();
        let holder = opened.as_ref().err().and_then(&held_by);
        match holder.and_then(|holder| patience.pause(holder)) {
            Some(pause) => thread::sleep(pause),
            None => return opened,
        }
    }
}
