//! Tunnels that this side dials, because a satellite that can be reached has asked for one, or was lost after
//! that: the connection is this side's, the tunnel is the satellite's as any other.

mod redial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::Body;
use tokio::sync::{Notify, oneshot};
use tracing::{debug, info};

use redial::Redials;
pub use redial::{Redial, RedialEvent};

use super::dial_back::{self, Reached};
use super::federation_api::{Caller, RedialFailed};
use super::ingress::Ingress;
use super::reply::Reply;
use crate::base::time::Moment;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::tunnel::transport::Transport;
use crate::wire::{DirectCall, Hello};

/// A connection that this side has made, for a tunnel.
pub struct Calling {
    /// Its handshake is done.
    pub transport: Arc<dyn Transport>,
    /// What is said first.
    pub call: DirectCall,
    /// Hears what it came to.
    pub told: Told,
    /// How it is made again.
    pub redial: Redial,
}

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
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let reached = match ingress.parent.dial_for_tunnel(request, caller).await {
        Ok(reached) => reached,
        Err(answer) => return answer,
    };
    let Reached {
        transport,
        redial,
        call,
    } = reached;
    let endpoint = redial.endpoint;
    let (told, outcome) = oneshot::channel();
    let calling = Calling {
        transport,
        call,
        told: Told(told),
        redial,
    };
    let tunnel = Arc::clone(ingress).call(calling);
    ingress.work.spawn("direct tunnel", tunnel);
    let why = match outcome.await {
        Ok(None) => return dial_back::reply(endpoint, None),
        Ok(Some(why)) => why,
        Err(_) => "the host-bridge stops".to_owned(),
    };
    debug!(%endpoint, why, "a satellite that was dialled did not greet");
    dial_back::reply(endpoint, Some(&why))
}

/// Dials satellites again that the network has taken from this side ([`redial`]).
#[derive(Debug)]
pub struct Redialer {
    machine: Mutex<Redials>,
    changed: Notify,
    clock: Clock,
}

impl Redialer {
    /// Knows nobody.
    pub fn new(clock: Clock) -> Self {
        Self {
            machine: Mutex::new(Redials::new(entropy::seed())),
            changed: Notify::new(),
            clock,
        }
    }

    /// What has become of a peer's tunnels.
    pub fn tell(&self, event: RedialEvent) {
        self.machine().handle_event(event, self.clock.now());
        self.changed.notify_one();
    }

    /// Dials whom it is to dial, for as long as the bridge takes tunnels.
    pub async fn run(ingress: Arc<Ingress>) {
        let redialer = Arc::clone(&ingress.redialer);
        loop {
            let (due, wake) = {
                let mut machine = redialer.machine();
                let due: Vec<Redial> = std::iter::from_fn(|| machine.poll_action()).collect();
                (due, machine.poll_timeout())
            };
            for redial in due {
                let dialling = dial_again(Arc::clone(&ingress), redial);
                ingress.work.spawn_until_cancelled("redial", dialling);
            }
            let wake = wake.unwrap_or(Moment::after_start(Duration::MAX));
            tokio::select! {
                () = redialer.changed.notified() => {}
                () = redialer.clock.sleep_until(wake) => redialer.tell(RedialEvent::Timeout),
            }
        }
    }

    fn machine(&self) -> MutexGuard<'_, Redials> {
        // Each event is complete before anything that could panic.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial_again(ingress: Arc<Ingress>, redial: Redial) {
    let (peer, endpoint) = (redial.peer, redial.endpoint);
    let Some(call) = DirectCall::again(&redial.bridge) else {
        return ingress.redialer.tell(RedialEvent::Left(peer));
    };
    let transport = match ingress.parent.redial(&redial).await {
        Ok(transport) => transport,
        Err(RedialFailed::MayNotCome) => return ingress.redialer.tell(RedialEvent::Left(peer)),
        Err(RedialFailed::NotReached(why)) => {
            debug!(%peer, %endpoint, why, "a lost satellite is not reached");
            return ingress.redialer.tell(RedialEvent::Failed(peer));
        }
    };
    let (told, outcome) = oneshot::channel();
    let calling = Calling {
        transport,
        call,
        told: Told(told),
        redial,
    };
    ingress
        .work
        .spawn("direct tunnel", Arc::clone(&ingress).call(calling));
    match outcome.await {
        Ok(None) => info!(%peer, %endpoint, "a lost satellite is dialled again"),
        Ok(Some(why)) => {
            debug!(%peer, %endpoint, why, "a lost satellite does not greet");
            ingress.redialer.tell(RedialEvent::Failed(peer));
        }
        Err(_) => {}
    }
}
