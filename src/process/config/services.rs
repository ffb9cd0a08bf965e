//! The satellite's published services, `[services.NAME]`, and the limits under which the parent uses
//! them, `[limits]`.

use std::num::NonZeroU64;
use std::time::Duration;

use super::family::{Family, Member};
use super::key::{AnyKey, CountBetween, DurationBetween, Fallback, Key, Line, Parsed, YesNo};
use super::loader::{ConfigError, Settings};
use super::rate::HumaneRate;
use crate::contract::service::{
    CHECK_INTERVAL_MAX, CHECK_INTERVAL_MIN, CONNECTIONS_CEILING, DESCRIPTION_MAX_CHARS, HealthCheck,
    LocalAddress, SERVICES_MAX, ServiceDefinition, ServiceFields, ServiceName, ServiceProtocol,
};

/// What the parent may use of this box at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Streams that the parent may hold open in one tunnel.
    pub streams_per_session: u32,
    /// KiB of one stream over QUIC that may be on the way to this box or unread.
    pub stream_window_kib: u32,
    /// Bytes each second of one stream, in each direction.
    pub stream_bandwidth: Option<NonZeroU64>,
    /// Bytes each second of all streams of a tunnel together, in each direction.
    pub session_bandwidth: Option<NonZeroU64>,
    /// How long a service's program may take to answer a connection.
    pub connect_timeout: Duration,
    /// How long a flow of packets may be silent before it is forgotten.
    pub flow_idle_timeout: Duration,
}

impl LimitsConfig {
    /// The same window in bytes.
    pub const fn stream_window_bytes(&self) -> u32 {
        self.stream_window_kib.saturating_mul(1_024)
    }
}

pub(super) fn limits(settings: &Settings) -> Result<LimitsConfig, ConfigError> {
    Ok(LimitsConfig {
        streams_per_session: settings.required(&STREAMS_PER_SESSION)?,
        stream_window_kib: settings.required(&STREAM_WINDOW_KIB)?,
        stream_bandwidth: settings.required(&STREAM_BANDWIDTH)?.0,
        session_bandwidth: settings.required(&SESSION_BANDWIDTH)?.0,
        connect_timeout: settings.required(&CONNECT_TIMEOUT)?,
        flow_idle_timeout: settings.required(&FLOW_IDLE_TIMEOUT)?,
    })
}

pub(super) fn services(settings: &Settings) -> Result<Vec<ServiceDefinition>, ConfigError> {
    settings
        .members(&SERVICES)
        .map(|(name, member)| service(name, member))
        .collect()
}

fn service(name: &str, member: &Member) -> Result<ServiceDefinition, ConfigError> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| ConfigError::Section {
        origin: member.origin.clone(),
        section: member.section().to_owned(),
        source,
    };
    let fields = ServiceFields {
        name: name.parse().map_err(|error| refused(Box::new(error)))?,
        protocol: member.required(&PROTOCOL)?,
        address: member.required(&ADDRESS)?,
        description: member.get(&DESCRIPTION)?.unwrap_or_default(),
        health_check: member.required(&HEALTH_CHECK)?,
        health_interval_seconds: member.required(&HEALTH_INTERVAL)?.as_secs(),
        max_connections: member.required(&MAX_CONNECTIONS)?,
        bandwidth: member.required(&BANDWIDTH)?.0.map_or(0, NonZeroU64::get),
        proxy_protocol: member.required(&PROXY_PROTOCOL)?,
    };
    ServiceDefinition::try_from(fields).map_err(|error| refused(Box::new(error)))
}

/// The published services.
pub static SERVICES: Family = Family {
    name: "services",
    doc: "Services that the parent may reach through the tunnel, under grants; nothing else on this box or in its\nnetwork can be reached. One section each, its name is the service's. A reload (SIGHUP) adds, changes and\nremoves them without disturbing the others. `powernode-satellite services publish` adds one at run time.",
    example: "ssh",
    allowed_names: "a service's name: 1 to 63 lower-case letters, digits and hyphens",
    is_name: |name| {
        name.parse::<ServiceName>()
            .is_ok_and(|read| read.as_str() == name)
    },
    most: SERVICES_MAX,
    keys: SERVICE_KEYS,
};

static SERVICE_KEYS: &[&dyn AnyKey] = &[
    &PROTOCOL,
    &ADDRESS,
    &DESCRIPTION,
    &HEALTH_CHECK,
    &HEALTH_INTERVAL,
    &MAX_CONNECTIONS,
    &BANDWIDTH,
    &PROXY_PROTOCOL,
];

static PROTOCOL: Key<ServiceProtocol> = Key {
    path: "protocol",
    form: &Parsed::<ServiceProtocol>::new("tcp, http, udp or unix"),
    default: Fallback::Unset { example: "tcp" },
    doc: "What is spoken with it. Needed.",
    discreet: false,
};

static ADDRESS: Key<LocalAddress> = Key {
    path: "address",
    form: &Parsed::<LocalAddress>::new(
        "an IP address and a port, localhost:PORT, or the absolute path of a Unix socket",
    ),
    default: Fallback::Unset {
        example: "localhost:22",
    },
    doc: "Where its program listens. Host names are not resolved. Needed.",
    discreet: false,
};

