//! The satellite's own HTTPS listener, called by a parent with its certificate over real TLS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use powernode_satellite::contract::{
    CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH, RESOURCES_PATH, SERVICE_CATALOG_PATH, SUBSCRIPTIONS_PATH,
    TRUST_BUNDLE_PATH,
};
use powernode_satellite::grant::{GrantRequest, NewGrant};
use powernode_satellite::identity::certificate::{CertificateChain, CertificateFacts};
use powernode_satellite::identity::key::PrivateKey;
use powernode_satellite::identity::reversed::bridge_client_config;
use powernode_satellite::identity::tls::TlsIdentity;
use powernode_satellite::identity::tls_failure::FailureRecord;
use powernode_satellite::machine::membership::StoredIdentity;
use powernode_satellite::process::clock::Clock;
use powernode_satellite::process::config::satellite::ReachConfig;
use powernode_satellite::satellite::grants::{Handover, Issue};
use powernode_satellite::satellite::https::{CONNECTIONS_PER_SOURCE, HttpsListener};
use powernode_satellite::store::audit_log::reading;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::scripted_parent::site::{Running, Site, invitation};
use crate::scripted_parent::{Answer, Book, DAY, DEADLINE, NOW, PEER, ScriptedParent};

/// Pause between two looks at a condition: the listener counts who comes too often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const OTHER_PEER: &str = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8f";

/// A member that listens on loopback, and where.
struct Called {
    parent: ScriptedParent,
    site: Site,
    running: Running,
    address: std::net::SocketAddr,
}

impl Called {
    async fn start() -> Self {
        let (parent, mut site) = (ScriptedParent::start(), Site::new());
        site.audited = true;
        let running = site.run().await;
        running.join(invitation(&parent)).await;
        running.wait("joined", |report| report.state == "joined").await;
        Self::listening(parent, site, running).await
    }

    async fn listening(parent: ScriptedParent, site: Site, running: Running) -> Self {
        let https = HttpsListener {
            config: ReachConfig {
                https_listen: Some(([127, 0, 0, 1], 0).into()),
                port_mapping: true,
                listen_port: 0,
                endpoint: None,
                allow_private: false,
            },
            store: running.store.clone(),
            clock: Clock::with_wall_clock(site.build, site.wall.clone()),
            driver: running.handle.clone(),
            surroundings: Arc::clone(&running.surroundings),
        };
        https.spawn(&running.scope()).await;
        let listens = |report: &powernode_satellite::satellite::status::StatusReport| {
            report
                .https
                .as_ref()
                .is_some_and(|https| https.listening.is_some())
        };
        let report = running.wait("it listens", listens).await;
        Self {
            address: report.https.unwrap().listening.unwrap(),
            parent,
            site,
            running,
        }
    }

    /// What the parent's authority certifies under a peer's name.
    fn identity(&self, peer: &str) -> TlsIdentity {
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_pem("anybody").unwrap();
        let mut book = self.parent.book();
        let authority = Arc::clone(&book.authority);
        let issued = book.certificate(&authority, &csr, peer);
        let chain = CertificateChain::from_pem(issued["cert_pem"].as_str().unwrap()).unwrap();
        TlsIdentity::new(&chain, &key).unwrap()
    }

    async fn tls(&self, identity: TlsIdentity) -> std::io::Result<TlsStream<TcpStream>> {
        let anchors = self.parent.book().authority.anchors().clone();
        let clock = Clock::with_wall_clock(self.site.build, self.site.wall.clone());
        let config = bridge_client_config(
            watch::channel(Arc::new(identity)).1,
            watch::channel(Arc::new(anchors)).1,
            &[b"http/1.1"],
            Arc::new(move || clock.trusted().now),
            FailureRecord::default(),
        );
        let stream = TcpStream::connect(self.address).await?;
        let connector = TlsConnector::from(Arc::new(config.unwrap()));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        timeout(DEADLINE, connector.connect(name, stream)).await.unwrap()
    }

    /// The parent, connected.
    async fn parent(&self) -> Parent {
        let stream = self.tls(self.identity(PEER)).await.unwrap();
        Parent::over(stream).await
    }

    async fn token(&self, cidrs: &[&str]) -> String {
        let request = GrantRequest {
            source_cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
            ..GrantRequest::new(PEER.parse().unwrap(), "platform", "service", &["read", "write"])
        };
        let issue = Issue::of(NewGrant::check(request).unwrap(), Handover::Done);
        let issued = self.running.surroundings.grants.issue(issue).await.unwrap();
        issued.token.to_secret().expose_text().unwrap().to_owned()
    }
}

