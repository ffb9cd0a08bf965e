//! Callers over HTTPS whose operator token nobody knows: who shows too many is told to wait. Whoever has a
//! token that is known does not suffer from a neighbour behind the same address.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;

use super::super::reply::Reply;
use crate::base::time::Moment;
use crate::machine::source_rate::{Source, SourceRate};

/// Counts them.
#[derive(Debug)]
pub struct UnknownTokens(Mutex<SourceRate>);

impl UnknownTokens {
    /// So many of one source in a minute.
    pub const fn new(per_minute: u32) -> Self {
        Self(Mutex::new(SourceRate::new(per_minute)))
    }

    /// Another limit from now on.
    pub fn set_limit(&self, per_minute: u32) {
        self.rate().set_limit(per_minute);
    }

    /// Counts one; the answer where it is one too many.
    pub(super) fn count(&self, source: IpAddr, now: Moment) -> Option<Reply> {
        let admitted = self.rate().admit(Source::of(source), now);
        admitted.err().map(too_many)
    }

    fn rate(&self) -> std::sync::MutexGuard<'_, SourceRate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many(after: Duration) -> Reply {
    Reply::failure(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests with tokens that are not known came from this address; correct the token, and wait",
    )
    .retry_after(after)
}
