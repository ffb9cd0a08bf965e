//! Which layout of tables a file has, and the steps from one to the next. The version stands in
//! the file's own `meta` table and is raised in the transaction that changes the tables.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Damage, OpenError, StoreError};
use super::record::{Only, Record};
use super::transaction::{Reader, Table, Writer};

/// One step forward: changes the tables of version *n* into those of *n* + 1.
pub type Migration = fn(&mut Writer<'_>) -> Result<(), StoreError>;

/// What a store holds.
#[derive(Debug)]
pub struct Schema {
    /// Of which program; a store of another is refused.
    pub name: &'static str,
    /// Version that this build reads and writes, from 1.
    pub version: u32,
    /// The steps, the first from version 1 to 2: one fewer than [`Schema::version`].
    pub migrations: &'static [Migration],
    /// Names of the tables whose values are secret: sealed where there is a state key.
    pub sealed: &'static [&'static str],
}

/// Where the file's schema stands.
const META: Table<Only, MetaRecord> = Table::new("meta");

#[derive(Debug, Serialize, Deserialize)]
struct MetaRecord {
    name: String,
    version: u32,
}

impl Record for MetaRecord {
    const VERSION: u8 = 1;
}

/// What a file needs before it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// The first entry of its schema: it has no tables at all.
    Beginning,
    /// Steps forward from this version.
    Migration { from: u32 },
}

impl Schema {
    /// What the file needs, or why it cannot be used.
    pub(super) fn examine(&self, path: &Path, reader: &Reader<'_>) -> Result<Need, OpenError> {
        let from_store = |error| OpenError::from_store(path, error);
        let Some(meta) = reader.get(&META, &Only).map_err(from_store)? else {
            return if reader.has_tables().map_err(from_store)? {
                Err(OpenError::damaged(path, Damage::NotAStore, None))
            } else {
                Ok(Need::Beginning)
            };
        };
        if meta.name != self.name {
            return Err(OpenError::OtherStore {
                path: path.to_owned(),
                found: crate::base::limit::foreign_text(&meta.name),
                expected: self.name,
            });
        }
        if meta.version > self.version {
            return Err(OpenError::NewerSchema {
                path: path.to_owned(),
                found: meta.version,
                known: self.version,
            });
        }
        Ok(if meta.version == self.version {
            Need::Nothing
        } else {
            Need::Migration { from: meta.version }
        })
    }

    /// Takes the steps from version `from`, or none for a new file, and notes the version.
    pub(super) fn bring_forward(&self, writer: &mut Writer<'_>, from: Option<u32>) -> Result<(), StoreError> {
        debug_assert_eq!(
            usize::try_from(self.version).ok(),
            Some(self.migrations.len() + 1),
            "one step for each version after the first"
        );
        if let Some(from) = from {
            let done = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
            let steps = self.migrations.get(done..).unwrap_or_default();
            for step in steps {
                step(writer)?;
            }
        }
        let meta = MetaRecord {
            name: self.name.to_owned(),
            version: self.version,
        };
        writer.put(&META, &Only, &meta)
    }
}
