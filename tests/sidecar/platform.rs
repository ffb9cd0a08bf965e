//! A platform as the published ones are, as far as satellites meet it: plain HTTP behind a proxy whose
//! headers it trusts, its own authority, bare and wrapped answers. No line of it is the library's.

#![allow(
    clippy::disallowed_methods,
    reason = "it is another program, with a clock of its own"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, Identity};

pub const PEER: &str = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
pub const TOKEN: &str = "61qtu9mI5goi86W0l4Nd7cFGfENZhwk0O8sFnmGfkMk";

const API: &str = "/api/v1/system/federation_api";

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub target: String,
    pub headers: BTreeMap<String, Vec<String>>,
    pub body: Vec<u8>,
}

impl Seen {
    /// The only value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers.get(name).map(Vec::as_slice) {
            None => None,
            Some([only]) => Some(only),
            Some(several) => panic!("{name} came {} times", several.len()),
        }
    }
}

/// What the platform knows and has met.
pub struct Book {
    pub suspended: bool,
    /// Heartbeats find the platform at fault.
    pub heartbeats_fail: bool,
    pub token: Option<String>,
    pub seen: Vec<Seen>,
    /// Connections taken.
    pub connections: usize,
}

struct Shared {
    book: Mutex<Book>,
    authority: Authority,
    /// What it shows, where it speaks TLS.
    tls: Mutex<Option<TlsAcceptor>>,
}

/// See the module's text.
pub struct Platform {
    runtime: Runtime,
    shared: Arc<Shared>,
    pub address: SocketAddr,
    serving: Option<JoinHandle<()>>,
    /// Keeps its port while it is gone: it refuses who calls, and nobody else gets the port for a call of his own.
    kept: Option<TcpSocket>,
}

impl Platform {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared {
            authority: Authority::new("Federation CA"),
            tls: Mutex::new(None),
            book: Mutex::new(Book {
                suspended: false,
                heartbeats_fail: false,
                token: Some(TOKEN.to_owned()),
                seen: Vec::new(),
                connections: 0,
            }),
        });
        let mut platform = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            runtime,
            shared,
            serving: None,
            kept: None,
        };
        platform.come_back();
        platform
    }

    /// Speaks TLS from now on, and shows this. Connections that it has stay as they are.
    pub fn show(&self, identity: &Identity) {
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        *self.shared.tls.lock().unwrap() = Some(TlsAcceptor::from(Arc::new(config)));
    }

    /// Listens again, where it listened before.
    pub fn come_back(&mut self) {
        let socket = self.kept.take().unwrap_or_else(|| at(self.address));
        let _runtime = self.runtime.enter();
        let listener = socket.listen(64).unwrap();
        self.address = listener.local_addr().unwrap();
        let serving = serve(listener, Arc::clone(&self.shared));
        self.serving = Some(self.runtime.spawn(serving));
    }

    /// Is gone, with all of its connections.
    pub fn go_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = self.runtime.block_on(serving);
            self.kept = Some(at(self.address));
        }
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap()
    }

    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// The last request to a path below the federation's interface.
    pub fn last(&self, path: &str) -> Option<Seen> {
        let whole = format!("{API}/{path}");
        let book = self.book();
        book.seen.iter().rev().find(|seen| seen.target == whole).cloned()
    }
}

fn at(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with this future.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.book.lock().unwrap().connections += 1;
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, &shared).await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let tls = shared.tls.lock().unwrap().clone();
            match tls {
                None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let values = headers.entry(name.as_str().replace('_', "-")).or_default();
        values.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes().to_vec())
        .unwrap_or_default();
    let seen = Seen {
        target: head.uri.to_string(),
        headers,
        body,
    };
    if seen.target.ends_with("/resources/silence/1") {
        std::future::pending::<()>().await;
    }
    let (status, answer) = {
        let mut book = shared.book.lock().unwrap();
        book.seen.push(seen.clone());
        decide(&seen, &mut book, &shared.authority)
    };
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-request-id", "of-the-platform")
        .body(Full::new(Bytes::from(answer)))
        .unwrap()
}

fn decide(seen: &Seen, book: &mut Book, authority: &Authority) -> (u16, Vec<u8>) {
    let said = |status: u16, value: Value| (status, value.to_string().into_bytes());
    match seen.target.strip_prefix(API).unwrap_or("") {
        "/accept" => {
            let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
            if book.token.is_none() || body["acceptance_token"].as_str() != book.token.as_deref() {
                return said(
                    401,
                    json!({ "error": "acceptance_token not recognized or expired" }),
                );
            }
            // Once, as published.
            book.token = None;
            let certificate = authority
                .sign(body["csr_pem"].as_str().unwrap(), &format!("fed:{PEER}"))
                .unwrap();
            said(
                200,
                json!({ "data": {
                    "peer_id": PEER, "status": "enrolled", "peer_kind": "platform", "contract_version_agreed": 1,
                    "accepted_at": now(), "handshake_at": now(),
                    "federation_certificate": {
                        "cert_pem": certificate, "ca_chain_pem": authority.pem, "serial": "0A",
                        "not_after": later(90),
                    },
                    "governance": { "anything": true },
                } }),
            )
        }
        "/heartbeat" if book.heartbeats_fail => said(500, json!({ "error": "Something went wrong" })),
        "/trust_bundle" => match caller(seen) {
            Some(peer) if peer == PEER && !book.suspended => said(
                200,
                json!({ "data": { "ca_bundle_pem": authority.pem, "generated_at": now() } }),
            ),
            _ => said(
                401,
                json!({ "success": false, "error": "No reachable FederationPeer for mTLS subject", "code": "UNAUTHORIZED" }),
            ),
        },
        "/heartbeat" => match caller(seen) {
            None => said(
                401,
                json!({ "success": false, "error": "mTLS client certificate required", "code": "UNAUTHORIZED" }),
            ),
            Some(peer) if peer != PEER || book.suspended => said(
                401,
                json!({ "success": false, "error": "No reachable FederationPeer for mTLS subject", "code": "UNAUTHORIZED" }),
            ),
            Some(_) => said(
                200,
                json!({ "success": true, "data": {
                    "status": "active", "last_heartbeat_at": now(),
                    "our_endpoints": [{ "url": "https://platform.example.com", "scope": "wan" }],
                } }),
            ),
        },
        "/resources/echo/1" => (201, seen.body.clone()),
        "/service_catalog" => said(422, json!({ "error": "unknown kind" })),
        _ => said(404, json!({ "error": "not found" })),
    }
}

/// Whom the platform's own pattern finds in the header of its proxy.
fn caller(seen: &Seen) -> Option<String> {
    let info = decoded(seen.header("x-forwarded-tls-client-cert-info")?);
    let name = info.split("CN=").nth(1)?;
    let name: String = name.chars().take_while(|c| !matches!(c, '"' | ',')).collect();
    name.strip_prefix("fed:").map(str::to_owned)
}

pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn now() -> String {
    later(0)
}

fn later(days: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let at = at.replace_nanosecond(0).unwrap();
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}
