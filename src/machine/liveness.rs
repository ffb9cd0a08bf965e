//! When a quiet tunnel is asked for a sign of life, and when it is given up.
//!
//! Anything that arrives is life. Two rhythms: with streams open somebody is waiting, so silence
//! is questioned within seconds and ends the tunnel within [`DEAD_AFTER_BUSY`]; without streams a
//! ping each keepalive interval holds NAT mappings open and costs a metered link little, and a
//! ping that stays unanswered for [`DEAD_AFTER_IDLE_PING`] ends it.
//!
//! How long an idle tunnel may be silent, the dialing side may find out ([`BindingTime`]): it wishes to be
//! asked after a silence, so that what asks it comes in unasked through the routers on the way, and asks by
//! itself only when nothing has come for [`ASKED_TOO_LATE`] more.
//!
//! A transport knows that something has arrived, but not when: the driver looks at its counter
//! before each event and reports growth as [`LivenessEvent::Traffic`], which may be up to one
//! [`BUSY_SAMPLE`] old. A message on the control stream is reported at once, as
//! [`LivenessEvent::Message`], and it alone postpones the next keepalive.
//!
//! Order: `handle_event`, then `poll_action` until `None`, then `poll_timeout`.

use std::time::Duration;

use super::binding_time::BindingTime;
use crate::base::time::Moment;

/// Time from the last arrival to the verdict while streams are open. Short enough that a person
/// at a terminal learns it before giving up, longer than a change of Wi-Fi access points.
pub const DEAD_AFTER_BUSY: Duration = Duration::from_secs(5);

/// Time that an idle ping may stay unanswered. Nobody waits, so a lossy mobile link gets several
/// retransmissions.
pub const DEAD_AFTER_IDLE_PING: Duration = Duration::from_secs(10);

/// Time that a ping may stay unanswered that was asked for, because the path is in doubt: a network has
/// changed, or a tunnel is to be proven. As with streams open, the answer is wanted soon.
pub const DEAD_AFTER_DOUBT: Duration = DEAD_AFTER_BUSY;

/// Pause between two pings of an idle tunnel, where the accepting side names none. Below the
/// 30 s after which the tightest NATs in the field forget a UDP mapping.
pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(20);

/// Shortest keepalive that is obeyed: another side's zero must not become a busy loop.
pub const MIN_KEEPALIVE: Duration = Duration::from_secs(1);

/// Longest keepalive that is obeyed. With [`ASKED_TOO_LATE`] and [`DEAD_AFTER_IDLE_PING`] an idle tunnel whose other
/// side has died is found out within a minute; the transport's own idle limit is above that.
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(45);

/// How much later than wished the other side's question may come before this side asks: both sides count
/// from what they have seen last, and a lost packet is sent again in this time.
pub const ASKED_TOO_LATE: Duration = Duration::from_secs(4);

/// Pause between two looks at the transport's counter while streams are open.
pub const BUSY_SAMPLE: Duration = Duration::from_millis(500);

/// What is left of [`DEAD_AFTER_BUSY`] for a timer that fires late.
const TIMER_RESERVE: Duration = Duration::from_millis(250);

/// Silence, as the counter shows it, that ends a busy tunnel.
const BUSY_SILENCE: Duration = DEAD_AFTER_BUSY
    .saturating_sub(BUSY_SAMPLE)
    .saturating_sub(TIMER_RESERVE);

/// Silence after which a busy tunnel is pinged: an idle terminal session costs one small packet
/// in this time, and three pings fit before the verdict.
const BUSY_PING_AFTER: Duration = Duration::from_secs(2);

/// The other side asks again after [`BUSY_PING_REPEAT`] if the answer has not arrived: two questions no
/// further apart mean that it does not hear this side, whatever this side hears.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_millis(1_500);

/// Least pause between two changes of port because of that: a slow path answers late.
const CHANGE_PORT_REPEAT: Duration = Duration::from_secs(10);

/// Pause between unanswered pings of a busy tunnel. A new ping leaves at once, where the
/// transport's own retransmission has backed off.
const BUSY_PING_REPEAT: Duration = Duration::from_secs(1);

/// The same for an idle tunnel.
const IDLE_PING_REPEAT: Duration = Duration::from_secs(3);

/// A verdict that comes so much later than its time was slept through: the process was stopped
/// or starved, and the other side's signs of life may still lie unread in the socket. It is
/// given one more interval.
const SLEPT_THROUGH: Duration = Duration::from_secs(1);

