//! The accesses in flight: list, look at one, cut one.

use http::{Method, StatusCode};
use serde_json::json;

use super::super::access::Accesses;
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
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => Ok(Reply::data(&sessions.list(|_| true))),
            ([], _) => Ok(Reply::wrong_method("GET")),
            ([id], &Method::GET) => one(sessions, id, call),
            ([_], _) => Ok(Reply::wrong_method("GET")),
            ([id, "cut"], &Method::POST) => {
                let reason = fields::<CutFields>(call.body)?.reason;
                let view = sessions.find(id).ok_or_else(|| unknown(id))?;
                if !sessions.cut(&view.id, &call.operator.to_string(), reason.as_deref()) {
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

fn one(sessions: &Accesses, id: &str, call: &Call<'_>) -> Result<Reply, Reply> {
    if let Some(view) = sessions.find(id) {
        return Ok(Reply::data(&json!({ "state": "open", "session": view })));
    }
    let end = sessions
        .end_of(id, &call.operator.to_string())
        .ok_or_else(|| unknown(id))?;
    Ok(Reply::data(&json!({ "state": "ended", "end": end })))
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
