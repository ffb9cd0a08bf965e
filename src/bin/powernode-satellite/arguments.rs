//! The command line of `powernode-satellite`. What a key of the configuration also sets goes through
//! the configuration's own checks.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use powernode_satellite::cli::audit::AuditCommand;
use powernode_satellite::contract::service::{
    CONNECTIONS_DEFAULT, HealthCheck, LocalAddress, ServiceName, ServiceProtocol,
};
use powernode_satellite::process::config::duration::HumaneDuration;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::rate::HumaneRate;

/// Joins this box to a Powernode parent and keeps it connected, from behind any NAT.
#[derive(Parser)]
#[command(name = "powernode-satellite", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not joined, 4 refused by the \
                        parent, 5 parent unreachable.\nEvery configuration key can also be set in the environment: \
                        see `powernode-satellite config show`."
)]
pub struct Arguments {
    /// Configuration file [default: /etc/powernode-satellite/satellite.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Directory of the satellite's state
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,

    /// File with the key that seals the state
    #[arg(long, global = true, value_name = "FILE")]
    state_key_file: Option<String>,

    /// Socket of the running satellite
    #[arg(long, global = true, value_name = "PATH")]
    admin_socket: Option<String>,

    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the satellite: join if invited, stay connected, send heartbeats
    Run,
    /// Join a parent
    Join(Box<JoinArguments>),
    /// Join the same parent anew with a new token: key, grants, services and logs stay
    ///
    /// For when the parent's answer was lost, the certificate has expired, or the parent does not know this
    /// peer any more. If the parent refuses, what was there goes on.
    Rejoin(Box<RejoinArguments>),
    /// Show membership, tunnel, heartbeats and certificate
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Services of this box that the parent may reach, under grants
    Services {
        /// What to do with them
        #[command(subcommand)]
        command: ServicesCommand,
    },
    /// The log of what the parent and its people did here
    Audit {
        /// What to do with it
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Grants: by what the parent's people and programs may act on this box
    Grants {
        /// What to do with them
        #[command(subcommand)]
        command: GrantsCommand,
    },
    /// Take the parent's operator rights on this box back; the peering and the heartbeat go on
    Emancipate(EmancipateArguments),
    /// Leave the parent: tell it, destroy the keys of the peering, keep the logs
    Leave(LeaveArguments),
    /// Look at the configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Find out by trying whether a satellite would work here, and what to do where not
    ///
    /// Works before the join and beside the running satellite. Ends with 0 when it would work, with 1 when not.
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether this program can run with the configuration and state that it finds, changing nothing
    ///
    /// For before an update: run the new program's self-check while the old one still runs. Ends with 0 when
    /// it can run, with 1 when it cannot.
    SelfCheck {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The key that seals the state
    StateKey {
        /// What to do with it
        #[command(subcommand)]
        command: StateKeyCommand,
    },
    /// Print the version
    Version,
}

/// What to do with grants.
#[derive(Subcommand)]
pub enum GrantsCommand {
    /// Show the grants
    List {
        /// Archived ones, too
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let somebody of the parent's act on this box
    Issue(Box<IssueArguments>),
    /// Show one grant
    Show {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a grant at once; connections under it are cut
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
        /// Why; the parent and the audit log are told
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A grant.
#[derive(Args)]
pub struct IssueArguments {
    /// Who: the name of the parent's operator, or of a program
    #[arg(long, value_name = "NAME", required_unless_present = "operator")]
    pub subject: Option<String>,

    /// The one service that it opens [default: all services]
    #[arg(long, value_name = "NAME", conflicts_with = "operator")]
    pub service: Option<String>,

    /// Give the parent its operator grant: everything, for all of its operators, for a year
    #[arg(long)]
    pub operator: bool,

    /// Another kind of resource than a service
    #[arg(long, value_name = "KIND", conflicts_with = "operator")]
    pub kind: Option<String>,

    /// What may be done: read, write, admin, migrate [default: read,write]
    #[arg(long = "scopes", value_name = "SCOPES", value_delimiter = ',')]
    pub scopes: Vec<String>,

    /// Only from these addresses or networks, such as 203.0.113.0/24 [default: any]
    #[arg(long = "source", value_name = "CIDR", value_delimiter = ',')]
    pub sources: Vec<String>,

    /// Only from these instances of the platform [default: any]
    #[arg(long = "instance", value_name = "UUID", value_delimiter = ',')]
    pub instances: Vec<String>,

    /// Only through these networks of the platform [default: any]
    #[arg(long = "network", value_name = "UUID", value_delimiter = ',')]
    pub networks: Vec<String>,

    /// How long, at least 7d [default: 30d]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<HumaneDuration>,

    /// Do not hand it to the parent through the tunnel
    #[arg(long)]
    pub no_deliver: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How to emancipate.
#[derive(Args)]
pub struct EmancipateArguments {
    /// Why; the parent and the audit log are told
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How to leave.
#[derive(Args)]
pub struct LeaveArguments {
    /// Why; the parent and the audit log are told
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do with services.
#[derive(Subcommand)]
pub enum ServicesCommand {
    /// Show what is published
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Publish a service, or change one that was published like this; it stays over restarts
    Publish(Box<PublishArguments>),
    /// Take a service back that was published like this; its connections end
    Withdraw {
        /// Its name
        #[arg(value_name = "NAME")]
        name: ServiceName,
    },
}

/// A service.
#[derive(Args)]
pub struct PublishArguments {
    /// By which it is asked for: letters, digits and hyphens
    #[arg(value_name = "NAME")]
    pub name: ServiceName,

    /// Where its program listens: an IP address and a port, localhost:PORT, or the path of a Unix socket
    #[arg(value_name = "ADDRESS")]
    pub address: LocalAddress,

    /// What is spoken with it: tcp, http, udp or unix [default: tcp, or unix for a path]
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<ServiceProtocol>,

    /// For the people at the parent's
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,

    /// How it is looked after: none, connect, or a path that is asked for by HTTP
    #[arg(long, value_name = "CHECK", default_value = "none")]
    pub health_check: HealthCheck,

    /// Time between two checks
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub health_interval: HumaneDuration,

    /// Connections to it at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = CONNECTIONS_DEFAULT)]
    pub max_connections: u32,

    /// Bytes each second of all its connections, in each direction, such as 2MiB
    #[arg(long, value_name = "RATE", default_value = "none")]
    pub bandwidth: HumaneRate,

    /// Tell its program the asking person's address by a PROXY protocol header, version 2
    #[arg(long)]
    pub proxy_protocol: bool,
}

/// What to do with the state key.
#[derive(Subcommand)]
pub enum StateKeyCommand {
    /// Take the seals off the state, while nothing runs: before the key is changed or given up
    Unseal,
}

/// What to do with the configuration.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Say whether it is good, and if not, where not
    Check,
    /// Show every key, its value and where that comes from
    Show,
}

/// How to join anew.
#[derive(Args)]
pub struct RejoinArguments {
    #[command(flatten)]
    pub join: JoinArguments,

    /// Let grants go on for the peer that this box is then, if the parent gives it another id
    #[arg(long)]
    pub rebind_grants: bool,

    /// Also when the membership works
    #[arg(long)]
    pub force: bool,
}

/// How to join.
#[derive(Args)]
pub struct JoinArguments {
    /// Join code from `powernode-host-bridge invite`; `-` reads it from standard input (safer: other users
    /// can read command lines)
    #[arg(value_name = "CODE", conflicts_with_all = ["code_file", "parent_url", "token_file", "token_stdin", "token"])]
    pub code: Option<String>,

    /// File with the join code
    #[arg(long, value_name = "FILE", conflicts_with_all = ["parent_url", "token_file", "token_stdin", "token"])]
    pub code_file: Option<PathBuf>,

    /// The parent's URL, when there is no join code
    #[arg(long, value_name = "URL")]
    parent_url: Option<String>,

    /// Address of a host-bridge, `host:port`; repeat for several [default: host and port of the URL]
    #[arg(long = "bridge", value_name = "ADDRESS")]
    bridges: Vec<String>,

    /// File with the acceptance token
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token_stdin", "token"])]
    token_file: Option<String>,

    /// Read the acceptance token from standard input
    #[arg(long, conflicts_with = "token")]
    pub token_stdin: bool,

    /// The acceptance token itself (other users can read command lines: better use one of the above)
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,

    /// PEM file with the parent's CA
    #[arg(long, value_name = "FILE", conflicts_with = "ca_sha256")]
    ca_file: Option<String>,

    /// SHA-256 fingerprint of the parent's CA
    #[arg(long, value_name = "HEX")]
    ca_sha256: Option<String>,

    /// Who answers for this box, for example ops@example.com
    #[arg(long, value_name = "TEXT")]
    contact: Option<String>,

    /// Where this box stands
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,

    /// Under which jurisdiction its data is kept
    #[arg(long, value_name = "TEXT")]
    data_residency: Option<String>,

    /// How long to wait for the outcome
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub timeout: HumaneDuration,
}

impl Arguments {
    /// The file to read.
    pub fn config_file(&self) -> ConfigFile {
        self.config.clone().map_or(ConfigFile::Default, ConfigFile::Named)
    }

    /// What the command line sets of the configuration.
    pub fn flags(&self) -> Flags {
        let mut flags = Flags::new();
        let mut set = |path: &'static str, value: Option<&String>| {
            if let Some(value) = value {
                flags.insert(path, value.clone());
            }
        };
        set("state_dir", self.state_dir.as_ref());
        set("state_key_file", self.state_key_file.as_ref());
        set("admin_socket", self.admin_socket.as_ref());
        let join = match &self.command {
            Command::Join(join) => Some(&**join),
            Command::Rejoin(rejoin) => Some(&rejoin.join),
            _ => None,
        };
        if let Some(join) = join {
            set("parent.url", join.parent_url.as_ref());
            set("parent.token_file", join.token_file.as_ref());
            set("parent.ca_file", join.ca_file.as_ref());
            set("parent.ca_sha256", join.ca_sha256.as_ref());
            set("disclosure.operator_contact", join.contact.as_ref());
            set("disclosure.location", join.location.as_ref());
            set("disclosure.data_residency", join.data_residency.as_ref());
            let bridges = join.bridges.join(",");
            set("parent.bridges", (!bridges.is_empty()).then_some(&bridges));
        }
        flags
    }
}
