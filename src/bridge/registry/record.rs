//! What the registry keeps and under which names: the one place that knows the layout of the
//! host-bridge's store. Values that the contract leaves open (capabilities, endpoints) are kept
//! as the JSON that they are; postcard cannot hold values that describe themselves.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::super::heartbeat::Declaration;
use crate::base::id::{GrantId, OperatorId, PeerId, PublicKeyDigest};
use crate::base::secret::{Secret, stored};
use crate::base::time::UnixTime;
use crate::bridge::permission::{NameLimit, Role};
use crate::contract::invitation::{HostPort, ParentUrl};
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode, SpawnRole};
use crate::contract::token::TokenDigest;
use crate::grant::{Grant, PermissionScope, Revocation};
use crate::store::audit_log::add_audit_log;
use crate::store::database::{Schema, StoreError, Table, Writer};
use crate::store::record::{self, Only, Record, RecordError};

/// The host-bridge's store.
pub const SCHEMA: Schema = Schema {
    name: "powernode-host-bridge",
    version: 4,
    migrations: &[add_audit_log, add_held_grants, add_predecessor],
    sealed: &[AUTHORITY.name(), SERVER.name(), HELD_GRANTS.name()],
};

/// The peers.
pub const PEERS: Table<PeerId, PeerRecord> = Table::new("peers");

/// Names of peers that are not revoked.
pub const PEER_NAMES: Table<String, PeerNameRecord> = Table::new("peer_names");

/// Acceptance tokens, live and used, by their digests.
pub const TOKENS: Table<TokenDigest, TokenRecord> = Table::new("acceptance_tokens");

/// Access grants.
pub const GRANTS: Table<GrantId, GrantRecord> = Table::new("grants");

/// Who may use the operator API.
pub const OPERATORS: Table<OperatorId, OperatorRecord> = Table::new("operators");

/// The embedded certificate authority.
pub const AUTHORITY: Table<Only, AuthorityRecord> = Table::new("authority");

/// The server's own certificate.
pub const SERVER: Table<Only, ServerRecord> = Table::new("server");

/// The authority before the present one, while its certificates are out.
pub const PREDECESSOR: Table<Only, PredecessorRecord> = Table::new("predecessor");

/// By what peers certify themselves that do.
pub const PEER_AUTHORITIES: Table<PeerId, PeerAuthorityRecord> = Table::new("peer_authorities");

/// How this bridge is found from outside, as `init` was told.
pub const PUBLIC: Table<Only, PublicRecord> = Table::new("public");

/// The grants that peers have given to this side, by the peer that gave them.
pub const HELD_GRANTS: Table<PeerId, HeldGrantsRecord> = Table::new("held_grants");

/// The schema's step to held grants. The table comes with its first row; the new version keeps a
/// program away that would write the tokens unsealed when it makes the file anew.
pub fn add_held_grants(_writer: &mut Writer<'_>) -> Result<(), StoreError> {
    Ok(())
}

/// The schema's step to rotated authorities, and to peers that certify themselves. The tables come with their
/// first rows; the new version keeps a program away that would take such peers for strangers.
pub fn add_predecessor(_writer: &mut Writer<'_>) -> Result<(), StoreError> {
    Ok(())
}

/// A federation peer (contract section 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The row's id.
    pub id: PeerId,
    /// What operators call it; unique among the peers that are not revoked.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Where the other side runs, where that is known.
    pub remote_instance_url: Option<String>,
    /// What it is.
    pub kind: PeerKind,
    /// Our role.
    pub role: SpawnRole,
    /// What follows from how it came to be.
    pub mode: SpawnMode,
    /// Where the peering stands.
    pub status: PeerStatus,
    /// Since when.
    pub status_since: UnixTime,
    /// What it tells of itself.
    #[serde(with = "json_text")]
    pub declared: Declaration,
    /// Agreed at the accept.
    pub contract_version_agreed: Option<u32>,
    /// When the row was made.
    pub proposed_at: UnixTime,
    /// When the token was presented.
    pub signed_at: Option<UnixTime>,
    /// When it was enrolled.
    pub last_handshake_at: Option<UnixTime>,
    /// The last heartbeat; as old as [`super::presence::PRESENCE_WRITE_INTERVAL`] in the store.
    pub last_heartbeat_at: Option<UnixTime>,
    /// The CN of its certificates.
    pub inbound_subject: Option<String>,
    /// Why it was last called degraded; stays when it recovers (contract section 11).
    pub degraded_reason: Option<String>,
    /// Why it is suspended.
    pub suspended_reason: Option<String>,
    /// Why it was revoked.
    pub revocation_reason: Option<String>,
    /// The certificates that are let in: the newest, and the one that it was renewed with.
    pub certificates: Vec<PeerCertificate>,
    /// The token that may be presented.
    pub live_token: Option<LiveToken>,
    /// The token that was presented.
    pub used_token: Option<TokenDigest>,
}

/// A certificate that was issued to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCertificate {
    /// Upper-case hex.
    pub serial: String,
    /// End of validity.
    pub not_after: UnixTime,
    /// Its key.
    pub key: PublicKeyDigest,
}

