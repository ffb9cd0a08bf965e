//! Where a satellite's membership is kept: the store file, and a second, checksummed copy of what
//! must outlive a broken file. Opens whichever is whole and says so. The facts that change every
//! minute are written rarely: the card of a small box must not wear out.

mod examination;
mod version_1;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::grants;
use super::status::StoreReport;
use crate::base::limit::error_chain;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::message::{OurEndpoint, SchemaCompatibility};
use crate::machine::join::{Farewell, JoinState};
use crate::machine::mapping_lease::MappingRecord;
use crate::process::blocking;
use crate::store::audit_log::add_audit_log;
use crate::store::copy::{self, Copy as SecondCopy, CopyError};
use crate::store::database::{Database, OpenError, Schema, StoreError, Table};
use crate::store::record::{self, Only, Record, RecordError};
use crate::store::seal::{self, SealError};
use crate::store::state_key::StateKey;

pub use examination::{CopyStanding, Examination};

/// The store file in the state directory.
pub const STORE_FILE: &str = "satellite.redb";
/// The second copy in the state directory.
pub const COPY_FILE: &str = "membership.copy";
/// Schema of the store file.
pub static SCHEMA: Schema = Schema {
    name: "powernode-satellite",
    version: 3,
    migrations: &[add_audit_log, grants::add_grants],
    sealed: &[MEMBERSHIP.name(), grants::GRANT_KEY.name()],
};

const MEMBERSHIP: Table<Only, StoredState> = Table::new("membership");
const FACTS: Table<Only, Facts> = Table::new("facts");
const HANDED_OVER: Table<Only, HandedOver> = Table::new("cluster_handed_over");
const MAPPINGS_V4: Table<Only, StoredMappings> = Table::new("mappings_v4");
const MAPPINGS_V6: Table<Only, StoredMappings> = Table::new("mappings_v6");
const HTTPS_MAPPINGS_V4: Table<Only, StoredMappings> = Table::new("https_mappings_v4");
const HTTPS_MAPPINGS_V6: Table<Only, StoredMappings> = Table::new("https_mappings_v6");
/// Which addresses a mapping is for, and what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4, for HTTPS.
    HttpsV4,
    /// IPv6, for HTTPS.
    HttpsV6,
}

impl MappingFamily {
    const fn table(self) -> &'static Table<Only, StoredMappings> {
        match self {
            Self::V4 => &MAPPINGS_V4,
            Self::V6 => &MAPPINGS_V6,
            Self::HttpsV4 => &HTTPS_MAPPINGS_V4,
            Self::HttpsV6 => &HTTPS_MAPPINGS_V6,
        }
    }
}

/// What may exist on routers.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredMappings(Vec<MappingRecord>);

impl Record for StoredMappings {
    const VERSION: u8 = 1;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredState(JoinState);

impl Record for StoredState {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Result<Self, RecordError> {
        match version {
            1 => version_1::read(bytes).map(Self),
            found => Err(RecordError::UnknownVersion {
                found,
                known: Self::VERSION,
            }),
        }
    }
}

/// What is good to know again after a restart, and no loss if it is old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The parent's last acknowledgement, trusted time.
    pub last_acknowledged_at: Option<UnixTime>,
    /// The last time seen from the parent, advanced to when this was written.
    pub seen_from_parent: Option<UnixTime>,
    /// Where the parent says that it can be reached.
    pub our_endpoints: Vec<OurEndpoint>,
    /// How the versions fit, as the parent says.
    pub schema_compatibility: Option<SchemaCompatibility>,
    /// Bridges that answered, the latest first: name and address.
    pub good_addresses: Vec<(String, std::net::SocketAddr)>,
}

impl Record for Facts {
    const VERSION: u8 = 1;
}

/// The cluster's part of an accept that the hook has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// By what the hook knows it again.
    pub key: String,
    /// When.
    pub at: UnixTime,
}

impl Record for HandedOver {
    const VERSION: u8 = 1;
}

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
            recovered: None,
        }
    }
}

/// Why the state cannot be opened.
#[derive(Debug, Error)]
pub enum OpenStateError {
    /// The store cannot be opened, and no second copy helps.
    #[error("cannot open the satellite's state in {directory}")]
    Open {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// Both are of no use.
    #[error(
        "the satellite's state in {directory} is damaged, and so is its second copy or there is none; nothing was \
         changed. Restore the directory from a backup, or move it away and join again with a new invitation"
    )]
    Lost {
        /// The state directory.
        directory: PathBuf,
        /// What is wrong with the store.
        #[source]
        source: OpenError,
    },
    /// The store opens but its rows cannot be read.
    #[error("cannot read the satellite's state in {directory}")]
    Read {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The second copy cannot be read.
    #[error("cannot read the second copy of the satellite's state in {directory}")]
    Copy {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: CopyError,
    },
    /// The second copy is whole and sealed, and does not open.
    #[error("the second copy of the satellite's state in {directory} cannot be used")]
    CopySeal {
        /// The state directory.
        directory: PathBuf,
        /// Why, and what to do.
        #[source]
        source: SealError,
    },
    /// The second copy is whole but was written by another version.
    #[error("the second copy of the satellite's state in {directory} cannot be used")]
    CopyRecord {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: RecordError,
    },
}

