//! The reconnect machine: when and where to dial. It resolves names anew in each round, tries
//! every address of a round, and waits between rounds with full jitter; a `Retry-After` is obeyed,
//! a minute of quiet connection forgives all earlier failures, and an operator's nudge retries at
//! once. It never gives up and never spins.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::backoff::{Backoff, BackoffPolicy};
use crate::base::time::Moment;

/// A connection that held this long was no fluke: the next failure starts with a small delay.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Most addresses tried in one round; names that resolve to more are cut.
pub const TARGETS_MAX: usize = 16;

/// One address to dial.
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

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReconnectEvent {
    /// A tunnel is wanted.
    Enable,
    /// No tunnel is wanted any more.
    Disable,
    /// The names' addresses, best first; empty when nothing resolved and nothing is remembered.
    Resolved(Vec<DialTarget>),
    /// The last `Dial` gave a tunnel.
    Connected,
    /// The last `Dial` failed.
    DialFailed(Setback),
    /// The tunnel ended.
    Lost(Setback),
    /// Try again at once: a reload, a changed network.
    RetryNow,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReconnectAction {
    /// Resolve the bridges' names; report `Resolved`.
    Resolve,
    /// Dial; report `Connected` or `DialFailed`.
    Dial(DialTarget),
    /// Close the tunnel, or give up the dial under way.
    Hangup,
}

/// Where the link stands, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// No tunnel is wanted.
    Off,
    /// Names are being resolved.
    Resolving,
    /// A dial is under way.
    Dialing(DialTarget),
    /// A tunnel is up.
    Connected(Moment),
    /// The next round starts then.
    Waiting(Moment),
}

/// See the module's text.
#[derive(Debug)]
pub struct ReconnectMachine {
    state: LinkState,
    remaining: VecDeque<DialTarget>,
    /// The worst that this round met, which sets the delay before the next.
    round: Option<Setback>,
    forgiven: bool,
    backoff: Backoff,
    actions: VecDeque<ReconnectAction>,
}

impl ReconnectMachine {
    /// Off until `Enable`.
    pub const fn new(policy: BackoffPolicy, seed: u64) -> Self {
        Self {
            state: LinkState::Off,
            remaining: VecDeque::new(),
            round: None,
            forgiven: false,
            backoff: Backoff::new(policy, seed),
            actions: VecDeque::new(),
        }
    }

    /// Other delays from the next one on.
    pub const fn set_policy(&mut self, policy: BackoffPolicy) {
        self.backoff.set_policy(policy);
    }

    /// Where it stands.
    pub const fn state(&self) -> &LinkState {
        &self.state
    }

    /// Whether a tunnel is up.
    pub const fn is_connected(&self) -> bool {
        matches!(self.state, LinkState::Connected(_))
    }

