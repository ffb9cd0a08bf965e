//! The satellite's keys, and what they come to.

mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keys::{
    ADMIN_SOCKET, ALLOW_PRIVATE, DATA_RESIDENCY, GRANTS_ACCEPT_UNSIGNED, HTTPS_LISTEN, KEYS, LISTEN_PORT,
    LOCATION, LOG_FORMAT, LOG_LEVEL, NODE_PLATFORM_CA, NODE_WRITE_TO, OPERATOR_CONTACT, PARENT_BRIDGES,
    PARENT_CA_FILE, PARENT_CA_SHA256, PARENT_TOKEN_FILE, PARENT_URL, PAYLOAD_FILE, PAYLOAD_FW_CFG_DIR,
    PORT_MAPPING, REACH_ENDPOINT, RECONNECT_INITIAL, RECONNECT_MAX, STATE_DIR, STATE_KEY_FILE,
    TUNNEL_CLIMB_MAX, TUNNEL_KEEPALIVE, TUNNEL_PROXY, TUNNEL_PROXY_CREDENTIALS, TUNNEL_REDUNDANCY,
    TUNNEL_TRANSPORT,
};

use super::audit::{self, RETENTION_DAYS, SATELLITE_MAX_ROWS};
use super::cluster::{self, HOOK, HOOK_TIMEOUT};
use super::key::{
    AbsolutePath, AnyKey, CountBetween, DurationBetween, Fallback, Key, Line, ListOf, Parsed, YesNo,
};
use super::loader::{ConfigError, ConfigFile, Flags, Program, Provided, Settings};
use super::metrics::{self, METRICS_LISTEN};
use super::node::{NodeFilesPlace, NodeIdentityConfig, PlatformCa};
use super::proxy::{ProxyChoice, ProxySettings};
use super::secret_file::SecretFile;
use super::services::{self, LimitsConfig};
pub use super::ways::{TunnelTransport, Ways};
use super::{LogConfig, STATE_KEY_CREDENTIAL, StateKeyFile, filled_credential, state_key_file};
use crate::audit::retention::Retention;
use crate::contract::invitation::{BRIDGES_MAX, CaFingerprint, HostPort, ParentUrl};
use crate::contract::service::ServiceDefinition;
use crate::machine::liveness::{MAX_KEEPALIVE, MIN_KEEPALIVE};
use crate::process::environment::Environment;
use crate::process::hook::Hook;
use crate::process::telemetry::{LogFilter, LogFormat};

/// The state key when nobody has named one: where the unit looks for its credential, so that a
/// command outside of the unit finds the same.
const STATE_KEY_USUAL: &str = "/etc/powernode-satellite/state-key";

/// Longest operator contact and location, in characters: an address in a line.
const DISCLOSURE_MAX_CHARS: usize = 256;

/// Longest data residency, in characters (contract section 5).
const DATA_RESIDENCY_MAX_CHARS: usize = 64;

/// Name of the credential that may hold the acceptance token.
const TOKEN_CREDENTIAL: &str = "acceptance-token";

/// Name of the credential that may hold the spawn payload.
const PAYLOAD_CREDENTIAL: &str = "federation-payload";

/// The satellite's configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SatelliteConfig {
    /// Where the store and the second copy of the identity live.
    pub state_dir: PathBuf,
    /// The state key, which seals what is secret in the state directory.
    pub state_key: StateKeyFile,
    /// Where the daemon listens for the command line.
    pub admin_socket: PathBuf,
    /// The parent, as far as the configuration names it.
    pub parent: ParentConfig,
    /// What the satellite discloses about itself.
    pub disclosure: DisclosureConfig,
    /// Where spawn payloads are looked for.
    pub payload: PayloadConfig,
    /// Longest silence on an idle tunnel before the satellite asks whether the parent is there.
    pub tunnel_keepalive: Duration,
    /// Host-bridges of which a tunnel is held at once.
    pub tunnel_redundancy: u32,
    /// Ceiling of all waits between tries of a better way than the one in use.
    pub tunnel_climb_max: Duration,
    /// By which ways the tunnel is dialled.
    pub ways: Ways,
    /// What the parent may use of this box at once.
    pub limits: LimitsConfig,
    /// The services that the configuration publishes, by name.
    pub services: Vec<ServiceDefinition>,
    /// Ceiling of the first wait between attempts to connect.
    pub reconnect_initial: Duration,
    /// Ceiling of all waits between attempts to connect.
    pub reconnect_max: Duration,
    /// Whether unsigned grant tokens are taken.
    pub accept_unsigned_grants: bool,
    /// How long the audit log is kept.
    pub audit: Retention,
    /// The node's identity, where the box is to be a node of the platform.
    pub node_identity: NodeIdentityConfig,
    /// What takes the cluster's part of an accept.
    pub cluster_hook: Option<Hook>,
    /// Ways in from outside.
    pub reach: ReachConfig,
    /// Where metrics are served.
    pub metrics_listen: Vec<SocketAddr>,
    /// The files with secrets that it names.
    pub secret_files: Vec<SecretFile>,
    /// Logs.
    pub log: LogConfig,
}

