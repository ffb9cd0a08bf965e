//! What can go wrong with a store, in an operator's words. redb's errors stay inside as sources.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::record::RecordError;
use super::seal::SealError;

/// An error of a crate below, kept for the log.
type Source = Box<dyn StdError + Send + Sync>;

/// Why a store was not opened. Its rows are as they were; the file itself is too, unless the disk
/// or a migration failed on the way.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store {} is in use by {holder}. Where that is the daemon, ask it: --admin-socket names its socket; else stop it, or use another state directory",
        path.display()
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// There is no file, and the caller wanted to read one.
    #[error("there is no store at {}; check the state directory, or start the daemon once to make it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "the store {} has schema version {found}, and this program knows versions up to {known}; nothing was changed. Update the program, or restore the backup made before the update",
        path.display()
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// [`Schema::version`](super::database::Schema::version).
        known: u32,
    },
    /// The store of another program.
    #[error("{} is a store of {found}, not of {expected}; nothing was changed. Check the state directory", path.display())]
    OtherStore {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: String,
        /// [`Schema::name`](super::database::Schema::name).
        expected: &'static str,
    },
    /// The file cannot be used.
    #[error("the store {} {damage}; nothing was changed. Move it away and restore a backup, or start anew without it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
        /// What redb says of it.
        #[source]
        source: Option<Source>,
    },
    /// Its secrets take another key than was given.
    #[error("the store {} cannot be opened; nothing was changed", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        #[source]
        source: SealError,
    },
    /// The rights do not suffice.
    #[error("no permission to {attempt} {}; run as the user that owns it, or give that user {needed}", path.display())]
    PermissionDenied {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// What it takes.
        needed: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The store's directory cannot be made, because something else has its name.
    #[error("{} {obstacle}, or use another state directory", path.display())]
    NotADirectory {
        /// What has the name.
        path: PathBuf,
        /// What it is.
        obstacle: Obstacle,
    },
    /// No room.
    #[error("the disk is full: could not {attempt} {}; free some space and start again", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
    },
    /// A step between two schema versions failed, and all of them were undone.
    #[error(
        "the store {} could not be raised from schema version {from} to {to}; it is still at the old version. Run the earlier program, and report this",
        path.display()
    )]
    Migration {
        /// The file.
        path: PathBuf,
        /// In the file.
        from: u32,
        /// What it should have become.
        to: u32,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// Everything else that the system refuses.
    #[error("could not {attempt} {}; check the disk and its mount, then start again", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What has the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A symbolic link whose target is missing or no directory.
    LinkToNowhere(PathBuf),
    /// Anything else.
    File,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkToNowhere(target) => write!(
                f,
                "is a symbolic link to {}, where there is no directory; make that one (a disk may not be mounted), \
                 remove the link",
                target.display()
            ),
            Self::File => f.write_str("is a file where a directory is needed; move it away"),
        }
    }
}

/// What is wrong with a store's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// No bytes, as a power cut leaves files that were not made durable.
    Empty,
    /// Another format, or a header that was overwritten.
    NotAStore,
    /// A store whose content does not match its checksums.
    Broken,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is an empty file",
            Self::NotAStore => "is not a store",
            Self::Broken => "is damaged",
        })
    }
}

