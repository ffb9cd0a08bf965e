//! One call of the operator API: through the daemon's socket while it runs, otherwise in this
//! process on the registry itself. The API is the same.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use powernode_satellite::bridge::operator_api::{NOT_CONFIGURED, Operator, OperatorApi};
use powernode_satellite::bridge::registry::{Books, Opening};
use powernode_satellite::bridge::settings::BridgeSettings;
use powernode_satellite::cli::client::{AdminClient, AdminError, Answer};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::patience;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::store::audit_log::AuditLog;
use powernode_satellite::store::state_key::StateKey;
use serde_json::Value;
use tokio::sync::watch;

use crate::run::not_opened;

/// The answer's data, or the failure to end with.
pub async fn call(
    config: &HostBridgeConfig,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let answer = exchange(config, method, path, body).await?;
    answer.read().map_err(Failure::failed)?.map_err(|refused| {
        let message = if refused.error.is_empty() {
            format!(
                "the daemon answered HTTP {} without a reason",
                refused.http_status
            )
        } else {
            refused.error
        };
        let code = match refused.code.as_deref() {
            Some(NOT_CONFIGURED) => Code::Usage,
            _ => code_of(answer.status),
        };
        Failure::new(code, message)
    })
}

/// The exit code that goes with a refusal.
pub fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Code::Unreachable
        }
        status if status.is_client_error() => Code::Refused,
        _ => Code::Failed,
    }
}

/// The answer as it came.
pub async fn exchange(
    config: &HostBridgeConfig,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer, Failure> {
    let client = AdminClient::new(&config.admin_socket);
    patience::once_free(async || match client.call(method.clone(), path, body).await {
        Ok(answer) => Ok(answer),
        Err(AdminError::NotRunning { .. }) => in_process(config, method.clone(), path, body).await,
        Err(error) => Err(Failure::failed(error)),
    })
    .await
}

async fn in_process(
    config: &HostBridgeConfig,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer, Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let opening = if method == Method::GET {
        Opening::ReadOnly
    } else {
        Opening::ReadWrite
    };
    let books = Books::open(config, key.as_ref(), opening).map_err(|error| not_opened(&error))?;
    let public = books.ledger().public().map_err(Failure::failed)?;
    let (_settings, settings) = watch::channel(BridgeSettings::new(config.clone(), public));
    let clock = Clock::start(BUILD_TIME);
    let (audit, writer) = if method == Method::GET {
        (AuditLog::default(), None)
    } else {
        let (_, kept) = watch::channel(config.audit);
        let opened = AuditLog::open(books.ledger().database().clone(), clock.clone(), kept);
        opened
            .map(|(audit, writer)| (audit, Some(writer)))
            .map_err(Failure::failed)?
    };
    let api = Arc::new(OperatorApi::new(books, None, clock, settings, audit));
    let content = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Full::new(Bytes::from(content)))
        .map_err(|_| Failure::new(Code::Usage, AdminError::Path(path.to_owned()).to_string()))?;
    let (head, body) = api.handle(request, Operator::Local).await.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    if let Some(writer) = writer {
        writer.finish().map_err(Failure::failed)?;
    }
    Ok(Answer {
        status: head.status,
        body: body.to_bytes(),
    })
}
