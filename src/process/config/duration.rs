//! Durations as people write them: `250ms`, `60s`, `10m`, `24h`, `7d`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::base::limit::foreign_text;

/// Units from the largest to the smallest, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// A duration in whole milliseconds that reads and shows itself in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumaneDuration(pub Duration);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a duration; write a number with a unit: 250ms, 60s, 10m, 24h, 7d, 1h30m")]
pub struct InvalidDuration {
    text: String,
}

impl FromStr for HumaneDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        millis_of(text.trim())
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| InvalidDuration {
                text: foreign_text(text),
            })
    }
}

/// Each unit at most once, from the largest to the smallest, so that there is one way to read it.
fn millis_of(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*millis)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

impl fmt::Display for HumaneDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(millis: u64) {
            let duration = HumaneDuration(Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_is_a_panic(text: String) {
            let _ = text.parse::<HumaneDuration>();
        }
    }

    #[test]
    fn units_and_their_order() {
        let seconds = |text: &str| text.parse::<HumaneDuration>().ok().map(|d| d.0.as_secs());
        assert_eq!(seconds("7d"), Some(604_800));
        assert_eq!(seconds(" 1h30m "), Some(5_400));
        assert_eq!(seconds("90s"), Some(90));
        for bad in [
            "",
            "5",
            "s",
            "1.5h",
            "30m1h",
            "1h1h",
            "-1s",
            "1 h",
            "5S",
            "99999999999999999999s",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_largest_units_come_first() {
        let shown = |millis| HumaneDuration(Duration::from_millis(millis)).to_string();
        assert_eq!(shown(86_400_000), "1d");
        assert_eq!(shown(90_000), "1m30s");
        assert_eq!(shown(250), "250ms");
        assert_eq!(shown(0), "0s");
    }
}
