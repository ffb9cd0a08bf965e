//! `forward --udp`: packets that come to a port of this machine go to a service of a satellite, those
//! of each client on a flow of their own, which ends when nothing has passed for a while.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use powernode_satellite::base::limit::error_chain;
use powernode_satellite::cli::bridge_client::{BridgeClient, BridgeStream, SessionFate};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::supervisor::TaskScope;
use powernode_satellite::tunnel::packet::{PartialPacket, frame};
use powernode_satellite::wire::PACKET_MAX_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use crate::arguments::ForwardArguments;
use crate::complaints::Complaints;
use crate::reach::complain;

/// Clients that are served at once; packets of further ones are dropped. A resolver asks from a new
/// port each time, so some hundred a minute are one busy program.
const CLIENTS_MAX: usize = 1_024;

/// Time without a packet, either way, after which a client's flow ends: what routers give UDP at
/// least (RFC 4787 asks for two minutes, many have one).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Packets of a client that wait, in number, while its flow opens or cannot go on; further ones are
/// dropped.
const WAITING_PACKETS: usize = 64;

/// Pause after the system could not give a packet.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
pub async fn serve(socket: UdpSocket, client: BridgeClient, scope: &TaskScope, arguments: &ForwardArguments) {
    let socket = Arc::new(socket);
    let teller = Arc::new(Teller::new());
    let mut clients: BTreeMap<SocketAddr, mpsc::Sender<Bytes>> = BTreeMap::new();
    let mut buffer = vec![0; PACKET_MAX_BYTES];
    loop {
        let (packet, from) = match socket.recv_from(&mut buffer).await {
            Ok((count, from)) => (Bytes::copy_from_slice(&buffer[..count]), from),
            // A client that is gone answers with ICMP, which shows here: nobody else is hurt by it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                teller.lost("a packet could not be taken", &error.to_string());
                tokio::time::sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        let packet = match clients.get(&from).map(|waiting| waiting.try_send(packet.clone())) {
            Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => continue,
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => packet,
        };
        clients.retain(|_, waiting| !waiting.is_closed());
        if clients.len() >= CLIENTS_MAX {
            teller.lost(
                &format!("packets of {from}"),
                &format!("more than {CLIENTS_MAX} clients at once; those of further ones are dropped"),
            );
            continue;
        }
        let (waiting, packets) = mpsc::channel(WAITING_PACKETS);
        // It was made with room.
        let _ = waiting.try_send(packet);
        clients.insert(from, waiting);
        let (socket, teller, client) = (Arc::clone(&socket), Arc::clone(&teller), client.clone());
        let (peer, service) = (arguments.peer.clone(), arguments.service.clone());
        scope.spawn("forward", async move {
            let carried = async {
                let opened = client.open_packets(&peer, &service).await;
                let remote = opened.map_err(|error| error_chain(&error))?;
                teller.opened();
                carry(&socket, from, packets, &client, remote).await
            };
            if let Err(why) = carried.await {
                teller.lost(&format!("packets of {from}"), &why);
            }
        });
    }
}

/// Says on standard error what is news.
struct Teller {
    clock: Clock,
    complaints: Mutex<Complaints>,
}

impl Teller {
    fn new() -> Self {
        Self {
            clock: Clock::start(BUILD_TIME),
            complaints: Mutex::default(),
        }
    }

    fn lost(&self, what: &str, why: &str) {
        if self.complaints().is_news(why, self.clock.now()) {
            complain(&format!("{what}: {why}"));
        }
    }

    fn opened(&self) {
        if self.complaints().is_over() {
            complain("packets get through again");
        }
    }

    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        // Each change of it is whole.
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn carry(
    socket: &UdpSocket,
    from: SocketAddr,
    packets: mpsc::Receiver<Bytes>,
    client: &BridgeClient,
    remote: BridgeStream,
) -> Result<(), String> {
    let session = remote.session;
    let (read, write) = tokio::io::split(remote.io);
    let alive = Notify::new();
    let ended = tokio::select! {
        ended = up(packets, write, &alive) => ended,
        ended = down(read, socket, from, &alive) => ended,
        () = idle(&alive) => return Ok(()),
    };
    match (ended, client.fate_of(&session).await) {
        (_, SessionFate::Broken(why)) => Err(why),
        (_, SessionFate::BridgeGone) => Err("the host-bridge was stopped or restarted".to_owned()),
        (Err(error), SessionFate::Unknown | SessionFate::Open) => Err(error.to_string()),
        (_, SessionFate::Done) | (Ok(()), SessionFate::Unknown | SessionFate::Open) => Ok(()),
    }
}

async fn up(
    mut packets: mpsc::Receiver<Bytes>,
    mut write: impl AsyncWrite + Unpin,
    alive: &Notify,
) -> io::Result<()> {
    while let Some(packet) = packets.recv().await {
        write.write_all(&frame(&packet)?).await?;
        write.flush().await?;
        alive.notify_one();
    }
    Ok(())
}

async fn down(
    mut read: impl AsyncRead + Send + Unpin,
    socket: &UdpSocket,
    from: SocketAddr,
    alive: &Notify,
) -> io::Result<()> {
    let mut packet = PartialPacket::default();
    while let Some(packet) = packet.read(&mut read).await? {
        // A client that is gone, or a packet too large for the way to it: the next may do.
        let _ = socket.send_to(&packet, from).await;
        alive.notify_one();
    }
    Ok(())
}

/// Returns when nothing was heard of for [`IDLE_TIMEOUT`].
async fn idle(alive: &Notify) {
    while tokio::time::timeout(IDLE_TIMEOUT, alive.notified()).await.is_ok() {}
}
