//! Connections that no valid certificate stands for: a short time and a few requests, to accept or to renew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::{Arrival, BUSY_RETRY, Ingress, RESTART_RETRY, goodbye, refused};
use crate::base::id::{NetworkId, SessionId};
use crate::bridge::federation_api::{Caller, CallerCertificate};
use crate::machine::source_rate::Source;
use crate::process::entropy;
use crate::tunnel::transport::Transport;
use crate::wire::{GoodbyeReason, Hello, RENEWAL_ONLY_FEATURE, RefusalCode};

/// Life of a connection without a certificate, or with an expired one: an accept takes two round trips and one write to
/// disk; a slow satellite link has ten times that.
const BOOTSTRAP_LIFETIME: Duration = Duration::from_secs(30);

/// Requests that such a connection may make in its life: one accept or renewal, and its retries.
const BOOTSTRAP_STREAMS: usize = 8;

/// When a satellite whose certificate has expired should try again after it was let in and did not
/// renew: whatever kept it from that takes more than a moment.
const NOT_RENEWED_RETRY: Duration = Duration::from_secs(60);

/// Who gets a short time and a few requests.
pub(super) enum Visitor {
    /// Without a certificate: it comes to accept.
    Stranger,
    /// A peer with a certificate that has expired: it comes to renew it.
    Expired(CallerCertificate),
}

impl Visitor {
    fn certificate(&self) -> Option<CallerCertificate> {
        match self {
            Self::Stranger => None,
            Self::Expired(certificate) => Some(certificate.clone()),
        }
    }

    /// What it is told when its requests are used up, when its time is, and when to come back.
    const fn farewell(&self) -> (&'static str, &'static str, Duration) {
        match self {
            Self::Stranger => (
                "no more requests without a certificate; dial again",
                "the time without a certificate is over; dial again",
                RESTART_RETRY,
            ),
            Self::Expired(_) => (
                "no more requests with a certificate that has expired; dial again",
                "the time to renew the certificate is over; dial again",
                NOT_RENEWED_RETRY,
            ),
        }
    }
}
impl Ingress {
    pub(super) async fn visit(
        self: &Arc<Self>,
        transport: Arc<dyn Transport>,
        (address, network): (SocketAddr, Option<NetworkId>),
        visitor: Visitor,
    ) {
        let place = match self.links.enter_bootstrap(Source::of(address.ip())) {
            Ok(place) => place,
            Err(full) => {
                warn!(%address, %full, "a connection that no valid certificate stands for found no place");
                return self
                    .decline(
                        transport,
                        refused(RefusalCode::Busy, &full.to_string(), BUSY_RETRY),
                    )
                    .await;
            }
        };
        let session = SessionId::new_v7(self.clock.trusted().now, entropy::id_entropy());
        let decide = |hello: &Hello| {
            let mut welcome = self.welcome(session, address, hello, None);
            if matches!(visitor, Visitor::Expired(_)) {
                welcome.features.push(RENEWAL_ONLY_FEATURE.to_owned());
            }
            Ok(welcome)
        };
        let Some((tunnel, _, driver)) = self.greet(Arrival::Dialled(transport), decide).await else {
            return;
        };
        let caller = Caller {
            source: address.ip(),
            network,
            certificate: visitor.certificate(),
        };
        let served = async {
            let requests = async {
                for _ in 0..BOOTSTRAP_STREAMS {
                    let Ok(incoming) = tunnel.accept_stream().await else {
                        return;
                    };
                    if let Ok(stream) = incoming.accept().await {
                        self.request(stream, caller.clone()).await;
                    }
                }
            };
            let (used_up, time_over, retry) = visitor.farewell();
            let (reason, message, retry) = tokio::select! {
                () = self.work.cancelled() => {
                    (GoodbyeReason::ShuttingDown, "the host-bridge stops or restarts", RESTART_RETRY)
                }
                ended = tokio::time::timeout(BOOTSTRAP_LIFETIME, requests) => match ended {
                    Ok(()) => (GoodbyeReason::LimitExceeded, used_up, retry),
                    Err(_) => (GoodbyeReason::LimitExceeded, time_over, retry),
                },
            };
            tunnel.close(goodbye(reason, message, retry)).await;
        };
        let (reason, ()) = tokio::join!(driver.run(), served);
        debug!(%address, %reason, "a connection that no valid certificate stands for has ended");
        drop(place);
    }
}
