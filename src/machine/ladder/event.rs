//! What a ladder is told and what it wants done, and the words that both sides of it share.

use std::net::SocketAddr;
use std::time::Duration;

use super::rung::Rung;
use super::{CLIMB_INITIAL, CLIMB_MAX};
use crate::base::time::Moment;
use crate::machine::backoff::BackoffPolicy;

/// A tunnel, or the dial that may become one; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub u64);

impl std::fmt::Display for TunnelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One address of a host-bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialTarget {
    /// The name that the certificate must carry.
    pub host: String,
    /// Where to send the packets.
    pub address: SocketAddr,
}

/// How a dial or a tunnel ended, as far as the next try depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// Nothing answered, or it broke: try again with backoff.
    Transient,
    /// The other side said when to come back.
    RetryAfter(Duration),
    /// Time alone will not lift it (not admitted, wrong certificate): try again, patiently.
    Persistent,
}

/// Why a dial came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialFailure {
    /// What the next try depends on.
    pub setback: Setback,
    /// The host-bridge itself answered, and refused: it would say the same on every other rung.
    pub answered: bool,
    /// In words.
    pub why: String,
}

/// How a tunnel was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// What the next try depends on.
    pub setback: Setback,
    /// The other side took its leave; otherwise the network or the other side's host failed, which
    /// speaks against the rung.
    pub told: bool,
    /// In words.
    pub why: String,
}

/// Whether there is an endpoint of this box that was dialled from outside and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WayIn {
    /// None.
    #[default]
    Closed,
    /// One at least.
    Open,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LadderEvent {
    /// A tunnel is wanted.
    Enable,
    /// No tunnel is wanted any more, at once.
    Disable,
    /// No tunnel is wanted any more; the streams of the present one may end.
    Dismiss,
    /// What a dial presents has changed: a new carrier is wanted, and the present one is retired.
    Renew,
    /// A dial gave a tunnel.
    Connected(TunnelId),
    /// A dial failed.
    DialFailed(TunnelId, DialFailure),
    /// A tunnel ended.
    Lost(TunnelId, Loss),
    /// A retired tunnel has no open stream.
    Drained(TunnelId),
    /// A tunnel carries less than it should, for this reason: its socket is overrun.
    Overrun(TunnelId, String),
    /// The box's addresses or routes are others now.
    NetworkChanged,
    /// Whether the host-bridge could dial this box.
    WayIn(WayIn),
    /// The host-bridge has dialled by itself, and waits to be greeted.
    Called,
    /// The endpoint at which this tunnel has come in is not proven any more.
    Withdrawn(TunnelId),
    /// Try at once whatever may be tried: a reload.
    RetryNow,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LadderAction {
    /// Dial; report `Connected` or `DialFailed`, and once connected `Lost`.
    Dial {
        /// Its number from now on.
        id: TunnelId,
        /// Which way.
        rung: Rung,
        /// How long it will be on trial beside a carrier, if it will.
        trial: Option<Duration>,
    },
    /// Give up a dial, or end a tunnel; nothing is to be reported.
    Hangup(TunnelId),
    /// Open nothing more on it; report `Drained` when it has no open stream.
    Retire(TunnelId),
    /// Ask the other side of a tunnel for a sign of life now.
    Probe(TunnelId),
}

/// Which rungs, and how eagerly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderPolicy {
    /// The rungs that may be used, best first; never empty.
    pub rungs: Vec<Rung>,
    /// Waits between races.
    pub backoff: BackoffPolicy,
    /// Waits between tries of a better rung.
    pub climb: BackoffPolicy,
}

impl Default for LadderPolicy {
    fn default() -> Self {
        Self {
            rungs: vec![Rung::Quic, Rung::Tls],
            backoff: BackoffPolicy::default(),
            climb: BackoffPolicy {
                initial: CLIMB_INITIAL,
                max: CLIMB_MAX,
            },
        }
    }
}

/// The tunnel that new streams use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// Which.
    pub id: TunnelId,
    /// Over what.
    pub rung: Rung,
    /// Since when the tunnel is up.
    pub up_since: Moment,
    /// Since when it carries.
    pub since: Moment,
}

/// Where the ladder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LadderState {
    /// No tunnel is wanted.
    Off,
    /// A race is on.
    Racing,
    /// A tunnel carries.
    Carried(Carrier),
    /// The next race starts then.
    Waiting(Moment),
}
