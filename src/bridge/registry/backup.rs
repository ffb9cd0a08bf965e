//! Backups of what a host-bridge keeps, and their return.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use super::dated;
use super::ledger::Books;
use super::record::{AUTHORITY, SCHEMA};
use super::{OpenRegistryError, Registry};
use crate::base::time::UnixTime;
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::platform::ParentConfig;
use crate::store::backup::{BackupError, DRAFT_SUFFIX};
use crate::store::database::{Database, OpenError};
use crate::store::record::Only;
use crate::store::state_key::StateKey;

/// What a backup holds.
#[derive(Debug)]
pub struct Backup {
    /// Fingerprint of the certificate authority; a ledger beside a platform has none.
    pub authority: Option<String>,
    /// Peers, revoked ones too.
    pub peers: usize,
    /// Whether the private keys in it are sealed with the state key.
    pub sealed: bool,
}

/// A backup beside earlier ones.
#[derive(Debug)]
pub struct DatedBackup {
    /// Its file.
    pub path: PathBuf,
    /// What it holds.
    pub backup: Backup,
    /// How many earlier files went.
    pub removed: usize,
}

/// A backup that has taken the place of what was there.
#[derive(Debug)]
pub struct Restored {
    /// What it holds.
    pub backup: Backup,
    /// Where what was there is kept.
    pub before: Option<PathBuf>,
}

/// Why there is no backup, or why none was restored. What the host-bridge keeps is as it was.
#[derive(Debug, Error)]
pub enum BackupRefused {
    /// There is nothing yet.
    #[error(transparent)]
    NotThere(OpenRegistryError),
    /// The file.
    #[error("no backup was made")]
    NotMade(#[source] BackupError),
    /// The directory for backups.
    #[error("{} cannot be read; name a directory that is there and that this user may write to", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An earlier backup is in the way of none, but takes room.
    #[error("the backup was made, but {} is one too many and could not be removed; remove it by hand", path.display())]
    NotRemoved {
        /// The earlier one.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file, the store that is there, or the disk.
    #[error("nothing was restored")]
    NotRestored(#[source] BackupError),
    /// The backup is not there.
    #[error("there is no file {}; nothing was changed. Name the backup", path.display())]
    NoFile {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It is a store, but not one to go on with.
    #[error("{} cannot be used as a backup", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenRegistryError,
    },
    /// A ledger for a standalone host-bridge, or a registry beside a platform.
    #[error("{} is {found}, and this configuration is that of {expected}; nothing was changed. See platform.url", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl Books {
    /// Copies what is kept to a new file, whether the daemon runs or not. Blocks on the disk.
    pub fn back_up(
        config: &HostBridgeConfig,
        key: Option<&StateKey>,
        to: &Path,
    ) -> Result<Backup, BackupRefused> {
        let path = Self::path(config);
        Registry::look_for(&path).map_err(BackupRefused::NotThere)?;
        Database::back_up(key, (&path, to), &SCHEMA).map_err(BackupRefused::NotMade)?;
        read(config, key, to)
    }

    /// Copies what is kept to a file of the directory that is called after the time, and removes those of earlier
    /// ones that are one too many. Blocks on the disk.
    pub fn back_up_into(
        config: &HostBridgeConfig,
        key: Option<&StateKey>,
        (directory, keep): (&Path, NonZeroUsize),
        now: UnixTime,
    ) -> Result<DatedBackup, BackupRefused> {
        let store = Self::path(config);
        let of = store.file_stem().unwrap_or_default().to_string_lossy();
        let unreadable = |source| BackupRefused::Directory {
            path: directory.to_owned(),
            source,
        };
        // Before the copy: who may not look there could never remove one.
        names_in(directory).map_err(unreadable)?;
        let made = dated::name(&of, now);
        let path = directory.join(&made);
        let backup = Self::back_up(config, key, &path)?;
        let files = names_in(directory).map_err(unreadable)?;
        let spent = dated::spent(&files, &of, (&made, DRAFT_SUFFIX), keep);
        for file in &spent {
            let path = directory.join(file);
            fs::remove_file(&path).map_err(|source| BackupRefused::NotRemoved { path, source })?;
        }
        Ok(DatedBackup {
            path,
            backup,
            removed: spent.len(),
        })
    }

    /// Puts a backup in the place of what is kept, while no daemon runs. Blocks on the disk.
    pub fn restore(
        config: &HostBridgeConfig,
        key: Option<&StateKey>,
        from: &Path,
    ) -> Result<Restored, BackupRefused> {
        let backup = read(config, key, from)?;
        let before = Database::put_back(key, (from, &Self::path(config)), &SCHEMA)
            .map_err(BackupRefused::NotRestored)?;
        Ok(Restored { backup, before })
    }
}

/// The names of a directory's files; one that is no text is none of a backup's.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}

/// Looks at a backup as the daemon would that starts with it.
fn read(config: &HostBridgeConfig, key: Option<&StateKey>, path: &Path) -> Result<Backup, BackupRefused> {
    let unusable = |source| BackupRefused::Unusable {
        path: path.to_owned(),
        source,
    };
    let opening = |error: OpenError| match error {
        OpenError::Missing { path } => BackupRefused::NoFile { path },
        error => unusable(OpenRegistryError::Open(error)),
    };
    let store = |error| unusable(OpenRegistryError::Store(error));
    let db = Database::open_read_only_under(key, path, &SCHEMA).map_err(opening)?;
    let sealed = db.is_sealed();
    let is_registry = db.read(|r| r.get(&AUTHORITY, &Only)).map_err(store)?.is_some();
    let other = |found, expected| BackupRefused::OtherKind {
        path: path.to_owned(),
        found,
        expected,
    };
    match (&config.parent, is_registry) {
        (ParentConfig::Standalone, true) => {
            let registry = Registry::open_in(db).map_err(unusable)?;
            Ok(Backup {
                authority: Some(registry.authority().fingerprint().to_string()),
                peers: registry.peers().map_err(store)?.len(),
                sealed,
            })
        }
        (ParentConfig::Platform(_), false) => Ok(Backup {
            authority: None,
            peers: 0,
            sealed,
        }),
        (ParentConfig::Standalone, false) => Err(other(
            "without a certificate authority, as beside a platform",
            "a standalone host-bridge",
        )),
        (ParentConfig::Platform(_), true) => Err(other(
            "the registry of a standalone host-bridge",
            "one beside a platform",
        )),
    }
}
