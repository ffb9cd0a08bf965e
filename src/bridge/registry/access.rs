//! Who may do what: operators of this bridge, and the grants that let the other side's subjects
//! act here.

use zeroize::Zeroizing;

use super::peers::{PEERS_MAX, check_name};
use super::record::{GRANTS, GrantRecord, OPERATORS, OperatorRecord, OperatorRole, PEERS};
use super::{Registry, RegistryError};
use crate::base::id::{GrantId, OperatorId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::token::{AcceptanceToken, TOKEN_ENTROPY_BYTES, TokenDigest};
use crate::grant::{BearerToken, Grant, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant};
use crate::process::entropy;
use crate::store::database::{StoreError, Writer};

/// Most operators. Each request compares its token with all of them; more people than this
/// belong behind a proxy that knows them.
pub const OPERATORS_MAX: usize = 100;

/// Most grants that are kept, archived ones included: two for each of the most peers.
pub const GRANTS_MAX: usize = 2 * PEERS_MAX;

/// An operator with the token, to be shown once.
#[derive(Debug)]
pub struct MintedOperator {
    /// The new row's id.
    pub id: OperatorId,
    /// The new row.
    pub operator: OperatorRecord,
    /// In clear.
    pub token: Secret,
}

impl Registry {
    /// Adds an operator with a new bearer token.
    pub fn add_operator(&self, name: &str, now: UnixTime) -> Result<MintedOperator, RegistryError> {
        check_name(name)?;
        let entropy: Zeroizing<[u8; TOKEN_ENTROPY_BYTES]> = entropy::secret_bytes();
        let token = AcceptanceToken::mint(&entropy);
        let id = OperatorId::new_v7(now, entropy::id_entropy());
        let operator = OperatorRecord {
            name: name.to_owned(),
            role: OperatorRole::Admin,
            token: token.digest(),
            created_at: now,
        };
        self.db.write(|w| {
            let operators = w.list(&OPERATORS)?;
            if operators.len() >= OPERATORS_MAX {
                return Err(RegistryError::Full {
                    what: "operators",
                    max: OPERATORS_MAX,
                });
            }
            if operators.iter().any(|(_, other)| other.name == name) {
                return Err(RegistryError::OperatorNameTaken(name.to_owned()));
            }
            w.put(&OPERATORS, &id, &operator)?;
            Ok(())
        })?;
        Ok(MintedOperator {
            id,
            operator,
            token: token.expose().clone(),
        })
    }

    /// All operators, oldest first.
    pub fn operators(&self) -> Result<Vec<(OperatorId, OperatorRecord)>, StoreError> {
        self.db.read(|r| r.list(&OPERATORS))
    }

    /// Whose token this is. Every row is compared, each in constant time.
    pub fn operator_by_token(&self, token: &[u8]) -> Result<Option<OperatorRecord>, StoreError> {
        let presented = TokenDigest::of(token);
        let mut found = None;
        for (_, operator) in self.operators()? {
            if operator.token == presented {
                found = Some(operator);
            }
        }
        Ok(found)
    }

    /// Takes an operator's token away, by name or id.
    pub fn revoke_operator(&self, asked: &str) -> Result<OperatorRecord, RegistryError> {
        self.db.write(|w| {
            let operators = w.list(&OPERATORS)?;
            let id = asked.trim().parse::<OperatorId>().ok();
            let (id, operator) = operators
                .iter()
                .find(|(other, operator)| Some(*other) == id || operator.name == asked.trim())
                .ok_or_else(|| RegistryError::UnknownOperator(foreign_text(asked)))?;
            if operators.len() == 1 {
                return Err(RegistryError::LastOperator(operator.name.clone()));
            }
            w.remove(&OPERATORS, id)?;
            Ok(operator.clone())
        })
    }

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