static DESCRIPTION: Key<String> = Key {
    path: "description",
    form: &Line {
        max_chars: DESCRIPTION_MAX_CHARS,
    },
    default: Fallback::Unset {
        example: "Shell of the shop's server",
    },
    doc: "For the people at the parent's, in its catalog of services.",
    discreet: false,
};

static HEALTH_CHECK: Key<HealthCheck> = Key {
    path: "health_check",
    form: &Parsed::<HealthCheck>::new("none, connect, or a path such as /healthz that is asked for by HTTP"),
    default: Fallback::Value("none"),
    doc: "How its program is looked after; the parent is told the outcome.",
    discreet: false,
};

static HEALTH_INTERVAL: Key<Duration> = Key {
    path: "health_interval",
    form: &DurationBetween(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX),
    default: Fallback::Value("30s"),
    doc: "Time between two checks.",
    discreet: false,
};

static MAX_CONNECTIONS: Key<u32> = Key {
    path: "max_connections",
    form: &CountBetween {
        least: 1,
        most: CONNECTIONS_CEILING,
        unit: "connections",
    },
    default: Fallback::Value("256"),
    doc: "Connections to it at the same time; further ones are refused.",
    discreet: false,
};

static BANDWIDTH: Key<HumaneRate> = Key {
    path: "bandwidth",
    form: &Parsed::<HumaneRate>::new("bytes each second with a unit such as 500KB or 2MiB, or none"),
    default: Fallback::Value("none"),
    doc: "Limit of all its connections together, in each direction.",
    discreet: false,
};

static PROXY_PROTOCOL: Key<bool> = Key {
    path: "proxy_protocol",
    form: &YesNo,
    default: Fallback::Value("false"),
    doc: "Whether its program is told the asking person's address by a PROXY protocol header, version 2. The program\nmust expect it.",
    discreet: false,
};

pub(super) static STREAMS_PER_SESSION: Key<u32> = Key {
    path: "limits.streams_per_session",
    form: &CountBetween {
        least: 8,
        most: 4_096,
        unit: "streams",
    },
    default: Fallback::Value("1024"),
    doc: "Streams that the parent may hold open at the same time: each is a connection to a service or a request.\nFurther ones wait.",
    discreet: false,
};

pub(super) static STREAM_WINDOW_KIB: Key<u32> = Key {
    path: "limits.stream_window_kib",
    form: &CountBetween {
        least: 256,
        most: 16_384,
        unit: "KiB",
    },
    default: Fallback::Value("2560"),
    doc: "What of one stream over QUIC may be on the way to this box or not yet taken by a service's program. It bounds how\nfast something is sent here over a long way: 2560 are 200 Mbit/s at 100 ms, and a third of that where packets are\nlost. It takes memory only where packets are lost or a program does not read; a tunnel takes in 32 of them at most, and the unit's\nMemoryMax must hold those.",
    discreet: false,
};

pub(super) static STREAM_BANDWIDTH: Key<HumaneRate> = Key {
    path: "limits.stream_bandwidth",
    form: &Parsed::<HumaneRate>::new("bytes each second with a unit such as 500KB or 2MiB, or none"),
    default: Fallback::Value("none"),
    doc: "Limit of each connection to a service, in each direction.",
    discreet: false,
};

pub(super) static SESSION_BANDWIDTH: Key<HumaneRate> = Key {
    path: "limits.session_bandwidth",
    form: &Parsed::<HumaneRate>::new("bytes each second with a unit such as 500KB or 2MiB, or none"),
    default: Fallback::Value("none"),
    doc: "Limit of all the parent's connections to services together, in each direction.",
    discreet: false,
};

pub(super) static CONNECT_TIMEOUT: Key<Duration> = Key {
    path: "limits.connect_timeout",
    form: &DurationBetween(Duration::from_millis(100), Duration::from_secs(60)),
    default: Fallback::Value("5s"),
    doc: "How long a service's program may take to answer a connection.",
    discreet: false,
};

pub(super) static FLOW_IDLE_TIMEOUT: Key<Duration> = Key {
    path: "limits.flow_idle_timeout",
    form: &DurationBetween(Duration::from_secs(5), Duration::from_secs(3_600)),
    default: Fallback::Value("2m"),
    doc: "How long packets to and from a udp service may fail to come before the flow ends.",
    discreet: false,
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::contract::service::{CHECK_INTERVAL_DEFAULT, CONNECTIONS_DEFAULT};
    use crate::process::config::key::{Form as _, Raw};

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let text = |key: &dyn AnyKey| match key.fallback() {
            Fallback::Value(text) => Raw::Text(text.to_owned()),
            Fallback::Unset { .. } => panic!("no default"),
        };
        assert_eq!(
            MAX_CONNECTIONS.form.read(&text(&MAX_CONNECTIONS)).unwrap(),
            CONNECTIONS_DEFAULT
        );
        assert_eq!(
            HEALTH_INTERVAL.form.read(&text(&HEALTH_INTERVAL)).unwrap(),
            CHECK_INTERVAL_DEFAULT
        );
        assert!(!YesNo.read(&text(&PROXY_PROTOCOL)).unwrap());
    }
}
