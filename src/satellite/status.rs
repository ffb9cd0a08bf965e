//! What a satellite tells about itself: one report for the admin socket, `status` and `--json`.
//! Built by the daemon from its machine, or from the store when no daemon runs. Holds no secret.

mod certificate;
mod link;
pub(super) mod reading;
mod ways_in;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::id::PeerId;
use crate::base::limit::foreign_text;
use crate::base::time::{UnixTime, rfc3339};
use crate::contract::message::{OurEndpoint, SchemaCompatibility};
use crate::contract::peer::{PeerStatus, SpawnMode};
use crate::machine::child::EventKind;
use crate::machine::join::JoinState;
use crate::machine::membership::{Membership, Operator};
use crate::machine::past::{FormerGrants, FormerPeer};
use crate::satellite::grants::GrantsReport;
use crate::satellite::node_report::NodeReport;
use crate::satellite::own_authority::AuthorityReport;
use crate::satellite::services::ServiceReport;

pub use certificate::{AnchorReport, CertificateReport};
pub use link::{BetterReport, BridgeReport, LinkReport};
pub use ways_in::{HttpsReport, MappingReport, ReachReport};

/// The whole report. Field names are the `--json` output: additions only.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct StatusReport {
    /// Version of the program that made the report.
    pub version: String,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub generated_at: UnixTime,
    /// Whether a daemon runs; without one the report comes from the store, or from the short run
    /// behind `join`.
    pub daemon_running: bool,
    /// `not_invited`, or how far the join has come: `invited`, `key_ready`, `sent`, `accepted`,
    /// `enrolled`, `joined`, `refused`.
    pub state: String,
    /// Why the join, or the last rejoin of a member, was refused and what to do.
    pub refusal: Option<String>,
    /// Whom it joins or has joined.
    pub parent_url: Option<String>,
    /// The membership.
    pub peer: Option<PeerReport>,
    /// The peer that a rejoin under way is to replace, and that goes on if the parent refuses.
    pub replaces: Option<PeerId>,
    /// Who runs this box, as a parent is told it that is to be joined.
    pub joining_as: Option<Operator>,
    /// Which peers this box was before, the latest first.
    pub former_peers: Vec<FormerPeerReport>,
    /// The tunnel.
    pub link: LinkReport,
    /// The heartbeats.
    pub heartbeat: HeartbeatReport,
    /// The federation certificate.
    pub certificate: Option<CertificateReport>,
    /// The box's own authority, where it certifies itself.
    #[serde(default)]
    pub own_authority: Option<AuthorityReport>,
    /// The node's identity, where the box is to be a node of its platform.
    pub node: Option<NodeReport>,
    /// What the parent delivered for its cluster, to a member of it.
    pub cluster: Option<ClusterReport>,
    /// The time in use.
    pub clock: ClockReport,
    /// Where the state is kept.
    pub store: StoreReport,
    /// What is published; empty without a daemon.
    pub services: Vec<ServiceReport>,
    /// By what the parent may act here.
    pub grants: GrantsReport,
    /// The ways in from outside; absent without a daemon.
    pub reach: Option<ReachReport>,
    /// The satellite's own HTTPS listener; absent where none is configured.
    pub https: Option<HttpsReport>,
    /// What has happened since the daemon was started; all 0 without one.
    pub counters: CountersReport,
}

/// What has happened since the daemon was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct CountersReport {
    /// Tunnels that came up.
    pub tunnels_established: u64,
    /// Tunnels that were lost, not hung up.
    pub tunnels_lost: u64,
    /// Ways to a host-bridge that were tried and are not open.
    pub dials_failed: u64,
    /// Heartbeats that the parent has acknowledged.
    pub heartbeats_acknowledged: u64,
    /// Heartbeats that it has not.
    pub heartbeats_failed: u64,
    /// Certificates that were issued by a renewal.
    pub certificates_renewed: u64,
    /// Renewals that came to nothing.
    pub certificate_renewals_failed: u64,
    /// Streams to services that were refused, by the kind of reason.
    pub streams_refused: BTreeMap<String, u64>,
    /// Events that the audit log had to leave out.
    pub audit_events_lost: u64,
}

impl CountersReport {
    /// One more failure of this kind.
    pub(super) const fn count_failure(&mut self, kind: EventKind) {
        match kind {
            EventKind::Heartbeat => self.heartbeats_failed += 1,
            EventKind::Renewal => self.certificate_renewals_failed += 1,
            EventKind::Tunnel => self.tunnels_lost += 1,
            EventKind::Other => self.dials_failed += 1,
            EventKind::Accept | EventKind::Status(_) => {}
        }
    }
}

