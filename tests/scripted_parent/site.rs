//! A satellite under test: the real driver on a real store in a directory of its own, with a wall
//! clock that the test sets. It can be stopped in order, or vanish as in a power cut.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use powernode_satellite::audit::retention::Retention;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::invitation::{ContractVersion, HostPort, Invitation, ParentTrust};
use powernode_satellite::contract::peer::SpawnMode;
use powernode_satellite::contract::token::AcceptanceToken;
use powernode_satellite::machine::backoff::BackoffPolicy;
use powernode_satellite::machine::child::ChildPolicy;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::machine::ladder::{LadderPolicy, Rung};
use powernode_satellite::machine::membership::{Operator, StoredInvitation};
use powernode_satellite::machine::uplinks::UplinksPolicy;
use powernode_satellite::process::clock::{Clock, ManualWallClock};
use powernode_satellite::process::config::node::NodeIdentityConfig;
use powernode_satellite::process::config::satellite::Ways;
use powernode_satellite::process::supervisor::{ShutdownReport, Stage, Supervisor, TaskScope};
use powernode_satellite::satellite::driver::{Driver, DriverHandle, DriverSettings};
use powernode_satellite::satellite::federation_api::{NoOfferings, Surroundings};
use powernode_satellite::satellite::grants::GrantBook;
use powernode_satellite::satellite::membership_store::{Loaded, MembershipStore, OpenStateError};
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::store::audit_log::{AuditLog, AuditWriter};
use powernode_satellite::tunnel::TunnelSettings;
use tokio::sync::watch;

use super::{DEADLINE, NOW, ScriptedParent};

/// Where the satellite's state is and how it is set up.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub wall: ManualWallClock,
    /// When the satellite was built.
    pub build: UnixTime,
    pub settings: DriverSettings,
    /// Whether what the parent does is noted in the store.
    pub audited: bool,
}

impl Site {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            wall: ManualWallClock::new(NOW),
            build: NOW.minus(super::DAY * 10),
            settings: settings(),
            audited: false,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The store as it is; after a power cut the last write of before may still be under way.
    pub async fn open(&self) -> Result<(MembershipStore, Loaded), OpenStateError> {
        let opened = async {
            loop {
                match MembershipStore::open(self.path(), None) {
                    Err(error) if error.holder().is_some() => {
                        tokio::task::yield_now().await;
                    }
                    other => return other,
                }
            }
        };
        tokio::time::timeout(DEADLINE, opened).await.unwrap()
    }

    pub async fn run(&self) -> Running {
        let (store, loaded) = self.open().await.unwrap();
        self.run_on(store, loaded)
    }

    pub fn run_on(&self, store: MembershipStore, loaded: Loaded) -> Running {
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        let clock = Clock::with_wall_clock(self.build, self.wall.clone());
        let audit = if self.audited {
            audit_log(&store, &clock, &supervisor)
        } else {
            AuditLog::default()
        };
        let grants = GrantBook::open(store.database().clone(), false, clock.clone()).unwrap();
        let surroundings = Arc::new(Surroundings::new(
            grants,
            Arc::new(NoOfferings),
            audit.clone(),
            clock.clone(),
        ));
        let (driver, handle) = Driver::new(
            store.clone(),
            loaded,
            clock,
            scope.clone(),
            self.settings.clone(),
            audit,
        );
        let driver = driver.with_surroundings(Arc::clone(&surroundings));
        scope.spawn("driver", driver.run());
        Running {
            supervisor,
            handle,
            surroundings,
            store,
        }
    }

    /// A member that has stopped.
    pub async fn joined(parent: &ScriptedParent) -> Self {
        let site = Self::new();
        let running = site.run().await;
        running.join(invitation(parent)).await;
        running.wait("joined", |report| report.state == "joined").await;
        running.stop().await;
        site
    }

    pub async fn state(&self) -> JoinState {
        self.open().await.unwrap().1.state.unwrap()
    }
}

