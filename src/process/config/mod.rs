//! Configuration of both programs. [`satellite`] and [`host_bridge`] are tables of keys and the
//! types that come of them; [`loader`] puts flags, environment, file and defaults together;
//! [`key`] says what values may be, [`family`] how sections are read of which there are many. Unknown keys are refused with the nearest known one, every
//! number has bounds, and every error says where it stands.
//!
//! No key holds a secret: tokens and private keys are named by the file that holds them, and a
//! value that looks misplaced is not repeated in the error.

mod audit;
mod authority;
pub mod cluster;
pub mod duration;
pub mod family;
pub mod host_bridge;
pub mod key;
pub mod loader;
mod metrics;
pub mod node;
pub mod platform;
pub mod proxy;
pub mod rate;
pub mod satellite;
pub mod secret_file;
pub mod server_name;
pub mod services;
pub mod ways;

use std::path::{Path, PathBuf};

use self::key::Key;
use self::loader::{ConfigError, Settings};
use super::environment::Environment;
use super::telemetry::{LogFilter, LogFormat};

/// The file with the state key, which seals what is secret in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateKeyFile {
    /// Which file.
    pub path: PathBuf,
    /// Whether somebody has named it, or put something into the credential: then it must hold a key.
    /// The usual one need not be there.
    pub named: bool,
}

/// Name of the credential that may hold the state key.
const STATE_KEY_CREDENTIAL: &str = "state-key";

/// The file of a credential, if it has one with more than white space in it: the unit stands in
/// with a blank one where the operator has put none.
fn filled_credential(environment: &Environment, name: &str) -> Option<PathBuf> {
    /// A blank stand-in is a byte or two; what is longer is taken for filled without reading it.
    const BLANK_MAX_BYTES: u64 = 8;
    let path = environment.directory("CREDENTIALS_DIRECTORY")?.join(name);
    let size = std::fs::metadata(&path).ok()?.len();
    (size > BLANK_MAX_BYTES).then_some(path)
}

/// The state key's file: the one that `file` names, else the usual one. Refused where it would be
/// stolen together with what it seals.
fn state_key_file(
    settings: &Settings,
    file: &'static Key<PathBuf>,
    usual: &str,
    state_dir: &Path,
) -> Result<StateKeyFile, ConfigError> {
    let named = settings.get(file)?;
    let key_file = StateKeyFile {
        named: named.is_some(),
        path: named.unwrap_or_else(|| PathBuf::from(usual)),
    };
    if key_file.path.starts_with(state_dir) {
        return Err(ConfigError::Conflict {
            first: file.path,
            second: "state_dir",
            why: "a key that lies beside what it seals is stolen with it; keep it outside of the state directory",
        });
    }
    Ok(key_file)
}

/// How a daemon logs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// From which level on.
    pub filter: LogFilter,
    /// In which form.
    pub format: LogFormat,
}
