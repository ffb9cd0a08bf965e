//! Runs a tunnel's control stream: pings and answers, watches the other side's silence, carries
//! goodbyes, and settles why the tunnel ends. The decisions about silence are
//! `machine::liveness`; nothing of a stream's content passes here.

use std::fmt;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::close::{CloseReason, Violation};
use super::connection::{GOODBYE_TIMEOUT, Shared};
use super::frame::{FrameError, PartialFrame};
use super::transport::{BoxFuture, ByteStream, TransportClosed};
use crate::base::time::Moment;
use crate::machine::binding_time::BindingTime;
use crate::machine::liveness::{Liveness, LivenessAction, LivenessEvent};
use crate::wire::{ControlMessage, Goodbye};

/// The task of one tunnel: run it under a supervisor. Dropping it ends the tunnel.
pub struct TunnelDriver {
    shared: Arc<Shared>,
    io: ByteStream,
    incoming: PartialFrame,
    outgoing: Outgoing,
    liveness: Liveness,
    /// The transport's count of arrivals when it was last looked at.
    arrivals: u64,
    streams: watch::Receiver<usize>,
    goodbye: watch::Receiver<Option<Goodbye>>,
    leaving: Option<Leaving>,
    /// The other side's host is being asked whether anybody is there.
    knocking: Option<BoxFuture<'static, bool>>,
}

/// The control stream after the greeting.
pub(super) struct ControlStream {
    pub(super) io: ByteStream,
    /// When this side asks while the tunnel is idle.
    pub(super) keepalive: Keepalive,
}

/// See [`Liveness`].
pub(super) enum Keepalive {
    /// After so long.
    Fixed(Duration),
    /// As long as the routers on the way are found to remember, up to this.
    Learned(BindingTime, Duration),
}

/// This side has taken its leave.
struct Leaving {
    goodbye: Goodbye,
    until: Moment,
}

/// What has happened.
enum Step {
    Leave,
    Sent(io::Result<()>),
    Received(Result<Vec<u8>, FrameError>),
    Streams,
    Doubted,
    Moved,
    Knocked { gone: bool },
    TransportClosed(TransportClosed),
    Timer,
}

impl TunnelDriver {
    pub(super) fn new(shared: Arc<Shared>, control: ControlStream) -> Self {
        let now = shared.clock.now();
        Self {
            io: control.io,
            incoming: PartialFrame::new(),
            outgoing: Outgoing::default(),
            liveness: match control.keepalive {
                Keepalive::Fixed(keepalive) => Liveness::new(keepalive, now),
                Keepalive::Learned(binding, longest) => Liveness::learning(binding, longest, now),
            },
            arrivals: shared.transport.arrivals(),
            streams: shared.streams.subscribe(),
            goodbye: shared.goodbye(),
            leaving: None,
            knocking: None,
            shared,
        }
    }

    /// Runs until the tunnel has ended, and says why.
    pub async fn run(mut self) -> CloseReason {
        let shared = Arc::clone(&self.shared);
        let reason = tokio::select! {
            biased;
            reason = self.drive() => reason,
            never = shared.flows.deliver() => match never {},
        };
        self.shared.finish(reason);
        self.shared.closed().await
    }

    async fn drive(&mut self) -> CloseReason {
        loop {
            // A peer that floods the control stream must not keep the thread.
            tokio::task::consume_budget().await;
            while let Some(action) = self.liveness.poll_action() {
                match action {
                    LivenessAction::Ping(number) => self.outgoing.ping = Some(number),
                    LivenessAction::Wish(silence) => {
                        let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
                        self.outgoing.quiet = Some(millis);
                        let learned = self.liveness.binding();
                        if let Some(lost) = learned.and_then(|binding| binding.lost()) {
                            tracing::info!(
                                lost_after_seconds = lost.as_secs(),
                                silence_seconds = silence.as_secs(),
                                "the routers on the way forget a silent tunnel; it is silent for less from now on"
                            );
                        }
                        self.shared.learned(learned);
                    }
                    LivenessAction::Knock => self.knocking = self.shared.transport.knock(),
                    LivenessAction::ChangePort => self.shared.transport.change_port(),
                    LivenessAction::Dead { silent_for } => {
                        return self.ended_by(CloseReason::Silent { silent_for });
                    }
                }
            }
            let ended = match self.next_step().await {
                Step::Leave => self.leave(),
                Step::Sent(Ok(())) => None,
                Step::Sent(Err(error)) => Some(self.control_failed(FrameError::Stream(error))),
                Step::Received(Ok(content)) => self.receive(&content),
                Step::Received(Err(error)) => Some(self.control_failed(error)),
                Step::Streams => {
                    let open = *self.streams.borrow_and_update() > 0;
                    self.look(LivenessEvent::StreamsOpen(open));
                    None
                }
                Step::Doubted => {
                    self.look(LivenessEvent::Doubt);
                    None
                }
                Step::Knocked { gone } => {
                    self.knocking = None;
                    if gone {
                        self.look(LivenessEvent::Gone);
                    }
                    None
                }
                Step::Moved => {
                    self.look(LivenessEvent::Moved);
                    None
                }
                Step::TransportClosed(closed) => Some(CloseReason::Transport(closed)),
                Step::Timer => self.on_timer(),
            };
            if let Some(reason) = ended {
                return self.ended_by(reason);
            }
        }
    }

