//! Who calls, as far as the transport and the host-bridge vouch for it.

use std::net::IpAddr;

use http::HeaderMap;
use thiserror::Error;

use crate::base::id::{InstanceId, NetworkId, PeerId};
use crate::base::limit::foreign_text;
use crate::contract::{NETWORK_STATE_HEADER, SUBJECT_HEADER};
use crate::grant::NetworkPath;

/// Where a request came from (contract section 8).
const FORWARDED_FOR: &str = "x-forwarded-for";
/// The calling instance (contract section 8).
const CALLING_INSTANCE: &str = "x-calling-instance";
/// The network on which the bridge's listener stands (contract section 8).
const SDWAN_NETWORK: &str = "x-sdwan-network";

/// A caller whose certificate the transport has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiCaller {
    /// The peering that the certificate stands for.
    pub peer: PeerId,
    /// The address of the asking program.
    pub source: Option<IpAddr>,
    /// The instance that asks.
    pub instance: Option<InstanceId>,
    /// The network through which it asks.
    pub network: Option<NetworkPath>,
    /// Who asks, as the host-bridge has authenticated them.
    pub subject: Option<String>,
}

/// A header of the host-bridge's that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the header {header} holds `{value}`, which is no {wanted}")]
pub struct InvalidClaim {
    header: &'static str,
    value: String,
    wanted: &'static str,
}

impl ApiCaller {
    /// The peer itself, at this address.
    pub const fn direct(peer: PeerId, source: Option<IpAddr>) -> Self {
        Self {
            peer,
            source,
            instance: None,
            network: None,
            subject: None,
        }
    }

    /// Whom the host-bridge at the other end of the tunnel asks for: it has dropped what its own
    /// callers claimed, and sets these headers itself.
    pub fn through_bridge(peer: PeerId, headers: &HeaderMap) -> Result<Self, InvalidClaim> {
        let network = read::<NetworkId>(headers, SDWAN_NETWORK, "network id")?;
        let bridge_active = text(headers, NETWORK_STATE_HEADER) != Some("inactive");
        Ok(Self {
            peer,
            source: read(headers, FORWARDED_FOR, "address")?,
            instance: read(headers, CALLING_INSTANCE, "instance id")?,
            network: network.map(|id| NetworkPath { id, bridge_active }),
            subject: text(headers, SUBJECT_HEADER).map(foreign_text),
        })
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then_some(value)
}

fn read<T: std::str::FromStr>(
    headers: &HeaderMap,
    header: &'static str,
    wanted: &'static str,
) -> Result<Option<T>, InvalidClaim> {
    let Some(value) = text(headers, header) else {
        return Ok(None);
    };
    // Of a chain of proxies the last entry is the one that our bridge has seen itself.
    let last = value.rsplit(',').next().unwrap_or(value).trim();
    last.parse().map(Some).map_err(|_| InvalidClaim {
        header,
        value: foreign_text(value),
        wanted,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Result<ApiCaller, InvalidClaim> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let peer = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap();
        ApiCaller::through_bridge(peer, &headers)
    }

    #[test]
    fn what_the_bridge_vouches_for_is_read() {
        let caller = read(&[
            (FORWARDED_FOR, "198.51.100.1, 203.0.113.9"),
            (CALLING_INSTANCE, "0192F0C1-1111-7111-8111-111111111111"),
            (SDWAN_NETWORK, "0192f0c1-3333-7333-8333-333333333333"),
            (SUBJECT_HEADER, "anna"),
        ])
        .unwrap();
        assert_eq!(caller.source, Some(IpAddr::from([203, 0, 113, 9])));
        assert_eq!(
            caller.instance.unwrap().to_string(),
            "0192f0c1-1111-7111-8111-111111111111"
        );
        assert!(caller.network.unwrap().bridge_active);
        assert_eq!(caller.subject.as_deref(), Some("anna"));
        let down = read(&[
            (SDWAN_NETWORK, "0192f0c1-3333-7333-8333-333333333333"),
            (NETWORK_STATE_HEADER, "inactive"),
        ]);
        assert!(!down.unwrap().network.unwrap().bridge_active);
    }

    #[test]
    fn what_says_nothing_is_no_claim_and_what_is_wrong_is_refused() {
        let nobody = read(&[(FORWARDED_FOR, " "), (SUBJECT_HEADER, "")]).unwrap();
        assert_eq!(nobody, ApiCaller::direct(nobody.peer, None));
        for (name, value) in [
            (FORWARDED_FOR, "203.0.113.9:22"),
            (CALLING_INSTANCE, "x"),
            (SDWAN_NETWORK, "*"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
