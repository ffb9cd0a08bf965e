//! The ladder to one host-bridge: which way carries, and when a better one takes over.
//!
//! A *race* finds the first carrier: the best rung gets a head start, the next ones follow, and who
//! is up first carries. The choice is never final. While a worse rung carries, better ones are tried
//! again with backoff, by a whole dial; what comes up is on *trial* until it has held for a while, then
//! it carries, and the tunnel before it is *retired*: its streams go on until they end. A rung that comes
//! up and collapses again and again is barred for a growing time, so that a network that flaps does
//! not make the ladder oscillate. Where nothing else works, a barred rung is tried all the same.
//!
//! The best rung, `Direct`, is the host-bridge's dial, which is asked for over the present carrier: it takes part
//! in no race, is climbed to while a way in is open, and left for the others when that closes or it breaks. Only
//! where the host-bridge has lost all tunnels and dials by itself, it takes part in the race for the next one.
//!
//! It never gives up and never spins: while a tunnel is wanted there is a carrier, a dial, or a time.

mod addresses;
mod climb;
mod direct;
mod event;
mod held;
mod rung;

use std::collections::VecDeque;
use std::time::Duration;

use addresses::combine;
pub use addresses::{ADDRESSES_MAX, AddressEvent, AddressRace, AddressVerdict, DIALS_MAX, STAGGER};
use direct::is_open;
pub use event::{
    Carrier, DialFailure, DialTarget, LadderAction, LadderEvent, LadderPolicy, LadderState, Loss, Setback,
    TunnelId, WayIn,
};
use held::{Challenger, Race, Retired, Trial};
use rung::RungRecord;
pub use rung::{BAR_INITIAL, BAR_MAX, COLLAPSED_WITHIN, COLLAPSES_MAX, Rung, TRUSTED_AFTER, WhyNot};

use super::backoff::Backoff;
use crate::base::time::Moment;

/// Head start of each rung before the next is dialled beside it: a round trip over a satellite. A
/// network that swallows UDP costs no more than this.
pub const HEAD_START: Duration = Duration::from_millis(300);

/// Ceiling of the wait before a better rung is first tried again.
pub const CLIMB_INITIAL: Duration = Duration::from_secs(10);

/// Last ceiling of that wait. A dial into a network that swallows UDP sends about 7 KB, so forty-eight
/// of them in a day are a third of a megabyte; a changed network is looked at without waiting.
pub const CLIMB_MAX: Duration = Duration::from_secs(1_800);

/// How long a better tunnel must hold before it carries: long enough that one whose path is dead is
/// found out by [`PROBE_EVERY`].
pub const HOLD: Duration = Duration::from_secs(10);

/// How often a tunnel on trial is asked for a sign of life.
pub const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Least life of a retired tunnel: what the other side has just opened on it is on its way.
pub const OVERLAP: Duration = Duration::from_secs(3);

/// Longest life of a retired tunnel. Long enough for a download or a shell over lunch; without any, one
/// forgotten shell would hold it for ever.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(3_600);

/// Most retired tunnels at once; the oldest goes. More than one means that the network flaps.
pub const RETIRED_MAX: usize = 2;

/// A carrier that held this long was no fluke: the next failure starts with a small delay.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Debug)]
pub struct LadderMachine {
    policy: LadderPolicy,
    seed: u64,
    next_id: u64,
    on: bool,
    carrier: Option<Carrier>,
    race: Option<Race>,
    waiting: Option<Moment>,
    challenger: Option<Challenger>,
    retired: Vec<Retired>,
    records: Vec<(Rung, RungRecord)>,
    way_in: WayIn,
    rounds: Backoff,
    /// The minute of calm that forgives failed rounds is over.
    forgiven: bool,
    trusted: bool,
    last_failure: Option<String>,
    actions: VecDeque<LadderAction>,
}

