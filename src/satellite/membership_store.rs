//! Where a satellite's membership is kept: the store file, and a second, checksummed copy of what
//! must outlive a broken file. Opens whichever is whole and says so. The facts that change every
//! minute are written rarely: the card of a small box must not wear out.

mod error;
mod examination;
mod rows;
mod second_copy;
mod version_1;

use std::path::{Path, PathBuf};

use super::grants;
use super::status::StoreReport;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::machine::join::{Farewell, JoinState};
use crate::machine::mapping_lease::MappingRecord;
use crate::machine::own_authority::Succession;
use crate::process::blocking;
use crate::store::audit_log::add_audit_log;
use crate::store::copy;
use crate::store::database::{Database, OpenError, Schema, StoreError};
use crate::store::record::Only;
use crate::store::state_key::StateKey;

pub use error::{OpenStateError, SaveStateError};
pub use examination::{CopyStanding, Examination};
use rows::{FACTS, HANDED_OVER, MEMBERSHIP, SUCCESSION, StoredMappings, StoredState, StoredSuccession};
pub use rows::{Facts, HandedOver, MappingFamily};
use second_copy::{Copied, read_copy};

/// The store file in the state directory.
pub const STORE_FILE: &str = "satellite.redb";
/// The second copy in the state directory.
pub const COPY_FILE: &str = "membership.copy";
/// Schema of the store file.
pub static SCHEMA: Schema = Schema {
    name: "powernode-satellite",
    version: 3,
    migrations: &[add_audit_log, grants::add_grants],
    sealed: &[MEMBERSHIP.name(), grants::GRANT_KEY.name(), SUCCESSION.name()],
};

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// `None` when this box was never invited.
    pub state: Option<JoinState>,
    /// The facts, or none.
    pub facts: Facts,
    /// The grants, oldest first.
    pub grants: Vec<grants::KeptGrant>,
    /// Whether the store's secrets are sealed with a state key.
    pub sealed: bool,
    /// What the cluster's hook has taken.
    pub handed_over: Option<HandedOver>,
    /// A change of the box's own authority that is under way.
    pub succession: Option<Succession>,
    /// Set when the store was damaged and the second copy was used: what happened, in words.
    pub recovered: Option<String>,
}

impl Loaded {
    /// The latest time that has certainly come: seen from the parent, told by its invitation, or
    /// signed by it.
    pub fn latest_known_time(&self) -> Option<UnixTime> {
        let state = self.state.as_ref();
        let minted = state.and_then(JoinState::invitation).and_then(|i| i.minted_at);
        let signed = state
            .and_then(JoinState::membership)
            .map(|m| m.identity.not_before);
        self.facts.seen_from_parent.max(minted).max(signed)
    }

    const fn nothing(sealed: bool) -> Self {
        Self {
            state: None,
            facts: Facts {
                last_acknowledged_at: None,
                seen_from_parent: None,
                our_endpoints: Vec::new(),
                schema_compatibility: None,
                good_addresses: Vec::new(),
            },
            grants: Vec::new(),
            sealed,
            handed_over: None,
            succession: None,
            recovered: None,
        }
    }
}

/// The open state of one satellite. One process at a time.
#[derive(Debug, Clone)]
pub struct MembershipStore {
    database: Database,
    directory: PathBuf,
    key: Option<StateKey>,
}

