//! A bandwidth limit that several streams share, one bucket for each direction.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use crate::base::time::Moment;
use crate::machine::bandwidth::TokenBucket;
use crate::process::clock::Clock;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the parent to the service.
    In,
    /// From the service to the parent.
    Out,
}

/// See the module's text.
#[derive(Debug)]
pub struct Meter(Mutex<Option<[TokenBucket; 2]>>);

impl Meter {
    /// So many bytes each second in each direction; `None` is no limit.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self(Mutex::new(rate.map(buckets)))
    }

    /// Another limit from now on, for streams that run, too.
    pub fn set_rate(&self, rate: Option<NonZeroU64>) {
        let mut limit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *limit, rate) {
            (Some(both), Some(rate)) => both.iter_mut().for_each(|bucket| bucket.set_rate(rate)),
            (limit, rate) => *limit = rate.map(buckets),
        }
    }

    /// Notes bytes that have passed; `Some` is when the next may.
    pub(super) fn charge(&self, direction: Direction, bytes: u64, clock: &Clock) -> Option<Moment> {
        let mut limit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [inward, outward] = limit.as_mut()?;
        let bucket = match direction {
            Direction::In => inward,
            Direction::Out => outward,
        };
        bucket.charge(bytes, clock.now())
    }
}

fn buckets(rate: NonZeroU64) -> [TokenBucket; 2] {
    [TokenBucket::new(rate), TokenBucket::new(rate)]
}
