//! The decision: does this grant let this request through? One function, in the contract's
//! order of checks, so that the same request always meets the same answer.

use std::net::IpAddr;

use thiserror::Error;

use super::{Grant, GrantState, PermissionScope};
use crate::base::id::{GrantId, InstanceId, NetworkId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;

/// What a peer asks for, as the side that carries the request has seen it; nothing in it is the
/// peer's own claim but resource and scope.
#[derive(Debug, Clone)]
pub struct AccessRequest<'a> {
    /// The peer whose certificate the request came with.
    pub peer: PeerId,
    /// What kind of thing it wants.
    pub resource_kind: &'a str,
    /// Which thing of that kind.
    pub resource_id: Option<&'a str>,
    /// What it wants to do.
    pub scope: PermissionScope,
    /// The instance that its certificate names.
    pub instance: Option<InstanceId>,
    /// The network on which it came in.
    pub network: Option<NetworkPath>,
    /// The address that it came from.
    pub source: Option<IpAddr>,
}

/// The network that a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkPath {
    /// Which.
    pub id: NetworkId,
    /// Whether a bridge to it is active; without one nothing may claim to come from it.
    pub bridge_active: bool,
}

/// Proof that a request was let through. Only [`authorize`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    grant: GrantId,
    peer: PeerId,
    remote_subject: String,
    valid_until: UnixTime,
}

impl Permit {
    /// The grant that lets it through.
    pub const fn grant(&self) -> GrantId {
        self.grant
    }

    /// The peer that asked.
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Who acts, for the audit log.
    pub fn remote_subject(&self) -> &str {
        &self.remote_subject
    }

    /// When the grant ends: what lasts longer than a request must end with it.
    pub const fn valid_until(&self) -> UnixTime {
        self.valid_until
    }
}

/// Why a request was not let through. Its Display is for the audit log; what the caller may
/// read is [`Denial::answer`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denial {
    /// No `Authorization: Bearer`.
    #[error("no grant token was presented")]
    TokenMissing,
    /// Not in the form of a grant token.
    #[error("what was presented is not a grant token")]
    TokenMalformed,
    /// We did not sign it.
    #[error("the token for grant {grant} has a wrong signature")]
    TokenForged {
        /// The grant that it names.
        grant: GrantId,
    },
    /// The older form, where it is not taken.
    #[error("the token for grant {grant} is in the unsigned form, which is not taken here")]
    TokenUnsigned {
        /// The grant that it names.
        grant: GrantId,
    },
    /// The token is in order, the grant is not there.
    #[error("there is no grant {grant}")]
    UnknownGrant {
        /// The grant that the token names.
        grant: GrantId,
    },
    /// The grant was given to another peer.
    #[error("grant {grant} belongs to peer {owner}, not to the calling peer {caller}")]
    OtherPeer {
        /// The grant.
        grant: GrantId,
        /// Whose it is.
        owner: PeerId,
        /// Who presented it.
        caller: PeerId,
    },
    /// Expired, revoked or archived.
    #[error("grant {grant} is {state}")]
    NotLive {
        /// The grant.
        grant: GrantId,
        /// What it is instead.
        state: GrantState,
    },
    /// The grant is for another kind of thing.
    #[error("resource_kind `{granted}` of the grant does not allow `{asked}`")]
    ResourceKind {
        /// The grant's.
        granted: String,
        /// The request's, shortened.
        asked: String,
    },
    /// The grant is for one other thing.
    #[error("resource_id `{granted}` of the grant does not allow {}", value(asked.as_ref(), "resource_id"))]
    ResourceId {
        /// The grant's.
        granted: String,
        /// The request's, shortened.
        asked: Option<String>,
    },
    /// The grant does not hold the scope.
    #[error("permission_scopes [{held}] of the grant do not hold `{asked}`")]
    Scope {
        /// The grant's, joined.
        held: String,
        /// The request's.
        asked: PermissionScope,
    },
    /// The instance is not on the list.
    #[error("node_instance_ids of the grant do not allow {}", value(asked.as_ref(), "instance"))]
    Instance {
        /// The caller's.
        asked: Option<InstanceId>,
    },
    /// The network is not on the list.
    #[error("sdwan_network_ids of the grant do not allow {}", value(asked.as_ref(), "network"))]
    Network {
        /// The caller's.
        asked: Option<NetworkId>,
    },
    /// The network may be allowed, but nothing can come from it now.
    #[error("sdwan_network_ids: network `{network}` has no active bridge")]
    NoActiveBridge {
        /// The caller's.
        network: NetworkId,
    },
    /// The grant is for somebody else on the other side.
    #[error("remote_subject `{granted}` of the grant does not allow `{asked}`")]
    Subject {
        /// The grant's.
        granted: String,
        /// The request's, shortened.
        asked: String,
    },
    /// The address is in none of the networks.
    #[error("source_cidrs of the grant do not allow {}", value(asked.as_ref(), "source address"))]
    Source {
        /// The caller's.
        asked: Option<IpAddr>,
    },
}

