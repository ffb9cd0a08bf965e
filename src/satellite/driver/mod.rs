//! Carries out what `machine::child` decides: one loop that owns the machine, the store and the
//! tunnels. Slow work (dialling, requests) runs in tasks that report back through a bounded queue; a
//! report of a tunnel that was hung up meanwhile is dropped. Writes to the store are awaited in the
//! loop, so nothing that depends on one can overtake it.

mod anchors;
mod authority;
mod cluster;
mod facts;
mod grants;
mod handle;
mod joining;
mod news;
mod node;
mod parting;
mod publish;
mod reach;
mod sockets;
mod tunnels;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use cluster::handover_key;
pub use facts::FACTS_INTERVAL;
pub use handle::{
    CancelRejoinError, Command, Departure, DriverHandle, DriverSettings, JoinCommandError, LeaveError,
    Member, RejoinCancelled, Standing, Stopping,
};
pub(super) use news::{EstablishedLink, News, Report, Reporter};
use publish::CertificateWatch;
use tunnels::Link;

use super::federation_api::Surroundings;
use super::membership_store::{Facts, Loaded, MembershipStore, SaveStateError};
use super::report::Failures;
use super::services::ServiceServer;
use super::status::{CountersReport, StatusReport};
use super::{exchange, parent_client};
use crate::base::id::{PeerId, SessionId};
use crate::base::limit::error_chain;
use crate::base::ordered_map::OrderedMap;
use crate::base::time::Moment;
use crate::contract::invitation::HostPort;
use crate::machine::binding_time::BindingTime;
use crate::machine::child::{ChildAction, ChildEvent, ChildMachine, EventKind};
use crate::machine::join::JoinState;
use crate::machine::ladder::TunnelId;
use crate::machine::membership::KeyMaterial;
use crate::machine::watchdog::Verdict;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::reach::interfaces::WayWatch;
use crate::reach::listen::{Listener, Unasked};
use crate::store::audit_log::AuditLog;
use crate::tunnel::{Greeted, Tunnel};

/// Reports of tasks that may wait for the loop. There are never more than a handful of tasks; a full
/// queue makes them wait.
const REPORTS_MAX: usize = 32;

/// Commands that may wait for the loop: more than that many callers at once is no person.
const COMMANDS_MAX: usize = 8;

/// Longest that the loop sleeps, so that the watchdog is fed and the status is fresh.
const PULSE: Duration = Duration::from_secs(5);

/// See the module's text.
pub struct Driver {
    machine: ChildMachine,
    store: MembershipStore,
    /// What had to be recovered at the start, in words.
    recovered: Option<String>,
    /// Why the last write failed.
    store_error: Option<String>,
    clock: Clock,
    scope: TaskScope,
    settings: DriverSettings,
    audit: AuditLog,
    /// As which peer this box is known to have joined: a new one is noted.
    joined_as: Option<PeerId>,
    facts: Facts,
    facts_dirty: bool,
    facts_due: Moment,
    /// When they were last written.
    facts_written: Option<Moment>,
    certificate: CertificateWatch,
    bundle: anchors::BundleWatch,
    authority: authority::AuthorityCare,
    /// Where host-bridges can call; `None` where this box listens for none.
    listener: Option<Listener>,
    cluster: cluster::ClusterCare,
    /// Calls that host-bridges make by themselves, and the one that is looked at.
    unasked: Option<mpsc::Receiver<Unasked>>,
    call: Option<(HostPort, Greeted)>,
    /// What the parent may reach of this box; `None` in a short run that only joins.
    services: Option<ServiceServer>,
    /// Dials under way and tunnels that are up.
    links: OrderedMap<TunnelId, Link>,
    /// Tells the sessions of this run of the program from those of another.
    run: u64,
    /// The tunnel that was the primary and was lost, while no other is: what was asked over it fails now.
    lost_primary: Option<TunnelId>,
    /// Sessions that were lost, until their bridge has heard of it.
    lost_sessions: Vec<(HostPort, SessionId)>,
    ways: WayWatch,
    /// When the tunnels' sockets were last looked at, and whether it has been said that packets are dropped.
    sockets_looked_at: Moment,
    drops_told: bool,
    /// How long the routers of this network remember a silent flow, as the last tunnel has found out.
    binding: BindingTime,
    /// What the parent's requests are answered with.
    surroundings: Option<Arc<Surroundings>>,
    /// The tunnel over which grants are handed over, and where that runs.
    grants_over: (Option<TunnelId>, TaskScope),
    /// Wakes the loop when grants have changed: the status tells of them.
    grant_changes: Option<watch::Receiver<u64>>,
    failures: Failures,
    node: node::NodeCare,
    counters: CountersReport,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    commands: mpsc::Receiver<Command>,
    reach: reach::Reach,
    status: watch::Sender<StatusReport>,
    health: watch::Sender<Verdict>,
    pulse: watch::Sender<Moment>,
}

