//! The host-bridge's keys, and what they come to.

mod limits;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use limits::{
    ACCEPTS_PER_SOURCE, ACCESS_SESSIONS, BOOTSTRAP_CONNECTIONS, BOOTSTRAP_PER_SOURCE, HTTPS_CONNECTIONS,
    SESSIONS, STREAM_WINDOW_KIB, STREAMS_PER_SESSION, STREAMS_TO_SATELLITE, UNKNOWN_TOKENS_PER_SOURCE,
};

use super::audit::{self, HOST_BRIDGE_MAX_ROWS, RETENTION_DAYS};
use super::authority::{self, RENEW_EXPIRED_FOR, ROTATION_OVERLAP};
use super::key::{AbsolutePath, AnyKey, CountBetween, DurationBetween, Fallback, Key, ListOf, Parsed, YesNo};
use super::loader::{ConfigError, ConfigFile, Flags, Program, Provided, Settings};
use super::metrics::{self, METRICS_LISTEN};
use super::platform::{self, CallersConfig, ParentConfig};
use super::secret_file::SecretFile;
pub use super::server_name::ServerName;
use super::{LogConfig, STATE_KEY_CREDENTIAL, StateKeyFile, filled_credential, state_key_file};
use crate::audit::retention::Retention;
use crate::contract::invitation::{BRIDGES_MAX, HostPort, ParentUrl};
use crate::machine::liveness::{MAX_KEEPALIVE, MIN_KEEPALIVE};
use crate::process::environment::Environment;
use crate::process::telemetry::{LogFilter, LogFormat};

/// The state key when nobody has named one: where the unit looks for its credential, so that a
/// command outside of the unit finds the same.
const STATE_KEY_USUAL: &str = "/etc/powernode-host-bridge/state-key";

/// Most addresses that one listener has: an IPv4 and an IPv6 address of four interfaces.
const LISTEN_MAX: usize = 8;

/// Most names in the server certificate; a certificate with more no longer fits well in a handshake.
const NAMES_MAX: usize = 32;

/// Longest time that a drain may be given. The unit's `TimeoutStopSec=` is above it.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);

/// The host-bridge's configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct HostBridgeConfig {
    /// Where the registry and the certificate authority live.
    pub state_dir: PathBuf,
    /// The state key, which seals what is secret in the state directory.
    pub state_key: StateKeyFile,
    /// Where the daemon listens for the command line.
    pub admin_socket: PathBuf,
    /// Addresses of the HTTPS listener (TCP).
    pub listen_https: Vec<SocketAddr>,
    /// Addresses of the tunnel listener (UDP).
    pub listen_quic: Vec<SocketAddr>,
    /// The way to services by names.
    pub proxy: ProxyConfig,
    /// Who the satellites' parent is.
    pub parent: ParentConfig,
    /// By what the parent's programs are known that reach satellites.
    pub callers: CallersConfig,
    /// How satellites and operators reach this host-bridge.
    pub public: PublicConfig,
    /// How long an acceptance token is good for, unless `--ttl` says otherwise.
    pub acceptance_ttl: Duration,
    /// How long a used token still gives its answer to the key that used it.
    pub accept_grace: Duration,
    /// How long after its end a peer's certificate is still renewed; zero for never.
    pub renew_expired_for: Duration,
    /// How long a rotated authority is served beside the new one.
    pub rotation_overlap: Duration,
    /// Bounds.
    pub limits: LimitsConfig,
    /// Age of the last heartbeat above which a peer is degraded.
    pub stale_after: Duration,
    /// Longest silence on an idle tunnel.
    pub tunnel_keepalive: Duration,
    /// How long a shutdown waits for what is in progress.
    pub drain: Duration,
    /// How long the audit log is kept.
    pub audit: Retention,
    /// Whether satellites are dialled back at addresses that are reachable within a site alone.
    pub reach_allow_private: bool,
    /// Where metrics are served.
    pub metrics_listen: Vec<SocketAddr>,
    /// The files with secrets that it names.
    pub secret_files: Vec<SecretFile>,
    /// Logs.
    pub log: LogConfig,
}

/// How satellites and operators reach this host-bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicConfig {
    /// The parent's URL in invitations.
    pub url: Option<ParentUrl>,
    /// Addresses in join codes; empty means the URL's host and port.
    pub bridges: Vec<HostPort>,
    /// Names and addresses in the server certificate, besides those of `url` and `bridges`.
    pub names: Vec<ServerName>,
}

