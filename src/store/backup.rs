//! Copies of a store for keeping, and their return. A copy is taken of the bytes, whoever has the store open
//! and without asking them; every checksum in it is verified, so that one which a write ran across is
//! found out and taken again. Knows nothing of what the rows mean. All calls block on the disk.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::backend::FileBytes;
use super::database::Database;
use super::error::{Holder, OpenError};
use super::file::{self, Draft, Lock};
use super::generation::Generation;
use super::schema::Schema;
use super::seal::Seals;
use super::state_key::StateKey;

pub use super::file::DRAFT_SUFFIX;

/// How often a copy that is not whole is taken again: a host-bridge writes once a second where much happens,
/// and a copy of its largest store takes a tenth of that.
const COPY_RETRIES: u32 = 40;

/// How long is waited between two tries; two seconds in all.
const COPY_PAUSE: Duration = Duration::from_millis(50);

/// What a store is called, after its name, once another was put in its place.
const BEFORE_SUFFIX: &str = ".before";

/// Why there is no copy, or why none was put back. The store is as it was.
#[derive(Debug, Error)]
pub enum BackupError {
    /// What is there may be the last good copy.
    #[error("there is a file {} already; nothing was written. Name another one, or move that one away", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It is written to all the time.
    #[error(
        "no copy of the store {} was whole, in {} tries: it is written to without a pause, or is damaged. Try again, or stop the daemon first",
        path.display(),
        COPY_RETRIES + 1
    )]
    NeverWhole {
        /// The store.
        path: PathBuf,
        /// What was wrong with the last copy.
        #[source]
        source: OpenError,
    },
    /// A daemon goes on with what it has, and would write over what was put back.
    #[error("the store {} is in use by {holder}; stop that first, and start it again afterwards", path.display())]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The store, or the copy, cannot be used; or a disk fails.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl Database {
    /// Copies the store at `path` to a new file at `to`, which is there when it is whole and on its disk.
    pub fn back_up(
        key: Option<&StateKey>,
        (path, to): (&Path, &Path),
        schema: &'static Schema,
    ) -> Result<(), BackupError> {
        let seals = Seals::new(schema, key);
        let exists = || BackupError::Exists { path: to.to_owned() };
        // Where nobody writes, nobody begins to before the copy is taken.
        let quiet = match file::open_locked(path, Lock::Shared) {
            Ok(Some(locked)) => Some(locked),
            Ok(None) => {
                let path = path.to_owned();
                return Err(OpenError::Missing { path }.into());
            }
            Err(OpenError::Held { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let draft = Draft::elsewhere(to)?.ok_or_else(exists)?;
        let mut tries = 0;
        loop {
            match filled(&draft, (path, to), &seals) {
                Err(source @ OpenError::Damaged { .. }) if quiet.is_none() => {
                    if tries == COPY_RETRIES {
                        let path = path.to_owned();
                        return Err(BackupError::NeverWhole { path, source });
                    }
                    tries += 1;
                    thread::sleep(COPY_PAUSE);
                }
                outcome => break outcome?,
            }
        }
        draft.publish(to)?;
        Ok(())
    }

    /// Puts a copy in the place of the store at `path`, which nobody has open, or where there is none. What was
    /// there is kept; gives its name.
    pub fn put_back(
        key: Option<&StateKey>,
        (from, path): (&Path, &Path),
        schema: &'static Schema,
    ) -> Result<Option<PathBuf>, BackupError> {
        let seals = Seals::new(schema, key);
        let (draft, old) = loop {
            let opened = file::open_locked(path, Lock::Exclusive).map_err(|error| match error {
                OpenError::Held { path, holder } => BackupError::InUse { path, holder },
                error => error.into(),
            })?;
            if let Some(old) = opened {
                break (Draft::replacing(path, &old)?, Some(old));
            }
            if let Some(draft) = Draft::begin(path)? {
                break (draft, None);
            }
        };
        filled(&draft, (from, path), &seals)?;
        let before = match &old {
            Some(_) => Some(kept(path)?),
            None => None,
        };
        draft.publish(path)?;
        Ok(before)
    }
}

/// Fills the draft of `to` with the bytes of `from`, and makes sure that they are a whole store.
fn filled(draft: &Draft, (from, to): (&Path, &Path), seals: &Seals) -> Result<(), OpenError> {
    let reading = |error| OpenError::io(from, "read", "read access", error);
    let mut source = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = from.to_owned();
            return Err(OpenError::Missing { path });
        }
        opened => opened.map_err(reading)?,
    };
    draft
        .refill(&mut source)
        .map_err(|error| OpenError::io(to, "write", "write access", error))?;
    let bytes = Box::new(FileBytes(Arc::clone(draft.file())));
    drop(Generation::examined(from, bytes, seals)?);
    Ok(())
}

/// Gives the store a second name, in the place of an earlier one's, by which it stays when another takes
/// the first.
fn kept(path: &Path) -> Result<PathBuf, OpenError> {
    let before = file::beside(path, BEFORE_SUFFIX);
    let linked = match fs::remove_file(&before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::hard_link(path, &before),
    };
    linked.map_err(|error| {
        OpenError::io(
            &before,
            "keep the present store as",
            "write access to its directory",
            error,
        )
    })?;
    Ok(before)
}
