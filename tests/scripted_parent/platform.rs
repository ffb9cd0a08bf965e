//! A platform's node API over HTTPS in this process, with an authority of its own for nodes: the published
//! platform, which takes a bootstrap token once and never repeats an answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::message::{failure_body, success_body};
use powernode_satellite::contract::{NODE_ENROLL_PATH, NODE_REFRESH_PATH};
use powernode_satellite::identity::anchors::Anchors;
use powernode_satellite::identity::certificate::CertificateFacts;
use powernode_satellite::identity::tls::{ClientAuth, TlsIdentity, server_config};
use powernode_satellite::process::supervisor::{Stage, Supervisor, TaskScope};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{DAY, DEADLINE, NOW, ScriptedParent, Seen};

pub const BOOTSTRAP_TOKEN: &str = "bootstrap-token-of-the-test";
pub const INSTANCE: &str = "0192F0C1-1111-7111-8111-111111111111";

/// One scripted answer.
pub enum PlatformAnswer {
    Http(u16, Vec<(&'static str, String)>, Value),
    /// Does what is usual, and then the connection breaks.
    DoneAndLost,
    /// The connection breaks before anything is done.
    Lost,
}

/// What the platform knows and has met.
pub struct PlatformBook {
    pub now: UnixTime,
    token: Option<String>,
    pub answers: VecDeque<PlatformAnswer>,
    pub seen: Vec<Seen>,
    authority: NodeAuthority,
}

/// The authority of a platform's nodes: Ed25519 and nothing special, as the published one.
pub struct NodeAuthority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl NodeAuthority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = named("node authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// `data` of an answer: a certificate for 90 days with the CSR's own name.
    pub fn certify(&self, csr: &str, now: UnixTime) -> Value {
        let request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = named(INSTANCE);
        assert_eq!(request.params.distinguished_name, params.distinguished_name);
        let date = |time: UnixTime| OffsetDateTime::from_unix_timestamp(time.as_seconds()).unwrap();
        params.not_before = date(now);
        params.not_after = date(now.plus(DAY * 90));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&request.public_key, &issuer).unwrap();
        json!({
            "cert_pem": certificate.pem(),
            "ca_chain_pem": self.pem,
            "instance_id": INSTANCE,
            "mtls_subject": format!("CN={INSTANCE}"),
            "not_after": now.plus(DAY * 90).to_string(),
            "certificate_id": "0192f0c1-2222-7222-8222-222222222222",
        })
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl PlatformBook {
    pub fn requests(&self, path: &str) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.path == path).collect()
    }

    fn usual(&mut self, seen: &Seen) -> (u16, Value) {
        match (seen.path.as_str(), &seen.serial) {
            (NODE_ENROLL_PATH, _) => {
                let token = seen.body["bootstrap_token"].as_str().map(str::to_owned);
                if self.token.is_none() || self.token != token {
                    return (422, failure_body("invalid or expired bootstrap token", None));
                }
                self.token = None;
            }
            (NODE_REFRESH_PATH, Some(_)) => {}
            (NODE_REFRESH_PATH, None) => {
                return (
                    401,
                    failure_body("mTLS client certificate required", Some("UNAUTHORIZED")),
                );
            }
            _ => return (404, failure_body("no such path", None)),
        }
        let csr = seen.body["csr_pem"].as_str().unwrap();
        (200, success_body(&self.authority.certify(csr, self.now)))
    }
}

/// See the module's text.
pub struct ScriptedPlatform {
    pub address: SocketAddr,
    book: Arc<Mutex<PlatformBook>>,
    changed: watch::Sender<u64>,
    _supervisor: Supervisor,
}

impl ScriptedPlatform {
    /// With a server certificate of the parent's authority.
    pub async fn start(parent: &ScriptedParent) -> Self {
        let server = parent
            .book()
            .authority
            .issue_server_certificate(&["127.0.0.1".to_owned()], NOW, [0x57; 16])
            .unwrap();
        let authority = NodeAuthority::new();
        let identity = TlsIdentity::new(&server.chain, &server.key).unwrap();
        let nodes = Anchors::from_pem(&authority.pem).unwrap();
        let book = Arc::new(Mutex::new(PlatformBook {
            now: NOW,
            token: Some(BOOTSTRAP_TOKEN.to_owned()),
            answers: VecDeque::new(),
            seen: Vec::new(),
            authority,
        }));
        let time = {
            let book = Arc::clone(&book);
            Arc::new(move || book.lock().unwrap().now)
        };
        let tls = server_config(
            watch::channel(Arc::new(identity)).1,
            ClientAuth::Optional(watch::channel(Arc::new(nodes)).1),
            &[b"http/1.1"],
            time,
        )
        .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let supervisor = Supervisor::new();
        let changed = watch::Sender::new(0);
        let scope = supervisor.scope(Stage::Work);
        let (tasks, told, noted) = (scope.clone(), Arc::clone(&book), changed.clone());
        scope.spawn_until_cancelled("platform", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = serve(
                    stream,
                    acceptor.clone(),
                    Arc::clone(&told),
                    noted.clone(),
                    tasks.child(),
                );
                tasks.spawn_until_cancelled("platform connection", connection);
            }
        });
        Self {
            address,
            book,
            changed,
            _supervisor: supervisor,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn book(&self) -> MutexGuard<'_, PlatformBook> {
        self.book.lock().unwrap()
    }

    pub fn next(&self, answer: PlatformAnswer) {
        self.book().answers.push_back(answer);
    }

    /// Waits until the book shows it.
    pub async fn wait<T>(&self, what: &str, mut look: impl FnMut(&PlatformBook) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
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

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    book: Arc<Mutex<PlatformBook>>,
    changed: watch::Sender<u64>,
    scope: TaskScope,
) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let serial = shown.map(|der| CertificateFacts::of_der(der).unwrap().serial_hex);
    let service = service_fn(|request| {
        let (book, changed, scope, serial) = (&book, &changed, &scope, serial.clone());
        async move { Ok::<_, Infallible>(answer(request, serial, book, changed, scope).await) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = served => {}
        () = scope.cancelled() => {}
    }
}

async fn answer(
    request: Request<Incoming>,
    serial: Option<String>,
    book: &Mutex<PlatformBook>,
    changed: &watch::Sender<u64>,
    scope: &TaskScope,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let seen = Seen {
        path,
        body: serde_json::from_slice(&body).unwrap(),
        serial,
    };
    let answer = {
        let mut book = book.lock().unwrap();
        book.seen.push(seen.clone());
        match book.answers.pop_front() {
            None => {
                let (status, body) = book.usual(&seen);
                Some((status, Vec::new(), body))
            }
            Some(PlatformAnswer::Http(status, headers, body)) => Some((status, headers, body)),
            Some(PlatformAnswer::DoneAndLost) => {
                book.usual(&seen);
                None
            }
            Some(PlatformAnswer::Lost) => None,
        }
    };
    changed.send_modify(|count| *count += 1);
    let Some((status, headers, body)) = answer else {
        scope.cancel();
        return std::future::pending().await;
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}
