//! Floor 1: grants, the permission of the other side's subject to act here (contract section
//! 7). What a grant says, who may have one, when it ends, what it lets through, and the bearer
//! token by which it is presented. Pure: knows no store, no clock and no request's transport.
//!
//! The way of a request that presents a grant:
//!
//! ```text
//! BearerToken::from_authorization(header)?   is there a token, and has it the form of one?
//!     .verify(key, legacy)?                  did we sign it? Decided before any look-up.
//! authorize(&grant, &request, now)?          does the grant that it names let this through?
//! ```
//!
//! Each step fails with a [`Denial`], which knows its HTTP status, what the caller may read of
//! it and what the audit log says.

mod allow_list;
mod authorization;
mod issue;
mod service;
mod token;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use allow_list::{ALLOW_LIST_MAX_ENTRIES, AllowList, InvalidAllowList};
pub use authorization::{AccessRequest, Denial, NetworkPath, Permit, authorize};
pub use issue::{
    GRANT_TTL_DEFAULT, GRANT_TTL_MAX, GRANT_TTL_MIN, GrantRequest, InvalidGrant, MANAGED_CHILD_OPERATOR_KIND,
    MANAGED_CHILD_OPERATOR_TTL, NewGrant,
};
pub use service::{SERVICE_KIND, SERVICE_SCOPE, ServiceAccess, authorize_service};
pub use token::{BearerToken, GRANT_KEY_BYTES, GrantKey, LegacyTokens, MalformedToken};

use crate::base::id::{GrantId, InstanceId, NetworkId, PeerId};
use crate::base::time::{UnixTime, rfc3339};

/// How long a revoked grant stays before it is archived (contract section 7).
pub const ARCHIVE_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);

/// Longest reason of a revocation, in characters: a sentence or two for the audit log.
pub const REVOCATION_REASON_MAX_CHARS: usize = 500;

/// What a grant lets its subject do. None implies another: `admin` does not hold `write`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionScope {
    /// Look.
    Read,
    /// Change.
    Write,
    /// Administer.
    Admin,
    /// Move to another place.
    Migrate,
}

/// A text that is no permission scope.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{given}` is not a permission scope; known are: read, write, admin, migrate")]
pub struct UnknownScope {
    given: String,
}

impl PermissionScope {
    /// All of them, in the contract's order.
    pub const ALL: &'static [Self] = &[Self::Read, Self::Write, Self::Admin, Self::Migrate];

    /// The contract's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Migrate => "migrate",
        }
    }
}

impl fmt::Display for PermissionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PermissionScope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let text = text.trim();
        Self::ALL
            .iter()
            .copied()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| UnknownScope {
                given: text.chars().take(64).collect(),
            })
    }
}

/// A grant as it is kept. Made by [`NewGrant::issue`], ended by [`Grant::revoke`], put away by
/// [`Grant::archive`]; nothing else in it ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The grant, also in its bearer token.
    pub id: GrantId,
    /// The only peer that may present it.
    pub federation_peer_id: PeerId,
    /// Who acts on the other side, for the audit log.
    pub remote_subject: String,
    /// What kind of thing it opens.
    pub resource_kind: String,
    /// The one thing of that kind; absent, all of them.
    pub resource_id: Option<String>,
    /// What may be done.
    pub permission_scopes: BTreeSet<PermissionScope>,
    /// From which of the other side's instances.
    pub node_instance_ids: AllowList<InstanceId>,
    /// Through which networks.
    pub sdwan_network_ids: AllowList<NetworkId>,
    /// From which addresses.
    pub source_cidrs: AllowList<IpNet>,
    /// When it was made.
    pub issued_at: UnixTime,
    /// From when on it lets nothing through.
    pub expires_at: UnixTime,
    /// When it was ended early, and why.
    pub revocation: Option<Revocation>,
    /// When it was put away.
    pub archived_at: Option<UnixTime>,
}

/// An early end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    pub at: UnixTime,
    /// In the words of whoever revoked.
    pub reason: String,
}

/// Where a grant stands at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    /// It lets through what it says.
    Active,
    /// Its time is over.
    Expired,
    /// It was ended early.
    Revoked,
    /// It was put away.
    Archived,
}

