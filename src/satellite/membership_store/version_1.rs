//! The membership as records of version 1 hold it: before an accept's answer was kept beyond its
//! certificate. Frozen; reads, never writes.

use serde::Deserialize;

use crate::base::id::PeerId;
use crate::base::secret::{self, Secret};
use crate::base::time::UnixTime;
use crate::contract::invitation::ContractVersion;
use crate::contract::message::FederationCertificate;
use crate::contract::peer::{PeerStatus, SpawnMode};
use crate::contract::token::TokenDigest;
use crate::machine::join::{Farewell, JoinState};
use crate::machine::membership::{
    self as current, Candidate, Delivered, JoinRefusal, KeyMaterial, Operator, Parent, StoredIdentity,
};
use crate::machine::past::Past;
use crate::store::record::{RecordError, decode_content};

/// The state of a record's content.
pub(super) fn read(content: &[u8]) -> Result<JoinState, RecordError> {
    decode_content::<State>(content).map(JoinState::from)
}

#[derive(Deserialize)]
enum State {
    Invited(Invitation),
    KeyReady {
        invitation: Invitation,
        key: KeyMaterial,
    },
    Sent {
        invitation: Invitation,
        key: KeyMaterial,
        first_sent_at: UnixTime,
    },
    Accepted {
        invitation: Invitation,
        key: KeyMaterial,
        answer: Answer,
    },
    Enrolled(Membership),
    Joined(Membership),
    Refused {
        parent: Parent,
        key: Option<KeyMaterial>,
        refusal: JoinRefusal,
        at: UnixTime,
        token: TokenDigest,
    },
    Left(Left),
}

#[derive(Deserialize)]
struct Left {
    parent: Parent,
    peer_id: PeerId,
    reason: String,
    at: UnixTime,
    told: bool,
    erased: bool,
}

#[derive(Deserialize)]
struct Invitation {
    parent: Parent,
    operator: Operator,
    #[serde(with = "secret::stored")]
    token: Secret,
    token_digest: TokenDigest,
    spawn_mode: SpawnMode,
    parent_peer_id: Option<PeerId>,
    contract_version: ContractVersion,
    minted_at: Option<UnixTime>,
}

#[derive(Deserialize)]
struct Answer {
    peer_id: PeerId,
    status: PeerStatus,
    contract_version: u32,
    certificate: FederationCertificate,
    accepted_at: UnixTime,
}

#[derive(Deserialize)]
struct Membership {
    parent: Parent,
    operator: Operator,
    peer_id: PeerId,
    spawn_mode: SpawnMode,
    contract_version: u32,
    identity: StoredIdentity,
    candidate: Option<Candidate>,
    accepted_at: UnixTime,
    status: PeerStatus,
}

impl From<State> for JoinState {
    fn from(state: State) -> Self {
        match state {
            State::Invited(invitation) => Self::Invited(invitation.into()),
            State::KeyReady { invitation, key } => Self::KeyReady {
                invitation: invitation.into(),
                key,
            },
            State::Sent {
                invitation,
                key,
                first_sent_at,
            } => Self::Sent {
                invitation: invitation.into(),
                key,
                first_sent_at,
            },
            State::Accepted {
                invitation,
                key,
                answer,
            } => Self::Accepted {
                invitation: invitation.into(),
                key,
                answer: answer.into(),
            },
            State::Enrolled(membership) => Self::Enrolled(membership.into()),
            State::Joined(membership) => Self::Joined(membership.into()),
            State::Refused {
                parent,
                key,
                refusal,
                at,
                token,
            } => Self::Refused {
                parent,
                key,
                refusal,
                at,
                token,
                former: Vec::new(),
            },
            State::Left(farewell) => Self::Left(farewell.into()),
        }
    }
}

impl From<Left> for Farewell {
    fn from(left: Left) -> Self {
        Self {
            parent: left.parent,
            peer_id: left.peer_id,
            reason: left.reason,
            at: left.at,
            told: left.told,
            erased: left.erased,
            former: Vec::new(),
        }
    }
}

impl From<Invitation> for current::StoredInvitation {
    fn from(invitation: Invitation) -> Self {
        Self {
            parent: invitation.parent,
            operator: invitation.operator,
            token: invitation.token,
            token_digest: invitation.token_digest,
            spawn_mode: invitation.spawn_mode,
            parent_peer_id: invitation.parent_peer_id,
            contract_version: invitation.contract_version,
            minted_at: invitation.minted_at,
            own_authority: None,
            past: Past::default(),
        }
    }
}

impl From<Answer> for current::AcceptedAnswer {
    fn from(answer: Answer) -> Self {
        Self {
            peer_id: answer.peer_id,
            status: answer.status,
            contract_version: answer.contract_version,
            certificate: answer.certificate,
            accepted_at: answer.accepted_at,
            node: None,
            delivered: Delivered::default(),
        }
    }
}

impl From<Membership> for current::Membership {
    fn from(membership: Membership) -> Self {
        Self {
            parent: membership.parent,
            operator: membership.operator,
            peer_id: membership.peer_id,
            spawn_mode: membership.spawn_mode,
            contract_version: membership.contract_version,
            identity: membership.identity,
            candidate: membership.candidate,
            accepted_at: membership.accepted_at,
            status: membership.status,
            node: None,
            delivered: Delivered::default(),
            own_authority: None,
            former: Vec::new(),
            rejoin_refused: None,
        }
    }
}
