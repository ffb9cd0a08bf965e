//! Certificates that do not pass a handshake, in the log: whoever looks for why a client is refused finds it
//! there, and nobody fills the log by dialling again and again.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::base::time::Moment;
use crate::machine::source_rate::{Source, SourceRate};

/// Warnings of one source in a minute: one of each transport that a satellite tries.
const PER_SOURCE: u32 = 2;

/// Warnings in a minute, wherever from: enough for a site full of boxes of another parent to be seen as that.
const IN_ALL: u32 = 30;

/// Says them, as long as they are not too many.
#[derive(Debug)]
pub struct RefusedCertificates(Mutex<Rates>);

#[derive(Debug)]
struct Rates {
    of_source: SourceRate,
    of_all: SourceRate,
}

impl Default for RefusedCertificates {
    fn default() -> Self {
        Self(Mutex::new(Rates {
            of_source: SourceRate::new(PER_SOURCE),
            of_all: SourceRate::new(IN_ALL),
        }))
    }
}

impl RefusedCertificates {
    /// One was refused. The metrics count all of them, among the handshakes that failed.
    pub fn note(&self, source: IpAddr, why: &str, now: Moment) {
        if self.is_told(source, now) {
            warn!(%source, why, "a client's certificate was refused");
        } else {
            debug!(%source, why, "a client's certificate was refused, one of many");
        }
    }

    fn is_told(&self, source: IpAddr, now: Moment) -> bool {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let everybody = Source::of(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        rates.of_source.admit(Source::of(source), now).is_ok() && rates.of_all.admit(everybody, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_and_all_of_them_are_told_of_so_often_in_a_minute() {
        let refused = RefusedCertificates::default();
        let at = |seconds| Moment::after_start(std::time::Duration::from_secs(seconds));
        let source = |n: u32| IpAddr::V4(Ipv4Addr::from(0xc000_0200 + n));
        let told = |of: u32, seconds| refused.is_told(source(of), at(seconds));
        assert_eq!([told(1, 0), told(1, 1), told(1, 2)], [true, true, false]);
        assert!(told(1, 61), "a minute later");
        let many = (2..100).filter(|n| told(*n, 62)).count();
        assert_eq!(many + 1, IN_ALL as usize);
    }
}
