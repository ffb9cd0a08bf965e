//! Frames (`wire`) on byte streams: read whole or not at all, in pieces of any size, never a byte
//! beyond the frame.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};

use crate::wire::{FrameTooLong, frame_length};

/// Bytes of a frame's length.
const PREFIX_BYTES: usize = 2;

/// Why no frame could be read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The stream ended where a frame could have begun.
    #[error("the other side ended the stream")]
    Ended,
    /// The stream ended inside a frame.
    #[error("the other side ended the stream in the middle of a message")]
    Cut,
    /// The frame is longer than any of ours.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
    /// The stream failed.
    #[error("the stream was aborted")]
    Stream(#[source] io::Error),
}

/// The frame that is being read. What was read stays here when the future is dropped, so reading
/// goes on where it was.
#[derive(Debug)]
pub(super) struct PartialFrame {
    /// As long as what is to be read next: the length, then the content.
    bytes: Vec<u8>,
    filled: usize,
    in_content: bool,
}

impl PartialFrame {
    /// Nothing read yet.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; PREFIX_BYTES],
            filled: 0,
            in_content: false,
        }
    }

    /// The content of the next frame. Cancel safe.
    pub(super) async fn read(
        &mut self,
        from: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Vec<u8>, FrameError> {
        poll_fn(|cx| self.poll_read(from, cx)).await
    }

    /// The same, polled.
    pub(super) fn poll_read(
        &mut self,
        from: &mut (dyn AsyncRead + Send + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<u8>, FrameError>> {
        loop {
            while self.filled < self.bytes.len() {
                let mut buffer = ReadBuf::new(&mut self.bytes[self.filled..]);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer)).map_err(FrameError::Stream)?;
                match buffer.filled().len() {
                    0 if self.filled == 0 && !self.in_content => return Poll::Ready(Err(FrameError::Ended)),
                    0 => return Poll::Ready(Err(FrameError::Cut)),
                    count => self.filled += count,
                }
            }
            if self.in_content {
                return Poll::Ready(Ok(std::mem::replace(self, Self::new()).bytes));
            }
            let &[high, low] = self.bytes.as_slice() else {
                return Poll::Ready(Err(FrameError::Cut));
            };
            self.bytes = vec![0; frame_length([high, low])?];
            self.filled = 0;
            self.in_content = true;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{ControlMessage, FRAME_MAX_BYTES};

    #[tokio::test]
    async fn frames_are_read_from_pieces_without_a_byte_too_much() {
        let mut bytes = ControlMessage::Ping(300).encode().unwrap();
        bytes.extend(ControlMessage::Pong(1).encode().unwrap());
        bytes.push(0);
        let mut pieces = in_pieces(bytes.iter().map(|byte| vec![*byte]).collect());
        let mut frame = PartialFrame::new();
        let first = frame.read(&mut pieces).await.unwrap();
        assert_eq!(
            ControlMessage::decode(&first),
            Ok(Some(ControlMessage::Ping(300)))
        );
        let second = frame.read(&mut pieces).await.unwrap();
        assert_eq!(ControlMessage::decode(&second), Ok(Some(ControlMessage::Pong(1))));
        assert!(matches!(frame.read(&mut pieces).await, Err(FrameError::Cut)));
    }

    #[tokio::test]
    async fn an_end_between_frames_is_told_from_one_inside() {
        let mut nothing: &[u8] = &[];
        assert!(matches!(
            PartialFrame::new().read(&mut nothing).await,
            Err(FrameError::Ended)
        ));
        let mut no_content: &[u8] = &[0, 1];
        assert!(matches!(
            PartialFrame::new().read(&mut no_content).await,
            Err(FrameError::Cut)
        ));
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_any_content() {
        let too_long = u16::try_from(FRAME_MAX_BYTES + 1).unwrap().to_be_bytes();
        let mut bytes: &[u8] = &too_long;
        assert!(matches!(
            PartialFrame::new().read(&mut bytes).await,
            Err(FrameError::TooLong(FrameTooLong { bytes: 4_097 }))
        ));
    }

    /// Hands its pieces out one per read.
    fn in_pieces(pieces: Vec<Vec<u8>>) -> impl AsyncRead + Send + Unpin {
        struct Pieces(std::vec::IntoIter<Vec<u8>>);
        impl AsyncRead for Pieces {
            fn poll_read(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                if let Some(piece) = self.0.next() {
                    buffer.put_slice(&piece);
                }
                Poll::Ready(Ok(()))
            }
        }
        Pieces(pieces.into_iter())
    }
}
