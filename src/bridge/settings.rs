//! What the configuration and the registry together say to each part of the bridge.

use std::net::SocketAddr;

use super::access::AccessLimits;
use super::ingress::IngressSettings;
use super::operator_api::PEER_PREFIX;
use super::registry::record::PublicRecord;
use super::session::SessionLimits;
use crate::base::id::{NetworkId, PeerId};
use crate::contract::invitation::{HostPort, ParentUrl};
use crate::contract::message::OurEndpoint;
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::platform::PlatformConfig;
use crate::tunnel::quic::QuicSettings;

/// The port of a URL that names none.
const DEFAULT_HTTPS_PORT: u16 = 443;

/// Names in the certificate of a bridge that nobody has named.
const LOCAL_NAMES: &[&str] = &["localhost", "127.0.0.1", "::1"];

/// The configuration with what `init` was told filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct BridgeSettings {
    /// The configuration.
    pub config: HostBridgeConfig,
    /// How this bridge is found from outside.
    pub public: PublicRecord,
}

impl BridgeSettings {
    /// The configuration wins over what `init` was told.
    pub fn new(config: HostBridgeConfig, told: PublicRecord) -> Self {
        let configured = &config.public;
        let public = PublicRecord {
            url: configured.url.clone().or(told.url),
            bridges: if configured.bridges.is_empty() {
                told.bridges
            } else {
                configured.bridges.clone()
            },
            names: if configured.names.is_empty() {
                told.names
            } else {
                configured.names.iter().map(ToString::to_string).collect()
            },
        };
        Self { config, public }
    }

    /// The names in the server's certificate: those set, and those under which satellites look.
    pub fn server_names(&self) -> Vec<String> {
        let url = self.public.url.as_ref().map(ParentUrl::host);
        let hosts = url.into_iter().chain(&self.public.bridges).map(HostPort::host);
        let mut names: Vec<String> = Vec::new();
        for name in self.public.names.iter().map(String::as_str).chain(hosts) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        if names.is_empty() {
            names = LOCAL_NAMES.iter().map(|name| (*name).to_owned()).collect();
        }
        names
    }

    /// Where this side can be reached, for heartbeats' answers.
    pub fn our_endpoints(&self) -> Vec<OurEndpoint> {
        let url = self.public.url.iter();
        url.map(|url| OurEndpoint {
            url: url.to_string(),
            scope: "wan".to_owned(),
        })
        .collect()
    }

    /// Where a peer is reached from outside, if it is elsewhere than where satellites look by themselves:
    /// below this side's own endpoints.
    pub fn peer_url(&self, peer: PeerId) -> Option<String> {
        let url = self.public.url.as_ref();
        if let Some(domain) = &self.config.callers.domain {
            let port = match url.map_or(DEFAULT_HTTPS_PORT, |url| url.host().port()) {
                DEFAULT_HTTPS_PORT => String::new(),
                port => format!(":{port}"),
            };
            return Some(format!("https://{peer}.{domain}{port}"));
        }
        self.config.parent.platform()?;
        url.map(|url| format!("{url}{PEER_PREFIX}{peer}"))
    }

    /// The network on which a listener stands.
    pub fn network_of(&self, listener: SocketAddr) -> Option<NetworkId> {
        let networks = &self.config.parent.platform()?.networks;
        let named = networks.iter().find(|named| named.listener == listener)?;
        Some(named.network)
    }

    /// For the session table.
    pub const fn limits(&self) -> SessionLimits {
        let limits = &self.config.limits;
        SessionLimits {
            sessions: limits.sessions as usize,
            bootstrap: limits.bootstrap_connections as usize,
            bootstrap_per_source: limits.bootstrap_connections_per_source as usize,
        }
    }

    /// Requests with tokens that are not known, of one source in a minute.
    pub const fn unknown_tokens(&self) -> u32 {
        self.config.limits.unknown_tokens_per_source_per_minute
    }

    /// For the accesses in flight.
    pub const fn access_limits(&self) -> AccessLimits {
        AccessLimits {
            sessions: self.config.limits.access_sessions as usize,
        }
    }

