//! Follows the trust bundles of peers that certify themselves, so that a peer's rotation of its own authority is
//! known here before its overlap ends. Asked over the peer's own tunnel; taken by the old authority's word alone.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request};
use http_body_util::Full;
use tracing::{debug, info, warn};

use super::links::Links;
use super::registry::Registry;
use crate::base::id::{PeerId, TraceId};
use crate::base::limit::error_chain;
use crate::contract::TRUST_BUNDLE_PATH;
use crate::contract::message::{ContractAnswer, TrustBundle, read_answer};
use crate::identity::certificate::peer_subject;
use crate::identity::succession::ServedBundle;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::tunnel::Tunnel;
use crate::tunnel::http::{self as tunnel_http, HttpLimits};

/// Asks each such peer that is connected, one after another: one that does not answer costs its request's time.
pub async fn follow_equals(registry: &Arc<Registry>, links: &Links, clock: &Clock) {
    for peer in registry.peer_anchors().peers() {
        let Some(tunnel) = links.get(peer) else {
            continue;
        };
        match ask(&tunnel, peer).await {
            Ok(bundle) => follow(registry, peer, bundle, clock).await,
            Err(why) => debug!(%peer, why, "a peer's trust bundle was not read"),
        }
    }
}

async fn ask(tunnel: &Tunnel, peer: PeerId) -> Result<TrustBundle, String> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(TRUST_BUNDLE_PATH)
        .header(HOST, peer.to_string())
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    let answer = tunnel_http::request(tunnel, TraceId(entropy::seed()), request, HttpLimits::default())
        .await
        .map_err(|error| error_chain(&error))?;
    match read_answer(answer.status().as_u16(), answer.body()).map_err(|error| error.to_string())? {
        ContractAnswer::Data(bundle) => Ok(bundle),
        ContractAnswer::Failure(failure) => Err(format!("HTTP {}: {}", failure.http_status, failure.error)),
    }
}

async fn follow(registry: &Arc<Registry>, peer: PeerId, bundle: TrustBundle, clock: &Clock) {
    let (registry, now) = (Arc::clone(registry), clock.trusted().now);
    // The registry blocks on the disk.
    let followed = tokio::task::spawn_blocking(move || {
        let served = ServedBundle {
            ca_bundle_pem: &bundle.ca_bundle_pem,
            cross_certificates_pem: bundle.cross_certificates_pem.as_deref(),
        };
        registry.follow_peer(peer, served, now)
    });
    match followed.await {
        Ok(Ok(true)) => {
            info!(subject = %peer_subject(peer), "a peer's own authorities are others now, vouched for by the ones before");
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => warn!(%peer, error = %error_chain(&error), "a peer's trust bundle is not followed"),
        Err(_) => warn!(%peer, "a peer's trust bundle could not be looked at"),
    }
}
