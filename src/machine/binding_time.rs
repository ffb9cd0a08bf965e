//! How long the routers on the way remember a silent UDP flow, found out by being silent.
//!
//! A NAT forgets a flow that nobody uses, after 30 s on many routers, minutes on others. Pings more
//! often than that cost a metered link for nothing; pings less often leave a box that nobody can reach.
//! So the silence begins short, and a longer one is tried where it was survived, which the other side's
//! ping at the end of the silence proves: it came in unasked. A silence that was not survived, where this
//! side's own ping had to open the way again, shortens it for good: what is lost once will be again.
//! Only another network is another beginning.

use std::time::Duration;

/// The silence at first. Below the 30 s after which the tightest common NATs forget.
pub const FIRST_SILENCE: Duration = Duration::from_secs(20);

/// The shortest silence, however often it was not survived: shorter, and an idle satellite costs more
/// than 4 MiB a day.
pub const SHORTEST_SILENCE: Duration = Duration::from_secs(15);

/// Silences of one length to be survived before a longer one is tried. One may have been cut short by
/// a packet that the transport sent by itself.
const PROOFS: u32 = 2;

/// What is missing of a silence that still counts as whole: timers and the way there and back.
const TOLERANCE: Duration = Duration::from_secs(1);

/// What is known of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingTime {
    silence: Duration,
    proofs: u32,
    lost: Option<Duration>,
}

impl BindingTime {
    /// Of a network of which nothing is known.
    pub const UNKNOWN: Self = Self {
        silence: FIRST_SILENCE,
        proofs: 0,
        lost: None,
    };

    /// How long to be silent.
    pub const fn silence(&self) -> Duration {
        self.silence
    }

    /// The shortest silence that was not survived.
    pub const fn lost(&self) -> Option<Duration> {
        self.lost
    }

    /// The other side was heard after so much silence, unasked.
    pub fn survived(&mut self, silence: Duration, longest: Duration) {
        if silence.saturating_add(TOLERANCE) < self.silence {
            return;
        }
        self.proofs += 1;
        if self.proofs < PROOFS {
            return;
        }
        let longest = self.lost.map_or(longest, |lost| longest.min(below(lost)));
        let next = (self.silence + self.silence / 4).min(longest);
        if next > self.silence {
            self.silence = next;
            self.proofs = 0;
        }
    }

    /// After so much silence the other side was heard again only because this side had spoken.
    pub fn not_survived(&mut self, silence: Duration) {
        let lost = self.lost.map_or(silence, |lost| lost.min(silence));
        self.lost = Some(lost);
        self.silence = self.silence.min(below(lost)).max(SHORTEST_SILENCE);
        self.proofs = 0;
    }
}

/// A silence that is shorter by enough to be survived.
fn below(lost: Duration) -> Duration {
    lost / 4 * 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(45);

    /// A router that forgets after so long, met for so many silences.
    fn behind(forgets_after: Duration, silences: usize) -> (BindingTime, usize) {
        let (mut binding, mut losses) = (BindingTime::UNKNOWN, 0);
        for _ in 0..silences {
            let silence = binding.silence();
            if silence < forgets_after {
                binding.survived(silence, LONGEST);
            } else {
                binding.not_survived(silence);
                losses += 1;
            }
        }
        (binding, losses)
    }

    #[test]
    fn it_grows_to_its_ceiling_where_everything_is_survived() {
        let (binding, losses) = behind(Duration::MAX, 12);
        assert_eq!((binding.silence(), losses), (LONGEST, 0));
    }

    #[test]
    fn behind_a_router_of_thirty_seconds_it_loses_once_and_never_again() {
        let (binding, losses) = behind(Duration::from_secs(30), 1_000);
        assert_eq!(losses, 1);
        assert!(binding.silence() >= FIRST_SILENCE, "{binding:?}");
        assert!(binding.silence() < Duration::from_secs(30), "{binding:?}");
    }

    #[test]
    fn a_silence_that_was_cut_short_proves_nothing() {
        let mut binding = BindingTime::UNKNOWN;
        for _ in 0..100 {
            binding.survived(Duration::from_secs(18), LONGEST);
        }
        assert_eq!(binding, BindingTime::UNKNOWN);
    }

    proptest! {
        #[test]
        fn whatever_the_router_it_is_lost_a_few_times_at_most(forgets_after in 16u64..200) {
            let forgets_after = Duration::from_secs(forgets_after);
            let (binding, losses) = behind(forgets_after, 1_000);
            prop_assert!(losses <= 2, "{losses}");
            prop_assert!(binding.silence() < forgets_after);
            prop_assert!((SHORTEST_SILENCE..=LONGEST).contains(&binding.silence()));
        }
    }
}