/// The listener that leads to services by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Its addresses; none, no listener.
    pub listen: Vec<SocketAddr>,
    /// What the names end with.
    pub suffix: String,
}

/// What bounds the host-bridge's use of memory and time by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// HTTPS connections at the same time.
    pub https_connections: u32,
    /// Tunnels without a certificate at the same time.
    pub bootstrap_connections: u32,
    /// The same from one source address.
    pub bootstrap_connections_per_source: u32,
    /// Tunnels of peers at the same time.
    pub sessions: u32,
    /// Streams that a satellite may hold open in its tunnel at the same time.
    pub streams_per_session: u32,
    /// Streams that this side opens in one tunnel at the same time.
    pub streams_to_satellite: u32,
    /// What of one stream may be on the way from a satellite or unread, in KiB.
    pub stream_window_kib: u32,
    /// Sessions of people and programs to services at the same time.
    pub access_sessions: u32,
    /// Accept requests of one source address in a minute.
    pub accepts_per_source_per_minute: u32,
    /// Requests of one source address in a minute whose operator token is not known.
    pub unknown_tokens_per_source_per_minute: u32,
}

impl HostBridgeConfig {
    /// Reads all layers. Blocks on files.
    pub fn load(
        file: &ConfigFile,
        flags: &Flags,
        environment: &Environment,
    ) -> Result<(Self, Settings), ConfigError> {
        let settings = Settings::load(&PROGRAM, file, flags, environment, &provided(environment))?;
        Ok((Self::from_settings(&settings)?, settings))
    }

    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let state_dir = settings.required(&STATE_DIR)?;
        let (listen_https, listen_quic) = (
            settings.required(&LISTEN_HTTPS)?,
            settings.required(&LISTEN_QUIC)?,
        );
        let state_key = state_key_file(settings, &STATE_KEY_FILE, STATE_KEY_USUAL, &state_dir)?;
        let parent = platform::parent(settings, &[listen_https.as_slice(), &listen_quic].concat())?;
        let callers = platform::callers(settings)?;
        let of_state = SecretFile::named(&STATE_KEY_FILE, Some(&state_key.path));
        let config = Self {
            secret_files: of_state
                .into_iter()
                .chain(platform::secret_files(&parent, &callers))
                .collect(),
            state_key,
            state_dir,
            admin_socket: settings.required(&ADMIN_SOCKET)?,
            parent,
            callers,
            listen_https,
            listen_quic,
            proxy: ProxyConfig {
                listen: settings.required(&PROXY_LISTEN)?,
                suffix: settings.required(&PROXY_SUFFIX)?.to_string(),
            },
            public: PublicConfig {
                url: settings.get(&PUBLIC_URL)?,
                bridges: settings.required(&PUBLIC_BRIDGES)?,
                names: settings.required(&PUBLIC_NAMES)?,
            },
            acceptance_ttl: settings.required(&ACCEPTANCE_TTL)?,
            accept_grace: settings.required(&ACCEPT_GRACE)?,
            renew_expired_for: settings.required(&RENEW_EXPIRED_FOR)?,
            rotation_overlap: settings.required(&ROTATION_OVERLAP)?,
            limits: LimitsConfig {
                https_connections: settings.required(&HTTPS_CONNECTIONS)?,
                bootstrap_connections: settings.required(&BOOTSTRAP_CONNECTIONS)?,
                bootstrap_connections_per_source: settings.required(&BOOTSTRAP_PER_SOURCE)?,
                sessions: settings.required(&SESSIONS)?,
                streams_per_session: settings.required(&STREAMS_PER_SESSION)?,
                streams_to_satellite: settings.required(&STREAMS_TO_SATELLITE)?,
                stream_window_kib: settings.required(&STREAM_WINDOW_KIB)?,
                access_sessions: settings.required(&ACCESS_SESSIONS)?,
                accepts_per_source_per_minute: settings.required(&ACCEPTS_PER_SOURCE)?,
                unknown_tokens_per_source_per_minute: settings.required(&UNKNOWN_TOKENS_PER_SOURCE)?,
            },
            stale_after: settings.required(&STALE_AFTER)?,
            tunnel_keepalive: settings.required(&TUNNEL_KEEPALIVE)?,
            drain: settings.required(&DRAIN)?,
            audit: audit::retention(settings, &HOST_BRIDGE_MAX_ROWS)?,
            reach_allow_private: settings.required(&REACH_ALLOW_PRIVATE)?,
            metrics_listen: settings.required(&METRICS_LISTEN)?,
            log: LogConfig {
                filter: settings.required(&LOG_LEVEL)?,
                format: settings.required(&LOG_FORMAT)?,
            },
        };
        config.check()?;
        Ok(config)
    }

    /// Whether files that others renew are part of it.
    pub const fn reads_files(&self) -> bool {
        self.parent.platform().is_some()
            || self.callers.ca_file.is_some()
            || self.callers.credential_file.is_some()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        if limits.bootstrap_connections_per_source > limits.bootstrap_connections {
            return Err(ConfigError::Conflict {
                first: BOOTSTRAP_PER_SOURCE.path,
                second: BOOTSTRAP_CONNECTIONS.path,
                why: "one source cannot have more than there are; lower the one or raise the other",
            });
        }
        Ok(())
    }
}

