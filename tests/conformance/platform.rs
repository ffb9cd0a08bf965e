//! A platform written from the contract's published behaviours: plain HTTP behind a proxy whose headers it
//! trusts, accepts that are not idempotent, bare and wrapped answers. No line of it is the library's.

#![allow(
    clippy::disallowed_methods,
    reason = "it is another program, with a clock of its own"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::answers::{accept, as_peer, heartbeat, node_api, resource, subscribe};
use super::authority::Authority;
use super::client::API;

const NODE_API: &str = "/api/v1/system/node_api";

/// How answers look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// `{"success":true,"data":…}`, as documented.
    #[default]
    Wrapped,
    /// `{"data":…}`, as some published controllers answer.
    Bare,
    /// Bare, with fields that no contract names, times with fractions, ids in upper case, and without
    /// what may be missing.
    Odd,
}

/// A row about a child.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub name: String,
    /// `platform` or `sdwan_only`.
    pub kind: &'static str,
    pub status: String,
    pub inbound_subject: Option<String>,
    pub capabilities: Value,
    pub endpoints: Value,
    pub data_residency: Option<String>,
    pub last_heartbeat_at: Option<String>,
    pub heartbeats: usize,
    pub accepts: usize,
    pub node: Option<String>,
}

/// What a peer may read here.
#[derive(Debug, Clone, Default)]
pub struct Grant {
    pub peer: String,
    /// A grant's fields, as far as they restrict it.
    pub restrictions: Value,
    pub revoked: bool,
}

/// An answer that is given in the place of the platform's own.
#[derive(Debug, Clone)]
pub struct Canned {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Whether what was asked for is done all the same, and only its answer is lost.
    pub done: bool,
    /// Before the answer.
    pub delay: Duration,
    /// The head announces more than comes, then the connection is cut.
    pub cut: bool,
}

impl Canned {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            done: false,
            delay: Duration::ZERO,
            cut: false,
        }
    }
}

/// What the platform knows and has met.
#[derive(Default)]
pub struct Book {
    pub form: Form,
    pub peers: BTreeMap<String, Peer>,
    /// Live acceptance tokens, and whose they are.
    pub tokens: BTreeMap<String, String>,
    /// Those of them that have expired.
    pub expired: BTreeSet<String>,
    pub bootstrap_tokens: BTreeMap<String, String>,
    /// By bearer token.
    pub grants: BTreeMap<String, Grant>,
    pub subscriptions: BTreeMap<String, String>,
    /// Answers for the next requests to a path, in this order.
    pub next: BTreeMap<&'static str, VecDeque<Canned>>,
    /// Paths that were asked for.
    pub asked: Vec<String>,
    minted: u32,
}

impl Book {
    /// Proposes a peer and mints its token: peer id and token.
    pub fn propose(&mut self, name: &str) -> (String, String) {
        self.minted += 1;
        let id = format!("0192f0c1-7c1e-7a53-9d0e-{:012x}", self.minted);
        let peer = Peer {
            name: name.to_owned(),
            kind: "platform",
            status: "proposed".to_owned(),
            capabilities: json!({}),
            endpoints: json!([]),
            ..Peer::default()
        };
        self.peers.insert(id.clone(), peer);
        let token = self.mint_for(&id);
        (id, token)
    }

    /// Mints a peer's token, which replaces its earlier one.
    pub fn mint_for(&mut self, peer: &str) -> String {
        self.minted += 1;
        let token = format!("{:0>43}", format!("token{}", self.minted));
        self.tokens.retain(|_, owner| owner != peer);
        self.tokens.insert(token.clone(), peer.to_owned());
        token
    }

    /// Grants a peer what it may read here.
    pub fn grant(&mut self, peer: &str, restrictions: &Value) -> String {
        self.minted += 1;
        let token = format!("fgs.0192f0c1-8888-7888-8888-{:012x}.00", self.minted);
        let grant = Grant {
            peer: peer.to_owned(),
            restrictions: restrictions.clone(),
            revoked: false,
        };
        self.grants.insert(token.clone(), grant);
        token
    }

    /// The peer of this id.
    pub fn peer(&mut self, id: &str) -> &mut Peer {
        self.peers.get_mut(id).expect("it was proposed")
    }

    /// The peer of this name.
    pub fn named(&mut self, name: &str) -> &mut Peer {
        let mut peers = self.peers.values_mut();
        peers.find(|peer| peer.name == name).expect("it was proposed")
    }

    /// Answers the next request to a path below the federation's interface so.
    pub fn answer_next(&mut self, path: &'static str, canned: Canned) {
        self.next.entry(path).or_default().push_back(canned);
    }
}

struct Shared {
    book: Mutex<Book>,
    authority: Authority,
}

/// See the module's text.
pub struct Platform {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Ends all of it.
    _runtime: Runtime,
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
            book: Mutex::default(),
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            _runtime: runtime,
        }
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap()
    }

    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, &shared).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
    }
}

/// A request as this program reads it.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    /// Whom the platform's own pattern finds in the header of its proxy.
    pub(super) fn subject(&self) -> Option<String> {
        let info = decoded(self.headers.get("x-forwarded-tls-client-cert-info")?);
        let (_, name) = info.split_once("CN=")?;
        let name = name.trim_start_matches('"');
        Some(name.chars().take_while(|c| !matches!(c, '"' | ',')).collect())
    }
}

/// What is said.
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) body: Value,
}

