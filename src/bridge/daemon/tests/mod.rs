//! The whole bridge on loopback, with its real store, TLS and QUIC, and clients as satellites
//! and operators are.

#![allow(clippy::unwrap_used)]

mod access;
mod callers;
mod dial_back;
mod direct;
mod equals;
mod expired;
mod https;
mod operators;
mod rotation;
mod tunnels;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::base::id::{PeerId, TraceId};
use crate::base::time::UnixTime;
use crate::bridge::registry::record::PublicRecord;
use crate::bridge::registry::{NewOperator, Opening, Proposal, Registry};
use crate::contract::invitation::ParentTrust;
use crate::contract::peer::{PeerKind, SpawnMode, SpawnRole};
use crate::contract::{ACCEPT_PATH, HEARTBEAT_PATH};
use crate::identity::certificate::CertificateChain;
use crate::identity::key::PrivateKey;
use crate::identity::tls::{ClientTls, TlsIdentity, client_config};
use crate::identity::tls_failure::FailureRecord;
use crate::process::clock::BUILD_TIME;
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::loader::{ConfigFile, Flags};
use crate::process::environment::Environment;
use crate::tunnel::greeting::GreetingError;
use crate::tunnel::http as tunnel_http;
use crate::tunnel::quic::QuicSettings;
use crate::tunnel::tcp::{self, TcpSettings};
use crate::tunnel::transport::Transport;
use crate::tunnel::{Tunnel, TunnelDriver, TunnelSettings};
use crate::wire::{Hello, TUNNEL_VERSION, Welcome};

/// Patience of every wait; a test that passes never waits this long.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running bridge with throw-away state.
struct TestBridge {
    running: Running,
    operator_token: String,
    dir: tempfile::TempDir,
}

impl TestBridge {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[(&'static str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = Clock::start(BUILD_TIME).trusted().now;
        let registry = Registry::create(&dir.path().join("registry.redb"), None, "Test CA", now).unwrap();
        let operator_token = registry
            .add_operator(&NewOperator::admin("admin"), now)
            .unwrap()
            .token;
        let operator_token = operator_token.expose_text().unwrap().to_owned();
        Self {
            running: run_registry(registry, &dir, more).await,
            operator_token,
            dir,
        }
    }

    /// The same bridge after a restart.
    async fn restart(self) -> Self {
        self.running.stop(DEADLINE, std::future::pending()).await.unwrap();
        let registry =
            Registry::open(&self.dir.path().join("registry.redb"), None, Opening::ReadWrite).unwrap();
        Self {
            running: run_registry(registry, &self.dir, &[]).await,
            ..self
        }
    }

    /// Invites a peer; its id and token.
    fn invite(&self, name: &str) -> (PeerId, String) {
        let proposal = Proposal {
            name: Some(name.to_owned()),
            description: None,
            remote_instance_url: None,
            kind: PeerKind::Platform,
            role: SpawnRole::Parent,
            mode: SpawnMode::ManagedChild,
        };
        let minted = self
            .running
            .registry()
            .invite(&proposal, Duration::from_secs(3_600), self.now())
            .unwrap();
        let token = minted.token.expose().expose_text().unwrap().to_owned();
        (minted.peer.id, token)
    }

    fn now(&self) -> UnixTime {
        self.running.clock.trusted().now
    }

    fn client_tls(&self, identity: Option<Arc<TlsIdentity>>) -> rustls::ClientConfig {
        let clock = self.running.clock.clone();
        let identity = identity.map(|identity| watch::channel(identity).1);
        client_config(ClientTls {
            trust: &ParentTrust::Pinned(self.running.registry().authority().fingerprint()),
            learned: None,
            identity,
            alpn: &[],
            time: Arc::new(move || clock.trusted().now),
            failures: FailureRecord::default(),
        })
        .unwrap()
    }

    /// One HTTPS request on a connection of its own.
    async fn https(
        &self,
        identity: Option<Arc<TlsIdentity>>,
        request: Request<Full<Bytes>>,
    ) -> std::io::Result<(u16, Value)> {
        Box::pin(self.https_with(self.client_tls(identity), request)).await
    }

    /// The same by whoever knows the bridge like that.
    async fn https_with(
        &self,
        tls: rustls::ClientConfig,
        request: Request<Full<Bytes>>,
    ) -> std::io::Result<(u16, Value)> {
        let stream = TcpStream::connect(self.running.bound.https[0]).await?;
        let tls = TlsConnector::from(Arc::new(tls));
        let stream = tls
            .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
            .await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let exchange = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(std::io::Error::other)?;
            let status = response.status().as_u16();
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(std::io::Error::other)?;
            let body = body.to_bytes();
            Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => done,
            _ = connection => exchange.await,
        }
    }

    async fn operator(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.with_token(&self.operator_token, method, path, body).await
    }

    /// The same as somebody else.
    async fn with_token(&self, token: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = request(method, path, &body);
        let bearer = format!("Bearer {token}");
        request
            .headers_mut()
            .insert("authorization", bearer.parse().unwrap());
        self.https(None, request).await.unwrap()
    }

