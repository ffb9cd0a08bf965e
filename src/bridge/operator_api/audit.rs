//! The audit log for operators: entries page by page, and whether it is as it was written. Who is
//! limited to some peers sees the entries that are about those.

use http::StatusCode;

use super::super::federation_api::stored_badly;
use super::super::permission::{Action, NameLimit};
use super::super::reply::Reply;
use super::{Operator, OperatorApi};
use crate::store::audit_log::reading::{self, AskError};

impl OperatorApi {
    /// Answers `entries?…` and `verification?…`.
    pub(super) fn audit(&self, operator: &Operator, what: &str, query: &str) -> Result<Reply, Reply> {
        self.permit(operator, &Action::SeeHealth)?;
        let identity = operator.identity();
        let whole = identity.may(&Action::SeeWholeAudit).is_ok();
        let seen = match identity.peers {
            NameLimit::Any => None,
            NameLimit::Only(_) => Some(self.visible_ids(operator)?),
        };
        let answered = reading::answer(self.ledger().database(), what, query, |entry| {
            match (entry.federation_peer_id, &seen) {
                (None, _) => whole,
                (Some(_), None) => true,
                (Some(peer), Some(seen)) => seen.contains(&peer),
            }
        });
        match answered {
            Ok(data) => Ok(Reply::data(&data)),
            Err(AskError::Store(error)) => Err(stored_badly("the audit log", &error)),
            Err(error @ AskError::Unknown(_)) => {
                Err(Reply::failure(StatusCode::NOT_FOUND, &error.to_string()))
            }
            Err(error) => Err(Reply::failure(StatusCode::BAD_REQUEST, &error.to_string())),
        }
    }
}