/// What systemd sets for a unit with `StateDirectory=` and `RuntimeDirectory=`.
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
    let state_key = filled_credential(environment, STATE_KEY_CREDENTIAL);
    add(STATE_DIR.path, state, "STATE_DIRECTORY");
    add(STATE_KEY_FILE.path, state_key, "CREDENTIALS_DIRECTORY");
    add(ADMIN_SOCKET.path, socket, "RUNTIME_DIRECTORY");
    provided
}

/// The host-bridge's name, variables, file and keys.
pub static PROGRAM: Program = Program {
    name: "powernode-host-bridge",
    variable_prefix: "POWERNODE_HOST_BRIDGE_",
    default_file: "/etc/powernode-host-bridge/host-bridge.toml",
    sections: &[
        ("", "Where the host-bridge lives on this machine."),
        ("listen", "Where satellites and operators come in."),
        (
            "proxy",
            "HTTP and SOCKS5 proxy to services of satellites, for browsers, curl and kubectl.",
        ),
        (
            "public",
            "How they find it from outside: what invitations and the server certificate name.",
        ),
        platform::PLATFORM_SECTION,
        platform::SERVER_SECTION,
        platform::CALLERS_SECTION,
        ("tokens", "Acceptance tokens."),
        authority::SECTION,
        (
            "limits",
            "Bounds on what others can make this host-bridge hold. Beyond them it answers \"busy, come again\".",
        ),
        ("heartbeat", "What is expected of the satellites."),
        ("tunnel", "The tunnels of the satellites."),
        (
            "reach",
            "Satellites ask to be dialled where they believe to be reachable.",
        ),
        ("shutdown", "How the host-bridge ends."),
        audit::SECTION,
        metrics::SECTION,
        ("log", "Logs go to standard error."),
    ],
    keys: KEYS,
    families: &[],
};

static KEYS: &[&dyn AnyKey] = &[
    &STATE_DIR,
    &STATE_KEY_FILE,
    &ADMIN_SOCKET,
    &LISTEN_HTTPS,
    &LISTEN_QUIC,
    &PROXY_LISTEN,
    &PROXY_SUFFIX,
    &PUBLIC_URL,
    &PUBLIC_BRIDGES,
    &PUBLIC_NAMES,
    &platform::URL,
    &platform::SERVER_CA_FILE,
    &platform::CA_FILE,
    &platform::NETWORKS,
    &platform::TIMEOUT,
    &platform::ASK_AFTER,
    &platform::CERTIFICATE_FILE,
    &platform::KEY_FILE,
    &platform::CALLER_SUBJECTS,
    &platform::CALLER_CA_FILE,
    &platform::CALLER_CREDENTIAL_FILE,
    &platform::CALLER_DOMAIN,
    &ACCEPTANCE_TTL,
    &ACCEPT_GRACE,
    &RENEW_EXPIRED_FOR,
    &ROTATION_OVERLAP,
    &HTTPS_CONNECTIONS,
    &BOOTSTRAP_CONNECTIONS,
    &BOOTSTRAP_PER_SOURCE,
    &SESSIONS,
    &STREAMS_PER_SESSION,
    &STREAMS_TO_SATELLITE,
    &STREAM_WINDOW_KIB,
    &ACCESS_SESSIONS,
    &ACCEPTS_PER_SOURCE,
    &UNKNOWN_TOKENS_PER_SOURCE,
    &STALE_AFTER,
    &TUNNEL_KEEPALIVE,
    &REACH_ALLOW_PRIVATE,
    &DRAIN,
    &RETENTION_DAYS,
    &HOST_BRIDGE_MAX_ROWS,
    &METRICS_LISTEN,
    &LOG_LEVEL,
    &LOG_FORMAT,
];

