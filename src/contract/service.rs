//! What a satellite publishes: a service's name, protocol, local address, health check and limits, and
//! how it is told to the parent (the catalog of contract section 8, `capabilities` of section 5). Pure:
//! knows no socket and no store, and whether anybody may reach a service is not decided here.
//!
//! [`ServiceFields`] is what somebody has written down; [`ServiceDefinition`] is the same once it has
//! been found to make sense, and the only thing that can be published.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::limit::foreign_text;

/// Longest name, in bytes: a label of a host name, so that `web.shop-17.satellite` is a name.
pub const SERVICE_NAME_MAX_BYTES: usize = 63;

/// Longest description, in characters: a line of a list.
pub const DESCRIPTION_MAX_CHARS: usize = 200;

/// Longest path of a Unix socket, in bytes: what `sun_path` holds, without its end.
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Longest path of a health check, in bytes.
pub const CHECK_PATH_MAX_BYTES: usize = 256;

/// Most services of one satellite. All of them must fit into one heartbeat, of whose capabilities a
/// host-bridge keeps 16 KiB.
pub const SERVICES_MAX: usize = 64;

/// Most connections to one service that its own limit may allow, and so that many at once can be asked
/// for at all.
pub const CONNECTIONS_CEILING: u32 = 4_096;

/// Connections to one service at once where nothing else is said: a busy web console with some people
/// on it stays far below, a runaway client does not take all of the tunnel's streams.
pub const CONNECTIONS_DEFAULT: u32 = 256;

/// Least time between two health checks: a check is a connection, and the local program is not ours.
pub const CHECK_INTERVAL_MIN: Duration = Duration::from_secs(5);

/// Longest time between two health checks: a day-old state is none.
pub const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Time between two health checks where nothing else is said: half a heartbeat, so that each heartbeat
/// tells a fresh state.
pub const CHECK_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);

/// Least bandwidth limit, in bytes each second: below this an SSH key exchange times out.
pub const BANDWIDTH_MIN: u64 = 1_024;

/// A service's name: letters, digits and hyphens, a label of a host name. Written and compared in lower
/// case, as host names are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A text that is no name of a service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a service's name; use 1 to {SERVICE_NAME_MAX_BYTES} letters, digits and hyphens, without a \
     hyphen at either end"
)]
pub struct InvalidServiceName {
    text: String,
}

impl ServiceName {
    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, InvalidServiceName> {
        let is_label = (1..=SERVICE_NAME_MAX_BYTES).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !is_label {
            return Err(InvalidServiceName {
                text: foreign_text(text),
            });
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is spoken with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceProtocol {
    /// Bytes over TCP.
    Tcp,
    /// HTTP: what a browser or an HTTP ingress can be sent to.
    Http,
    /// Packets.
    Udp,
    /// Bytes over a Unix socket.
    Unix,
}

impl ServiceProtocol {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Tcp, Self::Http, Self::Udp, Self::Unix];

    /// The word in configuration, catalog and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Unix => "unix",
        }
    }
}

/// A text that is no protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a protocol; known are: tcp, http, udp, unix")]
pub struct UnknownProtocol {
    text: String,
}

impl FromStr for ServiceProtocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        let known = Self::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == text.trim());
        known.ok_or_else(|| UnknownProtocol {
            text: foreign_text(text),
        })
    }
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a service's program listens, as seen from this box. Host names are not resolved: what a name
/// server says must not decide what the parent reaches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LocalAddress {
    /// An IP address and a port, on this box or in its network.
    Ip(SocketAddr),
    /// A port of this box, on 127.0.0.1 or else on `[::1]`.
    Localhost(u16),
    /// The absolute path of a Unix socket.
    Socket(String),
}

/// A text that is no local address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a local address: {why}")]
pub struct InvalidLocalAddress {
    text: String,
    why: &'static str,
}

impl FromStr for LocalAddress {
    type Err = InvalidLocalAddress;

