//! Backups of what a host-bridge keeps, and their return.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::ledger::Books;
use super::record::{AUTHORITY, SCHEMA};
use super::{OpenRegistryError, Registry};
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::platform::ParentConfig;
use crate::store::backup::BackupError;
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
