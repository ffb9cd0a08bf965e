//! The bytes between yamux and the TLS session, frame by frame. Some things are done here that
//! yamux does not do well enough for a tunnel:
//!
//! - A frame leaves as one TLS record; yamux writes head and body apart.
//! - Reading has its turn. Yamux reads when there is nothing to write or no room for it, and between writers that
//!   are quick and a socket that takes all, neither happens: then even the other side's windows are not heard of.
//! - Pings are answered here. Yamux reads nothing while an answer waits for room to be written, so
//!   two busy sides that ping each other at once could stand still for ever.
//! - After a failed write the other side's last word is still read: it says why.
//! - A reset takes the reason along that its half has left in [`Ends`](super::ends::Ends).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;
use crate::wire::StreamEnd;

/// Bytes of a yamux frame's head.
pub(super) const HEAD_BYTES: usize = 12;

/// Byte of the head that says what the frame is, and three of its values.
const TYPE_AT: usize = 1;
const TYPE_DATA: u8 = 0;
const TYPE_WINDOW_UPDATE: u8 = 1;
const TYPE_PING: u8 = 2;

/// Where the head's stream begins, and where its last field does, big-endian both.
const STREAM_AT: usize = 4;
const VALUE_AT: usize = 8;

/// Low byte of the head's flags, and three of them.
const FLAGS_AT: usize = 3;
const FLAG_SYN: u8 = 1;
const FLAG_ACK: u8 = 2;
const FLAG_RST: u8 = 8;

/// Frames that leave before what has come is looked at: as many as one window update stands for, and few enough
/// for the runtime, which lets a task go on for 128 operations of its sockets and then takes them for blocked.
const TURN_FRAMES: u8 = 8;

/// Follows one direction's frames.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    head_filled: usize,
    body_left: usize,
}

impl Frames {
    /// How many of the next bytes belong to the same piece, a head or a body.
    fn piece_left(&self) -> usize {
        match self.body_left {
            0 => HEAD_BYTES - self.head_filled,
            left => left,
        }
    }

    /// Takes bytes of one piece. Whether they ended a frame's head.
    fn advance(&mut self, bytes: &[u8]) -> bool {
        if self.body_left > 0 {
            self.body_left = self.body_left.saturating_sub(bytes.len());
            return false;
        }
        let end = (self.head_filled + bytes.len()).min(HEAD_BYTES);
        let count = end - self.head_filled;
        self.head[self.head_filled..end].copy_from_slice(&bytes[..count]);
        self.head_filled = end;
        if self.head_filled < HEAD_BYTES {
            return false;
        }
        self.head_filled = 0;
        if self.head[TYPE_AT] == TYPE_DATA {
            let (_, length) = self.stream_and_value();
            self.body_left = usize::try_from(length).unwrap_or(usize::MAX);
        }
        true
    }

    /// Whether the last head is of a frame that waits for an answer.
    fn is_ping(&self) -> bool {
        self.head[TYPE_AT] == TYPE_PING && self.head[FLAGS_AT] & FLAG_ACK == 0
    }

    fn is_reset(&self) -> bool {
        let resets = self.head[FLAGS_AT] & FLAG_RST != 0;
        resets && matches!(self.head[TYPE_AT], TYPE_DATA | TYPE_WINDOW_UPDATE)
    }

    /// The head's stream, and its last field: of a body the length, of a window update the credit.
    fn stream_and_value(&self) -> (u32, u32) {
        let field = |at: usize| {
            let bytes = self.head[at..].first_chunk().copied();
            bytes.map_or(0, u32::from_be_bytes)
        };
        (field(STREAM_AT), field(VALUE_AT))
    }

    fn between_frames(&self) -> bool {
        self.head_filled == 0 && self.body_left == 0
    }
}

/// The TLS session as yamux sees it.
#[derive(Debug)]
pub(super) struct Link<T> {
    tls: T,
    shared: Arc<Shared>,
    reading: Frames,
    /// A head that was read and that yamux has not taken: the bytes from `head_taken` on.
    head_taken: usize,
    writing: Frames,
    /// A frame on its way out, as far as yamux has given it.
    frame: Vec<u8>,
    written: usize,
    /// Content in it.
    content: usize,
    /// Frames that have left since reading had its turn.
    turn: u8,
    /// At most one: a peer that floods pings gets the last answered.
    pong: Option<[u8; HEAD_BYTES]>,
    broken: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Link<T> {
    pub(super) fn new(tls: T, shared: Arc<Shared>) -> Self {
        Self {
            tls,
            shared,
            reading: Frames::default(),
            head_taken: HEAD_BYTES,
            writing: Frames::default(),
            frame: Vec::new(),
            written: 0,
            content: 0,
            turn: 0,
            pong: None,
            broken: false,
        }
    }

    /// Writes what is ready: a whole frame, then an answer to a ping.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.writing.between_frames() {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.frame.len() {
                match ready!(Pin::new(&mut self.tls).poll_write(cx, &self.frame[self.written..])) {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(count) => self.written += count,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            self.frame.clear();
            self.written = 0;
            let content = std::mem::take(&mut self.content);
            if content > 0 {
                self.shared.gate.left(content);
            }
            match self.pong.take() {
                Some(pong) => self.frame.extend_from_slice(&pong),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>, flush: bool) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Pending;
        }
        let written = match self.poll_drain(cx) {
            Poll::Ready(Ok(())) if flush => Pin::new(&mut self.tls).poll_flush(cx),
            other => other,
        };
        if let Poll::Ready(Err(error)) = written {
            // What the other side said before it closed is still to be read, and if nothing is,
            // reading fails as well.
            tracing::debug!(%error, "a tunnel's TCP connection takes no more");
            self.broken = true;
            return Poll::Pending;
        }
        written
    }