/// Ways in from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReachConfig {
    /// Where the satellite's own HTTPS listener is, if anywhere.
    pub https_listen: Option<SocketAddr>,
    /// Whether routers are asked for a port.
    pub port_mapping: bool,
    /// The UDP port that the satellite listens on for its host-bridge; 0 is the system's choice.
    pub listen_port: u16,
    /// What leads to it from outside by its owner's doing.
    pub endpoint: Option<SocketAddr>,
    /// Whether addresses count that are reachable within a site alone.
    pub allow_private: bool,
}

impl ReachConfig {
    /// Whether the satellite listens at all.
    pub const fn wants_ways_in(&self) -> bool {
        self.port_mapping || self.endpoint.is_some()
    }
}

/// The parent, as far as the configuration names it: what `join` would be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentConfig {
    /// Its URL.
    pub url: Option<ParentUrl>,
    /// Its host-bridges; empty means the URL's host and port.
    pub bridges: Vec<HostPort>,
    /// PEM file with its certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Fingerprint of its certificate authority.
    pub ca_sha256: Option<CaFingerprint>,
    /// File with the acceptance token: named by the operator, so it must exist while the satellite
    /// has not joined.
    pub token_file: Option<PathBuf>,
    /// The service manager's credential, when it holds something and `token_file` is not set.
    pub token_credential: Option<PathBuf>,
}

/// What the satellite discloses about itself in every heartbeat (contract section 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisclosureConfig {
    /// Whom to call.
    pub operator_contact: Option<String>,
    /// Where the box stands.
    pub location: Option<String>,
    /// Under which jurisdiction its data is kept.
    pub data_residency: Option<String>,
}

/// Where spawn payloads are looked for, in this order (contract section 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadConfig {
    /// The hypervisor's files.
    pub fw_cfg_dir: PathBuf,
    /// The service manager's credentials, which may hold what it has read of the hypervisor's files.
    pub credentials_dir: Option<PathBuf>,
    /// The payload file.
    pub file: PathBuf,
}

impl SatelliteConfig {
    /// Reads all layers. Blocks on files.
    pub fn load(
        file: &ConfigFile,
        flags: &Flags,
        environment: &Environment,
    ) -> Result<(Self, Settings), ConfigError> {
        let settings = Settings::load(&PROGRAM, file, flags, environment, &provided(environment))?;
        Ok((Self::from_settings(&settings, environment)?, settings))
    }