impl Driver {
    /// Goes on from what the store holds. The second value talks to the loop.
    pub fn new(
        store: MembershipStore,
        loaded: Loaded,
        clock: Clock,
        scope: TaskScope,
        settings: DriverSettings,
        audit: AuditLog,
    ) -> (Self, DriverHandle) {
        if let Some(seen) = loaded.latest_known_time() {
            clock.restore_parent_time(seen);
        }
        let joined_as = loaded
            .state
            .as_ref()
            .and_then(JoinState::membership)
            .map(|m| m.peer_id);
        let machine = ChildMachine::new(
            loaded.state,
            settings.child.clone(),
            entropy::seed(),
            clock.now(),
            clock.trusted().now,
        );
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let mut driver = Self {
            machine,
            store,
            recovered: loaded.recovered,
            store_error: None,
            settings,
            audit,
            joined_as,
            facts: loaded.facts,
            facts_dirty: false,
            facts_due: clock.now().plus(FACTS_INTERVAL),
            facts_written: None,
            certificate: CertificateWatch::default(),
            bundle: anchors::BundleWatch::new(clock.now()),
            authority: authority::AuthorityCare::new(loaded.succession),
            listener: None,
            cluster: cluster::ClusterCare::new(loaded.handed_over),
            unasked: None,
            call: None,
            services: None,
            links: OrderedMap::new(),
            run: entropy::seed(),
            lost_primary: None,
            lost_sessions: Vec::new(),
            ways: WayWatch::new(clock.now()),
            sockets_looked_at: clock.now(),
            drops_told: false,
            binding: BindingTime::UNKNOWN,
            surroundings: None,
            grants_over: (None, scope.child()),
            grant_changes: None,
            scope,
            failures: Failures::default(),
            node: node::NodeCare::default(),
            counters: CountersReport::default(),
            reports: mpsc::channel(REPORTS_MAX),
            commands,
            reach: reach::Reach::default(),
            status: watch::channel(StatusReport::empty(clock.trusted().now)).0,
            health: watch::channel(Verdict::Feed).0,
            pulse: watch::channel(clock.now()).0,
            clock,
        };
        driver.publish();
        let handle = DriverHandle {
            commands: commands_in,
            status: driver.status.subscribe(),
            standing: driver.reach.standing.subscribe(),
            member: driver.reach.member.subscribe(),
            health: driver.health.subscribe(),
            pulse: driver.pulse.subscribe(),
            clock: driver.clock.clone(),
        };
        (driver, handle)
    }

    /// Has host-bridges dial this box where they can.
    #[must_use]
    pub fn with_listener(mut self, listener: Option<Listener>) -> Self {
        self.unasked = listener.as_ref().map(Listener::unasked);
        self.listener = listener;
        self
    }

    /// Lets the parent reach published services.
    #[must_use]
    pub fn with_services(mut self, services: ServiceServer) -> Self {
        self.services = Some(services);
        self.publish();
        self
    }

    /// Answers the parent's requests, by the grants that it has.
    #[must_use]
    pub fn with_surroundings(mut self, surroundings: Arc<Surroundings>) -> Self {
        self.grant_changes = Some(surroundings.grants.changes());
        self.surroundings = Some(surroundings);
        self.publish();
        self
    }

