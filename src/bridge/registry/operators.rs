//! Operator accounts: who may use this bridge, for what, at which peers and services, until when. Tokens
//! are shown by the call that makes them; what is kept is their digests.

use std::time::Duration;

use zeroize::Zeroizing;

use super::peers::check_name;
use super::record::{OPERATORS, OperatorRecord};
use super::{Ledger, RegistryError};
use crate::base::id::{OperatorId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::bridge::permission::{LOCAL_NAME, NameLimit, OperatorIdentity, PeerRef, Role};
use crate::bridge::registry::record::PeerRecord;
use crate::contract::token::{AcceptanceToken, TOKEN_ENTROPY_BYTES, TokenDigest};
use crate::process::entropy;
use crate::store::database::{StoreError, Writer};

/// Most operators. Each request compares its token with all of them; more people than this
/// belong behind a proxy that knows them.
pub const OPERATORS_MAX: usize = 100;

/// Longest life of an account that ends. What is to live longer has no end.
pub const LIFE_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// An operator with the token, to be shown once.
#[derive(Debug)]
pub struct MintedOperator {
    /// The row's id.
    pub id: OperatorId,
    /// The row.
    pub operator: OperatorRecord,
    /// In clear.
    pub token: Secret,
}

/// An account that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperator {
    /// What to call them.
    pub name: String,
    /// What for.
    pub role: Role,
    /// At which peers.
    pub peers: NameLimit,
    /// Which services.
    pub services: NameLimit,
    /// After how long the account ends, if it does.
    pub life: Option<Duration>,
}

impl NewOperator {
    /// Of this name, for everything.
    pub fn admin(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Admin,
            peers: NameLimit::Any,
            services: NameLimit::Any,
            life: None,
        }
    }
}

/// What is to be different at an account; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorChange {
    /// What for.
    pub role: Option<Role>,
    /// At which peers.
    pub peers: Option<NameLimit>,
    /// Which services.
    pub services: Option<NameLimit>,
    /// From now on, after how long the account ends; the inner `None`: it does not.
    pub life: Option<Option<Duration>>,
}

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recognised {
    /// This account's.
    Known(OperatorIdentity),
    /// That of an account that has ended.
    Expired {
        /// Whose.
        name: String,
        /// When.
        at: UnixTime,
    },
    /// Nobody's.
    Nobody,
}

impl OperatorRecord {
    /// What the account may do.
    pub fn identity(&self, id: OperatorId) -> OperatorIdentity {
        OperatorIdentity {
            id: Some(id),
            name: self.name.clone(),
            role: self.role,
            peers: self.peers.clone(),
            services: self.services.clone(),
        }
    }

    /// Whether the account has ended.
    pub fn has_ended(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether the account can mend every other one, for good.
    fn is_mainstay(&self) -> bool {
        self.role == Role::Admin
            && self.peers == NameLimit::Any
            && self.services == NameLimit::Any
            && self.expires_at.is_none()
    }
}

impl<'a> From<&'a PeerRecord> for PeerRef<'a> {
    fn from(peer: &'a PeerRecord) -> Self {
        Self::Known {
            id: peer.id,
            name: peer.name.as_deref(),
        }
    }
}

