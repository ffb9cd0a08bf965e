//! Peers: list, show, propose, invite, mint a token, suspend, resume, readmit, revoke.

use std::str::FromStr;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::acceptance::AcceptCall;
use super::super::permission::{Action, NotPermitted, PeerAction, PeerRef};
use super::super::registry::record::PeerRecord;
use super::super::registry::{AcceptError, MintedToken, Proposal, Registry, RegistryError, Resumption};
use super::super::reply::Reply;
use super::{Call, NOT_CONFIGURED, Operator, OperatorApi, fields, forbidden, refused};
use crate::audit::AuditAction;
use crate::base::id::{CertificateDigest, InvalidCertificateDigest};
use crate::contract::join_code::JoinCode;
use crate::contract::peer::{PeerKind, SpawnMode, SpawnRole, UnknownName};
use crate::wire::GoodbyeReason;

/// A peer to propose, as the contract names its fields.
#[derive(Debug, Default, Deserialize)]
pub(in crate::bridge) struct ProposalFields {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    remote_instance_url: Option<String>,
    #[serde(default)]
    peer_kind: Option<String>,
    #[serde(default)]
    spawn_role: Option<String>,
    #[serde(default)]
    spawn_mode: Option<String>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

impl ProposalFields {
    /// What is not said is what a satellite is.
    pub(in crate::bridge) fn proposal(self) -> Result<Proposal, UnknownName> {
        fn word<T: FromStr<Err = UnknownName>>(text: Option<String>, default: T) -> Result<T, UnknownName> {
            text.map_or(Ok(default), |text| text.parse())
        }
        Ok(Proposal {
            kind: word(self.peer_kind, PeerKind::Platform)?,
            role: word(self.spawn_role, SpawnRole::Parent)?,
            mode: word(self.spawn_mode, SpawnMode::ManagedChild)?,
            name: self.name,
            description: self.description,
            remote_instance_url: self.remote_instance_url,
        })
    }
}

#[derive(Default, Deserialize)]
struct TokenFields {
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// Why something is ended or paused.
#[derive(Deserialize)]
pub(super) struct ReasonFields {
    #[serde(default)]
    pub(super) reason: String,
}

/// With which certificate a peer may come, where it is named.
#[derive(Default, Deserialize)]
struct ReadmitFields {
    #[serde(default)]
    fingerprint: Option<String>,
}

impl OperatorApi {
    pub(super) fn peers(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => {
                let peers = self.visible_peers(call.operator)?;
                let views: Vec<_> = peers.into_iter().map(|peer| self.view(peer)).collect();
                Ok(Reply::data(&views))
            }
            ([], &Method::POST) => {
                let registry = self.own()?;
                let proposal = fields::<ProposalFields>(call.body)?
                    .proposal()
                    .map_err(|error| unprocessable(&error))?;
                self.check_invitation(&proposal, call.operator)
                    .map_err(|why| forbidden(&why))?;
                let peer = registry
                    .propose(&proposal, self.now())
                    .map_err(|error| refused(&error))?;
                self.note_peer(call.operator, AuditAction::PeerProposed, &peer);
                Ok(Reply::created(&self.view(peer)))
            }
            ([], _) => Ok(Reply::wrong_method("GET, POST")),
            (["invite"], &Method::POST) => self.invite(call),
            ([peer], &Method::GET) => {
                let peer = self.peer_for(call.operator, peer, PeerAction::See)?;
                Ok(Reply::data(&self.view(peer)))
            }
            ([_], _) => Ok(Reply::wrong_method("GET")),
            ([peer, "acceptance_token"], &Method::POST) => self.mint(call, peer),
            ([peer, "suspend"], &Method::POST) => self.suspend(call, peer),
            ([peer, "resume"], &Method::POST) => self.resume(call, peer),
            ([peer, "readmit"], &Method::POST) => self.readmit(call, peer),
            ([peer, "revoke"], &Method::POST) => self.revoke(call, peer),
            (
                [
                    _,
                    "acceptance_token" | "suspend" | "resume" | "readmit" | "revoke",
                ],
                _,
            ) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }

    fn invite(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let mut asked: ProposalFields = fields(call.body)?;
        let ttl = self.ttl(asked.ttl_seconds.take());
        let proposal = asked.proposal().map_err(|error| unprocessable(&error))?;
        self.check_invitation(&proposal, call.operator)
            .map_err(|why| forbidden(&why))?;
        if self.settings.borrow().public.url.is_none() {
            return Err(Reply::coded(
                StatusCode::UNPROCESSABLE_ENTITY,
                NOT_CONFIGURED,
                "a join code names this parent's URL: set public.url in the configuration first",
            ));
        }
        let minted = registry
            .invite(&proposal, ttl, self.now())
            .map_err(|error| refused(&error))?;
        self.note_peer(call.operator, AuditAction::PeerInvited, &minted.peer);
        Ok(Reply::created(&self.minted(registry, minted)))
    }

    fn mint(&self, call: &Call<'_>, peer: &str) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let ttl = self.ttl(fields::<TokenFields>(call.body)?.ttl_seconds);
        let peer = self.peer_for(call.operator, peer, PeerAction::Invite)?;
        let minted = registry
            .mint_token(&peer.id.to_string(), ttl, self.now())
            .map_err(|error| refused(&error))?;
        self.note_peer(call.operator, AuditAction::TokenMinted, &minted.peer);
        Ok(Reply::created(&self.minted(registry, minted)))
    }

    fn ttl(&self, asked: Option<u64>) -> Duration {
        asked.map_or_else(
            || self.settings.borrow().config.acceptance_ttl,
            Duration::from_secs,
        )
    }

    /// The one time that a token is shown.
    fn minted(&self, registry: &Registry, minted: MintedToken) -> Value {
        let public = self.settings.borrow().public.clone();
        let caution = minted.caution();
        let join_code = public.url.clone().map(|parent_url| {
            let code = JoinCode {
                parent_url,
                bridges: public.bridges,
                token: minted.token.clone(),
                ca: registry.authority().fingerprint(),
                minted_at: self.now(),
                spawn_mode: minted.peer.mode,
            };
            code.encode().to_string()
        });
        json!({
            "acceptance_token": minted.token.expose().expose_text(),
            "expires_at": minted.expires_at.to_string(),
            "join_code": join_code,
            "parent_url": public.url,
            "ca_fingerprint": registry.authority().fingerprint().to_string(),
            "caution": caution,
            "peer": self.view(minted.peer),
        })
    }

    fn suspend(&self, call: &Call<'_>, peer: &str) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let reason = fields::<ReasonFields>(call.body)?.reason;
        let peer = self.peer_for(call.operator, peer, PeerAction::Pause)?;
        let peer = registry
            .suspend(&peer.id.to_string(), &reason, self.now())
            .map_err(|error| refused(&error))?;
        self.note_peer(call.operator, AuditAction::PeerSuspended, &peer);
        if let Some(links) = &self.links {
            links.close(peer.id, GoodbyeReason::Suspended, &reason);
        }
        Ok(Reply::data(&self.view(peer)))
    }

    fn resume(&self, call: &Call<'_>, peer: &str) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let peer = self.peer_for(call.operator, peer, PeerAction::Pause)?;
        let (peer, awaits) = registry
            .resume(&peer.id.to_string(), self.now())
            .map_err(|error| refused(&error))?;
        self.note_peer(call.operator, AuditAction::PeerResumed, &peer);
        let next = match awaits {
            Resumption::AwaitsHeartbeat => "the peer is active again with its next heartbeat",
            Resumption::AwaitsAccept => {
                "the peer has no certificate: suspend it, mint a token and let the box join"
            }
        };
        let mut view = serde_json::to_value(self.view(peer)).unwrap_or_default();
        if let Value::Object(row) = &mut view {
            row.insert("next".to_owned(), json!(next));
        }
        Ok(Reply::data(&view))
    }

    /// Enrols the key that a peer was turned away with: a registry that was restored lacks what came after.
    /// With the certificate that the box has come with, or with the one that is named: when the box comes with it.
    fn readmit(&self, call: &Call<'_>, peer: &str) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let named = fields::<ReadmitFields>(call.body)?.fingerprint;
        let named: Option<CertificateDigest> =
            named
                .map(|named| named.parse())
                .transpose()
                .map_err(|error: InvalidCertificateDigest| {
                    Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
                })?;
        let peer = self.peer_for(call.operator, peer, PeerAction::Invite)?;
        let turned = self
            .links
            .as_ref()
            .and_then(|links| links.why_turned_away(peer.id));
        match (turned, named) {
            (Some(turned), named) if named.is_none_or(|named| turned.certificate.digest() == named) => {
                let peer = registry
                    .readmit(&peer.id.to_string(), &turned.certificate)
                    .map_err(|error| refused(&error))?;
                self.note_peer(call.operator, AuditAction::PeerReadmitted, &peer);
                if let Some(links) = &self.links {
                    links.close_replaced(peer.id);
                }
                Ok(Reply::data(&self.view(peer)))
            }
            (_, Some(named)) => self.readmit_when_it_comes(call.operator, peer, named),
            (_, None) => Err(Reply::failure(
                StatusCode::CONFLICT,
                "the running host-bridge has turned this peer away with no key: when the box has tried again, within \
                 two minutes, `peers show` tells; or name the fingerprint that `powernode-satellite status` shows on \
                 the box (--fingerprint)",
            )),
        }
    }