/// What the driver tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivenessEvent {
    /// A message has just arrived on the control stream.
    Message,
    /// Something has arrived since the last look.
    Traffic,
    /// Whether any stream is open now.
    StreamsOpen(bool),
    /// The path is in doubt: ask now.
    Doubt,
    /// The other side has asked for a sign of life.
    Asked,
    /// The other side wishes to be asked after so much silence.
    Wished(Duration),
    /// The other side's host has answered a knock: nobody is there any more.
    Gone,
    /// This box is in another network: what was found out of the routers' memory holds no more.
    Moved,
    /// The time of `poll_timeout` has come.
    Timer,
}

/// What the driver shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivenessAction {
    /// Send a ping of this number.
    Ping(u64),
    /// Tell the other side to ask after so much silence.
    Wish(Duration),
    /// Ask the other side's host whether anybody is there, where the transport can: after a crash it says
    /// so at once. Asked for beside the first ping; it is believed when the second would be due, so that nobody's
    /// word ends a tunnel whose other side answers.
    Knock,
    /// Leave from another local port, where the transport can: what a router or a firewall has done to
    /// the present one does not hold for it. Asked for once in each silence, well before the verdict.
    ChangePort,
    /// Give the tunnel up. Nothing follows.
    Dead {
        /// How long nothing has arrived.
        silent_for: Duration,
    },
}

/// Whether anybody waits for the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rhythm {
    Idle,
    Busy {
        /// When the first stream opened.
        since: Moment,
        /// When the counter is looked at next.
        sample_at: Moment,
    },
}

/// Pings that nothing has answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unanswered {
    first: Moment,
    last: Moment,
    /// The answer is wanted soon.
    doubted: bool,
    /// The other side's host says that nobody is there.
    gone: bool,
    /// The silence that the first of them ended, where the other side should have asked before.
    unasked: Option<Duration>,
}

/// How long an idle tunnel is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// So long, then this side asks.
    Fixed(Duration),
    /// As long as was found out; the other side asks.
    Learned { binding: BindingTime, longest: Duration },
}

/// The machine of one side of one tunnel.
#[derive(Debug)]
pub struct Liveness {
    pace: Pace,
    rhythm: Rhythm,
    /// The last sign of life.
    alive_at: Moment,
    /// The last message on the control stream, or begin or end of streams: what the idle keepalive counts
    /// from. Of other traffic it is not known when it came.
    quiet_since: Moment,
    /// The silence that the last message has ended.
    silence: Duration,
    unanswered: Option<Unanswered>,
    /// A verdict was already put off, and nothing has arrived since.
    put_off: bool,
    next_number: u64,
    ping_due: Option<u64>,
    wish_due: Option<Duration>,
    change_port_due: bool,
    knock_due: bool,
    /// When the other side asked last.
    asked_at: Option<Moment>,
    /// When its questions last made this side leave its port.
    unheard_at: Option<Moment>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Alive,
    Dead { silent_for: Duration, told: bool },
}

