//! How much content may wait between the streams and the socket. Yamux has no priorities: what
//! many streams have queued would stand before a ping. Here content waits in its streams, first
//! come first served, while a little of it is on its way; the control stream does not wait.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Content, in bytes, between the streams and the TLS session before further content waits: two
/// frames, so that one is ready when the other has left. It takes 0.3 s at 1 Mbit/s.
pub(super) const GATE_BYTES: usize = 32 * 1024;

/// Counts what is between, and holds who waits.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    between: usize,
    waiting: VecDeque<(u32, Waker)>,
}

impl Gate {
    /// Ready when `stream` may put content in. `again` for one that has waited already: it has
    /// lost its turn to another and comes next.
    pub(super) fn poll_enter(&self, stream: u32, again: bool, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.between < GATE_BYTES {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        match state.waiting.iter_mut().find(|(waiting, _)| *waiting == stream) {
            Some((_, old)) => *old = waker,
            None if again => state.waiting.push_front((stream, waker)),
            None => state.waiting.push_back((stream, waker)),
        }
        Poll::Pending
    }

    /// So many bytes, of content or not, were put in.
    pub(super) fn entered(&self, bytes: usize) {
        self.state().between += bytes;
    }

    /// So many have left for the socket. Wakes as many as there is room for again, and everybody
    /// when nothing is left that could wake them later: one that was woken need not come.
    pub(super) fn left(&self, bytes: usize) {
        let mut state = self.state();
        state.between = state.between.saturating_sub(bytes);
        let room = GATE_BYTES.saturating_sub(state.between);
        let turns = match state.between {
            0 => state.waiting.len(),
            _ => room.div_ceil(super::FRAME_BODY_BYTES).min(state.waiting.len()),
        };
        let woken: Vec<_> = state.waiting.drain(..turns).collect();
        drop(state);
        for (_, waker) in woken {
            waker.wake();
        }
    }

    /// A stream that is gone waits no more.
    pub(super) fn forget(&self, stream: u32) {
        self.state().waiting.retain(|(waiting, _)| *waiting != stream);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(gate: &Gate, stream: u32) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        gate.poll_enter(stream, false, &mut cx).is_ready()
    }

    fn waiting(gate: &Gate) -> Vec<u32> {
        gate.state().waiting.iter().map(|(stream, _)| *stream).collect()
    }

    #[test]
    fn content_waits_its_turn_and_an_empty_gate_wakes_all() {
        let gate = Gate::default();
        assert!(enter(&gate, 1));
        gate.entered(GATE_BYTES);
        for stream in [1, 2, 3, 2] {
            assert!(!enter(&gate, stream));
        }
        assert_eq!(waiting(&gate), [1, 2, 3], "once each");
        gate.left(1);
        assert_eq!(waiting(&gate), [2, 3], "one has room");
        assert!(enter(&gate, 1));
        gate.forget(3);
        assert_eq!(waiting(&gate), [2]);
        gate.left(GATE_BYTES);
        assert!(waiting(&gate).is_empty());
    }

    #[test]
    fn one_that_was_overtaken_comes_next() {
        let gate = Gate::default();
        gate.entered(GATE_BYTES);
        assert!(!enter(&gate, 1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(gate.poll_enter(2, true, &mut cx).is_pending());
        assert_eq!(waiting(&gate), [2, 1]);
    }
}
