//! Carries bytes between two streams, both ways at once, until both directions have ended, one
//! stream fails, or somebody cuts it. Knows neither what the bytes are nor whose they are.
//!
//! - Half-close is kept: an end that is read on one side is written on the other, and the opposite
//!   direction goes on.
//! - Back-pressure is kept: a direction reads again when what it holds was taken, or while there is
//!   room beside it; it never holds more than [`BUFFER_MAX_BYTES`].
//! - An idle direction costs [`BUFFER_MIN_BYTES`]; only one that fills its buffer gets the large one.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Buffer of a direction that has little to carry: a screen of a shell, the head of a request.
pub const BUFFER_MIN_BYTES: usize = 4 * 1024;

/// Buffer of a direction that is busy. Larger ones brought nothing: what is read from a tunnel
/// comes in pieces of a packet, and what is read from a socket in pieces of its own buffer.
pub const BUFFER_MAX_BYTES: usize = 64 * 1024;

/// Reads in a row that must have been small before a large buffer is given back.
const SMALL_READS: u8 = 64;

/// Times that a direction may read and write before other tasks have their turn: not every transport
/// counts by itself, and a cut must be seen.
const ROUNDS_MAX: u8 = 32;

/// How long the other direction may go on when one side takes no more: what was sent before is on
/// its way, and a program that answers and hangs up is heard to the end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Bytes that have passed, one count a direction. Read while it runs.
#[derive(Debug, Default)]
pub struct Passed {
    /// Written into the counted stream.
    written: AtomicU64,
    /// Read from it.
    read: AtomicU64,
}

impl Passed {
    /// Bytes that went into the counted stream so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that came from it so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A stream that counts what passes through it.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    passed: Arc<Passed>,
}

impl<S> Counted<S> {
    /// Counts from zero, or on where `passed` stands.
    pub const fn new(stream: S, passed: Arc<Passed>) -> Self {
        Self { stream, passed }
    }
}

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd<C> {
    /// Both directions came to their end.
    Finished,
    /// Somebody cut it, with these words.
    Cut(C),
    /// The left stream failed.
    Left(io::Error),
    /// The right stream failed.
    Right(io::Error),
}

/// Carries bytes until one of the ends of [`RelayEnd`]. Both streams are dropped with it: what was
/// not ended before is aborted.
pub async fn relay<L, R, C>(left: L, right: R, cut: impl Future<Output = C>) -> RelayEnd<C>
where
    L: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let mut both = Both {
        left,
        right,
        out: Direction::new(),
        back: Direction::new(),
        last_words: None,
    };
    tokio::select! {
        biased;
        words = cut => RelayEnd::Cut(words),
        end = poll_fn(|cx| both.poll(cx)) => match end {
            End::Finished => RelayEnd::Finished,
            End::Left(error) => RelayEnd::Left(error),
            End::Right(error) => RelayEnd::Right(error),
        },
    }
}

enum End {
    Finished,
    Left(io::Error),
    Right(io::Error),
}

struct Both<L, R> {
    left: L,
    right: R,
    /// From left to right.
    out: Direction,
    /// From right to left.
    back: Direction,
    /// Runs once one side takes no more.
    last_words: Option<Pin<Box<Sleep>>>,
}

impl<L, R> Both<L, R>
where
    L: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Err(error) = self.out.advance(cx, &mut self.left, &mut self.right) {
            return Poll::Ready(End::Left(error));
        }
        if let Err(error) = self.back.advance(cx, &mut self.right, &mut self.left) {
            return Poll::Ready(End::Right(error));
        }
        let over = self.out.is_over() && self.back.is_over();
        if !over {
            if !(self.out.is_dead() || self.back.is_dead()) {
                return Poll::Pending;
            }
            let last_words = self
                .last_words
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS)));
            ready!(last_words.as_mut().poll(cx));
        }
        // Who takes no more is the one that failed.
        Poll::Ready(match (self.out.failure(), self.back.failure()) {
            (Some(error), _) => End::Right(error),
            (None, Some(error)) => End::Left(error),
            (None, None) => End::Finished,
        })
    }
}

/// One direction: a buffer and how far it is.
struct Direction {
    buffer: Box<[u8]>,
    /// What was read and not yet written lies between these.
    start: usize,
    end: usize,
    /// Whether something was written that may still be held back.
    unflushed: bool,
    small_reads: u8,
    phase: Phase,
}

