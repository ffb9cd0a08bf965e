//! The command line of `powernode-satellite`: what was asked, read by [`PROGRAM`]. What a key of the
//! configuration also sets goes through the configuration's own checks.

mod table;

use std::ffi::OsString;
use std::path::PathBuf;

use powernode_satellite::cli::audit::AuditCommand;
use powernode_satellite::cli::command_line::{Definition, Given, Read, UsageError, read};
use powernode_satellite::cli::from_here;
use powernode_satellite::contract::service::{HealthCheck, LocalAddress, ServiceName, ServiceProtocol};
use powernode_satellite::process::config::duration::HumaneDuration;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::rate::HumaneRate;

pub use table::PROGRAM;

/// What the command line asks for.
pub enum Asked {
    /// To run a command.
    Command(Box<Arguments>),
    /// For the help of the last of these, a command of the one before it.
    Help(Vec<&'static Definition>),
    /// For the version.
    Version,
}

/// A command, and where things lie.
pub struct Arguments {
    config: Option<PathBuf>,
    state_dir: Option<String>,
    state_key_file: Option<String>,
    admin_socket: Option<String>,
    pub command: Command,
}

/// What to do.
pub enum Command {
    Run,
    Join(Box<JoinArguments>),
    Rejoin(Box<RejoinArguments>),
    Status { json: bool },
    Services(ServicesCommand),
    Audit(AuditCommand),
    Grants(GrantsCommand),
    Authority(AuthorityCommand),
    Emancipate(Parting),
    Leave(Parting),
    Config(ConfigCommand),
    Doctor { json: bool },
    SelfCheck { json: bool },
    StateKey(StateKeyCommand),
    Version,
}

/// What to do with the box's own authority.
#[derive(Clone, Copy)]
pub enum AuthorityCommand {
    Rotate { json: bool },
    Retire { force: bool, json: bool },
}

/// What to do with grants.
pub enum GrantsCommand {
    List { all: bool, json: bool },
    Issue(Box<IssueArguments>),
    Show { id: String, json: bool },
    Revoke { id: String, reason: String, json: bool },
}

/// A grant.
pub struct IssueArguments {
    pub subject: Option<String>,
    pub service: Option<String>,
    pub operator: bool,
    pub kind: Option<String>,
    pub scopes: Vec<String>,
    pub sources: Vec<String>,
    pub instances: Vec<String>,
    pub networks: Vec<String>,
    pub ttl: Option<HumaneDuration>,
    pub no_deliver: bool,
    pub json: bool,
}

/// How to emancipate, or to leave.
pub struct Parting {
    pub reason: Option<String>,
    pub yes: bool,
    pub json: bool,
}

/// What to do with services.
pub enum ServicesCommand {
    List { json: bool },
    Publish(Box<PublishArguments>),
    Withdraw { name: ServiceName },
}

/// A service.
pub struct PublishArguments {
    pub name: ServiceName,
    pub address: LocalAddress,
    pub protocol: Option<ServiceProtocol>,
    pub description: String,
    pub health_check: HealthCheck,
    pub health_interval: HumaneDuration,
    pub max_connections: u32,
    pub bandwidth: HumaneRate,
    pub proxy_protocol: bool,
}

/// What to do with the state key.
#[derive(Clone, Copy)]
pub enum StateKeyCommand {
    Unseal,
}

/// What to do with the configuration.
#[derive(Clone, Copy)]
pub enum ConfigCommand {
    Check,
    Show,
}

/// How to join.
pub struct JoinArguments {
    pub code: Option<String>,
    pub code_file: Option<PathBuf>,
    parent_url: Option<String>,
    bridges: Vec<String>,
    token_file: Option<String>,
    pub token_stdin: bool,
    pub token: Option<String>,
    ca_file: Option<String>,
    ca_sha256: Option<String>,
    contact: Option<String>,
    location: Option<String>,
    data_residency: Option<String>,
    pub timeout: HumaneDuration,
}

/// How to join anew.
pub struct RejoinArguments {
    pub join: JoinArguments,
    pub rebind_grants: bool,
    pub force: bool,
    pub cancel: bool,
}

impl Asked {
    /// Reads the words behind the program's name.
    pub fn of(words: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        match read(&PROGRAM, words)? {
            Read::Command(given) => Arguments::of(&given).map(|arguments| Self::Command(Box::new(arguments))),
            Read::Help(path) => Ok(Self::Help(path)),
            Read::Version => Ok(Self::Version),
        }
    }
}

impl Command {
    fn of(given: &Given) -> Result<Self, UsageError> {
        let json = given.has("json");
        Ok(match given.command()[..] {
            ["run"] => Self::Run,
            ["join"] => Self::Join(Box::new(JoinArguments::of(given)?)),
            ["rejoin"] => Self::Rejoin(Box::new(RejoinArguments {
                join: JoinArguments::of(given)?,
                rebind_grants: given.has("rebind-grants"),
                force: given.has("force"),
                cancel: given.has("cancel"),
            })),
            ["status"] => Self::Status { json },
            ["services", "list"] => Self::Services(ServicesCommand::List { json }),
            ["services", "publish"] => {
                Self::Services(ServicesCommand::Publish(Box::new(PublishArguments::of(given)?)))
            }
            ["services", "withdraw"] => Self::Services(ServicesCommand::Withdraw {
                name: given.required("name")?,
            }),
            ["audit", which] => Self::Audit(AuditCommand::of(which, given)?),
            ["grants", which] => Self::Grants(GrantsCommand::of(which, given)?),
            ["authority", "rotate"] => Self::Authority(AuthorityCommand::Rotate { json }),
            ["authority", _] => Self::Authority(AuthorityCommand::Retire {
                force: given.has("force"),
                json,
            }),
            ["emancipate"] => Self::Emancipate(Parting::of(given)?),
            ["leave"] => Self::Leave(Parting::of(given)?),
            ["config", "check"] => Self::Config(ConfigCommand::Check),
            ["config", _] => Self::Config(ConfigCommand::Show),
            ["doctor"] => Self::Doctor { json },
            ["self-check"] => Self::SelfCheck { json },
            ["state-key", _] => Self::StateKey(StateKeyCommand::Unseal),
            _ => Self::Version,
        })
    }
}

impl GrantsCommand {
    fn of(which: &str, given: &Given) -> Result<Self, UsageError> {
        let json = given.has("json");
        Ok(match which {
            "issue" => Self::Issue(Box::new(IssueArguments {
                subject: given.text("subject")?,
                service: given.text("service")?,
                operator: given.has("operator"),
                kind: given.text("kind")?,
                scopes: given.texts("scopes")?,
                sources: given.texts("source")?,
                instances: given.texts("instance")?,
                networks: given.texts("network")?,
                ttl: given.value("ttl")?,
                no_deliver: given.has("no-deliver"),
                json,
            })),
            "show" => Self::Show {
                id: given.required("id")?,
                json,
            },
            "revoke" => Self::Revoke {
                id: given.required("id")?,
                reason: given.required("reason")?,
                json,
            },
            _ => Self::List {
                all: given.has("all"),
                json,
            },
        })
    }
}

impl Parting {
    fn of(given: &Given) -> Result<Self, UsageError> {
        Ok(Self {
            reason: given.text("reason")?,
            yes: given.has("yes"),
            json: given.has("json"),
        })
    }
}

impl PublishArguments {
    fn of(given: &Given) -> Result<Self, UsageError> {
        Ok(Self {
            name: given.required("name")?,
            address: given.required("address")?,
            protocol: given.value("protocol")?,
            description: given.required("description")?,
            health_check: given.required("health-check")?,
            health_interval: given.required("health-interval")?,
            max_connections: given.required("max-connections")?,
            bandwidth: given.required("bandwidth")?,
            proxy_protocol: given.has("proxy-protocol"),
        })
    }
}

impl JoinArguments {
    /// Whether a join code is given, in whatever way.
    pub const fn has_code(&self) -> bool {
        self.code.is_some() || self.code_file.is_some()
    }

