//! From a request for a grant to a grant: what is checked, what is filled in, and when one that
//! exists already serves.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;

use super::allow_list::read_network;
use super::{AllowList, Grant, GrantState, InvalidAllowList, PermissionScope, SERVICE_KIND, UnknownScope};
use crate::base::id::{GrantId, InstanceId, NetworkId, PeerId};
use crate::base::time::UnixTime;

/// How long a grant lasts unless told otherwise (contract section 7).
pub const GRANT_TTL_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The shortest that may be asked for (contract section 7).
pub const GRANT_TTL_MIN: Duration = Duration::from_secs(7 * DAY_SECONDS);

/// The longest that may be asked for: ten years. The contract names none; what is longer is
/// meant in another unit than seconds.
pub const GRANT_TTL_MAX: Duration = Duration::from_secs(3_650 * DAY_SECONDS);

const DAY_SECONDS: u64 = 24 * 3600;

/// How long a managed child's operator grant lasts (contract section 7).
pub const MANAGED_CHILD_OPERATOR_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// `resource_kind` of the grant under which a parent operates its managed child.
pub const MANAGED_CHILD_OPERATOR_KIND: &str = "managed_child_operator";

/// Longest `remote_subject`, in characters (contract section 7).
const SUBJECT_MAX_CHARS: usize = 256;

/// Longest `resource_kind`, in characters (contract section 7).
const KIND_MAX_CHARS: usize = 64;

/// Longest `resource_id`, in characters. The contract names none; ids and service names are
/// far shorter.
const RESOURCE_ID_MAX_CHARS: usize = 256;

/// A request for a grant as the operator API and the command line take it, not checked yet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The peer that will present it.
    pub federation_peer_id: PeerId,
    /// Who acts on the other side.
    pub remote_subject: String,
    /// What kind of thing it opens.
    pub resource_kind: String,
    /// The one thing of that kind.
    #[serde(default)]
    pub resource_id: Option<String>,
    /// `read`, `write`, `admin`, `migrate`.
    pub permission_scopes: Vec<String>,
    /// UUIDs; empty or `*` is any.
    #[serde(default)]
    pub node_instance_ids: Vec<String>,
    /// UUIDs; empty or `*` is any.
    #[serde(default)]
    pub sdwan_network_ids: Vec<String>,
    /// CIDRs or addresses; empty or `*` is any.
    #[serde(default)]
    pub source_cidrs: Vec<String>,
    /// Absent: [`GRANT_TTL_DEFAULT`].
    #[serde(default)]
    pub ttl_seconds: Option<i64>,
}

impl GrantRequest {
    /// A request without restrictions beyond what is named, for the default time.
    pub fn new(peer: PeerId, remote_subject: &str, resource_kind: &str, scopes: &[&str]) -> Self {
        Self {
            federation_peer_id: peer,
            remote_subject: remote_subject.to_owned(),
            resource_kind: resource_kind.to_owned(),
            resource_id: None,
            permission_scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            node_instance_ids: Vec::new(),
            sdwan_network_ids: Vec::new(),
            source_cidrs: Vec::new(),
            ttl_seconds: None,
        }
    }
}

/// Why a request is not granted. Nothing was made.
#[derive(Debug, Error)]
pub enum InvalidGrant {
    /// A text is missing.
    #[error("{field} is empty; a grant without it would be nobody's")]
    Empty {
        /// The field.
        field: &'static str,
    },
    /// A text is longer than the contract lets it be.
    #[error("{field} has more than {max} characters; shorten it")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The most.
        max: usize,
    },
    /// A text that would forge lines in logs and tables.
    #[error("{field} has a control character in it; write it as plain text on one line")]
    ControlCharacter {
        /// The field.
        field: &'static str,
    },
    /// Whoever writes it means everybody, and it is compared as it stands.
    #[error("remote_subject has a `*` in it, and a grant to services is for one subject; make one for each")]
    WildcardSubject,
    /// No scope: it would permit nothing.
    #[error("permission_scopes is empty; name at least one of read, write, admin, migrate")]
    NoScope,
    /// A scope that the contract does not have.
    #[error("permission_scopes cannot be used")]
    Scope(#[from] UnknownScope),
    /// An allow-list that cannot be read.
    #[error("{field} cannot be used")]
    AllowList {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidAllowList,
    },
    /// Too short or too long.
    #[error(
        "a grant lasts from {} to {} days; {given} seconds were asked for",
        GRANT_TTL_MIN.as_secs() / DAY_SECONDS,
        GRANT_TTL_MAX.as_secs() / DAY_SECONDS
    )]
    Ttl {
        /// As asked for.
        given: i64,
    },
}

