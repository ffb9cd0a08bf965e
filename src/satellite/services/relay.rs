//! Moves the bytes of one stream between the tunnel and a local program, both ways in one task.
//!
//! - Back-pressure: a direction reads on only when what it has read is written, so at most one buffer
//!   waits in each direction, and the rest waits where it comes from.
//! - Half-closes: the end of one direction is passed on, and the other goes on.
//! - A side that takes no more ends its direction alone: the other may still have an answer to deliver.
//!   A side that fails when it is read from ends both.
//! - A program that takes nothing holds a whole window of the tunnel. Some may; where too many do, the
//!   latest are cut, or they would together silence all other streams.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::BufferPool;
use super::meter::{Direction, Meter};
use crate::base::time::Moment;
use crate::process::clock::Clock;
use crate::tunnel::quic::WHOLE_WINDOWS_MAX;
use crate::wire::StreamEnd;

/// Bytes that one direction moves before other tasks get their turn: some milliseconds of work on a
/// small box.
const TURN_BYTES: usize = 256 * 1024;

/// Streams of one tunnel that may be held up by their programs for long, in number: what they hold leaves
/// a quarter of the tunnel's receive window to the others.
pub(super) const HELD_UP_MAX: u32 = WHOLE_WINDOWS_MAX / 4 * 3;

/// How long a program may take nothing at all while more streams than that are held up.
const HELD_UP_PATIENCE: Duration = Duration::from_secs(10);

/// How many streams of one tunnel are held up by their programs now.
#[derive(Debug, Default)]
pub(super) struct HeldUp(AtomicU32);

/// One of them.
struct Holding<'a>(&'a HeldUp);

impl HeldUp {
    /// One more, and whether that is too many.
    fn enter(&self) -> (Holding<'_>, bool) {
        let others = self.0.fetch_add(1, Ordering::Relaxed);
        (Holding(self), others >= HELD_UP_MAX)
    }

    fn are_too_many(&self) -> bool {
        self.0.load(Ordering::Relaxed) > HELD_UP_MAX
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What relays of one box share, and what one stream counts and obeys.
pub(super) struct Traffic<'a> {
    pub(super) clock: &'a Clock,
    pub(super) buffers: &'a BufferPool,
    /// Those of the same tunnel.
    pub(super) held_up: &'a HeldUp,
    /// All of them hold.
    pub(super) meters: &'a [&'a Meter],
    /// Told of all bytes that were delivered.
    pub(super) passed: &'a dyn Passed,
}

/// Counts what has passed.
pub(super) trait Passed: Send + Sync {
    /// So many more bytes.
    fn passed(&self, direction: Direction, bytes: u64);
}

/// Why a relay did not come to its end.
#[derive(Debug, Error)]
#[error("{}", match (.side, .direction) {
    (Side::Local, Direction::Out) => "the service's program broke the connection off",
    (Side::Local, Direction::In) if .source.kind() == io::ErrorKind::TimedOut =>
        "the service's program took nothing for long, as too many others of this tunnel do",
    (Side::Local, Direction::In) => "the service's program took no more",
    (Side::Tunnel, Direction::In) => "the asking side broke the stream off",
    (Side::Tunnel, Direction::Out) => "the asking side took no more",
})]
pub(super) struct RelayError {
    side: Side,
    direction: Direction,
    #[source]
    source: io::Error,
}

