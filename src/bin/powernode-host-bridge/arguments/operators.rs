//! Who may use the host-bridge over HTTPS, as the command line says it.

use std::str::FromStr;

use clap::{Args, Subcommand};
use powernode_satellite::bridge::permission::{NamePattern, Role};
use powernode_satellite::process::config::duration::{HumaneDuration, InvalidDuration};

/// What to do with operators.
#[derive(Subcommand)]
pub enum OperatorsCommand {
    /// Add an operator; print the token, once
    Add(OperatorArguments),
    /// List operators
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one operator
    Show {
        /// Id or name
        operator: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what an operator may do; the token stays
    Set(OperatorChangeArguments),
    /// Give an operator a new token and print it, once; the earlier one is not known any more
    Rotate {
        /// Id or name
        operator: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an operator; the token is not known any more
    #[command(alias = "revoke")]
    Remove {
        /// Id or name
        operator: String,
    },
}

/// Whom to add.
#[derive(Args)]
pub struct OperatorArguments {
    /// What to call them
    pub name: String,
    /// viewer (looks), operator (reaches services, pauses peers) or admin (decides who is in)
    #[arg(long, default_value = "operator")]
    pub role: Role,
    /// Names of the peers, with * and ?; several after commas [default: all]
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    pub peers: Vec<NamePattern>,
    /// Names of the services, with * and ?; several after commas [default: all]
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    pub services: Vec<NamePattern>,
    /// After how long the account ends, such as 90d, or never
    #[arg(long, value_name = "DURATION", default_value = "never")]
    pub expires: Expiry,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to change.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct OperatorChangeArguments {
    /// Id or name
    pub operator: String,
    /// viewer, operator or admin
    #[arg(long, group = "change")]
    pub role: Option<Role>,
    /// Names of the peers, with * and ?; several after commas; * is all
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',', group = "change")]
    pub peers: Option<Vec<NamePattern>>,
    /// Names of the services, with * and ?; several after commas; * is all
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',', group = "change")]
    pub services: Option<Vec<NamePattern>>,
    /// From now on, after how long the account ends, such as 90d, or never
    #[arg(long, value_name = "DURATION", group = "change")]
    pub expires: Option<Expiry>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// When an account ends.
#[derive(Clone, Copy)]
pub enum Expiry {
    /// Not by itself.
    Never,
    /// After so long.
    After(HumaneDuration),
}

impl FromStr for Expiry {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        match text {
            "never" => Ok(Self::Never),
            text => text.parse().map(Self::After),
        }
    }
}

impl Expiry {
    /// In the API's words.
    pub fn seconds(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::After(HumaneDuration(span)) => Some(span.as_secs()),
        }
    }
}
