//! From a worse rung to a better one: when it is tried, its trial beside the carrier, and why it is not in use.

use super::direct::is_open;
use super::{Challenger, HOLD, LadderAction, LadderMachine, PROBE_EVERY, Rung, RungRecord, WhyNot};
use crate::base::time::Moment;

impl LadderMachine {
    /// The rungs that are better than the one in use, and why they are not used.
    pub fn better(&self, now: Moment) -> Vec<(Rung, WhyNot, Option<Moment>)> {
        let better = self.records.iter().filter(|(rung, _)| {
            self.policy.rungs.contains(rung) && self.carrier.is_none_or(|carrier| *rung < carrier.rung)
        });
        better
            .map(|(rung, record)| {
                let challenger = self.challenger.filter(|challenger| challenger.rung == *rung);
                let racing = self.race.as_ref().is_some_and(|race| race.has(*rung));
                let why = match challenger {
                    Some(Challenger {
                        trial: Some(trial), ..
                    }) => WhyNot::Proving { until: trial.until },
                    Some(Challenger { trial: None, .. }) => WhyNot::Trying,
                    None if racing => WhyNot::Trying,
                    None if !is_open(*rung, self.way_in) => WhyNot::NoWayIn,
                    None => record.why_not(now),
                };
                (*rung, why, record.next_try())
            })
            .collect()
    }

    /// When a better rung is tried.
    pub(super) fn climb_at(&self) -> Option<Moment> {
        let carrier = self.carrier.filter(|_| self.challenger.is_none())?;
        let better = self.better_rungs(carrier.rung);
        better.filter_map(|(_, record)| record.next_try()).min()
    }

    fn better_rungs(&self, than: Rung) -> impl Iterator<Item = &(Rung, RungRecord)> {
        let allowed = &self.policy.rungs;
        self.records
            .iter()
            .filter(move |(rung, _)| *rung < than && allowed.contains(rung))
    }

    /// A better rung that was given up is tried again.
    pub(super) fn plan(&mut self, rung: Rung, now: Moment) {
        if is_open(rung, self.way_in)
            && let Some(record) = self.record(rung)
        {
            record.plan(now);
        }
    }

    /// Dials the best rung that is due, beside the carrier.
    pub(super) fn climb(&mut self, from: Rung, now: Moment) {
        if self.climb_at().is_none_or(|at| at > now) {
            return;
        }
        let due = self
            .better_rungs(from)
            .find(|(_, record)| record.next_try().is_some_and(|at| at <= now));
        if let Some(rung) = due.map(|(rung, _)| *rung) {
            let id = self.dial(rung, Some(HOLD));
            self.challenger = Some(Challenger {
                id,
                rung,
                trial: None,
            });
        }
    }

    pub(super) fn advance_trial(&mut self, now: Moment) {
        let Some(Challenger {
            id,
            rung,
            trial: Some(trial),
        }) = &mut self.challenger
        else {
            return;
        };
        if trial.until <= now {
            let (id, rung, up_since) = (*id, *rung, trial.since);
            self.challenger = None;
            if let Some(before) = self.carrier.take() {
                self.retire(before, true, now);
            }
            self.carry(id, rung, up_since, now);
        } else if trial.probe_at <= now {
            trial.probe_at = now.plus(PROBE_EVERY);
            self.actions.push_back(LadderAction::Probe(*id));
        }
    }
}