impl Liveness {
    /// A tunnel whose greeting has just been completed, without streams. `keepalive` is brought
    /// between [`MIN_KEEPALIVE`] and [`MAX_KEEPALIVE`].
    pub fn new(keepalive: Duration, now: Moment) -> Self {
        Self {
            pace: Pace::Fixed(keepalive.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE)),
            rhythm: Rhythm::Idle,
            alive_at: now,
            quiet_since: now,
            silence: Duration::ZERO,
            unanswered: None,
            put_off: false,
            next_number: 1,
            ping_due: None,
            wish_due: None,
            change_port_due: false,
            knock_due: false,
            asked_at: None,
            unheard_at: None,
            verdict: Verdict::Alive,
        }
    }

    /// A tunnel of the dialing side, whose other side obeys wishes: it goes on from what is known of the
    /// routers on the way, up to `longest`.
    pub fn learning(binding: BindingTime, longest: Duration, now: Moment) -> Self {
        let longest = longest.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE);
        let mut machine = Self::new(longest, now);
        machine.pace = Pace::Learned { binding, longest };
        machine.wish_due = Some(machine.wished_silence());
        machine
    }

    /// What was found out, where anything is to be.
    pub const fn binding(&self) -> Option<BindingTime> {
        match self.pace {
            Pace::Fixed(_) => None,
            Pace::Learned { binding, .. } => Some(binding),
        }
    }

    /// Takes one event in. Events of one moment: `Traffic` first, so that the others are judged
    /// by what has arrived.
    pub fn handle_event(&mut self, event: LivenessEvent, now: Moment) {
        if self.verdict != Verdict::Alive {
            return;
        }
        match event {
            LivenessEvent::Message => {
                self.silence = now.since(self.quiet_since);
                self.quiet_since = now;
                if let Some(unasked) = self.unanswered.and_then(|pings| pings.unasked) {
                    self.learn(|binding, _| binding.not_survived(unasked));
                }
                self.sign_of_life(now);
            }
            // On an idle tunnel it may be as old as the last look: only what was asked for is news.
            LivenessEvent::Traffic if self.rhythm == Rhythm::Idle && self.unanswered.is_none() => {}
            LivenessEvent::Traffic => self.sign_of_life(now),
            LivenessEvent::StreamsOpen(open) => self.set_rhythm(open, now),
            LivenessEvent::Doubt => self.doubt(now),
            LivenessEvent::Asked => self.asked(now),
            LivenessEvent::Wished(silence) => {
                if let Pace::Fixed(keepalive) = &mut self.pace {
                    *keepalive = silence.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE);
                }
            }
            LivenessEvent::Gone => {
                if let Some(pings) = &mut self.unanswered {
                    pings.gone = true;
                }
            }
            LivenessEvent::Moved => {
                self.learn(|binding, _| *binding = BindingTime::UNKNOWN);
                self.doubt(now);
            }
            LivenessEvent::Timer => {}
        }
        self.advance(now);
    }

    /// The next thing to do, until `None`.
    pub fn poll_action(&mut self) -> Option<LivenessAction> {
        if let Verdict::Dead { silent_for, told } = self.verdict {
            self.verdict = Verdict::Dead {
                silent_for,
                told: true,
            };
            return (!told).then_some(LivenessAction::Dead { silent_for });
        }
        // From the new port already.
        if std::mem::take(&mut self.change_port_due) {
            return Some(LivenessAction::ChangePort);
        }
        let wish = self.wish_due.take().map(LivenessAction::Wish);
        let ping = wish.or_else(|| self.ping_due.take().map(LivenessAction::Ping));
        ping.or_else(|| std::mem::take(&mut self.knock_due).then_some(LivenessAction::Knock))
    }

    /// When to come back with [`LivenessEvent::Timer`]: always later than the last event; `None`
    /// after the verdict.
    pub fn poll_timeout(&self) -> Option<Moment> {
        if self.verdict != Verdict::Alive {
            return None;
        }
        let mut at = self.ping_at();
        if let Some(dead_at) = self.dead_at() {
            at = at.min(dead_at);
        }
        if let Rhythm::Busy { sample_at, .. } = self.rhythm {
            at = at.min(sample_at);
        }
        Some(at)
    }

    fn sign_of_life(&mut self, now: Moment) {
        self.change_port_due = false;
        self.knock_due = false;
        self.alive_at = now;
        self.unanswered = None;
        self.put_off = false;
    }

    /// What is known changes, and the other side is told what follows from it.
    fn learn(&mut self, change: impl FnOnce(&mut BindingTime, Duration)) {
        let before = self.wished_silence();
        if let Pace::Learned { binding, longest } = &mut self.pace {
            change(binding, *longest);
            let wished = self.wished_silence();
            if wished != before {
                self.wish_due = Some(wished);
            }
        }
    }

    fn wished_silence(&self) -> Duration {
        match self.pace {
            Pace::Fixed(keepalive) => keepalive,
            Pace::Learned { binding, longest } => binding.silence().min(longest),
        }
    }

    /// Silence after which this side asks.
    fn keepalive(&self) -> Duration {
        match self.pace {
            Pace::Fixed(keepalive) => keepalive,
            Pace::Learned { .. } => self.wished_silence().saturating_add(ASKED_TOO_LATE),
        }
    }

    fn set_rhythm(&mut self, open: bool, now: Moment) {
        if open != matches!(self.rhythm, Rhythm::Busy { .. }) {
            self.quiet_since = now;
        }
        self.rhythm = match (self.rhythm, open) {
            (_, false) => Rhythm::Idle,
            (Rhythm::Idle, true) => Rhythm::Busy {
                since: now,
                sample_at: now.plus(BUSY_SAMPLE),
            },
            (busy @ Rhythm::Busy { .. }, true) => busy,
        };
    }

    /// Does what is due.
    fn advance(&mut self, now: Moment) {
        if let Some(dead_at) = self.dead_at()
            && dead_at <= now
        {
            if self.put_off || now.since(dead_at) < SLEPT_THROUGH {
                self.give_up(now);
                return;
            }
            self.put_off = true;
            self.unanswered = None;
            self.ping(now);
            if let Rhythm::Busy { since, .. } = &mut self.rhythm {
                *since = now;
            }
        }
        if let Rhythm::Busy { sample_at, .. } = &mut self.rhythm
            && *sample_at <= now
        {
            *sample_at = now.plus(BUSY_SAMPLE);
        }
        if self.ping_at() <= now {
            if self.unanswered.is_some_and(|pings| pings.gone) {
                self.give_up(now);
            } else {
                self.ping(now);
            }
        }
    }

    fn give_up(&mut self, now: Moment) {
        self.ping_due = None;
        self.change_port_due = false;
        self.knock_due = false;
        self.verdict = Verdict::Dead {
            silent_for: now.since(self.alive_at),
            told: false,
        };
    }

    /// One that is being asked already is not given more time.
    fn doubt(&mut self, now: Moment) {
        match &mut self.unanswered {
            Some(pings) if pings.doubted => {}
            _ => {
                self.unanswered = None;
                self.ping(now);
                if let Some(pings) = &mut self.unanswered {
                    pings.doubted = true;
                }
            }
        }
    }

    fn asked(&mut self, now: Moment) {
        if self.rhythm == Rhythm::Idle {
            let silence = std::mem::take(&mut self.silence);
            self.learn(|binding, longest| binding.survived(silence, longest));
        }
        let again = self
            .asked_at
            .is_some_and(|at| now.since(at) <= ASKED_AGAIN_WITHIN);
        let lately = self
            .unheard_at
            .is_some_and(|at| now.since(at) < CHANGE_PORT_REPEAT);
        self.asked_at = Some(now);
        if again && !lately {
            self.unheard_at = Some(now);
            self.change_port_due = true;
        }
    }

    fn ping(&mut self, now: Moment) {
        let (before, due) = (self.unanswered, self.quiet_since.plus(self.keepalive()));
        let unasked = match (self.rhythm, self.pace) {
            // Slept through, the other side's question may lie unread.
            (Rhythm::Idle, Pace::Learned { .. }) if now >= due && now.since(due) < SLEPT_THROUGH => {
                Some(self.wished_silence())
            }
            _ => None,
        };
        self.change_port_due |= before.is_some_and(|pings| pings.first == pings.last);
        self.knock_due |= before.is_none();
        self.unanswered = Some(Unanswered {
            first: before.map_or(now, |pings| pings.first),
            last: now,
            doubted: before.is_some_and(|pings| pings.doubted),
            gone: before.is_some_and(|pings| pings.gone),
            unasked: before.map_or(unasked, |pings| pings.unasked),
        });
        self.ping_due = Some(self.next_number);
        self.next_number += 1;
    }

    fn ping_at(&self) -> Moment {
        match (self.rhythm, self.unanswered) {
            (_, Some(pings)) if pings.doubted || pings.gone => pings.last.plus(BUSY_PING_REPEAT),
            (Rhythm::Idle, None) => self.quiet_since.plus(self.keepalive()),
            (Rhythm::Idle, Some(pings)) => pings.last.plus(IDLE_PING_REPEAT),
            (Rhythm::Busy { .. }, None) => self.alive_at.plus(BUSY_PING_AFTER),
            (Rhythm::Busy { .. }, Some(pings)) => pings.last.plus(BUSY_PING_REPEAT),
        }
    }

    fn dead_at(&self) -> Option<Moment> {
        let by_ping = self.unanswered.map(|pings| {
            pings.first.plus(if pings.doubted {
                DEAD_AFTER_DOUBT
            } else {
                DEAD_AFTER_IDLE_PING
            })
        });
        match self.rhythm {
            Rhythm::Idle => by_ping,
            Rhythm::Busy { since, .. } => {
                let by_silence = self.alive_at.max(since).plus(BUSY_SILENCE);
                Some(by_ping.map_or(by_silence, |at| at.min(by_silence)))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