impl MembershipStore {
    /// Opens or creates the state, under a state key where there is one. When the store is damaged
    /// or gone and the second copy is whole, a damaged store is set aside and a new one is written
    /// from the copy. Blocking.
    pub fn open(directory: &Path, key: Option<&StateKey>) -> Result<(Self, Loaded), OpenStateError> {
        let path = directory.join(STORE_FILE);
        let gone = !path.exists();
        match Database::open_under(key, &path, &SCHEMA) {
            Ok(database) => {
                let mut loaded = read(&database, directory)?;
                let mut store = Self::of(database, directory, key);
                if let Some(JoinState::Left(farewell)) = &mut loaded.state
                    && !farewell.erased
                {
                    store = store.erase(farewell)?;
                }
                if loaded.state.is_some() {
                    store.mend_copy(loaded.state.as_ref());
                    return Ok((store, loaded));
                }
                // Also after a power cut between the making of a new store and its filling.
                let what = if gone {
                    "the store was gone"
                } else {
                    "the store was empty"
                };
                store.recover(loaded, what)
            }
            Err(source) if source.is_damaged() => {
                let open_failed = |source| OpenStateError::Open {
                    directory: directory.to_owned(),
                    source,
                };
                let Copied::State(_) = read_copy(directory, key)? else {
                    return Err(OpenStateError::Lost {
                        directory: directory.to_owned(),
                        source,
                    });
                };
                let what = error_chain(&source);
                let aside = Database::set_aside(&path).map_err(open_failed)?;
                tracing::error!(reason = %what, aside = %aside.display(), "the store is damaged; using the second copy");
                let database = Database::open_under(key, &path, &SCHEMA).map_err(open_failed)?;
                let what = format!("the store was damaged and is kept as {}", aside.display());
                Self::of(database, directory, key).recover(Loaded::nothing(key.is_some()), &what)
            }
            Err(source) => Err(OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }),
        }
    }

    fn of(database: Database, directory: &Path, key: Option<&StateKey>) -> Self {
        Self {
            database,
            directory: directory.to_owned(),
            key: key.cloned(),
        }
    }

    /// Reads the state without writing, for commands while no daemon runs. Blocking.
    pub fn peek(directory: &Path, key: Option<&StateKey>) -> Result<(Loaded, u64), OpenStateError> {
        let (mut loaded, size, what) =
            match Database::open_read_only_under(key, &directory.join(STORE_FILE), &SCHEMA) {
                Ok(database) => {
                    let loaded = read(&database, directory)?;
                    (loaded, database.size_bytes(), "the store is empty")
                }
                Err(OpenError::Missing { .. }) => (Loaded::nothing(false), 0, "the store is gone"),
                Err(source) if source.is_damaged() => {
                    let Copied::State(_) = read_copy(directory, key)? else {
                        return Err(OpenStateError::Lost {
                            directory: directory.to_owned(),
                            source,
                        });
                    };
                    (Loaded::nothing(false), 0, "the store is damaged")
                }
                Err(source) => {
                    return Err(OpenStateError::Open {
                        directory: directory.to_owned(),
                        source,
                    });
                }
            };
        if loaded.state.is_none()
            && let Copied::State(state) = read_copy(directory, key)?
        {
            loaded.state = Some(*state);
            loaded.recovered = Some(format!("{what}; this is from the second copy"));
        }
        Ok((loaded, size))
    }

    /// Takes the seals off the store and its second copy. `false` when the store had none. Blocking.
    pub fn unseal(directory: &Path, key: &StateKey) -> Result<bool, OpenStateError> {
        let unsealed = Database::unseal(key, &directory.join(STORE_FILE), &SCHEMA).map_err(|source| {
            OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }
        })?;
        // Writes the copy anew, which is not what the store has.
        Self::open(directory, None)?;
        Ok(unsealed)
    }

    /// Makes a state durable: first the store, then the second copy.
    pub async fn save_state(&self, state: &JoinState) -> Result<(), SaveStateError> {
        let (store, state) = (self.clone(), state.clone());
        blocking::run(move || store.save_state_blocking(&state)).await
    }

    /// The same, for where blocking is allowed.
    pub fn save_state_blocking(&self, state: &JoinState) -> Result<(), SaveStateError> {
        let stored = StoredState(state.clone());
        self.database
            .write(|writer| writer.put(&MEMBERSHIP, &Only, &stored))
            .map_err(SaveStateError::Store)?;
        self.write_copy(&stored, copy::write)
    }

    /// Ends the membership: the record of it takes the place of the keys, in the store and in the
    /// second copy, and the key of the grants goes. What was in the store's file before is still in
    /// its free pages until it is opened the next time.
    pub async fn save_farewell(&self, farewell: Farewell) -> Result<(), SaveStateError> {
        let store = self.clone();
        blocking::run(move || store.save_farewell_blocking(farewell)).await
    }

    /// The same, for where blocking is allowed.
    pub fn save_farewell_blocking(&self, farewell: Farewell) -> Result<(), SaveStateError> {
        let stored = StoredState(JoinState::Left(farewell));
        self.database
            .write(|writer| {
                writer.remove(&grants::GRANT_KEY, &Only)?;
                writer.remove(&HANDED_OVER, &Only)?;
                writer.remove(&SUCCESSION, &Only)?;
                writer.put(&MEMBERSHIP, &Only, &stored)
            })
            .map_err(SaveStateError::Store)?;
        self.write_copy(&stored, copy::write_and_erase)
    }

    /// Frees the files of a satellite that has left of what was removed from them.
    fn erase(self, farewell: &mut Farewell) -> Result<Self, OpenStateError> {
        let Self {
            database,
            directory,
            key,
        } = self;
        let path = database.path().to_owned();
        drop(database);
        let open_failed = |source| OpenStateError::Open {
            directory: directory.clone(),
            source,
        };
        Database::renew(key.as_ref(), &path, &SCHEMA).map_err(open_failed)?;
        let database = Database::open_under(key.as_ref(), &path, &SCHEMA).map_err(open_failed)?;
        farewell.erased = true;
        let stored = StoredState(JoinState::Left(farewell.clone()));
        database
            .write(|writer| writer.put(&MEMBERSHIP, &Only, &stored))
            .map_err(|source| OpenStateError::Read {
                directory: directory.clone(),
                source,
            })?;
        tracing::info!("the keys of the peering that was left are erased");
        Ok(Self {
            database,
            directory,
            key,
        })
    }

    /// Makes the facts durable.
    pub async fn save_facts(&self, facts: &Facts) -> Result<(), StoreError> {
        let facts = facts.clone();
        self.database
            .write_async(move |writer| writer.put(&FACTS, &Only, &facts))
            .await
    }

    /// Makes the mark of a handover durable.
    pub async fn save_handed_over(&self, handed: &HandedOver) -> Result<(), StoreError> {
        let handed = handed.clone();
        self.database
            .write_async(move |writer| writer.put(&HANDED_OVER, &Only, &handed))
            .await
    }

    /// Makes a change of the box's own authority durable, or its end.
    pub async fn save_succession(&self, succession: Option<&Succession>) -> Result<(), StoreError> {
        let (store, succession) = (self.clone(), succession.cloned());
        blocking::run(move || store.save_succession_blocking(succession.as_ref())).await
    }

    /// The same, for where blocking is allowed.
    pub fn save_succession_blocking(&self, succession: Option<&Succession>) -> Result<(), StoreError> {
        self.database.write(|writer| match succession {
            Some(succession) => writer.put(&SUCCESSION, &Only, &StoredSuccession(succession.clone())),
            None => writer.remove(&SUCCESSION, &Only).map(|_| ()),
        })
    }

    /// The store itself, which the audit log shares.
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Opens the store for reading alone, while no daemon has it open. Blocking.
    pub fn open_read_only(directory: &Path, key: Option<&StateKey>) -> Result<Database, OpenStateError> {
        Database::open_read_only_under(key, &directory.join(STORE_FILE), &SCHEMA).map_err(|source| {
            OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }
        })
    }

    /// What may exist on routers.
    pub async fn mappings(&self, family: MappingFamily) -> Result<Vec<MappingRecord>, StoreError> {
        let stored = self
            .database
            .read_async(move |reader| reader.get(family.table(), &Only))
            .await?;
        Ok(stored.map_or_else(Vec::new, |stored: StoredMappings| stored.0))
    }

    /// Makes durable what may exist on routers.
    pub async fn save_mappings(
        &self,
        family: MappingFamily,
        records: Vec<MappingRecord>,
    ) -> Result<(), StoreError> {
        let stored = StoredMappings(records);
        self.database
            .write_async(move |writer| writer.put(family.table(), &Only, &stored))
            .await
    }

    /// Bytes written to the store's file since it was opened.
    pub fn written_bytes(&self) -> u64 {
        self.database.written_bytes()
    }

    /// Whether the disk has failed the last change, or been too full for it.
    pub fn is_failing(&self) -> bool {
        self.database.is_failing()
    }

    /// Where the state is, for the status.
    pub fn report(&self, recovered: Option<String>) -> StoreReport {
        StoreReport {
            directory: self.directory.display().to_string(),
            size_bytes: self.database.size_bytes(),
            sealed: self.database.is_sealed(),
            recovered,
            last_error: self.database.failure(),
        }
    }
}

fn read(database: &Database, directory: &Path) -> Result<Loaded, OpenStateError> {
    let failed = |source| OpenStateError::Read {
        directory: directory.to_owned(),
        source,
    };
    let (state, facts, kept, handed_over, succession) = database
        .read(|reader| -> Result<_, StoreError> {
            let kept = reader.list(&grants::GRANTS)?;
            let handed_over = reader.get(&HANDED_OVER, &Only)?;
            Ok((
                reader.get(&MEMBERSHIP, &Only)?,
                reader.get(&FACTS, &Only)?,
                kept,
                handed_over,
                reader.get(&SUCCESSION, &Only)?,
            ))
        })
        .map_err(failed)?;
    Ok(Loaded {
        state: state.map(|StoredState(state)| state),
        facts: facts.unwrap_or_default(),
        grants: kept.into_iter().map(|(_, kept)| kept).collect(),
        sealed: database.is_sealed(),
        handed_over,
        succession: succession.map(|StoredSuccession(succession)| succession),
        recovered: None,
    })
}

#[cfg(test)]
mod tests;
