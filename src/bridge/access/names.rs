//! Names of services and peers as people and browsers write them: `web.shop-17.satellite`.

use serde_json::Value;

use super::super::registry::record::PeerRecord;
use super::super::registry::{Ledger, RegistryError};
use crate::wire::SERVICE_NAME_MAX_BYTES;

/// A service of a peer, as a host name says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The peer, by name or id, in lower case.
    pub(super) peer: String,
    /// The service.
    pub(super) service: String,
}

impl Target {
    /// Reads `<service>.<peer>.<suffix>`, in any letter case, with or without the root's dot. A peer's
    /// name may hold dots; a service's does not.
    pub(super) fn parse(host: &str, suffix: &str) -> Option<Self> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let named = host
            .strip_suffix(&suffix.to_ascii_lowercase())?
            .strip_suffix('.')?;
        let (service, peer) = named.split_once('.')?;
        (is_service_name(service) && !peer.is_empty()).then(|| Self {
            peer: peer.to_owned(),
            service: service.to_owned(),
        })
    }
}

/// Whether a text can be the name of a service: a label of a host name.
pub fn is_service_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=SERVICE_NAME_MAX_BYTES).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A peer by id or name; a name in another letter case too, where no other peer has that: browsers
/// write all host names small.
pub(super) fn find_peer(ledger: &Ledger, asked: &str) -> Result<PeerRecord, RegistryError> {
    match ledger.peer(asked) {
        Ok(peer) => Ok(peer),
        Err(unknown @ RegistryError::UnknownPeer { .. }) => {
            let alike = |peer: &PeerRecord| {
                let name = peer.name.as_deref();
                name.is_some_and(|name| name.eq_ignore_ascii_case(asked.trim()))
            };
            let peers = ledger.peers().map_err(RegistryError::Store)?;
            let mut alike = peers.into_iter().filter(alike);
            match (alike.next(), alike.next()) {
                (Some(peer), None) => Ok(peer),
                _ => Err(unknown),
            }
        }
        Err(error) => Err(error),
    }
}

/// What a peer's last heartbeat said of its services: name and protocol.
pub fn reachable_services(peer: &PeerRecord) -> Vec<(String, Option<String>)> {
    let declared = peer.declared.capabilities.get("services");
    let services = declared.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    services
        .iter()
        .filter_map(|service| {
            let name = service.as_str().or_else(|| service["name"].as_str())?;
            let protocol = service["protocol"].as_str().map(ToOwned::to_owned);
            is_service_name(name).then(|| (name.to_owned(), protocol))
        })
        .collect()
}

/// What a peer says of a service's protocol, where it says anything.
pub(super) fn protocol_of(peer: &PeerRecord, service: &str) -> Option<String> {
    let mut services = reachable_services(peer).into_iter();
    services.find_map(|(name, protocol)| (name == service).then_some(protocol).flatten())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_host_name_is_a_service_and_a_peer() {
        let read = |host| Target::parse(host, "satellite").map(|target| (target.service, target.peer));
        let shop = Some(("web".to_owned(), "shop-17".to_owned()));
        assert_eq!(read("web.shop-17.satellite"), shop);
        assert_eq!(read("WEB.Shop-17.Satellite."), shop);
        assert_eq!(
            read("web.hall.shop-17.satellite"),
            Some(("web".to_owned(), "hall.shop-17".to_owned()))
        );
        for no in [
            "",
            "satellite",
            ".satellite",
            "web.satellite",
            "web..satellite",
            ".shop-17.satellite",
            "web.shop-17.satellites",
            "web.shop-17xsatellite",
            "web.shop-17.satellite..",
            "-.shop-17.satellite",
            "192.0.2.1",
            "localhost",
            "example.com",
        ] {
            assert_eq!(read(no), None, "{no}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
            service in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            peer in "[a-z0-9][a-z0-9._-]{0,30}[a-z0-9]",
            suffix in "[a-z]{1,10}(\\.[a-z]{1,5})?",
        ) {
            let read = Target::parse(&format!("{service}.{peer}.{suffix}"), &suffix);
            prop_assert_eq!(read, Some(Target { peer, service }));
        }

        #[test]
        fn nothing_outside_of_the_suffix_is_a_target(host in "\\PC{0,80}") {
            if let Some(target) = Target::parse(&host, "satellite") {
                prop_assert!(is_service_name(&target.service));
                prop_assert!(host.to_ascii_lowercase().trim_end_matches('.').ends_with(".satellite"));
            }
        }
    }
}
