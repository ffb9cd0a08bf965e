//! What passes between the lease machine and whoever carries its wishes out, and what is stored.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::address::AddressScope;

/// The lowest external port that is asked for or accepted. Lower ones belong to the router's own
/// services, and 0 is a wildcard on some of them.
pub const EXTERNAL_PORT_MIN: u16 = 1_024;

/// Mappings that may exist on gateways and are remembered at once. One is in use; the others wait
/// for their gateway to come back so that they can be removed.
pub const RECORDS_MAX: usize = 8;

/// How a gateway is asked, the preferred one first: PCP tells everything in one exchange and opens
/// IPv6 too; UPnP is the most spread and the most broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingProtocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl MappingProtocol {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// A default route's gateway and the address of this box towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// The router.
    pub address: IpAddr,
    /// The interface's index, which a link-local address of a router needs; 0 where it has none.
    pub interface: u32,
    /// This box, as the router sees it.
    pub local: IpAddr,
}

/// One protocol that a gateway has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// Who answered.
    pub gateway: Gateway,
    /// In which protocol.
    pub protocol: MappingProtocol,
    /// Its external address, where the protocol tells it without a mapping; unspecified when the
    /// gateway says that it has none.
    pub external: Option<IpAddr>,
    /// Seconds since the gateway lost its state, where it tells them.
    pub epoch: Option<u32>,
}

/// A mapping that is about to be asked for, or has been: what is needed to remove it, stored
/// before the request leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingRecord {
    /// Which router.
    pub gateway: IpAddr,
    /// Its interface on this box.
    pub interface: u32,
    /// In which protocol.
    pub protocol: MappingProtocol,
    /// Where the mapping leads: this box.
    pub internal: SocketAddr,
    /// The port outside.
    pub external_port: u16,
    /// For how long, in seconds; 0 is for ever.
    pub lease_seconds: u32,
    /// By which PCP knows whose mapping it is.
    pub nonce: [u8; 12],
    /// By which UPnP knows whose mapping it is.
    pub description: String,
}

impl MappingRecord {
    /// Whether an entry that the router lists under the external port is this one. Description and
    /// address are this box's alone; the internal port is not asked for, because some routers write
    /// another one than they were told, and such an entry must go as well.
    pub fn owns(&self, entry: &Entry) -> bool {
        entry.description == self.description && entry.internal.ip() == self.internal.ip()
    }

    /// Whether an entry does what was asked for.
    pub fn is_fulfilled_by(&self, entry: &Entry) -> bool {
        self.owns(entry) && entry.internal == self.internal && entry.enabled
    }

    /// Whether two records speak of the same thing on the same router, so that the newer one stands
    /// for both. Under PCP and NAT-PMP a mapping is named by its internal side.
    pub(super) fn is_same_mapping(&self, other: &Self) -> bool {
        let key = |record: &Self| (record.gateway, record.protocol, record.internal);
        key(self) == key(other)
            && match self.protocol {
                MappingProtocol::Upnp => self.external_port == other.external_port,
                MappingProtocol::Pcp => self.nonce == other.nonce,
                MappingProtocol::NatPmp => true,
            }
    }
}

/// A mapping as the router lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it leads.
    pub internal: SocketAddr,
    /// What its maker has called it.
    pub description: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// What is left of it, in seconds; 0 is for ever.
    pub lease_seconds: u32,
}

/// What a look at the router showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// The entry under the external port.
    Entry(Entry),
    /// There is none.
    Absent,
    /// The protocol lists nothing; seconds since the gateway lost its state.
    Epoch(u32),
    /// No answer, or none that can be read.
    Silent,
}

/// A look, and the external address where it came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The entry.
    pub sight: Sight,
    /// The router's external address.
    pub external: Option<IpAddr>,
}

/// What the router gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The port outside, which may be another one than was asked for.
    pub external_port: u16,
    /// The address outside, where the answer tells it.
    pub external: Option<IpAddr>,
    /// For how long, in seconds; 0 is for ever.
    pub lease_seconds: u32,
    /// Seconds since the gateway lost its state.
    pub epoch: Option<u32>,
}

