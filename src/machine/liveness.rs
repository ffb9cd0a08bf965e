//! When a quiet tunnel is asked for a sign of life, and when it is given up.
//!
//! Anything that arrives is life. Two rhythms: with streams open somebody is waiting, so silence
//! is questioned within seconds and ends the tunnel within [`DEAD_AFTER_BUSY`]; without streams a
//! ping each keepalive interval holds NAT mappings open and costs a metered link little, and a
//! ping that stays unanswered for [`DEAD_AFTER_IDLE_PING`] ends it.
//!
//! A transport knows that something has arrived, but not when: the driver looks at its counter
//! before each event and reports growth as [`LivenessEvent::Traffic`], which may be up to one
//! [`BUSY_SAMPLE`] old. A message on the control stream is reported at once, as
//! [`LivenessEvent::Message`], and it alone postpones the next keepalive.
//!
//! Order: `handle_event`, then `poll_action` until `None`, then `poll_timeout`.

use std::time::Duration;

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

/// Longest keepalive that is obeyed: below the transport's own idle limit of 30 s by enough for
/// the answer to arrive.
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(25);

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
    /// The time of `poll_timeout` has come.
    Timer,
}

/// What the driver shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivenessAction {
    /// Send a ping of this number.
    Ping(u64),
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
}