enum Phase {
    Carrying,
    /// The reading side has ended; what is left is written, then the end.
    Ending,
    Ended,
    /// The writing side takes no more.
    Dead(Option<io::Error>),
}

impl Direction {
    fn new() -> Self {
        Self {
            buffer: buffer_of(BUFFER_MIN_BYTES),
            start: 0,
            end: 0,
            unflushed: false,
            small_reads: 0,
            phase: Phase::Carrying,
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Dead(_))
    }

    const fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead(_))
    }

    fn failure(&mut self) -> Option<io::Error> {
        match &mut self.phase {
            Phase::Dead(error) => error.take(),
            Phase::Carrying | Phase::Ending | Phase::Ended => None,
        }
    }

    /// Goes on as far as both streams let it. An error is the reader's; the writer's is kept in the
    /// phase, because the other direction may have more to say.
    fn advance<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS_MAX {
            let read = self.read(cx, reader)?;
            let wrote = match self.write(cx, writer) {
                Ok(wrote) => wrote,
                Err(error) => {
                    self.phase = Phase::Dead(Some(error));
                    return Ok(());
                }
            };
            if !(read || wrote) {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Fills what room there is. Whether anything came.
    fn read<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> io::Result<bool> {
        if !matches!(self.phase, Phase::Carrying) || self.end == self.buffer.len() {
            return Ok(false);
        }
        let room = self.buffer.len() - self.end;
        let mut into = ReadBuf::new(&mut self.buffer[self.end..]);
        match Pin::new(reader).poll_read(cx, &mut into) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => {
                let count = into.filled().len();
                self.end += count;
                if count == 0 {
                    self.phase = Phase::Ending;
                }
                self.small_reads = if count > BUFFER_MIN_BYTES {
                    0
                } else {
                    self.small_reads.saturating_add(1)
                };
                if count == room {
                    self.grow();
                }
                Ok(true)
            }
        }
    }

    /// Writes what there is, and the end when it is time. Whether anything went.
    fn write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> io::Result<bool> {
        let mut writer = Pin::new(writer);
        let mut went = false;
        while self.start < self.end {
            match writer.as_mut().poll_write(cx, &self.buffer[self.start..self.end]) {
                Poll::Pending => return Ok(went),
                Poll::Ready(count) => match count? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count => {
                        self.start += count;
                        self.unflushed = true;
                        went = true;
                    }
                },
            }
        }
        self.start = 0;
        self.end = 0;
        self.shrink();
        match self.phase {
            // More may be there at once: what is flushed too often leaves in small pieces.
            Phase::Carrying if went => {}
            Phase::Carrying if self.unflushed => {
                if let Poll::Ready(flushed) = writer.poll_flush(cx) {
                    flushed?;
                    self.unflushed = false;
                }
            }
            Phase::Ending => {
                if let Poll::Ready(ended) = writer.poll_shutdown(cx) {
                    ended?;
                    self.phase = Phase::Ended;
                }
            }
            Phase::Carrying | Phase::Ended | Phase::Dead(_) => {}
        }
        Ok(went)
    }

    fn grow(&mut self) {
        if self.buffer.len() < BUFFER_MAX_BYTES {
            let mut larger = buffer_of(BUFFER_MAX_BYTES);
            larger[..self.end].copy_from_slice(&self.buffer[..self.end]);
            self.buffer = larger;
        }
    }

    /// Only while it is empty.
    fn shrink(&mut self) {
        if self.small_reads >= SMALL_READS && self.buffer.len() > BUFFER_MIN_BYTES {
            self.buffer = buffer_of(BUFFER_MIN_BYTES);
        }
    }
}