    /// Waits. What has arrived is read before a verdict on silence or on the connection's end: a
    /// goodbye explains it.
    async fn next_step(&mut self) -> Step {
        let now = self.shared.clock.now();
        let leave_at = self.leaving.as_ref().map(|leaving| leaving.until);
        let wake_at = [self.liveness.poll_timeout(), leave_at]
            .into_iter()
            .flatten()
            .min();
        let timer = async {
            match wake_at {
                Some(at) => tokio::time::sleep(at.since(now)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            Ok(()) = self.goodbye.changed() => Step::Leave,
            sent = self.outgoing.write(&mut *self.io.write) => Step::Sent(sent),
            received = self.incoming.read(&mut *self.io.read) => Step::Received(received),
            Ok(()) = self.streams.changed() => Step::Streams,
            () = self.shared.doubt.notified() => Step::Doubted,
            () = self.shared.moved.notified() => Step::Moved,
            gone = knocked(self.knocking.as_mut()) => Step::Knocked { gone },
            closed = self.shared.transport.closed() => Step::TransportClosed(closed),
            () = timer => Step::Timer,
        }
    }

    fn leave(&mut self) -> Option<CloseReason> {
        let goodbye = self.goodbye.borrow_and_update().clone()?;
        self.outgoing.goodbye = Some(goodbye.clone());
        self.leaving = Some(Leaving {
            goodbye,
            until: self.shared.clock.now().plus(GOODBYE_TIMEOUT),
        });
        None
    }

    fn receive(&mut self, content: &[u8]) -> Option<CloseReason> {
        self.arrivals = self.shared.transport.arrivals();
        self.liveness
            .handle_event(LivenessEvent::Message, self.shared.clock.now());
        let violation = match ControlMessage::decode(content) {
            Ok(None | Some(ControlMessage::Pong(_))) => return None,
            Ok(Some(ControlMessage::Ping(number))) => {
                self.outgoing.pong = Some(number);
                let now = self.shared.clock.now();
                self.liveness.handle_event(LivenessEvent::Asked, now);
                return None;
            }
            Ok(Some(ControlMessage::Quiet(millis))) => {
                let silence = Duration::from_millis(u64::from(millis));
                let now = self.shared.clock.now();
                self.liveness.handle_event(LivenessEvent::Wished(silence), now);
                return None;
            }
            Ok(Some(ControlMessage::Goodbye(goodbye))) => return Some(CloseReason::Goodbye(goodbye)),
            Ok(Some(ControlMessage::Hello(_))) => Violation::OutOfPlace("a second hello"),
            Ok(Some(ControlMessage::Welcome(_))) => Violation::OutOfPlace("a second welcome"),
            Ok(Some(ControlMessage::Refused(_))) => Violation::OutOfPlace("a late refusal"),
            Err(error) => Violation::Unreadable(error),
        };
        Some(CloseReason::Violation(violation))
    }

    fn on_timer(&mut self) -> Option<CloseReason> {
        let now = self.shared.clock.now();
        if let Some(leaving) = self.leaving.take_if(|leaving| leaving.until <= now) {
            return Some(CloseReason::Local(leaving.goodbye));
        }
        self.look(LivenessEvent::Timer);
        None
    }

    /// Tells the machine what has arrived, then the event.
    fn look(&mut self, event: LivenessEvent) {
        let now = self.shared.clock.now();
        let arrivals = self.shared.transport.arrivals();
        if arrivals != self.arrivals {
            self.arrivals = arrivals;
            self.liveness.handle_event(LivenessEvent::Traffic, now);
        }
        self.liveness.handle_event(event, now);
    }

    /// The connection's end explains the control stream's.
    fn control_failed(&self, error: FrameError) -> CloseReason {
        match self.shared.transport.close_reason() {
            Some(closed) => CloseReason::Transport(closed),
            None => CloseReason::Violation(Violation::ControlStream(Arc::new(error))),
        }
    }

    /// After this side's goodbye whatever ends the tunnel is its consequence.
    fn ended_by(&mut self, reason: CloseReason) -> CloseReason {
        match self.leaving.take() {
            Some(leaving) => CloseReason::Local(leaving.goodbye),
            None => reason,
        }
    }
}

/// Never, where nobody knocks. Cancel safe.
async fn knocked(knocking: Option<&mut BoxFuture<'static, bool>>) -> bool {
    match knocking {
        Some(knocking) => knocking.await,
        None => pending().await,
    }
}

impl Drop for TunnelDriver {
    fn drop(&mut self) {
        // Without effect after a regular end.
        self.shared.finish(CloseReason::Abandoned);
    }
}

impl fmt::Debug for TunnelDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelDriver").finish_non_exhaustive()
    }
}

/// What is to be sent on the control stream: at most one message of each sort, so a peer that
/// does not read makes nothing grow.
#[derive(Debug, Default)]
struct Outgoing {
    frame: Vec<u8>,
    written: usize,
    unflushed: bool,
    ping: Option<u64>,
    pong: Option<u64>,
    quiet: Option<u32>,
    goodbye: Option<Goodbye>,
}

impl Outgoing {
    /// Sends one message; waits for ever when there is none. Cancel safe: what was written of a
    /// frame is remembered.
    async fn write(&mut self, to: &mut (dyn AsyncWrite + Send + Unpin)) -> io::Result<()> {
        if self.written == self.frame.len() && !self.unflushed {
            let Some(message) = self.next_message() else {
                return pending().await;
            };
            self.frame = message.encode().map_err(io::Error::other)?;
            self.written = 0;
            self.unflushed = true;
        }
        while self.written < self.frame.len() {
            match to.write(&self.frame[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.written += count,
            }
        }
        to.flush().await?;
        self.unflushed = false;
        Ok(())
    }

    fn next_message(&mut self) -> Option<ControlMessage> {
        let goodbye = self.goodbye.take().map(ControlMessage::Goodbye);
        goodbye
            .or_else(|| self.pong.take().map(ControlMessage::Pong))
            .or_else(|| self.quiet.take().map(ControlMessage::Quiet))
            .or_else(|| self.ping.take().map(ControlMessage::Ping))
    }
}
