//! Decides on what arrives and tells what was let in when its grant is over. All in memory: a
//! stream waits for no disk. Knows nothing of how grants are stored.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::record::KeptGrant;
use crate::base::id::{GrantId, PeerId};
use crate::base::ordered_map::OrderedMap;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::grant::{
    AccessRequest, BearerToken, Denial, Grant, GrantKey, GrantState, LegacyTokens, Permit, ServiceAccess,
    authorize, authorize_service,
};
use crate::process::clock::Clock;
use crate::wire::StreamEnd;

/// How often the trusted time is looked at within a second of a grant's end, and how often it is
/// checked for a jump while anything is admitted: an end must be felt within a second.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What a stream to a service asks for, and with what.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The peer whose certificate the tunnel was opened with.
    pub peer: PeerId,
    /// The service's published name.
    pub service: &'a str,
    /// The grant's bearer token, in either form.
    pub token: Option<&'a Secret>,
    /// Who acts, as the peer has authenticated them.
    pub subject: &'a str,
    /// The address of their program, as the peer saw it.
    pub source: Option<IpAddr>,
}

/// Decides. Cheap to clone; all clones see the same grants.
#[derive(Clone)]
pub struct Gate {
    pub(super) shared: Arc<Shared>,
}

/// What the gate and the book share.
pub(super) struct Shared {
    /// `None` once this satellite has left: no token is good any more.
    key: RwLock<Option<GrantKey>>,
    accept_unsigned: AtomicBool,
    grants: RwLock<OrderedMap<GrantId, KeptGrant>>,
    /// Counts changes, so that whoever waits looks again.
    changes: watch::Sender<u64>,
    /// How many admissions there are.
    admitted: watch::Sender<usize>,
    pub(super) clock: Clock,
}

/// A stream that was let in. Lasts as long as it is held.
pub struct Admission {
    permit: Permit,
    changes: watch::Receiver<u64>,
    shared: Arc<Shared>,
}

/// Why an admission is over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AccessEnded {
    /// The box's owner has ended it.
    #[error("grant {grant} was revoked: {reason}")]
    Revoked {
        /// The grant.
        grant: GrantId,
        /// In the owner's words.
        reason: String,
    },
    /// Its time is over.
    #[error("grant {grant} has expired")]
    Expired {
        /// The grant.
        grant: GrantId,
    },
    /// The satellite has left its parent.
    #[error("grant {grant} is not known any more: the satellite has left its parent")]
    Gone {
        /// The grant.
        grant: GrantId,
    },
}

impl AccessEnded {
    /// What the asking side is told.
    pub const fn stream_end(&self) -> StreamEnd {
        match self {
            Self::Revoked { .. } => StreamEnd::GrantRevoked,
            Self::Expired { .. } => StreamEnd::GrantExpired,
            Self::Gone { .. } => StreamEnd::GrantGone,
        }
    }
}