    /// Reads into the head until it is whole; `Ready(false)` at the connection's end.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let mut bytes = [0; HEAD_BYTES];
            let wanted = self.reading.piece_left();
            let count = ready!(self.poll_tls(cx, &mut bytes[..wanted]))?;
            if count == 0 {
                return Poll::Ready(Ok(false));
            }
            if !self.reading.advance(&bytes[..count]) {
                continue;
            }
            if !self.reading.is_ping() {
                self.hear_reset();
                self.head_taken = 0;
                return Poll::Ready(Ok(true));
            }
            let mut pong = self.reading.head;
            pong[FLAGS_AT] = (pong[FLAGS_AT] & !FLAG_SYN) | FLAG_ACK;
            self.pong = Some(pong);
            // Registers the waker where there is no room now.
            let _ = self.poll_out(cx, true);
        }
    }

    /// Before yamux learns of a reset that has come, and with it the stream's half.
    fn hear_reset(&self) {
        if self.reading.is_reset() && self.reading.head[TYPE_AT] == TYPE_WINDOW_UPDATE {
            let (stream, code) = self.reading.stream_and_value();
            self.shared.ends.hear(stream, StreamEnd::from_code(code.into()));
        }
    }

    /// Gives a reset, whose head is the last of the frame that leaves, the reason.
    fn reason_of_reset(&mut self) {
        if !(self.writing.is_reset() && self.writing.body_left == 0) {
            return;
        }
        let (stream, _) = self.writing.stream_and_value();
        if let (Some(why), Some(head)) = (
            self.shared.ends.take_said(stream),
            self.frame.last_chunk_mut::<HEAD_BYTES>(),
        ) {
            head[TYPE_AT] = TYPE_WINDOW_UPDATE;
            head[VALUE_AT..].copy_from_slice(&why.code().to_be_bytes());
        }
    }

    fn poll_tls(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.tls).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        if count > 0 {
            self.shared.arrivals.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures_io::AsyncRead for Link<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let link = &mut *self;
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if link.head_taken == HEAD_BYTES {
            match link.reading.body_left {
                0 => {
                    if !ready!(link.poll_head(cx))? {
                        return Poll::Ready(Ok(0));
                    }
                }
                left => {
                    let wanted = left.min(buffer.len());
                    let count = ready!(link.poll_tls(cx, &mut buffer[..wanted]))?;
                    link.reading.advance(&buffer[..count]);
                    return Poll::Ready(Ok(count));
                }
            }
        }
        let count = buffer.len().min(HEAD_BYTES - link.head_taken);
        let end = link.head_taken + count;
        buffer[..count].copy_from_slice(&link.reading.head[link.head_taken..end]);
        link.head_taken = end;
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures_io::AsyncWrite for Link<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let link = &mut *self;
        if link.writing.between_frames() {
            if link.turn == TURN_FRAMES {
                link.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(link.poll_out(cx, false))?;
            link.turn += 1;
        }
        let in_body = link.writing.body_left > 0;
        let count = bytes.len().min(link.writing.piece_left());
        let taken = &bytes[..count];
        link.frame.extend_from_slice(taken);
        if link.writing.advance(taken) {
            link.reason_of_reset();
        }
        if in_body {
            link.content += count;
        }
        // Registers the waker where there is no room now.
        let _ = link.poll_out(cx, false);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx, true)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx, true))?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use futures_io::{AsyncRead as _, AsyncWrite as _};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PING: [u8; HEAD_BYTES] = [0, TYPE_PING, 0, FLAG_SYN, 0, 0, 0, 0, 1, 2, 3, 4];
    const PONG: [u8; HEAD_BYTES] = [0, TYPE_PING, 0, FLAG_ACK, 0, 0, 0, 0, 1, 2, 3, 4];

    fn data(content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        let head = [0, TYPE_DATA, 0, 0, 0, 0, 0, 1];
        [&head[..], &length[..], content].concat()
    }

    async fn write(link: &mut Link<tokio::io::DuplexStream>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| Pin::new(&mut *link).poll_write(cx, bytes))
                .await
                .unwrap();
            bytes = &bytes[count..];
        }
    }

    async fn read(link: &mut Link<tokio::io::DuplexStream>, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            let read = poll_fn(|cx| Pin::new(&mut *link).poll_read(cx, &mut bytes[filled..]));
            let read = tokio::time::timeout(std::time::Duration::from_secs(20), read);
            filled += read.await.unwrap().unwrap();
        }
        bytes
    }

    #[tokio::test]
    async fn pings_are_answered_between_frames_and_not_shown() {
        let (near, mut far) = tokio::io::duplex(1_024);
        let mut link = Link::new(near, Arc::default());
        let mut incoming = data(b"one");
        incoming.extend(PING);
        incoming.extend(PONG);
        incoming.extend(data(b"two"));
        // Half of a frame of ours is on its way meanwhile.
        let ours = data(b"our own");
        write(&mut link, &ours[..HEAD_BYTES + 3]).await;
        far.write_all(&incoming).await.unwrap();
        let expected = [&data(b"one")[..], &PONG, &data(b"two")].concat();
        assert_eq!(read(&mut link, expected.len()).await, expected);
        write(&mut link, &ours[HEAD_BYTES + 3..]).await;
        poll_fn(|cx| Pin::new(&mut link).poll_flush(cx)).await.unwrap();
        let mut written = vec![0; ours.len() + HEAD_BYTES];
        far.read_exact(&mut written).await.unwrap();
        assert_eq!(written, [&ours[..], &PONG].concat());
    }

    #[tokio::test]
    async fn what_leaves_is_counted_at_the_gate_in_pieces_of_any_size() {
        let shared = Arc::new(Shared::default());
        let (near, mut far) = tokio::io::duplex(1_024);
        let mut link = Link::new(near, Arc::clone(&shared));
        let content = [5; 500];
        shared
            .gate
            .entered(super::super::gate::GATE_BYTES + content.len() - 1);
        for piece in data(&content).chunks(7) {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(shared.gate.poll_enter(1, 1, &mut cx).is_pending());
            write(&mut link, piece).await;
        }
        poll_fn(|cx| Pin::new(&mut link).poll_flush(cx)).await.unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(shared.gate.poll_enter(1, 1, &mut cx).is_ready());
        let mut written = vec![0; HEAD_BYTES + content.len()];
        far.read_exact(&mut written).await.unwrap();
        assert_eq!(written, data(&content));
    }

    /// Yamux' own reset, and the same with a reason, as they stand on the wire.
    const RESET: [u8; HEAD_BYTES] = [0, TYPE_DATA, 0, FLAG_RST, 0, 0, 0, 5, 0, 0, 0, 0];
    const REVOKED: [u8; HEAD_BYTES] = [0, TYPE_WINDOW_UPDATE, 0, FLAG_RST, 0, 0, 0, 5, 0, 0, 0, 2];

    #[tokio::test]
    async fn golden_bytes_of_a_reset_with_and_without_a_reason() {
        let shared = Arc::new(Shared::default());
        let (near, mut far) = tokio::io::duplex(1_024);
        let mut link = Link::new(near, Arc::clone(&shared));
        shared.ends.say(5, StreamEnd::GrantRevoked);
        for piece in [&data(b"one")[..], &RESET, &RESET].concat().chunks(7) {
            write(&mut link, piece).await;
        }
        poll_fn(|cx| Pin::new(&mut link).poll_flush(cx)).await.unwrap();
        let expected = [&data(b"one")[..], &REVOKED, &RESET].concat();
        let mut written = vec![0; expected.len()];
        far.read_exact(&mut written).await.unwrap();
        assert_eq!(written, expected);
        // And back: yamux sees what came, and the reason is there before.
        far.write_all(&REVOKED).await.unwrap();
        assert_eq!(read(&mut link, HEAD_BYTES).await, REVOKED);
        assert_eq!(shared.ends.take_heard(5), StreamEnd::GrantRevoked);
        far.write_all(&RESET).await.unwrap();
        assert_eq!(read(&mut link, HEAD_BYTES).await, RESET);
        assert_eq!(shared.ends.take_heard(5), StreamEnd::Abandoned);
    }

    #[tokio::test]
    async fn after_a_failed_write_the_last_word_is_still_read() {
        let (near, mut far) = tokio::io::duplex(1_024);
        far.write_all(&data(b"the reason")).await.unwrap();
        drop(far);
        let mut link = Link::new(near, Arc::default());
        write(&mut link, &data(b"lost")).await;
        let flushed = poll_fn(|cx| Poll::Ready(Pin::new(&mut link).poll_flush(cx))).await;
        assert!(flushed.is_pending());
        assert_eq!(read(&mut link, HEAD_BYTES + 10).await, data(b"the reason"));
    }
}