fn value<T: std::fmt::Display>(asked: Option<&T>, what: &str) -> String {
    match asked {
        Some(asked) => format!("`{asked}`"),
        None => format!("a call that tells no {what}"),
    }
}

impl Denial {
    /// 401 where the token itself is no good, 403 where it is and does not reach so far.
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::TokenMissing
            | Self::TokenMalformed
            | Self::TokenForged { .. }
            | Self::TokenUnsigned { .. }
            | Self::UnknownGrant { .. }
            | Self::OtherPeer { .. }
            | Self::NotLive { .. } => 401,
            Self::ResourceKind { .. }
            | Self::ResourceId { .. }
            | Self::Scope { .. }
            | Self::Instance { .. }
            | Self::Network { .. }
            | Self::NoActiveBridge { .. }
            | Self::Subject { .. }
            | Self::Source { .. } => 403,
        }
    }

    /// The grant that did not let it through, where the denial knows it.
    pub const fn grant(&self) -> Option<GrantId> {
        match self {
            Self::TokenForged { grant }
            | Self::TokenUnsigned { grant }
            | Self::UnknownGrant { grant }
            | Self::OtherPeer { grant, .. }
            | Self::NotLive { grant, .. } => Some(*grant),
            Self::TokenMissing
            | Self::TokenMalformed
            | Self::ResourceKind { .. }
            | Self::ResourceId { .. }
            | Self::Scope { .. }
            | Self::Instance { .. }
            | Self::Network { .. }
            | Self::NoActiveBridge { .. }
            | Self::Subject { .. }
            | Self::Source { .. } => None,
        }
    }

    /// What the caller may read. One text for all tokens that are not a grant of this peer's,
    /// so that nobody can learn by trying which grants there are.
    pub fn answer(&self) -> String {
        match self {
            Self::TokenMissing => "grant token required".to_owned(),
            Self::TokenMalformed
            | Self::TokenForged { .. }
            | Self::TokenUnsigned { .. }
            | Self::UnknownGrant { .. }
            | Self::OtherPeer { .. } => "grant token not recognized".to_owned(),
            Self::NotLive { state, .. } => format!("grant is {state}"),
            Self::ResourceKind { .. }
            | Self::ResourceId { .. }
            | Self::Scope { .. }
            | Self::Instance { .. }
            | Self::Network { .. }
            | Self::NoActiveBridge { .. }
            | Self::Subject { .. }
            | Self::Source { .. } => self.to_string(),
        }
    }
}

/// Decides, in the order of contract section 7. The token was verified before the grant was
/// looked up.
pub fn authorize(grant: &Grant, request: &AccessRequest<'_>, now: UnixTime) -> Result<Permit, Denial> {
    check_owner_and_state(grant, request, now)?;
    check_resource_and_scope(grant, request)?;
    check_allow_lists(grant, request)?;
    Ok(Permit {
        grant: grant.id,
        peer: grant.federation_peer_id,
        remote_subject: grant.remote_subject.clone(),
        valid_until: grant.expires_at,
    })
}

fn check_owner_and_state(grant: &Grant, request: &AccessRequest<'_>, now: UnixTime) -> Result<(), Denial> {
    if grant.federation_peer_id != request.peer {
        return Err(Denial::OtherPeer {
            grant: grant.id,
            owner: grant.federation_peer_id,
            caller: request.peer,
        });
    }
    match grant.state(now) {
        GrantState::Active => Ok(()),
        state @ (GrantState::Expired | GrantState::Revoked | GrantState::Archived) => Err(Denial::NotLive {
            grant: grant.id,
            state,
        }),
    }
}

fn check_resource_and_scope(grant: &Grant, request: &AccessRequest<'_>) -> Result<(), Denial> {
    if grant.resource_kind != request.resource_kind {
        return Err(Denial::ResourceKind {
            granted: grant.resource_kind.clone(),
            asked: foreign_text(request.resource_kind),
        });
    }
    if let Some(granted) = &grant.resource_id
        && Some(granted.as_str()) != request.resource_id
    {
        return Err(Denial::ResourceId {
            granted: granted.clone(),
            asked: request.resource_id.map(foreign_text),
        });
    }
    if !grant.permission_scopes.contains(&request.scope) {
        let held: Vec<_> = grant.permission_scopes.iter().map(|s| s.as_str()).collect();
        return Err(Denial::Scope {
            held: held.join(", "),
            asked: request.scope,
        });
    }
    Ok(())
}

