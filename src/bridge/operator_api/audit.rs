//! The audit log for operators: entries page by page, and whether it is as it was written.

use http::StatusCode;

use super::super::federation_api::stored_badly;
use super::super::reply::Reply;
use super::OperatorApi;
use crate::store::audit_log::reading::{self, AskError};

impl OperatorApi {
    /// Answers `entries?…` and `verification?…`.
    pub(super) fn audit(&self, what: &str, query: &str) -> Result<Reply, Reply> {
        let answered = reading::answer(self.registry.database(), what, query, |_| true);
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
