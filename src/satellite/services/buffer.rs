//! Buffers for relays. A stream has one only while bytes of it are on their way through: a thousand idle
//! streams have none.

use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that a relay moves at once. Several datagrams of the tunnel in one write to the local program,
/// and a whole read of a local socket in one write to the tunnel; larger gains nothing (benches/service.rs).
pub(super) const BUFFER_BYTES: usize = 32 * 1024;

/// Buffers that are kept for the next one who needs one: more than that are in use at once only while
/// many streams are held up, and are given back to the system then.
const SPARE_MAX: usize = 32;

/// Lends buffers. Cheap to clone; all clones share the spare ones.
#[derive(Debug, Clone)]
pub(super) struct BufferPool {
    bytes: usize,
    spare: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl BufferPool {
    /// Of buffers of so many bytes.
    pub(super) fn of(bytes: usize) -> Self {
        Self {
            bytes,
            spare: Arc::default(),
        }
    }

    /// A buffer with whatever was in it before.
    pub(super) fn take(&self) -> Box<[u8]> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; self.bytes].into_boxed_slice())
    }

    /// Takes a buffer back.
    pub(super) fn give_back(&self, buffer: Box<[u8]>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_kept_and_they_are_used_again() {
        let pool = BufferPool::of(BUFFER_BYTES);
        let lent: Vec<_> = (0..SPARE_MAX + 5).map(|_| pool.take()).collect();
        let first = lent.first().map(|buffer| buffer.as_ptr());
        for buffer in lent {
            pool.give_back(buffer);
        }
        let again: Vec<_> = (0..SPARE_MAX).map(|_| pool.take()).collect();
        assert!(again.iter().any(|buffer| Some(buffer.as_ptr()) == first));
        assert!(pool.spare.lock().is_ok_and(|spare| spare.is_empty()));
    }
}