    fn of(given: &Given) -> Result<Self, UsageError> {
        Ok(Self {
            code: given.text("code")?,
            code_file: given.path("code-file"),
            parent_url: given.text("parent-url")?,
            bridges: given.texts("bridge")?,
            token_file: given.text("token-file")?,
            token_stdin: given.has("token-stdin"),
            token: given.text("token")?,
            ca_file: given.text("ca-file")?,
            ca_sha256: given.text("ca-sha256")?,
            contact: given.text("contact")?,
            location: given.text("location")?,
            data_residency: given.text("data-residency")?,
            timeout: given.required("timeout")?,
        })
    }
}

impl Arguments {
    fn of(given: &Given) -> Result<Self, UsageError> {
        Ok(Self {
            config: given.path("config"),
            state_dir: given.text("state-dir")?,
            state_key_file: given.text("state-key-file")?,
            admin_socket: given.text("admin-socket")?,
            command: Command::of(given)?,
        })
    }

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
        let path = |given: &Option<String>| given.as_ref().map(|given| from_here(given));
        set("state_dir", path(&self.state_dir).as_ref());
        set("state_key_file", path(&self.state_key_file).as_ref());
        set("admin_socket", path(&self.admin_socket).as_ref());
        let join = match &self.command {
            Command::Join(join) => Some(&**join),
            Command::Rejoin(rejoin) => Some(&rejoin.join),
            _ => None,
        };
        if let Some(join) = join {
            set("parent.url", join.parent_url.as_ref());
            set("parent.token_file", path(&join.token_file).as_ref());
            set("parent.ca_file", path(&join.ca_file).as_ref());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that name each command, with what it needs.
    fn commands(definition: &'static Definition, words: &[&'static str], lines: &mut Vec<Vec<&'static str>>) {
        for next in definition.commands {
            let mut words = [words, &[next.name]].concat();
            if next.commands.is_empty() {
                words.extend(match words[..] {
                    ["services", "publish"] => &["web", "localhost:80"][..],
                    ["services", "withdraw"] => &["web"],
                    ["grants", "show"] => &["1"],
                    ["grants", "revoke"] => &["1", "--reason", "why"],
                    ["grants", "issue"] => &["--operator"],
                    _ => &[],
                });
                lines.push(words);
            } else {
                commands(next, &words, lines);
            }
        }
    }

