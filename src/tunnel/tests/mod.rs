//! Tunnels from end to end: over the transport in memory with paused time, and over QUIC and TCP on
//! loopback with real certificates.

#![allow(clippy::unwrap_used)]

mod every;
mod flow;
mod http;
mod memory;
mod network;
mod quic;
mod tcp;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::transport::Transport;
use super::{CloseReason, Tunnel, TunnelSettings};
use crate::base::id::{SessionId, TraceId};
use crate::process::clock::{BUILD_TIME, Clock};
use crate::wire::{Goodbye, GoodbyeReason, Hello, StreamHeader, StreamKind, Welcome};

/// Time in which anything on loopback must have happened.
const SOON: Duration = Duration::from_secs(20);

const TRACE: TraceId = TraceId(0x00c0_ffee);

fn header() -> StreamHeader {
    StreamHeader {
        kind: StreamKind::Http,
        trace: TRACE,
    }
}

fn hello() -> Hello {
    Hello {
        version: 1,
        agent: "powernode-satellite/test".into(),
        features: vec![],
    }
}

fn welcome(max_streams: u32) -> Welcome {
    Welcome {
        session: SessionId::from_uuid(uuid::Uuid::from_u128(7)),
        agent: "powernode-host-bridge/test".into(),
        keepalive_millis: 20_000,
        max_streams,
        observed_address: "192.0.2.1:5".into(),
        unix_seconds: 1_700_000_000,
        features: vec![],
    }
}

fn goodbye() -> Goodbye {
    Goodbye {
        reason: GoodbyeReason::ShuttingDown,
        message: "the bridge restarts".into(),
        retry_after_millis: 1_500,
    }
}

/// Both ends of a tunnel, greeted, their drivers running until this is dropped.
struct Ends {
    dialer: Tunnel,
    acceptor: Tunnel,
    drivers: JoinSet<CloseReason>,
}

async fn greet(near: Arc<dyn Transport>, far: Arc<dyn Transport>, max_streams: u32) -> Ends {
    greet_with(TunnelSettings::default(), near, far, max_streams).await
}

async fn greet_with(
    settings: TunnelSettings,
    near: Arc<dyn Transport>,
    far: Arc<dyn Transport>,
    max_streams: u32,
) -> Ends {
    let clock = Clock::start(BUILD_TIME);
    let (near, far) = tokio::join!(
        Tunnel::dial(near, hello(), settings, clock.clone()),
        Tunnel::accept(far, settings, clock.clone(), |_| Ok(welcome(max_streams))),
    );
    let (dialer, _, dialer_driver) = near.unwrap();
    let (acceptor, _, acceptor_driver) = far.unwrap();
    let mut drivers = JoinSet::new();
    drivers.spawn(dialer_driver.run());
    drivers.spawn(acceptor_driver.run());
    Ends {
        dialer,
        acceptor,
        drivers,
    }
}

/// Waits for work to end for as long as bytes arrive: that a busy machine needs long for all of them is no fault.
async fn while_bytes_arrive<T>(arrived: &AtomicUsize, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut before = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(SOON, &mut work).await {
            return done;
        }
        let now = arrived.load(Ordering::Relaxed);
        assert!(now > before, "no byte has arrived for {SOON:?}; {now} had before");
        before = now;
    }
}

/// Bytes that differ from stream to stream and from place to place.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * 31 + seed * 17 + index / 251) % 256).unwrap())
        .collect()
}
