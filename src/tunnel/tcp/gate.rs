//! How much content may wait between the streams and the socket. Yamux has no priorities: what
//! many streams have queued would stand before a ping. Here content waits in its streams, first
//! come first served, while a little of it is on its way; the control stream does not wait.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;

/// Content, in bytes, between the streams and the TLS session before further content waits: a frame
/// and a little, so that one more is ready when the other has left, and a ping stands behind two. They
/// take a second at 256 kbit/s, where five seconds of silence are the end.
pub(super) const GATE_BYTES: usize = super::FRAME_BODY_BYTES + 1;

/// Pause between two looks at streams that may wait in vain.
const STALL_LOOK: Duration = Duration::from_millis(100);

/// Counts what is between, and holds who waits.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// Told when somebody begins to wait.
    waited_for: Notify,
}

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
        drop(state);
        self.waited_for.notify_one();
        Poll::Pending
    }

    /// So many bytes, of content or not, were put in.
    pub(super) fn entered(&self, bytes: usize) {
        self.state().between += bytes;
    }

    /// So many have left for the socket; who is next goes on.
    pub(super) fn left(&self, bytes: usize) {
        let mut state = self.state();
        state.between = state.between.saturating_sub(bytes);
        let next = (state.between < GATE_BYTES)
            .then(|| state.waiting.pop_front())
            .flatten();
        drop(state);
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    /// Wakes everybody.
    pub(super) fn open_to_all(&self) {
        let mut state = self.state();
        state.between = 0;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Sees to it that nobody waits in vain: a stream that was woken may have lost its interest, and
    /// when nothing is on its way nobody else would be woken. Runs for ever.
    pub(super) async fn attend(&self) -> Infallible {
        loop {
            self.waited_for.notified().await;
            tokio::time::sleep(STALL_LOOK).await;
            if self.state().between == 0 {
                self.open_to_all();
            }
        }
    }

    /// A stream that is gone waits no more.
    pub(super) fn forget(&self, stream: u32) {
        self.state().waiting.retain(|(waiting, _)| *waiting != stream);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn content_waits_its_turn() {
        let gate = Gate::default();
        assert!(enter(&gate, 1));
        gate.entered(GATE_BYTES + 1);
        for stream in [1, 2, 3, 2] {
            assert!(!enter(&gate, stream));
        }
        assert_eq!(waiting(&gate), [1, 2, 3], "once each");
        gate.left(1);
        assert_eq!(waiting(&gate), [1, 2, 3], "no room yet");
        gate.left(1);
        assert_eq!(waiting(&gate), [2, 3], "one goes on");
        assert!(enter(&gate, 1));
        gate.forget(3);
        assert_eq!(waiting(&gate), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_in_vain_behind_one_that_does_not_come() {
        let gate = Gate::default();
        gate.entered(GATE_BYTES);
        for stream in 1..=3 {
            assert!(!enter(&gate, stream));
        }
        // The first is woken, and that is all that would ever happen.
        gate.left(GATE_BYTES);
        assert_eq!(waiting(&gate), [2, 3]);
        let attended = tokio::time::timeout(2 * STALL_LOOK, gate.attend()).await;
        assert!(attended.is_err());
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
