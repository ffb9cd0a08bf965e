//! Serves what the parent opens on a tunnel: HTTP streams for the federation API, and streams to
//! published services. Also notices the tunnel's end and reports it.

use std::convert::Infallible;

use hyper::service::service_fn;
use tracing::{Instrument as _, Span};

use super::driver::{News, Reporter};
use super::federation_api::FederationApi;
use super::services::SessionServices;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{PeerId, TraceId};
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::peer::PeerStatus;
use crate::machine::child::ChildEvent;
use crate::machine::reconnect::Setback;
use crate::process::clock::Clock;
use crate::process::supervisor::TaskScope;
use crate::store::audit_log::AuditLog;
use crate::tunnel::transport::Outlook;
use crate::tunnel::{CloseReason, IncomingStream, Tunnel, http};
use crate::wire::{GoodbyeReason, StreamKind};

/// What a tunnel's streams are served with.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) api: FederationApi,
    pub(super) noting: Noting,
    /// `None` on a bootstrap tunnel, whose parent is none yet.
    pub(super) services: Option<SessionServices>,
}

/// Where what the parent asks is noted, and as whose asking.
#[derive(Debug, Clone)]
pub(super) struct Noting {
    pub(super) audit: AuditLog,
    /// Which peer this box is of its parent; none during a join.
    pub(super) peer: Option<PeerId>,
    /// The parent, as its certificate names it.
    pub(super) parent: Option<String>,
}

impl Noting {
    fn request<B>(&self, trace: TraceId, request: &hyper::Request<B>, status: hyper::StatusCode) {
        let outcome = if status.is_success() {
            AuditOutcome::Done
        } else {
            AuditOutcome::Refused(format!("HTTP {}", status.as_u16()))
        };
        self.audit.record(&AuditEvent {
            federation_peer_id: self.peer,
            remote_subject: self.parent.clone(),
            object: Some(foreign_text(&format!(
                "{} {}",
                request.method(),
                request.uri().path()
            ))),
            trace: Some(trace),
            outcome,
            ..AuditEvent::of(AuditAction::Request)
        });
    }
}

/// Starts serving a tunnel until it ends or the scope is cancelled. How many streams are served
/// at once is bounded by the tunnel.
pub(super) fn spawn(
    scope: &TaskScope,
    tunnel: Tunnel,
    served: Served,
    clock: Clock,
    reporter: Reporter,
    span: &Span,
) {
    let (streams, stream_span) = (scope.clone(), span.clone());
    let serving = async move {
        loop {
            match tunnel.accept_stream().await {
                Ok(stream) => {
                    let serving = serve_stream(stream, served.clone(), clock.clone());
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

async fn serve_stream(stream: IncomingStream, served: Served, clock: Clock) {
    let Served {
        api,
        noting,
        services,
    } = served;
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
    let stream = match stream.accept().await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(trace = %trace, %error, "stream given up by the parent");
            return;
        }
    };
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let response = api.answer(request.method(), request.uri().path(), clock.trusted().now);
        tracing::info!(
            trace = %trace,
            method = %request.method(),
            path = %foreign_text(request.uri().path()),
            status = response.status().as_u16(),
            "answered the parent"
        );
        noting.request(trace, &request, response.status());
        async move { Ok::<_, Infallible>(response) }
    });
    if let Err(error) = http::serve(stream, service).await {
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
    let event = ChildEvent::TunnelLost(setback(reason));
    reporter.send(News::Failed(event, error_chain(reason))).await;
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
