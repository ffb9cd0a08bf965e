//! Asks routers for a port: PCP, NAT-PMP and UPnP behind one surface. When to ask for what is
//! `machine::mapping_lease`'s decision; here one question is asked and its answer understood.
//!
//! Only the gateways that the caller names are asked and believed. The clients are this project's
//! own: `igd-next` takes the first answer to a search from whoever sends it, reads no single entry
//! back, and brings a second HTTP client and the Unicode tables of a URL parser; `crab_nat` takes
//! the first datagram for the answer where this one reads on until the right one comes. What is
//! left of the protocols is a few packets.

mod exchange;
mod keeper;
mod nat_pmp;
mod nat_type;
mod pcp;
mod upnp;
mod upnp_text;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

pub use keeper::{Keeper, MappingView, Surroundings};
pub use nat_type::{NatKind, nat_kind};

use crate::base::limit::error_chain;
use crate::base::ordered_map::OrderedMap;
use crate::machine::mapping_lease::{
    Denial, Finding, Gateway, Granted, MappingProtocol, MappingRecord, Removal, Seen, Sight,
};
use crate::tunnel::transport::BoxFuture;
use upnp::{UpnpError, UpnpGateway};
use upnp_text::Call;

/// Longest that one question of this module takes: a search, a description with its services, and
/// a request. The lease machine's own patience is longer.
pub const QUESTION_TIME: Duration = Duration::from_secs(30);

/// Gateways whose UPnP service is remembered, in number.
const REMEMBERED_MAX: usize = 8;

/// What a mapped port carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carries {
    /// UDP: the tunnel.
    #[default]
    Udp,
    /// TCP: HTTPS.
    Tcp,
}

/// What one protocol of a gateway answered.
#[derive(Debug, Clone)]
pub struct ProtocolAnswer {
    /// Who was asked.
    pub gateway: Gateway,
    /// How.
    pub protocol: MappingProtocol,
    /// What came back, or why nothing did, in words.
    pub answer: Result<Finding, String>,
}

/// Asks every gateway in every protocol at once, without changing anything on them.
pub async fn probe(gateways: &[Gateway]) -> Vec<ProtocolAnswer> {
    RouterClients::default().probe(gateways).await
}

/// The clients. Clones share what is known of the routers.
#[derive(Debug, Clone, Default)]
pub struct RouterClients {
    carries: Carries,
    upnp: Arc<Mutex<OrderedMap<IpAddr, UpnpGateway>>>,
}

impl RouterClients {
    /// For ports that carry this.
    pub fn of(carries: Carries) -> Self {
        Self {
            carries,
            ..Self::default()
        }
    }

