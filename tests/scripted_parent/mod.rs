//! A parent in this process whose answers a test scripts: real QUIC on loopback, real certificates
//! of the embedded authority, the real tunnel. What is not scripted is answered as a good parent
//! does; with `forget` it is the published platform, which does not repeat a lost answer.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test support")]

pub mod platform;
pub mod site;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use powernode_satellite::base::id::{PeerId, SessionId};
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::bridge::certificate_authority::CertificateAuthority;
use powernode_satellite::contract::invitation::{CaFingerprint, HostPort};
use powernode_satellite::contract::message::{failure_body, success_body};
use powernode_satellite::contract::{ACCEPT_PATH, CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH};
use powernode_satellite::identity::anchors::Anchors;
use powernode_satellite::identity::certificate::{CertificateFacts, peer_subject};
use powernode_satellite::identity::tls::{ClientAuth, OwnAnchors, TlsIdentity, server_config};
use powernode_satellite::process::clock::{Clock, ManualWallClock};
use powernode_satellite::process::supervisor::{Stage, Supervisor, TaskScope};
use powernode_satellite::tunnel::quic::{IncomingConnection, QuicEndpoint, QuicSettings};
use powernode_satellite::tunnel::transport::Transport;
use powernode_satellite::tunnel::{CloseReason, IncomingStream, Tunnel, TunnelSettings, http as tunnel_http};
use powernode_satellite::wire::{
    Goodbye, GoodbyeReason, RENEWAL_ONLY_FEATURE, Refused, TUNNEL_ALPN, Welcome,
};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// The time at the parent when a test begins.
pub const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

pub const DAY: Duration = Duration::from_secs(86_400);

/// Patience of every wait; a test that passes never waits this long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The peer that this parent knows.
pub const PEER: &str = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";

pub const TOKEN: &str = "61qtu9mI5goi86W0l4Nd7cFGfENZhwk0O8sFnmGfkMk";
pub const SECOND_TOKEN: &str = "Zk2t19bMqw0d8Yx3rJf5uVhTn7sLpAeCgRiOoWbXyEQ";

/// Makes an answer's `data` of the request's body.
pub type MakeData = Box<dyn FnOnce(&mut Book, &Value) -> Value + Send>;

/// One scripted answer.
pub enum Answer {
    /// Status, headers, body.
    Http(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// 200 with the `data` that is made of the request.
    Data(MakeData),
    /// Does what is usual once it is told to.
    Held(Arc<Notify>),
    /// Does what is usual, and then the tunnel breaks.
    DoneAndLost,
    /// The tunnel breaks before anything is done.
    Lost,
    /// Nothing comes for as long as the tunnel lives.
    Never,
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Http(status, Vec::new(), body.to_string().into_bytes())
    }

    pub fn failure(status: u16, error: &str) -> Self {
        Self::json(status, &failure_body(error, None))
    }

    pub fn busy(status: u16, retry_after_seconds: u64) -> Self {
        let retry = vec![("retry-after", retry_after_seconds.to_string())];
        Self::Http(
            status,
            retry,
            failure_body("later", None).to_string().into_bytes(),
        )
    }

    pub fn text(status: u16, body: &str) -> Self {
        Self::Http(status, Vec::new(), body.as_bytes().to_vec())
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub body: Value,
    /// Serial number of the client's certificate.
    pub serial: Option<String>,
}

/// What the parent knows and has met.
pub struct Book {
    pub authority: Arc<CertificateAuthority>,
    pub now: UnixTime,
    /// The token that is good, and the CSR and answer that it was used for.
    pub token: String,
    used_by: Option<(String, Value)>,
    forgets: bool,
    answers: BTreeMap<&'static str, VecDeque<Answer>>,
    refusals: VecDeque<Refused>,
    refused_serials: Vec<(String, Refused)>,
    serials: u8,
    pub heartbeat: Value,
    pub seen: Vec<Seen>,
    pub peers_made: usize,
    /// Tunnels that are up, with their scope.
    tunnels: Vec<(Tunnel, TaskScope)>,
    /// Dials that came as far as the greeting: the serial that they showed.
    pub greeted: Vec<Option<String>>,
    /// How tunnels ended.
    pub ended: Vec<CloseReason>,
}

impl Book {
    pub fn count(&self, path: &str) -> usize {
        self.seen.iter().filter(|seen| seen.path == path).count()
    }

