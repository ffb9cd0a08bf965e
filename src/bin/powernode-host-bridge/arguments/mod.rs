//! The command line of `powernode-host-bridge`. What a key of the configuration also sets goes
//! through the configuration's own checks.

#![allow(
    clippy::doc_markdown,
    reason = "clap shows these comments on the terminal as they stand"
)]

pub mod operators;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use powernode_satellite::base::id::CertificateDigest;
use powernode_satellite::cli::audit::AuditCommand;
use powernode_satellite::cli::from_here;
use powernode_satellite::contract::invitation::{HostPort, ParentUrl};
use powernode_satellite::process::config::duration::HumaneDuration;
use powernode_satellite::process::config::host_bridge::ServerName;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};

use self::operators::OperatorsCommand;

/// Takes in satellites from behind any NAT, and lets their parent reach them.
#[derive(Parser)]
#[command(name = "powernode-host-bridge", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no registry (run `init`), \
                  4 refused, 5 a peer or the daemon cannot be reached.\nWhile the daemon runs, commands go through \
                  its socket; otherwise they work on the registry itself.\nEvery configuration key can also be set \
                  in the environment: see `powernode-host-bridge config show`."
)]
pub struct Arguments {
    /// Configuration file [default: /etc/powernode-host-bridge/host-bridge.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Directory of the registry
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,

    /// File with the key that seals the state
    #[arg(long, global = true, value_name = "FILE")]
    state_key_file: Option<String>,