/// The membership.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct PeerReport {
    /// The parent's id for this peering.
    pub id: PeerId,
    /// The peering as the parent last told it.
    pub status: PeerStatus,
    /// How the parent treats this child.
    pub spawn_mode: SpawnMode,
    /// The version both sides speak.
    pub contract_version: u32,
    /// When the parent accepted.
    #[serde(with = "rfc3339")]
    pub accepted_at: UnixTime,
    /// Who runs the box.
    pub operator_contact: String,
    /// Where it stands.
    pub location: String,
    /// Declared data residency.
    pub data_residency: Option<String>,
    /// What the parent warned of when it accepted, and what of its answer could not be used.
    pub warnings: Vec<String>,
}

/// A peer that this box has been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct FormerPeerReport {
    /// The id.
    pub id: PeerId,
    /// Whose.
    pub parent_url: String,
    /// Since when.
    #[serde(with = "rfc3339::option")]
    pub accepted_at: Option<UnixTime>,
    /// Until when.
    #[serde(with = "rfc3339")]
    pub ended_at: UnixTime,
    /// What became of its grants.
    pub grants: FormerGrants,
}

impl FormerPeerReport {
    fn of(former: &FormerPeer) -> Self {
        Self {
            id: former.peer_id,
            parent_url: former.parent_url.to_string(),
            accepted_at: former.accepted_at,
            ended_at: former.ended_at,
            grants: former.grants,
        }
    }
}

/// The heartbeats.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct HeartbeatReport {
    /// The parent's last acknowledgement.
    #[serde(with = "rfc3339::option")]
    pub last_acknowledged_at: Option<UnixTime>,
    /// The last failure since then, in words.
    pub last_error: Option<String>,
    /// Where the parent says that it can be reached.
    pub our_endpoints: Vec<OurEndpoint>,
    /// How the versions fit, as the parent says.
    pub schema_compatibility: Option<SchemaCompatibility>,
}

/// What was delivered for the cluster, without what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct ClusterReport {
    /// Its parts and their sizes in bytes.
    pub parts: BTreeMap<String, usize>,
    /// The executable that takes it.
    pub hook: Option<String>,
    /// When that has taken it.
    #[serde(with = "rfc3339::option")]
    pub handed_over_at: Option<UnixTime>,
    /// Why it has not, in words.
    pub trouble: Option<String>,
}

impl ClusterReport {
    fn of(membership: &Membership) -> Option<Self> {
        let delivered = membership.cluster_delivery()?;
        let parts: BTreeMap<String, Value> = serde_json::from_slice(delivered.expose()).ok()?;
        Some(Self {
            parts: parts
                .into_iter()
                .map(|(name, part)| (foreign_text(&name), part.to_string().len()))
                .collect(),
            ..Self::default()
        })
    }
}

/// What is to be done then.
pub const NEEDS_REJOIN: &str = "the certificate has expired and the parent does not renew it any more: ask the parent's operator \
     to suspend this peer and for a new token for it, and run `powernode-satellite rejoin` with that";

/// What the owner of a box can do whose peer stands so at the parent's, where anything is to be done.
pub const fn remedy(status: PeerStatus) -> Option<&'static str> {
    match status {
        PeerStatus::Suspended => Some(
            "ask the parent's operator why this box is suspended; it returns by itself within two minutes after it is resumed",
        ),
        PeerStatus::Revoked => Some(
            "the parent has revoked this box for good: ask its operator for a new invitation, and run `powernode-satellite \
             rejoin -` with that",
        ),
        _ => None,
    }
}

/// The time in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct ClockReport {
    /// The system clock.
    #[serde(with = "rfc3339")]
    pub system: UnixTime,
    /// The time that certificate checks use.
    #[serde(with = "rfc3339")]
    pub trusted: UnixTime,
    /// Why they differ.
    pub doubt: Option<String>,
}

/// Where the state is kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "reading::Fields")]
pub struct StoreReport {
    /// The state directory.
    pub directory: String,
    /// Size of the store file in bytes.
    pub size_bytes: u64,
    /// Whether the private keys in it are sealed with a state key.
    pub sealed: bool,
    /// Set when the store was damaged and the second copy of the identity was used.
    pub recovered: Option<String>,
    /// Why the last write failed, in words, until one succeeds.
    pub last_error: Option<String>,
}

