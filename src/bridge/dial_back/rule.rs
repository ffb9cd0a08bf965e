//! Whom the bridge dials because a satellite asks for it. Pure.
//!
//! A satellite may be in anybody's hands, and must not be able to make the bridge send to others.
//! So the bridge dials only public addresses that are not its own, on ports that services do not
//! have; the address from which the satellite's own tunnel comes freely, another one (a router
//! may have several) only a few times an hour; no address more often than a person would
//! notice, however many satellites ask for it; and all of it within a total. One dial is a handful of
//! packets of 1,200 bytes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

use crate::base::address::AddressScope;
use crate::base::id::PeerId;
use crate::base::time::Moment;
use crate::machine::mapping_lease::EXTERNAL_PORT_MIN;
use crate::machine::source_rate::Source;

/// Dials that one peer may ask for in a minute, in number: an attempt over three protocols with
/// its second tries, and the same for IPv6, take a few minutes.
const PER_PEER_A_MINUTE: u32 = 10;

/// Dials to addresses from which the peer's tunnel does not come, for one peer in an hour.
const ELSEWHERE_AN_HOUR: u32 = 6;

/// Dials to one address, or one IPv6 network, in a minute, whoever asks. A household of satellites
/// behind one router needs fewer.
const PER_TARGET_A_MINUTE: u32 = 20;

/// Dials in a minute in all, in number: ten thousand satellites that are looked after every ten
/// minutes, and half as many again.
const TOTAL_A_MINUTE: u32 = 1_500;

/// Peers and targets that are counted at once, in number; 4,096 rows take some 300 KiB. When a table
/// is full, who is not in it waits.
const ROWS_MAX: usize = 4_096;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// What a satellite asks for, and where from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) peer: PeerId,
    /// Where its tunnel comes from.
    pub(super) source: IpAddr,
    pub(super) endpoint: SocketAddr,
    /// Whether the endpoint's address is one of the bridge's.
    pub(super) own: bool,
}

/// Why the bridge does not dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum NotDialled {
    /// The address is of no use from outside, or not safe to send to.
    #[error("{0} is {scope}, which a host-bridge does not dial", scope = .1.words())]
    Scope(IpAddr, AddressScope),
    /// The bridge itself.
    #[error("{0} is the host-bridge's own address")]
    Own(IpAddr),
    /// A port of well-known services.
    #[error("port {0} is below {EXTERNAL_PORT_MIN}, where other services are")]
    LowPort(u16),
    /// One of the rates.
    #[error("too many dials have been asked for; try again in {} s", .after.as_secs())]
    TooOften {
        /// When there is room.
        after: Duration,
    },
}

/// The rule with its counts.
#[derive(Debug)]
pub(super) struct DialBackRule {
    allow_private: bool,
    peers: Rate<PeerId>,
    elsewhere: Rate<PeerId>,
    targets: Rate<Source>,
    total: Rate<()>,
}

impl DialBackRule {
    pub(super) const fn new(allow_private: bool) -> Self {
        Self {
            allow_private,
            peers: Rate::new(PER_PEER_A_MINUTE, MINUTE),
            elsewhere: Rate::new(ELSEWHERE_AN_HOUR, HOUR),
            targets: Rate::new(PER_TARGET_A_MINUTE, MINUTE),
            total: Rate::new(TOTAL_A_MINUTE, MINUTE),
        }
    }

    /// Another setting from now on.
    pub(super) const fn set_allow_private(&mut self, allow_private: bool) {
        self.allow_private = allow_private;
    }

    /// Counts one dial, or says why there is none.
    pub(super) fn admit(&mut self, asked: Asked, now: Moment) -> Result<(), NotDialled> {
        let address = asked.endpoint.ip().to_canonical();
        let scope = AddressScope::of(address);
        let dialled = match scope {
            AddressScope::Public => true,
            AddressScope::Private | AddressScope::SharedNat | AddressScope::Loopback => self.allow_private,
            // Documentation addresses stand for public ones in labs.
            AddressScope::Reserved => self.allow_private && !is_never_a_host(address),
            AddressScope::LinkLocal | AddressScope::Multicast => false,
        };
        if !dialled {
            return Err(NotDialled::Scope(address, scope));
        }
        if asked.own && !self.allow_private {
            return Err(NotDialled::Own(address));
        }
        if asked.endpoint.port() < EXTERNAL_PORT_MIN {
            return Err(NotDialled::LowPort(asked.endpoint.port()));
        }
        let target = Source::of(address);
        // Looked at first and counted together: a refused dial costs nobody anything.
        self.peers.has_room(&asked.peer, now)?;
        self.targets.has_room(&target, now)?;
        self.total.has_room(&(), now)?;
        if target != Source::of(asked.source) {
            self.elsewhere.has_room(&asked.peer, now)?;
            self.elsewhere.count(asked.peer, now);
        }
        self.peers.count(asked.peer, now);
        self.targets.count(target, now);
        self.total.count((), now);
        Ok(())
    }
}

