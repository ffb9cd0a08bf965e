//! Reads a request's body, in bounded size and time.

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;
use crate::base::limit::{CONTRACT_REQUEST_TIMEOUT, JSON_BODY_MAX_BYTES, foreign_text};

/// The fields of a JSON object; an empty body has none.
pub(super) async fn fields<T, B>(body: B) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limited = Limited::new(body, JSON_BODY_MAX_BYTES).collect();
    let read = match tokio::time::timeout(CONTRACT_REQUEST_TIMEOUT, limited).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge),
        Ok(Err(_)) => return Err(Refusal::BadRequest("the body broke off".to_owned())),
        Err(_) => return Err(Refusal::TooSlow),
    };
    let content: &[u8] = if read.iter().all(u8::is_ascii_whitespace) {
        b"{}"
    } else {
        &read
    };
    serde_json::from_slice(content).map_err(|error| {
        Refusal::BadRequest(format!(
            "the request cannot be read: {}",
            foreign_text(&error.to_string())
        ))
    })
}
