//! The rung `Direct`: it is there while a way in from outside is open.

use std::collections::VecDeque;

use super::{LadderAction, LadderMachine, Loss, Race, Rung, Setback, TunnelId, WayIn};
use crate::base::time::Moment;

/// Whether a rung can be dialled at all.
pub(super) fn is_open(rung: Rung, way_in: WayIn) -> bool {
    rung != Rung::Direct || way_in == WayIn::Open
}

impl LadderMachine {
    pub(super) fn way_in(&mut self, way_in: WayIn, now: Moment) {
        self.way_in = way_in;
        let under_way = self
            .challenger
            .is_some_and(|challenger| challenger.rung == Rung::Direct);
        let carried = self.carrier.map(|carrier| carrier.rung);
        let Some(record) = self.record(Rung::Direct) else {
            return;
        };
        match way_in {
            WayIn::Closed => record.tried(),
            WayIn::Open => {
                if !under_way && carried.is_some_and(|rung| rung > Rung::Direct) {
                    record.opened(now);
                }
            }
        }
    }

    /// A tunnel may live on for a while where a new one would not come up any more; nothing is to rely on it.
    pub(super) fn withdrawn(&mut self, id: TunnelId, now: Moment) {
        let closed = Loss {
            setback: Setback::Transient,
            told: false,
            why: "the way in is not proven any more".to_owned(),
        };
        if let Some(challenger) = self.challenger.filter(|challenger| challenger.id == id) {
            let up_since = challenger.trial.map_or(now, |trial| trial.since);
            self.drop_challenger();
            self.note_loss(challenger.rung, up_since, &closed, now);
            self.plan(challenger.rung, now);
        }
        let carrier = self
            .carrier
            .filter(|carrier| carrier.id == id && carrier.rung == Rung::Direct);
        if let Some(carrier) = carrier
            && self.race.is_none()
            && self.waiting.is_none()
        {
            self.note_loss(carrier.rung, carrier.up_since, &closed, now);
            self.start_race(now);
        }
    }

    /// The host-bridge sees no tunnel any more and has dialled: that is as good as a dial of this side's.
    pub(super) fn called(&mut self, now: Moment) {
        let racing = self.race.as_ref().is_some_and(|race| race.has(Rung::Direct));
        if !self.on || racing || !self.policy.rungs.contains(&Rung::Direct) {
            return;
        }
        if let Some(carrier) = self.carrier {
            // It has broken, and this side has not noticed yet.
            self.actions.push_back(LadderAction::Probe(carrier.id));
            return;
        }
        let id = self.dial(Rung::Direct, None);
        self.waiting = None;
        let race = self.race.get_or_insert_with(|| Race {
            under_way: Vec::new(),
            queue: VecDeque::new(),
            next_at: now,
            worst: None,
        });
        race.under_way.push((id, Rung::Direct));
    }
}
