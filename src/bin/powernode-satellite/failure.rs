//! How a command ends: the exit codes of the README and one message on standard error.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use powernode_satellite::base::limit::error_chain;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// 1: it failed.
    pub fn failed(error: impl Error + 'static) -> Self {
        Self {
            code: 1,
            message: error_chain(&error),
        }
    }

    /// 1: the daemon of this box said no.
    pub fn refused_here(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }

    /// 2: wrong usage or configuration.
    pub fn usage(error: impl Error + 'static) -> Self {
        Self {
            code: 2,
            message: error_chain(&error),
        }
    }

    /// 3: this box has not joined.
    pub fn not_joined(message: impl Into<String>) -> Self {
        Self {
            code: 3,
            message: message.into(),
        }
    }

    /// 4: refused by the parent.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            code: 4,
            message: message.into(),
        }
    }

    /// 5: the parent cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            code: 5,
            message: message.into(),
        }
    }

    /// Writes the message and gives the code.
    pub fn report(&self) -> ExitCode {
        // A closed standard error cannot be told about.
        let _ = writeln!(std::io::stderr(), "powernode-satellite: {}", self.message);
        ExitCode::from(self.code)
    }
}