    /// Socket of the running host-bridge
    #[arg(long, global = true, value_name = "PATH")]
    admin_socket: Option<String>,

    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Make the registry, its certificate authority and the first operator
    Init(InitArguments),
    /// Run the host-bridge
    Run,
    /// Invite a satellite: print its join code and token, once
    Invite(InviteArguments),
    /// Look at peers and change them
    Peers {
        #[command(subcommand)]
        command: PeersCommand,
    },
    /// Acceptance tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Access grants
    Grants {
        #[command(subcommand)]
        command: GrantsCommand,
    },
    /// Send a GET to a peer through its tunnel and print the answer's body
    Request {
        /// Id or name
        peer: String,
        /// Path such as /federation_api/service_catalog
        path: String,
    },
    /// Carry standard input and output to a service of a peer, as ssh's ProxyCommand does
    Connect(ConnectArguments),
    /// Listen on a port of this machine and carry its connections to a service of a peer
    Forward(ForwardArguments),
    /// Sessions to services that are in flight
    Sessions {
        #[command(subcommand)]
        command: SessionsCommand,
    },
    /// Who may use this host-bridge over HTTPS, for what, and at which peers
    Operators {
        #[command(subcommand)]
        command: OperatorsCommand,
    },
    /// The log of what peers and operators did
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// The certificate authority
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Show the health of the bridge and of every peer
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Find out by trying whether satellites would reach this host-bridge, and what to do where not
    ///
    /// Works beside the running host-bridge. Ends with 0 when they would, with 1 when not.
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether this program can run with the configuration and state that it finds, changing nothing
    ///
    /// For before an update: run the new program's self-check while the old one still runs. Ends with 0 when it can
    /// run, with 1 when it cannot.
    SelfCheck {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Copy the registry to a new file, also while the daemon runs
    Backup(BackupArguments),
    /// Put a backup in the registry's place, while the daemon is stopped; what was there is kept
    Restore {
        /// File that `backup` made
        file: PathBuf,
    },
    /// The key that seals the state
    StateKey {
        #[command(subcommand)]
        command: StateKeyCommand,
    },
    /// Print the version
    Version,
    /// Print what may stand in the last word, for the shells
    #[command(hide = true)]
    Complete {
        /// The words typed so far, without the program's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Where the copy goes.
#[derive(Args)]
pub struct BackupArguments {
    /// File that is to be made
    #[arg(required_unless_present = "into", conflicts_with = "into")]
    pub file: Option<PathBuf>,

    /// Directory in which a file is to be made that is called after the time
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,

    /// How many such files stay there; the oldest go [default: all stay]
    #[arg(long, value_name = "NUMBER", requires = "into", conflicts_with = "file")]
    pub keep: Option<NonZeroUsize>,
}

/// How the bridge is found from outside.
#[derive(Args)]
pub struct InitArguments {
    /// URL under which satellites know this parent, https://host[:port]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<ParentUrl>,

    /// Further name or address in the server certificate; repeat for several
    #[arg(long = "public-name", value_name = "NAME")]
    pub public_names: Vec<ServerName>,

    /// Address that join codes give to satellites, host:port; repeat for several [default: that of the URL]
    #[arg(long = "bridge", value_name = "ADDRESS")]
    pub bridges: Vec<HostPort>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which host-bridge.
#[derive(Args)]
pub struct BridgeArguments {
    /// URL of a host-bridge elsewhere, https://host[:port] [default: the one on this machine]
    #[arg(long, value_name = "URL")]
    pub bridge: Option<ParentUrl>,

    /// CA certificate by which it is known, as `ca show` prints it there [default: the system's roots]
    #[arg(long, value_name = "FILE", requires = "bridge")]
    pub ca_file: Option<PathBuf>,

    /// File with your operator token there [default: POWERNODE_OPERATOR_TOKEN in the environment]
    #[arg(long, value_name = "FILE", requires = "bridge")]
    pub token_file: Option<PathBuf>,
}

/// Which service.
#[derive(Args)]
#[command(after_help = "Example: ssh -o ProxyCommand='powernode-host-bridge connect %h ssh' shop-17")]
pub struct ConnectArguments {
    /// Id or name of the peer
    pub peer: String,

    /// Name of the service
    pub service: String,

    #[command(flatten)]
    pub bridge: BridgeArguments,
}

/// What to forward, and from where.
#[derive(Args)]
pub struct ForwardArguments {
    /// Id or name of the peer
    pub peer: String,

    /// Name of the service
    pub service: String,

    /// Address and port to listen on; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = address_and_port)]
    pub listen: SocketAddr,

    /// Carry packets (UDP), for a service that is published with protocol udp
    #[arg(long)]
    pub udp: bool,

    /// Listen on an address that other machines reach: whoever connects acts with your rights
    #[arg(long)]
    pub expose: bool,

    #[command(flatten)]
    pub bridge: BridgeArguments,
}

/// What to do with sessions.
#[derive(Subcommand)]
pub enum SessionsCommand {
    /// List those in flight
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End one
    Cut {
        /// Its id, or as much of it as is not ambiguous
        id: String,
        /// Why; its user is told
        #[arg(long)]
        reason: Option<String>,
    },
}

/// How a child is treated.
#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    /// This parent operates the child under a grant
    ManagedChild,
    /// An equal; no operator grant
    AutonomousPeer,
    /// A member of the parent's cluster; no operator grant
    ClusterMember,
    /// Agreed elsewhere; nothing follows from it
    OutOfBand,
}

/// Whom to invite.
#[derive(Args)]
pub struct InviteArguments {
    /// What to call the peer
    #[arg(long)]
    pub name: String,

    /// How long the token is good for, such as 30m or 7d [default: tokens.acceptance_ttl]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<HumaneDuration>,

    /// What the peer is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,

    /// How the child is treated
    #[arg(
        long = "mode",
        alias = "spawn-mode",
        value_enum,
        default_value = "managed-child"
    )]
    pub spawn_mode: Mode,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do with peers.
#[derive(Subcommand)]
pub enum PeersCommand {
    /// List peers
    List {
        /// Revoked peers too
        #[arg(long)]
        all: bool,
        /// Print JSON: all peers
        #[arg(long)]
        json: bool,
    },
    /// Show one peer
    Show {
        /// Id or name
        peer: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Pause a peer: its tunnel is closed and its calls are refused
    Suspend {
        /// Id or name
        peer: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended peer go on
    Resume {
        /// Id or name
        peer: String,
    },
    /// Take the key with which a peer was turned away, in the place of those that it has enrolled
    Readmit {
        /// Id or name
        peer: String,
        /// Only with this certificate, whose SHA-256 `powernode-satellite status` shows on the box; also before it
        /// comes
        #[arg(long, value_name = "SHA256")]
        fingerprint: Option<CertificateDigest>,
    },
    /// End a peering for good
    Revoke {
        /// Id or name
        peer: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
}

/// What to do with tokens.
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Mint a token for a peer; its earlier one is not known any more
    Mint {
        /// Id or name
        peer: String,
        /// How long the token is good for, such as 30m or 7d [default: tokens.acceptance_ttl]
        #[arg(long, value_name = "DURATION")]
        ttl: Option<HumaneDuration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What to do with grants.
#[derive(Subcommand)]
pub enum GrantsCommand {
    /// List grants
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Grant a peer's subject access; print the bearer token, once
    Create(GrantArguments),
    /// End a grant
    Revoke {
        /// Id
        grant: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
}

/// What to grant.
#[derive(Args)]
pub struct GrantArguments {
    /// Id or name of the peer
    pub peer: String,
    /// Who at the peer
    #[arg(long, value_name = "SUBJECT")]
    pub subject: String,
    /// What kind of resource
    #[arg(long, value_name = "KIND")]
    pub kind: String,
    /// Which resource [default: all of the kind]
    #[arg(long, value_name = "ID")]
    pub resource: Option<String>,
    /// read, write, admin or migrate; repeat for several
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    pub scopes: Vec<String>,
    /// Node instance that may act; repeat for several [default: any]
    #[arg(long = "instance", value_name = "UUID")]
    pub instances: Vec<String>,
    /// Network over which it may act; repeat for several [default: any]
    #[arg(long = "network", value_name = "UUID")]
    pub networks: Vec<String>,
    /// Source address or network; repeat for several [default: any]
    #[arg(long = "source", value_name = "CIDR")]
    pub sources: Vec<String>,
    /// How long, at least 7d [default: 30d]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<HumaneDuration>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do with the certificate authority.
#[derive(Subcommand)]
pub enum CaCommand {
    /// Print its certificate, for --ca-file and --cacert
    Show {
        /// Print JSON, with the fingerprint
        #[arg(long)]
        json: bool,
    },
    /// Make a new authority; the present one vouches for it and is taken for the time of the overlap
    Rotate {
        /// How long both count, such as 100d [default: authority.rotation_overlap]
        #[arg(long, value_name = "DURATION")]
        overlap: Option<HumaneDuration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End the overlap: what the old authority has issued is not taken any more
    Retire {
        /// Even if satellites have to rejoin after it
        #[arg(long)]
        force: bool,
    },
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

impl Arguments {
    /// The file to read.
    pub fn config_file(&self) -> ConfigFile {
        self.config.clone().map_or(ConfigFile::Default, ConfigFile::Named)
    }

    /// What the command line sets of the configuration: paths, from where the command is run.
    pub fn flags(&self) -> Flags {
        let set = [
            ("state_dir", &self.state_dir),
            ("state_key_file", &self.state_key_file),
            ("admin_socket", &self.admin_socket),
        ];
        set.into_iter()
            .filter_map(|(path, value)| Some((path, from_here(value.as_ref()?))))
            .collect()
    }
}

fn address_and_port(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
}
