//! Grants that peers have given to this side: their tokens are shown to the peer when somebody of
//! this side reaches for it. Which grant lets what through is the peer's to say; here the most
//! fitting one is picked.

use super::record::{HELD_GRANTS, HeldGrant, HeldGrantsRecord, PEERS};
use super::{Ledger, RegistryError};
use crate::base::id::{GrantId, PeerId};
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::peer::SpawnMode;
use crate::grant::{MANAGED_CHILD_OPERATOR_KIND, Revocation, SERVICE_KIND, SERVICE_SCOPE};
use crate::store::database::StoreError;

/// Most grants that are held of one peer: a few for each technician of a site. What has ended makes
/// room first.
pub const HELD_GRANTS_MAX: usize = 256;

impl HeldGrant {
    fn is_live(&self, now: UnixTime) -> bool {
        self.revocation.is_none() && now < self.expires_at
    }

    fn operates(&self) -> bool {
        self.resource_kind == MANAGED_CHILD_OPERATOR_KIND
    }

    fn opens(&self, service: &str, operator: &str) -> bool {
        let named = self.resource_id.as_deref().is_none_or(|id| id == service);
        let kind = self.operates() || (self.resource_kind == SERVICE_KIND && self.remote_subject == operator);
        kind && named && self.permission_scopes.contains(&SERVICE_SCOPE)
    }
}

impl Ledger {
    /// The grant to present to a peer when an operator reaches for one of its services: one to the
    /// service for that very operator, else the one under which this side operates the peer; of
    /// several the one that lasts longest.
    pub fn held_grant_for(
        &self,
        peer: PeerId,
        service: &str,
        operator: &str,
        now: UnixTime,
    ) -> Result<Option<HeldGrant>, StoreError> {
        let mut held = self.held_grants(peer)?;
        held.retain(|grant| grant.is_live(now) && grant.opens(service, operator));
        Ok(held
            .into_iter()
            .max_by_key(|grant| (!grant.operates(), grant.expires_at)))
    }

    /// All grants that a peer has given, oldest first.
    pub fn held_grants(&self, peer: PeerId) -> Result<Vec<HeldGrant>, StoreError> {
        let record = self.db.read(|r| r.get(&HELD_GRANTS, &peer))?;
        Ok(record.unwrap_or_default().grants)
    }

    /// Keeps a grant that a peer hands over, in place of an earlier word about the same one. A
    /// revocation that was told before is not taken back by a hand-over that comes late.
    pub fn hold_grant(&self, peer: PeerId, grant: HeldGrant, now: UnixTime) -> Result<(), RegistryError> {
        self.db.write(|w| {
            let mut held: HeldGrantsRecord = w.get(&HELD_GRANTS, &peer)?.unwrap_or_default();
            match held.grants.iter_mut().find(|other| other.id == grant.id) {
                Some(known) if known.revocation.is_some() => return Ok(()),
                Some(known) => *known = grant,
                None => {
                    if held.grants.len() >= HELD_GRANTS_MAX {
                        let ended = held.grants.iter().position(|grant| !grant.is_live(now));
                        let ended = ended.ok_or(RegistryError::Full {
                            what: "grants of this peer",
                            max: HELD_GRANTS_MAX,
                        })?;
                        held.grants.remove(ended);
                    }
                    held.grants.push(grant);
                }
            }
            w.put(&HELD_GRANTS, &peer, &held)?;
            Ok(())
        })
    }

    /// Forgets what a peer has given: it has left, and its keys with it.
    pub fn forget_held_grants(&self, peer: PeerId) -> Result<(), StoreError> {
        self.db.write(|w| w.remove(&HELD_GRANTS, &peer).map(drop))
    }

    /// Notes that a peer has ended a grant, and forgets its token. When it was the last under which
    /// this side operated the peer, the peering is from then on one between equals (contract
    /// section 7). `false` when the grant is not known.
    pub fn held_grant_revoked(
        &self,
        peer: PeerId,
        grant: GrantId,
        reason: &str,
        now: UnixTime,
    ) -> Result<bool, RegistryError> {
        self.db.write(|w| {
            let mut held: HeldGrantsRecord = w.get(&HELD_GRANTS, &peer)?.unwrap_or_default();
            let Some(known) = held.grants.iter_mut().find(|held| held.id == grant) else {
                return Ok(false);
            };
            if known.revocation.is_some() {
                return Ok(true);
            }
            known.revocation = Some(Revocation {
                at: now,
                reason: reason.to_owned(),
            });
            known.token = Secret::new(Vec::new());
            let emancipated = known.operates()
                && !held
                    .grants
                    .iter()
                    .any(|other| other.operates() && other.is_live(now));
            w.put(&HELD_GRANTS, &peer, &held)?;
            if emancipated
                && let Some(mut record) = w.get(&PEERS, &peer)?
                && record.mode == SpawnMode::ManagedChild
            {
                record.mode = SpawnMode::AutonomousPeer;
                w.put(&PEERS, &peer, &record)?;
            }
            Ok(true)
        })
    }
}