fn buffer_of(bytes: usize) -> Box<[u8]> {
    vec![0; bytes].into_boxed_slice()
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        count(&self.passed.read, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        count(&self.passed.written, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[allow(clippy::disallowed_methods, reason = "tests have no supervisor")]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Two streams with a relay between them: what the test holds of each.
    fn between(room: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<RelayEnd<()>>) {
        let (left, near) = duplex(room);
        let (right, far) = duplex(room);
        (near, far, tokio::spawn(relay(left, right, pending())))
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn both_directions_arrive_whole_through_any_size_of_room() {
        for room in [1, 7, 4_096, 100_000] {
            let (mut near, mut far, relay) = between(room);
            let sent = content(if room < 100 { 20_000 } else { 500_000 });
            let (one, other) = (sent.clone(), sent.clone());
            let asks = async {
                near.write_all(&one).await.unwrap();
                near.shutdown().await.unwrap();
                near
            };
            let answers = async {
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.unwrap();
                (got, far)
            };
            let (mut near, (got, mut far)) = tokio::join!(asks, answers);
            assert!(got == sent, "room {room}");
            // The half that is left still works, after the first has ended.
            let mut back = Vec::new();
            let answer = async {
                far.write_all(&other).await.unwrap();
                far.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(near.read_to_end(&mut back), answer);
            read.unwrap();
            assert!(back == sent, "room {room}");
            assert!(matches!(relay.await.unwrap(), RelayEnd::Finished));
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_writer() {
        let (mut near, _far, _relay) = between(1_024);
        let sent = content(1_024 * 1_024);
        let mut written = 0;
        let fill = async {
            loop {
                written += near.write(&sent).await.unwrap();
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(300), fill)
                .await
                .is_err()
        );
        assert!(
            written <= BUFFER_MAX_BYTES + 2 * 1_024,
            "{written} bytes are held"
        );
    }

    #[tokio::test]
    async fn a_small_write_is_not_kept_back() {
        // A buffered writer hands its bytes on only when it is flushed.
        let (left, mut near) = duplex(64);
        let (right, mut far) = duplex(64);
        let relay = tokio::spawn(relay(left, tokio::io::BufWriter::new(right), pending::<()>()));
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        drop((near, far));
        relay.await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_ends_it_in_the_middle() {
        let (left, mut near) = duplex(64);
        let (right, far) = duplex(64);
        let (cut, cuts) = tokio::sync::oneshot::channel();
        let relay = tokio::spawn(relay(left, right, cuts));
        near.write_all(b"half a sent").await.unwrap();
        cut.send("enough").unwrap();
        assert!(matches!(relay.await.unwrap(), RelayEnd::Cut(Ok("enough"))));
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    }

    /// Reads what it is given, and fails every write.
    struct Deaf(DuplexStream);

    impl AsyncRead for Deaf {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn who_answers_and_hangs_up_is_heard_to_the_end() {
        let (left, mut near) = duplex(64);
        let (right, mut far) = duplex(64);
        let relay = tokio::spawn(relay(left, Deaf(right), pending::<()>()));
        near.write_all(b"a request that nobody reads").await.unwrap();
        let answer = content(10_000);
        let answers = async {
            far.write_all(&answer).await.unwrap();
            drop(far);
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(near.read_to_end(&mut got), answers);
        read.unwrap();
        assert!(got == answer);
        assert!(
            matches!(relay.await.unwrap(), RelayEnd::Right(error) if error.kind() == io::ErrorKind::BrokenPipe)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_no_more_and_says_nothing_is_not_waited_for() {
        let (left, mut near) = duplex(64);
        let (right, _far) = duplex(64);
        let relay = tokio::spawn(relay(left, Deaf(right), pending::<()>()));
        near.write_all(b"x").await.unwrap();
        assert!(matches!(relay.await.unwrap(), RelayEnd::Right(_)));
    }

    #[tokio::test]
    async fn what_passes_is_counted_while_it_runs() {
        let passed = Arc::new(Passed::default());
        let (mut far, stream) = duplex(64);
        let mut counted = Counted::new(stream, Arc::clone(&passed));
        counted.write_all(b"four").await.unwrap();
        far.write_all(b"threes").await.unwrap();
        counted.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!((passed.written(), passed.read()), (4, 6));
    }

    #[test]
    fn a_busy_buffer_is_given_back_when_it_is_not_needed() {
        let mut direction = Direction::new();
        direction.end = direction.buffer.len();
        direction.grow();
        assert_eq!(direction.buffer.len(), BUFFER_MAX_BYTES);
        direction.end = 0;
        direction.small_reads = SMALL_READS;
        direction.shrink();
        assert_eq!(direction.buffer.len(), BUFFER_MIN_BYTES);
    }
}