/// A token that may be presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveToken {
    /// Where its row is.
    pub digest: TokenDigest,
    /// From then on it is not known.
    pub expires_at: UnixTime,
}

/// Which peer has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNameRecord {
    /// This one.
    pub peer: PeerId,
}

/// An acceptance token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Whom it lets in.
    pub peer: PeerId,
    /// What has become of it.
    pub state: StoredTokenState,
}

/// What has become of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredTokenState {
    /// Minted.
    Live {
        /// From then on it is not known.
        expires_at: UnixTime,
    },
    /// Consumed.
    Used {
        /// When.
        used_at: UnixTime,
        /// The key that was enrolled.
        key: Option<PublicKeyDigest>,
        /// The whole answer.
        answer: Vec<u8>,
    },
}

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// As it was issued, and what has become of it.
    pub grant: Grant,
}

/// All that one peer has given.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HeldGrantsRecord {
    /// Oldest first.
    pub grants: Vec<HeldGrant>,
}

/// A grant that a peer has issued, with the token that presents it there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldGrant {
    /// The peer's id of it.
    pub id: GrantId,
    /// For whom of this side.
    pub remote_subject: String,
    /// What it opens.
    pub resource_kind: String,
    /// The one thing of that kind; absent, all of them.
    pub resource_id: Option<String>,
    /// What may be done.
    pub permission_scopes: BTreeSet<PermissionScope>,
    /// When the peer made it.
    pub issued_at: UnixTime,
    /// From then on the peer does not take it.
    pub expires_at: UnixTime,
    /// When and why the peer ended it.
    pub revocation: Option<Revocation>,
    /// To be presented to the peer; wiped when the grant is revoked.
    #[serde(with = "stored")]
    pub token: Secret,
}

/// A person or program that may use the operator API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// Who.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Of their bearer token.
    pub token: TokenDigest,
    /// Since when.
    pub created_at: UnixTime,
    /// At which peers.
    pub peers: NameLimit,
    /// Which of their services.
    pub services: NameLimit,
    /// From then on the token is not taken; `None`: it does not end.
    pub expires_at: Option<UnixTime>,
    /// When the token was made.
    pub token_made_at: UnixTime,
}

impl Record for OperatorRecord {
    const VERSION: u8 = 2;

    /// In version 1 everybody could do everything.
    fn upgrade(version: u8, bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        enum FirstRole {
            Admin,
        }
        #[derive(Deserialize)]
        struct First {
            name: String,
            role: FirstRole,
            token: TokenDigest,
            created_at: UnixTime,
        }
        if version != 1 {
            return Err(RecordError::UnknownVersion {
                found: version,
                known: Self::VERSION,
            });
        }
        let first: First = record::decode_content(bytes)?;
        Ok(Self {
            name: first.name,
            role: match first.role {
                FirstRole::Admin => Role::Admin,
            },
            token: first.token,
            created_at: first.created_at,
            peers: NameLimit::Any,
            services: NameLimit::Any,
            expires_at: None,
            token_made_at: first.created_at,
        })
    }
}

/// The certificate authority, and the key that grant tokens are signed with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// PKCS#8 DER.
    #[serde(with = "stored")]
    pub key: Secret,
    /// Its certificate.
    pub certificate_pem: String,
    /// Signs grant tokens.
    #[serde(with = "stored")]
    pub grant_secret: Secret,
}

/// The authority before the present one: nothing of it is secret any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredecessorRecord {
    /// Its certificate.
    pub certificate_pem: String,
    /// By what it vouches for the present one.
    pub cross_pem: String,
    /// When that took over.
    pub rotated_at: UnixTime,
    /// Until when both are served.
    pub overlap_ends: UnixTime,
}

/// By what a peer certifies itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAuthorityRecord {
    /// Its authorities, the oldest first.
    pub anchors_pem: String,
    /// The common name with which this side is to show itself to it.
    pub caller_subject: Option<String>,
}

/// The server's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerRecord {
    /// PKCS#8 DER.
    #[serde(with = "stored")]
    pub key: Secret,
    /// The leaf, then the authority.
    pub chain_pem: String,
    /// The names in it.
    pub names: Vec<String>,
    /// Begin of validity.
    pub not_before: UnixTime,
    /// End of validity.
    pub not_after: UnixTime,
}

/// How this bridge is found from outside: what the configuration does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicRecord {
    /// The parent's URL in invitations.
    pub url: Option<ParentUrl>,
    /// Bridge addresses in join codes.
    pub bridges: Vec<HostPort>,
    /// Names in the server's certificate, besides those of the other two.
    pub names: Vec<String>,
}

macro_rules! first_version {
    ($($record:ty),+) => {$(
        impl Record for $record {
            const VERSION: u8 = 1;
        }
    )+};
}
first_version!(
    PeerRecord,
    PeerNameRecord,
    TokenRecord,
    GrantRecord,
    AuthorityRecord,
    PredecessorRecord,
    PeerAuthorityRecord,
    ServerRecord,
    PublicRecord,
    HeldGrantsRecord
);

/// A value as JSON inside of a record.
mod json_text {
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(value).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map_err(serde::de::Error::custom)
    }
}
