//! The durable facts of a satellite's membership: what the store keeps and the second copy
//! repeats. Plain data; [`super::join`] and [`super::renewal`] decide what follows what.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::node_identity::NodeStanding;
use super::past::{FormerPeer, Past, RejoinRefused};
use crate::base::id::PeerId;
use crate::base::secret::{self, Secret};
use crate::base::time::UnixTime;
use crate::contract::delivery::TrustExchange;
use crate::contract::invitation::{
    CaFingerprint, ContractVersion, HostPort, Invitation, ParentTrust, ParentUrl, dial_addresses,
};
use crate::contract::message::{Disclosure, FederationCertificate};
use crate::contract::peer::{PeerStatus, SpawnMode};
use crate::contract::token::TokenDigest;

/// Who runs the box and where (social contract 1), as the operator gave it; the release is added
/// when it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// How to reach the operator.
    pub contact: String,
    /// Where the box stands.
    pub location: String,
    /// Declared data residency, at most 64 characters.
    pub data_residency: Option<String>,
}

impl Operator {
    /// The disclosure of a heartbeat.
    pub fn disclosure(&self, release: &str) -> Disclosure {
        Disclosure {
            operator_contact: self.contact.clone(),
            location: self.location.clone(),
            release: release.to_owned(),
        }
    }
}

/// The parent as the invitation named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its URL.
    pub url: ParentUrl,
    /// Its host-bridges; when empty, the URL's host and port.
    pub bridges: Vec<HostPort>,
    /// By what it is known.
    pub trust: ParentTrust,
}

impl Parent {
    /// Where to dial.
    pub fn dial_addresses(&self) -> Vec<HostPort> {
        dial_addresses(&self.bridges, &self.url)
    }
}

/// An invitation as the store keeps it, until the parent has answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredInvitation {
    /// Whom to join.
    pub parent: Parent,
    /// Who runs this box.
    pub operator: Operator,
    /// The single-use credential; empty once it is used up.
    #[serde(with = "secret::stored")]
    pub token: Secret,
    /// By what the token is known again when it is wiped.
    pub token_digest: TokenDigest,
    /// How the parent means to treat this child.
    pub spawn_mode: SpawnMode,
    /// The parent's id for this peering, when the payload told it.
    pub parent_peer_id: Option<PeerId>,
    /// The version to claim.
    pub contract_version: ContractVersion,
    /// The parent's time when it invited, where the invitation told it.
    pub minted_at: Option<UnixTime>,
    /// By what this box certifies itself, among equals.
    pub own_authority: Option<KeptAuthority>,
    /// What this box was before.
    pub past: Past,
}

/// The box's own certificate authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptAuthority {
    /// PKCS#8 DER.
    #[serde(with = "secret::stored")]
    pub pkcs8: Secret,
    /// Its certificate.
    pub certificate_pem: String,
}

impl StoredInvitation {
    /// Joins what the parent gave with what the box's operator gave.
    pub fn new(invitation: Invitation, operator: Operator) -> Self {
        Self {
            parent: Parent {
                url: invitation.parent_url,
                bridges: invitation.bridges,
                trust: invitation.trust,
            },
            operator,
            token: invitation.token.expose().clone(),
            token_digest: invitation.token.digest(),
            spawn_mode: invitation.spawn_mode,
            parent_peer_id: invitation.parent_peer_id,
            contract_version: invitation.contract_version,
            minted_at: invitation.minted_at,
            own_authority: None,
            past: Past::default(),
        }
    }

    /// Whether this is the same invitation: same parent, same token.
    pub fn is_same(&self, other: &Self) -> bool {
        self.parent.url == other.parent.url && self.token_digest == other.token_digest
    }

    /// The same without the token, once the parent has taken it.
    #[must_use]
    pub fn used_up(&self) -> Self {
        Self {
            token: Secret::new(Vec::new()),
            ..self.clone()
        }
    }
}

/// A private key and the request that was made of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyMaterial {
    /// PKCS#8 DER.
    #[serde(with = "secret::stored")]
    pub pkcs8: Secret,
    /// PKCS#10, sent unchanged on every try.
    pub csr_pem: String,
}