/// A request that was checked: all that a grant says but its id and its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGrant {
    peer: PeerId,
    remote_subject: String,
    resource_kind: String,
    resource_id: Option<String>,
    permission_scopes: BTreeSet<PermissionScope>,
    node_instance_ids: AllowList<InstanceId>,
    sdwan_network_ids: AllowList<NetworkId>,
    source_cidrs: AllowList<IpNet>,
    ttl: Duration,
    not_after: Option<UnixTime>,
}

impl NewGrant {
    /// Checks a request. Surrounding white space is dropped; a blank `resource_id` is none.
    pub fn check(request: GrantRequest) -> Result<Self, InvalidGrant> {
        let resource_id = request.resource_id.filter(|id| !id.trim().is_empty());
        let list_error = |field| move |source| InvalidGrant::AllowList { field, source };
        let scopes: Result<BTreeSet<PermissionScope>, UnknownScope> = request
            .permission_scopes
            .iter()
            .map(|scope| scope.parse())
            .collect();
        let scopes = scopes?;
        if scopes.is_empty() {
            return Err(InvalidGrant::NoScope);
        }
        if request.resource_kind.trim() == SERVICE_KIND && request.remote_subject.contains('*') {
            return Err(InvalidGrant::WildcardSubject);
        }
        Ok(Self {
            peer: request.federation_peer_id,
            remote_subject: check_text("remote_subject", &request.remote_subject, SUBJECT_MAX_CHARS)?,
            resource_kind: check_text("resource_kind", &request.resource_kind, KIND_MAX_CHARS)?,
            resource_id: resource_id
                .map(|id| check_text("resource_id", &id, RESOURCE_ID_MAX_CHARS))
                .transpose()?,
            permission_scopes: scopes,
            node_instance_ids: AllowList::read(&request.node_instance_ids, str::parse)
                .map_err(list_error("node_instance_ids"))?,
            sdwan_network_ids: AllowList::read(&request.sdwan_network_ids, str::parse)
                .map_err(list_error("sdwan_network_ids"))?,
            source_cidrs: AllowList::read(&request.source_cidrs, read_network)
                .map_err(list_error("source_cidrs"))?,
            ttl: check_ttl(request.ttl_seconds)?,
            not_after: None,
        })
    }

    /// The grant under which the parent operates a managed child, on the parent's side and, as
    /// its mirror, on the child's. Whether one may be made at all is the caller's to know: a
    /// child that emancipated itself must not get another by a repeated accept.
    pub fn managed_child_operator(peer: PeerId) -> Self {
        Self {
            peer,
            remote_subject: format!("parent-operator@{peer}"),
            resource_kind: MANAGED_CHILD_OPERATOR_KIND.to_owned(),
            resource_id: None,
            permission_scopes: BTreeSet::from([
                PermissionScope::Read,
                PermissionScope::Write,
                PermissionScope::Admin,
            ]),
            node_instance_ids: AllowList::Any,
            sdwan_network_ids: AllowList::Any,
            source_cidrs: AllowList::Any,
            ttl: MANAGED_CHILD_OPERATOR_TTL,
            not_after: None,
        }
    }

    /// The same, no wider and no longer than the grant under which it is asked for: who may reach
    /// something from one network until Friday does not get more by asking for a grant of their own.
    #[must_use]
    pub fn within(mut self, origin: &Grant) -> Self {
        self.permission_scopes
            .retain(|scope| origin.permission_scopes.contains(scope));
        self.node_instance_ids.clone_from(&origin.node_instance_ids);
        self.sdwan_network_ids.clone_from(&origin.sdwan_network_ids);
        self.source_cidrs.clone_from(&origin.source_cidrs);
        self.not_after = Some(origin.expires_at);
        self
    }

    /// The peer that will present it.
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whether a live grant says just the same, time apart: then it is used again instead of a
    /// second one being made.
    pub fn is_served_by(&self, grant: &Grant, now: UnixTime) -> bool {
        grant.state(now) == GrantState::Active
            && self.peer == grant.federation_peer_id
            && self.remote_subject == grant.remote_subject
            && self.resource_kind == grant.resource_kind
            && self.resource_id == grant.resource_id
            && self.permission_scopes == grant.permission_scopes
            && self.node_instance_ids == grant.node_instance_ids
            && self.sdwan_network_ids == grant.sdwan_network_ids
            && self.source_cidrs == grant.source_cidrs
    }

    /// Makes the grant.
    pub fn issue(self, id: GrantId, now: UnixTime) -> Grant {
        let expires_at = now.plus(self.ttl);
        Grant {
            id,
            federation_peer_id: self.peer,
            remote_subject: self.remote_subject,
            resource_kind: self.resource_kind,
            resource_id: self.resource_id,
            permission_scopes: self.permission_scopes,
            node_instance_ids: self.node_instance_ids,
            sdwan_network_ids: self.sdwan_network_ids,
            source_cidrs: self.source_cidrs,
            issued_at: now,
            expires_at: self.not_after.map_or(expires_at, |latest| expires_at.min(latest)),
            revocation: None,
            archived_at: None,
        }
    }
}

