//! Time as values. Nobody here reads a clock: the supervisor does, and passes on
//! a [`Moment`] (monotonic, for timers) or a [`UnixTime`] (wall clock, for certificates and
//! records). [`TrustedTime`] is the rule for boards that boot in 1970.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Wall-clock time in whole seconds since 1970-01-01T00:00:00Z (contract section 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(i64);

impl UnixTime {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);

    /// From seconds since the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch.
    pub const fn as_seconds(self) -> i64 {
        self.0
    }

    /// This time and a duration later, saturating; parts of a second are dropped.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)),
        )
    }

    /// This time and a duration earlier, saturating.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A text that is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a time; RFC 3339 such as 2026-05-17T13:44:12Z is needed")]
pub struct InvalidTime {
    text: String,
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC with a `Z`, whole seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(self.0)
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
        {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

impl FromStr for UnixTime {
    type Err = InvalidTime;

    /// Accepts any RFC 3339 time, with or without fractions (dropped), with any offset.
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        OffsetDateTime::parse(text.trim(), &Rfc3339)
            .map(|t| Self(t.unix_timestamp()))
            .map_err(|_| InvalidTime {
                text: text.chars().take(64).collect(),
            })
    }
}

/// RFC 3339 text in JSON; named in `#[serde(with = "…")]`. Stored records keep the number.
pub mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::UnixTime;

    /// Writes `2026-05-17T13:44:12Z`.
    pub fn serialize<S: Serializer>(time: &UnixTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    /// Reads any RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UnixTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }

    /// The same for a time that may be absent or null.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serializer};

        use super::UnixTime;

        /// Writes the time or null.
        pub fn serialize<S: Serializer>(time: &Option<UnixTime>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.serialize_some(&time.to_string()),
                None => serializer.serialize_none(),
            }
        }

        /// Reads a time or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UnixTime>, D::Error> {
            Option::<String>::deserialize(deserializer)?
                .map(|text| text.parse().map_err(serde::de::Error::custom))
                .transpose()
        }
    }
}

/// A point on the process's monotonic clock: the time since the supervisor started. The
/// machines' timers count in it; under test it is whatever the test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The supervisor's start.
    pub const START: Self = Self(Duration::ZERO);

    /// A point so long after the start.
    pub const fn after_start(duration: Duration) -> Self {
        Self(duration)
    }

    /// Time since the supervisor's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// This point and a duration later, saturating.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// How far the system clock may lag before it is called doubtful: ordinary drift between two
/// hosts without a common time source stays below this.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Why the time in use is not simply the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockDoubt {
    /// The system clock is earlier than this binary's build: a board without a real-time clock.
    BehindBuild,
    /// The system clock is earlier than a time that the parent has told.
    BehindParent,
}

impl fmt::Display for ClockDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BehindBuild => "the system clock is earlier than this program's build",
            Self::BehindParent => "the system clock is earlier than the last time seen from the parent",
        })
    }
}

/// The latest of system clock, build time and the last time seen from the parent: what
/// certificate checks use, so that a box that boots in 1970 still comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustedTime {
    /// The time to use.
    pub now: UnixTime,
    /// Set when the system's clock lags by more than [`CLOCK_TOLERANCE`].
    pub doubt: Option<ClockDoubt>,
}

impl TrustedTime {
    /// Decides. `seen_from_parent` is the parent's last told time, already advanced by the
    /// monotonic time that has passed since.
    pub fn decide(system: UnixTime, build: UnixTime, seen_from_parent: Option<UnixTime>) -> Self {
        let (now, cause) = match seen_from_parent {
            Some(parent) if parent > system && parent >= build => (parent, ClockDoubt::BehindParent),
            _ if build > system => (build, ClockDoubt::BehindBuild),
            _ => {
                return Self {
                    now: system,
                    doubt: None,
                };
            }
        };
        Self {
            now,
            doubt: (now.since(system) > CLOCK_TOLERANCE).then_some(cause),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc_with_whole_seconds() {
        let time: UnixTime = "2026-05-17T15:44:12.987+02:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-05-17T13:44:12Z");
    }

    #[test]
    fn far_away_times_do_not_panic() {
        assert_eq!(
            UnixTime::from_seconds(i64::MAX).to_string(),
            format!("@{}", i64::MAX)
        );
        assert_eq!(
            UnixTime::from_seconds(i64::MAX).plus(Duration::MAX).as_seconds(),
            i64::MAX
        );
        assert_eq!(UnixTime::EPOCH.since(UnixTime::from_seconds(5)), Duration::ZERO);
    }

    #[test]
    fn the_latest_of_three_times_wins() {
        let t = |minutes: i64| UnixTime::from_seconds(minutes * 60);
        let decided = |system, build, parent: Option<i64>| {
            let time = TrustedTime::decide(t(system), t(build), parent.map(t));
            (time.now, time.doubt)
        };
        assert_eq!(decided(30, 10, Some(20)), (t(30), None));
        assert_eq!(decided(0, 10, None), (t(10), Some(ClockDoubt::BehindBuild)));
        assert_eq!(decided(0, 10, Some(20)), (t(20), Some(ClockDoubt::BehindParent)));
        assert_eq!(decided(0, 10, Some(5)), (t(10), Some(ClockDoubt::BehindBuild)));
        assert_eq!(
            decided(19, 10, Some(20)),
            (t(20), None),
            "ordinary drift is no doubt"
        );
    }
}