/// What a parent answered to accept, before its certificate is checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcceptedAnswer {
    /// The parent's id for this peering.
    pub peer_id: PeerId,
    /// The peering as the parent told it.
    pub status: PeerStatus,
    /// The version both sides speak.
    pub contract_version: u32,
    /// The certificate.
    pub certificate: FederationCertificate,
    /// When the parent accepted, by the parent's clock where it told it.
    pub accepted_at: UnixTime,
    /// By what this box is to become a node of the platform, if it is.
    pub node: Option<NodeStanding>,
    /// What else came beside the certificate.
    pub delivered: Delivered,
}

impl AcceptedAnswer {
    /// Whether the parent has left the certificate to this box.
    pub const fn certifies_itself(&self) -> bool {
        self.certificate.cert_pem.is_empty() && self.delivered.trust_exchange.is_some()
    }

    /// By what it does, then.
    pub(super) fn own_authority_of(&self, invitation: &StoredInvitation) -> Option<KeptAuthority> {
        let own = invitation.own_authority.as_ref();
        own.filter(|_| self.certifies_itself()).cloned()
    }
}

/// In place of the certificate that an equal issues for itself when the answer is checked.
pub(super) const fn issued_by_itself(ca_bundle_pem: String, wall: UnixTime) -> FederationCertificate {
    FederationCertificate {
        cert_pem: String::new(),
        ca_chain_pem: ca_bundle_pem,
        serial: String::new(),
        not_after: wall,
    }
}

/// What an accept's answer held beyond the certificate, for whatever needs it later.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Delivered {
    /// The other side's CA, where trust is symmetric.
    pub trust_exchange: Option<TrustExchange>,
    /// All that no part of the program knows, as one JSON object; empty when there was nothing.
    #[serde(with = "secret::stored")]
    pub rest: Secret,
    /// What the parent warned of, and what of its answer could not be used.
    pub warnings: Vec<String>,
}

/// A key and the certificate that the parent issued for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredIdentity {
    /// PKCS#8 DER.
    #[serde(with = "secret::stored")]
    pub pkcs8: Secret,
    /// What the parent issued.
    pub certificate: FederationCertificate,
    /// Begin of validity, read from the certificate.
    pub not_before: UnixTime,
}

/// A renewal that is under way (the contract's refresh): the old identity stays in use until the
/// new one has worked once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Candidate {
    /// The new key is stored; the parent has perhaps been asked.
    Requested(KeyMaterial),
    /// The new certificate is stored; it has not carried a heartbeat yet.
    Issued(StoredIdentity),
}

/// A joined, or nearly joined, satellite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Whom it joined.
    pub parent: Parent,
    /// Who runs it.
    pub operator: Operator,
    /// The parent's id for this peering.
    pub peer_id: PeerId,
    /// How the parent treats this child.
    pub spawn_mode: SpawnMode,
    /// The version both sides speak.
    pub contract_version: u32,
    /// The identity in use.
    pub identity: StoredIdentity,
    /// A renewal under way.
    pub candidate: Option<Candidate>,
    /// When the parent accepted, by the parent's clock where it told it.
    pub accepted_at: UnixTime,
    /// The peering as the parent last told it.
    pub status: PeerStatus,
    /// How far this box is in being a node of the platform, if it is to be one.
    pub node: Option<NodeStanding>,
    /// What else came with the accept beside the certificate.
    pub delivered: Delivered,
    /// By what this box certifies itself, where the parent does not.
    pub own_authority: Option<KeptAuthority>,
    /// Which peers this box was before, the latest first.
    pub former: Vec<FormerPeer>,
    /// The last rejoin, where the parent did not grant it.
    pub rejoin_refused: Option<RejoinRefused>,
}

/// The parent's authorities after one of them has vouched for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowedAnchors {
    /// The authorities.
    pub pem: String,
    /// Their fingerprints in the same order, the latest last.
    pub fingerprints: Vec<CaFingerprint>,
}

