//! The gateways of the default routes, as the kernel lists them, and this box's address towards
//! each. No other host is asked for a port or believed about one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::machine::mapping_lease::Gateway;
use crate::process::blocking;

const ROUTES_V4: &str = "/proc/self/net/route";
const ROUTES_V6: &str = "/proc/self/net/ipv6_route";
const INTERFACES_V6: &str = "/proc/self/net/if_inet6";

/// Default routes that are looked at, in number: a box has a handful of uplinks at most.
const GATEWAYS_MAX: usize = 4;

/// Bytes of a table that are read: some thousands of routes.
const TABLE_MAX_BYTES: u64 = 1024 * 1024;

/// The route is in force.
const RTF_UP: u32 = 0x1;
/// It leads over a gateway.
const RTF_GATEWAY: u32 = 0x2;

/// A default route over a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DefaultRoute {
    gateway: IpAddr,
    interface: String,
    metric: u32,
}

/// The gateways of a family, the preferred one first. Blocks on the kernel's tables; sends nothing.
pub fn gateways(family: Family) -> Vec<Gateway> {
    let routes = match family {
        Family::V4 => read_table(ROUTES_V4).map(|table| default_routes_v4(&table)),
        Family::V6 => read_table(ROUTES_V6).map(|table| default_routes_v6(&table)),
    };
    let mut routes = routes.unwrap_or_else(|error| {
        tracing::debug!(%error, ?family, "the routes cannot be read");
        Vec::new()
    });
    routes.sort_by_key(|route| route.metric);
    let interfaces = match family {
        Family::V4 => String::new(),
        Family::V6 => read_table(INTERFACES_V6).unwrap_or_default(),
    };
    let mut gateways: Vec<Gateway> = Vec::new();
    for route in routes.into_iter().take(GATEWAYS_MAX) {
        let Some(local) = local_towards(route.gateway) else {
            continue;
        };
        let gateway = Gateway {
            address: route.gateway,
            interface: interface_index(&interfaces, &route.interface).unwrap_or(0),
            local,
        };
        if !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// Which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How often the routes are looked at: a cable that is moved is noticed within this. Two small files.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Tells the gateways of a family, and every change of them, for as long as somebody listens.
pub async fn watch_gateways(family: Family, told: watch::Sender<Vec<Gateway>>) {
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = told.closed() => return,
        }
        // A panic there shows in its own task; the next look may fare better.
        if let Ok(found) = blocking::start(move || gateways(family)).await {
            told.send_if_modified(|known| {
                let changed = *known != found;
                *known = found;
                changed
            });
        }
    }
}

/// The address from which this box would speak to the gateway; for IPv6, where the gateway is
/// known by its link-local address, to the world beyond it.
fn local_towards(gateway: IpAddr) -> Option<IpAddr> {
    /// Nobody's, and on the far side of every gateway.
    const BEYOND: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let target = match gateway {
        IpAddr::V4(_) => gateway,
        IpAddr::V6(_) => BEYOND.into(),
    };
    source_towards(target)
        .ok()
        .filter(|local| !local.is_unspecified() && !local.is_loopback())
}

/// The address from which the system would send to a target. Connecting a UDP socket sends nothing.
pub fn source_towards(target: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(target, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn read_table(path: &str) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(Path::new(path))?
        .take(TABLE_MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Columns: interface, destination, gateway, flags, two counts, metric, mask and more; addresses in
/// the machine's own byte order.
fn default_routes_v4(table: &str) -> Vec<DefaultRoute> {
    let read = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, gateway, flags, _, _, metric, mask, ..] = columns[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default =
            u32::from_str_radix(destination, 16).ok()? == 0 && u32::from_str_radix(mask, 16).ok()? == 0;
        let over_gateway = flags & (RTF_UP | RTF_GATEWAY) == RTF_UP | RTF_GATEWAY;
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        (is_default && over_gateway && !gateway.is_unspecified()).then(|| DefaultRoute {
            gateway: gateway.into(),
            interface: interface.to_owned(),
            metric: metric.parse().unwrap_or(u32::MAX),
        })
    };
    table.lines().skip(1).filter_map(read).collect()
}

/// Columns: destination, its length, source, its length, gateway, metric, two counts, flags,
/// interface; all but the last in hex.
fn default_routes_v6(table: &str) -> Vec<DefaultRoute> {
    let read = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, gateway, metric, _, _, flags, interface] = columns[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = u128::from_str_radix(destination, 16).ok()? == 0 && length == "00";
        let over_gateway = flags & (RTF_UP | RTF_GATEWAY) == RTF_UP | RTF_GATEWAY;
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        (is_default && over_gateway && !gateway.is_unspecified()).then(|| DefaultRoute {
            gateway: gateway.into(),
            interface: interface.to_owned(),
            metric: u32::from_str_radix(metric, 16).unwrap_or(u32::MAX),
        })
    };
    table.lines().filter_map(read).collect()
}

/// Columns: address, index in hex, prefix length, scope, flags, name.
fn interface_index(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, index, _, _, _, interface] = columns[..] else {
            return None;
        };
        (interface == name)
            .then(|| u32::from_str_radix(index, 16).ok())
            .flatten()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        wwan0\t00000000\t0100000A\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
        tun0\t00000000\t00000000\t0001\t0\t0\t10\t00000000\t0\t0\t0\n\
        eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
        eth1\t00000000\t0201A8C0\t0002\t0\t0\t1\t00000000\t0\t0\t0\n\
        eth1\t000010AC\t0201A8C0\t0003\t0\t0\t1\t0000F0FF\t0\t0\t0\n";

    const V6: &str = "\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
fd770000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[test]
    #[cfg(target_endian = "little")]
    fn default_gateways_of_ipv4_are_found() {
        let routes = default_routes_v4(V4);
        let found: Vec<_> = routes
            .iter()
            .map(|route| (route.gateway.to_string(), route.interface.as_str(), route.metric))
            .collect();
        assert_eq!(
            found,
            [
                ("192.168.1.1".to_owned(), "eth0", 100),
                ("10.0.0.1".to_owned(), "wwan0", 50)
            ]
        );
    }

    #[test]
    fn default_gateways_of_ipv6_are_found_with_their_interface() {
        let routes = default_routes_v6(V6);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].gateway, "fe80::1".parse::<IpAddr>().unwrap());
        let interfaces = "00000000000000000000000000000001 01 80 10 80       lo\n\
                          fe80000000000000021122fffe334455 0a 40 20 80     eth0\n";
        assert_eq!(interface_index(interfaces, &routes[0].interface), Some(10));
        assert_eq!(interface_index(interfaces, "eth9"), None);
    }

    #[test]
    fn ones_own_address_is_where_one_speaks_from() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(source_towards(loopback).unwrap(), loopback);
        assert_eq!(local_towards(loopback), None);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_the_tables_is_read_without_a_panic(table in "[0-9a-f \t\n]{0,400}|\\PC{0,200}") {
            default_routes_v4(&table);
            default_routes_v6(&table);
            interface_index(&table, "eth0");
        }
    }
}
