//! What is wrong with a command line, and what to type instead.

use std::fmt;

use thiserror::Error;

/// A command line that cannot be understood: what is wrong, and how its command is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    pub(super) fault: Fault,
    pub(super) usage: String,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// A name behind `--` that the command does not have.
    #[error("there is no option `{option}`{}", meant("--", *.near))]
    UnknownOption {
        /// As it was typed.
        option: String,
        /// What may have been meant.
        near: Option<&'static str>,
    },
    /// A word that is none of the commands.
    #[error("there is no command `{command}`{}", meant("", *.near))]
    UnknownCommand {
        /// As it was typed.
        command: String,
        /// What may have been meant.
        near: Option<&'static str>,
    },
    /// A word more than the command takes.
    #[error("`{0}` is one word too many")]
    Superfluous(String),
    /// An option at the end of the line, or before the next one.
    #[error("`{0}` needs a value; one that begins with a hyphen is given as `--option=-value`")]
    NoValue(String),
    /// A value for an option that is there or not.
    #[error("`{0}` takes no value")]
    UnwantedValue(String),
    /// Once is enough.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// Two that exclude each other.
    #[error("`{0}` and `{1}` cannot be given together")]
    Together(String, String),
    /// What is needed.
    #[error("missing: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// A program or command that does nothing by itself.
    #[error("say what to do; one of: {}", .0.join(", "))]
    NoCommand(Vec<&'static str>),
    /// A value that is not of its kind.
    #[error("the value of `{argument}` cannot be used: {why}")]
    Value {
        /// Whose value.
        argument: String,
        /// What its type says.
        why: String,
    },
    /// Bytes that are no text.
    #[error("the value of `{0}` is not text (UTF-8)")]
    NotText(String),
}

fn meant(hyphens: &str, near: Option<&'static str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean `{hyphens}{near}`?"))
}

impl UsageError {
    /// What is wrong.
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, usage } = self;
        write!(f, "{fault}\nusage: {usage}\n`--help` says more")
    }
}

impl std::error::Error for UsageError {}