impl Membership {
    /// What the accept delivered for the cluster, as one JSON object; `None` for what is no member of one.
    pub fn cluster_delivery(&self) -> Option<&Secret> {
        let member = self.spawn_mode == SpawnMode::ClusterMember;
        Some(&self.delivered.rest).filter(|rest| member && !rest.is_empty())
    }

    /// Trusts these authorities from now on. A pin of one that is not among them moves to the latest, for the
    /// next join of this box.
    pub fn follow(&mut self, followed: &FollowedAnchors) {
        followed
            .pem
            .clone_into(&mut self.identity.certificate.ca_chain_pem);
        if let Some(Candidate::Issued(candidate)) = &mut self.candidate {
            followed.pem.clone_into(&mut candidate.certificate.ca_chain_pem);
        }
        if let (ParentTrust::Pinned(pin), Some(latest)) =
            (&mut self.parent.trust, followed.fingerprints.last())
            && !followed.fingerprints.contains(pin)
        {
            *pin = *latest;
        }
    }
}

/// Why a join ended without a membership. Each needs the operator; none is retried by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRefusal {
    /// 401 on the first try that reached the parent.
    TokenRejected {
        /// The parent's words.
        message: String,
    },
    /// 401 after a try whose answer was lost: the parent took the token and does not repeat itself.
    TokenSpent {
        /// The parent's words.
        message: String,
    },
    /// The parent says no for another reason.
    Rejected {
        /// The HTTP status.
        http_status: u16,
        /// The parent's words.
        message: String,
    },
    /// The accept went through but no certificate came with it (contract section 11).
    NoCertificate {
        /// The parent's warnings.
        warnings: Vec<String>,
    },
    /// A certificate came that must not be used.
    BadCertificate {
        /// What is wrong with it.
        why: String,
    },
    /// The answer is not the contract's.
    UnusableAnswer {
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for JoinRefusal {
    /// What happened and what to do, for the operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                format!(" (\"{text}\")")
            }
        };
        match self {
            Self::TokenRejected { message } => write!(
                f,
                "the parent does not take the acceptance token{}: it is mistyped, used or expired. Ask the parent's \
                 operator for a new invitation and run `powernode-satellite join` with it",
                quoted(message)
            ),
            Self::TokenSpent { message } => write!(
                f,
                "the parent's answer to an earlier try was lost, and now it does not take the token any more{}: it has \
                 counted the token as used and does not repeat its answer. Nothing on this box is broken. Ask the \
                 parent's operator to mint a new token for the same peer (or a new invitation), then run \
                 `powernode-satellite rejoin` with it; the key of this box is kept",
                quoted(message)
            ),
            Self::Rejected { http_status, message } if message.is_empty() => write!(
                f,
                "the join was answered with HTTP {http_status} and no reason; what answered is perhaps no Powernode \
                 parent. Check the parent URL and the bridge address, then run `powernode-satellite join` again"
            ),
            Self::Rejected { http_status, message } => write!(
                f,
                "the parent refused the join with HTTP {http_status}{}. Ask the parent's operator what this peer's \
                 state is (one that has joined before must be suspended, or invited anew), then try again",
                quoted(message)
            ),
            Self::NoCertificate { warnings } => write!(
                f,
                "the parent accepted this satellite but issued no certificate{}. The token is used up and without a \
                 certificate there is no membership: ask the parent's operator to look at its certificate authority, \
                 to revoke this half-made peer, and for a new invitation",
                quoted(&warnings.join("; "))
            ),
            Self::BadCertificate { why } => write!(
                f,
                "the parent issued a certificate that this satellite must not use: {why}. Check that the join code, \
                 `--ca-file` or `--ca-sha256` is this parent's, then ask its operator for a new invitation"
            ),
            Self::UnusableAnswer { why } => write!(
                f,
                "what answered is perhaps no Powernode parent: {why}. Check the parent URL and the bridge address, then \
                 run `powernode-satellite join` again; the key of this box is kept"
            ),
        }
    }
}
