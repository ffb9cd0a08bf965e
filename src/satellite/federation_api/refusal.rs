//! Why a request is not answered with what it asks for: what the caller reads, and what the audit
//! log keeps.

use http::StatusCode;
use serde_json::Value;
use thiserror::Error;

use super::caller::InvalidClaim;
use crate::base::id::GrantId;
use crate::base::limit::{CONTRACT_REQUEST_TIMEOUT, JSON_BODY_MAX_BYTES, error_chain};
use crate::contract::message::failure_body;
use crate::grant::Denial;
use crate::satellite::grants::GrantBookError;

/// Its Display is the audit log's; the caller reads [`Refusal::body`].
#[derive(Debug, Error)]
pub(super) enum Refusal {
    /// No grant, or one that does not reach so far.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// It came before the join was done.
    #[error("this satellite has not joined yet")]
    NotJoined,
    /// The host-bridge vouches for nonsense.
    #[error(transparent)]
    Claim(#[from] InvalidClaim),
    /// It cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be now.
    #[error("{0}")]
    Conflict(String),
    /// It is understood and makes no sense.
    #[error("{0}")]
    Unprocessable(String),
    /// Another method is served there.
    #[error("only {0} is allowed here")]
    Method(&'static str),
    /// Its body is too large.
    #[error("the body is larger than {JSON_BODY_MAX_BYTES} bytes")]
    TooLarge,
    /// Its body is too slow.
    #[error("the body did not arrive within {} s", CONTRACT_REQUEST_TIMEOUT.as_secs())]
    TooSlow,
    /// Our fault.
    #[error("the satellite could not do this: {0}")]
    Failed(String),
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Denied(denial) => {
                StatusCode::from_u16(denial.http_status()).unwrap_or(StatusCode::FORBIDDEN)
            }
            Self::NotJoined => StatusCode::UNAUTHORIZED,
            Self::Claim(_) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn body(&self) -> Value {
        match self {
            Self::Denied(denial) => {
                let code = (denial.http_status() == 401).then_some("UNAUTHORIZED");
                failure_body(&denial.answer(), code)
            }
            Self::Failed(_) => failure_body(
                "the satellite could not do this; its log says why. Nothing was changed",
                Some("INTERNAL_ERROR"),
            ),
            other => failure_body(&other.to_string(), None),
        }
    }

    /// The grant that did not let it through, where the token was ours.
    pub(super) const fn grant(&self) -> Option<GrantId> {
        match self {
            Self::Denied(denial) => denial.grant(),
            Self::NotJoined
            | Self::Claim(_)
            | Self::BadRequest(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Unprocessable(_)
            | Self::Method(_)
            | Self::TooLarge
            | Self::TooSlow
            | Self::Failed(_) => None,
        }
    }
}

impl From<GrantBookError> for Refusal {
    fn from(error: GrantBookError) -> Self {
        match error {
            GrantBookError::Full => {
                Self::Conflict("this satellite is at capacity: it keeps no more grants".to_owned())
            }
            GrantBookError::Left => Self::Conflict("this satellite has left its parent".to_owned()),
            GrantBookError::Unknown(grant) => Self::NotFound(format!("there is no subscription {grant}")),
            GrantBookError::Revoke(error) => Self::Unprocessable(error.to_string()),
            GrantBookError::Store(error) => {
                let why = error_chain(&error);
                tracing::error!(error = %why, "a grant that the parent asked for could not be stored");
                Self::Failed(why)
            }
        }
    }
}
