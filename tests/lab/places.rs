//! How many labs stand at a time. Most scenarios wait more than they work, so some stand side by side, each in
//! namespaces of its own; one that takes all of the machine, or measures what it can do, stands alone.

use std::sync::{Condvar, Mutex, PoisonError};

/// Labs at a time: a few seconds of work in each minute of a scenario leave two processors room for so many.
pub const PLACES: usize = 4;

/// The scenarios that stand alone, by the names that they open their labs with.
pub const ALONE: [&str; 6] = [
    "gibibyte",
    "iperf3",
    "ladder_overrun",
    "revoked",
    "stalled",
    "thousand",
];

static FREE: Mutex<usize> = Mutex::new(PLACES);
static GIVEN_BACK: Condvar = Condvar::new();

/// A lab's place, or all of them; given back when dropped.
#[derive(Debug)]
pub struct Place {
    taken: usize,
}

impl Place {
    /// Waits for it. Who needs all of them lets others go first until none comes any more: with as many test
    /// threads as places and lonely scenarios, none of those keeps a thread from the others.
    pub fn take(test: &str) -> Self {
        let taken = if ALONE.contains(&test) { PLACES } else { 1 };
        // A scenario that fails gives its place back as well.
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = GIVEN_BACK
            .wait_while(free, |free| *free < taken)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= taken;
        Self { taken }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.taken;
        GIVEN_BACK.notify_all();
    }
}
