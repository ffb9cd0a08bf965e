//! Tunnels that this side dials, because a satellite that can be reached has asked for one: the connection is
//! this side's, the tunnel is the satellite's as any other.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use hyper::body::Body;
use tokio::sync::oneshot;
use tracing::debug;

use super::dial_back::{self, Reached};
use super::federation_api::Caller;
use super::ingress::Ingress;
use super::reply::Reply;
use crate::wire::{DirectCall, Hello};

/// Hears once what a greeting came to.
#[derive(Debug)]
pub struct Told(oneshot::Sender<Option<String>>);

impl Told {
    /// The tunnel is up. Whoever does not wait any more does not hear it.
    pub fn came_up(self) {
        let _ = self.0.send(None);
    }

    /// There is none, and why.
    pub fn came_to_nothing(self, why: String) {
        let _ = self.0.send(Some(why));
    }
}

/// What this side says on the connection that it has made.
pub fn hello(call: &DirectCall) -> Hello {
    dial_back::hello(call.feature())
}

/// Answers `POST /tunnel/v1/direct`: dials, has the satellite greet, and says what it came to. The tunnel
/// lives on its own.
pub async fn answer<B>(ingress: &Arc<Ingress>, request: Request<B>, caller: Caller) -> Reply
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let federation = Arc::clone(&ingress.federation);
    let reached = match federation.dial_for_tunnel(request, caller).await {
        Ok(reached) => reached,
        Err(answer) => return answer,
    };
    let Reached {
        transport,
        endpoint,
        call,
        ..
    } = reached;
    let (told, outcome) = oneshot::channel();
    let calling = Arc::clone(ingress).call(transport, call, Told(told));
    ingress.work.spawn("direct tunnel", calling);
    let why = match outcome.await {
        Ok(None) => return dial_back::reply(endpoint, None),
        Ok(Some(why)) => why,
        Err(_) => "the host-bridge stops".to_owned(),
    };
    debug!(%endpoint, why, "a satellite that was dialled did not greet");
    dial_back::reply(endpoint, Some(&why))
}