impl LadderMachine {
    /// Off until `Enable`. Its tunnels are numbered from `first_id` on.
    pub fn new(policy: LadderPolicy, first_id: u64, seed: u64) -> Self {
        let rounds = Backoff::new(policy.backoff, seed);
        let mut machine = Self {
            policy,
            seed,
            next_id: first_id,
            on: false,
            carrier: None,
            race: None,
            waiting: None,
            challenger: None,
            retired: Vec::new(),
            records: Vec::new(),
            way_in: WayIn::Closed,
            rounds,
            forgiven: false,
            trusted: false,
            last_failure: None,
            actions: VecDeque::new(),
        };
        machine.keep_records();
        machine
    }

    /// Other delays and rungs from now on. A carrier on a rung that is not allowed any more is retired.
    pub fn set_policy(&mut self, policy: LadderPolicy, now: Moment) {
        self.rounds.set_policy(policy.backoff);
        self.policy = policy;
        self.keep_records();
        let climb = self.policy.climb;
        for (_, record) in &mut self.records {
            record.set_policy(climb);
        }
        let allowed = |rung: Rung| self.policy.rungs.contains(&rung);
        if self.carrier.is_some_and(|carrier| !allowed(carrier.rung)) {
            self.handle_event(LadderEvent::Renew, now);
        }
    }

    /// Where it stands.
    pub fn state(&self) -> LadderState {
        match (self.on, self.carrier, self.waiting) {
            (false, _, _) => LadderState::Off,
            (true, Some(carrier), _) => LadderState::Carried(carrier),
            (true, None, Some(until)) => LadderState::Waiting(until),
            (true, None, None) => LadderState::Racing,
        }
    }

    /// The tunnel that new streams use.
    pub const fn carrier(&self) -> Option<Carrier> {
        self.carrier
    }

    /// Failed races since the last stable carrier.
    pub const fn failures(&self) -> u32 {
        self.rounds.failures()
    }

