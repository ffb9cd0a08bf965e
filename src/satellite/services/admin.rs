//! The admin socket's resource `/v1/services`: what is published, and changes at run time.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::registry::{PublishError, Services, WithdrawError};
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::message::{failure_body, success_body};
use crate::contract::service::{ServiceDefinition, ServiceName};

/// Path of the list; one service's is below it.
pub const SERVICES_PATH: &str = "/v1/services";

/// The answer to one request whose path begins with [`SERVICES_PATH`].
pub(in crate::satellite) async fn answer(
    method: &Method,
    path: &str,
    body: &Bytes,
    services: &Services,
) -> (StatusCode, Value) {
    let name = path
        .strip_prefix(SERVICES_PATH)
        .map(|rest| rest.trim_start_matches('/'));
    match (method, name) {
        (&Method::GET, Some("")) => (StatusCode::OK, success_body(&services.reports())),
        (&Method::POST, Some("")) => publish(body, services).await,
        (&Method::DELETE, Some(name)) if !name.is_empty() => withdraw(name, services).await,
        _ => refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET and POST are allowed on /v1/services, DELETE on /v1/services/NAME",
        ),
    }
}

async fn publish(body: &Bytes, services: &Services) -> (StatusCode, Value) {
    let service: ServiceDefinition = match serde_json::from_slice(body) {
        Ok(service) => service,
        Err(error) => {
            return refuse(
                StatusCode::UNPROCESSABLE_ENTITY,
                &foreign_text(&error.to_string()),
            );
        }
    };
    match services.publish(service).await {
        Ok(()) => (StatusCode::CREATED, success_body(&json!({ "published": true }))),
        Err(error) => {
            let status = match error {
                PublishError::Configured(_) | PublishError::Full => StatusCode::CONFLICT,
                PublishError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, &error_chain(&error))
        }
    }
}

async fn withdraw(name: &str, services: &Services) -> (StatusCode, Value) {
    let name: ServiceName = match name.parse() {
        Ok(name) => name,
        Err(error) => return refuse(StatusCode::NOT_FOUND, &error_chain(&error)),
    };
    match services.withdraw(&name).await {
        Ok(()) => (StatusCode::OK, success_body(&json!({ "withdrawn": true }))),
        Err(error) => {
            let status = match error {
                WithdrawError::Unknown(_) => StatusCode::NOT_FOUND,
                WithdrawError::Configured(_) => StatusCode::CONFLICT,
                WithdrawError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, &error_chain(&error))
        }
    }
}

fn refuse(status: StatusCode, error: &str) -> (StatusCode, Value) {
    (status, failure_body(error, None))
}