impl StatusReport {
    /// What the state alone tells; link, heartbeat, clock and store are the caller's.
    pub fn of_state(
        state: Option<&JoinState>,
        version: &str,
        clock: ClockReport,
        link: LinkReport,
        heartbeat: HeartbeatReport,
        store: StoreReport,
    ) -> Self {
        let membership = state.and_then(JoinState::membership);
        let invitation = state.and_then(JoinState::invitation);
        Self {
            version: version.to_owned(),
            generated_at: clock.trusted,
            daemon_running: false,
            state: state.map_or("not_invited", JoinState::name).to_owned(),
            refusal: match state {
                Some(JoinState::Refused { refusal, .. }) => Some(refusal.to_string()),
                _ => membership
                    .and_then(|membership| membership.rejoin_refused.as_ref())
                    .map(|refused| refused.refusal.to_string()),
            },
            parent_url: state.map(|state| state.parent().url.to_string()),
            peer: membership.map(PeerReport::of),
            replaces: invitation
                .and_then(|invitation| invitation.past.membership.as_ref())
                .map(|membership| membership.peer_id),
            joining_as: invitation.map(|invitation| invitation.operator.clone()),
            former_peers: state
                .map_or(&[][..], JoinState::former)
                .iter()
                .map(FormerPeerReport::of)
                .collect(),
            link,
            heartbeat,
            cluster: membership.and_then(ClusterReport::of),
            certificate: membership.map(|membership| CertificateReport::of(membership, clock.trusted)),
            own_authority: AuthorityReport::of(membership, None),
            node: membership
                .and_then(|membership| membership.node.as_ref())
                .map(|node| NodeReport::of(node, clock.trusted)),
            clock,
            store,
            services: Vec::new(),
            grants: GrantsReport::default(),
            reach: None,
            https: None,
            counters: CountersReport::default(),
        }
    }

    /// Nothing known yet.
    pub fn empty(now: UnixTime) -> Self {
        let clock = ClockReport {
            system: now,
            trusted: now,
            doubt: None,
        };
        Self::of_state(
            None,
            "",
            clock,
            LinkReport::default(),
            HeartbeatReport::default(),
            StoreReport::default(),
        )
    }

    /// The state in one line, for the service manager.
    pub fn headline(&self) -> String {
        let link = match (self.link.state.as_str(), &self.link.bridge, &self.link.last_error) {
            ("connected", Some(bridge), None) => format!("connected to {bridge}"),
            ("connected", Some(bridge), Some(error)) => format!("connected to {bridge}; {error}"),
            ("waiting", _, Some(error)) => format!("not connected: {error}"),
            (state, _, _) => state.to_owned(),
        };
        let mut headline = match (&self.peer, &self.refusal) {
            (Some(peer), _) => format!("{} ({link})", peer.status),
            (None, Some(refusal)) => format!("join refused: {refusal}"),
            (None, None) => format!("{} ({link})", self.state),
        };
        if let Some(error) = &self.heartbeat.last_error {
            headline = format!("{headline}; heartbeat not acknowledged: {error}");
        }
        if let Some(certificate) = self.certificate.as_ref().filter(|c| c.is_worrying()) {
            headline = format!("{headline}; certificate {}", certificate.standing);
            if certificate.needs_rejoin {
                headline = format!("{headline}; {NEEDS_REJOIN}");
            }
        }
        if let Some(node) = self.node.as_ref().and_then(NodeReport::worry) {
            headline = format!("{headline}; {node}");
        }
        headline
    }

    /// Whether the satellite is a member and its parent, as far as it answers, counts it as active.
    pub fn is_active(&self) -> bool {
        self.state == "joined"
            && self.heartbeat.last_error.is_none()
            && self
                .peer
                .as_ref()
                .is_some_and(|peer| peer.status == PeerStatus::Active)
    }
}

impl PeerReport {
    /// Shows who is disclosed now, where that is another than at the join.
    pub(super) fn disclose(&mut self, operator: &Operator) {
        self.operator_contact.clone_from(&operator.contact);
        self.location.clone_from(&operator.location);
        self.data_residency.clone_from(&operator.data_residency);
    }

    fn of(membership: &Membership) -> Self {
        Self {
            id: membership.peer_id,
            status: membership.status,
            spawn_mode: membership.spawn_mode,
            contract_version: membership.contract_version,
            accepted_at: membership.accepted_at,
            operator_contact: membership.operator.contact.clone(),
            location: membership.operator.location.clone(),
            data_residency: membership.operator.data_residency.clone(),
            warnings: membership.delivered.warnings.clone(),
        }
    }
}
