//! One question and its answer over UDP, with the gateway and nobody else: the socket is connected,
//! so the kernel drops what comes from other hosts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::pcp::PACKET_MAX_BYTES;

/// Waits for an answer, one after each sending: the beginning of what the protocols ask for
/// (250 ms, doubled). A router in the same house answers within milliseconds.
const WAITS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Datagrams that are read for one question, in number. More than a few are no answers.
const ANSWERS_MAX: usize = 64;

/// Sends until something comes that `read` takes for the answer; `None` when nothing does.
pub(super) async fn ask<T>(
    local: IpAddr,
    server: SocketAddr,
    question: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = [0; PACKET_MAX_BYTES + 1];
    let mut answers = 0;
    for wait in WAITS {
        socket.send(question).await?;
        let answer = async {
            while answers < ANSWERS_MAX {
                let length = socket.recv(&mut buffer).await?;
                answers += 1;
                if let Some(answer) = read(&buffer[..length]) {
                    return Ok(answer);
                }
            }
            Err(io::Error::other("too much that is no answer"))
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(answer)) => return Ok(Some(answer)),
            // Port unreachable: nobody is there, and nobody will be in a second.
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(None)
}
