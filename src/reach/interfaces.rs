//! Notices when this box's way to the host-bridges has changed: another interface, another address,
//! a route that came or went. It asks the system from which address it would send to each of them,
//! which costs a socket and no packet, and needs neither privileges nor another address family.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How often it looks. A change is noticed no later than this; each look is a handful of system calls.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What was seen last.
#[derive(Debug, Default)]
pub struct WayWatch {
    seen: BTreeMap<SocketAddr, Option<IpAddr>>,
}

impl WayWatch {
    /// Looks at the ways to these addresses; whether one that was known is another now.
    pub fn look(&mut self, destinations: impl IntoIterator<Item = SocketAddr>) -> bool {
        self.look_with(destinations, |destination| source_towards(destination).ok())
    }

    fn look_with(
        &mut self,
        destinations: impl IntoIterator<Item = SocketAddr>,
        source: impl Fn(SocketAddr) -> Option<IpAddr>,
    ) -> bool {
        let now: BTreeMap<_, _> = destinations
            .into_iter()
            .map(|destination| (destination, source(destination)))
            .collect();
        let changed = now
            .iter()
            .any(|(destination, way)| self.seen.get(destination).is_some_and(|known| known != way));
        self.seen = now;
        changed
    }
}

/// The address from which the system would send there. Connecting a UDP socket sends nothing.
pub(super) fn source_towards(destination: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nothing_can_be_sent_to_is_known_at_once() {
        // Broadcast is refused to an ordinary socket whatever the routes are.
        assert!(source_towards((Ipv4Addr::BROADCAST, 1).into()).is_err());
        let listening = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let source = source_towards(listening.local_addr().unwrap()).unwrap();
        assert_eq!(source, IpAddr::from(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn a_change_is_one_of_a_way_that_was_known() {
        let bridge = |n: u8| SocketAddr::from(([192, 0, 2, n], 8443));
        let from = |n: u8| move |_| Some(IpAddr::from([10, 0, 0, n]));
        let mut watch = WayWatch::default();
        assert!(!watch.look_with([bridge(1)], from(1)), "the first look");
        assert!(
            !watch.look_with([bridge(1), bridge(2)], from(1)),
            "a new bridge is no change"
        );
        assert!(watch.look_with([bridge(1), bridge(2)], from(2)));
        assert!(watch.look_with([bridge(1)], |_| None), "the cable is out");
        assert!(!watch.look_with([bridge(1)], |_| None));
        assert!(watch.look_with([bridge(1)], from(2)), "and in again");
    }
}
