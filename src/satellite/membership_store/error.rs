//! Why the state cannot be opened or written, and what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use crate::store::copy::CopyError;
use crate::store::database::{Holder, OpenError, StoreError};
use crate::store::record::RecordError;
use crate::store::seal::SealError;

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

impl OpenStateError {
    /// Who has the state, where that is why it cannot be opened: a daemon that runs, starts or stops, or a command.
    pub const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Open { source, .. } => source.holder(),
            _ => None,
        }
    }
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
