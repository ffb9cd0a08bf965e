//! The host-bridge beside an existing platform: which platform, whom it knows, and what this end
//! shows; and by what the parent's own programs are known that reach satellites.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::uri::Scheme;
use thiserror::Error;

use super::key::{AbsolutePath, DurationBetween, Fallback, Key, ListOf, Parsed};
use super::loader::{ConfigError, Settings};
use super::secret_file::SecretFile;
use super::server_name::ServerName;
use crate::base::id::NetworkId;
use crate::base::limit::foreign_text;
use crate::contract::invitation::HostPort;

/// Longest URL of a platform, in bytes.
const URL_MAX_BYTES: usize = 2_048;

/// Most listeners of which the network is named: those of both kinds.
const NETWORKS_MAX: usize = 16;

/// Most names of programs that may reach satellites.
const SUBJECTS_MAX: usize = 32;

/// Longest common name, in characters: the upper bound of X.520.
const SUBJECT_MAX_CHARS: usize = 64;

/// Who the parent of the satellites is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentConfig {
    /// This host-bridge: it has a registry and a certificate authority.
    Standalone,
    /// A platform, beside which this host-bridge stands.
    Platform(Box<PlatformConfig>),
}

impl ParentConfig {
    /// The platform, where there is one.
    pub const fn platform(&self) -> Option<&PlatformConfig> {
        match self {
            Self::Standalone => None,
            Self::Platform(platform) => Some(platform),
        }
    }
}

/// The platform, and what this host-bridge is beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformConfig {
    /// Where the platform's API is.
    pub url: PlatformUrl,
    /// By which certificate authorities the platform's own server is known; absent, the system's.
    pub server_ca_file: Option<PathBuf>,
    /// The certificate authorities by which satellites are known.
    pub ca_file: PathBuf,
    /// What the listeners show.
    pub server: ServerFiles,
    /// The network on which each listener stands.
    pub networks: Vec<ListenerNetwork>,
    /// How long the platform may be silent on a request.
    pub timeout: Duration,
    /// How long it may say nothing of a peer that has a tunnel before it is asked.
    pub ask_after: Duration,
}

/// The listeners' certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The chain, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// By what the parent's programs are known that reach satellites below `/peers/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallersConfig {
    /// Common names of the certificates that may.
    pub subjects: Vec<CallerSubject>,
    /// The authorities that issue them; absent, the one that issues the satellites'.
    pub ca_file: Option<PathBuf>,
    /// File with a credential that they share.
    pub credential_file: Option<PathBuf>,
    /// The domain in which each peer has a name.
    pub domain: Option<ServerName>,
}

/// `http(s)://host[:port][/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformUrl {
    secure: bool,
    host: HostPort,
    authority: String,
    prefix: String,
}

/// A text that is no URL of a platform.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidPlatformUrl(&'static str);

impl PlatformUrl {
    /// Whether it is reached over TLS.
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether what is sent there can be read by others on the way.
    pub fn is_exposed(&self) -> bool {
        let name = self.host.host();
        let is_here =
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        !self.secure && !is_here
    }

    /// Host and port.
    pub const fn host(&self) -> &HostPort {
        &self.host
    }