    /// Failed rounds since the last stable connection.
    pub const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// One event. Reports that do not fit the state (of a dial that was given up) change nothing.
    pub fn handle_event(&mut self, event: ReconnectEvent, now: Moment) {
        match event {
            ReconnectEvent::Enable => {
                if self.state == LinkState::Off {
                    self.start_round();
                }
            }
            ReconnectEvent::Disable => {
                if matches!(self.state, LinkState::Dialing(_) | LinkState::Connected(_)) {
                    self.actions.push_back(ReconnectAction::Hangup);
                }
                self.state = LinkState::Off;
                self.remaining.clear();
                self.backoff.reset();
            }
            ReconnectEvent::Resolved(targets) => {
                if self.state == LinkState::Resolving {
                    self.remaining = targets.into_iter().take(TARGETS_MAX).collect();
                    self.round = None;
                    self.dial_next(now);
                }
            }
            ReconnectEvent::Connected => {
                if matches!(self.state, LinkState::Dialing(_)) {
                    self.state = LinkState::Connected(now);
                    self.forgiven = false;
                    self.remaining.clear();
                }
            }
            ReconnectEvent::DialFailed(setback) => {
                if matches!(self.state, LinkState::Dialing(_)) {
                    self.round = Some(match (self.round, setback) {
                        // One address that may work later outweighs one that refuses for good,
                        // and a told delay outweighs both.
                        (Some(told @ Setback::RetryAfter(_)), _) => told,
                        (Some(Setback::Transient), Setback::Persistent) => Setback::Transient,
                        (_, latest) => latest,
                    });
                    self.dial_next(now);
                }
            }
            ReconnectEvent::Lost(setback) => {
                if matches!(self.state, LinkState::Connected(_)) {
                    self.forgive_if_stable(now);
                    self.wait(setback, now);
                }
            }
            ReconnectEvent::RetryNow => {
                if matches!(self.state, LinkState::Waiting(_)) {
                    self.backoff.reset();
                    self.start_round();
                }
            }
            ReconnectEvent::Timeout => match self.state {
                LinkState::Waiting(until) if until <= now => self.start_round(),
                LinkState::Connected(_) => self.forgive_if_stable(now),
                _ => {}
            },
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<ReconnectAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        match &self.state {
            LinkState::Waiting(until) => Some(*until),
            LinkState::Connected(since) if !self.forgiven => Some(since.plus(STABLE_AFTER)),
            LinkState::Off | LinkState::Resolving | LinkState::Dialing(_) | LinkState::Connected(_) => None,
        }
    }

    fn start_round(&mut self) {
        self.state = LinkState::Resolving;
        self.actions.push_back(ReconnectAction::Resolve);
    }

    fn dial_next(&mut self, now: Moment) {
        if let Some(target) = self.remaining.pop_front() {
            self.state = LinkState::Dialing(target.clone());
            self.actions.push_back(ReconnectAction::Dial(target));
        } else {
            let setback = self.round.take().unwrap_or(Setback::Transient);
            self.wait(setback, now);
        }
    }

    fn wait(&mut self, setback: Setback, now: Moment) {
        let delay = match setback {
            Setback::Transient => self.backoff.next_delay(),
            Setback::RetryAfter(told) => self.backoff.delay_after(told),
            Setback::Persistent => self.backoff.patient_delay(),
        };
        self.state = LinkState::Waiting(now.plus(delay));
    }

    fn forgive_if_stable(&mut self, now: Moment) {
        if let LinkState::Connected(since) = self.state
            && now.since(since) >= STABLE_AFTER
        {
            self.forgiven = true;
            self.backoff.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::backoff::{RECONNECT_INITIAL, RECONNECT_MAX};

    fn target(n: u8) -> DialTarget {
        DialTarget {
            host: format!("bridge{n}"),
            address: SocketAddr::from(([192, 0, 2, n], 8443)),
        }
    }

    fn machine() -> ReconnectMachine {
        let mut machine = ReconnectMachine::new(BackoffPolicy::default(), 3);
        machine.handle_event(ReconnectEvent::Enable, Moment::START);
        assert_eq!(machine.poll_action(), Some(ReconnectAction::Resolve));
        machine
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    /// Fails one whole round of one address and returns the delay that follows.
    fn fail_round(machine: &mut ReconnectMachine, setback: Setback, now: Moment) -> Duration {
        machine.handle_event(ReconnectEvent::Resolved(vec![target(1)]), now);
        assert_eq!(machine.poll_action(), Some(ReconnectAction::Dial(target(1))));
        machine.handle_event(ReconnectEvent::DialFailed(setback), now);
        let until = machine.poll_timeout().unwrap_or_default();
        until.since(now)
    }

    #[test]
    fn every_address_of_a_round_is_tried_before_waiting() {
        let mut machine = machine();
        machine.handle_event(ReconnectEvent::Resolved(vec![target(1), target(2)]), at(0));
        assert_eq!(machine.poll_action(), Some(ReconnectAction::Dial(target(1))));
        machine.handle_event(ReconnectEvent::DialFailed(Setback::Transient), at(1));
        assert_eq!(machine.poll_action(), Some(ReconnectAction::Dial(target(2))));
        assert_eq!(machine.poll_timeout(), None);
        machine.handle_event(ReconnectEvent::DialFailed(Setback::Persistent), at(2));
        assert_eq!(machine.poll_action(), None);
        assert!(
            machine
                .poll_timeout()
                .is_some_and(|t| t.since(at(2)) <= RECONNECT_INITIAL)
        );
    }

    #[test]
    fn without_network_or_names_it_waits_and_tries_again() {
        let mut machine = machine();
        machine.handle_event(ReconnectEvent::Resolved(vec![]), at(0));
        let until = machine.poll_timeout().unwrap_or_default();
        assert!(until > at(0));
        machine.handle_event(ReconnectEvent::Timeout, until);
        assert_eq!(machine.poll_action(), Some(ReconnectAction::Resolve));
    }

    #[test]
    fn a_stable_minute_forgives_and_an_instant_drop_does_not() {
        let mut machine = machine();
        for _ in 0..12 {
            let delay = fail_round(&mut machine, Setback::Transient, at(0));
            assert!(delay <= RECONNECT_MAX);
            machine.handle_event(ReconnectEvent::RetryNow, at(0));
            // RetryNow forgives; put the failures back by failing without it.
            machine.poll_action();
        }
        let mut machine = self::machine();
        for _ in 0..12 {
            fail_round(&mut machine, Setback::Transient, at(0));
            let until = machine.poll_timeout().unwrap_or_default();
            machine.handle_event(ReconnectEvent::Timeout, until);
            assert_eq!(machine.poll_action(), Some(ReconnectAction::Resolve));
        }
        assert_eq!(machine.failures(), 12);
        machine.handle_event(ReconnectEvent::Resolved(vec![target(1)]), at(900));
        machine.poll_action();
        machine.handle_event(ReconnectEvent::Connected, at(900));
        machine.handle_event(ReconnectEvent::Lost(Setback::Transient), at(901));
        assert_eq!(
            machine.failures(),
            13,
            "a connection of one second proves nothing"
        );
        let until = machine.poll_timeout().unwrap_or_default();
        machine.handle_event(ReconnectEvent::Timeout, until);
        machine.poll_action();
        machine.handle_event(ReconnectEvent::Resolved(vec![target(1)]), at(1_000));
        machine.poll_action();
        machine.handle_event(ReconnectEvent::Connected, at(1_000));
        assert_eq!(machine.poll_timeout(), Some(at(1_060)));
        machine.handle_event(ReconnectEvent::Timeout, at(1_060));
        assert_eq!((machine.failures(), machine.poll_timeout()), (0, None));
    }

    #[test]
    fn a_retry_after_is_obeyed() {
        let mut machine = machine();
        let delay = fail_round(&mut machine, Setback::RetryAfter(Duration::from_secs(30)), at(0));
        assert!(delay >= Duration::from_secs(30) && delay <= Duration::from_secs(60));
    }

    #[test]
    fn a_refusal_for_good_is_asked_again_patiently() {
        let mut machine = machine();
        let delay = fail_round(&mut machine, Setback::Persistent, at(0));
        assert!(delay >= RECONNECT_MAX / 2 && delay <= RECONNECT_MAX);
    }

    fn any_event() -> impl Strategy<Value = ReconnectEvent> {
        let setback = prop_oneof![
            Just(Setback::Transient),
            Just(Setback::Persistent),
            (0u64..100).prop_map(|s| Setback::RetryAfter(Duration::from_secs(s)))
        ];
        prop_oneof![
            Just(ReconnectEvent::Enable),
            Just(ReconnectEvent::Disable),
            (0u8..4).prop_map(|n| ReconnectEvent::Resolved((0..n).map(target).collect())),
            Just(ReconnectEvent::Connected),
            setback.clone().prop_map(ReconnectEvent::DialFailed),
            setback.prop_map(ReconnectEvent::Lost),
            Just(ReconnectEvent::RetryNow),
            Just(ReconnectEvent::Timeout),
        ]
    }

    proptest! {
        /// In any order of events: after draining, either a report is awaited, or a later time is
        /// named, or nothing is wanted. That is, it neither hangs nor spins.
        #[test]
        fn it_neither_hangs_nor_spins(events in proptest::collection::vec((any_event(), 0u64..5_000), 1..60)) {
            let mut machine = ReconnectMachine::new(BackoffPolicy::default(), 11);
            let mut now = Moment::START;
            for (event, millis) in events {
                now = now.plus(Duration::from_millis(millis));
                machine.handle_event(event, now);
                while machine.poll_action().is_some() {}
                match machine.state() {
                    LinkState::Waiting(until) => prop_assert_eq!(machine.poll_timeout(), Some(*until)),
                    LinkState::Connected(_) | LinkState::Off | LinkState::Resolving | LinkState::Dialing(_) => {}
                }
                if let Some(timeout) = machine.poll_timeout() {
                    machine.handle_event(ReconnectEvent::Timeout, timeout.max(now));
                    while machine.poll_action().is_some() {}
                    let after = machine.poll_timeout();
                    prop_assert!(after.is_none_or(|t| t > timeout), "the same timeout twice");
                    now = now.max(timeout);
                }
            }
        }
    }
}
