//! What kind of place an IP address names: reachable from anywhere, or only from within some
//! network. The ranges are those of the IANA special-purpose registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// From where an address can be reached at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressScope {
    /// From anywhere.
    Public,
    /// From within a site: RFC 1918, unique local, site local.
    Private,
    /// From within a provider's network behind carrier-grade NAT (100.64/10).
    SharedNat,
    /// From the same link alone.
    LinkLocal,
    /// From the same machine alone.
    Loopback,
    /// A group, not a machine.
    Multicast,
    /// From nowhere: unspecified, broadcast, documentation, benchmarks, translation and tunnel
    /// prefixes, and what is reserved.
    Reserved,
}

impl AddressScope {
    /// Of an address; an IPv4 address in IPv6 form is what it is in IPv4.
    pub const fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    const fn of_v4(v4: Ipv4Addr) -> Self {
        match v4.octets() {
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [100, 64..=127, ..] => Self::SharedNat,
            [169, 254, ..] => Self::LinkLocal,
            [127, ..] => Self::Loopback,
            [224..=239, ..] => Self::Multicast,
            [0 | 240..=255, ..]
            | [192, 0, 0 | 2, _]
            | [192, 31, 196, _]
            | [192, 52, 193, _]
            | [192, 88, 99, _]
            | [192, 175, 48, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _] => Self::Reserved,
            _ => Self::Public,
        }
    }

    const fn of_v6(v6: Ipv6Addr) -> Self {
        if v6.is_loopback() {
            return Self::Loopback;
        }
        match v6.segments() {
            [0xff00..=0xffff, ..] => Self::Multicast,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xfec0..=0xfeff | 0xfc00..=0xfdff, ..] => Self::Private,
            // Protocol assignments with Teredo, documentation, 6to4.
            [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => Self::Reserved,
            // Of all the rest, 2000::/3 alone is given out.
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }

    /// In words, for messages: "a private address".
    pub const fn words(self) -> &'static str {
        match self {
            Self::Public => "a public address",
            Self::Private => "a private address",
            Self::SharedNat => "an address of a provider's own NAT (CGNAT)",
            Self::LinkLocal => "a link-local address",
            Self::Loopback => "a loopback address",
            Self::Multicast => "a multicast address",
            Self::Reserved => "a reserved address",
        }
    }
}

/// Whether an address can be reached from anywhere.
pub const fn is_public(address: IpAddr) -> bool {
    matches!(AddressScope::of(address), AddressScope::Public)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scope(text: &str) -> AddressScope {
        AddressScope::of(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_the_world_are_public() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "2001:200::1",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(scope(address), AddressScope::Public, "{address}");
        }
    }

    #[test]
    fn every_other_range_is_known() {
        for (address, expected) in [
            ("10.0.0.1", AddressScope::Private),
            ("172.16.0.1", AddressScope::Private),
            ("172.31.255.255", AddressScope::Private),
            ("192.168.1.1", AddressScope::Private),
            ("::ffff:192.168.1.1", AddressScope::Private),
            ("fd00::1", AddressScope::Private),
            ("fc00::1", AddressScope::Private),
            ("fec0::1", AddressScope::Private),
            ("100.64.0.0", AddressScope::SharedNat),
            ("100.127.255.255", AddressScope::SharedNat),
            ("169.254.1.1", AddressScope::LinkLocal),
            ("fe80::1", AddressScope::LinkLocal),
            ("127.0.0.1", AddressScope::Loopback),
            ("::1", AddressScope::Loopback),
            ("224.0.0.1", AddressScope::Multicast),
            ("ff02::1", AddressScope::Multicast),
            ("0.0.0.0", AddressScope::Reserved),
            ("0.1.2.3", AddressScope::Reserved),
            ("192.0.0.8", AddressScope::Reserved),
            ("192.0.2.1", AddressScope::Reserved),
            ("192.88.99.1", AddressScope::Reserved),
            ("198.18.0.1", AddressScope::Reserved),
            ("198.51.100.1", AddressScope::Reserved),
            ("203.0.113.1", AddressScope::Reserved),
            ("240.0.0.1", AddressScope::Reserved),
            ("255.255.255.255", AddressScope::Reserved),
            ("::", AddressScope::Reserved),
            ("::1.2.3.4", AddressScope::Reserved),
            ("64:ff9b::1", AddressScope::Reserved),
            ("100::1", AddressScope::Reserved),
            ("2001::1", AddressScope::Reserved),
            ("2001:db8::1", AddressScope::Reserved),
            ("2002::1", AddressScope::Reserved),
            ("3fff::1", AddressScope::Reserved),
            ("4000::1", AddressScope::Reserved),
        ] {
            assert_eq!(scope(address), expected, "{address}");
        }
    }
}
