//! The heartbeat machine (contract section 5): one every 60 s while a tunnel is up. Heartbeats
//! that could not be sent are not queued: when a tunnel is back, one is sent at once if one is
//! due, with whatever is true then.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::time::Moment;
use crate::contract::peer::HEARTBEAT_INTERVAL;

/// Delay before a failed heartbeat is sent again: soon enough for several tries before the parent
/// calls us stale after five minutes, rare enough for a parent in trouble.
pub const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(15);

/// Least distance between two heartbeats, however often their content changes.
pub const MINIMUM_DISTANCE: Duration = Duration::from_secs(5);

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatEvent {
    /// A tunnel with our certificate is up.
    LinkUp,
    /// It is gone.
    LinkDown,
    /// The parent acknowledged the last heartbeat.
    Acknowledged,
    /// The parent refused it: 401 while suspended or revoked.
    Refused,
    /// No answer, or the parent is in trouble; it may have said when to come back.
    Failed(Option<Duration>),
    /// What a heartbeat would say has changed.
    ContentChanged,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatAction {
    /// Send one with what is true now; report its outcome.
    Send,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct HeartbeatMachine {
    link_up: bool,
    in_flight: bool,
    /// Send again as soon as the one in flight is answered.
    changed_in_flight: bool,
    last_sent: Option<Moment>,
    last_acknowledged: Option<Moment>,
    due: Option<Moment>,
    consecutive_failures: u32,
    actions: VecDeque<HeartbeatAction>,
}

impl HeartbeatMachine {
    /// Nothing sent yet; the first is due as soon as a tunnel is up.
    pub fn new() -> Self {
        Self::default()
    }

    /// When the parent last acknowledged one.
    pub const fn last_acknowledged(&self) -> Option<Moment> {
        self.last_acknowledged
    }

    /// Whether one was sent whose outcome is not known.
    pub const fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Heartbeats without acknowledgement since the last good one.
    pub const fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// One event.
    pub fn handle_event(&mut self, event: HeartbeatEvent, now: Moment) {
        match event {
            HeartbeatEvent::LinkUp => {
                self.link_up = true;
                self.in_flight = false;
                let due = self
                    .last_acknowledged
                    .map_or(now, |at| at.plus(HEARTBEAT_INTERVAL));
                self.due = Some(due);
            }
            HeartbeatEvent::LinkDown => {
                self.link_up = false;
                self.in_flight = false;
                self.due = None;
            }
            HeartbeatEvent::Acknowledged => {
                if self.answered() {
                    self.last_acknowledged = Some(now);
                    self.consecutive_failures = 0;
                    self.schedule(now, HEARTBEAT_INTERVAL);
                }
            }
            HeartbeatEvent::Refused => {
                if self.answered() {
                    self.consecutive_failures = self.consecutive_failures.saturating_add(1);
                    self.schedule(now, HEARTBEAT_INTERVAL);
                }
            }
            HeartbeatEvent::Failed(retry_after) => {
                if self.answered() {
                    self.consecutive_failures = self.consecutive_failures.saturating_add(1);
                    let told = retry_after.map_or(RETRY_AFTER_FAILURE, |told| {
                        told.clamp(MINIMUM_DISTANCE, HEARTBEAT_INTERVAL)
                    });
                    self.schedule(now, told);
                }
            }
            HeartbeatEvent::ContentChanged => {
                if self.in_flight {
                    self.changed_in_flight = true;
                } else if let Some(due) = self.due {
                    let earliest = self.last_sent.map_or(now, |at| at.plus(MINIMUM_DISTANCE));
                    self.due = Some(due.min(earliest.max(now)));
                }
            }
            HeartbeatEvent::Timeout => {}
        }
        if self.link_up && !self.in_flight && self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.in_flight = true;
            self.last_sent = Some(now);
            self.actions.push_back(HeartbeatAction::Send);
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<HeartbeatAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub const fn poll_timeout(&self) -> Option<Moment> {
        self.due
    }

    /// Whether an outcome belongs to a heartbeat in flight; late ones of a lost tunnel do not.
    fn answered(&mut self) -> bool {
        std::mem::take(&mut self.in_flight)
    }

    fn schedule(&mut self, now: Moment, delay: Duration) {
        let delay = if std::mem::take(&mut self.changed_in_flight) {
            MINIMUM_DISTANCE
        } else {
            delay
        };
        self.due = Some(now.plus(delay));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn the_first_goes_out_at_once_and_then_one_a_minute() {
        let mut machine = HeartbeatMachine::new();
        machine.handle_event(HeartbeatEvent::LinkUp, at(10));
        assert_eq!(machine.poll_action(), Some(HeartbeatAction::Send));
        machine.handle_event(HeartbeatEvent::Acknowledged, at(11));
        assert_eq!(machine.poll_timeout(), Some(at(71)));
        machine.handle_event(HeartbeatEvent::Timeout, at(70));
        assert_eq!(machine.poll_action(), None);
        machine.handle_event(HeartbeatEvent::Timeout, at(71));
        assert_eq!(machine.poll_action(), Some(HeartbeatAction::Send));
    }

    #[test]
    fn an_hour_offline_queues_nothing() {
        let mut machine = HeartbeatMachine::new();
        machine.handle_event(HeartbeatEvent::LinkUp, at(0));
        machine.poll_action();
        machine.handle_event(HeartbeatEvent::Acknowledged, at(0));
        machine.handle_event(HeartbeatEvent::LinkDown, at(30));
        assert_eq!(machine.poll_timeout(), None);
        machine.handle_event(HeartbeatEvent::LinkUp, at(3_600));
        assert_eq!(machine.poll_action(), Some(HeartbeatAction::Send));
        assert_eq!(machine.poll_action(), None);
    }

    #[test]
    fn a_short_reconnect_does_not_send_early() {
        let mut machine = HeartbeatMachine::new();
        machine.handle_event(HeartbeatEvent::LinkUp, at(0));
        machine.poll_action();
        machine.handle_event(HeartbeatEvent::Acknowledged, at(0));
        machine.handle_event(HeartbeatEvent::LinkDown, at(20));
        machine.handle_event(HeartbeatEvent::LinkUp, at(21));
        assert_eq!(
            (machine.poll_action(), machine.poll_timeout()),
            (None, Some(at(60)))
        );
    }

    #[test]
    fn a_failure_is_tried_again_soon_and_as_told() {
        let mut machine = HeartbeatMachine::new();
        machine.handle_event(HeartbeatEvent::LinkUp, at(0));
        machine.poll_action();
        machine.handle_event(HeartbeatEvent::Failed(None), at(1));
        assert_eq!(machine.poll_timeout(), Some(at(16)));
        machine.handle_event(HeartbeatEvent::Timeout, at(16));
        machine.poll_action();
        machine.handle_event(HeartbeatEvent::Failed(Some(Duration::from_secs(30))), at(17));
        assert_eq!(machine.poll_timeout(), Some(at(47)));
        assert_eq!(machine.consecutive_failures(), 2);
    }

    #[test]
    fn a_change_is_told_soon_but_not_in_a_storm() {
        let mut machine = HeartbeatMachine::new();
        machine.handle_event(HeartbeatEvent::LinkUp, at(0));
        machine.poll_action();
        machine.handle_event(HeartbeatEvent::Acknowledged, at(0));
        machine.handle_event(HeartbeatEvent::ContentChanged, at(2));
        assert_eq!(
            (machine.poll_action(), machine.poll_timeout()),
            (None, Some(at(5)))
        );
        machine.handle_event(HeartbeatEvent::Timeout, at(5));
        assert_eq!(machine.poll_action(), Some(HeartbeatAction::Send));
        machine.handle_event(HeartbeatEvent::ContentChanged, at(5));
        machine.handle_event(HeartbeatEvent::Acknowledged, at(6));
        assert_eq!(machine.poll_timeout(), Some(at(11)));
    }

    proptest! {
        /// While a tunnel is up there is always either one in flight or one due within a minute,
        /// and two are never closer than the minimum distance unless a tunnel came back.
        #[test]
        fn never_silent_never_a_storm(events in proptest::collection::vec((0u8..7, 0u64..40), 1..80)) {
            let mut machine = HeartbeatMachine::new();
            let mut now = Moment::START;
            let mut up = false;
            for (event, seconds) in events {
                now = now.plus(Duration::from_secs(seconds));
                let event = match event {
                    0 => HeartbeatEvent::LinkUp,
                    1 => HeartbeatEvent::LinkDown,
                    2 => HeartbeatEvent::Acknowledged,
                    3 => HeartbeatEvent::Refused,
                    4 => HeartbeatEvent::Failed(Some(Duration::from_secs(seconds))),
                    5 => HeartbeatEvent::ContentChanged,
                    _ => HeartbeatEvent::Timeout,
                };
                match event { HeartbeatEvent::LinkUp => up = true, HeartbeatEvent::LinkDown => up = false, _ => {} }
                let previous = machine.last_sent;
                machine.handle_event(event, now);
                if machine.poll_action().is_some() && event != HeartbeatEvent::LinkUp {
                    prop_assert!(previous.is_none_or(|at| now.since(at) >= MINIMUM_DISTANCE) , "storm");
                }
                prop_assert_eq!(machine.poll_action(), None);
                if up {
                    let due_soon = machine.poll_timeout().is_some_and(|due| due.since(now) <= HEARTBEAT_INTERVAL);
                    prop_assert!(machine.in_flight || due_soon);
                } else {
                    prop_assert!(machine.poll_timeout().is_none());
                }
            }
        }
    }
}
