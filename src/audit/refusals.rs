//! Refusals cost their causer nothing, and the log keeps a bounded number of rows: who repeats what is
//! refused could wash out of it what they did before. So each caller has a budget of refusals that are
//! noted one by one; the rest is counted, and one entry says how many. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::PeerId;
use crate::base::time::Moment;

/// Refusals that are noted at once: an afternoon of somebody who tries things out.
const BURST: u32 = 100;

/// How often one more is: at most 2,880 rows a day, of which the smallest default log holds a week.
const REFILL: Duration = Duration::from_secs(30);

/// Callers with a budget of their own; the others share one.
const CALLERS_MAX: usize = 64;

/// Who is refused: on the host-bridge an operator who asks for what they may not, else the peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Operator(Option<String>),
    Peer(Option<PeerId>),
    Others,
}

/// The budgets.
#[derive(Debug, Default)]
pub struct RefusalBudgets {
    callers: BTreeMap<Caller, Budget>,
}

#[derive(Debug)]
struct Budget {
    left: u32,
    /// Up to when the refilling is counted.
    refilled: Moment,
    /// Refusals since the last that was noted.
    counted: u64,
}

impl RefusalBudgets {
    /// Whether an event is noted as it is. One that is not a refusal always is.
    pub fn admit(&mut self, event: &AuditEvent, now: Moment) -> bool {
        if !matches!(event.outcome, AuditOutcome::Refused(_)) {
            return true;
        }
        let mut caller = caller_of(event);
        if !self.callers.contains_key(&caller) && self.callers.len() >= CALLERS_MAX {
            self.callers.retain(|_, budget| {
                budget.refill(now);
                budget.left < BURST || budget.counted > 0
            });
            if self.callers.len() >= CALLERS_MAX {
                caller = Caller::Others;
            }
        }
        let budget = self.callers.entry(caller).or_insert_with(|| Budget::full(now));
        budget.refill(now);
        // One that was counted is told of first.
        if budget.left > 0 && budget.counted == 0 {
            budget.left -= 1;
            return true;
        }
        budget.counted = budget.counted.saturating_add(1);
        false
    }

    /// Entries about refusals that were counted, of callers whose budget allows one; of all at the `end`.
    pub fn take_counted(&mut self, now: Moment, end: bool) -> Vec<AuditEvent> {
        let mut events = Vec::new();
        for (caller, budget) in &mut self.callers {
            budget.refill(now);
            if budget.counted == 0 || (budget.left == 0 && !end) {
                continue;
            }
            budget.left = budget.left.saturating_sub(1);
            events.push(summary(caller, std::mem::take(&mut budget.counted)));
        }
        events
    }
}

impl Budget {
    const fn full(now: Moment) -> Self {
        Self {
            left: BURST,
            refilled: now,
            counted: 0,
        }
    }

    fn refill(&mut self, now: Moment) {
        let steps = now.since(self.refilled).as_secs() / REFILL.as_secs();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(steps).min(BURST);
        self.refilled = if self.left == BURST {
            now
        } else {
            self.refilled.plus(REFILL.saturating_mul(steps))
        };
    }
}

fn caller_of(event: &AuditEvent) -> Caller {
    match event.action {
        AuditAction::OperatorRefused => Caller::Operator(event.actor.clone()),
        _ => Caller::Peer(event.federation_peer_id),
    }
}

fn summary(caller: &Caller, counted: u64) -> AuditEvent {
    let (actor, federation_peer_id) = match caller {
        Caller::Operator(actor) => (actor.clone(), None),
        Caller::Peer(peer) => (None, *peer),
        Caller::Others => (None, None),
    };
    AuditEvent {
        actor,
        federation_peer_id,
        outcome: AuditOutcome::Refused(format!(
            "{counted} more refusals came too fast to be noted one by one"
        )),
        ..AuditEvent::of(AuditAction::RefusalsCounted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(actor: &str) -> AuditEvent {
        AuditEvent {
            actor: Some(actor.to_owned()),
            outcome: AuditOutcome::Refused("no".to_owned()),
            ..AuditEvent::of(AuditAction::OperatorRefused)
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn told(events: &[AuditEvent]) -> Vec<(Option<&str>, &str)> {
        let told = |event: &'_ AuditEvent| event.outcome.reason().map(str::to_owned);
        assert!(events.iter().all(|event| told(event).is_some()));
        events
            .iter()
            .map(|event| (event.actor.as_deref(), event.outcome.reason().unwrap_or_default()))
            .collect()
    }

    #[test]
    fn a_flood_is_counted_and_said_once_there_is_budget_again() {
        let mut budgets = RefusalBudgets::default();
        let noted = (0..1_000)
            .filter(|_| budgets.admit(&refused("eve"), at(5)))
            .count();
        assert_eq!(noted, BURST as usize);
        assert!(budgets.take_counted(at(6), false).is_empty());
        let counted = budgets.take_counted(at(35), false);
        assert_eq!(
            told(&counted),
            [(
                Some("eve"),
                "900 more refusals came too fast to be noted one by one"
            )]
        );
        assert!(budgets.take_counted(at(35), true).is_empty());
        assert!(!budgets.admit(&refused("eve"), at(36)));
        assert_eq!(
            budgets.take_counted(at(36), true).len(),
            1,
            "at the end all of it is said"
        );
    }

    #[test]
    fn nobody_pays_for_another_and_what_was_done_is_always_noted() {
        let mut budgets = RefusalBudgets::default();
        while budgets.admit(&refused("eve"), at(5)) {}
        assert!(budgets.admit(&refused("tom"), at(5)));
        for outcome in [
            AuditOutcome::Done,
            AuditOutcome::Cut("x".into()),
            AuditOutcome::Failed("x".into()),
        ] {
            assert!(budgets.admit(
                &AuditEvent {
                    outcome,
                    ..refused("eve")
                },
                at(5)
            ));
        }
    }

    #[test]
    fn the_number_of_callers_is_bounded() {
        let mut budgets = RefusalBudgets::default();
        for number in 0..10_000 {
            budgets.admit(&refused(&number.to_string()), at(5));
        }
        assert!(budgets.callers.len() <= CALLERS_MAX + 1);
        // Those that have been quiet make place.
        budgets.take_counted(at(1_000_000), false);
        assert!(budgets.admit(&refused("new"), at(2_000_000)));
        assert!(budgets.callers.len() <= 3, "{}", budgets.callers.len());
    }

    proptest! {
        #[test]
        fn every_refusal_is_noted_or_counted(
            calls in proptest::collection::vec((0u64..100, 0u8..3, any::<bool>()), 0..400),
        ) {
            let mut budgets = RefusalBudgets::default();
            let (mut now, mut noted, mut counted) = (0, 0, 0);
            let total = |events: Vec<AuditEvent>| -> u64 {
                let words = events.iter().filter_map(|event| event.outcome.reason()?.split(' ').next()?.parse::<u64>().ok());
                words.sum()
            };
            for (pause, caller, collect) in &calls {
                now += pause;
                noted += u64::from(budgets.admit(&refused(&caller.to_string()), at(now)));
                if *collect {
                    counted += total(budgets.take_counted(at(now), false));
                }
            }
            counted += total(budgets.take_counted(at(now), true));
            prop_assert_eq!(noted + counted, calls.len() as u64);
            prop_assert!(noted <= 3 * (u64::from(BURST) + now / REFILL.as_secs() + 1));
        }
    }
}
