//! A port on the router that leads to this box: found, asked for, proven, renewed, and given back.
//!
//! One attempt asks every gateway in every protocol at once and then tries what answered, in order:
//! map, read the entry back where the protocol lists them, have the other side dial it. Only what
//! was dialled is an [`endpoint`](MappingLease::endpoint). While it holds, the machine renews it at
//! half of its lease, looks whether it is still there, and has it dialled again from time to time.
//!
//! What may exist on a router is in a [`MappingRecord`] that is durable before the request leaves.
//! Records outlive crashes; the first thing that a new process does is to remove what they name.
//!
//! There is one request at a time, and every request has a deadline here too: the machine never
//! waits for an answer that does not come.

mod asking;
mod attempt;
mod epoch;
mod hold;
mod records;
mod types;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

pub use attempt::LEASE_SECONDS;
use attempt::{Attempt, Plan, Wanted, plan};
use hold::{Chore, Hold};
pub use hold::{LOOK_AGAIN_AFTER_SILENCE, LOOK_INTERVAL, PROOF_INTERVAL};
use records::Remembered;
pub use types::{
    Denial, EXTERNAL_PORT_MIN, Entry, Finding, Gateway, Granted, MappingAction, MappingEvent,
    MappingProtocol, MappingRecord, Outcome, ProofOutcome, RECORDS_MAX, Removal, Seen, Sight, Unmapped,
};

use crate::base::time::Moment;
use crate::machine::backoff::SplitMix64;

/// Longest that a request may take. Each client gives up earlier; this ends what was lost.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(60);

/// Shortest lease that is taken, in seconds. The protocols advise two minutes at least; one that ends
/// sooner would be renewed without end.
const LEASE_SECONDS_MIN: u32 = 60;

/// Rest after an attempt that came to nothing, before the next: a router is restarted or configured
/// by a person, who waits this long at most.
pub const REST: Duration = Duration::from_secs(15 * 60);

/// Rest after a router has said that it does not want to, or has given what does not work: asking
/// an owner's router every few minutes is no politeness.
pub const LONG_REST: Duration = Duration::from_secs(2 * 3_600);

/// Rest after a failure that concerns this box alone: no tunnel, no disk.
pub const SHORT_REST: Duration = Duration::from_secs(60);

/// What the machine is set up with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Whether a port is wanted. Without, the machine removes what earlier runs have left.
    pub enabled: bool,
    /// The port on which this box listens.
    pub port: u16,
    /// What mappings are called on the router: this box's alone.
    pub description: String,
    /// The nonce of PCP requests, from the system's randomness.
    pub nonce: [u8; 12],
    /// What a router leads here because its owner has told it so: no router is asked then.
    pub forwarded: Option<SocketAddr>,
    /// Whether addresses count that are reachable within a site alone: for labs.
    pub allow_private: bool,
    /// For the draw of ports.
    pub seed: u64,
}

/// What an operator sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// The protocol; none for a public address of the box's own.
    pub protocol: Option<MappingProtocol>,
    /// The router.
    pub gateway: Option<std::net::IpAddr>,
    /// Where this box listens.
    pub internal: SocketAddr,
    /// What leads to it.
    pub endpoint: SocketAddr,
    /// The lease in seconds; none for one without end.
    pub lease_seconds: Option<u32>,
    /// Whether it was dialled from outside, and still answered the last time.
    pub proven: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct MappingLease {
    settings: LeaseSettings,
    draw: SplitMix64,
    network: Vec<Gateway>,
    prover: bool,
    /// What may exist on gateways, the oldest first.
    records: Vec<Remembered>,
    stage: Stage,
    plan: VecDeque<Plan>,
    /// What spoke against the last thing tried.
    against: Option<Unmapped>,
    number: u64,
    /// Number and deadline of the request under way.
    request: Option<(u64, Moment)>,
    actions: VecDeque<MappingAction>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing to do until something changes or the time has come.
    Resting {
        why: Unmapped,
        until: Option<Moment>,
    },
    /// Removing what the records name on the present gateways; then an attempt.
    Clearing(VecDeque<MappingRecord>),
    Probing,
    /// Looking whose the port is, before it is asked for.
    Examining(Box<Attempt>),
    /// The intent is on its way to the disk.
    Persisting(Box<Attempt>, u64),
    Mapping(Box<Attempt>),
    /// Removing what did not do what it should.
    Undoing(MappingRecord, Next),
    /// Up, to be looked at, proven, renewed.
    Holding(Box<Hold>),
    /// Giving back what there is.
    Stopping(VecDeque<MappingRecord>),
    Stopped,
}