pub(super) fn ok(data: &Value) -> Said {
    Said {
        status: 200,
        body: json!({ "success": true, "data": data }),
    }
}

pub(super) fn no(status: u16, error: &str) -> Said {
    Said {
        status,
        body: json!({ "success": false, "error": error }),
    }
}

pub(super) fn unauthorized(error: &str) -> Said {
    Said {
        status: 401,
        body: json!({ "success": false, "error": error, "code": "UNAUTHORIZED" }),
    }
}

pub(super) fn internal_error() -> Said {
    Said {
        status: 500,
        body: json!({ "success": false, "error": "Something went wrong", "code": "INTERNAL_ERROR" }),
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<CutBody> {
    let (head, body) = request.into_parts();
    let headers = head.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        headers: headers.collect(),
        body: body
            .collect()
            .await
            .map(|body| body.to_bytes().to_vec())
            .unwrap_or_default(),
    };
    let (said, canned, form) = {
        let mut book = shared.book.lock().unwrap();
        book.asked.push(asked.path.clone());
        let below = asked.path.strip_prefix(API).unwrap_or("");
        let canned = book.next.get_mut(below).and_then(VecDeque::pop_front);
        let said = match &canned {
            Some(canned) if !canned.done => None,
            _ => Some(decide(&asked, &mut book, &shared.authority)),
        };
        (said, canned, book.form)
    };
    let mut response = Response::builder();
    if let Some(canned) = canned {
        tokio::time::sleep(canned.delay).await;
        response = response.status(canned.status);
        for (name, value) in canned.headers {
            response = response.header(name, value);
        }
        return response.body(CutBody::new(canned.body, canned.cut)).unwrap();
    }
    let said = said.unwrap_or_else(internal_error);
    let body = shaped(said.body, form).to_string().replace('>', "\\u003e");
    response
        .status(said.status)
        .header("content-type", "application/json; charset=utf-8")
        .body(CutBody::new(body.into_bytes(), false))
        .unwrap()
}

/// A body that may break off before its end.
pub struct CutBody {
    whole: Full<Bytes>,
    cut: bool,
}

impl CutBody {
    fn new(content: Vec<u8>, cut: bool) -> Self {
        Self {
            whole: Full::new(content.into()),
            cut,
        }
    }
}

impl hyper::body::Body for CutBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        let this = self.get_mut();
        let frame = std::pin::Pin::new(&mut this.whole).poll_frame(context);
        match frame {
            std::task::Poll::Ready(None) if this.cut => {
                this.cut = false;
                std::task::Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())))
            }
            other => other.map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }
}

fn shaped(mut body: Value, form: Form) -> Value {
    if form == Form::Wrapped {
        return body;
    }
    let Some(fields) = body.as_object_mut() else {
        return body;
    };
    fields.remove("success");
    if form == Form::Odd {
        fields.insert("meta".to_owned(), json!({ "anything": [1, 2.5, null] }));
        if let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut) {
            for optional in [
                "handshake_at",
                "peer_kind",
                "our_endpoints",
                "schema_compatibility",
            ] {
                data.remove(optional);
            }
            data.insert("of_a_later_version".to_owned(), json!({ "a": "b" }));
            for (name, value) in data.iter_mut() {
                if let Some(text) = value.as_str() {
                    if name.ends_with("_at") {
                        *value = json!(text.replace('Z', ".123456Z"));
                    } else if name == "peer_id" {
                        *value = json!(text.to_ascii_uppercase());
                    }
                }
            }
        }
    }
    body
}

fn decide(asked: &Asked, book: &mut Book, authority: &Authority) -> Said {
    if let Some(below) = asked.path.strip_prefix(NODE_API) {
        return node_api(asked, below, book, authority);
    }
    let parts: Vec<&str> = asked
        .path
        .strip_prefix(API)
        .unwrap_or("")
        .split('/')
        .skip(1)
        .collect();
    match (asked.method.as_str(), parts.as_slice()) {
        ("POST", ["accept"]) => accept(asked, book, authority),
        ("POST", ["heartbeat"]) => as_peer(asked, book, heartbeat),
        ("GET", ["trust_bundle"]) => as_peer(asked, book, |_, _, _| {
            ok(&json!({ "ca_bundle_pem": authority.pem, "generated_at": now() }))
        }),
        ("GET", ["service_catalog"]) => as_peer(asked, book, |_, _, _| {
            ok(&json!({ "offerings": [{ "slug": "backup" }], "generated_at": now() }))
        }),
        ("GET", ["resources", kind, id]) => resource(asked, book, (kind, id)),
        ("POST", ["subscriptions"]) => as_peer(asked, book, subscribe),
        ("DELETE", ["subscriptions", grant]) => as_peer(asked, book, |_, book, peer| {
            match book.subscriptions.get(*grant) {
                Some(owner) if owner == peer => {
                    book.subscriptions.remove(*grant);
                    ok(&json!({ "revoked": true, "grant_id": grant }))
                }
                _ => no(404, "Subscription not found"),
            }
        }),
        // As Rails does for a method that is not routed: nothing but the status.
        _ => Said {
            status: 404,
            body: Value::Null,
        },
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, after @ ..]) = (first, tail) {
            let digits = [*high, *low];
            let digits = std::str::from_utf8(&digits).unwrap_or("00");
            bytes.push(u8::from_str_radix(digits, 16).unwrap_or(0));
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn now() -> String {
    later(0)
}

pub(super) fn later(days: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let at = at.replace_nanosecond(0).unwrap();
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}
