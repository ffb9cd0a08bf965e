//! Sealing and unsealing a whole store, and freeing it of what was removed. The file is made anew beside the old one and takes its
//! place when it is whole: pages that redb has freed would otherwise go on holding what was there
//! before it was sealed. A power cut leaves the old file or the new one.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use redb::{
    ReadTransaction, ReadableDatabase, ReadableTable as _, TableDefinition, TableError, TableHandle as _,
    WriteTransaction,
};

use super::backend::{FileBytes, Written};
use super::error::{OpenError, StoreError};
use super::file::{self, Draft};
use super::generation::Generation;
use super::seal::{Seals, is_sealed};
use super::transaction::{Raw, excerpt};

/// What the tables that must be sealed hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Some value that is not sealed.
    pub(super) bare: bool,
    /// Some value that is.
    pub(super) sealed: bool,
}

/// Looks through the tables that must be sealed. A value whose key is not there is an error.
pub(super) fn survey(transaction: &ReadTransaction, seals: &Seals) -> Result<Survey, StoreError> {
    let mut survey = Survey::default();
    for name in seals.schema().sealed {
        let definition: Raw<'_> = TableDefinition::new(name);
        let rows = match transaction.open_table(definition) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        for row in rows.iter()? {
            let (key, stored) = row?;
            seals
                .check_key(stored.value())
                .map_err(|source| StoreError::sealed(name, excerpt(key.value()), source))?;
            if is_sealed(stored.value()) {
                survey.sealed = true;
            } else {
                survey.bare = true;
            }
        }
    }
    Ok(survey)
}

/// Puts a file in the place of the locked one at `path` that holds the same rows in the form that
/// `to` has them. Gives it, locked.
pub(super) fn rewrite(
    path: &Path,
    old: &Arc<File>,
    from: &Seals,
    to: &Seals,
) -> Result<Arc<File>, OpenError> {
    let from_store = |error| OpenError::from_store(path, error);
    let bytes = |file: &Arc<File>| Box::new(FileBytes(Arc::clone(file)));
    let draft = Draft::replacing(path, old)?;
    let source = Generation::prepared(path, bytes(old), from)?;
    let target = Generation::open(bytes(draft.file()), Written::default(), to)
        .map_err(|error| OpenError::from_redb(path, error))?;
    source.copy_to(&target).map_err(from_store)?;
    // Closed, which writes the last of it, and read again: there may be no other copy.
    drop((source, target));
    drop(Generation::examined(path, bytes(draft.file()), to)?);
    let new = draft.publish(path)?;
    // What was unsealed on purpose is not secret any more.
    let unsealed = from.has_key() && !to.has_key();
    if !unsealed {
        match file::erase(old) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(path = %path.display(), "the old file has another name; it still holds what was secret");
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the old file was removed, but not overwritten");
            }
        }
    }
    Ok(new)
}

/// Copies all tables, each value opened by `from` and in the form that `to` has it.
pub(super) fn copy_tables(
    (source, from): (&redb::Database, &Seals),
    (target, to): (&redb::Database, &Seals),
) -> Result<(), StoreError> {
    let read = source.begin_read()?;
    let write = target.begin_write()?;
    for table in read.list_tables()? {
        copy_table(table.name(), (&read, from), (&write, to))?;
    }
    write.commit()?;
    Ok(())
}

fn copy_table(
    name: &str,
    (read, from): (&ReadTransaction, &Seals),
    (write, to): (&WriteTransaction, &Seals),
) -> Result<(), StoreError> {
    let definition: Raw<'_> = TableDefinition::new(name);
    let mut copied = write.open_table(definition)?;
    for row in read.open_table(definition)?.iter()? {
        let (key, stored) = row?;
        let (key, stored) = (key.value(), stored.value());
        let failed = |source| StoreError::sealed(name, excerpt(key), source);
        let value = from.opened(name, key, stored).map_err(failed)?;
        copied.insert(key, &*to.stored(name, key, &value).map_err(failed)?)?;
    }
    Ok(())
}
