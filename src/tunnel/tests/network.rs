//! What the transport tests have in common: an authority, a site of each transport on loopback,
//! and relays that fall silent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::invitation::{CaFingerprint, ParentTrust};
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateChain;
use crate::identity::key::PrivateKey;
use crate::identity::tls::{ClientAuth, ClientTls, TimeSource, TlsIdentity, client_config, server_config};
use crate::identity::tls_failure::FailureRecord;
use crate::tunnel::TunnelStream;
use crate::tunnel::memory;
use crate::tunnel::quic::{self, QuicEndpoint, QuicSettings};
use crate::tunnel::tcp::{self, TcpSettings};
use crate::tunnel::transport::TransportClosed;
use crate::wire::TUNNEL_ALPN;

pub(super) const SERVER_NAME: &str = "bridge.example";

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: another authority is told by it, and not only by a signature.
        params.distinguished_name.push(
            rcgen::DnType::CommonName,
            data_encoding::HEXLOWER.encode(&Sha256::digest(key.public_key_raw())),
        );
        let der = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    pub(super) fn issue(&self, name: &str) -> (Arc<TlsIdentity>, CertificateDer<'static>) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = CertificateChain::from_pem(&certificate.pem())
            .unwrap()
            .with_issuers(vec![self.der.clone()]);
        let key = PrivateKey::from_pkcs8(Secret::new(key.serialize_der())).unwrap();
        (
            Arc::new(TlsIdentity::new(&chain, &key).unwrap()),
            certificate.der().clone(),
        )
    }

    pub(super) fn server(&self) -> ServerConfig {
        let anchors = Anchors::from_der(vec![self.der.clone()]).unwrap();
        server_config(
            watch::channel(self.issue(SERVER_NAME).0).1,
            ClientAuth::Optional(watch::channel(Arc::new(anchors)).1),
            &[TUNNEL_ALPN],
            time(),
        )
        .unwrap()
    }

    pub(super) fn client(
        &self,
        identity: Option<Arc<TlsIdentity>>,
        failures: &FailureRecord,
    ) -> ClientConfig {
        client_config(ClientTls {
            trust: &ParentTrust::Pinned(CaFingerprint::of_der(&self.der)),
            learned: None,
            identity: identity.map(|identity| watch::channel(identity).1),
            alpn: &[TUNNEL_ALPN],
            time: time(),
            failures: failures.clone(),
        })
        .unwrap()
    }
}

fn time() -> TimeSource {
    Arc::new(|| UnixTime::from_seconds(1_800_000_000))
}

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Memory,
    Quic,
    Tcp,
}

/// What dial and handshake came to.
pub(super) type Shaken = Result<Arc<dyn Transport>, TransportClosed>;

/// A listener of a transport.
pub(super) struct Site {
    pub(super) authority: Authority,
    max_streams: u32,
    listening: Listening,
}

enum Listening {
    Memory,
    Quic(QuicEndpoint),
    Tcp(TcpListener, TlsAcceptor),
}

