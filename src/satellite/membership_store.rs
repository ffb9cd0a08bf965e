//! Where a satellite's membership is kept: the store file, and a second, checksummed copy of what
//! must outlive a broken file. Opens whichever is whole and says so. The facts that change every
//! minute are written rarely: the card of a small box must not wear out.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::time::UnixTime;
use crate::contract::message::{OurEndpoint, SchemaCompatibility};
use crate::machine::join::JoinState;
use crate::store::copy::{self, CopyError, CopyState};
use crate::store::database::{Database, OpenError, Schema, StoreError, Table};
use crate::store::record::Record;

/// The store file in the state directory.
pub const STORE_FILE: &str = "satellite.redb";

/// The second copy in the state directory.
pub const COPY_FILE: &str = "membership.copy";

/// Schema of the store file.
pub static SCHEMA: Schema = Schema {
    name: "powernode-satellite",
    version: 1,
    migrations: &[],
};

const MEMBERSHIP: Table<&'static str, StoredState> = Table::new("membership");
const FACTS: Table<&'static str, Facts> = Table::new("facts");
/// The one row of each table.
const ONLY: &str = "only";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredState(JoinState);

impl Record for StoredState {
    const VERSION: u8 = 1;
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

/// What was found at the start.
#[derive(Debug)]
pub struct Loaded {
    /// `None` when this box was never invited.
    pub state: Option<JoinState>,
    /// The facts, or none.
    pub facts: Facts,
    /// Set when the store was damaged and the second copy was used: what happened, in words.
    pub recovered: Option<String>,
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
    /// The store opens but its rows cannot be read.
    #[error("cannot read the satellite's state in {directory}")]
    Read {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The store is damaged and could not be moved aside.
    #[error("the store {path} is damaged and cannot be moved aside; move it away by hand and start again")]
    MoveAside {
        /// The store file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a state was not made durable. The state in the store is the one before.
#[derive(Debug, Error)]
pub enum SaveStateError {
    /// The store.
    #[error("the membership could not be written to the store")]
    Store(#[source] StoreError),
    /// The second copy: the store has the new state, the copy the one before.
    #[error("the second copy of the membership could not be written")]
    Copy(#[source] CopyError),
}

/// The open state of one satellite. One process at a time.
#[derive(Debug, Clone)]
pub struct MembershipStore {
    database: Database,
    directory: PathBuf,
}

impl MembershipStore {
    /// Opens or creates the state. A damaged store is moved aside when the second copy is whole,
    /// and a new one is written from the copy. Blocking.
    pub fn open(directory: &Path) -> Result<(Self, Loaded), OpenStateError> {
        let path = directory.join(STORE_FILE);
        match Database::open(&path, &SCHEMA) {
            Ok(database) => Self::load(database, directory),
            Err(source) if source.is_damage() => Self::recover(directory, &path, source),
            Err(source) => Err(OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }),
        }
    }

    /// Reads the state without writing, for commands while no daemon runs. Blocking.
    pub fn peek(directory: &Path) -> Result<Loaded, OpenStateError> {
        let path = directory.join(STORE_FILE);
        if !path.exists() {
            return Ok(Loaded {
                state: None,
                facts: Facts::default(),
                recovered: None,
            });
        }
        let database = Database::open_read_only(&path, &SCHEMA).map_err(|source| OpenStateError::Open {
            directory: directory.to_owned(),
            source,
        })?;
        read(&database, directory)
    }

    /// Makes a state durable: first the store, then the second copy.
    pub async fn save_state(&self, state: &JoinState) -> Result<(), SaveStateError> {
        let stored = StoredState(state.clone());
        let bytes = crate::store::record::encode(&stored);
        self.database
            .write_async(move |writer| writer.put(&MEMBERSHIP, &ONLY, &stored))
            .await
            .map_err(SaveStateError::Store)?;
        copy::write_async(self.directory.join(COPY_FILE), bytes)
            .await
            .map_err(SaveStateError::Copy)
    }

    /// Makes the facts durable.
    pub async fn save_facts(&self, facts: &Facts) -> Result<(), StoreError> {
        let facts = facts.clone();
        self.database
            .write_async(move |writer| writer.put(&FACTS, &ONLY, &facts))
            .await
    }

    /// Where the state is, for the status.
    pub fn report(&self, recovered: Option<String>) -> super::status::StoreReport {
        super::status::StoreReport {
            directory: self.directory.display().to_string(),
            size_bytes: self.database.size_bytes().unwrap_or(0),
            recovered,
        }
    }
}
