//! `backup` and `restore`: copies of the registry, and their return.

use std::num::NonZeroUsize;
use std::path::Path;

use powernode_satellite::bridge::registry::{Backup, BackupRefused, Books};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{Style, render_pairs};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::store::state_key::StateKey;

use crate::arguments::BackupArguments;
use crate::print;
use crate::run::not_opened;

/// Writes a copy of the registry, beside the running daemon or without it.
pub fn back_up(config: &HostBridgeConfig, arguments: &BackupArguments) -> Result<(), Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let key = key.as_ref();
    let backup = match (&arguments.file, &arguments.into) {
        (Some(file), _) => {
            let backup = Books::back_up(config, key, file).map_err(|error| refused(&error))?;
            show(("backup", file), &backup, None)?;
            backup
        }
        (None, directory) => {
            let directory = directory.as_deref().unwrap_or(Path::new("."));
            let keep = arguments.keep.unwrap_or(NonZeroUsize::MAX);
            let now = Clock::start(BUILD_TIME).trusted().now;
            let made = Books::back_up_into(config, key, (directory, keep), now);
            let made = made.map_err(|error| refused(&error))?;
            let removed = match made.removed {
                0 => None,
                1 => Some("1 earlier file".to_owned()),
                files => Some(format!("{files} earlier files")),
            };
            show(
                ("backup", &made.path),
                &made.backup,
                removed.map(|removed| ("removed", removed)),
            )?;
            made.backup
        }
    };
    print(match (backup.sealed, &backup.authority) {
        (true, _) => {
            "\nWhat is secret in it is sealed: it is of use only with the state key, so keep that elsewhere.\n"
        }
        (false, Some(_)) => {
            "\nThe authority's private key is in it, not sealed: keep it as you would that key.\n"
        }
        (false, None) => "\nTokens of satellites' grants are in it, not sealed: keep it from others.\n",
    })
}

/// Puts a copy in the registry's place, while no daemon runs.
pub fn restore(config: &HostBridgeConfig, from: &Path) -> Result<(), Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let restored = Books::restore(config, key.as_ref(), from).map_err(|error| refused(&error))?;
    let kept = restored
        .before
        .map(|before| ("kept", before.display().to_string()));
    show(("restored", from), &restored.backup, kept)?;
    print(
        "\nStart the daemon. What has changed since the backup is not known to it: see OPERATING.md, \"Restore\".\n",
    )
}

fn show(
    (what, path): (&str, &Path),
    backup: &Backup,
    further: Option<(&str, String)>,
) -> Result<(), Failure> {
    let (further, found) = further.unzip();
    let pairs = [
        (what, Some(path.display().into())),
        ("CA", backup.authority.clone().map(Into::into)),
        (
            "peers",
            backup.authority.as_ref().map(|_| backup.peers.to_string().into()),
        ),
        (further.unwrap_or_default(), found.map(Into::into)),
    ];
    print(&render_pairs(&pairs, Style::of_stdout()))
}

fn refused(error: &BackupRefused) -> Failure {
    match error {
        BackupRefused::NotThere(error) => not_opened(error),
        error => Failure::of(Code::Failed, error),
    }
}
