//! A limit of bytes each second, as a token bucket. Who has moved bytes charges them and learns until
//! when to wait before the next ones; nobody asks in advance, so a limit costs no idle wake-ups, and
//! whoever shares one waits behind what the others have charged.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::base::time::Moment;

/// What may pass at once after a pause: this long at the full rate. Short enough for an even flow, long
/// enough that a keystroke or a small page never waits.
pub const BURST: Duration = Duration::from_millis(250);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: NonZeroU64,
    /// When all that was charged is paid for at the rate, in nanoseconds since the start.
    paid_at: u64,
}

impl TokenBucket {
    /// Full: so many bytes each second from now on.
    pub const fn new(bytes_per_second: NonZeroU64) -> Self {
        Self {
            rate: bytes_per_second,
            paid_at: 0,
        }
    }

    /// Another rate from now on. What was charged stays paid for at the old one.
    pub const fn set_rate(&mut self, bytes_per_second: NonZeroU64) {
        self.rate = bytes_per_second;
    }

    /// Notes that `bytes` have passed. `Some` is when the next may: until then the charger waits.
    pub fn charge(&mut self, bytes: u64, now: Moment) -> Option<Moment> {
        let now = nanos(now.since_start());
        let burst = nanos(BURST);
        let price = u128::from(bytes) * u128::from(NANOS_PER_SECOND) / u128::from(self.rate.get());
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        // Time that has passed unused is not kept; one burst may be ahead of it.
        self.paid_at = self.paid_at.max(now).saturating_add(price);
        let next = self.paid_at.saturating_sub(burst);
        (next > now).then(|| Moment::after_start(Duration::from_nanos(next)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(rate: u64) -> TokenBucket {
        TokenBucket::new(NonZeroU64::new(rate).unwrap())
    }

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_passes_at_once_and_what_is_beyond_waits() {
        let mut bucket = bucket(1_000);
        assert_eq!(
            bucket.charge(250, at(1_000)),
            None,
            "a quarter of a second's worth"
        );
        assert_eq!(bucket.charge(100, at(1_000)), Some(at(1_100)));
        assert_eq!(bucket.charge(100, at(1_100)), Some(at(1_200)));
    }

    #[test]
    fn it_is_full_from_the_very_start() {
        let mut bucket = bucket(1_000);
        assert_eq!(bucket.charge(250, at(0)), None);
        assert_eq!(bucket.charge(1, at(0)), Some(at(1)));
    }

    #[test]
    fn a_long_pause_gives_one_burst_and_no_more() {
        let mut bucket = bucket(1_000);
        assert_eq!(bucket.charge(250, at(1_000)), None);
        assert_eq!(bucket.charge(250, at(60_000)), None);
        assert_eq!(bucket.charge(250, at(60_000)), Some(at(60_250)));
    }

    #[test]
    fn a_new_rate_holds_for_what_comes() {
        let mut bucket = bucket(1_000);
        bucket.charge(1_250, at(1_000));
        bucket.set_rate(NonZeroU64::new(10_000).unwrap());
        assert_eq!(bucket.charge(1_000, at(2_000)), Some(at(2_100)));
    }

    #[test]
    fn absurd_numbers_neither_overflow_nor_let_all_through() {
        let mut slow = bucket(1);
        assert!(slow.charge(u64::MAX, at(0)).is_some());
        assert!(slow.charge(u64::MAX, at(u64::MAX / 2_000_000)).is_some());
        assert_eq!(bucket(u64::MAX).charge(u64::MAX / 8, at(1_000)), None);
    }

    proptest! {
        /// Chargers that wait as they are told never move more than the rate and one burst allow,
        /// however many share the bucket, and lose nothing of the rate while they all want more.
        #[test]
        fn the_rate_holds_and_is_used(
            rate in 1_000u64..1_000_000,
            pieces in proptest::collection::vec(1u64..65_536, 1..200),
            sharers in 1usize..5,
        ) {
            let mut bucket = bucket(rate);
            let mut free = vec![at(1_000); sharers];
            let (mut moved, mut last) = (0u64, at(1_000));
            for piece in pieces {
                let next = (0..sharers).min_by_key(|sharer| free[*sharer]).unwrap();
                let now = free[next].max(last);
                last = now;
                moved += piece;
                free[next] = bucket.charge(piece, now).unwrap_or(now);
            }
            let end = free.into_iter().max().unwrap();
            let seconds = end.since(at(1_000)).as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            let (allowed, moved) = (rate as f64 * (seconds + BURST.as_secs_f64()) + 1.0, moved as f64);
            prop_assert!(moved <= allowed, "{moved} of {allowed}");
            if seconds > 0.0 {
                prop_assert!(moved >= allowed * 0.999 - 300.0, "{moved} of {allowed}");
            }
        }
    }
}