    fn readmit_when_it_comes(
        &self,
        operator: &Operator,
        peer: PeerRecord,
        named: CertificateDigest,
    ) -> Result<Reply, Reply> {
        if !peer.status.heartbeat_allowed() {
            let why = format!("the peer is {}: no certificate changes that", peer.status);
            return Err(Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, &why));
        }
        let Some(links) = &self.links else {
            return Err(Reply::failure(
                StatusCode::CONFLICT,
                "no host-bridge runs that could wait for the box: start it first",
            ));
        };
        let Some(until) = links.expect(peer.id, named, self.now()) else {
            return Err(Reply::failure(
                StatusCode::INSUFFICIENT_STORAGE,
                "too many peers are waited for already; each comes within minutes, or restart the host-bridge",
            ));
        };
        let name = peer.name.clone().unwrap_or_else(|| peer.id.to_string());
        let on = format!("{name}, when it comes with {named}");
        self.note(operator, AuditAction::PeerReadmitted, Some(peer.id), &on);
        let mut view = json!(self.view(peer));
        view["readmitted_until"] = until.to_string().into();
        Ok(Reply::data(&view))
    }

    fn revoke(&self, call: &Call<'_>, peer: &str) -> Result<Reply, Reply> {
        let registry = self.own()?;
        let reason = fields::<ReasonFields>(call.body)?.reason;
        let peer = self.peer_for(call.operator, peer, PeerAction::Revoke)?;
        let peer = registry
            .revoke(&peer.id.to_string(), &reason, self.now())
            .map_err(|error| refused(&error))?;
        self.note_peer(call.operator, AuditAction::PeerRevoked, &peer);
        if let Some(links) = &self.links {
            links.close(peer.id, GoodbyeReason::Revoked, &reason);
        }
        Ok(Reply::data(&self.view(peer)))
    }

    fn note_peer(&self, operator: &Operator, action: AuditAction, peer: &PeerRecord) {
        let name = peer.name.clone().unwrap_or_else(|| peer.id.to_string());
        self.note(operator, action, Some(peer.id), &name);
    }

    /// Whether an operator may invite such a peer.
    pub(in crate::bridge) fn check_invitation(
        &self,
        proposal: &Proposal,
        operator: &Operator,
    ) -> Result<(), NotPermitted> {
        let peer = proposal
            .name
            .as_deref()
            .map_or(PeerRef::Nameless, PeerRef::Called);
        self.check(operator, &Action::OnPeer(PeerAction::Invite, peer))
    }

    /// Carries an accept out for the tools.
    pub(in crate::bridge) fn accept(
        &self,
        registry: &Registry,
        call: &AcceptCall,
        operator: &Operator,
    ) -> Result<Value, AcceptError> {
        let grace = self.settings.borrow().config.accept_grace;
        let accepted = registry.accept(call, grace, self.now())?;
        if !accepted.repeated {
            let name = accepted.peer.to_string();
            self.note(operator, AuditAction::Joined, Some(accepted.peer), &name);
        }
        if !accepted.repeated
            && let Some(links) = &self.links
        {
            links.close_replaced(accepted.peer);
        }
        Ok(serde_json::from_slice(&accepted.answer).unwrap_or_default())
    }

    /// Proposes for the tools, which have checked whether the operator may.
    pub(in crate::bridge) fn propose(
        &self,
        proposal: &Proposal,
        operator: &Operator,
    ) -> Result<Value, RegistryError> {
        let peer = self.registry()?.propose(proposal, self.now())?;
        self.note_peer(operator, AuditAction::PeerProposed, &peer);
        Ok(serde_json::to_value(self.view(peer)).unwrap_or_default())
    }
}

pub(super) fn unprocessable(error: &dyn std::error::Error) -> Reply {
    Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
}