    /// Why there was no tunnel the last time, in words; `None` while one carries.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref().filter(|_| self.carrier.is_none())
    }

    /// How many retired tunnels still have streams.
    pub fn draining(&self) -> usize {
        self.retired.len()
    }

    /// One event. Reports of tunnels that were hung up change nothing.
    pub fn handle_event(&mut self, event: LadderEvent, now: Moment) {
        match event {
            LadderEvent::Enable => {
                if !self.on {
                    self.on = true;
                    self.start_race(now);
                }
            }
            LadderEvent::Disable => {
                if let Some(carrier) = self.carrier.take() {
                    self.hang_up(carrier.id);
                }
                self.dismiss(now);
                for retired in std::mem::take(&mut self.retired) {
                    self.hang_up(retired.id);
                }
                self.rounds.reset();
            }
            LadderEvent::Dismiss => self.dismiss(now),
            LadderEvent::Renew => {
                if self.on {
                    self.dismiss(now);
                    self.on = true;
                    self.start_race(now);
                }
            }
            LadderEvent::Connected(id) => self.connected(id, now),
            LadderEvent::DialFailed(id, failure) => self.dial_failed(id, failure, now),
            LadderEvent::Lost(id, loss) => self.lost(id, loss, now),
            LadderEvent::Drained(id) => {
                if let Some(retired) = self.retired.iter_mut().find(|retired| retired.id == id) {
                    retired.drained = true;
                }
            }
            LadderEvent::Overrun(id, why) => self.overrun(id, why, now),
            LadderEvent::NetworkChanged | LadderEvent::RetryNow => {
                self.look_again(event == LadderEvent::NetworkChanged, now);
            }
            LadderEvent::WayIn(way_in) => self.way_in(way_in, now),
            LadderEvent::Called => self.called(now),
            LadderEvent::Withdrawn(id) => self.withdrawn(id, now),
            LadderEvent::Timeout => {}
        }
        self.advance(now);
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<LadderAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let race = self
            .race
            .as_ref()
            .and_then(|race| (!race.queue.is_empty()).then_some(race.next_at));
        let trial = self
            .challenger
            .and_then(|challenger| challenger.trial)
            .map(|trial| trial.until.min(trial.probe_at));
        let retired = self.retired.iter().map(Retired::ends_at).min();
        let calm = self.carrier.and_then(|carrier| {
            let forgiving = (!self.forgiven).then(|| carrier.since.plus(STABLE_AFTER));
            let trusting = (!self.trusted).then(|| carrier.since.plus(TRUSTED_AFTER));
            forgiving.or(trusting)
        });
        [self.waiting, race, trial, retired, calm, self.climb_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn keep_records(&mut self) {
        self.policy.rungs.sort_unstable();
        self.policy.rungs.dedup();
        for rung in &self.policy.rungs {
            if !self.records.iter().any(|(known, _)| known == rung) {
                let seed = self.seed.rotate_left(8 * (*rung as u32 + 1));
                self.records
                    .push((*rung, RungRecord::new(self.policy.climb, seed)));
            }
        }
        self.records.sort_unstable_by_key(|(rung, _)| *rung);
    }

    fn record(&mut self, rung: Rung) -> Option<&mut RungRecord> {
        self.records
            .iter_mut()
            .find(|(known, _)| *known == rung)
            .map(|(_, record)| record)
    }

    fn is_barred(&self, rung: Rung, now: Moment) -> bool {
        let record = self.records.iter().find(|(known, _)| *known == rung);
        record.is_some_and(|(_, record)| record.is_barred(now))
    }

    fn dial(&mut self, rung: Rung, trial: Option<Duration>) -> TunnelId {
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        if let Some(record) = self.record(rung) {
            record.tried();
        }
        self.actions.push_back(LadderAction::Dial { id, rung, trial });
        id
    }

    fn hang_up(&mut self, id: TunnelId) {
        self.actions.push_back(LadderAction::Hangup(id));
    }

    /// Best first; what is barred comes last, and is not left out.
    fn start_race(&mut self, now: Moment) {
        let (barred, usable): (Vec<Rung>, Vec<Rung>) = self
            .policy
            .rungs
            .iter()
            .filter(|rung| **rung != Rung::Direct)
            .partition(|rung| self.is_barred(**rung, now));
        self.waiting = None;
        self.race = Some(Race {
            under_way: Vec::new(),
            queue: usable.into_iter().chain(barred).collect(),
            next_at: now,
            worst: None,
        });
    }

    fn wait(&mut self, setback: Setback, why: String, now: Moment) {
        let delay = match setback {
            Setback::Transient => self.rounds.next_delay(),
            Setback::RetryAfter(told) => self.rounds.delay_after(told),
            Setback::Persistent => self.rounds.patient_delay(),
        };
        self.last_failure = Some(why);
        self.end_race();
        self.waiting = Some(now.plus(delay));
    }

    /// Gives up what is left of the race.
    fn end_race(&mut self) {
        for (id, _) in self.race.take().map(|race| race.under_way).unwrap_or_default() {
            self.hang_up(id);
        }
    }

    fn drop_challenger(&mut self) {
        if let Some(challenger) = self.challenger.take() {
            self.hang_up(challenger.id);
        }
    }

    fn dismiss(&mut self, now: Moment) {
        self.on = false;
        self.waiting = None;
        self.end_race();
        self.drop_challenger();
        // What presents an old identity, or is not wanted, must not carry again.
        for retired in &mut self.retired {
            retired.fit = false;
        }
        if let Some(carrier) = self.carrier.take() {
            self.retire(carrier, false, now);
        }
    }

    fn retire(&mut self, carrier: Carrier, fit: bool, now: Moment) {
        if self.retired.len() >= RETIRED_MAX {
            let oldest = self.retired.remove(0);
            self.hang_up(oldest.id);
        }
        self.retired.push(Retired {
            id: carrier.id,
            rung: carrier.rung,
            up_since: carrier.up_since,
            fit,
            not_before: now.plus(OVERLAP),
            until: now.plus(DRAIN_LIMIT),
            drained: false,
        });
        self.actions.push_back(LadderAction::Retire(carrier.id));
    }

    fn carry(&mut self, id: TunnelId, rung: Rung, up_since: Moment, now: Moment) {
        self.carrier = Some(Carrier {
            id,
            rung,
            up_since,
            since: now,
        });
        self.waiting = None;
        self.forgiven = false;
        self.trusted = false;
        // Those that are better and do not come up by themselves are tried again.
        let challenged = self.challenger.map(|challenger| challenger.rung);
        let way_in = self.way_in;
        for (better, record) in &mut self.records {
            if *better < rung && Some(*better) != challenged && is_open(*better, way_in) {
                record.plan(now);
            }
        }
    }

    fn connected(&mut self, id: TunnelId, now: Moment) {
        if let Some(race) = &mut self.race
            && let Some(at) = race.under_way.iter().position(|(dial, _)| *dial == id)
        {
            let (_, rung) = race.under_way.remove(at);
            // A better one that is still on its way may come up yet.
            let slower = race.under_way.iter().copied();
            let better = slower
                .filter(|(_, other)| *other < rung)
                .min_by_key(|(_, other)| *other);
            let better = better.filter(|(_, other)| !self.is_barred(*other, now));
            if let (Some((id, rung)), Some(race)) = (better, &mut self.race) {
                race.under_way.retain(|(dial, _)| *dial != id);
                self.challenger = Some(Challenger {
                    id,
                    rung,
                    trial: None,
                });
            }
            self.end_race();
            // It has lost its way in, and its streams may end.
            if let Some(before) = self.carrier.take() {
                self.retire(before, false, now);
            }
            self.carry(id, rung, now, now);
            return;
        }
        match &mut self.challenger {
            Some(challenger) if challenger.id == id && challenger.trial.is_none() => {
                challenger.trial = Some(Trial {
                    since: now,
                    until: now.plus(HOLD),
                    probe_at: now.plus(PROBE_EVERY),
                });
            }
            _ => {
                let known = self.carrier.is_some_and(|carrier| carrier.id == id)
                    || self.challenger.is_some_and(|challenger| challenger.id == id)
                    || self.retired.iter().any(|retired| retired.id == id);
                if !known {
                    self.hang_up(id);
                }
            }
        }
    }

    fn dial_failed(&mut self, id: TunnelId, failure: DialFailure, now: Moment) {
        if let Some(challenger) = self.challenger.filter(|challenger| challenger.id == id) {
            self.challenger = None;
            if let Some(record) = self.record(challenger.rung) {
                record.failed(failure.why);
            }
            self.plan(challenger.rung, now);
            return;
        }
        let Some(race) = &mut self.race else { return };
        let Some(at) = race.under_way.iter().position(|(dial, _)| *dial == id) else {
            return;
        };
        let (_, rung) = race.under_way.remove(at);
        race.worst = Some(combine(race.worst, failure.setback));
        let (alone, last) = (race.under_way.is_empty(), race.queue.is_empty());
        let worst = race.worst.unwrap_or(failure.setback);
        if alone {
            race.next_at = now;
        }
        if let Some(record) = self.record(rung) {
            record.failed(failure.why.clone());
        }
        if failure.answered || (alone && last) {
            let setback = if failure.answered { failure.setback } else { worst };
            self.wait(setback, failure.why, now);
        }
    }

    fn lost(&mut self, id: TunnelId, loss: Loss, now: Moment) {
        if let Some(at) = self.retired.iter().position(|retired| retired.id == id) {
            self.retired.remove(at);
            return;
        }
        if let Some(challenger) = self.challenger.filter(|challenger| challenger.id == id) {
            self.challenger = None;
            let up_since = challenger.trial.map_or(now, |trial| trial.since);
            self.note_loss(challenger.rung, up_since, &loss, now);
            self.plan(challenger.rung, now);
            return;
        }
        let Some(carrier) = self.carrier.take_if(|carrier| carrier.id == id) else {
            return;
        };
        if self.race.is_some() {
            // A successor is on its way already, and the reason for it is noted.
            self.last_failure = Some(loss.why);
            return;
        }
        self.note_loss(carrier.rung, carrier.up_since, &loss, now);
        if now.since(carrier.since) >= STABLE_AFTER {
            self.rounds.reset();
        }
        if self.succeed(now) {
            return;
        }
        // It would be on trial beside nothing.
        self.drop_challenger();
        if carrier.rung == Rung::Direct && !loss.told {
            // The other rungs have not failed.
            self.last_failure = Some(loss.why);
            self.start_race(now);
        } else {
            self.wait(loss.setback, loss.why, now);
        }
    }

    /// Goodbyes are the host-bridge's business; what breaks speaks against the rung.
    fn note_loss(&mut self, rung: Rung, up_since: Moment, loss: &Loss, now: Moment) {
        let others = self.policy.rungs.iter().filter(|other| **other != Rung::Direct);
        let alone = rung != Rung::Direct && others.count() < 2;
        if let Some(record) = self.record(rung) {
            if loss.told || alone {
                record.failed(loss.why.clone());
            } else {
                record.collapsed(up_since, loss.why.clone(), now);
            }
        }
    }

    /// Its streams stay where they are; what comes goes over another rung, where there is one.
    fn overrun(&mut self, id: TunnelId, why: String, now: Moment) {
        let Some(carrier) = self.carrier.filter(|carrier| carrier.id == id) else {
            return;
        };
        if self.policy.rungs.len() < 2 {
            return;
        }
        if let Some(record) = self.record(carrier.rung) {
            record.overrun(why, now);
        }
        self.drop_challenger();
        self.carrier = None;
        self.retire(carrier, true, now);
        self.start_race(now);
    }

    /// Another tunnel is up that can carry at once: the one on trial, or the one before.
    fn succeed(&mut self, now: Moment) -> bool {
        if let Some(Challenger {
            id,
            rung,
            trial: Some(trial),
        }) = self.challenger
        {
            self.challenger = None;
            self.carry(id, rung, trial.since, now);
            return true;
        }
        let Some(at) = self.retired.iter().rposition(|retired| retired.fit) else {
            return false;
        };
        let retired = self.retired.remove(at);
        self.carry(retired.id, retired.rung, retired.up_since, now);
        true
    }

    fn look_again(&mut self, network_changed: bool, now: Moment) {
        for (_, record) in &mut self.records {
            record.network_changed(now);
        }
        if self.waiting.is_some() {
            self.rounds.reset();
            self.start_race(now);
        }
        if network_changed {
            let on_trial = self.challenger.filter(|challenger| challenger.trial.is_some());
            let up = [
                self.carrier.map(|carrier| carrier.id),
                on_trial.map(|challenger| challenger.id),
            ];
            let retired = self.retired.iter().map(|retired| retired.id);
            let probes = up.into_iter().flatten().chain(retired).map(LadderAction::Probe);
            self.actions.extend(probes);
        }
    }

    /// Does what is due.
    fn advance(&mut self, now: Moment) {
        if self.waiting.is_some_and(|until| until <= now) {
            self.start_race(now);
        }
        self.advance_race(now);
        self.advance_trial(now);
        if let Some(carrier) = self.carrier {
            if !self.forgiven && now.since(carrier.since) >= STABLE_AFTER {
                self.forgiven = true;
                self.rounds.reset();
            }
            if !self.trusted && now.since(carrier.since) >= TRUSTED_AFTER {
                self.trusted = true;
                if let Some(record) = self.record(carrier.rung) {
                    record.trusted();
                }
            }
            self.climb(carrier.rung, now);
        }
        while let Some(at) = self.retired.iter().position(|retired| retired.ends_at() <= now) {
            let retired = self.retired.remove(at);
            self.hang_up(retired.id);
        }
    }

    fn advance_race(&mut self, now: Moment) {
        while let Some(race) = &mut self.race
            && race.next_at <= now
            && let Some(rung) = race.queue.pop_front()
        {
            race.next_at = now.plus(HEAD_START);
            let id = self.dial(rung, None);
            if let Some(race) = &mut self.race {
                race.under_way.push((id, rung));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
