//! `backup` and `restore`: copies of the registry, and their return.

use std::path::Path;

use powernode_satellite::bridge::registry::{Backup, BackupRefused, Books};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{Style, render_pairs};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::store::state_key::StateKey;

use crate::print;
use crate::run::not_opened;

/// Writes a copy of the registry, beside the running daemon or without it.
pub fn back_up(config: &HostBridgeConfig, to: &Path) -> Result<(), Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let backup = Books::back_up(config, key.as_ref(), to).map_err(|error| refused(&error))?;
    show(("backup", to), &backup, None)?;
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
    show(("restored", from), &restored.backup, restored.before.as_deref())?;
    print(
        "\nStart the daemon. What has changed since the backup is not known to it: see OPERATING.md, \"Restore\".\n",
    )
}

fn show((what, path): (&str, &Path), backup: &Backup, before: Option<&Path>) -> Result<(), Failure> {
    let pairs = [
        (what, Some(path.display().into())),
        ("CA", backup.authority.clone().map(Into::into)),
        (
            "peers",
            backup.authority.as_ref().map(|_| backup.peers.to_string().into()),
        ),
        ("kept", before.map(|before| before.display().into())),
    ];
    print(&render_pairs(&pairs, Style::of_stdout()))
}

fn refused(error: &BackupRefused) -> Failure {
    match error {
        BackupRefused::NotThere(error) => not_opened(error),
        error => Failure::of(Code::Failed, error),
    }
}
