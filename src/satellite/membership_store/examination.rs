//! A look at the whole state that changes nothing and asks for nothing to be stopped: whether this
//! program can run with what an earlier or a later one has left, before it takes over.

use std::path::Path;

use super::{
    COPY_FILE, Copied, Loaded, MembershipStore, OpenStateError, SCHEMA, STORE_FILE, StoredState, read,
    read_copy,
};
use crate::base::secret::Secret;
use crate::store::copy::{self, Copy as SecondCopy, CopyDamage};
use crate::store::database::{Database, Holder, OpenError};
use crate::store::record;

/// How often a store that is being written to is read again before it counts as damaged. A write
/// takes milliseconds and happens a few times an hour: to meet it twice is a rare accident.
const SNAPSHOT_TRIES: usize = 5;

/// What was found.
#[derive(Debug)]
pub struct Examination {
    /// What a start would load.
    pub loaded: Loaded,
    /// Size of the store file in bytes; `None` when there is none.
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
    /// It is whole, and another state than the store's; the store's counts, and a start writes it
    /// anew.
    Different,
    /// It is not whole; a start writes it anew.
    Damaged(CopyDamage),
    /// It was used: the store is damaged.
    Used,
}

impl MembershipStore {
    /// Looks at the state in `directory`, also while a daemon has it open. Blocking.
    pub fn examine(directory: &Path) -> Result<Examination, OpenStateError> {
        let path = directory.join(STORE_FILE);
        let (opened, holder) = match Database::open_read_only(&path, &SCHEMA) {
            Err(OpenError::Held { holder, .. }) => (snapshot(&path), Some(holder)),
            opened => (opened, None),
        };
        match opened {
            Ok(database) => {
                let loaded = read(&database, directory)?;
                Ok(Examination {
                    copy: compare(directory, &loaded)?,
                    size_bytes: Some(database.size_bytes()),
                    loaded,
                    holder,
                })
            }
            Err(source) => from_copy(directory, source, holder),
        }
    }
}

fn snapshot(path: &Path) -> Result<Database, OpenError> {
    let mut last = Database::open_snapshot(path, &SCHEMA);
    for _ in 1..SNAPSHOT_TRIES {
        match &last {
            Err(error) if error.is_damaged() => last = Database::open_snapshot(path, &SCHEMA),
            _ => break,
        }
    }
    last
}

/// What a start makes of a store that is missing or damaged.
fn from_copy(
    directory: &Path,
    source: OpenError,
    holder: Option<Holder>,
) -> Result<Examination, OpenStateError> {
    let is_missing = matches!(source, OpenError::Missing { .. });
    if !is_missing && !source.is_damaged() {
        return Err(OpenStateError::Open {
            directory: directory.to_owned(),
            source,
        });
    }
    let (state, copy) = match read_copy(directory)? {
        Copied::State(state) => (Some(*state), CopyStanding::Used),
        Copied::Nothing | Copied::Damaged if is_missing => (None, CopyStanding::Absent),
        Copied::Nothing | Copied::Damaged => {
            return Err(OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            });
        }
    };
    let what = if is_missing { "gone" } else { "damaged" };
    let recovered = state
        .is_some()
        .then(|| format!("the store is {what}; this is from the second copy"));
    Ok(Examination {
        loaded: Loaded {
            state,
            recovered,
            ..Loaded::default()
        },
        size_bytes: None,
        holder,
        copy,
    })
}

fn compare(directory: &Path, loaded: &Loaded) -> Result<CopyStanding, OpenStateError> {
    let copied = copy::read(&directory.join(COPY_FILE)).map_err(|source| OpenStateError::Copy {
        directory: directory.to_owned(),
        source,
    })?;
    Ok(match copied {
        SecondCopy::Absent => CopyStanding::Absent,
        SecondCopy::Damaged(damage) => CopyStanding::Damaged(damage),
        SecondCopy::Whole(copied) => {
            let mine = loaded.state.clone().map(StoredState);
            let same = mine
                .and_then(|mine| record::encode(&mine).ok())
                .is_some_and(|mine| copied.matches(&Secret::new(mine.to_vec())));
            if same {
                CopyStanding::Same
            } else {
                CopyStanding::Different
            }
        }
    })
}
