//! The tunnels, as an operator sees them.

use serde::{Deserialize, Serialize};

use crate::base::time::{UnixTime, rfc3339};

/// The tunnel.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct LinkReport {
    /// `off`, `dialing`, `connected`, `waiting`; `unknown` without a daemon.
    pub state: String,
    /// The bridge's address, while dialing or connected.
    pub bridge: Option<String>,
    /// The way in use: `direct`, `quic`, `tls` or `proxy`.
    pub transport: Option<String>,
    /// Since when it is connected.
    #[serde(with = "rfc3339::option")]
    pub since: Option<UnixTime>,
    /// When the next try starts.
    #[serde(with = "rfc3339::option")]
    pub next_attempt_at: Option<UnixTime>,
    /// Failed rounds since the last stable connection.
    pub failures: u32,
    /// The last failure, in words.
    pub last_error: Option<String>,
    /// Every host-bridge of which a tunnel is wanted, best first.
    pub bridges: Vec<BridgeReport>,
}

/// One host-bridge and how it is reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct BridgeReport {
    /// Its name and port.
    pub bridge: String,
    /// `dialing`, `connected`, `waiting`.
    pub state: String,
    /// Whether the satellite's own requests go over it.
    pub primary: bool,
    /// The address that answered.
    pub address: Option<String>,
    /// The way in use: `direct`, `quic`, `tls` or `proxy`.
    pub rung: Option<String>,
    /// Since when the tunnel is up.
    #[serde(with = "rfc3339::option")]
    pub since: Option<UnixTime>,
    /// When the next try starts, while there is no tunnel.
    #[serde(with = "rfc3339::option")]
    pub next_attempt_at: Option<UnixTime>,
    /// Failed tries since the last stable tunnel.
    pub failures: u32,
    /// The last failure, in words, while there is no tunnel.
    pub last_error: Option<String>,
    /// Tunnels before this one that end with their streams.
    pub draining: usize,
    /// Better ways than the one in use.
    pub better: Vec<BetterReport>,
    /// UDP packets that the system dropped because this program did not take them in time.
    pub udp_dropped: u64,
}

/// A better way than the one in use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct BetterReport {
    /// Its name.
    pub rung: String,
    /// Why it is not in use.
    pub why: String,
    /// When it is tried again.
    #[serde(with = "rfc3339::option")]
    pub next_try_at: Option<UnixTime>,
}
