//! What is done with a way in that is there: read back, have it dialled, renew it, look after it,
//! and notice when it is not what it was.

use std::net::SocketAddr;
use std::time::Duration;

use super::attempt::{Attempt, may_be_used};
use super::epoch::Epoch;
use super::types::{
    Denial, EXTERNAL_PORT_MIN, Granted, MappingAction, Outcome, ProofOutcome, Seen, Sight, Unmapped,
};
use super::{LeaseView, MappingLease, Next, Stage};
use crate::base::time::Moment;

/// How often the router is asked whether it still has the mapping. Two small packets, or one
/// request, within the site; a router that has lost everything has it again within a minute.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(45);

/// The same while it does not answer: it may be starting.
pub const LOOK_AGAIN_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// Looks without an answer, in number, after which the way is taken for lost and others are tried:
/// a minute and a half, which the start of a home router takes.
const SILENCES_MAX: u32 = 9;

/// How often the other side dials a proven endpoint again. A handshake is some 7 KiB: this is
/// about 1 MiB a day.
pub const PROOF_INTERVAL: Duration = Duration::from_secs(600);

/// From a failed proof to the second one that decides: a lost packet or a router that is a moment
/// late must not cost a mapping.
const PROOF_AGAIN: Duration = Duration::from_secs(5);

/// From a proof that could not be had to the next try.
const PROOF_UNAVAILABLE: Duration = Duration::from_secs(60);

/// Failed proofs in a row, in number, that decide.
const REFUTATIONS_MAX: u32 = 2;

/// Least time between two renewals. Some routers give leases of seconds.
const RENEWAL_FLOOR: Duration = Duration::from_secs(10);

/// By what the endpoint leads here.
#[derive(Debug)]
pub(super) enum Means {
    /// It is the box's own address.
    Own,
    /// A mapping.
    Mapping(Box<Attempt>),
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chore {
    /// The first look, at what was just made.
    ReadBack,
    /// A later one.
    Look,
    Renew,
    Prove,
}

/// A way in.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) means: Means,
    pub(super) endpoint: SocketAddr,
    pub(super) proven: bool,
    pub(super) chore: Option<Chore>,
    /// `None` for a lease without end.
    lease: Option<Duration>,
    ends_at: Option<Moment>,
    read_back: bool,
    renew_at: Option<Moment>,
    look_at: Option<Moment>,
    prove_at: Moment,
    epoch: Option<Epoch>,
    silences: u32,
    refutations: u32,
}

impl Hold {
    pub(super) const fn own(endpoint: SocketAddr, now: Moment) -> Self {
        Self {
            means: Means::Own,
            endpoint,
            proven: false,
            chore: None,
            lease: None,
            ends_at: None,
            read_back: false,
            renew_at: None,
            look_at: None,
            prove_at: now,
            epoch: None,
            silences: 0,
            refutations: 0,
        }
    }

    pub(super) fn mapped(attempt: Attempt, endpoint: SocketAddr, granted: &Granted, now: Moment) -> Self {
        let first_look = if attempt.lists {
            now
        } else {
            now.plus(LOOK_INTERVAL)
        };
        let mut hold = Self {
            read_back: attempt.lists,
            look_at: Some(first_look),
            means: Means::Mapping(Box::new(attempt)),
            ..Self::own(endpoint, now)
        };
        hold.renewed(granted, now);
        hold
    }

    fn renewed(&mut self, granted: &Granted, now: Moment) {
        let lease = Duration::from_secs(u64::from(granted.lease_seconds));
        self.lease = (!lease.is_zero()).then_some(lease);
        self.ends_at = self.lease.map(|lease| now.plus(lease));
        self.renew_at = self
            .lease
            .map(|lease| now.plus((lease / 2).max(RENEWAL_FLOOR.min(lease))));
        self.epoch = granted.epoch.map(|seconds| Epoch { seconds, at: now });
    }

    pub(super) fn view(&self) -> LeaseView {
        let (protocol, gateway, internal) = match &self.means {
            Means::Own => (None, None, self.endpoint),
            Means::Mapping(attempt) => (
                Some(attempt.record.protocol),
                Some(attempt.record.gateway),
                attempt.record.internal,
            ),
        };
        LeaseView {
            protocol,
            gateway,
            internal,
            endpoint: self.endpoint,
            lease_seconds: self
                .lease
                .map(|lease| u32::try_from(lease.as_secs()).unwrap_or(u32::MAX)),
            proven: self.proven,
        }
    }

