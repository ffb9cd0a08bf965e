//! Packets on a byte stream: a big-endian `u16` length and so many bytes each.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::wire::{PACKET_MAX_BYTES, PACKET_PREFIX_BYTES};

/// The frame of a packet.
pub fn frame(packet: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(packet.len()).map_err(|_| too_long())?;
    let mut frame = Vec::with_capacity(PACKET_PREFIX_BYTES + packet.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(packet);
    Ok(frame)
}

/// Whether a packet is one that can be sent at all.
pub(super) fn check_length(packet: &[u8]) -> io::Result<()> {
    if packet.len() > PACKET_MAX_BYTES {
        return Err(too_long());
    }
    Ok(())
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the packet is longer than any of UDP",
    )
}

/// A packet that is being read. What was read stays here when a future is dropped.
#[derive(Debug, Default)]
pub struct PartialPacket {
    prefix: [u8; PACKET_PREFIX_BYTES],
    content: Option<Vec<u8>>,
    filled: usize,
}

impl PartialPacket {
    /// The next packet, or nothing at the stream's end. A packet that is cut is none. Cancel safe.
    pub async fn read(&mut self, from: &mut (dyn AsyncRead + Send + Unpin)) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_read(from, cx)).await
    }

    /// The same, polled.
    pub(super) fn poll_read(
        &mut self,
        from: &mut (dyn AsyncRead + Send + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            let piece = match &mut self.content {
                None => &mut self.prefix[..],
                Some(content) => &mut content[..],
            };
            while self.filled < piece.len() {
                let mut buffer = ReadBuf::new(&mut piece[self.filled..]);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
                match buffer.filled().len() {
                    0 => return Poll::Ready(Ok(None)),
                    count => self.filled += count,
                }
            }
            self.filled = 0;
            match self.content.take() {
                Some(content) => return Poll::Ready(Ok(Some(content.into()))),
                None => self.content = Some(vec![0; u16::from_be_bytes(self.prefix).into()]),
            }
        }
    }
}
