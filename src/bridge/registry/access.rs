//! The grants that let the other side's subjects act here.

use super::peers::PEERS_MAX;
use super::record::{GRANTS, GrantRecord, PEERS};
use super::{Registry, RegistryError};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::grant::{BearerToken, Grant, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant};
use crate::process::entropy;
use crate::store::database::{StoreError, Writer};

/// Most grants that are kept, archived ones included: two for each of the most peers.
pub const GRANTS_MAX: usize = 2 * PEERS_MAX;

impl Registry {
    /// Records a grant; its bearer token is to be shown once.
    pub fn create_grant(&self, new: NewGrant, now: UnixTime) -> Result<(Grant, BearerToken), RegistryError> {
        let id = GrantId::new_v7(now, entropy::id_entropy());
        let grant = new.issue(id, now);
        self.db.write(|w| {
            let peer = w.get(&PEERS, &grant.federation_peer_id)?;
            if peer.is_none() {
                return Err(RegistryError::UnknownPeer {
                    asked: grant.federation_peer_id.to_string(),
                    near: Vec::new(),
                });
            }
            put_grant(w, &grant)
        })?;
        let token = BearerToken::mint(grant.id, &self.grant_key);
        Ok((grant, token))
    }

    /// All grants, oldest first.
    pub fn grants(&self) -> Result<Vec<Grant>, StoreError> {
        let grants = self.db.read(|r| r.list(&GRANTS))?;
        Ok(grants.into_iter().map(|(_, record)| record.grant).collect())
    }

    /// One grant.
    pub fn grant(&self, asked: &str) -> Result<Grant, RegistryError> {
        let unknown = || RegistryError::UnknownGrant(foreign_text(asked));
        let id: GrantId = asked.trim().parse().map_err(|_| unknown())?;
        let found = self.db.read(|r| r.get(&GRANTS, &id))?;
        found.map(|record| record.grant).ok_or_else(unknown)
    }

    /// Puts revoked grants whose time of keeping is over into the archive. How many there were.
    pub fn archive_grants(&self, now: UnixTime) -> Result<usize, StoreError> {
        let due: Vec<Grant> = self
            .grants()?
            .into_iter()
            .filter(|grant| grant.clone().archive(now))
            .collect();
        if due.is_empty() {
            return Ok(0);
        }
        self.db.write(|w| {
            for grant in &due {
                if let Some(mut record) = w.get(&GRANTS, &grant.id)?
                    && record.grant.archive(now)
                {
                    w.put(&GRANTS, &grant.id, &record)?;
                }
            }
            Ok(due.len())
        })
    }

    /// Ends a grant.
    pub fn revoke_grant(&self, asked: &str, reason: &str, now: UnixTime) -> Result<Grant, RegistryError> {
        let unknown = || RegistryError::UnknownGrant(foreign_text(asked));
        let id: GrantId = asked.trim().parse().map_err(|_| unknown())?;
        self.db.write(|w| {
            let mut record = w.get(&GRANTS, &id)?.ok_or_else(unknown)?;
            record.grant.revoke(reason, now)?;
            w.put(&GRANTS, &id, &record)?;
            Ok(record.grant)
        })
    }
}

fn put_grant(w: &mut Writer, grant: &Grant) -> Result<(), RegistryError> {
    if w.count(&GRANTS)? >= GRANTS_MAX {
        return Err(RegistryError::Full {
            what: "grants",
            max: GRANTS_MAX,
        });
    }
    let record = GrantRecord { grant: grant.clone() };
    w.put(&GRANTS, &grant.id, &record)?;
    Ok(())
}

/// The grant under which this side operates a managed child. A live one is left as it is, and one
/// that was revoked is not made again: the child has emancipated itself.
pub(super) fn managed_child_grant(w: &mut Writer, peer: PeerId, now: UnixTime) -> Result<(), StoreError> {
    let settled = w.list(&GRANTS)?.iter().any(|(_, record)| {
        let grant = &record.grant;
        grant.federation_peer_id == peer
            && grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND
            && match grant.state(now) {
                GrantState::Active | GrantState::Revoked | GrantState::Archived => true,
                GrantState::Expired => false,
            }
    });
    if !settled {
        let id = GrantId::new_v7(now, entropy::id_entropy());
        let grant = NewGrant::managed_child_operator(peer).issue(id, now);
        w.put(&GRANTS, &id, &GrantRecord { grant })?;
    }
    Ok(())
}