/// What follows on a removal.
#[derive(Debug)]
enum Next {
    /// The same way, changed.
    Try(Box<Attempt>),
    /// The next way of this attempt.
    Plan,
    /// A new attempt.
    Begin,
}

impl Next {
    fn try_or_plan(attempt: Option<Attempt>) -> Self {
        attempt.map_or(Self::Plan, |attempt| Self::Try(Box::new(attempt)))
    }
}

impl MappingLease {
    /// Goes on from what the store holds.
    pub fn new(settings: LeaseSettings, stored: Vec<MappingRecord>, now: Moment) -> Self {
        let records = stored
            .into_iter()
            .take(RECORDS_MAX)
            .map(|record| Remembered { record, since: now })
            .collect();
        Self {
            draw: SplitMix64(settings.seed),
            settings,
            network: Vec::new(),
            prover: false,
            records,
            stage: Stage::Resting {
                why: Unmapped::NoGateway,
                until: None,
            },
            plan: VecDeque::new(),
            against: None,
            number: 0,
            request: None,
            actions: VecDeque::new(),
        }
    }

    /// What leads here from outside, proven.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        match &self.stage {
            Stage::Holding(hold) if hold.proven => Some(hold.endpoint),
            _ => None,
        }
    }

    /// What there is, proven or not.
    pub fn view(&self) -> Option<LeaseView> {
        match &self.stage {
            Stage::Holding(hold) => Some(hold.view()),
            _ => None,
        }
    }

    /// Why there is nothing.
    pub fn why_not(&self) -> Option<Unmapped> {
        match &self.stage {
            Stage::Holding(_) => None,
            Stage::Resting { why, .. } => Some(*why),
            Stage::Clearing(_)
            | Stage::Probing
            | Stage::Examining(_)
            | Stage::Persisting(..)
            | Stage::Mapping(_)
            | Stage::Undoing(..) => Some(Unmapped::UnderWay),
            Stage::Stopping(_) | Stage::Stopped => Some(Unmapped::Stopped),
        }
    }

    /// What may exist on gateways, as it should be in the store.
    pub fn records(&self) -> Vec<MappingRecord> {
        self.records.iter().map(|known| known.record.clone()).collect()
    }

    /// One event. Reports that do not fit the state change nothing.
    pub fn handle_event(&mut self, event: MappingEvent, now: Moment) {
        if matches!(self.stage, Stage::Stopped) {
            return;
        }
        match event {
            MappingEvent::Network(gateways) => self.network(gateways, now),
            MappingEvent::ProverReady => self.prover_ready(now),
            MappingEvent::Done(number, outcome) => {
                if self.request.is_some_and(|(awaited, _)| awaited == number) {
                    self.request = None;
                    self.done(outcome, now);
                }
            }
            MappingEvent::Persisted(sequence) => self.persisted(sequence, true, now),
            MappingEvent::PersistFailed(sequence) => self.persisted(sequence, false, now),
            MappingEvent::Stop => self.stop(now),
            MappingEvent::Timeout => self.timeout(now),
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<MappingAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        if let Some((_, deadline)) = self.request {
            return Some(deadline);
        }
        match &self.stage {
            Stage::Resting { until, .. } => *until,
            Stage::Holding(hold) => Some(hold.next_chore().1),
            // The store answers always, and the rest waits for a request.
            Stage::Clearing(_)
            | Stage::Probing
            | Stage::Examining(_)
            | Stage::Persisting(..)
            | Stage::Mapping(_)
            | Stage::Undoing(..)
            | Stage::Stopping(_)
            | Stage::Stopped => None,
        }
    }

    fn network(&mut self, gateways: Vec<Gateway>, now: Moment) {
        if gateways == self.network {
            return;
        }
        self.network = gateways;
        if matches!(self.stage, Stage::Stopping(_)) {
            return;
        }
        // What leads to an address that is gone, or through a router that is, is worth nothing.
        self.request = None;
        self.begin(now);
    }

    fn prover_ready(&mut self, now: Moment) {
        let first = !std::mem::replace(&mut self.prover, true);
        match &mut self.stage {
            Stage::Holding(hold) => {
                // The tunnel broke: perhaps the router has begun anew, or has another address.
                hold.look_soon(now);
                if self.request.is_none() {
                    self.do_chores(now);
                }
            }
            // A router that was away may be back with the line. One that does not want to, or whose
            // ports lead nowhere, is not asked again because a tunnel flaps.
            Stage::Resting { why, .. } => {
                let asked_enough = matches!(
                    why,
                    Unmapped::NotAllowed | Unmapped::NotForwarding { .. } | Unmapped::Disabled
                );
                if first || !asked_enough || self.settings.forwarded.is_some() {
                    self.begin(now);
                }
            }
            _ => {}
        }
    }

    /// First what is left of before, then an attempt.
    fn begin(&mut self, now: Moment) {
        self.plan.clear();
        self.against = None;
        self.drop_ended(now);
        let here = self.records_here().collect();
        self.stage = Stage::Clearing(here);
        self.clear_next(now);
    }

    fn clear_next(&mut self, now: Moment) {
        let Stage::Clearing(left) = &self.stage else {
            return;
        };
        match left.front().cloned() {
            Some(record) => self.ask(now, |number| MappingAction::Unmap(number, record)),
            None => self.probe(now),
        }
    }

    fn probe(&mut self, now: Moment) {
        if !self.settings.enabled {
            return self.rest(Unmapped::Disabled, None);
        }
        if self.network.is_empty() && self.settings.forwarded.is_none() {
            return self.rest(Unmapped::NoGateway, None);
        }
        if !self.prover {
            return self.rest(Unmapped::NoProver, None);
        }
        if let Some(endpoint) = self.settings.forwarded {
            self.plan = VecDeque::from([Plan::Own(endpoint)]);
            return self.next_plan(now);
        }
        self.stage = Stage::Probing;
        let gateways = self.network.clone();
        self.ask(now, |number| MappingAction::Probe(number, gateways));
    }

    fn done(&mut self, outcome: Outcome, now: Moment) {
        let stage = std::mem::replace(&mut self.stage, Stage::Stopped);
        match (stage, outcome) {
            (Stage::Clearing(mut left), Outcome::Unmapped(removal)) => {
                if let Some(record) = left.pop_front() {
                    self.unmapped(&record, removal);
                }
                self.stage = Stage::Clearing(left);
                self.clear_next(now);
            }
            (Stage::Probing, Outcome::Probed(findings)) => {
                let wanted = Wanted {
                    port: self.settings.port,
                    nonce: self.settings.nonce,
                    description: &self.settings.description,
                    allow_private: self.settings.allow_private,
                };
                let (plan, against) = plan(&self.network, &findings, wanted, &mut self.draw);
                self.plan = plan.into();
                self.against = Some(against.unwrap_or(Unmapped::NoAnswer));
                self.next_plan(now);
            }
            (Stage::Examining(attempt), Outcome::Looked(seen)) => self.examined(attempt, seen, now),
            (Stage::Mapping(attempt), Outcome::Mapped(result)) => self.mapped(*attempt, result, now),
            (Stage::Undoing(record, next), Outcome::Unmapped(removal)) => {
                self.unmapped(&record, removal);
                match next {
                    Next::Try(attempt) => self.try_mapping(attempt, now),
                    Next::Plan => self.next_plan(now),
                    Next::Begin => self.begin(now),
                }
            }
            (Stage::Holding(hold), outcome) => self.chore_done(*hold, outcome, now),
            (Stage::Stopping(mut left), Outcome::Unmapped(removal)) => {
                if let Some(record) = left.pop_front() {
                    self.unmapped(&record, removal);
                }
                self.stage = Stage::Stopping(left);
                self.stop_next(now);
            }
            // Another kind of answer than was asked for.
            (stage, _) => {
                self.stage = stage;
                self.lost(now);
            }
        }
    }

    fn next_plan(&mut self, now: Moment) {
        match self.plan.pop_front() {
            Some(Plan::Own(endpoint)) => self.hold(Hold::own(endpoint, now), now),
            Some(Plan::Mapping(attempt)) => self.try_mapping(attempt, now),
            None => {
                let why = self.against.unwrap_or(Unmapped::NoAnswer);
                let rest = match why {
                    // A person is about to mend it.
                    Unmapped::NotForwarding { .. } if self.settings.forwarded.is_some() => REST,
                    Unmapped::NotAllowed | Unmapped::NotForwarding { .. } => LONG_REST,
                    Unmapped::NotStored | Unmapped::NoProver => SHORT_REST,
                    Unmapped::Disabled
                    | Unmapped::NoGateway
                    | Unmapped::UnderWay
                    | Unmapped::NoAnswer
                    | Unmapped::SecondNat { .. }
                    | Unmapped::Refused
                    | Unmapped::Stopped => REST,
                };
                self.rest(why, Some(now.plus(rest)));
            }
        }
    }

    fn rest(&mut self, why: Unmapped, until: Option<Moment>) {
        self.stage = Stage::Resting { why, until };
    }

    fn stop(&mut self, now: Moment) {
        if matches!(self.stage, Stage::Stopping(_)) {
            return;
        }
        self.request = None;
        let here = self.records_here().rev().collect();
        self.stage = Stage::Stopping(here);
        self.stop_next(now);
    }

    fn stop_next(&mut self, now: Moment) {
        let Stage::Stopping(left) = &self.stage else {
            return;
        };
        if let Some(record) = left.front().cloned() {
            self.ask(now, |number| MappingAction::Unmap(number, record));
        } else {
            self.stage = Stage::Stopped;
            self.actions.push_back(MappingAction::Stopped);
        }
    }

    fn timeout(&mut self, now: Moment) {
        if let Some((_, deadline)) = self.request {
            if deadline <= now {
                self.request = None;
                self.lost(now);
            }
            return;
        }
        match &self.stage {
            Stage::Resting {
                until: Some(until), ..
            } if *until <= now => self.begin(now),
            Stage::Holding(_) => self.do_chores(now),
            _ => {}
        }
    }

    /// The answer to the present request will not come.
    fn lost(&mut self, now: Moment) {
        let seen = Seen {
            sight: Sight::Silent,
            external: None,
        };
        let outcome = match &self.stage {
            Stage::Clearing(_) | Stage::Undoing(..) | Stage::Stopping(_) => {
                Outcome::Unmapped(Removal::Unknown)
            }
            Stage::Probing => Outcome::Probed(Vec::new()),
            Stage::Examining(_) => Outcome::Looked(seen),
            Stage::Mapping(_) => Outcome::Mapped(Err(Denial::Silent)),
            Stage::Holding(hold) => match hold.chore {
                Some(Chore::Renew) => Outcome::Mapped(Err(Denial::Silent)),
                Some(Chore::ReadBack | Chore::Look) => Outcome::Looked(seen),
                Some(Chore::Prove) => Outcome::Proved(ProofOutcome::Unavailable),
                None => return,
            },
            Stage::Resting { .. } | Stage::Persisting(..) | Stage::Stopped => return,
        };
        self.done(outcome, now);
    }

    fn ask(&mut self, now: Moment, action: impl FnOnce(u64) -> MappingAction) {
        self.number += 1;
        self.request = Some((self.number, now.plus(REQUEST_PATIENCE)));
        self.actions.push_back(action(self.number));
    }
}

#[cfg(test)]
mod tests;