    pub fn accepts(&self) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.path == ACCEPT_PATH).collect()
    }

    pub fn heartbeats(&self) -> Vec<&Seen> {
        self.seen
            .iter()
            .filter(|seen| seen.path == HEARTBEAT_PATH)
            .collect()
    }

    pub fn refreshes(&self) -> Vec<&Seen> {
        self.seen
            .iter()
            .filter(|seen| seen.path == CERTIFICATE_REFRESH_PATH)
            .collect()
    }

    pub fn said_goodbye(&self, reason: GoodbyeReason) -> bool {
        self.ended
            .iter()
            .any(|ended| matches!(ended, CloseReason::Goodbye(goodbye) if goodbye.reason == reason))
    }

    /// Certifies a CSR's key by any authority under any id.
    pub fn certificate(&mut self, authority: &CertificateAuthority, csr: &str, peer: &str) -> Value {
        self.serials += 1;
        let serial = [self.serials; 16];
        let issued = authority
            .issue_peer_certificate(csr, peer.parse().unwrap(), self.now, serial)
            .unwrap();
        json!({
            "cert_pem": issued.cert_pem,
            "ca_chain_pem": issued.ca_chain_pem,
            "serial": issued.serial,
            "not_after": issued.not_after.to_string(),
        })
    }

    fn usual(&mut self, path: &str, body: &Value) -> (u16, Value) {
        match path {
            ACCEPT_PATH => self.usual_accept(body),
            HEARTBEAT_PATH => (200, success_body(&self.heartbeat)),
            CERTIFICATE_REFRESH_PATH => {
                let authority = Arc::clone(&self.authority);
                let certificate = self.certificate(&authority, body["csr_pem"].as_str().unwrap(), PEER);
                (200, success_body(&certificate))
            }
            _ => (404, failure_body("no such path", None)),
        }
    }

    fn usual_accept(&mut self, body: &Value) -> (u16, Value) {
        let csr = body["csr_pem"].as_str().unwrap().to_owned();
        let refused = (
            401,
            failure_body("acceptance_token not recognized or expired", None),
        );
        if body["acceptance_token"] != self.token.as_str() {
            return refused;
        }
        match &self.used_by {
            Some((by, answer)) if *by == csr && !self.forgets => (200, answer.clone()),
            Some(_) => refused,
            None => {
                self.peers_made += 1;
                let authority = Arc::clone(&self.authority);
                let certificate = self.certificate(&authority, &csr, PEER);
                let answer = success_body(&accept_data(self.now, &certificate));
                self.used_by = Some((csr, answer.clone()));
                (200, answer)
            }
        }
    }
}

/// `data` of an accept's answer.
pub fn accept_data(now: UnixTime, certificate: &Value) -> Value {
    json!({
        "peer_id": PEER,
        "status": "enrolled",
        "peer_kind": "platform",
        "contract_version_agreed": 1,
        "accepted_at": now.to_string(),
        "handshake_at": now.to_string(),
        "federation_certificate": certificate,
        "sdwan_attach": { "anything": true },
    })
}

/// How the parent is made.
pub struct Setup {
    /// The parent's time.
    pub now: UnixTime,
    /// When its server certificate was issued.
    pub certified_at: UnixTime,
    pub address: SocketAddr,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            now: NOW,
            certified_at: NOW,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

struct Shared {
    book: Mutex<Book>,
    changed: watch::Sender<u64>,
    clock: Clock,
}

/// See the module's text.
pub struct ScriptedParent {
    shared: Arc<Shared>,
    wall: ManualWallClock,
    pub address: SocketAddr,
    pub fingerprint: CaFingerprint,
    /// How long after its end a certificate is let in to be renewed.
    pub grace: watch::Sender<Duration>,
    pub equal: Arc<Equal>,
    endpoint: QuicEndpoint,
}

/// By what the peer is known where it certifies itself; nothing where this parent does.
#[derive(Debug, Default)]
pub struct Equal(Mutex<Option<Arc<Anchors>>>);

impl Equal {
    pub fn set(&self, anchors: Anchors) {
        *self.0.lock().unwrap() = Some(Arc::new(anchors));
    }

