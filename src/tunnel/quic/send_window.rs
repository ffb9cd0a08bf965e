//! How much of what is written may wait in this process. Knows the path's congestion window alone.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all streams of a connection that may be written and not yet acknowledged, at first. From
/// then on the window follows what the path carries ([`SendWindow`]).
pub(super) const INITIAL_BYTES: u64 = 256 * 1024;

/// The least of that: below it a few small writes would wait for each other.
const MIN_BYTES: u64 = 64 * 1024;

/// The most of that. It bounds the sender's memory for a connection; 1.3 Gbit/s at 100 ms.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Congestion windows that fit into the send window: one on the way, and one ready to follow.
const CWNDS: u64 = 2;

/// Bytes written after which the send window is looked at again.
const STEP_BYTES: u64 = 64 * 1024;

/// How much may wait in this process: as much as keeps the path busy. More would only make what is
/// written next, a reply or a key stroke, wait behind what a slow path has not carried yet.
#[derive(Debug)]
pub(super) struct SendWindow {
    connection: quinn::Connection,
    written: AtomicU64,
}

impl SendWindow {
    pub(super) const fn new(connection: quinn::Connection) -> Self {
        Self {
            connection,
            written: AtomicU64::new(0),
        }
    }

    /// So many bytes were taken from a stream's writer.
    pub(super) fn wrote(&self, bytes: usize) {
        let bytes = bytes as u64;
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / STEP_BYTES != (before + bytes) / STEP_BYTES {
            let congestion_window = self.connection.stats().path.cwnd;
            let window = congestion_window.saturating_mul(CWNDS);
            self.connection
                .set_send_window(window.clamp(MIN_BYTES, MAX_BYTES));
        }
    }
}
