//! Configuration of both programs. [`satellite`] and [`host_bridge`] are tables of keys and the
//! types that come of them; [`loader`] puts flags, environment, file and defaults together;
//! [`key`] says what values may be. Unknown keys are refused with the nearest known one, every
//! number has bounds, and every error says where it stands.
//!
//! No key holds a secret: tokens and private keys are named by the file that holds them, and a
//! value that looks misplaced is not repeated in the error.

pub mod duration;
pub mod host_bridge;
pub mod key;
pub mod loader;
pub mod satellite;

use super::telemetry::{LogFilter, LogFormat};

/// How a daemon logs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// From which level on.
    pub filter: LogFilter,
    /// In which form.
    pub format: LogFormat,
}
