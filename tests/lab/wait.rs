//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

/// How often a condition is looked at: soon enough that no test gets slow by it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something, at most so long; then the test fails and names
/// `what` it waited for.
#[allow(
    clippy::disallowed_methods,
    reason = "other processes run in real time, so their deadline is on a real clock"
)]
pub fn wait_until<T>(what: &str, at_most: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < at_most, "after {at_most:?} still not: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
