//! How much content may wait between the streams and the socket. Yamux has no priorities: what
//! many streams have queued would stand before a ping. Here content waits in its streams, first
//! come first served, while a little of it is on its way; the control stream does not wait.
//!
//! Room is given to who waits, in turn, and nobody else may take it meanwhile: a stream with a flood of small
//! packets, which always has the next one ready, would else be there first each time.

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
    /// Below zero for a moment where a frame has left before its writer has counted it in: the two are on
    /// different threads.
    between: isize,
    waiting: VecDeque<Waiting>,
    /// Streams that have been called and have not come yet, in number as many as there is room for.
    called: Vec<Called>,
}

#[derive(Debug)]
struct Waiting {
    stream: u32,
    /// What it is about to write, in bytes.
    bytes: usize,
    waker: Waker,
}

/// Its bytes count as if they were between.
#[derive(Debug)]
struct Called {
    stream: u32,
    bytes: usize,
    /// Whether it had not come at the last look either.
    late: bool,
}

impl State {
    /// Calls those who are next.
    fn call(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.has_room()
            && let Some(Waiting { stream, bytes, waker }) = self.waiting.pop_front()
        {
            self.between += signed(bytes);
            self.called.push(Called {
                stream,
                bytes,
                late: false,
            });
            wakers.push(waker);
        }
        wakers
    }

    /// Whether this stream was called, and then no longer.
    fn has_come(&mut self, stream: u32) -> bool {
        let Some(at) = self.called.iter().position(|called| called.stream == stream) else {
            return false;
        };
        let called = self.called.swap_remove(at);
        self.between -= signed(called.bytes);
        true
    }

    fn has_room(&self) -> bool {
        self.between < signed(GATE_BYTES)
    }
}

impl Gate {
    /// Ready when `stream` may put so many bytes of content in, now.
    pub(super) fn poll_enter(&self, stream: u32, bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.has_come(stream) || (state.has_room() && state.waiting.is_empty()) {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let bytes = bytes.min(super::FRAME_BODY_BYTES);
        match state.waiting.iter_mut().find(|waiting| waiting.stream == stream) {
            Some(waiting) => *waiting = Waiting { stream, bytes, waker },
            None => state.waiting.push_back(Waiting { stream, bytes, waker }),
        }
        drop(state);
        self.waited_for.notify_one();
        Poll::Pending
    }

    /// So many bytes, of content or not, were put in.
    pub(super) fn entered(&self, bytes: usize) {
        self.state().between += signed(bytes);
    }

    /// Who was let in has put nothing in: it waits for its stream's own window.
    pub(super) fn passed_by(&self) {
        self.change(|_| {});
    }

    /// So many have left for the socket; who is next goes on.
    pub(super) fn left(&self, bytes: usize) {
        self.change(|state| state.between -= signed(bytes));
    }

    /// Wakes everybody.
    pub(super) fn open_to_all(&self) {
        let mut state = self.state();
        state.between = 0;
        state.called.clear();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for Waiting { waker, .. } in waiting {
            waker.wake();
        }
    }

    /// Sees to it that nobody waits in vain: a stream that was called may have lost its interest. Runs for
    /// ever.
    pub(super) async fn attend(&self) -> Infallible {
        loop {
            self.waited_for.notified().await;
            while !self.state().waiting.is_empty() {
                tokio::time::sleep(STALL_LOOK).await;
                self.change(|state| {
                    let late = state
                        .called
                        .extract_if(.., |called| std::mem::replace(&mut called.late, true));
                    let bytes: usize = late.map(|called| called.bytes).sum();
                    state.between -= signed(bytes);
                });
            }
        }
    }

    /// A stream that is gone waits no more.
    pub(super) fn forget(&self, stream: u32) {
        self.change(|state| {
            state.waiting.retain(|waiting| waiting.stream != stream);
            state.has_come(stream);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let wakers = state.call();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a frame or of some.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(gate: &Gate, stream: u32) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        gate.poll_enter(stream, 1, &mut cx).is_ready()
    }

    fn waiting(gate: &Gate) -> Vec<u32> {
        gate.state()
            .waiting
            .iter()
            .map(|waiting| waiting.stream)
            .collect()
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
        gate.forget(2);
        assert!(waiting(&gate).is_empty());
    }

    #[test]
    fn a_frame_that_has_left_before_it_is_counted_in_takes_no_room_for_good() {
        let gate = Gate::default();
        for _ in 0..3 {
            assert!(enter(&gate, 1));
            gate.left(GATE_BYTES);
            gate.entered(GATE_BYTES);
        }
        assert!(enter(&gate, 1));
    }

    #[test]
    fn who_was_called_is_not_overtaken_by_who_is_quicker() {
        let gate = Gate::default();
        gate.entered(GATE_BYTES);
        assert!(!enter(&gate, 1));
        assert!(!enter(&gate, 2));
        gate.left(1);
        assert!(!enter(&gate, 2), "the room is the first one's");
        assert!(enter(&gate, 1));
        gate.entered(1);
        assert!(!enter(&gate, 1), "and then the next one's");
        gate.left(1);
        assert!(enter(&gate, 2));
    }

    #[test]
    fn who_has_nothing_to_put_in_or_is_gone_makes_room_for_the_next() {
        let gate = Gate::default();
        gate.entered(GATE_BYTES);
        for stream in 1..=3 {
            assert!(!enter(&gate, stream));
        }
        gate.left(1);
        assert!(enter(&gate, 1));
        gate.passed_by();
        assert_eq!(waiting(&gate), [3]);
        gate.forget(2);
        assert!(enter(&gate, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_in_vain_behind_one_that_does_not_come() {
        let gate = Gate::default();
        gate.entered(GATE_BYTES);
        for stream in 1..=3 {
            assert!(!enter(&gate, stream));
        }
        // The first is called, and that is all that would ever happen.
        gate.left(1);
        assert_eq!(waiting(&gate), [2, 3]);
        let attended = tokio::time::timeout(3 * STALL_LOOK, gate.attend()).await;
        assert!(attended.is_err());
        assert_eq!(waiting(&gate), [3]);
        assert!(!enter(&gate, 1), "it comes after the others now");
        assert!(enter(&gate, 2));
    }
}