static STATE_DIR: Key<PathBuf> = Key {
    path: "state_dir",
    form: &AbsolutePath,
    default: Fallback::Value("/var/lib/powernode-host-bridge"),
    doc: "Directory of the registry, which holds the certificate authority's key too: back it up. Under systemd,\nStateDirectory= sets it.",
    discreet: false,
};

static STATE_KEY_FILE: Key<PathBuf> = Key {
    path: "state_key_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/credentials/powernode-host-bridge-state-key",
    },
    doc: "File with the state key, which seals the private keys in the state directory: 32 random bytes as they are, as\n64 hex digits or in base64. Under systemd, the unit's credential `state-key` takes its place. When neither is\nthere, /etc/powernode-host-bridge/state-key is looked at; without any, nothing is sealed. Losing the key is losing\nwhat it seals: see docs/OPERATING.md.",
    discreet: true,
};

static ADMIN_SOCKET: Key<PathBuf> = Key {
    path: "admin_socket",
    form: &AbsolutePath,
    default: Fallback::Value("/run/powernode-host-bridge/admin.sock"),
    doc: "Socket on which the running host-bridge answers `peers`, `invite` and the other commands. Under systemd\nit lies in RuntimeDirectory=.",
    discreet: false,
};

static LISTEN_HTTPS: Key<Vec<SocketAddr>> = Key {
    path: "listen.https",
    form: &ListOf {
        item: Parsed::<SocketAddr>::new("address:port"),
        least: 1,
        most: LISTEN_MAX,
    },
    default: Fallback::Value("[::]:8443"),
    doc: "Addresses for TCP: HTTPS for the federation's API and the operator's, and the tunnels of satellites whose\nnetworks swallow UDP. [::] takes IPv4, too, and stands for\n0.0.0.0 on a machine without IPv6.",
    discreet: false,
};

static LISTEN_QUIC: Key<Vec<SocketAddr>> = Key {
    path: "listen.quic",
    form: &ListOf {
        item: Parsed::<SocketAddr>::new("address:port"),
        least: 1,
        most: LISTEN_MAX,
    },
    default: Fallback::Value("[::]:8443"),
    doc: "Addresses for tunnels (UDP).",
    discreet: false,
};

static PROXY_LISTEN: Key<Vec<SocketAddr>> = Key {
    path: "proxy.listen",
    form: &ListOf {
        item: Parsed::<SocketAddr>::new("address:port"),
        least: 0,
        most: LISTEN_MAX,
    },
    default: Fallback::Value(""),
    doc: "Addresses of the proxy (TCP), such as 127.0.0.1:1080. Empty: none. It is spoken to without TLS, tokens included:\nkeep it on loopback or in a network that is trusted.",
    discreet: false,
};

static PROXY_SUFFIX: Key<ServerName> = Key {
    path: "proxy.suffix",
    form: &Parsed::<ServerName>::new("a DNS name, such as satellite or sat.example.com"),
    default: Fallback::Value("satellite"),
    doc: "What the names of services end with in the proxy: web.shop-17.satellite.",
    discreet: false,
};

static PUBLIC_URL: Key<ParentUrl> = Key {
    path: "public.url",
    form: &Parsed::<ParentUrl>::new(
        "a URL such as https://bridge.example.com:8443, without user name and query",
    ),
    default: Fallback::Unset {
        example: "https://bridge.example.com:8443",
    },
    doc: "The URL under which satellites know their parent. `invite` needs it; `init --public-url` sets it, too.\n\
              Where it changes, keep the earlier name in public.names: satellites that have joined use it on.",
    discreet: true,
};

static PUBLIC_BRIDGES: Key<Vec<HostPort>> = Key {
    path: "public.bridges",
    form: &ListOf {
        item: Parsed::<HostPort>::new("host:port"),
        least: 0,
        most: BRIDGES_MAX,
    },
    default: Fallback::Value(""),
    doc: "Addresses that join codes give to satellites for their tunnel. Empty: host and port of public.url.",
    discreet: false,
};

