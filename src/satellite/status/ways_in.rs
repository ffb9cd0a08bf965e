//! The ways in from outside, as an operator sees them.

use serde::{Deserialize, Serialize};

use crate::machine::mapping_lease::MappingProtocol;
use crate::reach::port_mapping::MappingView;

/// Where the parent can call the satellite itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct HttpsReport {
    /// Its address on this box.
    pub listening: Option<std::net::SocketAddr>,
    /// Why it does not listen.
    pub error: Option<String>,
    /// What leads to it from outside, for each family of addresses; empty where nothing is looked for.
    pub mappings: Vec<MappingReport>,
}

/// The ways in from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct ReachReport {
    /// The UDP port on which the satellite can be dialled; none when it does not listen.
    pub listening: Option<u16>,
    /// One for each family of addresses.
    pub mappings: Vec<MappingReport>,
}

/// A port on a router, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct MappingReport {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// `PCP`, `NAT-PMP`, `UPnP`, `none needed` for a public address of the box's own, or `configured`.
    pub protocol: Option<String>,
    /// The router that gave it.
    pub gateway: Option<std::net::IpAddr>,
    /// Where it leads on this box.
    pub internal: Option<std::net::SocketAddr>,
    /// What leads there from outside.
    pub endpoint: Option<std::net::SocketAddr>,
    /// For how long it was given; none for ever.
    pub lease_seconds: Option<u32>,
    /// Whether the host-bridge has dialled it and still reaches it: only then is it told to others.
    pub proven: bool,
    /// Why there is none, or why it is not proven.
    pub reason: Option<String>,
}

impl MappingReport {
    /// As a keeper shows it; `configured` is an endpoint of the owner's own making.
    pub fn of(family: &str, view: &MappingView, configured: Option<std::net::SocketAddr>) -> Self {
        let lease = view.lease.as_ref();
        let is_configured = lease.is_some_and(|lease| configured == Some(lease.endpoint));
        let unasked = if is_configured {
            "configured"
        } else {
            "none needed"
        };
        Self {
            family: family.to_owned(),
            protocol: lease.map(|lease| {
                let protocol = lease.protocol.map(MappingProtocol::name);
                protocol.unwrap_or(unasked).to_owned()
            }),
            gateway: lease.and_then(|lease| lease.gateway),
            internal: lease.filter(|_| !is_configured).map(|lease| lease.internal),
            endpoint: lease.map(|lease| lease.endpoint),
            lease_seconds: lease.and_then(|lease| lease.lease_seconds),
            proven: view.endpoint.is_some(),
            reason: match (lease, view.why_not) {
                (_, Some(why)) => Some(why.to_string()),
                (Some(_), None) if view.endpoint.is_none() => {
                    Some("not proven by the host-bridge yet".to_owned())
                }
                (_, None) => None,
            },
        }
    }
}