fn check_text(field: &'static str, text: &str, max: usize) -> Result<String, InvalidGrant> {
    let text = text.trim();
    if text.is_empty() {
        return Err(InvalidGrant::Empty { field });
    }
    if text.chars().count() > max {
        return Err(InvalidGrant::TooLong { field, max });
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidGrant::ControlCharacter { field });
    }
    Ok(text.to_owned())
}

fn check_ttl(seconds: Option<i64>) -> Result<Duration, InvalidGrant> {
    let Some(given) = seconds else {
        return Ok(GRANT_TTL_DEFAULT);
    };
    u64::try_from(given)
        .ok()
        .map(Duration::from_secs)
        .filter(|ttl| (GRANT_TTL_MIN..=GRANT_TTL_MAX).contains(ttl))
        .ok_or(InvalidGrant::Ttl { given })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{NOW, grant_id, peer, request};
    use super::*;

    #[test]
    fn the_managed_childs_grant_is_as_the_contract_says() {
        let grant = NewGrant::managed_child_operator(peer()).issue(grant_id(), NOW);
        assert_eq!(grant.remote_subject, format!("parent-operator@{}", peer()));
        assert_eq!(grant.resource_kind, "managed_child_operator");
        let scopes: Vec<_> = grant.permission_scopes.iter().map(|s| s.as_str()).collect();
        assert_eq!(scopes, ["read", "write", "admin"]);
        assert_eq!(grant.expires_at.since(NOW), Duration::from_secs(365 * 86_400));
    }

    #[test]
    fn a_grant_within_another_is_no_wider_and_no_longer() {
        let origin = NewGrant::check(GrantRequest {
            source_cidrs: vec!["203.0.113.0/24".into()],
            permission_scopes: vec!["write".into()],
            ttl_seconds: Some(604_800),
            ..request()
        });
        let origin = origin.unwrap().issue(grant_id(), NOW);
        let later = NOW.plus(Duration::from_secs(86_400));
        let derived = NewGrant::check(request()).unwrap().within(&origin);
        let derived = derived.issue(grant_id(), later);
        assert_eq!(derived.expires_at, origin.expires_at);
        assert_eq!(derived.source_cidrs, origin.source_cidrs);
        assert_eq!(derived.permission_scopes, origin.permission_scopes);
    }

    #[test]
    fn only_a_live_grant_that_says_the_same_serves_again() {
        let wanted = NewGrant::managed_child_operator(peer());
        let mut grant = wanted.clone().issue(grant_id(), NOW);
        let later = NOW.plus(Duration::from_secs(3600));
        assert!(wanted.is_served_by(&grant, later));
        assert!(!wanted.is_served_by(&grant, grant.expires_at));

        let mut narrower = grant.clone();
        narrower.permission_scopes.remove(&PermissionScope::Write);
        assert!(!wanted.is_served_by(&narrower, later));
        let other_peer =
            NewGrant::managed_child_operator("0192f0c1-0000-7000-8000-000000000009".parse().unwrap());
        assert!(!other_peer.is_served_by(&grant, later));

        grant.revoke("emancipation", later).unwrap();
        assert!(!wanted.is_served_by(&grant, later));
    }

    #[test]
    fn texts_are_counted_in_characters_and_trimmed() {
        let mut longest = request();
        longest.remote_subject = format!(" {} ", "ä".repeat(256));
        longest.resource_kind = "k".repeat(64);
        longest.resource_id = Some("  ".into());
        let grant = NewGrant::check(longest).unwrap().issue(grant_id(), NOW);
        assert_eq!(grant.remote_subject.chars().count(), 256);
        assert_eq!(grant.resource_id, None);

        let mut forged = request();
        forged.remote_subject = "a\nb".into();
        assert!(matches!(
            NewGrant::check(forged),
            Err(InvalidGrant::ControlCharacter {
                field: "remote_subject"
            })
        ));
    }

    #[test]
    fn times_outside_of_the_bounds_are_refused_with_the_bounds() {
        for given in [i64::MIN, -1, 0, 604_799, 315_360_001, i64::MAX] {
            let mut input = request();
            input.ttl_seconds = Some(given);
            let error = NewGrant::check(input).unwrap_err().to_string();
            assert!(
                error.contains("from 7 to 3650 days") && error.contains(&given.to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_misspelt_restriction_is_refused_not_ignored() {
        let json = r#"{"federation_peer_id":"0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e","remote_subject":"a",
            "resource_kind":"service","permission_scopes":["read"],"source_cidr":["203.0.113.9"]}"#;
        let error = serde_json::from_str::<GrantRequest>(json)
            .unwrap_err()
            .to_string();
        assert!(error.contains("source_cidr"), "{error}");
    }
}
