//! The second copy of the membership beside the store: read where the store does not help, written anew where it
//! is not what the store has.

use std::path::Path;

use super::error::{OpenStateError, SaveStateError};
use super::rows::{MEMBERSHIP, StoredState};
use super::{COPY_FILE, Loaded, MembershipStore, SCHEMA};
use crate::base::limit::error_chain;
use crate::base::secret::Secret;
use crate::machine::join::JoinState;
use crate::satellite::grants;
use crate::store::copy::{self, Copy as SecondCopy, CopyError};
use crate::store::database::StoreError;
use crate::store::record::{self, Only};
use crate::store::seal;
use crate::store::state_key::StateKey;

/// What the second copy holds.
pub(super) enum Copied {
    State(Box<JoinState>),
    Nothing,
    Damaged,
}

pub(super) fn read_copy(directory: &Path, key: Option<&StateKey>) -> Result<Copied, OpenStateError> {
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

impl MembershipStore {
    /// Fills an empty store from the second copy, where there is one.
    pub(super) fn recover(self, mut loaded: Loaded, what: &str) -> Result<(Self, Loaded), OpenStateError> {
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
    pub(super) fn mend_copy(&self, state: Option<&JoinState>) {
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

    pub(super) fn write_copy(
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
