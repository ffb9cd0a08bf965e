//! Asks the platform about peers that hold a tunnel while it has said nothing of them for long. Who is suspended
//! there and sends no more heartbeats would keep an idle tunnel for ever; and those who send theirs through another
//! host-bridge are never heard of at this one. The question is one that changes nothing, in the peer's name, as its
//! tunnel's certificate has proven it. The contract asks for no grant there: it is refused for what a heartbeat would be.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt as _, Limited};
use tracing::debug;

use super::super::links::Links;
use super::super::upkeep::ticks;
use super::{ForwardedIdentity, PlatformParent, Vouched, whole};
use crate::base::id::PeerId;
use crate::base::limit::{JSON_BODY_MAX_BYTES, error_chain};
use crate::bridge::federation_api::Caller;
use crate::contract::TRUST_BUNDLE_PATH;

/// How often the tunnels are looked through.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);

/// How this end calls itself to the platform.
const AGENT: &str = concat!("powernode-host-bridge/", env!("CARGO_PKG_VERSION"));

/// The platform has not answered.
struct Away;

impl PlatformParent {
    /// Looks for ever through the tunnels.
    pub async fn review_for_ever(self: Arc<Self>, links: Arc<Links>) {
        let mut tick = ticks(REVIEW_INTERVAL);
        loop {
            tick.tick().await;
            let Some(ask_after) = self
                .settings
                .borrow()
                .config
                .parent
                .platform()
                .map(|platform| platform.ask_after)
            else {
                continue;
            };
            for (peer, caller) in links.callers() {
                if self.roll.connected(peer, ask_after, self.clock.now())
                    && self.ask_about(peer, &caller, &links).await.is_err()
                {
                    // Those that were not reached yet are due at the next look.
                    break;
                }
            }
        }
    }

    async fn ask_about(&self, peer: PeerId, caller: &Caller, links: &Links) -> Result<(), Away> {
        let certificate = caller.certificate.as_ref();
        let Some(identity) = certificate.and_then(|shown| ForwardedIdentity::of(&shown.der)) else {
            return Ok(());
        };
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = http::Uri::from_static(TRUST_BUNDLE_PATH);
        head.headers
            .insert(ACCEPT, HeaderValue::from_static("application/json"));
        head.headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let vouched = Vouched {
            identity: Some(&identity),
            source: caller.source,
            network: caller.network,
        };
        let answer = self
            .send(head, whole(Bytes::new()), vouched)
            .await
            .map_err(|_| Away)?;
        let (head, body) = answer.into_parts();
        // To its end, so that the connection is of further use.
        let body = match Limited::new(body, JSON_BODY_MAX_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                debug!(%peer, error = error_chain(&*error), "the platform's answer about a peer broke off");
                return Ok(());
            }
        };
        let status = head.status.as_u16();
        debug!(%peer, status, "the platform was asked about a peer that sends no heartbeat through here");
        let verdict = self
            .roll
            .question_answered(peer, (status, &body), self.both_times());
        if let Some(ends) = self.told(peer, caller.source, verdict) {
            links.close(ends.peer, ends.reason, &ends.message);
        }
        Ok(())
    }
}
