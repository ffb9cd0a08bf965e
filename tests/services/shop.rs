//! A satellite's services behind one tunnel, and the parent's end of it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use powernode_satellite::audit::retention::Retention;
use powernode_satellite::base::id::{GrantId, PeerId, SessionId, TraceId};
use powernode_satellite::base::secret::Secret;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::bridge::certificate_authority::CertificateAuthority;
use powernode_satellite::contract::invitation::ParentTrust;
use powernode_satellite::contract::service::{ServiceDefinition, ServiceFields};
use powernode_satellite::grant::{GrantRequest, NewGrant};
use powernode_satellite::identity::certificate::CertificateChain;
use powernode_satellite::identity::key::PrivateKey;
use powernode_satellite::identity::tls::{ClientAuth, ClientTls, TlsIdentity, client_config, server_config};
use powernode_satellite::identity::tls_failure::FailureRecord;
use powernode_satellite::process::clock::{Clock, ManualWallClock};
use powernode_satellite::process::supervisor::{Stage, Supervisor, TaskScope};
use powernode_satellite::satellite::grants::{GrantBook, Handover, Issue};
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::satellite::services::{
    PublishedServices, ServiceLimits, ServiceReport, ServiceServer, Services,
};
use powernode_satellite::store::audit_log::reading::{ENTRIES, answer};
use powernode_satellite::store::audit_log::{AuditLog, AuditWriter};
use powernode_satellite::store::database::Database;
use powernode_satellite::tunnel::flow::Flow;
use powernode_satellite::tunnel::quic::{QuicEndpoint, QuicSettings};
use powernode_satellite::tunnel::stream::refusal_in;
use powernode_satellite::tunnel::{Tunnel, TunnelSettings, TunnelStream};
use powernode_satellite::wire::{
    Hello, ServiceRequest, StreamHeader, StreamKind, StreamRefusal, TUNNEL_ALPN, Welcome,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

/// Patience of every wait; a test that passes never waits this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

/// Who asks, unless a test says otherwise.
pub const ANNA: &str = "anna@example.com";

pub fn peer() -> PeerId {
    "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
}

/// See the module's text.
pub struct Shop {
    pub services: Services,
    pub book: GrantBook,
    pub wall: ManualWallClock,
    /// The parent's end.
    pub parent: Tunnel,
    pub dir: tempfile::TempDir,
    store: MembershipStore,
    _supervisor: Supervisor,
    /// The tunnel and its streams.
    scope: TaskScope,
    /// The streams alone.
    streams: TaskScope,
}

/// A grant for [`ANNA`] with its token.
pub struct Ticket {
    pub grant: GrantId,
    pub token: Secret,
}

pub fn limits() -> ServiceLimits {
    ServiceLimits {
        stream_bandwidth: None,
        session_bandwidth: None,
        connect_timeout: Duration::from_secs(5),
        flow_idle_timeout: Duration::from_secs(120),
    }
}

pub fn service(name: &str, protocol: &str, address: &str) -> ServiceDefinition {
    with(name, protocol, address, |_| {})
}

pub fn with(
    name: &str,
    protocol: &str,
    address: &str,
    change: impl FnOnce(&mut ServiceFields),
) -> ServiceDefinition {
    let mut fields = ServiceFields::new(
        name.parse().unwrap(),
        protocol.parse().unwrap(),
        address.parse().unwrap(),
    );
    change(&mut fields);
    fields.try_into().unwrap()
}

impl Shop {
    pub async fn open(services: Vec<ServiceDefinition>) -> Self {
        Self::open_with(services, limits(), 64).await
    }

    /// `streams` may be open at once.
    pub async fn open_with(configured: Vec<ServiceDefinition>, limits: ServiceLimits, streams: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        let wall = ManualWallClock::new(NOW);
        let clock = Clock::with_wall_clock(NOW, wall.clone());
        let (store, _) = MembershipStore::open(dir.path(), None).unwrap();
        let book = GrantBook::open(store.database().clone(), false, clock.clone()).unwrap();
        scope.spawn_until_cancelled("grant clock", book.gate().watch_clock());
        let published = PublishedServices::new(store.database().clone());
        let services = Services::start(
            configured,
            published.all().unwrap(),
            published,
            limits,
            clock.clone(),
            scope.clone(),
        );
        let kept = Retention {
            max_age: Duration::from_secs(90 * 86_400),
            max_rows: 100_000,
        };
        let (audit, writer) =
            AuditLog::open(store.database().clone(), clock.clone(), watch::channel(kept).1).unwrap();
        scope.spawn("audit log", AuditWriter::run(writer, scope.clone()));
        let server = ServiceServer::new(services.clone(), book.gate(), audit);
        let link = scope.child();
        let (satellite, parent) = tunnel(&link, &clock, streams).await;
        let (session, streams) = (server.session(peer()), link.child());
        let serving = streams.clone();
        link.spawn_until_cancelled("serve", async move {
            while let Ok(stream) = satellite.accept_stream().await {
                serving.spawn_until_cancelled("stream", session.clone().serve(stream));
            }
        });
        Self {
            services,
            book,
            wall,
            parent,
            dir,
            store,
            _supervisor: supervisor,
            scope: link,
            streams,
        }
    }

    /// A grant for one service or, without a name, for all.
    pub async fn ticket(&self, service: Option<&str>) -> Ticket {
        self.ticket_for(service, |_| {}).await
    }

    pub async fn ticket_for(&self, service: Option<&str>, change: impl FnOnce(&mut GrantRequest)) -> Ticket {
        let mut request = GrantRequest::new(peer(), ANNA, "service", &["write"]);
        request.resource_id = service.map(str::to_owned);
        change(&mut request);
        let new = NewGrant::check(request).unwrap();
        let issued = self.book.issue(Issue::of(new, Handover::ByHand)).await.unwrap();
        Ticket {
            grant: issued.grant.id,
            token: issued.token.to_secret(),
        }
    }

    /// A stream as the bridge opens it; the reply is not read yet.
    pub async fn ask(&self, service: &str, ticket: Option<&Ticket>) -> TunnelStream {
        self.ask_as(service, ticket, ANNA, Some("192.0.2.9:50000")).await
    }

    pub async fn ask_as(
        &self,
        service: &str,
        ticket: Option<&Ticket>,
        subject: &str,
        source: Option<&str>,
    ) -> TunnelStream {
        let request = ServiceRequest {
            service: service.to_owned(),
            grant_token: ticket.map(|ticket| ticket.token.clone()),
            subject: subject.to_owned(),
            source: source.map(|source| source.parse().unwrap()),
        };
        let header = StreamHeader {
            kind: StreamKind::Connect(request),
            trace: TraceId(7),
        };
        in_time(self.parent.open_stream(header)).await.unwrap()
    }

    /// A flow of packets to a service.
    pub async fn flow(&self, service: &str, ticket: Option<&Ticket>) -> Flow {
        let request = ServiceRequest {
            service: service.to_owned(),
            grant_token: ticket.map(|ticket| ticket.token.clone()),
            subject: ANNA.to_owned(),
            source: None,
        };
        let header = StreamHeader {
            kind: StreamKind::Flow(request),
            trace: TraceId(8),
        };
        in_time(self.parent.open_flow(header)).await.unwrap()
    }

    /// The refusal that a stream meets.
    pub async fn refusal(&self, service: &str, ticket: Option<&Ticket>) -> StreamRefusal {
        refusal(self.ask(service, ticket).await).await
    }

    pub fn report(&self, service: &str) -> ServiceReport {
        let mut reports = self.services.reports();
        reports.retain(|report| report.service.name.as_str() == service);
        reports.pop().unwrap()
    }

    /// Waits until a report shows it.
    pub async fn wait(&self, service: &str, is: impl Fn(&ServiceReport) -> bool) {
        in_time(async {
            while !is(&self.report(service)) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until the audit log has so many entries, and gives them, oldest first.
    pub async fn noted(&self, count: usize) -> Vec<serde_json::Value> {
        in_time(async {
            loop {
                let page = answer(&self.database(), ENTRIES, "order=oldest", |_| true).unwrap();
                match page["entries"].as_array() {
                    Some(entries) if entries.len() >= count => return entries.clone(),
                    _ => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }

    /// Ends the tunnel as a lost one ends.
    pub fn lose_tunnel(&self) {
        self.scope.cancel();
    }

    /// Lets the streams go as a satellite does that hangs up: before it says goodbye.
    pub fn drop_streams(&self) {
        self.streams.cancel();
    }

    pub fn database(&self) -> Database {
        self.store.database().clone()
    }
}

pub async fn refusal(mut stream: TunnelStream) -> StreamRefusal {
    let error = in_time(stream.read(&mut [0])).await.unwrap_err();
    refusal_in(&error).unwrap_or_else(|| panic!("{error:?}")).clone()
}

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("in time")
}

/// The satellite's end, which dials, and the parent's.
async fn tunnel(scope: &TaskScope, clock: &Clock, streams: u32) -> (Tunnel, Tunnel) {
    let born = NOW.minus(Duration::from_secs(3_600));
    let authority = CertificateAuthority::create("test", born, [0x55; 16]).unwrap();
    let shown = authority
        .issue_server_certificate(&["localhost".to_owned()], NOW, [1; 16])
        .unwrap();
    let shown = TlsIdentity::new(&shown.chain, &shown.key).unwrap();
    let time: Arc<dyn Fn() -> UnixTime + Send + Sync> = {
        let clock = clock.clone();
        Arc::new(move || clock.trusted().now)
    };
    let tls = server_config(
        watch::channel(Arc::new(shown)).1,
        ClientAuth::Optional(watch::channel(Arc::new(authority.anchors().clone())).1),
        &[TUNNEL_ALPN],
        time.clone(),
    )
    .unwrap();
    let settings = QuicSettings {
        max_streams: streams,
        ..QuicSettings::default()
    };
    let server = QuicEndpoint::server((Ipv4Addr::LOCALHOST, 0).into(), tls, settings).unwrap();
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_pem("satellite").unwrap();
    let issued = authority
        .issue_peer_certificate(&csr, peer(), NOW, [2; 16])
        .unwrap();
    let chain = CertificateChain::from_pem(&issued.cert_pem).unwrap();
    let member = TlsIdentity::new(&chain, &key).unwrap();
    let failures = FailureRecord::default();
    let tls = client_config(ClientTls {
        trust: &ParentTrust::Pinned(authority.fingerprint()),
        learned: None,
        identity: Some(watch::channel(Arc::new(member)).1),
        alpn: &[TUNNEL_ALPN],
        time,
        failures: failures.clone(),
    })
    .unwrap();
    let client = QuicEndpoint::client(settings).unwrap();
    let address = server.local_address().unwrap();
    let (near, far) = tokio::join!(client.dial(address, "localhost", tls, &failures), async {
        server.accept().await.unwrap().handshake().await
    });
    let settings = TunnelSettings {
        max_streams: streams,
        ..TunnelSettings::default()
    };
    let hello = Hello {
        version: 1,
        agent: "satellite/test".to_owned(),
        features: Vec::new(),
    };
    let welcome = Welcome {
        session: SessionId::new_v7(NOW, [7; 10]),
        agent: "parent/test".to_owned(),
        keepalive_millis: 0,
        max_streams: 8,
        observed_address: address.to_string(),
        unix_seconds: NOW.as_seconds(),
        features: Vec::new(),
    };
    let (near, far) = tokio::join!(
        Tunnel::dial(near.unwrap(), hello, settings, clock.clone()),
        Tunnel::accept(far.unwrap(), settings, clock.clone(), |_| Ok(welcome)),
    );
    let ((satellite, _, near), (parent, _, far)) = (near.unwrap(), far.unwrap());
    for driver in [near, far] {
        scope.spawn_until_cancelled("tunnel", async move {
            driver.run().await;
        });
    }
    // The endpoints live as long as their connections do.
    (satellite, parent)
}
