//! The tunnel's view of the monotonic clock.

use crate::base::time::Moment;

/// Reads tokio's clock, which tests can pause.
#[derive(Debug, Clone, Copy)]
pub struct Clock(tokio::time::Instant);

impl Clock {
    /// A clock that starts now.
    #[allow(clippy::disallowed_methods, reason = "stands in for the process's clock")]
    #[allow(clippy::new_without_default, reason = "a clock has a start")]
    pub fn new() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// Time since the start.
    #[allow(clippy::disallowed_methods, reason = "stands in for the process's clock")]
    pub fn now(&self) -> Moment {
        Moment::after_start(tokio::time::Instant::now().duration_since(self.0))
    }
}
