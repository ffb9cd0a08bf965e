//! What a ladder holds besides its carrier: dials, a tunnel on trial, tunnels that end with their streams.

use std::collections::VecDeque;

use super::event::{Setback, TunnelId};
use super::rung::Rung;
use crate::base::time::Moment;

/// The dials for a first carrier.
#[derive(Debug)]
pub(super) struct Race {
    pub(super) under_way: Vec<(TunnelId, Rung)>,
    pub(super) queue: VecDeque<Rung>,
    pub(super) next_at: Moment,
    pub(super) worst: Option<Setback>,
}

/// A better rung beside the carrier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Challenger {
    pub(super) id: TunnelId,
    pub(super) rung: Rung,
    pub(super) trial: Option<Trial>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    pub(super) since: Moment,
    pub(super) until: Moment,
    pub(super) probe_at: Moment,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Retired {
    pub(super) id: TunnelId,
    pub(super) rung: Rung,
    pub(super) up_since: Moment,
    /// It would do as a carrier still.
    pub(super) fit: bool,
    pub(super) not_before: Moment,
    pub(super) until: Moment,
    pub(super) drained: bool,
}

impl Race {
    pub(super) fn has(&self, rung: Rung) -> bool {
        self.queue.contains(&rung) || self.under_way.iter().any(|(_, dialled)| *dialled == rung)
    }
}

impl Retired {
    /// When it is hung up.
    pub(super) fn ends_at(&self) -> Moment {
        if self.drained { self.not_before } else { self.until }
    }
}
