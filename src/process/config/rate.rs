//! Bandwidths as people write them: `500KB`, `2MiB`, bytes each second; `none` is no limit.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use thiserror::Error;

use crate::base::limit::foreign_text;

/// Units from the largest to the smallest that is not a mere byte.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Bytes each second, or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumaneRate(pub Option<NonZeroU64>);

/// A text that is no bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a bandwidth; write bytes each second with a unit (500KB, 2MiB), or none")]
pub struct InvalidRate {
    text: String,
}

impl FromStr for HumaneRate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let text = text.trim();
        if text == "none" {
            return Ok(Self(None));
        }
        let read = || {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (number, unit) = text.split_at(digits);
            let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
            NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(*bytes)?)
        };
        read().map(|rate| Self(Some(rate))).ok_or_else(|| InvalidRate {
            text: foreign_text(text),
        })
    }
}

impl fmt::Display for HumaneRate {
    /// In the largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.0 else {
            return f.pad("none");
        };
        let rate = rate.get();
        let (unit, bytes) = UNITS
            .into_iter()
            .find(|(_, bytes)| rate.is_multiple_of(*bytes))
            .unwrap_or(("B", 1));
        f.pad(&format!("{}{unit}", rate / bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("500KB", 500_000, "500KB"),
            ("2 MiB", 2 << 20, "2MiB"),
            ("1500B", 1_500, "1500B"),
            ("1000KB", 1_000_000, "1MB"),
        ] {
            let rate: HumaneRate = text.parse().unwrap();
            assert_eq!(rate.0.unwrap().get(), bytes, "{text}");
            assert_eq!(rate.to_string(), shown);
        }
        assert_eq!("none".parse::<HumaneRate>().unwrap().to_string(), "none");
        for bad in [
            "",
            "5",
            "0KB",
            "-1KB",
            "5Mbit",
            "KB",
            "99999999999999999999GB",
            "9999999999999GiB",
        ] {
            assert!(bad.parse::<HumaneRate>().is_err(), "{bad}");
        }
    }
}