    fn from_str(text: &str) -> Result<Self, InvalidLocalAddress> {
        let text = text.trim();
        let invalid = |why| InvalidLocalAddress {
            text: foreign_text(text),
            why,
        };
        if text.starts_with('/') {
            if text.len() > SOCKET_PATH_MAX_BYTES {
                return Err(invalid("the path of a Unix socket has at most 107 bytes"));
            }
            if text.chars().any(char::is_control) {
                return Err(invalid("it has control characters in it"));
            }
            if Path::new(text).components().any(|part| part.as_os_str() == "..") {
                return Err(invalid("it goes up with `..`; write the path without"));
            }
            return Ok(Self::Socket(text.to_owned()));
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().ok().filter(|port| *port != 0);
            return port
                .map(Self::Localhost)
                .ok_or_else(|| invalid("after `localhost:` stands a port from 1 to 65535"));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            invalid(
                "write an IP address and a port such as 192.0.2.7:22 or [::1]:22, localhost:22, or the absolute path \
                 of a Unix socket; other names are not resolved",
            )
        })?;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if address.port() == 0 {
            return Err(invalid("no program listens on port 0"));
        }
        if address.ip().is_unspecified() {
            return Err(invalid(
                "it is the address of no host; write localhost:PORT for this box",
            ));
        }
        if address.ip().is_multicast() || address.ip() == IpAddr::from([255, 255, 255, 255]) {
            return Err(invalid(
                "it is the address of many hosts, and a service is on one",
            ));
        }
        Ok(Self::Ip(address))
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

/// How the satellite finds out whether a service's program is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HealthCheck {
    /// Not at all.
    #[default]
    None,
    /// It takes a connection.
    Connect,
    /// It answers a GET of this path with a status below 400.
    Http(String),
}

/// A text that is no health check.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a health check; write none, connect, or a path such as /healthz that is asked for by HTTP"
)]
pub struct InvalidHealthCheck {
    text: String,
}

impl FromStr for HealthCheck {
    type Err = InvalidHealthCheck;

    fn from_str(text: &str) -> Result<Self, InvalidHealthCheck> {
        match text.trim() {
            "none" => Ok(Self::None),
            "connect" => Ok(Self::Connect),
            path if path.starts_with('/')
                && path.len() <= CHECK_PATH_MAX_BYTES
                && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') =>
            {
                Ok(Self::Http(path.to_owned()))
            }
            other => Err(InvalidHealthCheck {
                text: foreign_text(other),
            }),
        }
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Connect => f.pad("connect"),
            Self::Http(path) => f.pad(path),
        }
    }
}

/// Types that are their text in JSON and in the store.
macro_rules! as_text {
    ($($name:ident, $error:ident;)*) => {$(
        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text! {
    ServiceName, InvalidServiceName;
    LocalAddress, InvalidLocalAddress;
    HealthCheck, InvalidHealthCheck;
}

/// A service as somebody has written it down. The order of the fields is that of the stored record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceFields {
    /// By which it is asked for.
    pub name: ServiceName,
    /// What is spoken with it.
    pub protocol: ServiceProtocol,
    /// Where its program listens.
    pub address: LocalAddress,
    /// For people; may be empty.
    #[serde(default)]
    pub description: String,
    /// Whether and how it is looked after.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// Seconds between two checks.
    #[serde(default = "default_interval")]
    pub health_interval_seconds: u64,
    /// Connections at once.
    #[serde(default = "default_connections")]
    pub max_connections: u32,
    /// Bytes each second of all its connections together, in each direction; 0 is no limit.
    #[serde(default)]
    pub bandwidth: u64,
    /// Whether its program is told the asking person's address by a PROXY protocol header, version 2.
    #[serde(default)]
    pub proxy_protocol: bool,
}

const fn default_interval() -> u64 {
    CHECK_INTERVAL_DEFAULT.as_secs()
}

const fn default_connections() -> u32 {
    CONNECTIONS_DEFAULT
}

impl ServiceFields {
    /// What the fields are called where they stand among others.
    pub const NAMES: [&'static str; 9] = [
        "name",
        "protocol",
        "address",
        "description",
        "health_check",
        "health_interval_seconds",
        "max_connections",
        "bandwidth",
        "proxy_protocol",
    ];

    /// Without description, check and limits of its own.
    pub fn new(name: ServiceName, protocol: ServiceProtocol, address: LocalAddress) -> Self {
        Self {
            name,
            protocol,
            address,
            description: String::new(),
            health_check: HealthCheck::None,
            health_interval_seconds: default_interval(),
            max_connections: default_connections(),
            bandwidth: 0,
            proxy_protocol: false,
        }
    }
}

/// Why a service makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidService {
    /// The protocol cannot be spoken at that address.
    #[error("service `{name}`: {protocol} is not spoken at `{address}`; it needs {needs}")]
    Address {
        /// Which.
        name: ServiceName,
        /// Its protocol.
        protocol: ServiceProtocol,
        /// Its address.
        address: LocalAddress,
        /// What would do.
        needs: &'static str,
    },
    /// Packets are not connections.
    #[error(
        "service `{name}`: `{what}` is for services that take connections, and udp has none; leave it out"
    )]
    NotForPackets {
        /// Which.
        name: ServiceName,
        /// The key.
        what: &'static str,
    },
    /// A number out of its bounds.
    #[error("service `{name}`: `{what}` must be {allowed}")]
    OutOfRange {
        /// Which.
        name: ServiceName,
        /// The key.
        what: &'static str,
        /// What it may be.
        allowed: String,
    },
    /// The description is too long or more than a line.
    #[error("service `{name}`: the description must be a line of at most {DESCRIPTION_MAX_CHARS} characters")]
    Description {
        /// Which.
        name: ServiceName,
    },
}