    /// What is due next, and when. Nothing is proven before it was read back.
    pub(super) fn next_chore(&self) -> (Chore, Moment) {
        if self.read_back {
            return (Chore::ReadBack, self.look_at.unwrap_or(Moment::START));
        }
        let mut next = (Chore::Prove, self.prove_at);
        for (chore, at) in [(Chore::Look, self.look_at), (Chore::Renew, self.renew_at)] {
            if let Some(at) = at
                && at < next.1
            {
                next = (chore, at);
            }
        }
        next
    }

    /// The next look and the next proof come at once.
    pub(super) fn look_soon(&mut self, now: Moment) {
        self.look_at = self.look_at.map(|at| at.min(now));
        self.prove_at = self.prove_at.min(now);
    }

    fn is_over(&self, now: Moment) -> bool {
        self.ends_at.is_some_and(|end| end <= now)
    }

    /// Whether a told epoch shows that the gateway has forgotten everything.
    fn is_forgotten_by(&mut self, seconds: u32, now: Moment) -> bool {
        let Means::Mapping(attempt) = &self.means else {
            return false;
        };
        let protocol = attempt.record.protocol;
        let lost = self
            .epoch
            .is_some_and(|epoch| epoch.is_lost_by(seconds, now, protocol));
        self.epoch = Some(Epoch { seconds, at: now });
        lost
    }
}

impl MappingLease {
    pub(super) fn hold(&mut self, hold: Hold, now: Moment) {
        self.stage = Stage::Holding(Box::new(hold));
        self.do_chores(now);
    }

    /// Does what is due.
    pub(super) fn do_chores(&mut self, now: Moment) {
        let Stage::Holding(hold) = &mut self.stage else {
            return;
        };
        let (chore, at) = hold.next_chore();
        if at > now {
            return;
        }
        hold.chore = Some(chore);
        let endpoint = hold.endpoint;
        let record = match &hold.means {
            Means::Own => None,
            Means::Mapping(attempt) => Some(attempt.record.clone()),
        };
        match (chore, record) {
            (Chore::Renew, Some(record)) => self.ask(now, |number| MappingAction::Map(number, record)),
            (Chore::ReadBack | Chore::Look, Some(record)) => {
                self.ask(now, |number| MappingAction::Look(number, record));
            }
            // An own address has nothing else to do.
            (Chore::Prove, _) | (_, None) => self.ask(now, |number| MappingAction::Prove(number, endpoint)),
        }
    }

    pub(super) fn chore_done(&mut self, mut hold: Hold, outcome: Outcome, now: Moment) {
        let chore = hold.chore.take();
        match (chore, outcome) {
            (Some(Chore::ReadBack | Chore::Look), Outcome::Looked(seen)) => {
                self.looked(hold, chore == Some(Chore::ReadBack), seen, now);
            }
            (Some(Chore::Renew), Outcome::Mapped(result)) => self.renewed(hold, result, now),
            (Some(Chore::Prove), Outcome::Proved(outcome)) => self.proved(hold, outcome, now),
            // Another kind of answer than was asked for.
            (_, _) => self.hold(hold, now),
        }
    }

    fn looked(&mut self, mut hold: Hold, first: bool, seen: Seen, now: Moment) {
        let Means::Mapping(attempt) = &hold.means else {
            return self.hold(hold, now);
        };
        let attempt = attempt.clone();
        hold.look_at = Some(now.plus(LOOK_INTERVAL));
        if let Some(external) = seen.external
            && external != hold.endpoint.ip()
        {
            hold.proven = false;
            hold.refutations = 0;
            hold.prove_at = now;
            if !may_be_used(external, self.settings.allow_private) {
                self.against = Some(Unmapped::SecondNat { external });
                self.plan.clear();
                return self.undo(attempt.record, Next::Plan, now);
            }
            hold.endpoint.set_ip(external);
        }
        match seen.sight {
            Sight::Silent => {
                hold.silences += 1;
                hold.look_at = Some(now.plus(LOOK_AGAIN_AFTER_SILENCE));
                if hold.silences >= SILENCES_MAX || hold.is_over(now) {
                    return self.begin(now);
                }
            }
            Sight::Epoch(seconds) => {
                hold.silences = 0;
                if hold.is_forgotten_by(seconds, now) {
                    return self.map_again(*attempt, now);
                }
            }
            Sight::Entry(entry) if attempt.record.is_fulfilled_by(&entry) => {
                hold.silences = 0;
                hold.read_back = false;
            }
            Sight::Entry(entry) if attempt.record.owns(&entry) => {
                // Listed with another port of this box's than was asked for, or switched off.
                let record = attempt.record.clone();
                let next = Next::try_or_plan(attempt.remade(&mut self.draw));
                self.against = Some(Unmapped::Refused);
                return self.undo(record, next, now);
            }
            Sight::Entry(_) => {
                // Somebody else's by now: the port is lost, and the entry is not ours to remove.
                self.forget_durably(&attempt.record);
                return match attempt.with_other_port(&mut self.draw) {
                    Some(attempt) => self.try_mapping(Box::new(attempt), now),
                    None => self.give_up(Unmapped::Refused, now),
                };
            }
            Sight::Absent if first => {
                self.forget_durably(&attempt.record);
                // Some firmware drops at once what has an end.
                return match attempt.with_permanent_lease() {
                    Some(attempt) => self.try_mapping(Box::new(attempt), now),
                    None => self.give_up(Unmapped::Refused, now),
                };
            }
            Sight::Absent => return self.map_again(*attempt, now),
        }
        self.hold(hold, now);
    }