    /// Both as the `Host` header has them.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What every path begins with; empty, or with a leading `/` and without one at the end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl fmt::Display for PlatformUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

impl FromStr for PlatformUrl {
    type Err = InvalidPlatformUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPlatformUrl> {
        let text = text.trim();
        if text.len() > URL_MAX_BYTES {
            return Err(InvalidPlatformUrl("it is too long"));
        }
        let uri: http::Uri = text.parse().map_err(|_| InvalidPlatformUrl("it is not a URL"))?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(InvalidPlatformUrl("it begins with neither https:// nor http://")),
        };
        let authority = uri
            .authority()
            .ok_or(InvalidPlatformUrl("it has no host"))?
            .as_str();
        if authority.contains('@') || uri.query().is_some() {
            return Err(InvalidPlatformUrl("it must hold neither a user name nor a query"));
        }
        let host = HostPort::parse(authority, if secure { 443 } else { 80 })
            .map_err(|_| InvalidPlatformUrl("its host or port cannot be used"))?;
        Ok(Self {
            secure,
            host,
            authority: authority.to_ascii_lowercase(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// On which network a listener stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerNetwork {
    /// The listener, as `listen.https` or `listen.quic` names it.
    pub listener: SocketAddr,
    /// The network.
    pub network: NetworkId,
}

/// A text that names no listener's network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not address:port=network-uuid")]
pub struct InvalidListenerNetwork(String);

impl FromStr for ListenerNetwork {
    type Err = InvalidListenerNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidListenerNetwork> {
        let invalid = || InvalidListenerNetwork(foreign_text(text));
        let (listener, network) = text.split_once('=').ok_or_else(invalid)?;
        Ok(Self {
            listener: listener.trim().parse().map_err(|_| invalid())?,
            network: network.trim().parse().map_err(|_| invalid())?,
        })
    }
}

impl fmt::Display for ListenerNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listener, self.network)
    }
}

/// The common name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerSubject(String);

/// A text that is no common name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a common name of 1 to {SUBJECT_MAX_CHARS} characters, without `CN=` before it")]
pub struct InvalidSubject(String);

impl CallerSubject {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CallerSubject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let name = text.trim();
        let bad = name.is_empty()
            || name.chars().nth(SUBJECT_MAX_CHARS).is_some()
            || name.chars().any(char::is_control)
            || name.to_ascii_lowercase().starts_with("cn=");
        if bad {
            return Err(InvalidSubject(foreign_text(text)));
        }
        Ok(Self(name.to_owned()))
    }
}

/// What this module's keys come to. `listeners` are the addresses of both kinds.
pub(super) fn parent(settings: &Settings, listeners: &[SocketAddr]) -> Result<ParentConfig, ConfigError> {
    let url = settings.get(&URL)?;
    let files = [
        (&CA_FILE, settings.get(&CA_FILE)?),
        (&CERTIFICATE_FILE, settings.get(&CERTIFICATE_FILE)?),
        (&KEY_FILE, settings.get(&KEY_FILE)?),
    ];
    let server_ca_file = settings.get(&SERVER_CA_FILE)?;
    let networks: Vec<ListenerNetwork> = settings.required(&NETWORKS)?;
    let Some(url) = url else {
        let set = files
            .iter()
            .find(|(_, file)| file.is_some())
            .map(|(key, _)| key.path);
        let set = set.or_else(|| server_ca_file.is_some().then_some(SERVER_CA_FILE.path));
        return match set.or_else(|| (!networks.is_empty()).then_some(NETWORKS.path)) {
            None => Ok(ParentConfig::Standalone),
            Some(first) => Err(ConfigError::Conflict {
                first,
                second: URL.path,
                why: "it is for a host-bridge beside a platform, and no platform is named; set platform.url, or leave it out",
            }),
        };
    };
    let [ca_file, certificate, key] = files.map(|(key, file)| {
        file.ok_or(ConfigError::Conflict {
            first: URL.path,
            second: key.path,
            why: "beside a platform, its certificate authorities and this server's own certificate and key are given as files: platform.ca_file, server.certificate_file and server.key_file",
        })
    });
    if !networks.iter().all(|named| listeners.contains(&named.listener)) {
        return Err(ConfigError::Conflict {
            first: NETWORKS.path,
            second: "listen.https",
            why: "a network is given for an address on which nothing listens; write it as in listen.https or listen.quic",
        });
    }
    Ok(ParentConfig::Platform(Box::new(PlatformConfig {
        url,
        server_ca_file,
        ca_file: ca_file?,
        server: ServerFiles {
            certificate: certificate?,
            key: key?,
        },
        networks,
        timeout: settings.required(&TIMEOUT)?,
        ask_after: settings.required(&ASK_AFTER)?,
    })))
}

