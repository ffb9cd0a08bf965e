//! One rung to one host-bridge: resolves its name and dials its addresses as `machine::ladder`'s
//! address race says, until one has greeted or none is left. Dropping the future gives all dials up.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;

use super::dial::{self, DialError, Established, Introduction, Way};
use crate::base::limit::error_chain;
use crate::base::time::Moment;
use crate::contract::invitation::HostPort;
use crate::machine::ladder::{
    AddressEvent, AddressRace, AddressVerdict, DialFailure, DialTarget, Rung, Setback,
};
use crate::process::config::proxy::{Proxy, ProxyUrl};

/// Time for the resolver; its own default of several servers and tries is about this.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom, which way, and with what.
#[derive(Debug, Clone)]
pub struct Approach {
    /// The host-bridge.
    pub bridge: HostPort,
    /// The way.
    pub rung: Rung,
    /// The proxy that is for this host-bridge, if one is.
    pub proxy: Option<Proxy>,
    /// Addresses at which bridges answered before, the latest first; those of others are passed over.
    pub remembered: Vec<DialTarget>,
    /// What this side says of itself.
    pub introduction: Introduction,
}

/// Why a rung came to nothing.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No address.
    #[error("no address found for {bridge}; check the network and DNS of this box")]
    NoAddress {
        /// Whose.
        bridge: HostPort,
    },
    /// What the most telling of its addresses said.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TCP goes there through a proxy.
    #[error(
        "{bridge} is not dialled directly over TCP, because the proxy {proxy} is for it; NO_PROXY makes exceptions"
    )]
    Proxied {
        /// Whom.
        bridge: HostPort,
        /// Which.
        proxy: ProxyUrl,
    },
    /// Nothing leads there that way.
    #[error("the way `{rung}` does not lead to {bridge} from here")]
    Unusable {
        /// Which.
        rung: Rung,
        /// Whom.
        bridge: HostPort,
    },
}

/// The same, as the machines want it.
#[derive(Debug)]
pub struct ConnectFailure {
    /// What happened.
    pub error: ConnectError,
    setback: Setback,
}

impl ConnectFailure {
    /// Whether the other side answered and did not take what this box presented.
    pub fn refuses_identity(&self) -> bool {
        matches!(&self.error, ConnectError::Dial(error) if error.refuses_identity())
    }

    /// For the ladder.
    pub fn for_ladder(&self) -> DialFailure {
        DialFailure {
            setback: self.setback,
            answered: matches!(&self.error, ConnectError::Dial(error) if error.is_answer()),
            why: error_chain(&self.error),
        }
    }
}

/// A dial that is under way.
type Dial = Pin<Box<dyn Future<Output = (SocketAddr, Result<Established, DialError>)> + Send>>;

/// Connects, or says why not.
pub async fn connect(approach: Approach) -> Result<(DialTarget, Established), ConnectFailure> {
    let way = match (approach.rung, &approach.proxy) {
        (Rung::Quic, _) => Way::Quic,
        (Rung::Tls, None) => Way::Tls,
        // Whoever names a proxy for a host means that TCP goes there by no other way.
        (Rung::Tls, Some(proxy)) => {
            return Err(ConnectFailure {
                error: ConnectError::Proxied {
                    bridge: approach.bridge,
                    proxy: proxy.url.clone(),
                },
                setback: Setback::Persistent,
            });
        }
        (Rung::Proxy, Some(proxy)) => {
            let way = Way::Proxy(proxy.clone());
            return through_proxy(approach, way).await;
        }
        (rung @ (Rung::Direct | Rung::Proxy), _) => {
            return Err(ConnectFailure {
                error: ConnectError::Unusable {
                    rung,
                    bridge: approach.bridge,
                },
                setback: Setback::Persistent,
            });
        }
    };
    by_address(approach, way).await
}

