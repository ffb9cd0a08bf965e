//! A peer as operators see it: the contract's row (section 1) and what this bridge knows beside
//! it. JSON alone; tables are made of it elsewhere.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::federation_api::CallerCertificate;
use super::platform::roll::StandingView;
use super::registry::record::PeerRecord;
use crate::base::id::{PeerId, SessionId};
use crate::base::time::{UnixTime, rfc3339};
use crate::contract::message::Endpoint;
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode, SpawnRole};

/// A live tunnel as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// Its id in both sides' logs.
    pub session: SessionId,
    /// The satellite's address as it arrives here.
    pub address: String,
    /// Program and version at the other end.
    pub agent: String,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: UnixTime,
    /// What it runs over: `quic` or `tls`.
    pub transport: String,
    /// Whether this host-bridge has dialled the satellite.
    pub direct: bool,
    /// Streams open now.
    pub open_streams: usize,
}

/// A peer that came and got no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TurnedAway {
    /// When it was the last time.
    #[serde(with = "rfc3339")]
    pub at: UnixTime,
    /// What it was told.
    pub why: String,
    /// The certificate that it showed, which the handshake has verified; its fingerprint is told.
    #[serde(serialize_with = "fingerprint")]
    pub certificate: CallerCertificate,
}

fn fingerprint<S: Serializer>(certificate: &CallerCertificate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&certificate.digest())
}

/// What a daemon knows of a peer.
#[derive(Debug, Default)]
pub struct Presence {
    /// Its tunnel.
    pub tunnel: Option<LinkView>,
    /// Why it has none.
    pub turned_away: Option<TurnedAway>,
}

/// The row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerView {
    id: PeerId,
    name: Option<String>,
    description: Option<String>,
    remote_instance_url: Option<String>,
    peer_kind: PeerKind,
    spawn_role: SpawnRole,
    spawn_mode: SpawnMode,
    status: PeerStatus,
    #[serde(with = "rfc3339")]
    status_since: UnixTime,
    endpoints: Vec<Endpoint>,
    capabilities: Map<String, Value>,
    extension_slugs: Vec<String>,
    sync_cursor: Map<String, Value>,
    contract_version_agreed: Option<u32>,
    #[serde(with = "rfc3339")]
    created_at: UnixTime,
    #[serde(with = "rfc3339::option")]
    signed_at: Option<UnixTime>,
    #[serde(with = "rfc3339::option")]
    last_handshake_at: Option<UnixTime>,
    #[serde(with = "rfc3339::option")]
    last_heartbeat_at: Option<UnixTime>,
    heartbeat_age_seconds: Option<u64>,
    platform_version: Option<String>,
    data_residency: Option<String>,
    inbound_subject: Option<String>,
    #[serde(with = "rfc3339::option")]
    certificate_not_after: Option<UnixTime>,
    #[serde(with = "rfc3339::option")]
    acceptance_token_expires_at: Option<UnixTime>,
    metadata: Value,
    /// Beside a platform: where the peer stands with it.
    #[serde(flatten)]
    standing: Option<StandingView>,
    /// `null` when a daemon does not run or the peer is not connected.
    tunnel: Option<LinkView>,
    /// `null` when it has got a tunnel since, or was not turned away since the daemon's start.
    turned_away: Option<TurnedAway>,
}

impl PeerView {
    /// Of a row, at a time.
    pub fn new(
        peer: PeerRecord,
        Presence { tunnel, turned_away }: Presence,
        standing: Option<StandingView>,
        now: UnixTime,
    ) -> Self {
        let mut metadata = Map::new();
        for (name, reason) in [
            ("degraded_reason", &peer.degraded_reason),
            ("suspended_reason", &peer.suspended_reason),
            ("revocation_reason", &peer.revocation_reason),
        ] {
            if let Some(reason) = reason {
                metadata.insert(name.to_owned(), json!(reason));
            }
        }
        Self {
            id: peer.id,
            name: peer.name,
            description: peer.description,
            remote_instance_url: peer.remote_instance_url,
            peer_kind: peer.kind,
            spawn_role: peer.role,
            spawn_mode: peer.mode,
            status: peer.status,
            status_since: peer.status_since,
            endpoints: peer.declared.endpoints,
            capabilities: peer.declared.capabilities,
            extension_slugs: peer.declared.extension_slugs,
            sync_cursor: peer.declared.sync_cursor,
            contract_version_agreed: peer.contract_version_agreed,
            created_at: peer.proposed_at,
            signed_at: peer.signed_at,
            last_handshake_at: peer.last_handshake_at,
            last_heartbeat_at: peer.last_heartbeat_at,
            heartbeat_age_seconds: peer.last_heartbeat_at.map(|heard| now.since(heard).as_secs()),
            platform_version: peer.declared.platform_version,
            data_residency: peer.declared.data_residency,
            inbound_subject: peer.inbound_subject,
            certificate_not_after: peer.certificates.last().map(|newest| newest.not_after),
            acceptance_token_expires_at: peer.live_token.map(|live| live.expires_at),
            metadata: Value::Object(metadata),
            standing,
            tunnel,
            turned_away,
        }
    }
}
