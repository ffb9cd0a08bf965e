//! A platform written from the contract's published behaviours: plain HTTP behind a proxy whose headers it
//! trusts, accepts that are not idempotent, bare and wrapped answers. No line of it is the library's.

#![allow(
    clippy::disallowed_methods,
    reason = "it is another program, with a clock of its own"
)]

use std::collections::{BTreeMap, VecDeque};
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

use super::authority::Authority;
use super::client::API;

const NODE_API: &str = "/api/v1/system/node_api";

/// Version of the platform, by which it judges that of others.
pub const PLATFORM_VERSION: &str = "1.4.0";

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
    pub bootstrap_tokens: BTreeMap<String, String>,
    /// Grants: bearer token, and the peer that may show it.
    pub grants: BTreeMap<String, String>,
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
        let token = format!("{:0>43}", format!("token{}", self.minted));
        let peer = Peer {
            name: name.to_owned(),
            status: "proposed".to_owned(),
            capabilities: json!({}),
            endpoints: json!([]),
            ..Peer::default()
        };
        self.peers.insert(id.clone(), peer);
        self.tokens.insert(token.clone(), id.clone());
        (id, token)
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
struct Asked {
    method: Method,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Asked {
    /// Whom the platform's own pattern finds in the header of its proxy.
    fn subject(&self) -> Option<String> {
        let info = decoded(self.headers.get("x-forwarded-tls-client-cert-info")?);
        let (_, name) = info.split_once("CN=")?;
        let name = name.trim_start_matches('"');
        Some(name.chars().take_while(|c| !matches!(c, '"' | ',')).collect())
    }
}

/// What is said.
struct Said {
    status: u16,
    body: Value,
}

fn ok(data: Value) -> Said {
    Said {
        status: 200,
        body: json!({ "success": true, "data": data }),
    }
}

fn no(status: u16, error: &str) -> Said {
    Said {
        status,
        body: json!({ "success": false, "error": error }),
    }
}

fn unauthorized(error: &str) -> Said {
    Said {
        status: 401,
        body: json!({ "success": false, "error": error, "code": "UNAUTHORIZED" }),
    }
}

fn internal_error() -> Said {
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
            ok(json!({ "ca_bundle_pem": authority.pem, "generated_at": now() }))
        }),
        ("GET", ["service_catalog"]) => as_peer(asked, book, |_, _, _| {
            ok(json!({ "offerings": [{ "slug": "backup" }], "generated_at": now() }))
        }),
        ("GET", ["resources", kind, id]) => resource(asked, book, (kind, id)),
        ("POST", ["subscriptions"]) => as_peer(asked, book, subscribe),
        ("DELETE", ["subscriptions", grant]) => as_peer(asked, book, |_, book, peer| {
            match book.subscriptions.get(*grant) {
                Some(owner) if owner == peer => {
                    book.subscriptions.remove(*grant);
                    ok(json!({ "revoked": true, "grant_id": grant }))
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

/// Leniently, as the platform reads it: what does not begin with a number is 0.
fn version_of(value: &Value) -> i64 {
    match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().map(|float| float.trunc() as i64))
            .unwrap_or(0),
        Value::String(text) => {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        }
        _ => 0,
    }
}

fn accept(asked: &Asked, book: &mut Book, authority: &Authority) -> Said {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(&asked.body) else {
        return internal_error();
    };
    let token = match body.get("acceptance_token") {
        None | Some(Value::Null) => "",
        Some(Value::String(token)) => token.trim(),
        Some(_) => return internal_error(),
    };
    if token.is_empty() {
        return no(422, "acceptance_token required");
    }
    let claimed = version_of(body.get("contract_version").unwrap_or(&Value::Null));
    if claimed != 1 {
        return no(
            422,
            &format!("Unsupported contract_version {claimed}; supported: [1]"),
        );
    }
    let Some(id) = book.tokens.get(token).cloned() else {
        return no(401, "acceptance_token not recognized or expired");
    };
    if let Some(endpoints) = body.get("endpoints").and_then(Value::as_array)
        && endpoints.iter().any(Value::is_string)
    {
        return internal_error();
    }
    let Some(peer) = book.peers.get_mut(&id) else {
        return internal_error();
    };
    if !matches!(peer.status.as_str(), "proposed" | "suspended") {
        let words = format!("accept transition failed: cannot accept from {}", peer.status);
        return no(422, &words);
    }
    "enrolled".clone_into(&mut peer.status);
    peer.accepts += 1;
    let mut data = json!({
        "peer_id": id, "status": "enrolled", "peer_kind": "platform", "contract_version_agreed": 1,
        "accepted_at": now(), "handshake_at": now(), "governance": { "anything": true },
    });
    if let Some(csr) = body.get("csr_pem").and_then(Value::as_str) {
        let subject = format!("fed:{id}");
        match authority.sign(csr, &subject) {
            Some(certificate) => {
                peer.inbound_subject = Some(subject);
                data["federation_certificate"] = json!({
                    "cert_pem": certificate, "ca_chain_pem": authority.pem, "serial": "0A1B", "not_after": later(90),
                });
            }
            None => {
                data["warnings"] = json!(["federation_csr_signing_failed: not a certificate request"]);
            }
        }
    }
    if let Some(node) = &peer.node {
        let token = format!("bootstrap-{node}");
        data["node_enrollment"] = json!({
            "bootstrap_token": token, "platform_url": "https://platform.example.com",
            "intended_subject": node, "expires_at": later(1),
        });
        book.bootstrap_tokens.insert(token, node.clone());
    }
    book.tokens.remove(token);
    ok(data)
}

/// What a request comes to that needs a peer's certificate.
fn as_peer(asked: &Asked, book: &mut Book, then: impl FnOnce(&Asked, &mut Book, &str) -> Said) -> Said {
    let Some(subject) = asked.subject() else {
        return unauthorized("mTLS client certificate required");
    };
    let known = book
        .peers
        .iter()
        .find(|(_, peer)| peer.inbound_subject.as_ref() == Some(&subject));
    match known {
        Some((id, peer)) if matches!(peer.status.as_str(), "enrolled" | "active" | "degraded") => {
            let id = id.clone();
            then(asked, book, &id)
        }
        _ => unauthorized("No reachable FederationPeer for mTLS subject"),
    }
}

fn heartbeat(asked: &Asked, book: &mut Book, id: &str) -> Said {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(&asked.body) else {
        return internal_error();
    };
    let Some(peer) = book.peers.get_mut(id) else {
        return internal_error();
    };
    "active".clone_into(&mut peer.status);
    peer.heartbeats += 1;
    peer.last_heartbeat_at = Some(now());
    // What is empty changes nothing.
    for (field, kept) in [
        ("capabilities", &mut peer.capabilities),
        ("endpoints", &mut peer.endpoints),
    ] {
        let sent = body.get(field).filter(|sent| match sent {
            Value::Object(sent) => !sent.is_empty(),
            Value::Array(sent) => !sent.is_empty(),
            _ => false,
        });
        if let Some(sent) = sent {
            kept.clone_from(sent);
        }
    }
    let residency = body
        .get("data_residency")
        .and_then(Value::as_str)
        .unwrap_or("")
        .trim();
    if residency.chars().count() > 64 {
        let error = "Data residency is too long (maximum is 64 characters)";
        return Said {
            status: 422,
            body: json!({
                "success": false, "error": error, "code": "VALIDATION_ERROR", "details": { "errors": [error] },
            }),
        };
    }
    if !residency.is_empty() {
        peer.data_residency = Some(residency.to_owned());
    }
    let remote = body.get("platform_version").and_then(Value::as_str);
    ok(json!({
        "status": "active", "last_heartbeat_at": now(),
        "our_endpoints": [{ "url": "https://platform.example.com:443", "scope": "wan" }],
        "schema_compatibility": {
            "status": if compatible(remote) { "compatible" } else { "incompatible" },
            "source": "implicit", "local_version": PLATFORM_VERSION, "remote_version": remote, "notes": null,
        },
    }))
}

/// Same major version, and at most one minor apart.
fn compatible(remote: Option<&str>) -> bool {
    let numbers = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    match (numbers(PLATFORM_VERSION), remote.and_then(numbers)) {
        (Some(ours), Some(theirs)) => ours.0 == theirs.0 && ours.1.abs_diff(theirs.1) <= 1,
        _ => false,
    }
}

fn resource(asked: &Asked, book: &mut Book, (kind, id): (&str, &str)) -> Said {
    let bearer = asked
        .headers
        .get("authorization")
        .and_then(|header| header.strip_prefix("Bearer "))
        .map(str::to_owned);
    let (kind, id) = (kind.to_owned(), id.to_owned());
    as_peer(asked, book, move |_, book, peer| {
        let Some(bearer) = bearer else {
            return unauthorized("Bearer grant token required");
        };
        match book.grants.get(&bearer) {
            None => return unauthorized("Grant token not recognized"),
            Some(owner) if owner != peer => {
                return unauthorized("Grant does not belong to the calling peer");
            }
            Some(_) => {}
        }
        if kind == "secrets" {
            return Said {
                status: 403,
                body: json!({ "error": "grant resource_kind is skill, not secrets" }),
            };
        }
        if kind != "skill" {
            return Said {
                status: 422,
                body: json!({ "error": format!("unknown resource kind {kind}") }),
            };
        }
        ok(json!({
            "kind": kind, "id": id, "exists": true, "account_id": "1", "grant_id": "2", "fetched_at": now(),
        }))
    })
}

fn subscribe(asked: &Asked, book: &mut Book, peer: &str) -> Said {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let (Some(slug), Some(_)) = (body["slug"].as_str(), body["local_hostname"].as_str()) else {
        return no(400, "slug and local_hostname are required");
    };
    match slug {
        "backup" => {}
        "full" => return no(409, "Offering is at capacity"),
        _ => return no(404, "Unknown service offering"),
    }
    let grant = format!("0192f0c1-9999-7999-8999-{:012x}", book.subscriptions.len() + 1);
    book.subscriptions.insert(grant.clone(), peer.to_owned());
    Said {
        status: 201,
        body: json!({ "success": true, "data": {
            "grant_id": grant, "backend_host": "10.0.0.1", "backend_port": 443, "protocol": "tcp",
            "expires_at": later(30), "ttl_seconds": 2_592_000, "service_offering_id": "7",
        } }),
    }
}

fn node_api(asked: &Asked, below: &str, book: &mut Book, authority: &Authority) -> Said {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let subject = match (asked.method.as_str(), below) {
        ("POST", "/enroll") => {
            let Some(token) = body["bootstrap_token"].as_str() else {
                return unauthorized("bootstrap_token required");
            };
            match book.bootstrap_tokens.remove(token) {
                Some(subject) => subject,
                None => return no(422, "invalid or expired bootstrap token"),
            }
        }
        ("POST", "/enroll/refresh") => match asked.headers.get("x-calling-instance") {
            Some(instance) => instance.clone(),
            None => return unauthorized("mTLS client certificate required"),
        },
        _ => return no(404, "not found"),
    };
    let Some(csr) = body["csr_pem"].as_str() else {
        return Said {
            status: 400,
            body: json!({ "success": false, "error": "csr_pem is missing", "code": "PARAMETER_MISSING" }),
        };
    };
    match authority.sign(csr, &subject) {
        Some(certificate) => ok(json!({
            "cert_pem": certificate, "ca_chain_pem": authority.pem, "instance_id": subject,
            "mtls_subject": format!("CN={subject}"), "not_after": later(90), "certificate_id": "9",
        })),
        None => no(422, "csr_pem cannot be signed"),
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap_or("00");
                bytes.push(u8::from_str_radix(digits, 16).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn now() -> String {
    later(0)
}

fn later(days: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let at = at.replace_nanosecond(0).unwrap();
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}