    /// Asks every gateway in every protocol at once, without changing anything on them.
    pub async fn probe(&self, gateways: &[Gateway]) -> Vec<ProtocolAnswer> {
        let asked: Vec<BoxFuture<'_, [ProtocolAnswer; 3]>> = gateways
            .iter()
            .map(|gateway| Box::pin(self.probe_one(gateway)) as BoxFuture<'_, _>)
            .collect();
        all(asked).await.into_iter().flatten().collect()
    }

    async fn probe_one(&self, gateway: &Gateway) -> [ProtocolAnswer; 3] {
        let (pcp, nat_pmp, upnp) = tokio::join!(
            self.find_pcp(gateway),
            self.find_nat_pmp(gateway),
            self.find_upnp(gateway)
        );
        [
            (MappingProtocol::Pcp, pcp),
            (MappingProtocol::NatPmp, nat_pmp),
            (MappingProtocol::Upnp, upnp),
        ]
        .map(|(protocol, answer)| ProtocolAnswer {
            gateway: *gateway,
            protocol,
            answer,
        })
    }

    async fn find_pcp(&self, gateway: &Gateway) -> Result<Finding, String> {
        let server = pcp::server(gateway.address, gateway.interface);
        let question = pcp::announce(gateway.local);
        let read = |packet: &[u8]| match pcp::read_announce(packet) {
            Some(epoch) => Some(Ok(epoch)),
            None if pcp::is_older_version(packet) => Some(Err("it speaks NAT-PMP alone".to_owned())),
            None => None,
        };
        let epoch = answer(exchange::ask(gateway.local, server, &question, read).await)??;
        Ok(Finding {
            gateway: *gateway,
            protocol: MappingProtocol::Pcp,
            external: None,
            epoch: Some(epoch),
        })
    }

    async fn find_nat_pmp(&self, gateway: &Gateway) -> Result<Finding, String> {
        if gateway.address.is_ipv6() {
            return Err("it is for IPv4 alone".to_owned());
        }
        let server = pcp::server(gateway.address, gateway.interface);
        let (epoch, external) =
            answer(exchange::ask(gateway.local, server, &nat_pmp::address(), nat_pmp::read_address).await)?;
        Ok(Finding {
            gateway: *gateway,
            protocol: MappingProtocol::NatPmp,
            external: Some(external),
            epoch: Some(epoch),
        })
    }

    async fn find_upnp(&self, gateway: &Gateway) -> Result<Finding, String> {
        if gateway.address.is_ipv6() {
            return Err("it is asked over IPv4 alone".to_owned());
        }
        let finding = UpnpGateway::find(gateway.address, gateway.local);
        let (found, external) = tokio::time::timeout(QUESTION_TIME, finding)
            .await
            .unwrap_or(Err(UpnpError::TimedOut))
            .map_err(|error| error_chain(&error))?;
        self.remember(gateway.address, found);
        Ok(Finding {
            gateway: *gateway,
            protocol: MappingProtocol::Upnp,
            external,
            epoch: None,
        })
    }

    /// Looks at an entry, or at the gateway's epoch where the protocol lists nothing.
    pub async fn look(&self, record: &MappingRecord) -> Seen {
        let server = pcp::server(record.gateway, record.interface);
        let local = record.internal.ip();
        let epoch_alone = |epoch: Option<u32>, external| Seen {
            sight: epoch.map_or(Sight::Silent, Sight::Epoch),
            external,
        };
        match record.protocol {
            MappingProtocol::Pcp => {
                let question = pcp::announce(local);
                let answered = exchange::ask(local, server, &question, pcp::read_announce).await;
                epoch_alone(answered.ok().flatten(), None)
            }
            MappingProtocol::NatPmp => {
                let question = nat_pmp::address();
                let answered = exchange::ask(local, server, &question, nat_pmp::read_address).await;
                let (epoch, external) = answered.ok().flatten().unzip();
                epoch_alone(epoch, external)
            }
            MappingProtocol::Upnp => match self.look_upnp(record).await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(gateway = %record.gateway, error = %error_chain(&error), "the router's entry cannot be read");
                    Seen {
                        sight: Sight::Silent,
                        external: None,
                    }
                }
            },
        }
    }

    async fn look_upnp(&self, record: &MappingRecord) -> Result<Seen, UpnpError> {
        let router = self.upnp(record).await?;
        let sight = self.entry(&router, record).await?;
        let external = router.external_address().await.ok().flatten();
        Ok(Seen { sight, external })
    }

    async fn entry(&self, router: &UpnpGateway, record: &MappingRecord) -> Result<Sight, UpnpError> {
        match router
            .call(&Call::entry(self.carries, record.external_port))
            .await
        {
            Ok(text) => Ok(upnp_text::read_entry(&text).map_or(Sight::Silent, Sight::Entry)),
            Err(UpnpError::Fault(code)) if upnp_text::is_no_such_entry(code) => Ok(Sight::Absent),
            Err(error) => {
                self.forget_if_gone(record.gateway, &error);
                Err(error)
            }
        }
    }

    /// Maps, or maps again to renew.
    pub async fn map(&self, record: &MappingRecord) -> Result<Granted, Denial> {
        let server = pcp::server(record.gateway, record.interface);
        let local = record.internal.ip();
        let lease = record.lease_seconds;
        let result = match record.protocol {
            MappingProtocol::Pcp => {
                let read = |packet: &[u8]| pcp::read_map(packet, self.carries, record);
                let answered =
                    exchange::ask(local, server, &pcp::map(self.carries, record, lease), read).await;
                answered.ok().flatten().unwrap_or(Err(Denial::Silent))
            }
            MappingProtocol::NatPmp => {
                let read = |packet: &[u8]| nat_pmp::read_map(packet, self.carries, record);
                let answered =
                    exchange::ask(local, server, &nat_pmp::map(self.carries, record, lease), read).await;
                answered.ok().flatten().unwrap_or(Err(Denial::Silent))
            }
            MappingProtocol::Upnp => self.map_upnp(record).await,
        };
        tracing::debug!(gateway = %record.gateway, protocol = record.protocol.name(), ?result, "asked the router for a port");
        result
    }

    async fn map_upnp(&self, record: &MappingRecord) -> Result<Granted, Denial> {
        let router = self.upnp(record).await.map_err(|_| Denial::Silent)?;
        match router.call(&Call::add(self.carries, record)).await {
            Ok(_) => Ok(Granted {
                external_port: record.external_port,
                external: None,
                lease_seconds: record.lease_seconds,
                epoch: None,
            }),
            Err(UpnpError::Fault(code)) => Err(upnp_text::denial(code)),
            Err(UpnpError::Status(_)) => Err(Denial::Temporary),
            Err(error) => {
                self.forget_if_gone(record.gateway, &error);
                Err(Denial::Silent)
            }
        }
    }

    /// Removes a mapping. Under UPnP, only after a look has shown that it is the one recorded: under
    /// the other protocols a box can name none but its own.
    pub async fn unmap(&self, record: &MappingRecord) -> Removal {
        let server = pcp::server(record.gateway, record.interface);
        let local = record.internal.ip();
        match record.protocol {
            MappingProtocol::Pcp => {
                let read = |packet: &[u8]| pcp::read_map(packet, self.carries, record);
                removal(&exchange::ask(local, server, &pcp::map(self.carries, record, 0), read).await)
            }
            MappingProtocol::NatPmp => {
                let read = |packet: &[u8]| nat_pmp::read_map(packet, self.carries, record);
                removal(&exchange::ask(local, server, &nat_pmp::map(self.carries, record, 0), read).await)
            }
            MappingProtocol::Upnp => match self.unmap_upnp(record).await {
                Ok(removal) => removal,
                Err(error) => {
                    tracing::debug!(gateway = %record.gateway, error = %error_chain(&error), "a mapping could not be removed");
                    Removal::Unknown
                }
            },
        }
    }

    async fn unmap_upnp(&self, record: &MappingRecord) -> Result<Removal, UpnpError> {
        let router = self.upnp(record).await?;
        match self.entry(&router, record).await? {
            Sight::Absent => Ok(Removal::Gone),
            Sight::Entry(entry) if record.owns(&entry) => {
                match router
                    .call(&Call::delete(self.carries, record.external_port))
                    .await
                {
                    Ok(_) => Ok(Removal::Gone),
                    Err(UpnpError::Fault(code)) if upnp_text::is_no_such_entry(code) => Ok(Removal::Gone),
                    Err(error) => Err(error),
                }
            }
            Sight::Entry(_) => Ok(Removal::NotOurs),
            Sight::Epoch(_) | Sight::Silent => Ok(Removal::Unknown),
        }
    }

    /// The router's service: remembered, or searched for.
    async fn upnp(&self, record: &MappingRecord) -> Result<UpnpGateway, UpnpError> {
        let known = self.known().get(&record.gateway).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let (found, _) = UpnpGateway::find(record.gateway, record.internal.ip()).await?;
        self.remember(record.gateway, found.clone());
        Ok(found)
    }

    fn remember(&self, gateway: IpAddr, found: UpnpGateway) {
        let mut known = self.known();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(gateway, found);
    }

    /// A router that has restarted may listen elsewhere.
    fn forget_if_gone(&self, gateway: IpAddr, error: &UpnpError) {
        match error {
            UpnpError::Fault(_) => {}
            UpnpError::Search(_)
            | UpnpError::NotFound
            | UpnpError::Description(_)
            | UpnpError::Connect { .. }
            | UpnpError::Http(_)
            | UpnpError::TimedOut
            | UpnpError::Status(_) => {
                self.known().remove(&gateway);
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, OrderedMap<IpAddr, UpnpGateway>> {
        self.upnp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for all of them at once. There are as many as this box has default routes.
async fn all<T>(mut asked: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = asked.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, answer) in asked.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        if answers.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}

fn answer<T>(asked: std::io::Result<Option<T>>) -> Result<T, String> {
    match asked {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("no answer".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A router that refuses to remove what it does not have has nothing left of it either way; one that
/// says nothing may.
fn removal(asked: &std::io::Result<Option<Result<Granted, Denial>>>) -> Removal {
    match asked {
        Ok(Some(Ok(_))) => Removal::Gone,
        Ok(Some(Err(_)) | None) | Err(_) => Removal::Unknown,
    }
}
