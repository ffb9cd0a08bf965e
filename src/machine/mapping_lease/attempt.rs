//! One way of getting a port: what is asked for first, and what is asked for next when the router
//! does not like it. Every path through it ends: each kind of concession is made a bounded number
//! of times.

use std::net::{IpAddr, SocketAddr};

use super::types::{Denial, EXTERNAL_PORT_MIN, Finding, Gateway, MappingProtocol, MappingRecord, Unmapped};
use crate::base::address::is_public;
use crate::machine::backoff::SplitMix64;

/// The lease that is asked for first, in seconds. An hour: long enough that a renewal at its half
/// is rare, short enough that a mapping whose box was carried away ends soon.
pub const LEASE_SECONDS: u32 = 3_600;

/// The shorter lease after a refusal of the first, in seconds.
const SHORT_LEASE_SECONDS: u32 = 600;

/// External ports that are tried on one way, in number: each one that is taken is a coincidence, and
/// five in a row are none.
const PORTS_MAX: u32 = 5;

/// How often one way is taken anew because what it gave did not do what it should, in number.
const REMAKES_MAX: u32 = 2;

/// Requests of one attempt on one way, in number: the ports, the leases, the remakes and some
/// room. A router that answers at random ends here.
const REQUESTS_MAX: u32 = 12;

/// What is tried, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// The box's own address is public: perhaps nothing stands in the way.
    Own(SocketAddr),
    /// A mapping.
    Mapping(Box<Attempt>),
}

/// A mapping on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Whose mapping.
    pub(super) gateway: Gateway,
    /// What is asked for.
    pub(super) record: MappingRecord,
    /// The gateway's external address, once known.
    pub(super) external: Option<IpAddr>,
    /// Whether the protocol lists mappings: a read-back follows each request.
    pub(super) lists: bool,
    ports: u32,
    remakes: u32,
    requests: u32,
}

impl Attempt {
    /// Counts one request; `false` when there have been too many.
    pub(super) const fn may_request(&mut self) -> bool {
        self.requests += 1;
        self.requests <= REQUESTS_MAX
    }

    /// The same with another external port; `None` when enough have been tried.
    pub(super) fn with_other_port(mut self, draw: &mut SplitMix64) -> Option<Self> {
        self.ports += 1;
        if self.ports >= PORTS_MAX {
            return None;
        }
        self.record.external_port = other_port(self.record.external_port, draw);
        Some(self)
    }

    /// The same with the lease for ever, which a router keeps that drops every other; `None` when
    /// it was that already.
    pub(super) fn with_permanent_lease(mut self) -> Option<Self> {
        // The other protocols have no such lease.
        if self.record.protocol != MappingProtocol::Upnp || self.record.lease_seconds == 0 {
            return None;
        }
        self.record.lease_seconds = 0;
        Some(self)
    }

    /// The same anew under another port, because what was given did not do what it should.
    pub(super) fn remade(mut self, draw: &mut SplitMix64) -> Option<Self> {
        self.remakes += 1;
        if self.remakes >= REMAKES_MAX {
            return None;
        }
        self.record.external_port = other_port(self.record.external_port, draw);
        Some(self)
    }

    /// What to ask for after a denial.
    pub(super) fn after(mut self, denial: Denial, draw: &mut SplitMix64) -> Result<Self, Unmapped> {
        let upnp = self.record.protocol == MappingProtocol::Upnp;
        let same_port = self.record.internal.port();
        match denial {
            Denial::OnlyPermanent => self.with_permanent_lease().ok_or(Unmapped::Refused),
            Denial::InvalidArguments if upnp && self.record.lease_seconds > SHORT_LEASE_SECONDS => {
                self.record.lease_seconds = SHORT_LEASE_SECONDS;
                Ok(self)
            }
            Denial::InvalidArguments => self.with_permanent_lease().ok_or(Unmapped::Refused),
            Denial::SamePortOnly
                if self.record.external_port != same_port && same_port >= EXTERNAL_PORT_MIN =>
            {
                self.record.external_port = same_port;
                Ok(self)
            }
            Denial::PortTaken => self.with_other_port(draw).ok_or(Unmapped::Refused),
            Denial::NotAllowed => Err(Unmapped::NotAllowed),
            Denial::Silent => Err(Unmapped::NoAnswer),
            Denial::SamePortOnly | Denial::Unsupported | Denial::Temporary => Err(Unmapped::Refused),
        }
    }

    /// A mapping that has been made and was lost: its counts begin again.
    pub(super) const fn begin_again(&mut self) {
        self.ports = 0;
        self.remakes = 0;
        self.requests = 0;
    }
}

/// What an attempt asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) port: u16,
    pub(super) nonce: [u8; 12],
    pub(super) description: &'a str,
    pub(super) allow_private: bool,
}

/// All that is worth trying, in order: own public addresses, then the gateways as ranked, each by
/// its protocols as ranked. And what speaks against those that are left out.
pub(super) fn plan(
    network: &[Gateway],
    findings: &[Finding],
    wanted: Wanted<'_>,
    draw: &mut SplitMix64,
) -> (Vec<Plan>, Option<Unmapped>) {
    let mut plan = Vec::new();
    let mut against = None;
    for gateway in network {
        if is_public(gateway.local) {
            plan.push(Plan::Own(SocketAddr::new(gateway.local, wanted.port)));
        }
    }
    for gateway in network {
        let mut of_gateway: Vec<_> = findings
            .iter()
            .filter(|finding| finding.gateway == *gateway)
            .collect();
        of_gateway.sort_by_key(|finding| finding.protocol);
        // PCP tells no address before it maps; another protocol of the same router may have. Under IPv6
        // nothing is translated.
        let told = of_gateway.iter().find_map(|finding| finding.external);
        let external = if gateway.local.is_ipv6() {
            Some(gateway.local)
        } else {
            told
        };
        if let Some(external) = external
            && !may_be_used(external, wanted.allow_private)
        {
            against.get_or_insert(Unmapped::SecondNat { external });
            continue;
        }
        for finding in of_gateway {
            plan.push(Plan::Mapping(Box::new(Attempt {
                gateway: *gateway,
                record: MappingRecord {
                    gateway: gateway.address,
                    interface: gateway.interface,
                    protocol: finding.protocol,
                    internal: SocketAddr::new(gateway.local, wanted.port),
                    external_port: if wanted.port >= EXTERNAL_PORT_MIN {
                        wanted.port
                    } else {
                        other_port(wanted.port, draw)
                    },
                    lease_seconds: LEASE_SECONDS,
                    nonce: wanted.nonce,
                    description: wanted.description.to_owned(),
                },
                external: finding.external.or(external),
                lists: finding.protocol == MappingProtocol::Upnp,
                ports: 0,
                remakes: 0,
                requests: 0,
            })));
        }
    }
    (plan, against)
}

/// Whether an external address can be reached from outside.
pub(super) const fn may_be_used(external: IpAddr, allow_private: bool) -> bool {
    is_public(external) || (allow_private && !external.is_unspecified() && !external.is_multicast())
}

/// A port in the range that nobody is given by name, other than the present one.
fn other_port(present: u16, draw: &mut SplitMix64) -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u64 = 40_000;
    // The remainder is below 40,000.
    let port = FIRST + u16::try_from(draw.next() % COUNT).unwrap_or(0);
    if port == present { port + 1 } else { port }
}