    pub fn get(&self) -> Option<Arc<Anchors>> {
        self.0.lock().unwrap().clone()
    }
}

impl OwnAnchors for Equal {
    fn of(&self, _certificate: &CertificateDer<'_>) -> Option<Arc<Anchors>> {
        self.get()
    }
}

impl ScriptedParent {
    pub fn start() -> Self {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Self {
        let wall = ManualWallClock::new(setup.now);
        let clock = Clock::with_wall_clock(UnixTime::EPOCH, wall.clone());
        let born = setup.certified_at.minus(DAY);
        let authority = Arc::new(CertificateAuthority::create("test", born, [0x55; 16]).unwrap());
        let server = authority
            .issue_server_certificate(
                &["127.0.0.1".to_owned(), "localhost".to_owned()],
                setup.certified_at,
                [0x56; 16],
            )
            .unwrap();
        let identity = TlsIdentity::new(&server.chain, &server.key).unwrap();
        let anchors = watch::channel(Arc::new(authority.anchors().clone())).1;
        let grace = watch::Sender::new(Duration::ZERO);
        let equal = Arc::new(Equal::default());
        let time = {
            let clock = clock.clone();
            Arc::new(move || clock.trusted().now)
        };
        let tls = server_config(
            watch::channel(Arc::new(identity)).1,
            ClientAuth::OptionalOrExpired {
                anchors,
                grace: grace.subscribe(),
                own: Arc::clone(&equal) as Arc<dyn OwnAnchors>,
            },
            &[TUNNEL_ALPN],
            time,
        )
        .unwrap();
        let endpoint = QuicEndpoint::server(setup.address, tls, QuicSettings::default()).unwrap();
        let supervisor = Supervisor::new();
        let shared = Arc::new(Shared {
            changed: watch::Sender::new(0),
            clock,
            book: Mutex::new(Book {
                authority: Arc::clone(&authority),
                now: setup.now,
                token: TOKEN.to_owned(),
                used_by: None,
                forgets: false,
                answers: BTreeMap::new(),
                refusals: VecDeque::new(),
                refused_serials: Vec::new(),
                serials: 0,
                heartbeat: json!({ "status": "active", "last_heartbeat_at": setup.now.to_string() }),
                seen: Vec::new(),
                peers_made: 0,
                tunnels: Vec::new(),
                greeted: Vec::new(),
                ended: Vec::new(),
            }),
        });
        let parent = Self {
            wall,
            address: endpoint.local_address().unwrap(),
            fingerprint: authority.fingerprint(),
            grace,
            equal,
            endpoint: endpoint.clone(),
            shared: Arc::clone(&shared),
        };
        let scope = supervisor.scope(Stage::Work);
        let tasks = scope.clone();
        scope.spawn_until_cancelled("listen", async move {
            while let Some(incoming) = endpoint.accept().await {
                tasks.spawn_until_cancelled(
                    "connection",
                    connection(incoming, Arc::clone(&shared), tasks.clone()),
                );
            }
        });
        parent
    }

    pub fn bridge(&self) -> HostPort {
        self.address.to_string().parse().unwrap()
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap()
    }

    /// Scripts the next answer on a path; several are given in order.
    pub fn next(&self, path: &'static str, answer: Answer) {
        self.book().answers.entry(path).or_default().push_back(answer);
    }

    /// Refuses the next dial.
    pub fn refuse_next(&self, refused: Refused) {
        self.book().refusals.push_back(refused);
    }

    /// Refuses every dial that shows this certificate.
    pub fn refuse_serial(&self, serial: &str, refused: Refused) {
        self.book().refused_serials.push((serial.to_owned(), refused));
    }

    /// Does not repeat a lost answer, as the published platform.
    pub fn forget(&self) {
        self.book().forgets = true;
    }

    /// A new token for the same peer.
    pub fn mint(&self, token: &str) {
        let mut book = self.book();
        token.clone_into(&mut book.token);
        book.used_by = None;
    }

    pub fn set_time(&self, now: UnixTime) {
        self.wall.set(now);
        let mut book = self.book();
        book.now = now;
        book.heartbeat["last_heartbeat_at"] = json!(now.to_string());
    }

    /// Breaks all tunnels without a word.
    pub fn break_tunnels(&self) {
        for (_, scope) in self.book().tunnels.drain(..) {
            scope.cancel();
        }
    }

    /// Takes leave on all tunnels.
    pub async fn say_goodbye(&self, reason: GoodbyeReason, retry_after_millis: u32) {
        let tunnels: Vec<_> = self.book().tunnels.drain(..).collect();
        for (tunnel, _) in tunnels {
            let goodbye = Goodbye {
                reason,
                message: "as scripted".to_owned(),
                retry_after_millis,
            };
            tunnel.close(goodbye).await;
        }
    }

    /// The newest tunnel.
    pub fn tunnel(&self) -> Tunnel {
        self.book().tunnels.last().unwrap().0.clone()
    }

    /// Waits until the book shows it.
    pub async fn wait<T>(&self, what: &str, mut look: impl FnMut(&Book) -> Option<T>) -> T {
        let mut changed = self.shared.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = look(&self.book()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        if let Ok(found) = tokio::time::timeout(DEADLINE, found).await {
            return found;
        }
        panic!("gave up waiting until {what}; seen: {:?}", self.book().seen)
    }
}

impl Drop for ScriptedParent {
    /// Its tasks end with their connections.
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

fn note(shared: &Shared, change: impl FnOnce(&mut Book)) {
    change(&mut shared.book.lock().unwrap());
    shared.changed.send_modify(|count| *count += 1);
}

fn serial_of(transport: &dyn Transport) -> Option<String> {
    let certificate = transport.peer_certificate()?;
    Some(CertificateFacts::of_der(&certificate).unwrap().serial_hex)
}

async fn connection(incoming: IncomingConnection, shared: Arc<Shared>, scope: TaskScope) {
    let address = incoming.remote_address();
    let Ok(transport) = incoming.handshake().await else {
        return;
    };
    let serial = serial_of(&*transport);
    let shown = transport.peer_certificate();
    let ended = shown.map(|der| CertificateFacts::of_der(&der).unwrap().not_after);
    let decide = |_: &_| {
        let mut book = shared.book.lock().unwrap();
        book.greeted.push(serial.clone());
        let by_serial = book
            .refused_serials
            .iter()
            .find(|(refused, _)| serial.as_ref() == Some(refused))
            .map(|(_, refused)| refused.clone());
        match by_serial.or_else(|| book.refusals.pop_front()) {
            Some(refused) => Err(refused),
            None => Ok(welcome(&shared.clock, address, ended)),
        }
    };
    let accepted = Tunnel::accept(
        Arc::clone(&transport),
        TunnelSettings::default(),
        shared.clock.clone(),
        decide,
    )
    .await;
    shared.changed.send_modify(|count| *count += 1);
    let Ok((tunnel, _, driver)) = accepted else {
        return;
    };
    let own = scope.child();
    let ending = Arc::clone(&shared);
    own.spawn_until_cancelled("tunnel", async move {
        let reason = driver.run().await;
        note(&ending, |book| book.ended.push(reason));
    });
    note(&shared, |book| book.tunnels.push((tunnel.clone(), own.clone())));
    while let Ok(stream) = tunnel.accept_stream().await {
        let (shared, scope, serial) = (Arc::clone(&shared), own.clone(), serial.clone());
        own.spawn_until_cancelled("stream", serve(stream, shared, scope, serial));
    }
}

fn welcome(clock: &Clock, address: SocketAddr, ended: Option<UnixTime>) -> Welcome {
    let now = clock.trusted().now;
    let renewal_only = ended.is_some_and(|ended| now > ended);
    Welcome {
        session: SessionId::new_v7(NOW, [7; 10]),
        agent: "scripted/1".to_owned(),
        keepalive_millis: 0,
        max_streams: 8,
        observed_address: address.to_string(),
        unix_seconds: clock.trusted().now.as_seconds(),
        features: renewal_only
            .then(|| RENEWAL_ONLY_FEATURE.to_owned())
            .into_iter()
            .collect(),
    }
}

async fn serve(stream: IncomingStream, shared: Arc<Shared>, scope: TaskScope, serial: Option<String>) {
    let Ok(stream) = stream.accept().await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, scope, serial) = (Arc::clone(&shared), scope.clone(), serial.clone());
        async move { Ok::<_, Infallible>(answer(request, &shared, &scope, serial).await) }
    });
    let _ = tunnel_http::serve(stream, service).await;
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    scope: &TaskScope,
    serial: Option<String>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // What is asked with GET has none.
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let scripted = {
        let mut book = shared.book.lock().unwrap();
        book.seen.push(Seen {
            path: path.clone(),
            body: body.clone(),
            serial,
        });
        book.answers.get_mut(path.as_str()).and_then(VecDeque::pop_front)
    };
    let usual = |shared: &Shared| shared.book.lock().unwrap().usual(&path, &body);
    if let Some(Answer::Held(release)) = &scripted {
        shared.changed.send_modify(|count| *count += 1);
        release.notified().await;
    }
    let (status, headers, bytes) = match scripted {
        None | Some(Answer::Held(_)) => {
            let (status, value) = usual(shared);
            (status, Vec::new(), value.to_string().into_bytes())
        }
        Some(Answer::Http(status, headers, bytes)) => (status, headers, bytes),
        Some(Answer::Data(make)) => {
            let data = make(&mut shared.book.lock().unwrap(), &body);
            (200, Vec::new(), success_body(&data).to_string().into_bytes())
        }
        Some(Answer::DoneAndLost) => {
            usual(shared);
            scope.cancel();
            return never(shared).await;
        }
        Some(Answer::Lost) => {
            scope.cancel();
            return never(shared).await;
        }
        Some(Answer::Never) => return never(shared).await,
    };
    shared.changed.send_modify(|count| *count += 1);
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(bytes))).unwrap()
}

async fn never(shared: &Shared) -> Response<Full<Bytes>> {
    shared.changed.send_modify(|count| *count += 1);
    pending().await
}

/// The subject that a certificate for the peer must have.
pub fn subject() -> String {
    peer_subject(PEER.parse::<PeerId>().unwrap())
}