/// The process that has a store open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id, where the system tells.
    pub pid: Option<u32>,
    /// Its command name, where the system tells.
    pub command: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.command) {
            (Some(pid), Some(command)) => write!(f, "{command} (process {pid})"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

impl OpenError {
    /// Whether the file is there and of no use: the case for a second copy.
    pub const fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// Who has the store open, where that is why it was not opened: the case for asking that process.
    pub const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Held { holder, .. } => Some(holder),
            _ => None,
        }
    }

    pub(super) fn damaged(path: &Path, damage: Damage, source: Option<Source>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            damage,
            source,
        }
    }

    pub(super) fn io(path: &Path, attempt: &'static str, needed: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::PermissionDenied {
                path,
                attempt,
                needed,
                source,
            },
            kind if is_full(kind) => Self::DiskFull { path, attempt },
            _ => Self::Io {
                path,
                attempt,
                source,
            },
        }
    }

    pub(super) fn migration(path: &Path, from: u32, to: u32, error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => Self::DiskFull {
                path: path.to_owned(),
                attempt: "raise the schema of",
            },
            StoreError::Sealed { source, .. } => Self::Sealed {
                path: path.to_owned(),
                source,
            },
            error => Self::Migration {
                path: path.to_owned(),
                from,
                to,
                source: Box::new(error),
            },
        }
    }

    /// Sorts what redb says when it opens a file.
    pub(super) fn from_redb(path: &Path, error: redb::Error) -> Self {
        const ATTEMPT: &str = "open";
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Held {
                path: path.to_owned(),
                holder: Holder {
                    pid: None,
                    command: None,
                },
            },
            // How redb reports a wrong magic number, and a file that ends inside its header.
            redb::Error::Io(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::damaged(path, Damage::NotAStore, Some(Box::new(source)))
            }
            redb::Error::Io(source) => Self::io(path, ATTEMPT, "read and write access", source),
            other => Self::damaged(path, Damage::Broken, Some(Box::new(other))),
        }
    }

    /// Sorts what went wrong with the reads and writes that opening takes.
    pub(super) fn from_store(path: &Path, error: StoreError) -> Self {
        const ATTEMPT: &str = "prepare";
        match error {
            StoreError::DiskFull => Self::DiskFull {
                path: path.to_owned(),
                attempt: ATTEMPT,
            },
            StoreError::Io(source) => Self::io(path, ATTEMPT, "read and write access", source),
            StoreError::Damaged(source) => Self::damaged(path, Damage::Broken, Some(source)),
            StoreError::Sealed { source, .. } => Self::Sealed {
                path: path.to_owned(),
                source,
            },
            other => Self::damaged(path, Damage::Broken, Some(Box::new(other))),
        }
    }
}

/// Why a read or write failed. A write that failed changed nothing, with one exception: after
/// [`StoreError::Io`] the system does not say whether the last commit reached the disk; it did
/// as a whole or not at all, and the next read shows which.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No room.
    #[error("the disk that holds the store is full; free some space, and the next attempt will succeed")]
    DiskFull,
    /// A write to a store that was opened for reading.
    #[error("the store was opened for reading only; stop the daemon and use a command that changes it")]
    ReadOnly,
    /// The file is broken.
    #[error("the store is damaged; stop the daemon, move the file away and restore a backup")]
    Damaged(#[source] Source),
    /// One row cannot be read.
    #[error(
        "row {key} of the store's table `{table}` cannot be read; restore a backup, or remove that row's owner and add it again"
    )]
    DamagedRecord {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        key: String,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// One row is sealed and does not open, or was not sealed.
    #[error("row {key} of the store's table `{table}` is secret and cannot be used")]
    Sealed {
        /// The table's name.
        table: String,
        /// The row's key.
        key: String,
        /// Why, and what to do.
        #[source]
        source: SealError,
    },
    /// One row was written by a newer program.
    #[error(
        "row {key} of the store's table `{table}` has version {found}, and this program knows versions up to {known}; update the program"
    )]
    NewerRecord {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        key: String,
        /// In the row.
        found: u8,
        /// [`Record::VERSION`](super::record::Record::VERSION).
        known: u8,
    },
    /// One row cannot be written.
    #[error("row {key} of the store's table `{table}` cannot be written; make its content smaller")]
    UnwritableRecord {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        key: String,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// The process is stopping.
    #[error("the store was not asked, because the process is stopping; start it again")]
    Stopping,
    /// Everything else that the system refuses.
    #[error("the disk that holds the store failed; check it and its mount")]
    Io(#[source] io::Error),
}

impl StoreError {
    pub(super) fn sealed(table: &str, key: String, source: SealError) -> Self {
        Self::Sealed {
            table: table.to_owned(),
            key,
            source,
        }
    }

    pub(super) fn record(table: &'static str, key: String, source: RecordError) -> Self {
        match source {
            RecordError::Newer { found, known } => Self::NewerRecord {
                table,
                key,
                found,
                known,
            },
            RecordError::TooLarge { .. } | RecordError::Unencodable(_) => {
                Self::UnwritableRecord { table, key, source }
            }
            _ => Self::DamagedRecord { table, key, source },
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(source) if is_full(source.kind()) => Self::DiskFull,
            redb::Error::Io(source) => Self::Io(source),
            redb::Error::PreviousIo => Self::Io(io::Error::other(error)),
            other => Self::Damaged(Box::new(other)),
        }
    }
}

macro_rules! through_redb_error {
    ($($error:ty),+) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                redb::Error::from(error).into()
            }
        }
    )+};
}
through_redb_error!(
    redb::CommitError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);

/// Whether the error says that there is no room, for the user or at all.
pub(super) const fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
