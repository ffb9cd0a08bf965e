//! Where a peer stands with the platform, as far as the platform's answers tell: those to the peer's heartbeats, and
//! where none has come for long, the one to a question of this end's. Pure, and one for each peer.
//!
//! A peer that the platform refuses loses its tunnels. It may dial again, because only its next
//! heartbeat can tell that it was resumed; until one is taken, it may do nothing else.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::target::Target;
use crate::base::time::{Moment, UnixTime, rfc3339};

/// The platform's word that a caller is none of its peers (contract section 5).
const UNAUTHORIZED: u16 = 401;

/// Where a peer stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The platform has not answered a heartbeat of its yet.
    #[default]
    Unheard,
    /// It has taken one.
    Taken,
    /// It has refused the peer: that is suspended, revoked or unknown there.
    Refused,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unheard => "unheard",
            Self::Taken => "taken",
            Self::Refused => "refused",
        })
    }
}

/// What the platform was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedBy {
    /// By the peer: its heartbeat.
    Heartbeat,
    /// By this end, about the peer.
    Bridge,
}

/// An answer of the platform's that is about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// Its HTTP status.
    pub http_status: u16,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: UnixTime,
}

/// What happens to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandingEvent {
    /// The platform has answered.
    Answered(AskedBy, Answered),
    /// The peer has a tunnel at this moment. Said again and again; `ask_after` is how long the platform may say
    /// nothing of such a peer.
    Connected {
        /// The bound.
        ask_after: Duration,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandingAction {
    /// End all tunnels of the peer.
    CloseTunnels,
    /// Ask the platform whether it would hear the peer.
    Ask,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandingMachine {
    standing: Standing,
    heartbeat: Option<Answered>,
    question: Option<Answered>,
    /// Since when the platform has said nothing of the peer, or has been asked.
    silent_since: Option<Moment>,
    action: Option<StandingAction>,
}

impl StandingMachine {
    /// Takes an event.
    pub fn handle_event(&mut self, event: StandingEvent, now: Moment) {
        match event {
            StandingEvent::Answered(asked_by, answered) => {
                *match asked_by {
                    AskedBy::Heartbeat => &mut self.heartbeat,
                    AskedBy::Bridge => &mut self.question,
                } = Some(answered);
                self.action = match (answered.http_status, asked_by) {
                    (200..=299, AskedBy::Heartbeat) => {
                        self.standing = Standing::Taken;
                        None
                    }
                    // That the platform would hear a peer makes up for no heartbeat.
                    (200..=299, AskedBy::Bridge) => None,
                    (UNAUTHORIZED, _) => {
                        self.standing = Standing::Refused;
                        Some(StandingAction::CloseTunnels)
                    }
                    // A platform that is at fault, or a body that it does not like, says nothing of the peer.
                    _ => return,
                };
                self.silent_since = Some(now);
            }
            StandingEvent::Connected { ask_after } => {
                let since = *self.silent_since.get_or_insert(now);
                if now.since(since) >= ask_after {
                    // Whatever comes of it, the next question is as far away.
                    self.silent_since = Some(now);
                    self.action = Some(StandingAction::Ask);
                }
            }
        }
    }

    /// The next thing to do.
    pub const fn poll_action(&mut self) -> Option<StandingAction> {
        self.action.take()
    }

    /// Where the peer stands.
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// The platform's last answer to a heartbeat.
    pub const fn heartbeat(&self) -> Option<Answered> {
        self.heartbeat
    }

    /// The platform's last answer to a question about the peer.
    pub const fn question(&self) -> Option<Answered> {
        self.question
    }

    /// Whether a request of the peer's goes to the platform.
    pub const fn may_send(&self, target: Target) -> bool {
        !matches!(self.standing, Standing::Refused) || matches!(target, Target::Heartbeat)
    }

    /// Whether the peer may be reached through its tunnel.
    pub const fn may_be_reached(&self) -> bool {
        !matches!(self.standing, Standing::Refused)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: UnixTime = UnixTime::from_seconds(1_800_000_000);
    const ASK_AFTER: Duration = Duration::from_secs(300);

    fn moment(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn told(machine: &mut StandingMachine, by: AskedBy, status: u16, second: u64) -> Option<StandingAction> {
        let answered = Answered {
            http_status: status,
            at: AT,
        };
        machine.handle_event(StandingEvent::Answered(by, answered), moment(second));
        machine.poll_action()
    }

    fn connected(machine: &mut StandingMachine, second: u64) -> Option<StandingAction> {
        machine.handle_event(StandingEvent::Connected { ask_after: ASK_AFTER }, moment(second));
        machine.poll_action()
    }

    fn after(statuses: &[u16]) -> (StandingMachine, Vec<StandingAction>) {
        let mut machine = StandingMachine::default();
        let mut actions = Vec::new();
        for status in statuses {
            actions.extend(told(&mut machine, AskedBy::Heartbeat, *status, 0));
        }
        (machine, actions)
    }

    #[test]
    fn a_refused_heartbeat_closes_and_a_taken_one_opens_again() {
        let (refused, actions) = after(&[200, 401]);
        assert_eq!(refused.standing(), Standing::Refused);
        assert_eq!(actions, [StandingAction::CloseTunnels]);
        assert!(refused.may_send(Target::Heartbeat));
        for other in [Target::Accept, Target::NodeEnroll, Target::Other] {
            assert!(!refused.may_send(other), "{other:?}");
        }
        assert!(!refused.may_be_reached());
        let (resumed, actions) = after(&[200, 401, 401, 200]);
        assert_eq!(actions.len(), 2, "each tunnel that comes back is closed again");
        assert!(resumed.may_send(Target::Other) && resumed.may_be_reached());
    }

    #[test]
    fn a_platform_in_trouble_says_nothing_of_the_peer() {
        for trouble in [400, 403, 404, 422, 429, 500, 502, 503] {
            let (machine, actions) = after(&[200, trouble]);
            assert_eq!(
                (machine.standing(), actions.len()),
                (Standing::Taken, 0),
                "{trouble}"
            );
            let (machine, actions) = after(&[401, trouble]);
            assert_eq!(
                (machine.standing(), actions.len()),
                (Standing::Refused, 1),
                "{trouble}"
            );
            assert_eq!(machine.heartbeat().unwrap().http_status, trouble);
        }
        assert_eq!(after(&[503]).0.standing(), Standing::Unheard);
    }

    #[test]
    fn who_holds_a_tunnel_and_sends_no_heartbeat_is_asked_about() {
        let mut machine = StandingMachine::default();
        assert_eq!(connected(&mut machine, 10), None);
        assert_eq!(told(&mut machine, AskedBy::Heartbeat, 200, 100), None);
        assert_eq!(connected(&mut machine, 399), None);
        assert_eq!(connected(&mut machine, 400), Some(StandingAction::Ask));
        assert_eq!(connected(&mut machine, 415), None, "once");
        assert_eq!(told(&mut machine, AskedBy::Bridge, 200, 416), None);
        assert_eq!(connected(&mut machine, 715), None);
        assert_eq!(connected(&mut machine, 716), Some(StandingAction::Ask));
        assert_eq!(
            told(&mut machine, AskedBy::Bridge, 401, 717),
            Some(StandingAction::CloseTunnels)
        );
        assert_eq!(machine.standing(), Standing::Refused);
        // It is back, and says nothing again.
        assert_eq!(connected(&mut machine, 720), None);
        assert_eq!(connected(&mut machine, 1_020), Some(StandingAction::Ask));
        assert_eq!(told(&mut machine, AskedBy::Bridge, 200, 1_021), None);
        assert!(!machine.may_be_reached(), "only a heartbeat that is taken opens");
        assert_eq!(told(&mut machine, AskedBy::Heartbeat, 200, 1_030), None);
        assert!(machine.may_be_reached());
    }

    #[test]
    fn a_platform_that_is_away_is_asked_no_more_often_and_closes_nothing() {
        let mut machine = StandingMachine::default();
        assert_eq!(told(&mut machine, AskedBy::Heartbeat, 200, 0), None);
        let mut asked = 0;
        for second in (0..3_600).step_by(15) {
            // Heartbeats go on, and find nobody.
            assert_eq!(told(&mut machine, AskedBy::Heartbeat, 503, second), None);
            if connected(&mut machine, second).is_some() {
                asked += 1;
                assert_eq!(told(&mut machine, AskedBy::Bridge, 503, second), None);
            }
        }
        assert_eq!((asked, machine.standing()), (11, Standing::Taken));
    }

    #[test]
    fn who_comes_and_goes_is_asked_about_too() {
        let mut machine = StandingMachine::default();
        assert_eq!(connected(&mut machine, 0), None);
        // Away when it would have been asked about; nothing begins anew when it is back.
        assert_eq!(connected(&mut machine, 1_000), Some(StandingAction::Ask));
    }

    proptest! {
        #[test]
        fn the_last_word_holds(
            answers in prop::collection::vec(
                (any::<bool>(), prop::sample::select(vec![200, 204, 401, 422, 503])), 0..20,
            ),
        ) {
            let mut machine = StandingMachine::default();
            let (mut expected, mut closed, mut refusals) = (Standing::Unheard, 0, 0);
            for (by_heartbeat, status) in answers {
                let by = if by_heartbeat { AskedBy::Heartbeat } else { AskedBy::Bridge };
                closed += usize::from(told(&mut machine, by, status, 0).is_some());
                match (status, by) {
                    (401, _) => {
                        expected = Standing::Refused;
                        refusals += 1;
                    }
                    (200 | 204, AskedBy::Heartbeat) => expected = Standing::Taken,
                    _ => {}
                }
            }
            prop_assert_eq!(machine.standing(), expected);
            prop_assert_eq!(closed, refusals);
        }
    }
}
