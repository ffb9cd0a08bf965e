//! Access grants: list, create, revoke. Tokens are shown by the answer that makes them and never again.

use http::Method;
use serde_json::{Value, json};
use tracing::info;

use super::super::permission::{Action, NotPermitted, PeerAction, PeerRef};
use super::super::registry::RegistryError;
use super::super::reply::Reply;
use super::peers::ReasonFields;
use super::{Call, Operator, OperatorApi, fields, forbidden, refused, stored_badly};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::PeerId;
use crate::grant::{Grant, GrantRequest, NewGrant};

impl OperatorApi {
    pub(super) fn grants(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => {
                let now = self.now();
                let grants = self
                    .own()?
                    .grants()
                    .map_err(|error| stored_badly("the grants", &error))?;
                let seen = self.visible_ids(call.operator)?;
                let views: Vec<_> = grants
                    .iter()
                    .filter(|grant| seen.contains(&grant.federation_peer_id))
                    .map(|grant| grant.view(now))
                    .collect();
                Ok(Reply::data(&views))
            }
            ([], &Method::POST) => {
                let asked: GrantRequest = fields(call.body)?;
                self.check_grants_of(asked.federation_peer_id, call.operator)
                    .map_err(|why| forbidden(&why))?;
                let created = self
                    .create_grant(asked, call.operator)
                    .map_err(|error| refused(&error))?;
                Ok(Reply::created(&created))
            }
            ([], _) => Ok(Reply::wrong_method("GET, POST")),
            ([grant, "revoke"], &Method::POST) => {
                let reason = fields::<ReasonFields>(call.body)?.reason;
                let registry = self.own()?;
                let found = registry.grant(grant).map_err(|error| refused(&error))?;
                self.check_grants_of(found.federation_peer_id, call.operator)
                    .map_err(|why| forbidden(&why))?;
                let grant = registry
                    .revoke_grant(grant, &reason, self.now())
                    .map_err(|error| refused(&error))?;
                self.note_grant(call.operator, AuditAction::GrantRevoked, &grant);
                Ok(Reply::data(&grant.view(self.now())))
            }
            ([_, "revoke"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }

    /// Whether an operator may make and end grants for a peer.
    pub(in crate::bridge) fn check_grants_of(
        &self,
        peer: PeerId,
        operator: &Operator,
    ) -> Result<(), NotPermitted> {
        let known = self.ledger().peer_by_id(peer).ok().flatten();
        let called = peer.to_string();
        // One that is not there is refused to who could not see it, and else by the registry.
        let peer = known.as_ref().map_or(PeerRef::Called(&called), PeerRef::from);
        self.check(operator, &Action::OnPeer(PeerAction::ChangeGrants, peer))
    }

    /// Grants for the API and for the tools, which have checked whether the operator may.
    pub(in crate::bridge) fn create_grant(
        &self,
        asked: GrantRequest,
        operator: &Operator,
    ) -> Result<Value, RegistryError> {
        let now = self.now();
        let (grant, token) = self.registry()?.create_grant(NewGrant::check(asked)?, now)?;
        self.note_grant(operator, AuditAction::GrantIssued, &grant);
        Ok(json!({
            "grant": grant.view(now),
            "bearer_token": token.to_secret().expose_text(),
        }))
    }

    fn note_grant(&self, operator: &Operator, action: AuditAction, grant: &Grant) {
        info!(%operator, what = action.word(), grant = %grant.id, "an operator made a change");
        self.audit.record(&AuditEvent {
            federation_peer_id: Some(grant.federation_peer_id),
            remote_subject: Some(grant.remote_subject.clone()),
            actor: Some(operator.to_string()),
            grant: Some(grant.id),
            object: Some(grant.resource_kind.clone()),
            ..AuditEvent::of(action)
        });
    }
}