impl GrantState {
    /// The word in output and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Archived => "archived",
        }
    }
}

impl fmt::Display for GrantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a grant was not revoked. It is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RevokeError {
    /// Contract section 6 and social contract 4: an end is given a reason.
    #[error("a revocation needs a reason: it goes to the other side and into the audit log")]
    ReasonMissing,
    /// More than [`REVOCATION_REASON_MAX_CHARS`].
    #[error("the reason is longer than {REVOCATION_REASON_MAX_CHARS} characters; shorten it")]
    ReasonTooLong,
    /// The first revocation and its reason stay.
    #[error("the grant was already revoked at {at}; nothing was changed")]
    AlreadyRevoked {
        /// When.
        at: UnixTime,
    },
}

impl Grant {
    /// Where it stands. A grant is over in the very second of its `expires_at`.
    pub fn state(&self, now: UnixTime) -> GrantState {
        if self.archived_at.is_some() {
            GrantState::Archived
        } else if self.revocation.is_some() {
            GrantState::Revoked
        } else if now >= self.expires_at {
            GrantState::Expired
        } else {
            GrantState::Active
        }
    }

    /// Ends it, whatever was promised: for a managed child's operator grant this is the
    /// emancipation. An expired grant may be revoked too, for the record.
    pub fn revoke(&mut self, reason: &str, now: UnixTime) -> Result<(), RevokeError> {
        if let Some(earlier) = &self.revocation {
            return Err(RevokeError::AlreadyRevoked { at: earlier.at });
        }
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(RevokeError::ReasonMissing);
        }
        if reason.chars().count() > REVOCATION_REASON_MAX_CHARS {
            return Err(RevokeError::ReasonTooLong);
        }
        self.revocation = Some(Revocation {
            at: now,
            reason: reason.to_owned(),
        });
        Ok(())
    }

    /// When it is due to be archived; never, unless it was revoked and is not archived yet.
    pub fn archive_at(&self) -> Option<UnixTime> {
        match (&self.revocation, self.archived_at) {
            (Some(revocation), None) => Some(revocation.at.plus(ARCHIVE_AFTER)),
            (None, _) | (_, Some(_)) => None,
        }
    }

    /// Puts it away if that is due; says whether it did.
    pub fn archive(&mut self, now: UnixTime) -> bool {
        let due = self.archive_at().is_some_and(|at| now >= at);
        if due {
            self.archived_at = Some(now);
        }
        due
    }

    /// Its form in JSON output: the contract's fields, and its state at `now`.
    pub fn view(&self, now: UnixTime) -> GrantView<'_> {
        GrantView {
            id: self.id,
            federation_peer_id: self.federation_peer_id,
            state: self.state(now),
            remote_subject: &self.remote_subject,
            resource_kind: &self.resource_kind,
            resource_id: self.resource_id.as_deref(),
            permission_scopes: &self.permission_scopes,
            node_instance_ids: self.node_instance_ids.view(),
            sdwan_network_ids: self.sdwan_network_ids.view(),
            source_cidrs: self.source_cidrs.view(),
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            revoked_at: self.revocation.as_ref().map(|revocation| revocation.at),
            revocation_reason: self.revocation.as_ref().map(|r| r.reason.as_str()),
            archived_at: self.archived_at,
        }
    }
}