/// Unspecified, broadcast, and the class that no host has.
const fn is_never_a_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 240..=255),
        IpAddr::V6(v6) => v6.is_unspecified(),
    }
}

/// So many in a window, by key.
#[derive(Debug)]
struct Rate<K> {
    most: u32,
    window: Duration,
    rows: BTreeMap<K, Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    began: Moment,
    count: u32,
}

impl<K: Ord> Rate<K> {
    const fn new(most: u32, window: Duration) -> Self {
        Self {
            most,
            window,
            rows: BTreeMap::new(),
        }
    }

    fn has_room(&mut self, key: &K, now: Moment) -> Result<(), NotDialled> {
        let window = self.window;
        let is_over = |row: &Row| now.since(row.began) >= window;
        match self.rows.get(key) {
            Some(row) if !is_over(row) && row.count >= self.most => Err(NotDialled::TooOften {
                after: window.saturating_sub(now.since(row.began)),
            }),
            Some(_) => Ok(()),
            None if self.rows.len() < ROWS_MAX => Ok(()),
            None => {
                self.rows.retain(|_, row| !is_over(row));
                if self.rows.len() < ROWS_MAX {
                    Ok(())
                } else {
                    Err(NotDialled::TooOften { after: window })
                }
            }
        }
    }

    fn count(&mut self, key: K, now: Moment) {
        let row = self.rows.entry(key).or_insert(Row { began: now, count: 0 });
        if now.since(row.began) >= self.window {
            *row = Row { began: now, count: 0 };
        }
        row.count += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::time::UnixTime;

    fn peer(n: u8) -> PeerId {
        PeerId::new_v7(UnixTime::EPOCH, [n; 10])
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn asked(n: u8, source: &str, endpoint: &str) -> Asked {
        Asked {
            peer: peer(n),
            source: source.parse().unwrap(),
            endpoint: endpoint.parse().unwrap(),
            own: false,
        }
    }

    const HOME: &str = "93.184.216.34";

    #[test]
    fn the_satellites_own_public_address_is_dialled() {
        let mut rule = DialBackRule::new(false);
        assert_eq!(rule.admit(asked(1, HOME, "93.184.216.34:41234"), at(0)), Ok(()));
        assert_eq!(
            rule.admit(asked(1, "2a00:1::5", "[2a00:1::77]:41234"), at(0)),
            Ok(()),
            "one network is one place"
        );
    }

    #[test]
    fn what_is_not_public_is_never_dialled() {
        let mut rule = DialBackRule::new(false);
        for endpoint in [
            "10.0.0.1:41234",
            "192.168.1.1:41234",
            "172.16.9.9:41234",
            "100.64.0.1:41234",
            "127.0.0.1:41234",
            "169.254.169.254:41234",
            "224.0.0.1:41234",
            "0.0.0.0:41234",
            "255.255.255.255:41234",
            "198.51.100.7:41234",
            "[::1]:41234",
            "[fe80::1]:41234",
            "[fd00::1]:41234",
            "[ff02::1]:41234",
            "[::ffff:10.0.0.1]:41234",
            "[::ffff:127.0.0.1]:41234",
            "[64:ff9b::a00:1]:41234",
        ] {
            // Not even to where the tunnel seems to come from.
            let source = endpoint.parse::<SocketAddr>().unwrap().ip().to_string();
            for source in [HOME, &source] {
                let refused = rule.admit(asked(1, source, endpoint), at(0)).unwrap_err();
                assert!(matches!(refused, NotDialled::Scope(..)), "{endpoint}: {refused}");
            }
        }
    }

    #[test]
    fn in_a_lab_private_addresses_are_dialled_and_groups_are_not() {
        let mut rule = DialBackRule::new(true);
        for (n, endpoint) in [
            "10.0.0.1:41234",
            "127.0.0.1:41234",
            "198.51.100.7:41234",
            "[fd00::1]:41234",
        ]
        .into_iter()
        .enumerate()
        {
            let asked = asked(u8::try_from(n).unwrap(), HOME, endpoint);
            assert_eq!(rule.admit(asked, at(0)), Ok(()), "{endpoint}");
        }
        for endpoint in [
            "224.0.0.1:41234",
            "255.255.255.255:41234",
            "0.0.0.0:41234",
            "[ff02::1]:41234",
            "[::]:41234",
        ] {
            assert!(rule.admit(asked(9, HOME, endpoint), at(0)).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn neither_itself_nor_the_ports_of_services_are_dialled() {
        let mut rule = DialBackRule::new(false);
        let own = Asked {
            own: true,
            ..asked(1, HOME, "93.184.216.99:41234")
        };
        assert_eq!(rule.admit(own, at(0)), Err(NotDialled::Own(own.endpoint.ip())));
        for port in [0, 53, 123, 443, 1_023] {
            let endpoint = format!("{HOME}:{port}");
            assert_eq!(
                rule.admit(asked(1, HOME, &endpoint), at(0)),
                Err(NotDialled::LowPort(port))
            );
        }
    }

    #[test]
    fn another_address_than_its_own_is_dialled_a_few_times_an_hour() {
        let mut rule = DialBackRule::new(false);
        let victim = |n, last: u32| asked(n, HOME, &format!("8.8.{}.{}:53000", last / 200, last % 200));
        let mut dialled = 0;
        for second in 0..7_200 {
            if rule.admit(victim(1, second), at(u64::from(second))).is_ok() {
                dialled += 1;
            }
        }
        assert_eq!(dialled, 2 * ELSEWHERE_AN_HOUR);
        assert_eq!(
            rule.admit(asked(1, HOME, "93.184.216.34:41234"), at(7_201)),
            Ok(()),
            "its own still is"
        );
    }

    #[test]
    fn many_satellites_together_cannot_flood_one_address() {
        let mut rule = DialBackRule::new(false);
        let mut dialled = 0;
        for second in 0..60 {
            for n in 0..200 {
                let asked = asked(n, HOME, &format!("8.8.8.8:{}", 40_000 + second));
                dialled += u32::from(rule.admit(asked, at(second)).is_ok());
            }
        }
        assert_eq!(dialled, PER_TARGET_A_MINUTE);
    }

    #[test]
    fn one_peer_is_told_when_there_is_room_again() {
        let mut rule = DialBackRule::new(false);
        let own = asked(1, HOME, "93.184.216.34:41234");
        for _ in 0..PER_PEER_A_MINUTE {
            assert_eq!(rule.admit(own, at(10)), Ok(()));
        }
        let after = Duration::from_secs(50);
        assert_eq!(rule.admit(own, at(20)), Err(NotDialled::TooOften { after }));
        assert_eq!(rule.admit(own, at(70)), Ok(()));
    }

    proptest! {
        #[test]
        fn whoever_asks_for_whatever_the_totals_hold(
            asks in proptest::collection::vec((any::<u8>(), any::<[u8; 4]>(), any::<u16>(), 0_u64..60), 0..3_000),
        ) {
            let mut rule = DialBackRule::new(false);
            let mut dialled = 0;
            for (n, address, port, second) in asks {
                let asked = Asked {
                    peer: peer(n),
                    source: HOME.parse().unwrap(),
                    endpoint: SocketAddr::new(address.into(), port),
                    own: false,
                };
                if rule.admit(asked, at(second)).is_ok() {
                    prop_assert!(crate::base::address::is_public(asked.endpoint.ip()));
                    prop_assert!(port >= EXTERNAL_PORT_MIN);
                    dialled += 1;
                }
            }
            prop_assert!(dialled <= TOTAL_A_MINUTE);
            prop_assert!(rule.targets.rows.len() <= ROWS_MAX && rule.peers.rows.len() <= ROWS_MAX);
        }
    }
}
