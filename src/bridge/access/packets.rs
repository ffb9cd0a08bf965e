//! Packets of a service that speaks UDP, for a client that holds a byte stream: frames of a length
//! and so many bytes on the client's side, a flow on the satellite's.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::Hold;
use crate::base::id::TraceId;
use crate::tunnel::Flow;
use crate::tunnel::packet::{PartialPacket, frame};
use crate::tunnel::relay::RelayEnd;

/// Time for a client's last packets to leave.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// A flow to a service, and its place in the table.
#[derive(Debug)]
pub struct ServiceFlow {
    flow: Flow,
    hold: Hold,
}

impl ServiceFlow {
    pub(super) const fn new(flow: Flow, hold: Hold) -> Self {
        Self { flow, hold }
    }

    /// The access's id.
    pub fn id(&self) -> TraceId {
        self.hold.id()
    }

    /// Carries packets until the client hangs up, the flow ends, or the access must. A client that does
    /// not read loses the oldest packets.
    pub async fn carry<C>(self, client: C)
    where
        C: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Self { flow, mut hold } = self;
        let passed = hold.passed();
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let up = async {
            let mut packet = PartialPacket::default();
            loop {
                match packet.read(&mut from_client).await {
                    Ok(Some(packet)) => match flow.send(&packet).await {
                        Ok(()) => passed.count_written(packet.len()),
                        Err(error) => return RelayEnd::Right(error),
                    },
                    Ok(None) => return RelayEnd::Finished,
                    Err(error) => return RelayEnd::Left(error),
                }
            }
        };
        let down = async {
            while let Some(packet) = flow.recv().await {
                passed.count_read(packet.len());
                if let Err(error) = send(&mut to_client, &packet).await {
                    return RelayEnd::Left(error);
                }
            }
            match flow.farewell().heard() {
                Some(why) => RelayEnd::Right(io::Error::other(why)),
                None => RelayEnd::Finished,
            }
        };
        let end = tokio::select! {
            biased;
            words = hold.must_end() => RelayEnd::Cut(words),
            end = up => end,
            end = down => end,
        };
        // What the client has sent last is still delivered, unless the satellite takes nothing.
        if matches!(end, RelayEnd::Finished) {
            let _ = timeout(FINISH_TIMEOUT, flow.finish()).await;
        }
        hold.close(end).await;
    }

    pub(super) fn into_hold(self) -> Hold {
        self.hold
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), packet: &[u8]) -> io::Result<()> {
    to.write_all(&frame(packet)?).await?;
    to.flush().await
}
