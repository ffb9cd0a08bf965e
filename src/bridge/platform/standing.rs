//! Where a peer stands with the platform, as far as the platform's answers to its heartbeats tell:
//! nobody else is asked. Pure, and one for each peer; time alone changes nothing, so there is no timeout.
//!
//! A peer whose heartbeat is refused loses its tunnels. It may dial again, because only its next
//! heartbeat can tell that it was resumed; until one is taken, it may do nothing else.

use std::fmt;

use serde::Serialize;

use super::target::Target;
use crate::base::time::{UnixTime, rfc3339};

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
    /// It has refused one: the peer is suspended, revoked or unknown there.
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

/// The platform's last answer to a heartbeat.
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
    /// The platform has answered a heartbeat, with this HTTP status.
    HeartbeatAnswered(u16),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandingAction {
    /// End all tunnels of the peer.
    CloseTunnels,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandingMachine {
    standing: Standing,
    answered: Option<Answered>,
    close: bool,
}

impl StandingMachine {
    /// Takes an event.
    pub const fn handle_event(&mut self, event: StandingEvent, now: UnixTime) {
        let StandingEvent::HeartbeatAnswered(http_status) = event;
        self.answered = Some(Answered { http_status, at: now });
        match http_status {
            200..=299 => {
                self.standing = Standing::Taken;
                self.close = false;
            }
            UNAUTHORIZED => {
                self.standing = Standing::Refused;
                self.close = true;
            }
            // A platform that is at fault, or a body that it does not like, says nothing of the peer.
            _ => {}
        }
    }

    /// The next thing to do.
    pub const fn poll_action(&mut self) -> Option<StandingAction> {
        if self.close {
            self.close = false;
            return Some(StandingAction::CloseTunnels);
        }
        None
    }

    /// Where the peer stands.
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// The platform's last answer.
    pub const fn answered(&self) -> Option<Answered> {
        self.answered
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

    const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

    fn after(statuses: &[u16]) -> (StandingMachine, Vec<StandingAction>) {
        let mut machine = StandingMachine::default();
        let mut actions = Vec::new();
        for status in statuses {
            machine.handle_event(StandingEvent::HeartbeatAnswered(*status), NOW);
            actions.extend(std::iter::from_fn(|| machine.poll_action()));
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
            assert_eq!(machine.answered().unwrap().http_status, trouble);
        }
        assert_eq!(after(&[503]).0.standing(), Standing::Unheard);
    }

    proptest! {
        #[test]
        fn the_last_word_holds(statuses in prop::collection::vec(prop::sample::select(vec![200, 204, 401, 422, 503]), 0..20)) {
            let (machine, actions) = after(&statuses);
            let last = statuses.iter().rev().find(|status| matches!(status, 200 | 204 | 401));
            let expected = match last {
                None => Standing::Unheard,
                Some(401) => Standing::Refused,
                Some(_) => Standing::Taken,
            };
            prop_assert_eq!(machine.standing(), expected);
            prop_assert_eq!(actions.len(), statuses.iter().filter(|status| **status == 401).count());
        }
    }
}
