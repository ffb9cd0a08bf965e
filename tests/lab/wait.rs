//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

/// How often a condition is looked at: soon enough that no test gets slow by it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something, at most so long; then the test fails and names
/// `what` it waited for.
pub fn wait_until<T>(what: &str, at_most: Duration, condition: impl FnMut() -> Option<T>) -> T {
    wait_timed(what, at_most, condition).0
}

/// The same, and how long it took, which is printed too: the lab's measurements.
#[allow(
    clippy::disallowed_methods,
    reason = "other processes run in real time, so their deadline is on a real clock"
)]
pub fn wait_timed<T>(
    what: &str,
    at_most: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            let took = begun.elapsed();
            println!("{:>9.3} s until {what}", took.as_secs_f64());
            return (found, took);
        }
        assert!(begun.elapsed() < at_most, "after {at_most:?} still not: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until something that has just begun is so old, where its age is what another program acts upon.
#[allow(
    clippy::disallowed_methods,
    reason = "other processes run in real time, so their age is on a real clock"
)]
pub fn wait_for_age(what: &str, age: Duration) {
    let begun = Instant::now();
    wait_timed(what, age.saturating_mul(2), || {
        (begun.elapsed() >= age).then_some(())
    });
}
