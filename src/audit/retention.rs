//! How long rows are kept: by age and by number. Decides which of the oldest rows go; knows no store.

use std::time::Duration;

use super::chain::ChainEnds;
use crate::base::time::UnixTime;

/// Rows that must be due before any is removed on the way: each removal touches a page of the store at
/// its old end, and a card lasts longer when that happens once in so many rows.
pub const PRUNE_STEP_ROWS: u64 = 64;

/// Most rows that one transaction removes: it stays a matter of milliseconds on a slow card. What is
/// left goes with the next ones.
pub const PRUNE_MAX_ROWS: u64 = 512;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Rows that are older go.
    pub max_age: Duration,
    /// Above so many rows the oldest go.
    pub max_rows: u64,
}

/// When removal is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Rows are being written: worth it from [`PRUNE_STEP_ROWS`] on.
    Writing,
    /// The daily look: whatever is due goes.
    Daily,
}

impl Retention {
    /// How many of the oldest rows go now. `times` are those of the oldest rows, in order, `None` for a
    /// row that cannot be read; as many are looked at as are needed. A row that is not due keeps all
    /// that come after it, for the chain has no holes.
    pub fn due(
        &self,
        ends: &ChainEnds,
        occasion: Occasion,
        now: UnixTime,
        times: impl IntoIterator<Item = Option<UnixTime>>,
    ) -> u64 {
        let excess = ends.rows().saturating_sub(self.max_rows);
        let oldest_kept = now.minus(self.max_age);
        let mut due = 0;
        for time in times {
            let too_old = time.is_some_and(|time| time < oldest_kept);
            if due >= PRUNE_MAX_ROWS || (due >= excess && !too_old) {
                break;
            }
            due += 1;
        }
        match occasion {
            Occasion::Writing if due < PRUNE_STEP_ROWS => 0,
            Occasion::Writing | Occasion::Daily => due,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;

    fn ends(first: u64, rows: u64) -> ChainEnds {
        ChainEnds {
            first,
            next: first + rows,
            ..ChainEnds::begin([0; 16])
        }
    }

    fn retention(days: u64, max_rows: u64) -> Retention {
        Retention {
            max_age: Duration::from_secs(days * DAY.unsigned_abs()),
            max_rows,
        }
    }

    fn due(retention: Retention, occasion: Occasion, days: &[i64]) -> u64 {
        let times = days.iter().map(|day| Some(UnixTime::from_seconds(day * DAY)));
        let now = UnixTime::from_seconds(1_000 * DAY);
        retention.due(&ends(5, days.len() as u64), occasion, now, times)
    }

    #[test]
    fn old_rows_go_daily_and_many_at_once_otherwise() {
        let few = [1, 2, 3, 990, 991];
        assert_eq!(due(retention(90, 1_000), Occasion::Daily, &few), 3);
        assert_eq!(due(retention(90, 1_000), Occasion::Writing, &few), 0);
        let many = [1; 100];
        assert_eq!(due(retention(90, 1_000), Occasion::Writing, &many), 100);
    }

    #[test]
    fn too_many_rows_go_whatever_their_age() {
        assert_eq!(due(retention(90, 10), Occasion::Writing, &[999; 200]), 190);
        assert_eq!(due(retention(90, 200), Occasion::Daily, &[999; 200]), 0);
    }

    #[test]
    fn no_row_goes_before_an_earlier_one() {
        // The clock was ahead when the second row was written.
        assert_eq!(due(retention(90, 1_000), Occasion::Daily, &[1, 2_000, 3]), 1);
    }

    #[test]
    fn an_unreadable_row_goes_by_number_alone() {
        let times = [None, None, None];
        let now = UnixTime::from_seconds(0);
        assert_eq!(retention(1, 1).due(&ends(1, 3), Occasion::Daily, now, times), 2);
        assert_eq!(retention(1, 3).due(&ends(1, 3), Occasion::Daily, now, times), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_allowed_and_never_below_what_is_kept(
            max_rows in 1u64..2_000, rows in 0u64..3_000, days in 1u64..100,
        ) {
            let times = (0..rows).map(|_| Some(UnixTime::from_seconds(1_000 * DAY)));
            let now = UnixTime::from_seconds(1_000 * DAY);
            let due = retention(days, max_rows).due(&ends(1, rows), Occasion::Daily, now, times);
            prop_assert!(due <= PRUNE_MAX_ROWS);
            prop_assert!(rows - due >= max_rows.min(rows), "young rows go by number alone");
        }
    }
}