/// The files with secrets among those that the two name.
pub(super) fn secret_files(
    parent: &ParentConfig,
    callers: &CallersConfig,
) -> impl Iterator<Item = SecretFile> {
    let key = parent.platform().map(|platform| platform.server.key.as_path());
    [
        SecretFile::named(&KEY_FILE, key),
        SecretFile::named(&CALLER_CREDENTIAL_FILE, callers.credential_file.as_deref()),
    ]
    .into_iter()
    .flatten()
}

/// By what the parent's programs are known.
pub(super) fn callers(settings: &Settings) -> Result<CallersConfig, ConfigError> {
    let callers = CallersConfig {
        subjects: settings.required(&CALLER_SUBJECTS)?,
        ca_file: settings.get(&CALLER_CA_FILE)?,
        credential_file: settings.get(&CALLER_CREDENTIAL_FILE)?,
        domain: settings.get(&CALLER_DOMAIN)?,
    };
    if callers.ca_file.is_some() && callers.subjects.is_empty() {
        return Err(ConfigError::Conflict {
            first: CALLER_CA_FILE.path,
            second: CALLER_SUBJECTS.path,
            why: "of the certificates of these authorities none may do anything; name those that may",
        });
    }
    Ok(callers)
}

/// Its sections, as the example file has them.
pub(super) const PLATFORM_SECTION: (&str, &str) = (
    "platform",
    "An existing platform that is the satellites' parent. With it, this host-bridge keeps no peers and no certificate\nauthority: it carries requests to the platform and back.",
);
pub(super) const SERVER_SECTION: (&str, &str) = (
    "server",
    "What the listeners show, beside a platform. Read again when the files change. A standalone host-bridge issues\nits own certificate.",
);
pub(super) const CALLERS_SECTION: (&str, &str) = (
    "callers",
    "The parent's programs that reach satellites at /peers/<peer id>/…. The satellite decides by the grant that they show.",
);

pub(super) static URL: Key<PlatformUrl> = Key {
    path: "platform.url",
    form: &Parsed::<PlatformUrl>::new(
        "a URL such as https://platform.example.com or http://127.0.0.1:3000, without user name and query",
    ),
    default: Fallback::Unset {
        example: "http://127.0.0.1:3000",
    },
    doc: "Where the platform's API is; what stands before /api/v1/system. Plain http only on this machine: tokens pass.",
    discreet: true,
};

pub(super) static SERVER_CA_FILE: Key<PathBuf> = Key {
    path: "platform.server_ca_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/platform-server-ca.pem",
    },
    doc: "PEM file with the authorities of the platform's own https. Without it, the system's.",
    discreet: false,
};

pub(super) static CA_FILE: Key<PathBuf> = Key {
    path: "platform.ca_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/platform-ca.pem",
    },
    doc: "PEM file with the platform's federation authorities, by which satellites' certificates are verified. Read again\nwhen it changes.",
    discreet: false,
};

pub(super) static NETWORKS: Key<Vec<ListenerNetwork>> = Key {
    path: "platform.networks",
    form: &ListOf {
        item: Parsed::<ListenerNetwork>::new("address:port=network-uuid"),
        least: 0,
        most: NETWORKS_MAX,
    },
    default: Fallback::Value(""),
    doc: "The sdwan_network_id on which a listener stands, as 192.0.2.1:8443=0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e. The\nplatform is told it of requests that come in there.",
    discreet: false,
};

pub(super) static TIMEOUT: Key<Duration> = Key {
    path: "platform.timeout",
    form: &DurationBetween(Duration::from_secs(1), Duration::from_secs(300)),
    default: Fallback::Value("25s"),
    doc: "How long the platform may be silent on a request. Satellites wait 30 s for a whole answer.",
    discreet: false,
};

pub(super) static ASK_AFTER: Key<Duration> = Key {
    path: "platform.ask_after",
    form: &DurationBetween(Duration::from_secs(5), Duration::from_secs(3_600)),
    default: Fallback::Value("5m"),
    doc: "How long the platform may say nothing of a satellite that holds a tunnel. Then this host-bridge asks for the trust\nbundle in its name; a 401 ends the tunnel, as it does after a heartbeat.",
    discreet: false,
};

