//! How a command ends: the exit codes of both programs and one message on standard error.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use crate::base::limit::error_chain;
use crate::store::database::{Holder, OpenError};

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// There is no membership, or no registry, to work on.
    NotJoined = 3,
    /// The other side said no.
    Refused = 4,
    /// The other side cannot be reached.
    Unreachable = 5,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
    holder: Option<Holder>,
}

impl Failure {
    /// With a message of its own.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            holder: None,
        }
    }

    /// With an error and its causes.
    pub fn of(code: Code, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let mut opening = causes.filter_map(|cause| cause.downcast_ref::<OpenError>());
        Self {
            holder: opening.find_map(OpenError::holder).cloned(),
            ..Self::new(code, error_chain(error))
        }
    }

    /// It failed, for a reason that has no code of its own.
    pub fn failed(error: impl Error + 'static) -> Self {
        Self::of(Code::Failed, &error)
    }

    /// Wrong usage or configuration.
    pub fn usage(error: impl Error + 'static) -> Self {
        Self::of(Code::Usage, &error)
    }

    /// What failed, why, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Who has the store, where that is why: the command has changed nothing and may be tried again.
    pub const fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// Writes the message and gives the code.
    pub fn report(&self, program: &str) -> ExitCode {
        // A closed standard error cannot be told about.
        let _ = writeln!(std::io::stderr(), "{program}: {}", self.message);
        ExitCode::from(self.code as u8)
    }
}
