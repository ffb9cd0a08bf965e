//! Access grants and operators: list, create, revoke. Tokens are shown by the answer that makes
//! them and never again.

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::super::registry::RegistryError;
use super::super::registry::record::OperatorRecord;
use super::super::reply::Reply;
use super::peers::ReasonFields;
use super::{Call, Operator, OperatorApi, fields, refused, stored_badly};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::OperatorId;
use crate::grant::{Grant, GrantRequest, NewGrant};

#[derive(Deserialize)]
struct OperatorFields {
    name: String,
}

impl OperatorApi {
    pub(super) fn grants(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => {
                let now = self.now();
                let grants = self
                    .registry
                    .grants()
                    .map_err(|error| stored_badly("the grants", &error))?;
                let views: Vec<_> = grants.iter().map(|grant| grant.view(now)).collect();
                Ok(Reply::data(&views))
            }
            ([], &Method::POST) => {
                let created = self
                    .create_grant(fields(call.body)?, call.operator)
                    .map_err(|error| refused(&error))?;
                Ok(Reply::created(&created))
            }
            ([], _) => Ok(Reply::wrong_method("GET, POST")),
            ([grant, "revoke"], &Method::POST) => {
                let reason = fields::<ReasonFields>(call.body)?.reason;
                let grant = self
                    .registry
                    .revoke_grant(grant, &reason, self.now())
                    .map_err(|error| refused(&error))?;
                self.note_grant(call.operator, AuditAction::GrantRevoked, &grant);
                Ok(Reply::data(&grant.view(self.now())))
            }
            ([_, "revoke"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }

    /// Grants for the API and for the tools.
    pub(in crate::bridge) fn create_grant(
        &self,
        asked: GrantRequest,
        operator: &Operator,
    ) -> Result<Value, RegistryError> {
        let now = self.now();
        let (grant, token) = self.registry.create_grant(NewGrant::check(asked)?, now)?;
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

    pub(super) fn operators(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => {
                let operators = self
                    .registry
                    .operators()
                    .map_err(|error| stored_badly("the operators", &error))?;
                let views: Vec<_> = operators
                    .iter()
                    .map(|(id, operator)| operator_view(Some(*id), operator))
                    .collect();
                Ok(Reply::data(&views))
            }
            ([], &Method::POST) => {
                let name = fields::<OperatorFields>(call.body)?.name;
                let minted = self
                    .registry
                    .add_operator(&name, self.now())
                    .map_err(|error| refused(&error))?;
                self.note(call.operator, AuditAction::OperatorAdded, None, &name);
                Ok(Reply::created(&json!({
                    "operator": operator_view(Some(minted.id), &minted.operator),
                    "operator_token": minted.token.expose_text(),
                })))
            }
            ([], _) => Ok(Reply::wrong_method("GET, POST")),
            ([asked, "revoke"], &Method::POST) => {
                let operator = self
                    .registry
                    .revoke_operator(asked)
                    .map_err(|error| refused(&error))?;
                self.note(call.operator, AuditAction::OperatorRemoved, None, &operator.name);
                Ok(Reply::data(&operator_view(None, &operator)))
            }
            ([_, "revoke"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }
}

/// Everything but the token's digest.
fn operator_view(id: Option<OperatorId>, operator: &OperatorRecord) -> Value {
    json!({
        "id": id,
        "name": operator.name,
        "role": operator.role,
        "created_at": operator.created_at.to_string(),
    })
}
