//! Over what the tunnel may run, as the configuration says.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::proxy::ProxySettings;

/// By which ways the tunnel is dialled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ways {
    /// Over what.
    pub transport: TunnelTransport,
    /// The proxy for TLS over TCP, and for whom it is not.
    pub proxy: ProxySettings,
}

/// Over what a tunnel runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TunnelTransport {
    /// Whatever the network lets through, QUIC where it can be.
    #[default]
    Auto,
    /// QUIC (UDP) alone.
    Quic,
    /// TLS over TCP alone, through a proxy where there is one.
    Tls,
}

/// A word that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("names no transport")]
pub struct UnknownTransport;

impl FromStr for TunnelTransport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" => Ok(Self::Quic),
            "tls" => Ok(Self::Tls),
            _ => Err(UnknownTransport),
        }
    }
}

impl fmt::Display for TunnelTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tls => "tls",
        })
    }
}