    /// A connection over TCP that has not greeted.
    async fn connect_tcp(&self, identity: Option<Arc<TlsIdentity>>) -> Arc<dyn Transport> {
        let address = self.running.bound.https[0];
        let failures = FailureRecord::default();
        let stream = Box::new(TcpStream::connect(address).await.unwrap());
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = self.client_tls(identity);
        tcp::connect(stream, address, name, tls, &failures, TcpSettings::default())
            .await
            .unwrap()
    }

    /// A connection that has not greeted.
    async fn connect(&self, identity: Option<Arc<TlsIdentity>>) -> (QuicEndpoint, Arc<dyn Transport>) {
        let endpoint = QuicEndpoint::client(QuicSettings::default()).unwrap();
        let address = self.running.bound.quic[0];
        let failures = FailureRecord::default();
        let transport = endpoint
            .dial(address, "127.0.0.1", self.client_tls(identity), &failures)
            .await
            .unwrap();
        (endpoint, transport)
    }

    /// Dials a tunnel over QUIC and greets.
    async fn dial(&self, identity: Option<Arc<TlsIdentity>>) -> Result<Dialled, GreetingError> {
        let (endpoint, transport) = self.connect(identity).await;
        self.greet(Some(endpoint), transport).await
    }

    /// The same over TCP.
    async fn dial_tcp(&self, identity: Option<Arc<TlsIdentity>>) -> Result<Dialled, GreetingError> {
        let transport = self.connect_tcp(identity).await;
        self.greet(None, transport).await
    }

    async fn greet(
        &self,
        endpoint: Option<QuicEndpoint>,
        transport: Arc<dyn Transport>,
    ) -> Result<Dialled, GreetingError> {
        let hello = Hello {
            version: TUNNEL_VERSION,
            agent: "test/1".to_owned(),
            features: Vec::new(),
        };
        let clock = self.running.clock.clone();
        let (tunnel, welcome, driver) =
            Tunnel::dial(transport, hello, TunnelSettings::default(), clock).await?;
        Ok(Dialled {
            tunnel,
            welcome,
            driver,
            endpoint,
        })
    }

    /// A peer that has joined, with its certificate.
    async fn joined(&self, name: &str) -> (PeerId, Arc<TlsIdentity>) {
        let (peer, token) = self.invite(name);
        let key = PrivateKey::generate().unwrap();
        let (status, answer) = self.https(None, accept(&token, Some(&key))).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        (peer, identity(&answer, &key))
    }
}

impl Running {
    fn registry(&self) -> &Arc<Registry> {
        self.books.registry().unwrap()
    }
}

struct Dialled {
    tunnel: Tunnel,
    welcome: Welcome,
    driver: TunnelDriver,
    #[allow(dead_code, reason = "the connection lives as long as its endpoint")]
    endpoint: Option<QuicEndpoint>,
}

async fn run_registry(registry: Registry, dir: &tempfile::TempDir, more: &[(&'static str, &str)]) -> Running {
    let mut flags = Flags::new();
    flags.insert("listen.https", "127.0.0.1:0".to_owned());
    flags.insert("listen.quic", "127.0.0.1:0".to_owned());
    flags.insert(
        "admin_socket",
        dir.path().join("admin.sock").display().to_string(),
    );
    flags.insert("public.url", "https://127.0.0.1".to_owned());
    for (key, value) in more {
        flags.insert(key, (*value).to_owned());
    }
    let empty = dir.path().join("host-bridge.toml");
    std::fs::write(&empty, "").unwrap();
    let file = ConfigFile::Named(empty);
    let (config, _) = HostBridgeConfig::load(&file, &flags, &Environment::default()).unwrap();
    let settings = BridgeSettings::new(config, PublicRecord::default());
    let clock = Clock::start(BUILD_TIME);
    let books = Books::Own(Arc::new(registry));
    Running::start(books, settings, clock, &ServiceManager::default())
        .await
        .unwrap()
}

fn request(method: Method, path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap()
}

fn accept(token: &str, key: Option<&PrivateKey>) -> Request<Full<Bytes>> {
    let csr = key.map(|key| key.csr_pem("powernode-satellite").unwrap());
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": csr });
    request(Method::POST, ACCEPT_PATH, &body)
}

fn heartbeat() -> Request<Full<Bytes>> {
    request(
        Method::POST,
        HEARTBEAT_PATH,
        &json!({ "platform_version": env!("CARGO_PKG_VERSION") }),
    )
}

/// The identity of an accept's answer.
fn identity(answer: &Value, key: &PrivateKey) -> Arc<TlsIdentity> {
    let pem = answer["data"]["federation_certificate"]["cert_pem"]
        .as_str()
        .unwrap();
    let chain = CertificateChain::from_pem(pem).unwrap();
    Arc::new(TlsIdentity::new(&chain, key).unwrap())
}

/// Waits until the condition holds.
async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "gave up waiting until {what}");
}
