//! `resources/:kind/:id`: whether something is there, for who holds a grant to read it.

use serde_json::json;

use super::refusal::Refusal;
use super::{Answered, Call, FederationApi};
use crate::base::limit::foreign_text;
use crate::grant::{AccessRequest, MANAGED_CHILD_OPERATOR_KIND, PermissionScope, SERVICE_KIND};

impl FederationApi {
    pub(super) fn resource(&self, path: &str, call: &Call<'_>) -> Result<Answered, Refusal> {
        let (kind, id) = path
            .split_once('/')
            .filter(|(kind, id)| !(kind.is_empty() || id.is_empty() || id.contains('/')))
            .ok_or_else(|| {
                Refusal::NotFound("a resource is asked for as resources/<kind>/<id>".to_owned())
            })?;
        let request = AccessRequest {
            peer: call.caller.peer,
            resource_kind: kind,
            resource_id: Some(id),
            scope: PermissionScope::Read,
            instance: call.caller.instance,
            network: call.caller.network,
            source: call.caller.source,
        };
        let gate = self.surroundings.grants.gate();
        let permit = gate.permit(call.authorization(), &request, call.now)?;
        // Only who may ask learns what there is.
        let exists = match kind {
            SERVICE_KIND => self.surroundings.catalog.offered(id).is_some(),
            MANAGED_CHILD_OPERATOR_KIND => {
                id == call.caller.peer.to_string() || self.surroundings.catalog.offered(id).is_some()
            }
            other => {
                return Err(Refusal::Unprocessable(format!(
                    "resource kind `{}` is not known to this satellite; known are: {MANAGED_CHILD_OPERATOR_KIND}, \
                     {SERVICE_KIND}",
                    foreign_text(other)
                )));
            }
        };
        let data = json!({
            "kind": kind,
            "id": id,
            "exists": exists,
            "account_id": null,
            "grant_id": permit.grant(),
            "fetched_at": call.now.to_string(),
        });
        Ok(Answered {
            permit: Some(permit),
            ..Answered::ok(data)
        })
    }
}
