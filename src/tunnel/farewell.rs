//! The last word about a stream that is given up before its end, each way. It belongs to both halves of
//! the stream and outlives them: whoever notes how a stream ended need not be the one that read from it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::wire::StreamEnd;

/// What one side says and what it has heard. Clones are of the same stream.
#[derive(Debug, Clone, Default)]
pub struct Farewell(Arc<Words>);

/// Codes of [`StreamEnd`]; 0 where nothing was said.
#[derive(Debug, Default)]
struct Words {
    ours: AtomicU32,
    theirs: AtomicU32,
}

impl Farewell {
    /// From now on this is why this side gives the stream up, should it do so. Halves that have come to
    /// their end say nothing.
    pub fn say(&self, why: StreamEnd) {
        self.0.ours.store(why.code(), Ordering::Relaxed);
    }

    /// Why the other side gave the stream up, once that was felt by a read or a write.
    pub fn heard(&self) -> Option<StreamEnd> {
        match self.0.theirs.load(Ordering::Relaxed) {
            0 => None,
            code => Some(StreamEnd::from_code(code.into())),
        }
    }

    /// What this side says, if anything.
    pub(super) fn said(&self) -> Option<StreamEnd> {
        match self.0.ours.load(Ordering::Relaxed) {
            0 => None,
            code => Some(StreamEnd::from_code(code.into())),
        }
    }

    /// The other side has given a half up: what its reader or writer reads of it. A reason stays where
    /// the other half is given up without one.
    pub(super) fn hear(&self, kind: io::ErrorKind, why: StreamEnd) -> io::Error {
        if why != StreamEnd::Abandoned || self.heard().is_none() {
            self.0.theirs.store(why.code(), Ordering::Relaxed);
        }
        io::Error::new(kind, self.heard().unwrap_or(why))
    }
}
