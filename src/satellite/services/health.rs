//! Looks after one service: carries out what its `machine::service_health` wants, and starts over when
//! its definition changes.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::live::LiveService;
use super::local::{self, ConnectError, LocalStream};
use super::registry::Services;
use crate::base::limit::error_chain;
use crate::contract::service::{HealthCheck, ServiceDefinition, ServiceHealth};
use crate::machine::service_health::{HealthAction, HealthEvent, HealthMachine};
use crate::process::clock::Clock;

/// Time for one check, the connection included.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer in which its status must be found: `HTTP/1.1 200 `.
const STATUS_BYTES: usize = 13;

/// From this status on an answer is no good one.
const FAILED_STATUS: u16 = 400;

/// Runs until it is dropped.
pub(super) async fn look_after(services: Services, service: Arc<LiveService>) {
    let mut definition = service.watch();
    let clock = services.clock().clone();
    loop {
        let current = Arc::clone(&definition.borrow_and_update());
        let looking = look(&services, &service, &current, &clock);
        let changed = tokio::select! {
            () = looking => definition.changed().await,
            changed = definition.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Returns only for a service that is not looked after.
async fn look(services: &Services, service: &LiveService, definition: &ServiceDefinition, clock: &Clock) {
    if definition.health_check == HealthCheck::None {
        services.told_health(service, ServiceHealth::Unchecked, None);
        return;
    }
    let interval = Duration::from_secs(definition.health_interval_seconds);
    let mut machine = HealthMachine::new(interval, clock.now());
    loop {
        services.told_health(service, machine.health(), machine.reason());
        if let Some(due) = machine.poll_timeout() {
            clock.sleep_until(due).await;
            machine.handle_event(HealthEvent::Timeout, clock.now());
        }
        while let Some(HealthAction::Check) = machine.poll_action() {
            let event = match check(definition, clock).await {
                Ok(()) => HealthEvent::Answered,
                Err(error) => HealthEvent::Failed(error_chain(&error)),
            };
            machine.handle_event(event, clock.now());
        }
    }
}

/// Why a check failed.
#[derive(Debug, Error)]
enum CheckError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("its program did not answer a request within {} s", CHECK_TIMEOUT.as_secs())]
    TimedOut,
    #[error("its program broke off before it answered")]
    Broken(#[source] std::io::Error),
    #[error("its program does not answer in HTTP/1.1")]
    NotHttp,
    #[error("its program answered with HTTP {0}")]
    Status(u16),
}

async fn check(definition: &ServiceDefinition, clock: &Clock) -> Result<(), CheckError> {
    let looked = async {
        let stream = local::connect(definition, None, CHECK_TIMEOUT, clock).await?;
        match &definition.health_check {
            HealthCheck::None | HealthCheck::Connect => Ok(()),
            HealthCheck::Http(path) => ask(stream, path).await,
        }
    };
    tokio::time::timeout(CHECK_TIMEOUT, looked)
        .await
        .map_err(|_| CheckError::TimedOut)?
}

async fn ask(mut stream: LocalStream, path: &str) -> Result<(), CheckError> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: powernode-satellite\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(CheckError::Broken)?;
    let mut begin = [0; STATUS_BYTES];
    stream.read_exact(&mut begin).await.map_err(CheckError::Broken)?;
    match status(&begin) {
        None => Err(CheckError::NotHttp),
        Some(status) if status >= FAILED_STATUS => Err(CheckError::Status(status)),
        Some(_) => Ok(()),
    }
}

fn status(begin: &[u8; STATUS_BYTES]) -> Option<u16> {
    let text = std::str::from_utf8(begin).ok()?;
    let rest = text.strip_prefix("HTTP/1.")?;
    rest.get(2..5)?.parse().ok().filter(|status| *status >= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_found_or_it_is_no_http() {
        assert_eq!(status(b"HTTP/1.1 200 "), Some(200));
        assert_eq!(status(b"HTTP/1.0 503 "), Some(503));
        for other in [b"SSH-2.0-OpenS", b"HTTP/1.1 OK\r\n", b"HTTP/2   200 "] {
            assert_eq!(status(other), None);
        }
    }
}