    fn from_settings(settings: &Settings, environment: &Environment) -> Result<Self, ConfigError> {
        let state_dir = settings.required(&STATE_DIR)?;
        let state_key = state_key_file(settings, &STATE_KEY_FILE, STATE_KEY_USUAL, &state_dir)?;
        let token_file = settings.get(&PARENT_TOKEN_FILE)?;
        let proxy_credentials = settings.get(&TUNNEL_PROXY_CREDENTIALS)?;
        let secret_files = [
            SecretFile::named(&STATE_KEY_FILE, Some(&state_key.path)),
            SecretFile::named(&PARENT_TOKEN_FILE, token_file.as_deref()),
            SecretFile::named(&TUNNEL_PROXY_CREDENTIALS, proxy_credentials.as_deref()),
        ];
        let token_credential = match token_file {
            Some(_) => None,
            None => filled_credential(environment, TOKEN_CREDENTIAL),
        };
        let config = Self {
            state_key,
            state_dir,
            admin_socket: settings.required(&ADMIN_SOCKET)?,
            parent: ParentConfig {
                url: settings.get(&PARENT_URL)?,
                bridges: settings.required(&PARENT_BRIDGES)?,
                ca_file: settings.get(&PARENT_CA_FILE)?,
                ca_sha256: settings.get(&PARENT_CA_SHA256)?,
                token_file,
                token_credential,
            },
            disclosure: DisclosureConfig {
                operator_contact: settings.get(&OPERATOR_CONTACT)?,
                location: settings.get(&LOCATION)?,
                data_residency: settings.get(&DATA_RESIDENCY)?,
            },
            payload: PayloadConfig {
                fw_cfg_dir: settings.required(&PAYLOAD_FW_CFG_DIR)?,
                credentials_dir: environment.directory("CREDENTIALS_DIRECTORY"),
                file: settings.required(&PAYLOAD_FILE)?,
            },
            tunnel_keepalive: settings.required(&TUNNEL_KEEPALIVE)?,
            tunnel_redundancy: settings.required(&TUNNEL_REDUNDANCY)?,
            tunnel_climb_max: settings.required(&TUNNEL_CLIMB_MAX)?,
            ways: Ways {
                transport: settings.required(&TUNNEL_TRANSPORT)?,
                proxy: ProxySettings::resolve(
                    settings.get(&TUNNEL_PROXY)?.as_ref(),
                    proxy_credentials,
                    environment,
                )
                .map_err(ConfigError::EnvironmentProxy)?,
            },
            limits: services::limits(settings)?,
            services: services::services(settings)?,
            reconnect_initial: settings.required(&RECONNECT_INITIAL)?,
            reconnect_max: settings.required(&RECONNECT_MAX)?,
            accept_unsigned_grants: settings.required(&GRANTS_ACCEPT_UNSIGNED)?,
            audit: audit::retention(settings, &SATELLITE_MAX_ROWS)?,
            node_identity: NodeIdentityConfig {
                write_to: settings.required(&NODE_WRITE_TO)?,
                platform_ca: settings.get(&NODE_PLATFORM_CA)?,
            },
            cluster_hook: cluster::hook(settings)?,
            reach: ReachConfig {
                https_listen: settings.get(&HTTPS_LISTEN)?,
                port_mapping: settings.required(&PORT_MAPPING)?,
                // The form allows no larger one.
                listen_port: u16::try_from(settings.required(&LISTEN_PORT)?).unwrap_or(0),
                endpoint: settings.get(&REACH_ENDPOINT)?,
                allow_private: settings.required(&ALLOW_PRIVATE)?,
            },
            metrics_listen: settings.required(&METRICS_LISTEN)?,
            secret_files: secret_files.into_iter().flatten().collect(),
            log: LogConfig {
                filter: settings.required(&LOG_LEVEL)?,
                format: settings.required(&LOG_FORMAT)?,
            },
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.reconnect_initial > self.reconnect_max {
            return Err(ConfigError::Conflict {
                first: RECONNECT_INITIAL.path,
                second: RECONNECT_MAX.path,
                why: "the first wait cannot be longer than the longest; lower the one or raise the other",
            });
        }
        if self.reach.endpoint.is_some() && self.reach.listen_port == 0 {
            return Err(ConfigError::Conflict {
                first: REACH_ENDPOINT.path,
                second: LISTEN_PORT.path,
                why: "what leads here from outside must lead to a fixed port; set it, too",
            });
        }
        if self.parent.ca_file.is_some() && self.parent.ca_sha256.is_some() {
            return Err(ConfigError::Conflict {
                first: PARENT_CA_FILE.path,
                second: PARENT_CA_SHA256.path,
                why: "each says alone by what the parent is known; keep one",
            });
        }
        Ok(())
    }
}

/// What systemd sets for a unit with `StateDirectory=`, `RuntimeDirectory=` and `LoadCredential=`.
fn provided(environment: &Environment) -> Provided {
    let mut provided = Provided::new();
    let mut add = |path, value: Option<PathBuf>, variable| {
        if let Some(text) = value.as_deref().and_then(Path::to_str) {
            provided.insert(path, (text.to_owned(), variable));
        }
    };
    let state = environment.directory("STATE_DIRECTORY");
    let socket = environment
        .directory("RUNTIME_DIRECTORY")
        .map(|dir| dir.join("admin.sock"));
    let payload = filled_credential(environment, PAYLOAD_CREDENTIAL);
    let state_key = filled_credential(environment, STATE_KEY_CREDENTIAL);
    add(STATE_DIR.path, state, "STATE_DIRECTORY");
    add(STATE_KEY_FILE.path, state_key, "CREDENTIALS_DIRECTORY");
    add(ADMIN_SOCKET.path, socket, "RUNTIME_DIRECTORY");
    add(PAYLOAD_FILE.path, payload, "CREDENTIALS_DIRECTORY");
    provided
}

/// The satellite's name, variables, file and keys.
pub static PROGRAM: Program = Program {
    name: "powernode-satellite",
    variable_prefix: "POWERNODE_SATELLITE_",
    default_file: "/etc/powernode-satellite/satellite.toml",
    sections: &[
        ("", "Where the satellite lives on this box."),
        (
            "parent",
            "Whom to join. Not needed with a join code or a spawn payload. Once the satellite has joined, only `bridges` is\nread any more, and the rest by a `rejoin` with a bare token.",
        ),
        (
            "disclosure",
            "What the parent is told about this box in every heartbeat. Joining is refused without a contact and\na location: the federation's rules ask for them.",
        ),
        (
            "payload",
            "Where `run` looks for an invitation that the platform has laid ready.",
        ),
        ("tunnel", "The tunnel to the parent."),
        ("reconnect", "How eagerly a lost tunnel is dialled again."),
        (
            "limits",
            "What the parent may use of this box at once. A reload changes them for new tunnels and streams.",
        ),
        ("grants", "By what the parent's people and programs may act here."),
        audit::SECTION,
        cluster::SECTION,
        (
            "node_identity",
            "The second identity of a box that its platform also runs as a node: it comes with the join, for a managed\nchild that the platform knows as one.",
        ),
        (
            "reach",
            "Ways in from outside: a port on the router, proven by the host-bridge before anybody is told of it.",
        ),
        metrics::SECTION,
        ("log", "Logs go to standard error."),
    ],
    keys: KEYS,
    families: &[&services::SERVICES],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::backoff::BackoffPolicy;
    use crate::machine::ladder::CLIMB_MAX;
    use crate::machine::uplinks::DEFAULT_REDUNDANCY;

    fn loaded(environment: &Environment, flags: &Flags) -> Result<SatelliteConfig, ConfigError> {
        let nowhere = ConfigFile::Default;
        SatelliteConfig::load(&nowhere, flags, environment).map(|(config, _)| config)
    }

    #[test]
    fn the_defaults_are_those_of_the_machines() {
        let config = loaded(&Environment::default(), &Flags::new()).unwrap();
        let policy = BackoffPolicy::default();
        assert_eq!(config.reconnect_initial, policy.initial);
        assert_eq!(config.reconnect_max, policy.max);
        assert_eq!(config.tunnel_redundancy, DEFAULT_REDUNDANCY);
        assert_eq!(config.tunnel_climb_max, CLIMB_MAX);
    }

    #[test]
    fn the_service_managers_directories_are_used() {
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join(TOKEN_CREDENTIAL), "x".repeat(43)).unwrap();
        std::fs::write(credentials.path().join(PAYLOAD_CREDENTIAL), "{}\n").unwrap();
        let environment = Environment::from_iter([
            ("STATE_DIRECTORY", "/var/lib/private/s:/other"),
            ("RUNTIME_DIRECTORY", "/run/s"),
            ("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap()),
        ]);
        let config = loaded(&environment, &Flags::new()).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/private/s"));
        assert_eq!(config.admin_socket, Path::new("/run/s/admin.sock"));
        assert_eq!(
            config.parent.token_credential,
            Some(credentials.path().join(TOKEN_CREDENTIAL))
        );
        assert_eq!(
            config.payload.file,
            Path::new("/etc/powernode/federation-payload.json"),
            "a blank credential is none"
        );
        let usual = StateKeyFile {
            path: STATE_KEY_USUAL.into(),
            named: false,
        };
        assert_eq!(config.state_key, usual, "no credential");
        let key = credentials.path().join(STATE_KEY_CREDENTIAL);
        std::fs::write(&key, "\n").unwrap();
        let config = loaded(&environment, &Flags::new()).unwrap();
        assert_eq!(config.state_key, usual, "a blank credential is none");
        std::fs::write(&key, [7; 32]).unwrap();
        let config = loaded(&environment, &Flags::new()).unwrap();
        let named = |path: PathBuf| StateKeyFile { path, named: true };
        assert_eq!(config.state_key, named(key));
        let flags = Flags::from([("state_key_file", "/run/key".to_owned())]);
        let config = loaded(&environment, &flags).unwrap();
        assert_eq!(config.state_key, named("/run/key".into()));
        let flags = Flags::from([("parent.token_file", "/run/token".to_owned())]);
        let config = loaded(&environment, &flags).unwrap();
        assert_eq!(
            config.parent.token_credential, None,
            "what the operator names comes first"
        );
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        let refused = |flags: &[(&'static str, &str)]| {
            let flags = flags
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            matches!(
                loaded(&Environment::default(), &flags),
                Err(ConfigError::Conflict { .. })
            )
        };
        assert!(refused(&[("reconnect.initial", "10s"), ("reconnect.max", "5s")]));
        assert!(refused(&[
            ("state_dir", "/data"),
            ("state_key_file", "/data/keys/state-key")
        ]));
        let fingerprint = "ab".repeat(32);
        assert!(refused(&[
            ("parent.ca_file", "/ca.pem"),
            ("parent.ca_sha256", &fingerprint)
        ]));
    }
}