impl Site {
    pub(super) async fn new(over: Over, max_streams: u32) -> Self {
        let authority = Authority::new();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listening = match over {
            Over::Memory => Listening::Memory,
            Over::Quic => {
                let settings = QuicSettings {
                    max_streams,
                    ..QuicSettings::default()
                };
                Listening::Quic(QuicEndpoint::server(loopback, authority.server(), settings).unwrap())
            }
            Over::Tcp => {
                let acceptor = TlsAcceptor::from(Arc::new(authority.server()));
                Listening::Tcp(TcpListener::bind(loopback).await.unwrap(), acceptor)
            }
        };
        Self {
            authority,
            max_streams,
            listening,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match &self.listening {
            Listening::Memory => unreachable!("memory has no addresses"),
            Listening::Quic(server) => server.local_address().unwrap(),
            Listening::Tcp(listener, _) => listener.local_addr().unwrap(),
        }
    }

    /// Both ends of a connection, dialled by way of `address`.
    pub(super) async fn shake(
        &self,
        address: SocketAddr,
        tls: ClientConfig,
        failures: &FailureRecord,
    ) -> (Shaken, Shaken) {
        tokio::join!(self.dial(address, tls, failures), self.accept())
    }

    pub(super) async fn dial(
        &self,
        address: SocketAddr,
        tls: ClientConfig,
        failures: &FailureRecord,
    ) -> Shaken {
        let max_streams = self.max_streams;
        match &self.listening {
            Listening::Memory => unreachable!("memory is not dialled"),
            Listening::Quic(_) => {
                let client = QuicEndpoint::client(QuicSettings {
                    max_streams,
                    ..QuicSettings::default()
                })
                .unwrap();
                let dialed = client.dial(address, SERVER_NAME, tls, failures).await;
                dialed.map_err(|error| match error {
                    quic::DialError::Closed { reason, .. } => reason,
                    other => panic!("{other:?}"),
                })
            }
            Listening::Tcp(..) => {
                let stream = TcpStream::connect(address).await.unwrap();
                tcp::tune(&stream);
                let name = ServerName::try_from(SERVER_NAME).unwrap();
                let settings = TcpSettings { max_streams };
                tcp::connect(Box::new(stream), address, name, tls, failures, settings).await
            }
        }
    }

    pub(super) async fn accept(&self) -> Shaken {
        match &self.listening {
            Listening::Memory => unreachable!("memory is not dialled"),
            Listening::Quic(server) => server.accept().await.unwrap().handshake().await,
            Listening::Tcp(listener, acceptor) => {
                let (stream, remote) = listener.accept().await.unwrap();
                tcp::tune(&stream);
                let stream = acceptor
                    .accept(stream)
                    .await
                    .map_err(|error| tcp::accept_failed(&error))?;
                assert!(tcp::is_tunnel(&stream));
                let settings = TcpSettings {
                    max_streams: self.max_streams,
                };
                Ok(tcp::accept(stream, remote, settings))
            }
        }
    }

    /// The same, with a client certificate and without trouble.
    pub(super) async fn connected(&self) -> (Arc<dyn Transport>, Arc<dyn Transport>) {
        self.connected_by(self.address()).await
    }

    pub(super) async fn connected_by(&self, address: SocketAddr) -> (Arc<dyn Transport>, Arc<dyn Transport>) {
        let failures = FailureRecord::default();
        let identity = self.authority.issue("satellite").0;
        let tls = self.authority.client(Some(identity), &failures);
        let (dialed, accepted) = timeout(SOON, self.shake(address, tls, &failures)).await.unwrap();
        (dialed.unwrap(), accepted.unwrap())
    }
}

/// A tunnel with a client certificate; the site must outlive it.
pub(super) async fn tunnel(over: Over, max_streams: u32) -> (Ends, Site) {
    let site = Site::new(over, max_streams).await;
    let (dialer, acceptor): (Arc<dyn Transport>, Arc<dyn Transport>) = match over {
        Over::Memory => {
            let (dialer, acceptor, _) = memory::pair();
            (dialer, acceptor)
        }
        Over::Quic | Over::Tcp => site.connected().await,
    };
    // How long a header may take is tested with the paused clock; a busy machine may need longer for a hundred.
    let settings = TunnelSettings {
        header_timeout: 10 * SOON,
        ..TunnelSettings::default()
    };
    (greet_with(settings, dialer, acceptor, max_streams).await, site)
}

pub(super) async fn stream(ends: &Ends) -> (TunnelStream, TunnelStream) {
    let both = async {
        let near = ends.dialer.open_stream(header()).await.unwrap();
        let far = ends.acceptor.accept_stream().await.unwrap();
        (near, far.accept().await.unwrap())
    };
    timeout(SOON, both).await.unwrap()
}

/// Forwards datagrams between one client and a server, until told to lose them all.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    silent: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(super) async fn to(over: Over, server: SocketAddr) -> Self {
        match over {
            Over::Tcp => Self::tcp(server).await,
            Over::Memory | Over::Quic => Self::udp(server).await,
        }
    }

    /// From now on nothing passes, and nobody is told.
    pub(super) fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// One connection.
    async fn tcp(server: SocketAddr) -> Self {
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = front.local_addr().unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let silenced = Arc::clone(&silent);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (near, _) = front.accept().await.unwrap();
            let far = TcpStream::connect(server).await.unwrap();
            let (mut near_read, mut near_write) = near.into_split();
            let (mut far_read, mut far_write) = far.into_split();
            tokio::join!(
                pass(&mut near_read, &mut far_write, &silenced),
                pass(&mut far_read, &mut near_write, &silenced)
            );
        });
        Self {
            address,
            silent,
            _tasks: tasks,
        }
    }

    async fn udp(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let (client_tx, client_rx) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let (from, to, silenced) = (front.clone(), back.clone(), silent.clone());
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok((length, client)) = from.recv_from(&mut datagram).await {
                client_tx.send_replace(Some(client));
                if !silenced.load(Ordering::SeqCst) {
                    to.send(&datagram[..length]).await.ok();
                }
            }
        });
        let silenced = silent.clone();
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok(length) = back.recv(&mut datagram).await {
                let client = *client_rx.borrow();
                if let (Some(client), false) = (client, silenced.load(Ordering::SeqCst)) {
                    front.send_to(&datagram[..length], client).await.ok();
                }
            }
        });
        Self {
            address,
            silent,
            _tasks: tasks,
        }
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    silent: &AtomicBool,
) {
    let mut bytes = vec![0; 65_536];
    while let Ok(count) = from.read(&mut bytes).await {
        if count == 0 {
            if silent.load(Ordering::SeqCst) {
                // Not even the end passes.
                return std::future::pending().await;
            }
            to.shutdown().await.ok();
            return;
        }
        if !silent.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
