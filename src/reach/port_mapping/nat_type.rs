//! How many NATs stand between this box and the world, from what is known of its addresses. Pure.

use std::net::IpAddr;

use serde::Serialize;

use crate::base::address::AddressScope;

/// What stands between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatKind {
    /// Nothing: the box's own address is public.
    None,
    /// One router, which has the public address.
    One,
    /// A router behind another router.
    Double,
    /// A router behind the provider's NAT.
    CarrierGrade,
    /// At least one, about which nothing is known.
    Unknown,
}

impl NatKind {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::None => "no NAT: this box has a public address",
            Self::One => "one NAT: the router has a public address",
            Self::Double => "two NATs: the router is itself behind a router",
            Self::CarrierGrade => "the provider's NAT (CGNAT): no port can be had from the router",
            Self::Unknown => "a NAT of unknown kind",
        }
    }
}

/// From this box's address, the router's external address where it tells one, and the address
/// from which a host-bridge sees this box, where it is connected.
pub fn nat_kind(local: IpAddr, external: Option<IpAddr>, seen: Option<IpAddr>) -> NatKind {
    let is_cgnat = |address| AddressScope::of(address) == AddressScope::SharedNat;
    let is_public = |address| AddressScope::of(address) == AddressScope::Public;
    let same_family = seen.filter(|seen| seen.is_ipv4() == local.is_ipv4());
    if is_public(local) {
        return NatKind::None;
    }
    if is_cgnat(local) || external.is_some_and(is_cgnat) {
        return NatKind::CarrierGrade;
    }
    match (external, same_family) {
        // A router that believes to have the address that others see at another one.
        (Some(external), Some(seen)) if is_public(external) && is_public(seen) && external != seen => {
            NatKind::Double
        }
        (Some(external), _) if is_public(external) => NatKind::One,
        (Some(_), _) => NatKind::Double,
        (None, _) => NatKind::Unknown,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_tell_what_stands_between() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let kind = |local: &str, external: Option<&str>, seen: Option<&str>| {
            nat_kind(ip(local), external.map(ip), seen.map(ip))
        };
        let home = "192.168.1.20";
        assert_eq!(kind("93.184.216.34", None, None), NatKind::None);
        assert_eq!(kind("2a00::1", None, Some("93.184.216.34")), NatKind::None);
        assert_eq!(
            kind(home, Some("93.184.216.34"), Some("93.184.216.34")),
            NatKind::One
        );
        assert_eq!(kind(home, Some("93.184.216.34"), Some("2a00::1")), NatKind::One);
        assert_eq!(
            kind(home, Some("93.184.216.34"), Some("93.184.216.35")),
            NatKind::Double
        );
        assert_eq!(kind(home, Some("192.168.178.2"), None), NatKind::Double);
        assert_eq!(kind(home, Some("100.64.1.2"), None), NatKind::CarrierGrade);
        assert_eq!(kind("100.64.1.2", None, None), NatKind::CarrierGrade);
        assert_eq!(kind(home, None, Some("93.184.216.34")), NatKind::Unknown);
    }
}
