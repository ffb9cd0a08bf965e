//! Where strangers come from, and how often one source may try. Counts in windows of a minute.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::base::time::Moment;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(60);

/// Most sources that are counted at once. What is above pushes out the oldest window; 4,096 rows
/// take about 300 KiB, and who commands that many networks is not stopped by a rate.
const SOURCES_MAX: usize = 4_096;

/// Where connections come from, as far as limits are concerned: an IPv4 address, or the /64 of
/// an IPv6 address, which one customer holds as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl Source {
    /// The source that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(IpAddr::V4(v4)),
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                Self(IpAddr::V6(Ipv6Addr::from(network)))
            }
        }
    }
}

/// Tries per source and minute.
#[derive(Debug)]
pub struct SourceRate {
    per_window: u32,
    windows: BTreeMap<Source, Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Moment,
    count: u32,
}

impl SourceRate {
    /// So many tries per source and minute.
    pub const fn new(per_minute: u32) -> Self {
        Self {
            per_window: per_minute,
            windows: BTreeMap::new(),
        }
    }

    /// Another limit from now on.
    pub const fn set_limit(&mut self, per_minute: u32) {
        self.per_window = per_minute;
    }

    /// Counts one try; when it is one too many, says after what time to come back.
    pub fn admit(&mut self, source: Source, now: Moment) -> Result<(), Duration> {
        let over = |window: &Window| now.since(window.began) >= WINDOW;
        if !self.windows.contains_key(&source) && self.windows.len() >= SOURCES_MAX {
            self.windows.retain(|_, window| !over(window));
            if self.windows.len() >= SOURCES_MAX {
                let oldest = self.windows.iter().min_by_key(|(_, window)| window.began);
                if let Some(source) = oldest.map(|(source, _)| *source) {
                    self.windows.remove(&source);
                }
            }
        }
        let window = self
            .windows
            .entry(source)
            .or_insert(Window { began: now, count: 0 });
        if over(window) {
            *window = Window { began: now, count: 0 };
        }
        if window.count >= self.per_window {
            return Err(WINDOW.saturating_sub(now.since(window.began)));
        }
        window.count += 1;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn one_too_many_is_told_when_to_come_back() {
        let mut rate = SourceRate::new(2);
        let source = Source::of("192.0.2.1".parse().unwrap());
        let other = Source::of("192.0.2.2".parse().unwrap());
        assert!(rate.admit(source, at(0)).is_ok());
        assert!(rate.admit(source, at(10)).is_ok());
        assert_eq!(rate.admit(source, at(20)), Err(Duration::from_secs(40)));
        assert!(rate.admit(other, at(20)).is_ok());
        assert!(rate.admit(source, at(60)).is_ok());
    }

    #[test]
    fn the_count_of_sources_is_bounded() {
        let mut rate = SourceRate::new(1);
        for n in 0..10_000_u32 {
            let source = Source::of(std::net::Ipv4Addr::from(n).into());
            assert!(rate.admit(source, at(u64::from(n) / 1_000)).is_ok());
        }
        assert!(rate.windows.len() <= SOURCES_MAX);
    }
}
