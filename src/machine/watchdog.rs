//! Whether the service manager should go on believing in this process. A satellite that is offline
//! and trying is healthy; one whose tunnel claims to be up while the parent has acknowledged nothing
//! for minutes, and nothing explains it, is not: feeding stops and the service manager restarts it.

use std::time::Duration;

use super::uplinks::LinkState;
use crate::base::time::Moment;
use crate::contract::peer::HEARTBEAT_STALE_AFTER;

/// Longest that dialling may take before it counts as stuck. A dial of one address ends by itself after
/// 15 s; a race over all rungs and addresses of a bridge in less than a minute.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(120);

/// A wait that is over for so long and has not become a new attempt is stuck.
pub const OVERDUE_MAX: Duration = Duration::from_secs(60);

/// What is looked at.
#[derive(Debug, Clone)]
pub struct WatchdogFacts {
    /// Where the link stands.
    pub link: LinkState,
    /// Since when it stands there.
    pub link_since: Moment,
    /// The parent's last acknowledgement.
    pub last_acknowledged: Option<Moment>,
    /// The last heartbeat that the parent answered in any way, or whose failure was noticed.
    pub last_outcome: Option<Moment>,
    /// Whether heartbeats are sent at all on this link (not while joining).
    pub heartbeats_expected: bool,
}

/// Whether to feed the watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well, or what is wrong is understood and being worked on.
    Feed,
    /// It is not: the reason, for the log.
    Starve(&'static str),
}

/// Decides.
pub fn judge(facts: &WatchdogFacts, now: Moment) -> Verdict {
    match &facts.link {
        LinkState::Off => Verdict::Feed,
        LinkState::Waiting(until) if now.since(*until) > OVERDUE_MAX => {
            Verdict::Starve("the next connection attempt is long overdue")
        }
        LinkState::Dialing if now.since(facts.link_since) > ATTEMPT_MAX => {
            Verdict::Starve("a connection attempt neither succeeds nor fails")
        }
        LinkState::Waiting(_) | LinkState::Dialing => Verdict::Feed,
        LinkState::Connected(since) => {
            let latest = facts
                .last_acknowledged
                .max(facts.last_outcome)
                .unwrap_or(*since)
                .max(*since);
            if facts.heartbeats_expected && now.since(latest) > HEARTBEAT_STALE_AFTER {
                Verdict::Starve(
                    "the tunnel is up but the parent has acknowledged nothing and nothing explains it",
                )
            } else {
                Verdict::Feed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn facts(link: LinkState) -> WatchdogFacts {
        WatchdogFacts {
            link,
            link_since: at(0),
            last_acknowledged: None,
            last_outcome: None,
            heartbeats_expected: true,
        }
    }

    #[test]
    fn days_offline_are_explained() {
        let days = 3 * 86_400;
        assert_eq!(
            judge(&facts(LinkState::Waiting(at(days))), at(days)),
            Verdict::Feed
        );
        assert_eq!(judge(&facts(LinkState::Off), at(days)), Verdict::Feed);
    }

    #[test]
    fn a_stuck_attempt_is_not() {
        assert_eq!(judge(&facts(LinkState::Dialing), at(120)), Verdict::Feed);
        assert!(matches!(
            judge(&facts(LinkState::Dialing), at(121)),
            Verdict::Starve(_)
        ));
        assert!(matches!(
            judge(&facts(LinkState::Waiting(at(10))), at(71)),
            Verdict::Starve(_)
        ));
    }

    #[test]
    fn silence_on_a_tunnel_that_claims_to_be_up_is_not() {
        let mut facts = facts(LinkState::Connected(at(0)));
        assert_eq!(judge(&facts, at(300)), Verdict::Feed);
        assert!(matches!(judge(&facts, at(301)), Verdict::Starve(_)));
        facts.last_outcome = Some(at(200));
        assert_eq!(judge(&facts, at(301)), Verdict::Feed, "a refusal explains it");
        facts.last_outcome = None;
        facts.heartbeats_expected = false;
        assert_eq!(judge(&facts, at(301)), Verdict::Feed);
    }
}