/// Why the router did not map, as far as it changes what is tried next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// UPnP 725: no lease but one for ever.
    OnlyPermanent,
    /// UPnP 402: some value is not to its liking, most often the lease.
    InvalidArguments,
    /// UPnP 718: somebody has the port.
    PortTaken,
    /// UPnP 724: outside and inside must be the same port.
    SamePortOnly,
    /// UPnP 501 and 606, PCP and NAT-PMP "not authorized" and their like: the router's owner does
    /// not want it.
    NotAllowed,
    /// The protocol or the operation is not there after all.
    Unsupported,
    /// Out of resources, no network, or anything else that may pass.
    Temporary,
    /// No answer.
    Silent,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or was not there.
    Gone,
    /// Under its port stands somebody else's; it was left alone.
    NotOurs,
    /// The router does not say; it may be there still.
    Unknown,
}

/// What the other side found when it dialled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofOutcome {
    /// It reached this very process.
    Reached,
    /// It tried and did not.
    Unreachable,
    /// It would not, or could not be asked: says nothing about the endpoint.
    Unavailable,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingEvent {
    /// The gateways of the default routes, the preferred one first; told at the start and at every
    /// change.
    Network(Vec<Gateway>),
    /// There is somebody who can dial back: a tunnel has come up, again perhaps.
    ProverReady,
    /// What became of the action with this number.
    Done(u64, Outcome),
    /// The `Persist` of this number is durable.
    Persisted(u64),
    /// It is not.
    PersistFailed(u64),
    /// The process stops.
    Stop,
    /// Time has passed.
    Timeout,
}

/// By kind of action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of `Probe`.
    Probed(Vec<Finding>),
    /// Of `Look`.
    Looked(Seen),
    /// Of `Map`.
    Mapped(Result<Granted, Denial>),
    /// Of `Unmap`.
    Unmapped(Removal),
    /// Of `Prove`.
    Proved(ProofOutcome),
}

/// What the machine wants done. Of the numbered ones there is one at a time; a later one makes the
/// answers to earlier ones worthless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingAction {
    /// Ask all gateways in all protocols at once.
    Probe(u64, Vec<Gateway>),
    /// Look at the entry, or at the gateway's epoch.
    Look(u64, MappingRecord),
    /// Map, or map again to renew.
    Map(u64, MappingRecord),
    /// Remove, after a look whether it is ours where the protocol has such.
    Unmap(u64, MappingRecord),
    /// Have the endpoint dialled from outside.
    Prove(u64, SocketAddr),
    /// Make durable what may exist on gateways; report `Persisted` or `PersistFailed`.
    Persist(u64, Vec<MappingRecord>),
    /// Nothing is left to do after `Stop`.
    Stopped,
}

/// Why nothing leads in from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unmapped {
    /// Switched off.
    #[error("switched off by reach.port_mapping")]
    Disabled,
    /// No tunnel yet over which a proof could be asked for.
    #[error("no tunnel yet to a host-bridge that could prove it")]
    NoProver,
    /// No default route with a gateway.
    #[error("no default route over a router")]
    NoGateway,
    /// Looking.
    #[error("asking the router")]
    UnderWay,
    /// No gateway speaks any of the protocols.
    #[error(
        "the router answers neither PCP nor NAT-PMP nor UPnP; switch one of them on there to have a port"
    )]
    NoAnswer,
    /// The router is itself behind a NAT, or has no address outside at all.
    #[error("{}; connected by the tunnel alone", second_nat(*external))]
    SecondNat {
        /// Its address outside; unspecified when it says that it has none.
        external: IpAddr,
    },
    /// The router does not want it.
    #[error("the router does not give ports to this box; allow it there to have one")]
    NotAllowed,
    /// The router said yes to nothing that was asked.
    #[error("the router gave no port that can be used")]
    Refused,
    /// Mapped and listed, or told by the configuration, yet nothing comes through.
    #[error("{endpoint} should lead here, but the host-bridge did not reach this satellite there")]
    NotForwarding {
        /// What was mapped.
        endpoint: SocketAddr,
    },
    /// The intent cannot be stored, and without that nothing is asked for.
    #[error("the state directory cannot be written, and without a note nothing is asked for")]
    NotStored,
    /// Stopping.
    #[error("stopping")]
    Stopped,
}

fn second_nat(external: IpAddr) -> String {
    if external.is_unspecified() {
        return "the router says that it has no public address: it is behind a second NAT, or its line is down"
            .to_owned();
    }
    let what = AddressScope::of(external).words();
    if external.is_ipv6() {
        return format!("{external} of this box is {what}");
    }
    format!("a second NAT: the router's own address outside is {external}, {what}")
}
