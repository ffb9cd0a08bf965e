//! The only reader of clocks. Everything else takes a [`Moment`], a [`UnixTime`] or a
//! [`TrustedTime`] as an argument, or holds this [`Clock`] and asks it.
//!
//! Three clocks come together here: tokio's monotonic one (which tests pause), the system's wall
//! clock (which may say 1970 on a board without a battery), and what the parent has told, advanced
//! by the monotonic time since. The rule that decides between them is [`TrustedTime::decide`].

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::base::time::{CLOCK_TOLERANCE, Moment, TrustedTime, UnixTime};

/// When this program's source was last changed: no true clock is earlier.
pub const BUILD_TIME: UnixTime = UnixTime::from_seconds(decimal(env!("POWERNODE_BUILD_SECONDS")));

/// How far beyond all that this box knew at start (build, system clock, stored time) a parent may
/// move its time during one run. More than a year, so that a box switched on after a long winter
/// follows; not for ever, so that a parent with a wrong clock cannot make every certificate look
/// expired for good.
pub const PARENT_TIME_TRUST_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Reads the clocks. Cheap to clone; all clones share what the parent has told.
#[derive(Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    build: UnixTime,
    wall: Wall,
    parent: Mutex<ParentTime>,
}

enum Wall {
    System,
    Manual(ManualWallClock),
}

#[derive(Default)]
struct ParentTime {
    restored: Option<Reading>,
    told: Option<Reading>,
}

/// A time that was true at a moment of the monotonic clock.
#[derive(Clone, Copy)]
struct Reading {
    time: UnixTime,
    at: Moment,
}

/// What became of a time that the parent told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentTimeNote {
    /// It is later than what was known, and is believed from now on.
    Advanced,
    /// It is not later than what was known; nothing changed.
    NotLater,
    /// It lies more than [`PARENT_TIME_TRUST_MAX`] beyond everything this box knew; it is not believed.
    TooFarAhead,
}

impl Clock {
    /// Starts the monotonic clock at [`Moment::START`], with the system's wall clock. `build` is
    /// [`BUILD_TIME`] outside of tests.
    pub fn start(build: UnixTime) -> Self {
        Self::new(build, Wall::System)
    }

    /// The same with a wall clock that stands where it is set: a board whose clock is wrong.
    pub fn with_wall_clock(build: UnixTime, wall: ManualWallClock) -> Self {
        Self::new(build, Wall::Manual(wall))
    }

    /// Monotonic time since the start.
    pub fn now(&self) -> Moment {
        Moment::after_start(read_monotonic().saturating_duration_since(self.shared.started))
    }

    /// The system's wall clock, right or wrong.
    pub fn system(&self) -> UnixTime {
        match &self.shared.wall {
            Wall::System => read_system(),
            Wall::Manual(wall) => wall.get(),
        }
    }

    /// The time for certificates and records, and whether it is in doubt.
    pub fn trusted(&self) -> TrustedTime {
        TrustedTime::decide(self.system(), self.shared.build, self.seen_from_parent())
    }

    /// Takes up the last time seen from the parent as an earlier run stored it.
    pub fn restore_parent_time(&self, stored: UnixTime) {
        let at = self.now();
        self.parent().restored = Some(Reading { time: stored, at });
    }

    /// Takes note of a time that the authenticated parent has just told.
    pub fn note_parent_time(&self, told: UnixTime) -> ParentTimeNote {
        let (now, system) = (self.now(), self.system());
        let mut parent = self.parent();
        if parent.at(now).is_some_and(|known| told <= known) {
            return ParentTimeNote::NotLater;
        }
        // Only what was known before the parent spoke bounds it: otherwise it could walk away in steps.
        let known = parent
            .restored
            .map(|reading| reading.at(now))
            .into_iter()
            .chain([system, self.shared.build])
            .fold(UnixTime::EPOCH, UnixTime::max);
        if told.since(known) > PARENT_TIME_TRUST_MAX {
            return ParentTimeNote::TooFarAhead;
        }
        parent.told = Some(Reading { time: told, at: now });
        ParentTimeNote::Advanced
    }

    /// The last time seen from the parent, advanced to now: what the store keeps for the next run.
    pub fn seen_from_parent(&self) -> Option<UnixTime> {
        self.parent().at(self.now())
    }

    /// By how much the system clock is ahead of what the parent has told during this run, where
    /// that is more than ordinary drift: certificates then look expired before they are.
    pub fn ahead_of_parent(&self) -> Option<Duration> {
        let told = self.parent().told?.at(self.now());
        Some(self.system().since(told)).filter(|ahead| *ahead > CLOCK_TOLERANCE)
    }

    /// The same point for tokio's timers.
    pub fn instant_of(&self, moment: Moment) -> Instant {
        // A moment beyond the range of the operating system's clock is never reached anyway.
        self.shared
            .started
            .checked_add(moment.since_start())
            .unwrap_or_else(|| self.shared.started + FAR_FUTURE)
    }

    /// Waits until the moment has come.
    pub async fn sleep_until(&self, moment: Moment) {
        tokio::time::sleep_until(self.instant_of(moment)).await;
    }

    fn new(build: UnixTime, wall: Wall) -> Self {
        Self {
            shared: Arc::new(Shared {
                started: read_monotonic(),
                build,
                wall,
                parent: Mutex::new(ParentTime::default()),
            }),
        }
    }

    fn parent(&self) -> MutexGuard<'_, ParentTime> {
        self.shared.parent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("now", &self.now())
            .field("trusted", &self.trusted())
            .finish()
    }
}