    /// Keys whose value differs in newer settings and takes effect at the next start only: what
    /// listeners, tunnels and the shutdown were set up with.
    pub fn awaiting_restart(&self, newer: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.config, &newer.config);
        let changed = [
            ("state_dir", old.state_dir != new.state_dir),
            ("admin_socket", old.admin_socket != new.admin_socket),
            ("listen.https", old.listen_https != new.listen_https),
            ("listen.quic", old.listen_quic != new.listen_quic),
            ("proxy.listen", old.proxy.listen != new.proxy.listen),
            ("proxy.suffix", old.proxy.suffix != new.proxy.suffix),
            (
                "callers.ca_file",
                // Standalone, the listener trusts nobody else as long as there are no others.
                old.parent.platform().is_none()
                    && old.callers.ca_file.is_some() != new.callers.ca_file.is_some(),
            ),
            (
                "platform.url",
                platform(old, |p| &p.url) != platform(new, |p| &p.url),
            ),
            (
                "platform.networks",
                platform(old, |p| &p.networks) != platform(new, |p| &p.networks),
            ),
            (
                "limits.https_connections",
                old.limits.https_connections != new.limits.https_connections,
            ),
            (
                "limits.streams_per_session",
                old.limits.streams_per_session != new.limits.streams_per_session,
            ),
            (
                "limits.stream_window_kib",
                old.limits.stream_window_kib != new.limits.stream_window_kib,
            ),
            (
                "limits.streams_to_satellite",
                old.limits.streams_to_satellite != new.limits.streams_to_satellite,
            ),
            ("metrics.listen", old.metrics_listen != new.metrics_listen),
            ("tunnel.keepalive", old.tunnel_keepalive != new.tunnel_keepalive),
            ("shutdown.drain", old.drain != new.drain),
            ("log.format", old.log.format != new.log.format),
        ];
        changed
            .into_iter()
            .filter_map(|(key, differs)| differs.then_some(key))
            .collect()
    }

    /// For tunnels over QUIC, whoever dials.
    pub const fn quic(&self) -> QuicSettings {
        QuicSettings {
            max_streams: self.config.limits.streams_per_session,
            stream_window: self.config.limits.stream_window_kib.saturating_mul(1_024),
        }
    }

    /// For tunnels as they come in.
    pub const fn ingress(&self) -> IngressSettings {
        IngressSettings {
            keepalive: self.config.tunnel_keepalive,
            max_streams: self.config.limits.streams_per_session,
            max_streams_opened: self.config.limits.streams_to_satellite,
            drain: self.config.drain,
        }
    }
}

fn platform<'a, T>(
    config: &'a HostBridgeConfig,
    part: impl Fn(&'a PlatformConfig) -> &'a T,
) -> Option<&'a T> {
    config.parent.platform().map(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::process::config::loader::{ConfigFile, Flags};
    use crate::process::environment::Environment;

    fn settings(flags: &[(&'static str, &str)], told: PublicRecord) -> BridgeSettings {
        let file = tempfile::NamedTempFile::new().unwrap();
        let flags: Flags = flags
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        let file = ConfigFile::Named(file.path().to_owned());
        let (config, _) = HostBridgeConfig::load(&file, &flags, &Environment::default()).unwrap();
        BridgeSettings::new(config, told)
    }

    #[test]
    fn the_configuration_wins_over_what_init_was_told() {
        let told = PublicRecord {
            url: Some("https://told.example.com".parse().unwrap()),
            bridges: vec!["told.example.com:9000".parse().unwrap()],
            names: vec!["also.example.com".to_owned()],
        };
        let both = settings(&[("public.url", "https://set.example.com")], told.clone());
        assert_eq!(both.our_endpoints()[0].url, "https://set.example.com");
        assert_eq!(
            both.server_names(),
            ["also.example.com", "set.example.com", "told.example.com"]
        );
        let alone = settings(&[], told);
        assert_eq!(alone.our_endpoints()[0].url, "https://told.example.com");
        assert_eq!(alone.server_names(), ["also.example.com", "told.example.com"]);
    }

    #[test]
    fn what_a_reload_cannot_change_is_named() {
        let old = settings(&[], PublicRecord::default());
        let later = [
            ("tunnel.keepalive", "10s"),
            ("shutdown.drain", "1s"),
            ("limits.streams_per_session", "8"),
            ("limits.streams_to_satellite", "8"),
            ("limits.stream_window_kib", "2560"),
            ("limits.https_connections", "8"),
            ("log.format", "json"),
            ("listen.quic", "[::]:9000"),
            ("proxy.suffix", "sat"),
        ];
        for change in later {
            let new = settings(&[change], PublicRecord::default());
            assert_eq!(old.awaiting_restart(&new), [change.0]);
        }
        let at_once = [("limits.sessions", "8"), ("heartbeat.stale_after", "10m")];
        let new = settings(&at_once, PublicRecord::default());
        assert!(old.awaiting_restart(&new).is_empty());
    }

    #[test]
    fn a_bridge_that_nobody_has_named_answers_at_home() {
        let unnamed = settings(&[], PublicRecord::default());
        assert_eq!(unnamed.server_names(), LOCAL_NAMES);
        assert!(unnamed.our_endpoints().is_empty());
    }
}