impl Gate {
    /// Decides on a stream to a service when it opens.
    pub fn admit(&self, asked: &Asked<'_>, now: UnixTime) -> Result<Admission, Denial> {
        // From before the look-up: a revocation in between is not missed.
        let changes = self.shared.changes.subscribe();
        let token = asked.token.ok_or(Denial::TokenMissing)?;
        let token = token.expose_text().ok_or(Denial::TokenMalformed)?;
        let token = BearerToken::parse(token).map_err(|_| Denial::TokenMalformed)?;
        let access = ServiceAccess {
            peer: asked.peer,
            service: asked.service,
            subject: Some(asked.subject),
            instance: None,
            network: None,
            source: asked.source,
        };
        let permit = self.decide(&token, |grant| authorize_service(grant, &access, now))?;
        self.shared.admitted.send_modify(|admitted| *admitted += 1);
        Ok(Admission {
            permit,
            changes,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Decides on one request of the federation API; the value is that of its `Authorization`.
    pub fn permit(
        &self,
        authorization: Option<&str>,
        request: &AccessRequest<'_>,
        now: UnixTime,
    ) -> Result<Permit, Denial> {
        let token = BearerToken::from_authorization(authorization)?;
        self.decide(&token, |grant| authorize(grant, request, now))
    }

    /// Decides on one request of the federation API that is about a service.
    pub fn permit_service(
        &self,
        authorization: Option<&str>,
        access: &ServiceAccess<'_>,
        now: UnixTime,
    ) -> Result<Permit, Denial> {
        let token = BearerToken::from_authorization(authorization)?;
        self.decide(&token, |grant| authorize_service(grant, access, now))
    }

    /// How many streams are let in at this moment.
    pub fn admitted(&self) -> usize {
        *self.shared.admitted.borrow()
    }

    /// Wakes those who were let in when the trusted time jumps, so that a grant that has ended by
    /// the jump cuts at once. Runs for ever; costs nothing while nobody is let in.
    pub async fn watch_clock(self) {
        let mut admitted = self.shared.admitted.subscribe();
        let clock = &self.shared.clock;
        loop {
            // The sender lives as long as this gate.
            if admitted.wait_for(|admitted| *admitted > 0).await.is_err() {
                return;
            }
            let (before, at) = (clock.trusted().now, clock.now());
            clock.sleep_until(at.plus(LOOK_AGAIN)).await;
            let expected = before.plus(clock.now().since(at));
            // Whole seconds: one of them is no jump.
            if clock.trusted().now.since(expected) > Duration::from_secs(1) {
                self.shared.wake();
            }
        }
    }

    fn decide(
        &self,
        token: &BearerToken,
        authorize: impl FnOnce(&Grant) -> Result<Permit, Denial>,
    ) -> Result<Permit, Denial> {
        let id = self.shared.verify(token)?;
        let grants = self.shared.grants.read().unwrap_or_else(PoisonError::into_inner);
        let kept = grants.get(&id).ok_or(Denial::UnknownGrant { grant: id })?;
        authorize(&kept.grant)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("admitted", &self.admitted())
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// By what it was let in.
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Resolves when the grant is revoked or has expired, within a second. Cancel safe, and may be
    /// called again.
    pub async fn ended(&mut self) -> AccessEnded {
        let clock = self.shared.clock.clone();
        loop {
            self.changes.mark_unchanged();
            let now = clock.trusted().now;
            if let Some(ended) = self.shared.end_of(self.permit.grant(), now) {
                return ended;
            }
            let left = self.permit.valid_until().since(now);
            let second = Duration::from_secs(1);
            // The trusted time is in whole seconds; the last one is looked at more closely.
            let wait = left.checked_sub(second).filter(|wait| !wait.is_zero());
            let look = clock.now().plus(wait.unwrap_or(LOOK_AGAIN));
            tokio::select! {
                // The sender lives in `shared`; should it be gone, the timer is left.
                Ok(()) = self.changes.changed() => {}
                () = clock.sleep_until(look) => {}
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.admitted.send_modify(|admitted| *admitted -= 1);
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admission").field(&self.permit).finish()
    }
}

impl Shared {
    pub(super) fn new(
        key: GrantKey,
        accept_unsigned: bool,
        grants: OrderedMap<GrantId, KeptGrant>,
        clock: Clock,
    ) -> Self {
        Self {
            key: RwLock::new(Some(key)),
            accept_unsigned: AtomicBool::new(accept_unsigned),
            grants: RwLock::new(grants),
            changes: watch::channel(0).0,
            admitted: watch::channel(0).0,
            clock,
        }
    }

    /// Changes the grants in force and wakes all who must look again.
    pub(super) fn change(&self, change: impl FnOnce(&mut OrderedMap<GrantId, KeptGrant>)) {
        change(&mut self.grants.write().unwrap_or_else(PoisonError::into_inner));
        self.wake();
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&OrderedMap<GrantId, KeptGrant>) -> T) -> T {
        look(&self.grants.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The token of a grant; none once the key is destroyed.
    pub(super) fn token_of(&self, grant: GrantId) -> Option<BearerToken> {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        key.as_ref().map(|key| BearerToken::mint(grant, key))
    }

    pub(super) fn set_accept_unsigned(&self, accept: bool) {
        self.accept_unsigned.store(accept, Ordering::Relaxed);
    }

    /// What was let in is cut, and nothing is let in any more.
    pub(super) fn forget_key(&self) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.wake();
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn wake(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn verify(&self, token: &BearerToken) -> Result<GrantId, Denial> {
        let legacy = if self.accept_unsigned.load(Ordering::Relaxed) {
            LegacyTokens::Accept
        } else {
            LegacyTokens::Refuse
        };
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        token.verify(key.as_ref().ok_or(Denial::TokenMalformed)?, legacy)
    }

    fn end_of(&self, grant: GrantId, now: UnixTime) -> Option<AccessEnded> {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        if key.is_none() {
            return Some(AccessEnded::Gone { grant });
        }
        drop(key);
        self.look(|grants| {
            let Some(kept) = grants.get(&grant) else {
                return Some(AccessEnded::Gone { grant });
            };
            match (kept.grant.state(now), &kept.grant.revocation) {
                (GrantState::Active, _) => None,
                (_, Some(revocation)) => Some(AccessEnded::Revoked {
                    grant,
                    reason: revocation.reason.clone(),
                }),
                (GrantState::Expired | GrantState::Revoked | GrantState::Archived, None) => {
                    Some(AccessEnded::Expired { grant })
                }
            }
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
