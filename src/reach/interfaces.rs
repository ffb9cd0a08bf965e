//! Notices when this box's way to the host-bridges has changed: another interface, gateway or address,
//! a route that came or went, a cable that was pulled. It hears the kernel's news where it may, and
//! looks regularly where not; what counts is `machine::network`'s to say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::netlink::{RouteNews, hop_towards};
use crate::base::time::Moment;
use crate::machine::network::{NetworkAction, NetworkEvent, NetworkMachine, Notice, Way};
use crate::process::clock::Clock;

/// Hears and looks.
#[derive(Debug)]
pub struct WayWatch {
    machine: NetworkMachine,
    news: News,
}

#[derive(Debug)]
enum News {
    Unasked,
    Heard(RouteNews),
    Denied,
}

impl WayWatch {
    /// Nothing is known yet.
    pub const fn new(now: Moment) -> Self {
        Self {
            machine: NetworkMachine::new(now),
            news: News::Unasked,
        }
    }

    /// Waits until the ways should be looked at. Cancel safe.
    pub async fn due(&mut self, clock: &Clock) {
        loop {
            let heard = tokio::select! {
                () = clock.sleep_until(self.machine.poll_timeout()) => {
                    self.machine.handle_event(NetworkEvent::Timeout, clock.now());
                    if self.machine.poll_action() == Some(NetworkAction::Look) {
                        return;
                    }
                    continue;
                }
                heard = self.news.next() => heard,
            };
            let now = clock.now();
            match heard {
                Ok(notices) => {
                    self.machine.handle_event(NetworkEvent::Told(true), now);
                    for notice in notices {
                        self.machine.handle_event(NetworkEvent::Noticed(notice), now);
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "the kernel does not tell of changes of the network; looking for them");
                    self.news = News::Denied;
                    self.machine.handle_event(NetworkEvent::Told(false), now);
                }
            }
        }
    }

    /// Looks at the ways to these addresses; whether one that was known is another now.
    pub fn look(&mut self, destinations: impl IntoIterator<Item = SocketAddr>, now: Moment) -> bool {
        let ways = destinations
            .into_iter()
            .map(|destination| (destination, way_towards(destination)))
            .collect();
        self.machine.handle_event(NetworkEvent::Looked(ways), now);
        self.machine.poll_action() == Some(NetworkAction::Changed)
    }
}

impl News {
    async fn next(&mut self) -> std::io::Result<Vec<Notice>> {
        match self {
            Self::Unasked => {
                *self = Self::Heard(RouteNews::open()?);
                Ok(Vec::new())
            }
            Self::Heard(news) => news.next().await,
            Self::Denied => std::future::pending().await,
        }
    }
}

fn way_towards(destination: SocketAddr) -> Option<Way> {
    let source = source_towards(destination).ok()?;
    let hop = hop_towards(destination.ip()).unwrap_or_else(|error| {
        tracing::debug!(%destination, %error, "the kernel does not say over what it sends there");
        None
    });
    Some(Way { source, hop })
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
    fn looking_twice_at_the_same_network_shows_no_change() {
        let itself = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut watch = WayWatch::new(Moment::START);
        assert!(!watch.look([itself], Moment::START));
        assert!(!watch.look([itself], Moment::START));
        assert!(way_towards(itself).unwrap().hop.is_some());
    }
}