impl RelayError {
    /// What the asking side is told; nothing where it was the one that ended it.
    pub(super) fn stream_end(&self) -> Option<StreamEnd> {
        match (self.side, self.direction) {
            (Side::Local, Direction::Out) => Some(StreamEnd::ProgramBroke),
            (Side::Local, Direction::In) if self.source.kind() == io::ErrorKind::TimedOut => {
                Some(StreamEnd::HeldUp)
            }
            (Side::Local, Direction::In) => Some(StreamEnd::ProgramStopped),
            (Side::Tunnel, Direction::In | Direction::Out) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Local,
    Tunnel,
}

/// Runs to the end of both directions. Dropped before, it aborts nothing by itself: what becomes of both
/// sides is the caller's to say.
pub(super) async fn relay<L, T>(
    local: &mut L,
    tunnel: &mut T,
    traffic: &Traffic<'_>,
) -> Result<(), RelayError>
where
    L: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut inward = Pump::new(Direction::In);
    let mut outward = Pump::new(Direction::Out);
    poll_fn(|cx| {
        let arriving = inward.poll(cx, Pin::new(&mut *tunnel), Pin::new(&mut *local), traffic)?;
        let leaving = outward.poll(cx, Pin::new(&mut *local), Pin::new(&mut *tunnel), traffic)?;
        match (arriving, leaving) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await?;
    inward.refusal.or(outward.refusal).map_or(Ok(()), Err)
}

type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One direction.
struct Pump<'a> {
    direction: Direction,
    phase: Phase,
    /// Read and not yet written.
    held: Option<Held>,
    /// Written since the last flush.
    unflushed: bool,
    /// While the side that is written to takes nothing; with patience where it has an end.
    holding: Option<(Holding<'a>, Option<Pause>)>,
    /// Until when a limit holds this direction up.
    pause: Option<Pause>,
    /// Why the side that is written to took no more.
    refusal: Option<RelayError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Moving,
    Ending,
    Over,
}

struct Held {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<'a> Pump<'a> {
    const fn new(direction: Direction) -> Self {
        Self {
            direction,
            phase: Phase::Moving,
            held: None,
            unflushed: false,
            holding: None,
            pause: None,
            refusal: None,
        }
    }

    /// Ready when the direction is over. Fails where it cannot be read on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
        traffic: &Traffic<'a>,
    ) -> Poll<Result<(), RelayError>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        let mut turn = 0;
        loop {
            match self.phase {
                Phase::Over => return Poll::Ready(Ok(())),
                Phase::Ending => {
                    if let Err(source) = ready!(writer.as_mut().poll_shutdown(cx)) {
                        self.refused(source);
                    }
                    self.phase = Phase::Over;
                }
                Phase::Moving => {
                    if let Some(held) = &mut self.held {
                        let bytes = &held.buffer[held.start..held.end];
                        let Poll::Ready(written) = writer.as_mut().poll_write(cx, bytes) else {
                            ready!(self.poll_patience(cx, traffic));
                            // Only the end of the whole stream gives its window back.
                            return Poll::Ready(Err(self.refusal_of(io::ErrorKind::TimedOut.into())));
                        };
                        self.holding = None;
                        match written {
                            Ok(0) => self.gave_up(io::ErrorKind::WriteZero.into(), traffic),
                            Ok(count) => {
                                held.start += count;
                                turn += count;
                                self.wrote(count, traffic);
                            }
                            Err(error) => self.gave_up(error, traffic),
                        }
                    } else if let Some(pause) = &mut self.pause {
                        // Whoever waits has everything that was read.
                        if pause.as_mut().poll(cx).is_pending() {
                            self.flush(cx, writer);
                            return Poll::Pending;
                        }
                        self.pause = None;
                    } else if turn >= TURN_BYTES {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    } else {
                        match self.read(cx, reader.as_mut(), traffic) {
                            Poll::Ready(read) => read?,
                            Poll::Pending => {
                                self.flush(cx, writer);
                                return Poll::Pending;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Ready when the program has been waited for long enough, which is never unless too many are.
    fn poll_patience(&mut self, cx: &mut Context<'_>, traffic: &Traffic<'a>) -> Poll<()> {
        if self.direction == Direction::Out {
            return Poll::Pending;
        }
        let (_, patience) = self.holding.get_or_insert_with(|| {
            let (holding, too_many) = traffic.held_up.enter();
            (holding, too_many.then(|| patience(traffic.clock)))
        });
        while let Some(over) = patience {
            ready!(over.as_mut().poll(cx));
            if traffic.held_up.are_too_many() {
                return Poll::Ready(());
            }
            *over = self::patience(traffic.clock);
        }
        Poll::Pending
    }

    fn read<R: AsyncRead + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        reader: Pin<&mut R>,
        traffic: &Traffic<'_>,
    ) -> Poll<Result<(), RelayError>> {
        let mut buffer = traffic.buffers.take();
        let mut space = ReadBuf::new(&mut buffer);
        let polled = reader.poll_read(cx, &mut space);
        let end = space.filled().len();
        match polled {
            Poll::Ready(Ok(())) if end > 0 => {
                self.held = Some(Held {
                    buffer,
                    start: 0,
                    end,
                });
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(())) => self.phase = Phase::Ending,
            Poll::Ready(Err(source)) => {
                traffic.buffers.give_back(buffer);
                return Poll::Ready(Err(RelayError {
                    side: match self.direction {
                        Direction::In => Side::Tunnel,
                        Direction::Out => Side::Local,
                    },
                    direction: self.direction,
                    source,
                }));
            }
            Poll::Pending => {
                traffic.buffers.give_back(buffer);
                return Poll::Pending;
            }
        }
        traffic.buffers.give_back(buffer);
        Poll::Ready(Ok(()))
    }

    /// After a write: counts, charges, and gives an empty buffer back.
    fn wrote(&mut self, count: usize, traffic: &Traffic<'a>) {
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        self.unflushed = true;
        traffic.passed.passed(self.direction, bytes);
        let until = traffic
            .meters
            .iter()
            .filter_map(|meter| meter.charge(self.direction, bytes, traffic.clock))
            .max();
        if let Some(until) = until {
            self.pause = Some(pause(traffic.clock, until));
        }
        if let Some(held) = self.held.take_if(|held| held.start == held.end) {
            traffic.buffers.give_back(held.buffer);
        }
    }

    fn flush<W: AsyncWrite + ?Sized>(&mut self, cx: &mut Context<'_>, writer: Pin<&mut W>) {
        if self.unflushed {
            // An error shows again at the next write.
            if writer.poll_flush(cx).is_ready() {
                self.unflushed = false;
            }
        }
    }

    /// The writing side takes no more; what was read for it is lost.
    fn gave_up(&mut self, source: io::Error, traffic: &Traffic<'_>) {
        self.refused(source);
        self.phase = Phase::Over;
        if let Some(held) = self.held.take() {
            traffic.buffers.give_back(held.buffer);
        }
    }

    fn refused(&mut self, source: io::Error) {
        self.refusal = Some(self.refusal_of(source));
    }

    const fn refusal_of(&self, source: io::Error) -> RelayError {
        RelayError {
            side: match self.direction {
                Direction::In => Side::Local,
                Direction::Out => Side::Tunnel,
            },
            direction: self.direction,
            source,
        }
    }
}

fn patience(clock: &Clock) -> Pause {
    pause(clock, clock.now().plus(HELD_UP_PATIENCE))
}

fn pause(clock: &Clock, until: Moment) -> Pause {
    let clock = clock.clone();
    Box::pin(async move { clock.sleep_until(until).await })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
