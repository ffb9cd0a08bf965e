//! One way of an attempt: looked at, noted, asked for, and taken back where it is not what is wanted.

use std::net::SocketAddr;

use super::attempt::{Attempt, may_be_used};
use super::hold::Hold;
use super::types::{
    Denial, EXTERNAL_PORT_MIN, Granted, MappingAction, MappingRecord, Removal, Seen, Sight, Unmapped,
};
use super::{LEASE_SECONDS_MIN, MappingLease, Next, SHORT_REST, Stage};
use crate::base::time::Moment;

impl MappingLease {
    /// Gives up the present way for a reason and goes to the next.
    pub(super) fn give_up(&mut self, why: Unmapped, now: Moment) {
        // Why the best way failed is what the operator wants to know, unless it merely was not there.
        let known = self.against.unwrap_or(Unmapped::NoAnswer);
        if known == Unmapped::NoAnswer || matches!(why, Unmapped::SecondNat { .. }) {
            self.against = Some(why);
        }
        self.next_plan(now);
    }

    pub(super) fn try_mapping(&mut self, mut attempt: Box<Attempt>, now: Moment) {
        if !attempt.may_request() {
            return self.give_up(Unmapped::Refused, now);
        }
        if attempt.lists {
            // Some routers let one box overwrite another one's mapping.
            let record = attempt.record.clone();
            self.stage = Stage::Examining(attempt);
            self.ask(now, |number| MappingAction::Look(number, record));
        } else {
            self.persist_intent(attempt, now);
        }
    }

    pub(super) fn examined(&mut self, mut attempt: Box<Attempt>, seen: Seen, now: Moment) {
        attempt.external = seen.external.or(attempt.external);
        match seen.sight {
            Sight::Entry(entry) if !attempt.record.owns(&entry) => {
                match attempt.with_other_port(&mut self.draw) {
                    Some(attempt) => self.try_mapping(Box::new(attempt), now),
                    None => self.give_up(Unmapped::Refused, now),
                }
            }
            Sight::Entry(_) | Sight::Absent | Sight::Epoch(_) => self.persist_intent(attempt, now),
            Sight::Silent => self.give_up(Unmapped::NoAnswer, now),
        }
    }

    pub(super) fn persist_intent(&mut self, attempt: Box<Attempt>, now: Moment) {
        self.remember(&attempt.record, now);
        let sequence = self.persist();
        self.stage = Stage::Persisting(attempt, sequence);
    }

    pub(super) fn persisted(&mut self, sequence: u64, durable: bool, now: Moment) {
        match std::mem::replace(&mut self.stage, Stage::Stopped) {
            Stage::Persisting(attempt, awaited) if awaited == sequence => {
                if durable {
                    let record = attempt.record.clone();
                    self.stage = Stage::Mapping(attempt);
                    self.ask(now, |number| MappingAction::Map(number, record));
                } else {
                    // Nothing has been asked for.
                    self.forget(&attempt.record);
                    self.plan.clear();
                    self.rest(Unmapped::NotStored, Some(now.plus(SHORT_REST)));
                }
            }
            // A removal that is not durable is made again by the next process: no harm.
            stage => self.stage = stage,
        }
    }

    pub(super) fn mapped(&mut self, mut attempt: Attempt, result: Result<Granted, Denial>, now: Moment) {
        let granted = match result {
            Ok(granted) => granted,
            Err(denial) => {
                // No answer is no proof that it did nothing.
                if denial == Denial::Silent {
                    self.against = Some(Unmapped::NoAnswer);
                    return self.undo(attempt.record, Next::Plan, now);
                }
                self.forget_durably(&attempt.record);
                return match attempt.after(denial, &mut self.draw) {
                    Ok(next) => self.try_mapping(Box::new(next), now),
                    Err(why) => self.give_up(why, now),
                };
            }
        };
        let external_port = granted.external_port;
        if external_port != attempt.record.external_port {
            attempt.record.external_port = external_port;
            self.remember(&attempt.record, now);
            self.persist();
        }
        attempt.external = granted.external.or(attempt.external);
        let record = attempt.record.clone();
        let too_short = (1..LEASE_SECONDS_MIN).contains(&granted.lease_seconds);
        if external_port < EXTERNAL_PORT_MIN || too_short {
            let next = Next::try_or_plan(attempt.remade(&mut self.draw));
            self.against = Some(Unmapped::Refused);
            return self.undo(record, next, now);
        }
        let Some(external) = attempt.external else {
            self.against = Some(Unmapped::Refused);
            return self.undo(record, Next::Plan, now);
        };
        if !may_be_used(external, self.settings.allow_private) {
            self.against = Some(Unmapped::SecondNat { external });
            return self.undo(record, Next::Plan, now);
        }
        let endpoint = SocketAddr::new(external, external_port);
        self.hold(Hold::mapped(attempt, endpoint, &granted, now), now);
    }

    /// Removes a mapping, then goes on.
    pub(super) fn undo(&mut self, record: MappingRecord, next: Next, now: Moment) {
        self.stage = Stage::Undoing(record.clone(), next);
        self.ask(now, |number| MappingAction::Unmap(number, record));
    }

    pub(super) fn unmapped(&mut self, record: &MappingRecord, removal: Removal) {
        match removal {
            Removal::Gone | Removal::NotOurs => self.forget_durably(record),
            // Another time; a lease with an end ends by itself.
            Removal::Unknown => {}
        }
    }
}
