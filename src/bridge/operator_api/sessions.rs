//! The accesses in flight: list, look at one, cut one.

use http::{Method, StatusCode};
use serde_json::json;

use super::super::access::SessionView;
use super::super::permission::{Action, PeerAction};
use super::super::reply::Reply;
use super::{Call, OperatorApi, fields};
use crate::audit::AuditAction;
use crate::base::limit::foreign_text;

#[derive(serde::Deserialize)]
struct CutFields {
    #[serde(default)]
    reason: Option<String>,
}

impl OperatorApi {
    pub(super) fn sessions(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        let Some(sessions) = self.access.as_ref().map(|access| access.sessions()) else {
            return Err(Reply::failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "no daemon runs here, so there are no sessions; start powernode-host-bridge",
            ));
        };
        let identity = call.operator.identity();
        let sees = |view: &SessionView| identity.sees(view.peer_ref());
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => Ok(Reply::data(&sessions.list(sees))),
            ([], _) => Ok(Reply::wrong_method("GET")),
            ([id], &Method::GET) => {
                if let Some(view) = sessions.find(id).filter(sees) {
                    return Ok(Reply::data(&json!({ "state": "open", "session": view })));
                }
                let end = sessions.end_of(id, &identity.name).ok_or_else(|| unknown(id))?;
                Ok(Reply::data(&json!({ "state": "ended", "end": end })))
            }
            ([_], _) => Ok(Reply::wrong_method("GET")),
            ([id, "cut"], &Method::POST) => {
                let reason = fields::<CutFields>(call.body)?.reason;
                let view = sessions.find(id).filter(sees).ok_or_else(|| unknown(id))?;
                // Everybody may hang up on themselves.
                if view.operator != identity.name {
                    self.permit(
                        call.operator,
                        &Action::OnPeer(PeerAction::CutSession, view.peer_ref()),
                    )?;
                }
                if !sessions.cut(&view.id, &identity.name, reason.as_deref()) {
                    return Err(unknown(id));
                }
                self.note(
                    call.operator,
                    AuditAction::SessionCut,
                    Some(view.federation_peer_id),
                    &view.id,
                );
                Ok(Reply::data(&view))
            }
            ([_, "cut"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }
}

fn unknown(id: &str) -> Reply {
    Reply::failure(
        StatusCode::NOT_FOUND,
        &format!(
            "there is no session `{}`, or several begin so; `powernode-host-bridge sessions list` shows all",
            foreign_text(id)
        ),
    )
}
