//! The accesses in flight: who reaches what, since when, how much has passed; and the way to cut one.
//! The end of an access is remembered for a while, so that the program at its other end can tell its
//! user why.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use super::super::permission::PeerRef;
use super::AccessError;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{GrantId, OperatorId, PeerId, TraceId};
use crate::base::limit::foreign_text;
use crate::base::time::{UnixTime, rfc3339};
use crate::process::clock::Clock;
use crate::store::audit_log::AuditLog;
use crate::tunnel::relay::Passed;
use crate::wire::StreamEnd;

/// Ends that are remembered: of as many as may be in flight unless `limits.access_sessions` says otherwise,
/// because they may all end at once and each is asked for; some 500 KiB.
const ENDS_MAX: usize = 4_096;

/// Which way an access came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// `connect` and `forward`, or a program that speaks as they do.
    Connect,
    /// CONNECT of the proxy listener.
    HttpConnect,
    /// A plain request through it.
    HttpProxy,
    /// SOCKS5 of the proxy listener.
    Socks,
    /// A path of the HTTPS listener.
    Ingress,
}

impl SessionView {
    /// The peer, for permissions.
    pub fn peer_ref(&self) -> PeerRef<'_> {
        PeerRef::Known {
            id: self.federation_peer_id,
            name: Some(&self.peer),
        }
    }
}

impl Via {
    /// Whether this bridge itself speaks HTTP with the service.
    pub(super) const fn speaks_http(self) -> bool {
        match self {
            Self::HttpProxy | Self::Ingress => true,
            Self::Connect | Self::HttpConnect | Self::Socks => false,
        }
    }
}

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLimits {
    /// Most accesses at the same time.
    pub sessions: usize,
}

/// What is known of an access when it begins.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) id: TraceId,
    pub(super) peer: PeerId,
    pub(super) peer_name: String,
    pub(super) service: String,
    pub(super) operator: String,
    pub(super) operator_id: Option<OperatorId>,
    pub(super) source: Option<SocketAddr>,
    pub(super) via: Via,
    pub(super) grant: Option<GrantId>,
    pub(super) remote_subject: Option<String>,
}

/// An access as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// In both sides' logs.
    pub id: String,
    /// The peer.
    pub federation_peer_id: PeerId,
    /// What it is called.
    pub peer: String,
    /// The service.
    pub service: String,
    /// Who.
    pub operator: String,
    /// From where.
    pub source: Option<String>,
    /// By which way.
    pub via: Via,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: UnixTime,
    /// Bytes to the service.
    pub bytes_to_service: u64,
    /// Bytes from it.
    pub bytes_from_service: u64,
}

/// How an access ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionEnd {
    /// Which.
    pub id: String,
    /// `done`, `cut` or `failed`.
    pub outcome: &'static str,
    /// In words, where it was not done.
    pub reason: Option<String>,
}

/// All of them.
#[derive(Debug)]
pub struct Accesses {
    table: Mutex<Table>,
    max: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<u64, Row>,
    ends: VecDeque<(TraceId, Ending)>,
    totals: AccessTotals,
}

/// What has passed since the bridge was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessTotals {
    /// Accesses at this moment.
    pub open: u64,
    /// Accesses that were given.
    pub opened: u64,
    /// Accesses that were not, by [`AccessError::code`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Bytes to services.
    pub bytes_to_services: u64,
    /// Bytes from them.
    pub bytes_from_services: u64,
}

impl AccessTotals {
    fn add_bytes(&mut self, passed: &Passed) {
        self.bytes_to_services += passed.written();
        self.bytes_from_services += passed.read();
    }
}

#[derive(Debug)]
struct Row {
    about: About,
    since: UnixTime,
    passed: Arc<Passed>,
    cut: watch::Sender<Option<Cut>>,
}

/// Why an access is cut: what the satellite is told, and what its user.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    pub(super) end: StreamEnd,
    pub(super) words: String,
}

#[derive(Debug)]
struct Ending {
    operator: String,
    outcome: AuditOutcome,
}

impl Accesses {
    /// None yet.
    pub fn new(limits: AccessLimits) -> Self {
        Self {
            table: Mutex::default(),
            max: AtomicUsize::new(limits.sessions),
        }
    }