/// The proxy resolves the name and tries its addresses.
async fn through_proxy(approach: Approach, way: Way) -> Result<(DialTarget, Established), ConnectFailure> {
    let target = DialTarget {
        host: approach.bridge.host().to_owned(),
        address: (Ipv4Addr::UNSPECIFIED, approach.bridge.port()).into(),
    };
    match dial::dial(&target, &way, approach.introduction).await {
        Ok(established) => {
            let address = established.tunnel.remote_address();
            Ok((DialTarget { address, ..target }, established))
        }
        Err(error) => Err(ConnectFailure {
            setback: error.setback(),
            error: ConnectError::Dial(error),
        }),
    }
}

async fn by_address(approach: Approach, way: Way) -> Result<(DialTarget, Established), ConnectFailure> {
    let clock = approach.introduction.clock.clone();
    let remembered = remembered_addresses(&approach);
    let mut race = AddressRace::new(&remembered, clock.now());
    let mut resolving = Box::pin(resolve(&approach.bridge));
    let (mut resolved, mut dials, mut worst) = (false, Vec::<Dial>::new(), None);
    loop {
        while let Some(address) = race.poll_dial() {
            dials.push(start(&approach, &way, address));
        }
        if let AddressVerdict::Exhausted { setback, .. } = race.verdict() {
            let error = worst.map_or_else(
                || ConnectError::NoAddress {
                    bridge: approach.bridge.clone(),
                },
                ConnectError::Dial,
            );
            return Err(ConnectFailure { error, setback });
        }
        let wake = race.poll_timeout().unwrap_or(Moment::after_start(Duration::MAX));
        let event = tokio::select! {
            (address, outcome) = first_done(&mut dials) => match outcome {
                Ok(established) => {
                    let host = approach.bridge.host().to_owned();
                    return Ok((DialTarget { host, address }, established));
                }
                Err(error) => {
                    tracing::debug!(%address, rung = %approach.rung, error = %error_chain(&error), "an address did not answer");
                    let event = AddressEvent::Failed(address, error.setback());
                    keep_worst(&mut worst, error);
                    event
                }
            },
            addresses = &mut resolving, if !resolved => {
                resolved = true;
                AddressEvent::Resolved(addresses)
            }
            () = clock.sleep_until(wake) => AddressEvent::Timeout,
        };
        race.handle_event(event, clock.now());
    }
}

fn start(approach: &Approach, way: &Way, address: SocketAddr) -> Dial {
    let target = DialTarget {
        host: approach.bridge.host().to_owned(),
        address,
    };
    let (way, introduction) = (way.clone(), approach.introduction.clone());
    Box::pin(async move { (address, dial::dial(&target, &way, introduction).await) })
}

/// An address of a bridge that was named before, or of another port, is none of this one's.
fn remembered_addresses(approach: &Approach) -> Vec<SocketAddr> {
    let of_bridge = approach.remembered.iter().filter(|target| {
        target.host == approach.bridge.host() && target.address.port() == approach.bridge.port()
    });
    of_bridge.map(|target| target.address).collect()
}

async fn resolve(bridge: &HostPort) -> Vec<SocketAddr> {
    let lookup = tokio::net::lookup_host((bridge.host().to_owned(), bridge.port()));
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            tracing::debug!(%bridge, %error, "name not resolved");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(%bridge, "resolver too slow");
            Vec::new()
        }
    }
}

fn keep_worst(worst: &mut Option<DialError>, error: DialError) {
    if worst
        .as_ref()
        .is_none_or(|known| known.weight() <= error.weight())
    {
        *worst = Some(error);
    }
}

/// Polls all and takes the first that is done out; never ready while there are none. Cancel safe.
fn first_done(
    dials: &mut Vec<Dial>,
) -> impl Future<Output = (SocketAddr, Result<Established, DialError>)> + '_ {
    poll_fn(|cx| {
        for index in 0..dials.len() {
            if let Poll::Ready(done) = dials[index].as_mut().poll(cx) {
                drop(dials.remove(index));
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
}