    /// Runs until the scope is cancelled, then takes leave of the parent and writes the facts.
    pub async fn run(mut self) {
        self.carry_out().await;
        loop {
            let wake = self
                .machine
                .poll_timeout()
                .unwrap_or(Moment::after_start(Duration::MAX));
            let pulse = self.clock.now().plus(PULSE);
            tokio::select! {
                () = self.scope.cancelled() => break,
                Some(report) = self.reports.1.recv() => self.take_report(report),
                Some(outcome) = self.node.reports.1.recv() => self.take_node_report(outcome),
                Some(ended) = self.cluster.ended.1.recv() => self.hook_ended(ended).await,
                Some(command) = self.commands.recv() => self.take_command(command).await,
                () = self.ways.due(&self.clock) => {
                    if !self.look_at_ways() {
                        continue;
                    }
                }
                () = grants::changed(self.grant_changes.as_mut()) => {}
                call = reach::unasked(self.unasked.as_mut()) => self.called(call),
                () = self.clock.sleep_until(wake.min(pulse)) => {
                    let now = self.clock.now();
                    self.look_at_sockets();
                    if self.machine.poll_timeout().is_some_and(|due| due <= now) {
                        self.tell(ChildEvent::Timeout);
                    }
                }
            }
            self.carry_out().await;
        }
        self.take_leave().await;
    }

    fn tell(&mut self, event: ChildEvent) {
        let (now, wall) = (self.clock.now(), self.clock.trusted().now);
        self.machine.handle_event(event, now, wall);
    }

    fn take_report(&mut self, report: Report) {
        let id = report.link;
        if !self.awaits(id, &report.news) {
            tracing::debug!(link = %id, "report of an earlier link dropped");
            return;
        }
        match report.news {
            News::Event(event) => {
                self.failures.overcome_by(&event);
                if matches!(event, ChildEvent::RefreshIssued(_)) {
                    self.counters.certificates_renewed += 1;
                }
                self.tell(event);
            }
            News::Failed(event, why) => {
                let span = self.span_of(id);
                match event {
                    ChildEvent::TunnelLost(..) => self.lose_link(id),
                    ChildEvent::DialFailed(..) | ChildEvent::DialRefused(..) => drop(self.forget_link(id)),
                    _ => {}
                }
                let noted = event.kind();
                self.tell(event);
                self.counters.count_failure(noted);
                let connected = self.machine.primary().is_some();
                span.in_scope(|| self.failures.note(noted, why, connected));
            }
            News::Established(link) => self.established(id, *link),
            News::Acknowledged(response) => self.acknowledged(&response),
            News::Bundle(bundle) => self.bundle.take(*bundle),
        }
    }

    async fn take_command(&mut self, command: Command) {
        match command {
            Command::Join(invitation, rejoin, reply) => {
                let outcome = self.join(invitation, rejoin).await;
                // The caller looks at the status next: it must not find the join before this one.
                self.publish();
                // A caller that went away does not hear it.
                let _ = reply.send(outcome);
            }
            Command::Reload(settings) => {
                self.settings = *settings;
                let (now, wall) = (self.clock.now(), self.clock.trusted().now);
                self.machine.set_policy(self.settings.child.clone(), now, wall);
                self.tell(ChildEvent::ContentChanged);
                self.tell(ChildEvent::RetryNow);
            }
            Command::ContentChanged => self.tell(ChildEvent::ContentChanged),
            Command::CancelRejoin(reply) => {
                let outcome = self.cancel_rejoin().await;
                self.publish();
                let _ = reply.send(outcome);
            }
            Command::Authority(wish, reply) => {
                let outcome = self.authority_wish(wish).await;
                self.publish();
                let _ = reply.send(outcome);
            }
            Command::Leave(reason, reply) => {
                let outcome = self.leave(reason).await;
                self.publish();
                let _ = reply.send(outcome);
            }
            Command::Https(report, proven) => {
                if self.reach.take_https(*report, proven) {
                    self.tell(ChildEvent::ContentChanged);
                }
            }
            Command::Reach(report, proven) => {
                if self.reach.take(*report, proven) {
                    self.tell(ChildEvent::ContentChanged);
                    self.follow_ways_in();
                }
            }
        }
    }

    /// Does what the machine wants, until it wants nothing more.
    async fn carry_out(&mut self) {
        self.carry_out_actions().await;
        // A step of the own authority's change may have the certificate renewed.
        while self.keep_authority().await {
            self.carry_out_actions().await;
        }
        self.refuse_call();
        self.follow_bundle().await;
        self.keep_node().await;
        self.serve_cluster();
        self.hand_over_grants();
        self.write_due_facts().await;
        self.publish();
    }