fn check_allow_lists(grant: &Grant, request: &AccessRequest<'_>) -> Result<(), Denial> {
    if !grant.node_instance_ids.allows(request.instance.as_ref()) {
        return Err(Denial::Instance {
            asked: request.instance,
        });
    }
    let network = request.network.map(|path| path.id);
    if !grant.sdwan_network_ids.allows(network.as_ref()) {
        return Err(Denial::Network { asked: network });
    }
    if let Some(NetworkPath {
        id: network,
        bridge_active: false,
    }) = request.network
    {
        return Err(Denial::NoActiveBridge { network });
    }
    if !grant.source_cidrs.allows_source(request.source) {
        return Err(Denial::Source {
            asked: request.source,
        });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{NOW, grant_id, issued, peer, request};
    use super::*;

    fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(last: u8) -> T {
        format!("0192f0c1-0000-7000-8000-0000000000{last:02x}")
            .parse()
            .unwrap()
    }

    /// A grant that is narrow in every way, and a request that breaks every check at once.
    fn narrow() -> Grant {
        let mut input = request();
        input.resource_id = Some("ssh".into());
        input.node_instance_ids = vec![id::<InstanceId>(1).to_string()];
        input.sdwan_network_ids = vec![id::<NetworkId>(2).to_string()];
        input.source_cidrs = vec!["203.0.113.0/24".into()];
        issued(input)
    }

    fn wrong() -> AccessRequest<'static> {
        AccessRequest {
            peer: id(9),
            resource_kind: "other",
            resource_id: None,
            scope: PermissionScope::Admin,
            instance: None,
            network: Some(NetworkPath {
                id: id(8),
                bridge_active: false,
            }),
            source: Some(IpAddr::from([198, 51, 100, 1])),
        }
    }

    #[test]
    fn checks_come_in_the_contracts_order() {
        let mut grant = narrow();
        let mut asked = wrong();
        let mut seen = Vec::new();
        let mut deny = |grant: &Grant, asked: &AccessRequest<'_>| {
            let denial = authorize(grant, asked, NOW).unwrap_err();
            seen.push((denial.http_status(), denial.answer()));
        };
        grant.revoke("over", NOW).unwrap();
        deny(&grant, &asked);
        asked.peer = peer();
        deny(&grant, &asked);
        let grant = narrow();
        deny(&grant, &asked);
        asked.resource_kind = "service";
        deny(&grant, &asked);
        asked.resource_id = Some("ssh");
        deny(&grant, &asked);
        asked.scope = PermissionScope::Write;
        deny(&grant, &asked);
        asked.instance = Some(id(1));
        deny(&grant, &asked);
        asked.network = Some(NetworkPath {
            id: id(2),
            bridge_active: false,
        });
        deny(&grant, &asked);
        asked.network = Some(NetworkPath {
            id: id(2),
            bridge_active: true,
        });
        deny(&grant, &asked);
        asked.source = Some("::ffff:203.0.113.9".parse().unwrap());
        let permit = authorize(&grant, &asked, NOW).unwrap();

        assert_eq!(permit.remote_subject(), "technician@example.com");
        assert_eq!(
            (permit.grant(), permit.peer(), permit.valid_until()),
            (grant_id(), peer(), grant.expires_at)
        );
        let seen: Vec<_> = seen
            .iter()
            .map(|(status, text)| (*status, text.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (401, "grant token not recognized"),
                (401, "grant is revoked"),
                (403, "resource_kind `service` of the grant does not allow `other`"),
                (
                    403,
                    "resource_id `ssh` of the grant does not allow a call that tells no resource_id"
                ),
                (
                    403,
                    "permission_scopes [read, write] of the grant do not hold `admin`"
                ),
                (
                    403,
                    "node_instance_ids of the grant do not allow a call that tells no instance"
                ),
                (
                    403,
                    "sdwan_network_ids of the grant do not allow `0192f0c1-0000-7000-8000-000000000008`"
                ),
                (
                    403,
                    "sdwan_network_ids: network `0192f0c1-0000-7000-8000-000000000002` has no active bridge"
                ),
                (403, "source_cidrs of the grant do not allow `198.51.100.1`"),
            ]
        );
    }

    #[test]
    fn an_answer_does_not_tell_which_grants_exist() {
        let grant = grant_id();
        let answers = [
            Denial::TokenMalformed,
            Denial::TokenForged { grant },
            Denial::TokenUnsigned { grant },
            Denial::UnknownGrant { grant },
            Denial::OtherPeer {
                grant,
                owner: peer(),
                caller: id(9),
            },
        ]
        .map(|denial| (denial.http_status(), denial.answer()));
        assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    }
}