/// A wall clock that stands still until it is set. Clones share the hands.
#[derive(Debug, Clone)]
pub struct ManualWallClock(Arc<AtomicI64>);

impl ManualWallClock {
    /// Shows `time`.
    pub fn new(time: UnixTime) -> Self {
        Self(Arc::new(AtomicI64::new(time.as_seconds())))
    }

    /// Shows `time` from now on.
    pub fn set(&self, time: UnixTime) {
        self.0.store(time.as_seconds(), Ordering::Relaxed);
    }

    fn get(&self) -> UnixTime {
        UnixTime::from_seconds(self.0.load(Ordering::Relaxed))
    }
}

impl ParentTime {
    fn at(&self, now: Moment) -> Option<UnixTime> {
        [self.restored, self.told]
            .into_iter()
            .flatten()
            .map(|reading| reading.at(now))
            .max()
    }
}

impl Reading {
    fn at(self, now: Moment) -> UnixTime {
        self.time.plus(now.since(self.at))
    }
}

/// Thirty years: longer than any process lives, and within the range of every clock.
const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

#[allow(clippy::disallowed_methods, reason = "this module is the reader")]
fn read_monotonic() -> Instant {
    Instant::now()
}

/// The system clock for a log line: RFC 3339 with microseconds, by which lines of several programs are put in
/// order.
#[allow(clippy::disallowed_methods, reason = "this module is the reader")]
pub(super) fn log_time() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = UnixTime::EPOCH.plus(since).to_string();
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), since.subsec_micros())
}

#[allow(clippy::disallowed_methods, reason = "this module is the reader")]
fn read_system() -> UnixTime {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => UnixTime::EPOCH.plus(after),
        Err(before) => UnixTime::EPOCH.minus(before.duration()),
    }
}

/// The number that the build script wrote; anything else does not compile.
const fn decimal(text: &str) -> i64 {
    let bytes = text.as_bytes();
    let mut number = 0;
    let mut index = 0;
    while index < bytes.len() {
        assert!(
            bytes[index].is_ascii_digit(),
            "the build time is a number of seconds"
        );
        number = number * 10 + (bytes[index] - b'0') as i64;
        index += 1;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::ClockDoubt;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const BUILD: UnixTime = UnixTime::from_seconds(1_800_000_000);

    fn board() -> (Clock, ManualWallClock) {
        let wall = ManualWallClock::new(UnixTime::EPOCH);
        (Clock::with_wall_clock(BUILD, wall.clone()), wall)
    }

    #[test]
    fn the_build_is_not_in_the_future() {
        let clock = Clock::start(BUILD_TIME);
        assert!(BUILD_TIME <= clock.system());
        assert_eq!(clock.trusted().doubt, None);
    }

    #[tokio::test(start_paused = true)]
    async fn moments_follow_tokios_clock() {
        let (clock, _) = board();
        let wake = clock.now().plus(Duration::from_secs(90));
        clock.sleep_until(wake).await;
        // Timers are a millisecond coarse.
        let late = clock.now().since(wake);
        assert!(
            clock.now() >= wake && late <= Duration::from_millis(1),
            "{late:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_parents_time_goes_on_after_it_was_told() {
        let (clock, _) = board();
        let told = BUILD.plus(DAY);
        assert_eq!(clock.note_parent_time(told), ParentTimeNote::Advanced);
        tokio::time::advance(DAY).await;
        assert_eq!(clock.seen_from_parent(), Some(told.plus(DAY)));
        assert_eq!(clock.trusted().doubt, Some(ClockDoubt::BehindParent));
    }

    #[tokio::test(start_paused = true)]
    async fn the_parents_time_never_goes_back() {
        let (clock, _) = board();
        clock.note_parent_time(BUILD.plus(2 * DAY));
        assert_eq!(clock.note_parent_time(BUILD.plus(DAY)), ParentTimeNote::NotLater);
        clock.restore_parent_time(BUILD);
        assert_eq!(clock.seen_from_parent(), Some(BUILD.plus(2 * DAY)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_parent_cannot_move_time_away_not_even_in_steps() {
        let (clock, _) = board();
        let furthest = BUILD.plus(PARENT_TIME_TRUST_MAX);
        assert_eq!(clock.note_parent_time(furthest), ParentTimeNote::Advanced);
        assert_eq!(
            clock.note_parent_time(furthest.plus(DAY)),
            ParentTimeNote::TooFarAhead
        );
        assert_eq!(clock.trusted().now, furthest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_box_older_than_the_bound_goes_on_from_what_it_stored() {
        let (clock, _) = board();
        let stored = BUILD.plus(3 * PARENT_TIME_TRUST_MAX);
        clock.restore_parent_time(stored);
        assert_eq!(clock.note_parent_time(stored.plus(DAY)), ParentTimeNote::Advanced);
    }

    #[tokio::test(start_paused = true)]
    async fn a_system_clock_ahead_of_the_parent_is_told() {
        let (clock, wall) = board();
        clock.note_parent_time(BUILD.plus(DAY));
        assert_eq!(clock.ahead_of_parent(), None);
        wall.set(BUILD.plus(3 * DAY));
        assert_eq!(clock.ahead_of_parent(), Some(2 * DAY));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_beyond_all_clocks_is_no_panic() {
        let (clock, _) = board();
        assert!(clock.instant_of(Moment::after_start(Duration::MAX)) > clock.instant_of(clock.now()));
    }
}