    #[test]
    fn every_command_of_the_table_is_understood() {
        let mut lines = Vec::new();
        commands(&PROGRAM, &[], &mut lines);
        assert!(lines.len() > 15, "{lines:?}");
        for line in lines {
            let Ok(Asked::Command(arguments)) = Asked::of(line.iter().map(Into::into)) else {
                panic!("{line:?}");
            };
            let is_version = matches!(arguments.command, Command::Version);
            assert_eq!(
                is_version,
                line == ["version"],
                "{line:?} has no command of its own"
            );
        }
    }

    #[test]
    fn a_service_has_the_contracts_connections() {
        let words = ["services", "publish", "web", "localhost:80"];
        let Ok(Asked::Command(arguments)) = Asked::of(words.map(Into::into)) else {
            panic!("it is understood");
        };
        let Command::Services(ServicesCommand::Publish(service)) = arguments.command else {
            panic!("it is this command");
        };
        assert_eq!(
            service.max_connections,
            powernode_satellite::contract::service::CONNECTIONS_DEFAULT
        );
    }

    #[test]
    fn a_join_goes_through_the_configuration() {
        let line =
            "--state-dir /x join --parent-url https://p --bridge a:1 --bridge b:2 --token-stdin --timeout 5s";
        let Ok(Asked::Command(arguments)) = Asked::of(line.split(' ').map(Into::into)) else {
            panic!("it is understood");
        };
        let flags = arguments.flags();
        let said = |path: &str| flags.get(path).map(String::as_str);
        assert_eq!(said("state_dir"), Some("/x"));
        assert_eq!(said("parent.url"), Some("https://p"));
        assert_eq!(said("parent.bridges"), Some("a:1,b:2"));
        assert_eq!(said("parent.token_file"), None);
    }
}