fn audit_log(store: &MembershipStore, clock: &Clock, supervisor: &Supervisor) -> AuditLog {
    let kept = watch::channel(Retention {
        max_age: super::DAY * 30,
        max_rows: 1_000,
    })
    .1;
    let (audit, writer) = AuditLog::open(store.database().clone(), clock.clone(), kept).unwrap();
    let scope = supervisor.scope(Stage::Base);
    scope.spawn("audit log", AuditWriter::run(writer, scope.clone()));
    audit
}

pub fn settings() -> DriverSettings {
    DriverSettings {
        child: ChildPolicy {
            uplinks: UplinksPolicy {
                ladder: LadderPolicy {
                    rungs: vec![Rung::Quic],
                    backoff: BackoffPolicy {
                        initial: Duration::from_millis(50),
                        max: Duration::from_millis(200),
                    },
                    ..LadderPolicy::default()
                },
                ..UplinksPolicy::default()
            },
            bridges: Vec::new(),
        },
        cluster_hook: None,
        tunnel: TunnelSettings::default(),
        ways: Ways::default(),
        node: NodeIdentityConfig::default(),
        operator: None,
    }
}

pub fn operator() -> Operator {
    Operator {
        contact: "ops@example.com".to_owned(),
        location: "DE".to_owned(),
        data_residency: Some("eu".to_owned()),
    }
}

/// What a join code of this parent would say.
pub fn invitation(parent: &ScriptedParent) -> StoredInvitation {
    invitation_with(parent, super::TOKEN, vec![parent.bridge()])
}

pub fn invitation_with(parent: &ScriptedParent, token: &str, bridges: Vec<HostPort>) -> StoredInvitation {
    let invitation = Invitation {
        parent_url: format!("https://{}", parent.bridge()).parse().unwrap(),
        bridges,
        token: AcceptanceToken::parse(token.to_owned()).unwrap(),
        trust: ParentTrust::Pinned(parent.fingerprint),
        spawn_mode: SpawnMode::ManagedChild,
        parent_peer_id: None,
        contract_version: ContractVersion::CURRENT,
        minted_at: None,
    };
    StoredInvitation::new(invitation, operator())
}

/// A satellite that runs.
pub struct Running {
    supervisor: Supervisor,
    pub handle: DriverHandle,
    pub surroundings: Arc<Surroundings>,
    pub store: MembershipStore,
}

impl Running {
    pub async fn join(&self, invitation: StoredInvitation) {
        self.handle.join(invitation).await.unwrap().unwrap();
    }

    pub fn report(&self) -> StatusReport {
        self.handle.status.borrow().clone()
    }

    /// Waits until a report shows it.
    pub async fn wait(&self, what: &str, mut is: impl FnMut(&StatusReport) -> bool) -> StatusReport {
        let mut status = self.handle.status.clone();
        let found = status.wait_for(|report| is(report));
        if let Ok(report) = tokio::time::timeout(DEADLINE, found).await {
            return report.unwrap().clone();
        }
        panic!("gave up waiting until {what}: {:#?}", self.report())
    }

    /// Waits for the refusal and gives its text.
    pub async fn refusal(&self) -> String {
        let report = self.wait("refused", |report| report.state == "refused").await;
        report.refusal.unwrap()
    }

    /// For what a daemon runs beside the driver.
    pub fn scope(&self) -> TaskScope {
        self.supervisor.scope(Stage::Work)
    }

    pub fn tasks(&self) -> Vec<&'static str> {
        self.supervisor.running()
    }

    pub async fn stop(self) -> ShutdownReport {
        let report = self
            .supervisor
            .shutdown(Duration::from_secs(10), std::future::pending())
            .await;
        assert!(report.aborted.is_empty() && report.stuck.is_empty(), "{report:?}");
        report
    }

    /// As a power cut: no goodbye, no last write.
    pub async fn vanish(self) {
        self.supervisor
            .shutdown(Duration::ZERO, std::future::ready(()))
            .await;
    }
}
