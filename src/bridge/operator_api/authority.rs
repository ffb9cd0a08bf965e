//! The certificate authority: its certificate, its rotation, and the end of the one before.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::federation_api::Caller;
use super::super::links::AUTHORITY_RETIRED;
use super::super::permission::Action;
use super::super::registry::{Registry, RetireError, Retirement, RotateError};
use super::super::reply::Reply;
use super::{Call, OperatorApi, fields, stored_badly};
use crate::audit::AuditAction;
use crate::wire::GoodbyeReason;

/// What a rotation is asked with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateFields {
    #[serde(default)]
    overlap_seconds: Option<u64>,
}

/// What a retirement is asked with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetireFields {
    #[serde(default)]
    force: bool,
}

impl OperatorApi {
    pub(super) fn authority(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => Ok(Reply::data(&self.authority_view()?)),
            ([], _) => Ok(Reply::wrong_method("GET")),
            (["rotate"], &Method::POST) => self.rotate_authority(call),
            (["retire"], &Method::POST) => self.retire_authority(call),
            (["rotate" | "retire"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }

    fn authority_view(&self) -> Result<Value, Reply> {
        let registry = self.own()?;
        let authorities = registry.authorities();
        let current = authorities.current();
        let depending = registry
            .depending_on_predecessor(self.now())
            .map_err(|error| stored_badly("the authority", &error))?;
        let predecessor = authorities.predecessor().map(|before| {
            json!({
                "fingerprint": before.fingerprint().to_string(),
                "rotated_at": before.rotated_at.to_string(),
                "overlap_ends": before.overlap_ends.to_string(),
                "in_use_by": depending,
            })
        });
        Ok(json!({
            "certificate_pem": current.certificate_pem(),
            "fingerprint": current.fingerprint().to_string(),
            "predecessor": predecessor,
        }))
    }

    fn rotate_authority(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        let registry = self.own()?;
        self.permit(call.operator, &Action::ManageAuthority)?;
        let overlap = fields::<RotateFields>(call.body)?.overlap_seconds.map_or_else(
            || self.settings.borrow().config.rotation_overlap,
            Duration::from_secs,
        );
        match registry.rotate_authority(overlap, self.now()) {
            Ok(()) => {
                let new = registry.authority().fingerprint().to_string();
                self.note(call.operator, AuditAction::AuthorityRotated, None, &new);
                Ok(Reply::data(&self.authority_view()?))
            }
            Err(RotateError::Store(error)) => Err(stored_badly("the rotation", &error)),
            Err(error @ RotateError::UnderWay { .. }) => {
                Err(Reply::failure(StatusCode::CONFLICT, &error.to_string()))
            }
            Err(error) => Err(stored_badly("the new authority", &error)),
        }
    }

    /// Ends the tunnels that were let in by an authority that counts no more; gives how many peers had such. Who
    /// is on its way in meanwhile is looked at once more when it is in.
    fn cut_without_authority(&self, registry: &Registry) -> usize {
        let Some(links) = &self.links else {
            return 0;
        };
        let is_without = |peer, caller: &Caller| {
            let certificate = caller.certificate.as_ref();
            certificate.is_some_and(|certificate| !registry.has_authority(peer, &certificate.der))
        };
        links.close_those(is_without, GoodbyeReason::Done, AUTHORITY_RETIRED)
    }

    fn retire_authority(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        let registry = self.own()?;
        self.permit(call.operator, &Action::ManageAuthority)?;
        let retirement = if fields::<RetireFields>(call.body)?.force {
            Retirement::Forced
        } else {
            Retirement::InTime
        };
        let before = registry.authorities();
        let before = before
            .predecessor()
            .map(|before| before.fingerprint().to_string());
        match registry.retire_authority(retirement, self.now()) {
            Ok(()) => {
                let old = before.unwrap_or_default();
                self.note(call.operator, AuditAction::AuthorityRetired, None, &old);
                let mut view = self.authority_view()?;
                view["peers_cut"] = self.cut_without_authority(registry).into();
                Ok(Reply::data(&view))
            }
            Err(RetireError::Store(error)) => Err(stored_badly("the retirement", &error)),
            Err(error) => Err(Reply::failure(StatusCode::CONFLICT, &error.to_string())),
        }
    }
}