/// Why a state was not made durable. The state in the store is the one before.
#[derive(Debug, Error)]
pub enum SaveStateError {
    /// The store.
    #[error("the membership could not be written to the store")]
    Store(#[source] StoreError),
    /// It cannot be encoded.
    #[error("the membership cannot be encoded")]
    Encode(#[source] RecordError),
    /// The second copy cannot be sealed: the store has the new state, the copy the one before.
    #[error("the second copy of the membership could not be sealed")]
    Seal(#[source] SealError),
    /// The second copy: the store has the new state, the copy the one before.
    #[error("the second copy of the membership could not be written")]
    Copy(#[source] CopyError),
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

    /// Where the state is, for the status.
    pub fn report(&self, recovered: Option<String>) -> StoreReport {
        StoreReport {
            directory: self.directory.display().to_string(),
            size_bytes: self.database.size_bytes(),
            sealed: self.database.is_sealed(),
            recovered,
            last_error: None,
        }
    }

    /// Fills an empty store from the second copy, where there is one.
    fn recover(self, mut loaded: Loaded, what: &str) -> Result<(Self, Loaded), OpenStateError> {
        let said = match read_copy(&self.directory, self.key.as_ref())? {
            Copied::Nothing => return Ok((self, loaded)),
            Copied::State(state) => {
                let stored = StoredState((*state).clone());
                self.database
                    .write(|writer| {
                        if let Some(membership) = state.membership() {
                            grants::withhold(writer, membership.peer_id)?;
                        }
                        writer.put(&MEMBERSHIP, &Only, &stored)
                    })
                    .map_err(|source: StoreError| OpenStateError::Read {
                        directory: self.directory.clone(),
                        source,
                    })?;
                self.mend_copy(Some(&state));
                loaded.state = Some(*state);
                format!("{what}; the membership was restored from the second copy")
            }
            Copied::Damaged => format!(
                "{what} and the second copy is damaged: if this box had joined, it has to join again with a new invitation"
            ),
        };
        tracing::warn!("{said}");
        loaded.recovered = Some(said);
        Ok((self, loaded))
    }

    /// The store is whole: a second copy that is missing, damaged, older or in another form (sealed or
    /// not) is written anew.
    fn mend_copy(&self, state: Option<&JoinState>) {
        let Some(state) = state else { return };
        let stored = StoredState(state.clone());
        let copied = match copy::read(&self.directory.join(COPY_FILE)) {
            Ok(SecondCopy::Whole(copied)) => Some(copied),
            _ => None,
        };
        let bare = copied
            .as_ref()
            .is_some_and(|copied| !seal::is_sealed(copied.expose()));
        let same = match (&copied, record::encode(&stored)) {
            (Some(copied), Ok(mine)) if bare != self.key.is_some() => {
                seal::open_copy(&SCHEMA, self.key.as_ref(), copied)
                    .is_ok_and(|content| content.matches(&Secret::new(mine.to_vec())))
            }
            _ => false,
        };
        if same {
            return;
        }
        // What a copy from before the key holds must not stay behind on the disk.
        let write = match (bare, &self.key) {
            (true, Some(_)) => copy::write_and_erase,
            _ => copy::write,
        };
        if let Err(error) = self.write_copy(&stored, write) {
            tracing::warn!(error = %error_chain(&error), "the second copy could not be mended");
        }
    }

    fn write_copy(
        &self,
        stored: &StoredState,
        write: fn(&Path, &Secret) -> Result<(), CopyError>,
    ) -> Result<(), SaveStateError> {
        let bytes = record::encode(stored).map_err(SaveStateError::Encode)?;
        let content = seal::seal_copy(&SCHEMA, self.key.as_ref(), &Secret::new(bytes.to_vec()))
            .map_err(SaveStateError::Seal)?;
        write(&self.directory.join(COPY_FILE), &content).map_err(SaveStateError::Copy)
    }
}

/// What the second copy holds.
enum Copied {
    State(Box<JoinState>),
    Nothing,
    Damaged,
}

fn read_copy(directory: &Path, key: Option<&StateKey>) -> Result<Copied, OpenStateError> {
    match copy::read(&directory.join(COPY_FILE)) {
        Ok(SecondCopy::Absent) => Ok(Copied::Nothing),
        Ok(SecondCopy::Damaged(why)) => {
            tracing::warn!(reason = %why, "the second copy of the membership is damaged");
            Ok(Copied::Damaged)
        }
        Ok(SecondCopy::Whole(bytes)) => {
            let content =
                seal::open_copy(&SCHEMA, key, &bytes).map_err(|source| OpenStateError::CopySeal {
                    directory: directory.to_owned(),
                    source,
                })?;
            record::decode::<StoredState>(content.expose())
                .map(|StoredState(state)| Copied::State(Box::new(state)))
                .map_err(|source| OpenStateError::CopyRecord {
                    directory: directory.to_owned(),
                    source,
                })
        }
        Err(source) => Err(OpenStateError::Copy {
            directory: directory.to_owned(),
            source,
        }),
    }
}

fn read(database: &Database, directory: &Path) -> Result<Loaded, OpenStateError> {
    let failed = |source| OpenStateError::Read {
        directory: directory.to_owned(),
        source,
    };
    let (state, facts, kept, handed_over) = database
        .read(|reader| -> Result<_, StoreError> {
            let kept = reader.list(&grants::GRANTS)?;
            let handed_over = reader.get(&HANDED_OVER, &Only)?;
            Ok((
                reader.get(&MEMBERSHIP, &Only)?,
                reader.get(&FACTS, &Only)?,
                kept,
                handed_over,
            ))
        })
        .map_err(failed)?;
    Ok(Loaded {
        state: state.map(|StoredState(state)| state),
        facts: facts.unwrap_or_default(),
        grants: kept.into_iter().map(|(_, kept)| kept).collect(),
        sealed: database.is_sealed(),
        handed_over,
        recovered: None,
    })
}

#[cfg(test)]
mod tests;
