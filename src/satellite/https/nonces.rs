//! The proofs that are awaited at the listener: the bridge shows each one's nonce.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;

use crate::contract::TUNNEL_DIAL_BACK_PATH;

/// Proofs that may be awaited at once, in number: one of each family, and room.
const AWAITED_MAX: usize = 8;

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Nonces(Arc<Mutex<BTreeSet<String>>>);

/// A proof that is awaited until this is dropped.
pub(super) struct Awaited {
    nonces: Nonces,
    nonce: String,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut awaited = self.nonces.0.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.remove(&self.nonce);
    }
}

impl Nonces {
    /// Awaits one; `None` where too many are.
    pub(super) fn await_proof(&self, nonce: &str) -> Option<Awaited> {
        let mut awaited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if awaited.len() >= AWAITED_MAX {
            return None;
        }
        awaited.insert(nonce.to_owned());
        Some(Awaited {
            nonces: self.clone(),
            nonce: nonce.to_owned(),
        })
    }

    /// The answer to a proof, where a request is one: empty, with 204 where it is awaited.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let below = request.uri().path().strip_prefix(TUNNEL_DIAL_BACK_PATH)?;
        let nonce = below.strip_prefix('/')?;
        let is_awaited = || {
            let awaited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            awaited.contains(nonce)
        };
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = if request.method() == Method::GET && is_awaited() {
            StatusCode::NO_CONTENT
        } else {
            StatusCode::NOT_FOUND
        };
        Some(answer)
    }
}