pub(super) static CERTIFICATE_FILE: Key<PathBuf> = Key {
    path: "server.certificate_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/server.pem",
    },
    doc: "PEM file with the certificate of this server, then those that lead to its authority.",
    discreet: false,
};

pub(super) static KEY_FILE: Key<PathBuf> = Key {
    path: "server.key_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/server.key",
    },
    doc: "PEM file with its private key: Ed25519, ECDSA or RSA, in PKCS#8, SEC1 or PKCS#1, without a password.",
    discreet: true,
};

pub(super) static CALLER_SUBJECTS: Key<Vec<CallerSubject>> = Key {
    path: "callers.subjects",
    form: &ListOf {
        item: Parsed::<CallerSubject>::new("a common name such as platform.example.com"),
        least: 0,
        most: SUBJECTS_MAX,
    },
    default: Fallback::Value(""),
    doc: "Common names of the client certificates that may. Empty: none.",
    discreet: false,
};

pub(super) static CALLER_CA_FILE: Key<PathBuf> = Key {
    path: "callers.ca_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/callers-ca.pem",
    },
    doc: "PEM file with the authorities that issue them. Without it, those that issue the satellites' certificates. Read\nagain when it changes.",
    discreet: false,
};

pub(super) static CALLER_CREDENTIAL_FILE: Key<PathBuf> = Key {
    path: "callers.credential_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-host-bridge/callers-credential",
    },
    doc: "File with a credential of at least 32 characters, for programs without a client certificate. They show it as\nX-Powernode-Credential: Bearer …, beside the grant in Authorization. Read again when it changes.",
    discreet: true,
};

pub(super) static CALLER_DOMAIN: Key<ServerName> = Key {
    path: "callers.domain",
    form: &Parsed::<ServerName>::new("a DNS name, such as satellites.example.com"),
    default: Fallback::Unset {
        example: "satellites.example.com",
    },
    doc: "Domain in which every peer has a name, <peer id>.satellites.example.com, that leads here. The server certificate\nmust hold for *.satellites.example.com. Without it, peers have paths alone.",
    discreet: false,
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_url_has_a_scheme_a_host_and_perhaps_a_prefix() {
        let read = |text: &str| {
            let url: PlatformUrl = text.parse().ok()?;
            Some((
                url.is_secure(),
                url.host().to_string(),
                url.prefix().to_owned(),
                url.to_string(),
            ))
        };
        assert_eq!(
            read("HTTP://127.0.0.1:3000/"),
            Some((
                false,
                "127.0.0.1:3000".into(),
                String::new(),
                "http://127.0.0.1:3000".into()
            ))
        );
        assert_eq!(
            read("https://Platform.example.com/a/b/"),
            Some((
                true,
                "platform.example.com:443".into(),
                "/a/b".into(),
                "https://platform.example.com/a/b".into()
            ))
        );
        for bad in [
            "",
            "platform",
            "/a",
            "ftp://a",
            "https://u:p@a",
            "https://a?b",
            "https://",
            "https://a:x",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_passes_without_tls_stays_on_this_machine() {
        let exposed = |text: &str| text.parse::<PlatformUrl>().unwrap().is_exposed();
        for here in [
            "http://127.0.0.1:3000",
            "http://[::1]:3000",
            "http://localhost",
            "https://platform",
        ] {
            assert!(!exposed(here), "{here}");
        }
        assert!(exposed("http://platform.example.com") && exposed("http://192.0.2.1:3000"));
    }

    #[test]
    fn a_listener_stands_on_one_network() {
        let text = "[::]:8443=0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
        let read: ListenerNetwork = text.parse().unwrap();
        assert_eq!(read.to_string(), text);
        for bad in [
            "",
            "[::]:8443",
            "[::]=0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e",
            "127.0.0.1:1=x",
        ] {
            assert!(bad.parse::<ListenerNetwork>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subject_is_a_name_alone() {
        assert_eq!(" fed:x ".parse::<CallerSubject>().unwrap().as_str(), "fed:x");
        for bad in ["", " ", "CN=platform", "a\nb"] {
            assert!(bad.parse::<CallerSubject>().is_err(), "{bad}");
        }
    }
}