static PUBLIC_NAMES: Key<Vec<ServerName>> = Key {
    path: "public.names",
    form: &ListOf {
        item: Parsed::<ServerName>::new("a DNS name or an address"),
        least: 0,
        most: NAMES_MAX,
    },
    default: Fallback::Value(""),
    doc: "Names and addresses in the server certificate, besides those of public.url and public.bridges. A change\nmakes a new certificate at the next start.",
    discreet: false,
};

static ACCEPTANCE_TTL: Key<Duration> = Key {
    path: "tokens.acceptance_ttl",
    form: &DurationBetween(Duration::from_secs(300), Duration::from_secs(30 * 86_400)),
    default: Fallback::Value("7d"),
    doc: "How long an acceptance token is good for, unless --ttl says otherwise.",
    discreet: false,
};

static ACCEPT_GRACE: Key<Duration> = Key {
    path: "tokens.accept_grace",
    form: &DurationBetween(Duration::from_secs(60), Duration::from_secs(7 * 86_400)),
    default: Fallback::Value("24h"),
    doc: "How long a used token still gives the same answer to the same key: a satellite whose answer was lost on\nthe way asks again.",
    discreet: false,
};

static STALE_AFTER: Key<Duration> = Key {
    path: "heartbeat.stale_after",
    form: &DurationBetween(Duration::from_secs(120), Duration::from_secs(3_600)),
    default: Fallback::Value("5m"),
    doc: "Age of a satellite's last heartbeat above which it is degraded. Heartbeats come every 60 s.",
    discreet: false,
};

static TUNNEL_KEEPALIVE: Key<Duration> = Key {
    path: "tunnel.keepalive",
    form: &DurationBetween(MIN_KEEPALIVE, MAX_KEEPALIVE),
    default: Fallback::Value("45s"),
    doc: "Longest silence on an idle tunnel. Satellites begin with 20 s and find out how long the routers on the way\nremember it.",
    discreet: false,
};

static DRAIN: Key<Duration> = Key {
    path: "shutdown.drain",
    form: &DurationBetween(Duration::ZERO, DRAIN_MAX),
    default: Fallback::Value("10s"),
    doc: "How long a shutdown waits for requests in progress; a second SIGTERM ends the wait.",
    discreet: false,
};

static REACH_ALLOW_PRIVATE: Key<bool> = Key {
    path: "reach.allow_private",
    form: &YesNo,
    default: Fallback::Value("false"),
    doc: "Whether they are dialled, too, at addresses that are reachable within a site alone, and at the host-bridge's own.\nFor labs: on a real site, a satellite could have hosts of that site dialled.",
    discreet: false,
};

static LOG_LEVEL: Key<LogFilter> = Key {
    path: "log.level",
    form: &Parsed::<LogFilter>::new(
        "error, warn, info, debug, trace or off, and `target=level` pairs after a comma",
    ),
    default: Fallback::Value("info"),
    doc: "From which level on. A reload (SIGHUP) changes it without a restart.",
    discreet: false,
};

static LOG_FORMAT: Key<LogFormat> = Key {
    path: "log.format",
    form: &Parsed::<LogFormat>::new("auto, human, json or journald"),
    default: Fallback::Value("auto"),
    doc: "Form of the lines. auto: human on a terminal, journald where standard error is the journal's, else JSON.",
    discreet: false,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::peer::HEARTBEAT_STALE_AFTER;

    fn loaded(flags: &[(&'static str, &str)]) -> Result<HostBridgeConfig, ConfigError> {
        let flags = flags
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        HostBridgeConfig::load(&ConfigFile::Default, &flags, &Environment::default())
            .map(|(config, _)| config)
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        let config = loaded(&[]).unwrap();
        assert_eq!(config.stale_after, HEARTBEAT_STALE_AFTER);
        assert_eq!(config.acceptance_ttl, Duration::from_secs(604_800));
    }

    #[test]
    fn one_source_cannot_have_more_than_all() {
        let refused = loaded(&[
            ("limits.bootstrap_connections", "4"),
            ("limits.bootstrap_connections_per_source", "5"),
        ]);
        assert!(matches!(refused, Err(ConfigError::Conflict { .. })));
    }
}
