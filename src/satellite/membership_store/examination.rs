//! A look at the whole state that changes nothing and asks for nothing to be stopped: whether this
//! program can run with what an earlier or a later one has left, before it takes over.

use std::path::Path;

use super::rows::StoredState;
use super::second_copy::Copied;
use super::{COPY_FILE, Loaded, MembershipStore, OpenStateError, SCHEMA, STORE_FILE};
use super::{read, read_copy};
use crate::base::secret::Secret;
use crate::store::copy::{self, Copy as SecondCopy, CopyDamage};
use crate::store::database::{Database, Holder, OpenError};
use crate::store::record;
use crate::store::seal;
use crate::store::state_key::StateKey;

/// Most bytes of a store that are copied into memory while a daemon has it open: a hundred times what one has.
const SNAPSHOT_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What was found.
#[derive(Debug)]
pub struct Examination {
    /// What a start would load.
    pub loaded: Loaded,
    /// Size of the store file in bytes; `None` when there is none, or none of use.
    pub size_bytes: Option<u64>,
    /// Who has the store open, if somebody has.
    pub holder: Option<Holder>,
    /// The second copy.
    pub copy: CopyStanding,
}

/// How the second copy compares to the store.
#[derive(Debug)]
pub enum CopyStanding {
    /// None is there.
    Absent,
    /// It repeats the store.
    Same,
    /// It is whole, and another state than the store's, or in another form (sealed or not); the
    /// store's counts, and a start writes it anew.
    Different,
    /// It is not whole; a start writes it anew.
    Damaged(CopyDamage),
    /// It was used: the store is gone, empty or damaged.
    Used,
}

impl MembershipStore {
    /// Looks at the state in `directory`, also while a daemon has it open. Blocking.
    pub fn examine(directory: &Path, key: Option<&StateKey>) -> Result<Examination, OpenStateError> {
        let path = directory.join(STORE_FILE);
        let (opened, holder) = match Database::open_read_only_under(key, &path, &SCHEMA) {
            Err(OpenError::Held { holder, .. }) => {
                let copied = Database::open_snapshot(key, (&path, SNAPSHOT_MAX_BYTES), &SCHEMA);
                (copied, Some(holder))
            }
            opened => (opened, None),
        };
        let (loaded, size_bytes, what) = match opened {
            Ok(database) => {
                let loaded = read(&database, directory)?;
                (loaded, Some(database.size_bytes()), "empty")
            }
            Err(OpenError::Missing { .. }) => (Loaded::default(), None, "gone"),
            Err(source) if source.is_damaged() => {
                let Copied::State(_) = read_copy(directory, key)? else {
                    return Err(OpenStateError::Lost {
                        directory: directory.to_owned(),
                        source,
                    });
                };
                (Loaded::default(), None, "damaged")
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
            return Ok(Examination {
                loaded: Loaded {
                    state: Some(*state),
                    recovered: Some(format!("the store is {what}; this is from the second copy")),
                    ..loaded
                },
                size_bytes,
                holder,
                copy: CopyStanding::Used,
            });
        }
        Ok(Examination {
            copy: compare(directory, key, &loaded)?,
            loaded,
            size_bytes,
            holder,
        })
    }
}

fn compare(
    directory: &Path,
    key: Option<&StateKey>,
    loaded: &Loaded,
) -> Result<CopyStanding, OpenStateError> {
    let copied = copy::read(&directory.join(COPY_FILE)).map_err(|source| OpenStateError::Copy {
        directory: directory.to_owned(),
        source,
    })?;
    Ok(match copied {
        SecondCopy::Absent => CopyStanding::Absent,
        SecondCopy::Damaged(damage) => CopyStanding::Damaged(damage),
        SecondCopy::Whole(copied) => {
            let mine = loaded.state.clone().map(StoredState);
            let mine = mine.and_then(|mine| record::encode(&mine).ok());
            let in_form = seal::is_sealed(copied.expose()) == key.is_some();
            match (mine, seal::open_copy(&SCHEMA, key, &copied)) {
                (Some(mine), Ok(content)) if in_form && content.matches(&Secret::new(mine.to_vec())) => {
                    CopyStanding::Same
                }
                _ => CopyStanding::Different,
            }
        }
    })
}