/// A grant in JSON output. Allow-lists are a list, or the word `any`.
#[derive(Debug, Serialize)]
pub struct GrantView<'a> {
    id: GrantId,
    federation_peer_id: PeerId,
    state: GrantState,
    remote_subject: &'a str,
    resource_kind: &'a str,
    resource_id: Option<&'a str>,
    permission_scopes: &'a BTreeSet<PermissionScope>,
    node_instance_ids: allow_list::AllowListView<'a, InstanceId>,
    sdwan_network_ids: allow_list::AllowListView<'a, NetworkId>,
    source_cidrs: allow_list::AllowListView<'a, IpNet>,
    #[serde(with = "rfc3339")]
    issued_at: UnixTime,
    #[serde(with = "rfc3339")]
    expires_at: UnixTime,
    #[serde(with = "rfc3339::option")]
    revoked_at: Option<UnixTime>,
    revocation_reason: Option<&'a str>,
    #[serde(with = "rfc3339::option")]
    archived_at: Option<UnixTime>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) const NOW: UnixTime = UnixTime::from_seconds(1_779_025_452);

    pub(crate) fn peer() -> PeerId {
        "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
    }

    pub(crate) fn grant_id() -> GrantId {
        "0192f0c1-7c1e-7a53-9d0e-000000000001".parse().unwrap()
    }

    pub(crate) fn request() -> GrantRequest {
        GrantRequest::new(peer(), "technician@example.com", "service", &["read", "write"])
    }

    pub(crate) fn issued(request: GrantRequest) -> Grant {
        NewGrant::check(request).unwrap().issue(grant_id(), NOW)
    }

    fn days(days: u64) -> Duration {
        Duration::from_secs(days * 86_400)
    }

    #[test]
    fn a_grant_ends_in_the_second_of_its_expiry() {
        let grant = issued(request());
        assert_eq!(grant.expires_at, NOW.plus(days(30)));
        let last = grant.expires_at.minus(Duration::from_secs(1));
        assert_eq!(grant.state(last), GrantState::Active);
        assert_eq!(grant.state(grant.expires_at), GrantState::Expired);
    }

    #[test]
    fn the_first_revocation_and_its_reason_stay() {
        let mut grant = issued(request());
        assert_eq!(grant.revoke(" \n", NOW), Err(RevokeError::ReasonMissing));
        let long = "x".repeat(REVOCATION_REASON_MAX_CHARS + 1);
        assert_eq!(grant.revoke(&long, NOW), Err(RevokeError::ReasonTooLong));
        assert_eq!(grant.state(NOW), GrantState::Active);

        grant.revoke(" contract ended ", NOW).unwrap();
        let later = NOW.plus(days(1));
        assert_eq!(
            grant.revoke("another", later),
            Err(RevokeError::AlreadyRevoked { at: NOW })
        );
        assert_eq!(grant.revocation.as_ref().unwrap().reason, "contract ended");
        assert_eq!(grant.state(later), GrantState::Revoked);
    }

    #[test]
    fn only_a_revoked_grant_is_archived_after_ninety_days() {
        let mut grant = issued(request());
        assert!(!grant.archive(NOW.plus(days(1_000))), "expired is not revoked");
        grant.revoke("over", NOW).unwrap();
        let due = NOW.plus(days(90));
        assert!(!grant.archive(due.minus(Duration::from_secs(1))));
        assert!(grant.archive(due));
        assert_eq!(
            (grant.state(due), grant.archived_at),
            (GrantState::Archived, Some(due))
        );
        assert!(!grant.archive(due.plus(days(1))), "once");
    }

    #[test]
    fn json_shows_contract_fields_and_an_explicit_any() {
        let mut input = request();
        input.source_cidrs = vec!["203.0.113.9".into(), "2001:db8::/32".into()];
        input.sdwan_network_ids = vec!["*".into()];
        let mut grant = issued(input);
        grant.revoke("over", NOW).unwrap();
        assert_eq!(
            serde_json::to_value(grant.view(NOW)).unwrap(),
            json!({
                "id": "0192f0c1-7c1e-7a53-9d0e-000000000001",
                "federation_peer_id": "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e",
                "state": "revoked",
                "remote_subject": "technician@example.com",
                "resource_kind": "service",
                "resource_id": null,
                "permission_scopes": ["read", "write"],
                "node_instance_ids": "any",
                "sdwan_network_ids": "any",
                "source_cidrs": ["203.0.113.9/32", "2001:db8::/32"],
                "issued_at": "2026-05-17T13:44:12Z",
                "expires_at": "2026-06-16T13:44:12Z",
                "revoked_at": "2026-05-17T13:44:12Z",
                "revocation_reason": "over",
                "archived_at": null,
            })
        );
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let mut input = request();
        input.source_cidrs = vec!["203.0.113.0/24".into()];
        let mut grant = issued(input);
        grant.revoke("over", NOW).unwrap();
        let bytes = postcard::to_allocvec(&grant).unwrap();
        assert_eq!(postcard::from_bytes::<Grant>(&bytes).unwrap(), grant);
    }
}