/// A service that makes sense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ServiceFields", into = "ServiceFields")]
pub struct ServiceDefinition(ServiceFields);

impl Deref for ServiceDefinition {
    type Target = ServiceFields;

    fn deref(&self) -> &ServiceFields {
        &self.0
    }
}

impl From<ServiceDefinition> for ServiceFields {
    fn from(definition: ServiceDefinition) -> Self {
        definition.0
    }
}

impl TryFrom<ServiceFields> for ServiceDefinition {
    type Error = InvalidService;

    fn try_from(fields: ServiceFields) -> Result<Self, InvalidService> {
        let name = || fields.name.clone();
        let needs = match (fields.protocol, &fields.address) {
            (ServiceProtocol::Unix, LocalAddress::Ip(_) | LocalAddress::Localhost(_)) => {
                Some("the absolute path of a Unix socket")
            }
            (ServiceProtocol::Tcp | ServiceProtocol::Udp, LocalAddress::Socket(_)) => {
                Some("an IP address and a port; a Unix socket's protocol is unix or http")
            }
            (ServiceProtocol::Unix | ServiceProtocol::Http, LocalAddress::Socket(_))
            | (
                ServiceProtocol::Tcp | ServiceProtocol::Http | ServiceProtocol::Udp,
                LocalAddress::Ip(_) | LocalAddress::Localhost(_),
            ) => None,
        };
        if let Some(needs) = needs {
            return Err(InvalidService::Address {
                name: name(),
                protocol: fields.protocol,
                address: fields.address.clone(),
                needs,
            });
        }
        if fields.protocol == ServiceProtocol::Udp {
            let what = [
                ("health_check", fields.health_check != HealthCheck::None),
                ("proxy_protocol", fields.proxy_protocol),
            ];
            if let Some((what, _)) = what.into_iter().find(|(_, is_set)| *is_set) {
                return Err(InvalidService::NotForPackets { name: name(), what });
            }
        }
        let out_of_range = |what, allowed| InvalidService::OutOfRange {
            name: name(),
            what,
            allowed,
        };
        let interval = CHECK_INTERVAL_MIN.as_secs()..=CHECK_INTERVAL_MAX.as_secs();
        if !interval.contains(&fields.health_interval_seconds) {
            let allowed = format!("from {} to {} seconds", interval.start(), interval.end());
            return Err(out_of_range("health_interval", allowed));
        }
        if !(1..=CONNECTIONS_CEILING).contains(&fields.max_connections) {
            return Err(out_of_range(
                "max_connections",
                format!("from 1 to {CONNECTIONS_CEILING}"),
            ));
        }
        if fields.bandwidth != 0 && fields.bandwidth < BANDWIDTH_MIN {
            let allowed = format!("0 for no limit, or at least {BANDWIDTH_MIN} bytes each second");
            return Err(out_of_range("bandwidth", allowed));
        }
        let long = fields.description.chars().count() > DESCRIPTION_MAX_CHARS;
        if long || fields.description.chars().any(char::is_control) {
            return Err(InvalidService::Description { name: name() });
        }
        Ok(Self(fields))
    }
}

/// What is known of a service's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceHealth {
    /// It is not looked after.
    Unchecked,
    /// The first check is under way.
    #[default]
    Unknown,
    /// It answers.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl ServiceHealth {
    /// The word in catalog and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for ServiceHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A service as the catalog offers it. Its local address is the box's own business and is not told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offering {
    /// By which it is subscribed to and asked for.
    pub slug: ServiceName,
    /// What is spoken with it.
    pub protocol: ServiceProtocol,
    /// For people.
    pub description: String,
    /// What is known of its program.
    pub health: ServiceHealth,
    /// Connections at once.
    pub max_connections: u32,
}

impl Offering {
    /// How a service is offered.
    pub fn of(service: &ServiceDefinition, health: ServiceHealth) -> Self {
        Self {
            slug: service.name.clone(),
            protocol: service.protocol,
            description: service.description.clone(),
            health,
            max_connections: service.max_connections,
        }
    }

    /// As it stands in `capabilities.services` of a heartbeat, of which all must fit into one.
    pub fn capability(&self) -> DeclaredService<'_> {
        DeclaredService {
            name: &self.slug,
            protocol: self.protocol,
            health: self.health,
        }
    }
}

/// One entry of `capabilities.services`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeclaredService<'a> {
    /// By which it is asked for.
    pub name: &'a ServiceName,
    /// What is spoken with it.
    pub protocol: ServiceProtocol,
    /// What is known of its program.
    pub health: ServiceHealth,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
