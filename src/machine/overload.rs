//! Whether a UDP socket is overrun: more arrives at it than the program takes, and the system drops the
//! rest. A burst that was lost is the tunnel's to mend; a socket that goes on losing a large part of what
//! arrives is no way to carry anything, and TCP, which slows its sender down, carries more.

use std::time::Duration;

/// How often a socket is looked at. Each look reads one table of the system's.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The part of what arrived that is dropped in a look of a socket that is overrun: one in so many.
const DROPPED_ONE_IN: u64 = 5;

/// Packets dropped in such a look, at least: 60 a second, far more than a burst now and then.
const DROPPED_LEAST: u64 = 300;

/// Such looks in a row that are no chance.
const LOOKS_IN_A_ROW: u32 = 2;

/// What has come to a socket since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpArrivals {
    /// Packets that were taken.
    pub taken: u64,
    /// Packets that the system dropped, because the socket's buffer was full.
    pub dropped: u64,
}

/// What a look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Nothing new was dropped, or too little to act upon.
    Bearable {
        /// How much it was.
        dropped: u64,
    },
    /// The socket is overrun.
    Overrun {
        /// How many of a hundred packets are dropped.
        percent: u64,
    },
}

/// What is remembered of one socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overload {
    last: UdpArrivals,
    bad_looks: u32,
    dropped: u64,
}

impl Overload {
    /// All that was dropped so far.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// One look. Counts that are smaller than before are another socket's, which has begun from nothing.
    pub fn look(&mut self, now: UdpArrivals) -> Sight {
        let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
        let dropped = since(self.last.dropped, now.dropped);
        let arrived = since(self.last.taken, now.taken).saturating_add(dropped);
        self.last = now;
        self.dropped = self.dropped.saturating_add(dropped);
        if dropped < DROPPED_LEAST || dropped.saturating_mul(DROPPED_ONE_IN) < arrived {
            self.bad_looks = 0;
            return Sight::Bearable { dropped };
        }
        self.bad_looks += 1;
        if self.bad_looks < LOOKS_IN_A_ROW {
            return Sight::Bearable { dropped };
        }
        Sight::Overrun {
            percent: dropped.saturating_mul(100) / arrived,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(taken: u64, dropped: u64) -> UdpArrivals {
        UdpArrivals { taken, dropped }
    }

    #[test]
    fn a_socket_that_goes_on_losing_a_large_part_is_overrun() {
        let mut socket = Overload::default();
        assert_eq!(socket.look(at(1_000, 1_000)), Sight::Bearable { dropped: 1_000 });
        assert_eq!(socket.look(at(2_000, 2_000)), Sight::Overrun { percent: 50 });
        assert_eq!(socket.look(at(2_000, 2_000)), Sight::Bearable { dropped: 0 });
        assert_eq!(socket.dropped(), 2_000);
    }

    #[test]
    fn bursts_and_small_parts_are_borne() {
        let mut socket = Overload::default();
        for look in 1..100 {
            // Every other look a burst; then always some, of much more.
            let burst = at(look * 100, look / 2 * 1_000);
            assert!(matches!(socket.look(burst), Sight::Bearable { .. }), "{look}");
        }
        let mut socket = Overload::default();
        for look in 1..100 {
            let part = at(look * 100_000, look * 5_000);
            assert!(matches!(socket.look(part), Sight::Bearable { .. }), "{look}");
        }
        let mut socket = Overload::default();
        for look in 1..100 {
            let few = at(0, look * 299);
            assert!(matches!(socket.look(few), Sight::Bearable { .. }), "{look}");
        }
    }

    #[test]
    fn another_socket_begins_from_nothing() {
        let mut socket = Overload::default();
        socket.look(at(10, 5_000));
        assert_eq!(socket.look(at(3, 20)), Sight::Bearable { dropped: 20 });
        assert_eq!(socket.dropped(), 5_020);
    }
}
