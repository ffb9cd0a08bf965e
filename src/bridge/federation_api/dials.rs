//! What satellites ask this side to dial: their endpoints, for a proof or for a tunnel. Which addresses may be
//! dialled is `dial_back`'s.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use hyper::body::Body;

use super::{Caller, FederationApi, internal_error, unreachable_peer};
use crate::bridge::dial_back::Reached;
use crate::bridge::direct::Redial;
use crate::bridge::registry::record::PeerRecord;
use crate::bridge::reply::Reply;
use crate::bridge::request_body::read_body;
use crate::contract::TUNNEL_DIAL_BACK_PATH;
use crate::tunnel::transport::Transport;

/// Why a peer was not dialled again.
#[derive(Debug)]
pub enum RedialFailed {
    /// It is suspended, revoked, or not known any more.
    MayNotCome,
    /// Why it was not reached, in words.
    NotReached(String),
}

impl FederationApi {
    pub(super) async fn dial_back(self: Arc<Self>, body: &[u8], caller: Caller) -> Reply {
        let source = caller.source;
        let peer = match self.may_ask_for_dials(caller).await {
            Ok(peer) => peer,
            Err(refusal) => return refusal,
        };
        let allow_private = self.settings.borrow().config.reach_allow_private;
        match &self.dial_back {
            Some(dial_back) => dial_back.answer(&peer, source, allow_private, body).await,
            None => Reply::unknown_path(TUNNEL_DIAL_BACK_PATH),
        }
    }

    /// Whether satellites are dialled from here at all.
    pub const fn dials_satellites(&self) -> bool {
        self.dial_back.is_some()
    }

    /// Dials a satellite that asks for it through its tunnel, or words the answer why not.
    pub async fn dial_for_tunnel<B>(
        self: Arc<Self>,
        request: Request<B>,
        caller: Caller,
    ) -> Result<Reached, Reply>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return Err(Reply::wrong_method("POST"));
        }
        caller.check_standing(head.uri.path())?;
        let source = caller.source;
        let body = read_body(body).await?;
        let peer = self.may_ask_for_dials(caller).await?;
        let allow_private = self.settings.borrow().config.reach_allow_private;
        match &self.dial_back {
            Some(dial_back) => {
                dial_back
                    .dial_for_tunnel(&peer, source, allow_private, &body)
                    .await
            }
            None => Err(Reply::unknown_path(head.uri.path())),
        }
    }

    /// Dials a peer again where it was reached.
    pub async fn redial(&self, redial: &Redial) -> Result<Arc<dyn Transport>, RedialFailed> {
        let (registry, peer) = (Arc::clone(&self.registry), redial.peer);
        let known = tokio::task::spawn_blocking(move || registry.peer_by_id(peer)).await;
        let (Ok(Ok(known)), Some(dial_back)) = (known, &self.dial_back) else {
            return Err(RedialFailed::NotReached(
                "the registry could not be read".to_owned(),
            ));
        };
        let peer = known
            .filter(|peer| peer.status.inbound_allowed())
            .ok_or(RedialFailed::MayNotCome)?;
        let allow_private = self.settings.borrow().config.reach_allow_private;
        dial_back
            .redial(&peer, allow_private, redial.endpoint)
            .await
            .map_err(RedialFailed::NotReached)
    }

    async fn may_ask_for_dials(self: &Arc<Self>, caller: Caller) -> Result<PeerRecord, Reply> {
        let api = Arc::clone(self);
        let known = tokio::task::spawn_blocking(move || api.authenticate(&caller)).await;
        match known {
            Ok(Ok((peer, _))) if peer.status.inbound_allowed() => Ok(peer),
            Ok(Ok(_)) => Err(unreachable_peer()),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Err(internal_error()),
        }
    }
}