    /// Other limits from now on; what is in flight stays.
    pub fn set_limits(&self, limits: AccessLimits) {
        self.max.store(limits.sessions, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table().rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has passed since the start, accesses in flight included.
    pub fn totals(&self) -> AccessTotals {
        let table = self.table();
        let mut totals = table.totals.clone();
        totals.open = table.rows.len() as u64;
        for row in table.rows.values() {
            totals.add_bytes(&row.passed);
        }
        totals
    }

    /// One more that was not given.
    pub(super) fn count_refusal(&self, code: &'static str) {
        *self.table().totals.refused.entry(code).or_default() += 1;
    }

    /// Those that `shown` lets through, oldest first.
    pub fn list(&self, shown: impl Fn(&SessionView) -> bool) -> Vec<SessionView> {
        let mut views: Vec<_> = self.table().rows.values().map(Row::view).filter(shown).collect();
        views.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        views
    }

    /// The one whose id begins so, if exactly one does.
    pub fn find(&self, begins: &str) -> Option<SessionView> {
        let begins = begins.trim().to_ascii_lowercase();
        let table = self.table();
        let mut found = table
            .rows
            .values()
            .filter(|row| !begins.is_empty() && row.about.id.to_string().starts_with(&begins));
        match (found.next(), found.next()) {
            (Some(row), None) => Some(row.view()),
            _ => None,
        }
    }

    /// Cuts one, for a reason that its user is told. Whether it was there.
    pub fn cut(&self, id: &str, by: &str, reason: Option<&str>) -> bool {
        let table = self.table();
        let Some(row) = table.rows.values().find(|row| row.about.id.to_string() == id) else {
            return false;
        };
        let reason = reason.map(|reason| format!(": {}", foreign_text(reason)));
        let words = format!("{by} cut the session{}", reason.unwrap_or_default());
        row.cut.send_replace(Some(Cut {
            end: StreamEnd::OperatorCut,
            words,
        }));
        true
    }

    /// Those that an account has opened, by account, so that they can be looked at again.
    pub(super) fn by_account(&self) -> Vec<(OperatorId, SessionView)> {
        let table = self.table();
        let rows = table.rows.values();
        rows.filter_map(|row| Some((row.about.operator_id?, row.view())))
            .collect()
    }

    /// Cuts one because its operator may no more.
    pub(super) fn end(&self, id: &str, words: &str) {
        let table = self.table();
        if let Some(row) = table.rows.values().find(|row| row.about.id.to_string() == id) {
            row.cut.send_replace(Some(Cut {
                end: StreamEnd::RightsEnded,
                words: words.to_owned(),
            }));
        }
    }

    /// How one of an operator's accesses ended, while that is remembered.
    pub fn end_of(&self, id: &str, operator: &str) -> Option<SessionEnd> {
        let id = TraceId(u64::from_str_radix(id, 16).ok()?);
        let table = self.table();
        // It has mostly just ended.
        let (id, ending) = table
            .ends
            .iter()
            .rev()
            .find(|(known, ending)| *known == id && ending.operator == operator)?;
        let (outcome, reason) = match &ending.outcome {
            AuditOutcome::Done => ("done", None),
            AuditOutcome::Refused(why) | AuditOutcome::Failed(why) => ("failed", Some(why.clone())),
            AuditOutcome::Cut(why) => ("cut", Some(why.clone())),
        };
        Some(SessionEnd {
            id: id.to_string(),
            outcome,
            reason,
        })
    }

    /// A new row, which goes with the place.
    pub(super) fn enter(
        self: &Arc<Self>,
        about: About,
        clock: Clock,
        audit: AuditLog,
    ) -> Result<Place, AccessError> {
        let max = self.max.load(Ordering::Relaxed);
        let (cut, cuts) = watch::channel(None);
        let row = Row {
            since: clock.trusted().now,
            passed: Arc::default(),
            cut,
            about,
        };
        let place = Place {
            accesses: Arc::clone(self),
            about: row.about.clone(),
            since: row.since,
            passed: Arc::clone(&row.passed),
            cuts,
            clock,
            audit,
            outcome: None,
        };
        let mut table = self.table();
        if table.rows.len() >= max {
            drop(table);
            return Err(AccessError::Full { max });
        }
        table.rows.insert(row.about.id.0, row);
        drop(table);
        Ok(place)
    }

    fn leave(&self, about: &About, outcome: Option<AuditOutcome>) {
        let mut table = self.table();
        if let Some(row) = table.rows.remove(&about.id.0) {
            table.totals.add_bytes(&row.passed);
        }
        if let Some(outcome) = outcome {
            if table.ends.len() >= ENDS_MAX {
                table.ends.pop_front();
            }
            let operator = about.operator.clone();
            table.ends.push_back((about.id, Ending { operator, outcome }));
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is complete before anything that could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn view(&self) -> SessionView {
        SessionView {
            id: self.about.id.to_string(),
            federation_peer_id: self.about.peer,
            peer: self.about.peer_name.clone(),
            service: self.about.service.clone(),
            operator: self.about.operator.clone(),
            source: self.about.source.map(|source| source.to_string()),
            via: self.about.via,
            since: self.since,
            bytes_to_service: self.passed.written(),
            bytes_from_service: self.passed.read(),
        }
    }
}

/// A row of the table: it goes with this, however the access's task ends, and the audit log is told.
pub(super) struct Place {
    accesses: Arc<Accesses>,
    about: About,
    since: UnixTime,
    passed: Arc<Passed>,
    cuts: watch::Receiver<Option<Cut>>,
    clock: Clock,
    audit: AuditLog,
    /// `None` until the stream is open: that it was asked for is noted by who opens it.
    outcome: Option<AuditOutcome>,
}

impl Place {
    pub(super) const fn id(&self) -> TraceId {
        self.about.id
    }

    pub(super) fn peer_name(&self) -> &str {
        &self.about.peer_name
    }

    /// Resolves when it is cut. Cancel safe.
    pub(super) async fn cut(&mut self) -> Cut {
        let cut = match self.cuts.wait_for(Option::is_some).await {
            Ok(cut) => cut.clone(),
            Err(_) => None,
        };
        match cut {
            Some(cut) => cut,
            // The row is this place's own and goes with it.
            None => std::future::pending().await,
        }
    }

    /// The stream is open.
    pub(super) fn opened(&mut self) {
        self.outcome = Some(AuditOutcome::Cut("the host-bridge dropped it".to_owned()));
        self.accesses.table().totals.opened += 1;
    }

    /// The stream's counts.
    pub(super) fn passed(&self) -> Arc<Passed> {
        Arc::clone(&self.passed)
    }

    pub(super) fn leave(mut self, outcome: AuditOutcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let outcome = self.outcome.take();
        self.accesses.leave(&self.about, outcome.clone());
        let Some(outcome) = outcome else {
            return;
        };
        tracing::info!(
            trace = %self.about.id, peer = %self.about.peer, service = self.about.service,
            operator = self.about.operator, to_service = self.passed.written(),
            from_service = self.passed.read(), ?outcome, "an access has ended"
        );
        self.audit.record(&AuditEvent {
            action: AuditAction::ServiceClosed,
            federation_peer_id: Some(self.about.peer),
            remote_subject: self.about.remote_subject.clone(),
            actor: Some(self.about.operator.clone()),
            grant: self.about.grant,
            object: Some(self.about.service.clone()),
            source: self.about.source,
            trace: Some(self.about.id),
            bytes_in: self.passed.written(),
            bytes_out: self.passed.read(),
            duration: self.clock.trusted().now.since(self.since),
            outcome,
        });
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("about", &self.about)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::process::clock::BUILD_TIME;

    fn about(id: u64) -> About {
        About {
            id: TraceId(id),
            peer: PeerId::new_v7(UnixTime::from_seconds(1_700_000_000), [0; 10]),
            peer_name: "shop-17".to_owned(),
            service: "ssh".to_owned(),
            operator: "anna".to_owned(),
            operator_id: None,
            source: Some("192.0.2.9:50".parse().unwrap()),
            via: Via::Connect,
            grant: None,
            remote_subject: None,
        }
    }

    fn enter(accesses: &Arc<Accesses>, id: u64) -> Result<Place, AccessError> {
        accesses.enter(about(id), Clock::start(BUILD_TIME), AuditLog::default())
    }

    #[tokio::test]
    async fn a_cut_reaches_the_one_and_no_other_and_its_reason_is_remembered() {
        let accesses = Arc::new(Accesses::new(AccessLimits { sessions: 8 }));
        let mut one = enter(&accesses, 0xab01).unwrap();
        let mut other = enter(&accesses, 0xab02).unwrap();
        assert_eq!(accesses.find("000000000000ab"), None, "two begin so");
        let id = accesses.find("000000000000ab01").unwrap().id;
        assert!(accesses.cut(&id, "bert", Some("upgrade\ntonight")));
        let words = one.cut().await.words;
        assert_eq!(words, "bert cut the session: upgrade tonight");
        let untouched = tokio::time::timeout(std::time::Duration::from_millis(20), other.cut()).await;
        assert!(untouched.is_err());
        one.leave(AuditOutcome::Cut(words.clone()));
        assert_eq!(accesses.len(), 1);
        assert!(!accesses.cut(&id, "bert", None));
        let end = accesses.end_of(&id, "anna").unwrap();
        assert_eq!((end.outcome, end.reason), ("cut", Some(words)));
        assert_eq!(
            accesses.end_of(&id, "bert"),
            None,
            "another's session is not theirs to see"
        );
    }

    #[test]
    fn there_are_never_more_than_the_limit_and_ends_do_not_pile_up() {
        let accesses = Arc::new(Accesses::new(AccessLimits { sessions: 2 }));
        let held: Vec<_> = (0..2).map(|id| enter(&accesses, id).unwrap()).collect();
        assert_eq!(enter(&accesses, 9).unwrap_err(), AccessError::Full { max: 2 });
        assert_eq!(accesses.len(), 2);
        drop(held);
        assert!(accesses.is_empty());
        for id in 0..5_000 {
            enter(&accesses, id).unwrap().leave(AuditOutcome::Done);
        }
        assert_eq!(accesses.table().ends.len(), ENDS_MAX);
        assert!(accesses.end_of(&TraceId(4_999).to_string(), "anna").is_some());
    }
}
