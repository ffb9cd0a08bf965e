//! Reasons on their way between the streams' halves and the frames that reset them. Yamux' reset has no
//! room for one, but a window update that resets is a reset like any other, and nobody looks at its
//! credit: there the reason travels.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wire::StreamEnd;

/// Reasons that are kept each way, in number, until somebody takes them: those of all streams of a
/// connection at once. What the other side says of streams that nobody reads any more gives way.
const KEPT_MAX: usize = 4 * super::STREAMS_MAX as usize;

/// By the number of the yamux stream.
#[derive(Debug, Default)]
pub(super) struct Ends {
    saying: Mutex<BTreeMap<u32, StreamEnd>>,
    heard: Mutex<BTreeMap<u32, StreamEnd>>,
}

impl Ends {
    /// A half that is given up in this moment; its reset follows.
    pub(super) fn say(&self, stream: u32, why: StreamEnd) {
        keep(&mut lock(&self.saying), stream, why);
    }

    /// What goes with the reset of a stream.
    pub(super) fn take_said(&self, stream: u32) -> Option<StreamEnd> {
        lock(&self.saying).remove(&stream)
    }

    /// A reset has come; its half will look.
    pub(super) fn hear(&self, stream: u32, why: StreamEnd) {
        keep(&mut lock(&self.heard), stream, why);
    }

    /// Why the other side has reset a stream; also for who does not want to know any more.
    pub(super) fn take_heard(&self, stream: u32) -> StreamEnd {
        lock(&self.heard).remove(&stream).unwrap_or(StreamEnd::Abandoned)
    }
}

fn lock(ends: &Mutex<BTreeMap<u32, StreamEnd>>) -> MutexGuard<'_, BTreeMap<u32, StreamEnd>> {
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(ends: &mut BTreeMap<u32, StreamEnd>, stream: u32, why: StreamEnd) {
    if why == StreamEnd::Abandoned {
        return;
    }
    ends.insert(stream, why);
    if ends.len() > KEPT_MAX {
        // Numbers grow: the lowest is the oldest.
        ends.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_for_streams_that_nobody_reads_do_not_pile_up() {
        let ends = Ends::default();
        let many = u32::try_from(2 * KEPT_MAX).unwrap_or(u32::MAX);
        for stream in 0..many {
            ends.hear(stream, StreamEnd::ServiceWithdrawn);
        }
        assert_eq!(lock(&ends.heard).len(), KEPT_MAX);
        assert_eq!(ends.take_heard(many - 1), StreamEnd::ServiceWithdrawn);
        assert_eq!(ends.take_heard(many - 1), StreamEnd::Abandoned, "taken");
        assert_eq!(ends.take_heard(0), StreamEnd::Abandoned, "given way");
    }
}
