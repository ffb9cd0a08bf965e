//! Whether a published service's program is there. It is looked at once per interval, never twice at the
//! same time; one failure among successes is not told, two in a row are, and one success is enough.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::limit::foreign_text;
use crate::base::time::Moment;
use crate::contract::service::ServiceHealth;

/// Failures in a row before a program that answered is called unhealthy: one is a restart, or a check
/// that met a full queue.
pub const FAILURES_TO_FALL: u32 = 2;

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    /// The check that was asked for went well.
    Answered,
    /// It did not: why, in words.
    Failed(String),
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthAction {
    /// Look once; report the outcome.
    Check,
}

/// See the module's text.
#[derive(Debug)]
pub struct HealthMachine {
    interval: Duration,
    health: ServiceHealth,
    reason: Option<String>,
    failures: u32,
    due: Option<Moment>,
    actions: VecDeque<HealthAction>,
}

impl HealthMachine {
    /// Nothing is known; the first check is due at once.
    pub fn new(interval: Duration, now: Moment) -> Self {
        Self {
            interval,
            health: ServiceHealth::Unknown,
            reason: None,
            failures: 0,
            due: Some(now),
            actions: VecDeque::new(),
        }
    }

    /// What is known.
    pub const fn health(&self) -> ServiceHealth {
        self.health
    }

    /// Why it is unhealthy.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// One event. Outcomes that nobody waits for are left alone.
    pub fn handle_event(&mut self, event: HealthEvent, now: Moment) {
        match event {
            HealthEvent::Answered => {
                if self.due.is_none() {
                    self.health = ServiceHealth::Healthy;
                    self.reason = None;
                    self.failures = 0;
                    self.due = Some(now.plus(self.interval));
                }
            }
            HealthEvent::Failed(why) => {
                if self.due.is_none() {
                    self.failures = self.failures.saturating_add(1);
                    if self.health != ServiceHealth::Healthy || self.failures >= FAILURES_TO_FALL {
                        self.health = ServiceHealth::Unhealthy;
                        self.reason = Some(foreign_text(&why));
                    }
                    self.due = Some(now.plus(self.interval));
                }
            }
            HealthEvent::Timeout => {}
        }
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.actions.push_back(HealthAction::Check);
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<HealthAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`; `None` while a check is under way.
    pub const fn poll_timeout(&self) -> Option<Moment> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn failed() -> HealthEvent {
        HealthEvent::Failed("connection refused".to_owned())
    }

    /// A machine after these outcomes, one per interval.
    fn after(outcomes: &[HealthEvent]) -> HealthMachine {
        let mut machine = HealthMachine::new(INTERVAL, at(0));
        for (round, outcome) in (0u64..).zip(outcomes) {
            machine.handle_event(HealthEvent::Timeout, at(round * 30));
            assert_eq!(machine.poll_action(), Some(HealthAction::Check));
            machine.handle_event(outcome.clone(), at(round * 30));
        }
        machine
    }

    #[test]
    fn the_first_outcome_is_told_at_once() {
        assert_eq!(after(&[]).health(), ServiceHealth::Unknown);
        assert_eq!(after(&[HealthEvent::Answered]).health(), ServiceHealth::Healthy);
        let fallen = after(&[failed()]);
        assert_eq!(fallen.health(), ServiceHealth::Unhealthy);
        assert_eq!(fallen.reason(), Some("connection refused"));
    }

    #[test]
    fn one_failure_is_forgiven_and_one_success_heals() {
        let answered = || HealthEvent::Answered;
        assert_eq!(after(&[answered(), failed()]).health(), ServiceHealth::Healthy);
        let forgiven = after(&[answered(), failed(), answered(), failed()]);
        assert_eq!(forgiven.health(), ServiceHealth::Healthy);
        let fallen = after(&[answered(), failed(), failed()]);
        assert_eq!(fallen.health(), ServiceHealth::Unhealthy);
        let healed = after(&[failed(), failed(), answered()]);
        assert_eq!((healed.health(), healed.reason()), (ServiceHealth::Healthy, None));
    }

    #[test]
    fn an_outcome_that_nobody_waits_for_changes_nothing() {
        let mut machine = after(&[HealthEvent::Answered]);
        for _ in 0..3 {
            machine.handle_event(failed(), at(1));
        }
        assert_eq!(machine.health(), ServiceHealth::Healthy);
        assert_eq!(
            (machine.poll_action(), machine.poll_timeout()),
            (None, Some(at(30)))
        );
    }

    proptest! {
        /// There is always a check under way or one due within the interval, never two.
        #[test]
        fn never_idle_never_twice(events in proptest::collection::vec((0u8..3, 0u64..50), 1..60)) {
            let mut machine = HealthMachine::new(INTERVAL, at(0));
            let mut under_way = false;
            let mut now = Moment::START;
            for (event, seconds) in events {
                now = now.plus(Duration::from_secs(seconds));
                let event = match event {
                    0 => HealthEvent::Answered,
                    1 => failed(),
                    _ => HealthEvent::Timeout,
                };
                let is_outcome = event != HealthEvent::Timeout;
                machine.handle_event(event, now);
                under_way &= !is_outcome;
                if machine.poll_action().is_some() {
                    prop_assert!(!under_way);
                    under_way = true;
                }
                prop_assert_eq!(machine.poll_action(), None);
                match machine.poll_timeout() {
                    None => prop_assert!(under_way),
                    Some(due) => prop_assert!(!under_way && due.since(now) <= INTERVAL),
                }
            }
        }
    }
}
