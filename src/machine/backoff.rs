//! Exponential backoff with full jitter: the delay is drawn evenly between nothing and a ceiling
//! that doubles with each failure, so that a thousand satellites that lost one bridge do not come
//! back in one second. The seed is an argument: a test sees the same delays each time.

use std::time::Duration;

/// First ceiling of a reconnect.
pub const RECONNECT_INITIAL: Duration = Duration::from_millis(250);
/// Last ceiling of a reconnect: an hour-long outage ends at most this long after the parent is back.
pub const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// No delay is shorter, so that unlucky draws in a row are no tight loop.
pub const DELAY_FLOOR: Duration = Duration::from_millis(50);
/// Longest `Retry-After` that is obeyed. A wrong or hostile number must not park a box for days.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// First and last ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// Ceiling of the first delay.
    pub initial: Duration,
    /// The ceiling never grows above this.
    pub max: Duration,
}

impl Default for BackoffPolicy {
    fn default() -> Self {
        Self {
            initial: RECONNECT_INITIAL,
            max: RECONNECT_MAX,
        }
    }
}

/// Counts failures and draws delays.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: BackoffPolicy,
    failures: u32,
    draw: SplitMix64,
}

impl Backoff {
    /// Nothing has failed yet.
    pub const fn new(policy: BackoffPolicy, seed: u64) -> Self {
        Self {
            policy,
            failures: 0,
            draw: SplitMix64(seed),
        }
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = self.policy.initial.saturating_mul(factor).min(self.policy.max);
        self.failures = self.failures.saturating_add(1);
        self.draw.up_to(ceiling).max(DELAY_FLOOR)
    }

    /// The delay when the other side said when to come back: never earlier, and spread over as
    /// much again (at most the policy's ceiling) so that all who were told the same do not come at
    /// once. One that says "at once" each time meets the ordinary backoff.
    pub fn delay_after(&mut self, retry_after: Duration) -> Duration {
        let told = retry_after.min(RETRY_AFTER_MAX);
        let own = self.next_delay();
        (told + self.draw.up_to(told.min(self.policy.max))).max(own)
    }

    /// The delay after a refusal that time alone will not lift: the whole ceiling, half of it drawn.
    pub fn patient_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.policy.max / 2 + self.draw.up_to(self.policy.max / 2)
    }

    /// Things have gone well for long enough.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Other ceilings from the next delay on.
    pub const fn set_policy(&mut self, policy: BackoffPolicy) {
        self.policy = policy;
    }

    /// Failures since the last reset.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// A small generator for jitter only (Steele, Lea, Flood 2014). Nothing secret is drawn from it.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(pub(super) u64);

impl SplitMix64 {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Even between zero and `ceiling`, in milliseconds.
    fn up_to(&mut self, ceiling: Duration) -> Duration {
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.next() % millis.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_between_floor_and_ceiling(seed: u64, failures in 0u32..100) {
            let mut backoff = Backoff::new(BackoffPolicy::default(), seed);
            for n in 0..failures {
                let ceiling = RECONNECT_INITIAL.saturating_mul(1u32.checked_shl(n).unwrap_or(u32::MAX)).min(RECONNECT_MAX);
                let delay = backoff.next_delay();
                prop_assert!(delay >= DELAY_FLOOR && delay <= ceiling, "{n}: {delay:?}");
            }
        }

        #[test]
        fn a_told_delay_is_obeyed_but_bounded(seed: u64, seconds in 0u64..1_000_000) {
            let delay = Backoff::new(BackoffPolicy::default(), seed).delay_after(Duration::from_secs(seconds));
            let told = Duration::from_secs(seconds).min(RETRY_AFTER_MAX);
            prop_assert!(delay >= told.max(DELAY_FLOOR) && delay <= told + RECONNECT_MAX);
        }
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let mut backoff = Backoff::new(BackoffPolicy::default(), 1);
        for _ in 0..20 {
            backoff.next_delay();
        }
        let delays: Vec<_> = (0..1_000).map(|_| backoff.next_delay()).collect();
        let below = |limit| delays.iter().filter(|d| **d < Duration::from_secs(limit)).count();
        assert!((150..350).contains(&below(15)), "{}", below(15));
        assert!((650..850).contains(&below(45)), "{}", below(45));
    }

    #[test]
    fn a_reset_starts_small_again() {
        let mut backoff = Backoff::new(BackoffPolicy::default(), 9);
        for _ in 0..30 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= RECONNECT_INITIAL);
    }
}
