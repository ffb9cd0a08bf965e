//! Serves what the parent opens on a tunnel: HTTP streams for the federation API, and streams to
//! published services. Also notices the tunnel's end and reports it.

use tracing::{Instrument as _, Span};

use super::driver::{News, Reporter};
use super::federation_api::FederationApi;
use super::services::SessionServices;
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::contract::peer::PeerStatus;
use crate::machine::child::ChildEvent;
use crate::machine::ladder::{Loss, Setback};
use crate::process::http_server;
use crate::process::supervisor::TaskScope;
use crate::tunnel::transport::Outlook;
use crate::tunnel::{CloseReason, IncomingStream, Tunnel, http};
use crate::wire::{GoodbyeReason, StreamKind};

/// What a tunnel's streams are served with.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) api: Option<FederationApi>,
    /// The peering that the tunnel was opened for.
    pub(super) peer: Option<PeerId>,
    /// `None` on a bootstrap tunnel, whose parent is none yet.
    pub(super) services: Option<SessionServices>,
}

/// Starts serving a tunnel until it ends or the scope is cancelled. How many streams are served
/// at once is bounded by the tunnel.
pub(super) fn spawn(scope: &TaskScope, tunnel: Tunnel, served: Served, reporter: Reporter, span: &Span) {
    let (streams, stream_span) = (scope.clone(), span.clone());
    let serving = async move {
        loop {
            match tunnel.accept_stream().await {
                Ok(stream) => {
                    let serving = serve_stream(stream, served.clone());
                    streams.spawn_until_cancelled("stream", serving.instrument(stream_span.clone()));
                }
                Err(reason) => {
                    ended(&reason, &reporter).await;
                    return;
                }
            }
        }
    };
    scope.spawn_until_cancelled("serve", serving.instrument(span.clone()));
}

async fn serve_stream(stream: IncomingStream, served: Served) {
    let Served { api, peer, services } = served;
    let trace = stream.header().trace;
    match stream.header().kind {
        StreamKind::Http => {}
        StreamKind::Connect(_) | StreamKind::Flow(_) => {
            return match services {
                // Boxed: it is large, and most streams in a satellite's life are requests.
                Some(services) => Box::pin(services.serve(stream)).await,
                None => stream.refuse_kind().await,
            };
        }
    }
    let Some(api) = api else {
        return stream.refuse_kind().await;
    };
    let stream = match stream.accept().await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(trace = %trace, %error, "stream given up by the parent");
            return;
        }
    };
    let answer = move |request| -> http_server::Answer {
        let api = api.clone();
        Box::pin(async move { api.answer_bridge(request, peer, trace).await })
    };
    if let Err(error) = http::serve(stream, http_server::service(Box::new(answer))).await {
        tracing::debug!(trace = %trace, error = %error_chain(&error), "exchange broken off");
    }
}

/// Reports the tunnel's end, and before it what the parent told about the peering.
async fn ended(reason: &CloseReason, reporter: &Reporter) {
    if let CloseReason::Goodbye(goodbye) = reason {
        let told = match goodbye.reason {
            GoodbyeReason::Suspended => Some(PeerStatus::Suspended),
            GoodbyeReason::Revoked => Some(PeerStatus::Revoked),
            GoodbyeReason::Superseded => {
                tracing::error!(
                    "the parent saw another satellite with this identity; if this box was cloned, join the clone anew"
                );
                None
            }
            GoodbyeReason::ShuttingDown
            | GoodbyeReason::LimitExceeded
            | GoodbyeReason::ProtocolViolation
            | GoodbyeReason::Done => None,
        };
        if let Some(status) = told {
            // With the parent's words: after a revocation the link is given up, and with it the report
            // of its loss.
            let event = ChildEvent::StatusTold(status);
            reporter.send(News::Failed(event, error_chain(reason))).await;
        }
    }
    let why = error_chain(reason);
    let loss = Loss {
        setback: setback(reason),
        told: !matches!(reason, CloseReason::Silent { .. } | CloseReason::Transport(_)),
        why: why.clone(),
    };
    let event = ChildEvent::TunnelLost(reporter.tunnel(), loss);
    reporter.send(News::Failed(event, why)).await;
}

fn setback(reason: &CloseReason) -> Setback {
    if let Some(told) = reason.retry_after() {
        return Setback::RetryAfter(told);
    }
    match reason {
        CloseReason::Goodbye(goodbye) => match goodbye.reason {
            GoodbyeReason::Suspended | GoodbyeReason::Revoked | GoodbyeReason::ProtocolViolation => {
                Setback::Persistent
            }
            GoodbyeReason::ShuttingDown
            | GoodbyeReason::Superseded
            | GoodbyeReason::LimitExceeded
            | GoodbyeReason::Done => Setback::Transient,
        },
        CloseReason::Transport(closed) => match closed.outlook() {
            Outlook::Permanent => Setback::Persistent,
            Outlook::Retryable => Setback::Transient,
        },
        CloseReason::Violation(_) => Setback::Persistent,
        CloseReason::Local(_) | CloseReason::Silent { .. } | CloseReason::Abandoned => Setback::Transient,
    }
}