    async fn carry_out_actions(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ChildAction::GenerateKey {
                    purpose,
                    common_name,
                    kept,
                } => self.generate_key(purpose, &common_name, kept),
                ChildAction::Persist(sequence, state) => self.persist(sequence, &state).await,
                ChildAction::Dial(dial, purpose) => self.dial(dial, purpose),
                ChildAction::Hangup(id) => self.hang_up(id),
                ChildAction::Retire(id) => self.retire(id),
                ChildAction::Probe(id) => self.probe(id),
                ChildAction::SendAccept { invitation, csr_pem } => self
                    .with_tunnel(|tunnel, reporter| exchange::accept(tunnel, reporter, *invitation, csr_pem)),
                ChildAction::VerifyCertificate { parent, answer, key } => self.verify(&parent, &answer, &key),
                ChildAction::SendHeartbeat => self.send_heartbeat(),
                ChildAction::SendRefresh { key } => self.send_refresh(*key),
                ChildAction::EnrollNode { enrollment, key } => self.enroll_node(*enrollment, *key),
                ChildAction::RefreshNode { node, key } => self.refresh_node(*node, *key),
            }
        }
    }

    async fn save(&mut self, state: &JoinState) -> Result<(), SaveStateError> {
        let saved = self.store.save_state(state).await;
        self.store_error = saved.as_ref().err().map(|error| error_chain(error));
        saved
    }

    async fn persist(&mut self, sequence: u64, state: &JoinState) {
        match self.save(state).await {
            Ok(()) => {
                tracing::info!(state = state.name(), "state stored");
                match state {
                    JoinState::Refused { refusal, .. } => {
                        tracing::error!(reason = %refusal, "the join was refused");
                    }
                    JoinState::Joined(membership) if self.machine.membership().is_none() => {
                        let reason = membership.rejoin_refused.as_ref().map(|refused| &refused.refusal);
                        let reason = reason.map(tracing::field::display);
                        tracing::error!(reason, "the rejoin was refused; the membership of before goes on");
                    }
                    _ => {}
                }
                self.note_join(state);
                self.tell(ChildEvent::Persisted(sequence));
            }
            Err(error) => {
                tracing::error!(error = %error_chain(&error), "the state could not be stored; trying again");
                self.tell(ChildEvent::PersistFailed(sequence));
            }
        }
    }

    fn with_tunnel<F, T>(&mut self, work: T)
    where
        T: FnOnce(Tunnel, Reporter) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        // Without a tunnel the machine hears of its loss by that event.
        if let Some((id, tunnel, scope)) = self.primary_tunnel() {
            let task = work(tunnel, self.reporter(id));
            scope.spawn_until_cancelled("exchange", task);
        }
    }

    fn send_heartbeat(&mut self) {
        let Some(mut membership) = self.machine.membership().cloned() else {
            return;
        };
        if let Some(operator) = &self.settings.operator {
            membership.operator = operator.clone();
        }
        let services = self.services.as_ref().map(|server| server.services().offered());
        let request = parent_client::heartbeat_request(
            &membership,
            &services.unwrap_or_default(),
            self.endpoints(&membership),
            &self.own_authorities(&membership),
        );
        self.with_tunnel(|tunnel, reporter| {
            exchange::heartbeat(tunnel, reporter, membership.parent, request)
        });
    }

    fn send_refresh(&mut self, key: KeyMaterial) {
        let Some(membership) = self.machine.membership().cloned() else {
            return;
        };
        let trusted = self.clock.trusted();
        if let Some(own) = &membership.own_authority {
            let (issuer, word) = self.own_issuer(own);
            let renewed = exchange::renew_own(&membership, (&issuer, word.as_deref()), &key, trusted.now);
            return match renewed {
                Ok(identity) => self.tell(ChildEvent::RefreshIssued(identity)),
                Err(why) => {
                    self.failures.note(EventKind::Renewal, why, true);
                    self.tell(ChildEvent::RefreshFailed);
                }
            };
        }
        self.with_tunnel(move |tunnel, reporter| {
            exchange::refresh(tunnel, reporter, membership, key, trusted)
        });
    }

    async fn take_leave(mut self) {
        self.say_goodbyes();
        if self.facts_dirty {
            self.write_facts().await;
        }
        tracing::info!("stopped");
    }
}