/// The machine of one side of one tunnel.
#[derive(Debug)]
pub struct Liveness {
    keepalive: Duration,
    rhythm: Rhythm,
    /// The last sign of life.
    alive_at: Moment,
    /// The last message on the control stream: what the idle keepalive counts from.
    message_at: Moment,
    unanswered: Option<Unanswered>,
    /// A verdict was already put off, and nothing has arrived since.
    put_off: bool,
    next_number: u64,
    ping_due: Option<u64>,
    change_port_due: bool,
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
            keepalive: keepalive.clamp(MIN_KEEPALIVE, MAX_KEEPALIVE),
            rhythm: Rhythm::Idle,
            alive_at: now,
            message_at: now,
            unanswered: None,
            put_off: false,
            next_number: 1,
            ping_due: None,
            change_port_due: false,
            asked_at: None,
            unheard_at: None,
            verdict: Verdict::Alive,
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
                self.message_at = now;
                self.sign_of_life(now);
            }
            LivenessEvent::Traffic => self.sign_of_life(now),
            LivenessEvent::StreamsOpen(open) => self.set_rhythm(open, now),
            LivenessEvent::Doubt => self.doubt(now),
            LivenessEvent::Asked => self.asked(now),
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
        self.ping_due.take().map(LivenessAction::Ping)
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
        self.alive_at = now;
        self.unanswered = None;
        self.put_off = false;
    }

    fn set_rhythm(&mut self, open: bool, now: Moment) {
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
                self.ping_due = None;
                self.change_port_due = false;
                self.verdict = Verdict::Dead {
                    silent_for: now.since(self.alive_at),
                    told: false,
                };
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
            self.ping(now);
        }
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
        let before = self.unanswered;
        self.change_port_due |= before.is_some_and(|pings| pings.first == pings.last);
        self.unanswered = Some(Unanswered {
            first: before.map_or(now, |pings| pings.first),
            last: now,
            doubted: before.is_some_and(|pings| pings.doubted),
        });
        self.ping_due = Some(self.next_number);
        self.next_number += 1;
    }

    fn ping_at(&self) -> Moment {
        match (self.rhythm, self.unanswered) {
            (_, Some(pings)) if pings.doubted => pings.last.plus(BUSY_PING_REPEAT),
            (Rhythm::Idle, None) => self.message_at.plus(self.keepalive),
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn started() -> Liveness {
        Liveness::new(DEFAULT_KEEPALIVE, at(0))
    }

    fn actions(machine: &mut Liveness) -> Vec<LivenessAction> {
        std::iter::from_fn(|| machine.poll_action()).collect()
    }

    /// Fires every timer up to `end` and returns what was to be done, with its time.
    fn run_silently(machine: &mut Liveness, end: Moment) -> Vec<(Moment, LivenessAction)> {
        let mut done = Vec::new();
        while let Some(next) = machine.poll_timeout().filter(|next| *next <= end) {
            machine.handle_event(LivenessEvent::Timer, next);
            done.extend(actions(machine).into_iter().map(|action| (next, action)));
        }
        done
    }

    #[test]
    fn an_idle_tunnel_is_pinged_once_per_keepalive_while_answers_come() {
        let mut machine = started();
        for round in 1..=3_u64 {
            let ping_at = at(round * 20_000 + (round - 1) * 100);
            let done = run_silently(&mut machine, ping_at.plus(Duration::from_millis(100)));
            assert_eq!(done, [(ping_at, LivenessAction::Ping(round))]);
            machine.handle_event(LivenessEvent::Message, ping_at.plus(Duration::from_millis(100)));
            assert_eq!(actions(&mut machine), []);
        }
    }

    #[test]
    fn a_path_in_doubt_is_asked_at_once_and_given_up_in_five_seconds() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::Doubt, at(7_000));
        assert_eq!(actions(&mut machine), [LivenessAction::Ping(1)]);
        machine.handle_event(LivenessEvent::Doubt, at(7_100));
        assert_eq!(actions(&mut machine), [], "it is being asked");
        let done = run_silently(&mut machine, at(60_000));
        assert_eq!(done[0], (at(8_000), LivenessAction::ChangePort));
        assert_eq!(done[1], (at(8_000), LivenessAction::Ping(2)));
        let (dead_at, verdict) = *done.last().unwrap();
        assert_eq!(dead_at, at(12_000));
        assert!(matches!(verdict, LivenessAction::Dead { .. }));
        let changes = done
            .iter()
            .filter(|(_, action)| *action == LivenessAction::ChangePort);
        assert_eq!(changes.count(), 1);
    }

    #[test]
    fn asked_twice_in_a_row_it_leaves_a_port_from_which_nothing_arrives_there() {
        let mut machine = started();
        for (millis, changes) in [
            (2_000, 0),
            (30_000, 0),
            (31_000, 1),
            (32_000, 0),
            (33_000, 0),
            (42_000, 0),
            (43_000, 1),
        ] {
            machine.handle_event(LivenessEvent::Message, at(millis));
            machine.handle_event(LivenessEvent::Asked, at(millis));
            assert_eq!(
                actions(&mut machine),
                vec![LivenessAction::ChangePort; changes],
                "{millis}"
            );
        }
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::Doubt, at(7_000));
        actions(&mut machine);
        machine.handle_event(LivenessEvent::Message, at(7_050));
        assert_eq!(machine.poll_timeout(), Some(at(27_050)), "the next keepalive");
        assert_eq!(actions(&mut machine), []);
    }

    #[test]
    fn an_idle_ping_without_answer_ends_the_tunnel_after_ten_seconds() {
        let mut machine = started();
        let done = run_silently(&mut machine, at(60_000));
        assert_eq!(
            done.last(),
            Some(&(
                at(30_000),
                LivenessAction::Dead {
                    silent_for: Duration::from_secs(30)
                }
            ))
        );
        assert_eq!(machine.poll_timeout(), None);
    }

    #[test]
    fn a_stream_that_opens_after_long_quiet_is_given_its_time() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::StreamsOpen(true), at(19_000));
        assert_eq!(
            actions(&mut machine),
            [LivenessAction::Ping(1)],
            "the peer is asked at once"
        );
        let done = run_silently(&mut machine, at(60_000));
        assert!(
            matches!(done.last(), Some((when, LivenessAction::Dead { .. })) if *when == at(19_000).plus(BUSY_SILENCE))
        );
    }

    #[test]
    fn traffic_alone_keeps_a_busy_tunnel() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::StreamsOpen(true), at(0));
        for second in 1..100 {
            machine.handle_event(LivenessEvent::Traffic, at(second * 1_000));
            assert_eq!(actions(&mut machine), []);
        }
    }

    #[test]
    fn traffic_does_not_postpone_the_idle_keepalive() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::Traffic, at(19_000));
        assert_eq!(machine.poll_timeout(), Some(at(20_000)));
    }

    #[test]
    fn a_verdict_that_was_slept_through_is_put_off_once() {
        let mut machine = started();
        machine.handle_event(LivenessEvent::StreamsOpen(true), at(0));
        machine.handle_event(LivenessEvent::Timer, at(60_000));
        assert_eq!(actions(&mut machine), [LivenessAction::Ping(1)]);
        machine.handle_event(LivenessEvent::Timer, at(120_000));
        assert!(matches!(actions(&mut machine)[..], [LivenessAction::Dead { .. }]));
    }

    #[test]
    fn another_sides_keepalive_is_kept_within_reason() {
        let machine = Liveness::new(Duration::ZERO, at(0));
        assert_eq!(machine.poll_timeout(), Some(at(0).plus(MIN_KEEPALIVE)));
        let machine = Liveness::new(Duration::MAX, at(0));
        assert_eq!(machine.poll_timeout(), Some(at(0).plus(MAX_KEEPALIVE)));
    }

    proptest! {
        /// The other side answers each ping in time while streams come and go: never dead.
        #[test]
        fn a_peer_that_answers_lives(
            keepalive in 0_u64..60_000,
            steps in proptest::collection::vec((0_u64..900, 0_u64..1_900, any::<bool>()), 1..200),
        ) {
            let mut machine = Liveness::new(Duration::from_millis(keepalive), at(0));
            let mut now = at(0);
            for (late, answer_after, open) in steps {
                let Some(next) = machine.poll_timeout() else { panic!("given up") };
                prop_assert!(next > now);
                now = next.plus(Duration::from_millis(late));
                machine.handle_event(LivenessEvent::Timer, now);
                let done = actions(&mut machine);
                prop_assert!(done.iter().all(|action| matches!(action, LivenessAction::Ping(_))), "{done:?}");
                machine.handle_event(LivenessEvent::StreamsOpen(open), now);
                let asked = !done.is_empty() || !actions(&mut machine).is_empty();
                if asked {
                    now = now.plus(Duration::from_millis(answer_after));
                    machine.handle_event(LivenessEvent::Message, now);
                    prop_assert_eq!(actions(&mut machine), []);
                }
            }
        }

        /// After any history, silence is found out in time, by finitely many wake-ups, each later
        /// than the one before.
        #[test]
        fn a_silent_peer_is_found_out(
            keepalive in 0_u64..60_000,
            history in proptest::collection::vec((0_u64..1_500, 0_u8..4), 0..100),
            busy in any::<bool>(),
            late in 0_u64..250,
        ) {
            let mut machine = Liveness::new(Duration::from_millis(keepalive), at(0));
            let mut now = at(0);
            let mut alive_at = now;
            for (pause, event) in history {
                now = now.plus(Duration::from_millis(pause));
                let event = match event {
                    0 => LivenessEvent::Traffic,
                    1 => LivenessEvent::Message,
                    2 => LivenessEvent::StreamsOpen(true),
                    _ => LivenessEvent::Timer,
                };
                if matches!(event, LivenessEvent::Traffic | LivenessEvent::Message) {
                    alive_at = now;
                }
                machine.handle_event(event, now);
                actions(&mut machine);
            }
            machine.handle_event(LivenessEvent::StreamsOpen(busy), now);
            let silent_from = now;
            let bound = if busy {
                silent_from.plus(DEAD_AFTER_BUSY.saturating_sub(BUSY_SAMPLE))
            } else {
                silent_from
                    .plus(machine.keepalive)
                    .plus(DEAD_AFTER_IDLE_PING)
                    .plus(Duration::from_millis(2 * late))
            };
            actions(&mut machine);
            let mut wakeups = 0;
            while let Some(next) = machine.poll_timeout() {
                prop_assert!(next > now, "a wake-up that is no later");
                now = next.plus(Duration::from_millis(late));
                machine.handle_event(LivenessEvent::Timer, now);
                actions(&mut machine);
                wakeups += 1;
                prop_assert!(wakeups < 100);
            }
            prop_assert!(now <= bound.max(alive_at), "{now:?} is after {bound:?}");
        }
    }
}