/// One connection of the parent's.
struct Parent {
    sender: SendRequest<Full<Bytes>>,
    /// The serial number of the satellite's certificate.
    serial: String,
    connection: JoinSet<()>,
}

impl Parent {
    async fn over(stream: TlsStream<TcpStream>) -> Self {
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (sender, driving) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            let _ = driving.await;
        });
        Self {
            sender,
            serial: CertificateFacts::of_der(&leaf).unwrap().serial_hex,
            connection,
        }
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "shop-17");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = self.sender.send_request(request.body(Full::from(body)).unwrap());
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.ask(Method::GET, path, headers, Value::Null).await
    }
}

#[tokio::test]
async fn the_parent_is_answered_by_its_certificate_and_acts_by_a_grant() {
    let called = Called::start().await;
    let mut parent = called.parent().await;
    let (status, body) = parent.get(SERVICE_CATALOG_PATH, &[]).await;
    assert_eq!((status, &body["data"]["offerings"]), (200, &json!([])), "{body}");
    let (status, body) = parent.get(TRUST_BUNDLE_PATH, &[]).await;
    let bundle = body["data"]["ca_bundle_pem"].as_str().unwrap();
    assert!(status == 200 && bundle.contains("BEGIN CERTIFICATE"), "{body}");
    let heartbeat = json!({ "platform_version": "0.1.0" });
    let (status, body) = parent.ask(Method::POST, HEARTBEAT_PATH, &[], heartbeat).await;
    assert_eq!(
        (status, &body["data"]["status"]),
        (200, &json!("active")),
        "{body}"
    );
    assert!(called.running.surroundings.parent_heard.borrow().is_some());

    let resource = format!("{RESOURCES_PATH}/service/ssh");
    let (status, body) = parent.get(&resource, &[]).await;
    assert_eq!(status, 401, "{body}");
    // The source is the connection's, whatever a header says.
    let here = format!("Bearer {}", called.token(&["127.0.0.0/8"]).await);
    let away = format!("Bearer {}", called.token(&["203.0.113.0/24"]).await);
    let claimed = ("x-forwarded-for", "203.0.113.9");
    let (status, body) = parent.get(&resource, &[("authorization", &here), claimed]).await;
    assert_eq!((status, &body["data"]["exists"]), (200, &json!(false)), "{body}");
    let (status, body) = parent.get(&resource, &[("authorization", &away), claimed]).await;
    assert_eq!(status, 403, "{body}");
    assert!(body["error"].as_str().unwrap().contains("127.0.0.1"), "{body}");
    let wanted = json!({ "slug": "nothing", "local_hostname": "a.local" });
    let bearer = [("authorization", here.as_str())];
    let (status, _) = parent
        .ask(Method::POST, SUBSCRIPTIONS_PATH, &bearer, wanted)
        .await;
    assert_eq!(status, 404);
    let (status, _) = parent.get("/", &[]).await;
    assert_eq!(status, 404);

    // All of it is noted but for the heartbeat, each with who called from where.
    let Called { site, running, .. } = called;
    running.stop().await;
    let (store, _) = site.open().await.unwrap();
    let noted = reading::answer(store.database(), "entries", "", |_| true).unwrap();
    let requests: Vec<_> = noted["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["action"] == "request")
        .collect();
    let told: Vec<(&str, &str)> = requests
        .iter()
        .map(|entry| {
            (
                entry["object"].as_str().unwrap(),
                entry["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    let subscribe = format!("POST {SUBSCRIPTIONS_PATH}");
    let (catalog, bundle) = (
        format!("GET {SERVICE_CATALOG_PATH}"),
        format!("GET {TRUST_BUNDLE_PATH}"),
    );
    let resource = format!("GET {resource}");
    assert_eq!(
        told,
        [
            (catalog.as_str(), "done"),
            (&bundle, "done"),
            (&resource, "refused"),
            (&resource, "done"),
            (&resource, "refused"),
            (&subscribe, "refused"),
            ("GET /", "refused"),
        ],
        "{noted}"
    );
    for entry in &requests {
        assert_eq!(entry["federation_peer_id"], PEER, "{entry}");
        assert_eq!(entry["source"], "127.0.0.1", "{entry}");
    }
    assert!(requests[3]["grant_id"].is_string(), "{}", requests[3]);
}

#[tokio::test]
async fn nobody_else_comes_beyond_the_handshake() {
    let called = Called::start().await;
    let own = called.site_identity();
    let stranger = ScriptedParent::start();
    let foreign = {
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_pem("anybody").unwrap();
        let mut book = stranger.book();
        let authority = Arc::clone(&book.authority);
        let issued = book.certificate(&authority, &csr, PEER);
        TlsIdentity::new(
            &CertificateChain::from_pem(issued["cert_pem"].as_str().unwrap()).unwrap(),
            &key,
        )
    };
    for (who, identity) in [
        ("another satellite", called.identity(OTHER_PEER)),
        ("another authority's peer", foreign.unwrap()),
        ("the satellite itself", own),
    ] {
        // In TLS 1.3 the caller is done before its certificate is judged.
        let refused = async {
            let mut stream = called.tls(identity).await?;
            stream.read(&mut [0; 1]).await
        };
        let refused = timeout(DEADLINE, refused).await.unwrap();
        assert!(refused.is_err(), "{who}: {refused:?}");
    }
    let (status, _) = called.parent().await.get(SERVICE_CATALOG_PATH, &[]).await;
    assert_eq!(status, 200, "the parent still is");
    called.running.stop().await;
}

#[tokio::test]
async fn one_source_holds_few_connections_and_gets_its_places_back() {
    let called = Called::start().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_SOURCE {
        held.push(called.parent().await);
    }
    let mut beyond = TcpStream::connect(called.address).await.unwrap();
    let closed = timeout(DEADLINE, beyond.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    drop(held);
    // The other side learns of it in its own time.
    let again = async {
        loop {
            if let Ok(stream) = called.tls(called.identity(PEER)).await {
                return Parent::over(stream).await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let (status, _) = timeout(DEADLINE, again)
        .await
        .unwrap()
        .get(SERVICE_CATALOG_PATH, &[])
        .await;
    assert_eq!(status, 200);
    called.running.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart_and_an_open_connection_stays() {
    let due = NOW.plus(DAY * 68);
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    site.wall.set(due);
    parent.set_time(due);
    // The renewal waits until the early connection is there.
    let release = Arc::new(Notify::new());
    parent.next(CERTIFICATE_REFRESH_PATH, Answer::Held(Arc::clone(&release)));
    let running = site.run().await;
    let called = Called::listening(parent, site, running).await;
    let mut early = called.parent().await;
    let first = early.serial.clone();
    let asked = |book: &Book| (!book.refreshes().is_empty()).then_some(());
    called.parent.wait("a renewal is asked for", asked).await;
    release.notify_one();
    let renewed = |report: &powernode_satellite::satellite::status::StatusReport| {
        report
            .certificate
            .as_ref()
            .is_some_and(|shown| shown.serial != first)
    };
    called.running.wait("renewed", renewed).await;
    let shown = async {
        loop {
            let late = called.parent().await;
            if late.serial != first {
                return late;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let mut late = timeout(DEADLINE, shown).await.unwrap();
    for parent in [&mut early, &mut late] {
        assert_eq!(parent.get(SERVICE_CATALOG_PATH, &[]).await.0, 200);
    }
    called.running.stop().await;
}

#[tokio::test]
async fn without_a_peering_nobody_is_let_in_and_the_end_of_it_ends_connections() {
    let called = Called::start().await;
    let mut open = called.parent().await;
    assert_eq!(open.get(SERVICE_CATALOG_PATH, &[]).await.0, 200);
    called
        .running
        .handle
        .leave("sold".to_owned())
        .await
        .unwrap()
        .unwrap();
    timeout(DEADLINE, open.connection.join_next()).await.unwrap();
    let refused = called.tls(called.identity(PEER)).await;
    assert!(refused.is_err(), "{refused:?}");
    called.running.stop().await;
}

impl Called {
    /// The satellite's own.
    fn site_identity(&self) -> TlsIdentity {
        let member = self.running.handle.member.clone();
        let StoredIdentity {
            pkcs8, certificate, ..
        } = member.borrow().as_ref().unwrap().membership.identity.clone();
        let key = PrivateKey::from_pkcs8(pkcs8).unwrap();
        TlsIdentity::new(&CertificateChain::from_pem(&certificate.cert_pem).unwrap(), &key).unwrap()
    }
}