    /// The router has forgotten it: the same again, at once.
    fn map_again(&mut self, mut attempt: Attempt, now: Moment) {
        attempt.begin_again();
        self.try_mapping(Box::new(attempt), now);
    }

    fn renewed(&mut self, mut hold: Hold, result: Result<Granted, Denial>, now: Moment) {
        let over = hold.is_over(now);
        let left = hold.ends_at.map_or(LOOK_INTERVAL, |end| end.since(now));
        let Means::Mapping(attempt) = &mut hold.means else {
            return self.hold(hold, now);
        };
        let granted = match result {
            Ok(granted) => granted,
            Err(Denial::Silent | Denial::Temporary) if !over => {
                // Half of what is left, and half of that.
                hold.renew_at = Some(now.plus((left / 2).max(RENEWAL_FLOOR)));
                return self.hold(hold, now);
            }
            Err(_) => {
                let record = attempt.record.clone();
                return self.undo(record, Next::Begin, now);
            }
        };
        if granted.external_port < EXTERNAL_PORT_MIN {
            let record = attempt.record.clone();
            let next = Next::try_or_plan(attempt.clone().remade(&mut self.draw));
            return self.undo(record, next, now);
        }
        let external = granted.external.unwrap_or_else(|| hold.endpoint.ip());
        attempt.record.external_port = granted.external_port;
        let record = attempt.record.clone();
        // The same lease again from now.
        self.remember(&record, now);
        let endpoint = SocketAddr::new(external, granted.external_port);
        let forgotten = granted
            .epoch
            .is_some_and(|seconds| hold.is_forgotten_by(seconds, now));
        if endpoint != hold.endpoint || forgotten {
            self.persist();
            if !may_be_used(external, self.settings.allow_private) {
                self.against = Some(Unmapped::SecondNat { external });
                self.plan.clear();
                return self.undo(record, Next::Plan, now);
            }
            hold.endpoint = endpoint;
            hold.proven = false;
            hold.refutations = 0;
            hold.prove_at = now;
        }
        hold.renewed(&granted, now);
        // Some routers write another internal port when they renew.
        if let Means::Mapping(attempt) = &hold.means
            && attempt.lists
        {
            hold.look_at = Some(now);
        }
        self.hold(hold, now);
    }

    fn proved(&mut self, mut hold: Hold, outcome: ProofOutcome, now: Moment) {
        match outcome {
            ProofOutcome::Reached => {
                hold.proven = true;
                hold.refutations = 0;
                hold.prove_at = now.plus(PROOF_INTERVAL);
                if let Means::Mapping(attempt) = &mut hold.means {
                    attempt.begin_again();
                }
            }
            ProofOutcome::Unavailable => hold.prove_at = now.plus(PROOF_UNAVAILABLE),
            ProofOutcome::Unreachable => {
                hold.proven = false;
                hold.refutations += 1;
                hold.prove_at = now.plus(PROOF_AGAIN);
                if hold.refutations >= REFUTATIONS_MAX {
                    return self.refuted(hold, now);
                }
            }
        }
        self.hold(hold, now);
    }

    /// Nothing comes through: away with it, and once more from the beginning.
    fn refuted(&mut self, hold: Hold, now: Moment) {
        let why = Unmapped::NotForwarding {
            endpoint: hold.endpoint,
        };
        match hold.means {
            Means::Own => self.give_up(why, now),
            Means::Mapping(attempt) => {
                let record = attempt.record.clone();
                self.against = Some(why);
                let next = Next::try_or_plan(attempt.remade(&mut self.draw));
                self.undo(record, next, now);
            }
        }
    }
}