impl Ledger {
    /// Adds an operator with a new bearer token.
    pub fn add_operator(&self, new: &NewOperator, now: UnixTime) -> Result<MintedOperator, RegistryError> {
        check_name(&new.name)?;
        if new.name == LOCAL_NAME {
            return Err(RegistryError::OperatorNameTaken(new.name.clone()));
        }
        let token = new_token();
        let id = OperatorId::new_v7(now, entropy::id_entropy());
        let operator = OperatorRecord {
            name: new.name.clone(),
            role: new.role,
            token: token.digest(),
            created_at: now,
            peers: new.peers.clone(),
            services: new.services.clone(),
            expires_at: end_of(new.life, now)?,
            token_made_at: now,
        };
        self.db.write(|w| {
            let operators = w.list(&OPERATORS)?;
            if operators.len() >= OPERATORS_MAX {
                return Err(RegistryError::Full {
                    what: "operators",
                    max: OPERATORS_MAX,
                });
            }
            if operators.iter().any(|(_, other)| other.name == new.name) {
                return Err(RegistryError::OperatorNameTaken(new.name.clone()));
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

    /// One operator, by name or id.
    pub fn operator(&self, asked: &str) -> Result<(OperatorId, OperatorRecord), RegistryError> {
        find(self.operators()?, asked)
    }

    /// Whose token this is. Every row is compared, each in constant time.
    pub fn recognise(&self, token: &[u8], now: UnixTime) -> Result<Recognised, StoreError> {
        let presented = TokenDigest::of(token);
        let mut found = Recognised::Nobody;
        for (id, operator) in self.operators()? {
            if operator.token == presented {
                found = match operator.expires_at {
                    Some(at) if operator.has_ended(now) => Recognised::Expired {
                        name: operator.name,
                        at,
                    },
                    _ => Recognised::Known(operator.identity(id)),
                };
            }
        }
        Ok(found)
    }

    /// The operator whose token this is; nobody where there is none or the account has ended.
    pub fn operator_by_token(
        &self,
        token: &[u8],
        now: UnixTime,
    ) -> Result<Option<OperatorIdentity>, StoreError> {
        Ok(match self.recognise(token, now)? {
            Recognised::Known(identity) => Some(identity),
            Recognised::Expired { .. } | Recognised::Nobody => None,
        })
    }

    /// What an account may do by now, for what was begun earlier; nothing where it is gone or has ended.
    pub fn operator_identity(
        &self,
        id: OperatorId,
        now: UnixTime,
    ) -> Result<Option<OperatorIdentity>, StoreError> {
        let operator = self.db.read(|r| r.get(&OPERATORS, &id))?;
        Ok(operator
            .filter(|operator| !operator.has_ended(now))
            .map(|operator| operator.identity(id)))
    }

    /// Changes what an account may do, by name or id. Its token stays.
    pub fn change_operator(
        &self,
        asked: &str,
        change: &OperatorChange,
        now: UnixTime,
    ) -> Result<(OperatorId, OperatorRecord), RegistryError> {
        let life = match change.life {
            Some(life) => Some(end_of(life, now)?),
            None => None,
        };
        self.db.write(|w| {
            let (id, mut operator) = find(w.list(&OPERATORS)?, asked)?;
            let was_mainstay = operator.is_mainstay();
            operator.role = change.role.unwrap_or(operator.role);
            if let Some(peers) = &change.peers {
                operator.peers = peers.clone();
            }
            if let Some(services) = &change.services {
                operator.services = services.clone();
            }
            operator.expires_at = life.unwrap_or(operator.expires_at);
            w.put(&OPERATORS, &id, &operator)?;
            if was_mainstay {
                keep_a_mainstay(w, &operator.name)?;
            }
            Ok((id, operator))
        })
    }

    /// Gives an account a new token, by name or id; the earlier one is not known any more.
    pub fn rotate_operator(&self, asked: &str, now: UnixTime) -> Result<MintedOperator, RegistryError> {
        let token = new_token();
        let (id, operator) = self.db.write(|w| {
            let (id, mut operator) = find(w.list(&OPERATORS)?, asked)?;
            operator.token = token.digest();
            operator.token_made_at = now;
            w.put(&OPERATORS, &id, &operator)?;
            Ok::<_, RegistryError>((id, operator))
        })?;
        Ok(MintedOperator {
            id,
            operator,
            token: token.expose().clone(),
        })
    }

    /// Removes an account, by name or id.
    pub fn remove_operator(&self, asked: &str) -> Result<(OperatorId, OperatorRecord), RegistryError> {
        self.db.write(|w| {
            let (id, operator) = find(w.list(&OPERATORS)?, asked)?;
            w.remove(&OPERATORS, &id)?;
            if operator.is_mainstay() {
                keep_a_mainstay(w, &operator.name)?;
            }
            Ok((id, operator))
        })
    }
}

fn new_token() -> AcceptanceToken {
    let entropy: Zeroizing<[u8; TOKEN_ENTROPY_BYTES]> = entropy::secret_bytes();
    AcceptanceToken::mint(&entropy)
}

fn end_of(life: Option<Duration>, now: UnixTime) -> Result<Option<UnixTime>, RegistryError> {
    match life {
        None => Ok(None),
        Some(life) if life >= Duration::from_secs(60) && life <= LIFE_MAX => Ok(Some(now.plus(life))),
        Some(_) => Err(RegistryError::InvalidField(
            "an account ends after a minute at the earliest and ten years at the latest, or never".to_owned(),
        )),
    }
}

fn find(
    operators: Vec<(OperatorId, OperatorRecord)>,
    asked: &str,
) -> Result<(OperatorId, OperatorRecord), RegistryError> {
    let id = asked.trim().parse::<OperatorId>().ok();
    operators
        .into_iter()
        .find(|(other, operator)| Some(*other) == id || operator.name == asked.trim())
        .ok_or_else(|| RegistryError::UnknownOperator(foreign_text(asked)))
}

/// After a mainstay was changed: somebody must be able to undo it from afar.
fn keep_a_mainstay(w: &Writer<'_>, changed: &str) -> Result<(), RegistryError> {
    let kept = w
        .list(&OPERATORS)?
        .iter()
        .any(|(_, operator)| operator.is_mainstay());
    if kept {
        Ok(())
    } else {
        Err(RegistryError::LastOperator(changed.to_owned()))
    }
}

/// Whether peers of these ids are within an operator's limit, for lists of what belongs to peers.
pub fn visible<'a>(
    identity: &OperatorIdentity,
    peers: impl IntoIterator<Item = &'a PeerRecord>,
) -> std::collections::BTreeSet<PeerId> {
    peers
        .into_iter()
        .filter(|peer| identity.sees((*peer).into()))
        .map(|peer| peer.id)
        .collect()
}
