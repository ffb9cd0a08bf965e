//! `audit`: from the running daemon, or from the registry when none runs.

use http::Method;
use powernode_satellite::base::id::PeerId;
use powernode_satellite::bridge::operator_api::AUDIT_PREFIX;
use powernode_satellite::bridge::registry::{Books, Opening};
use powernode_satellite::cli::audit::AuditCommand;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::patience;
use powernode_satellite::contract::FEDERATION_PEERS_PATH;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::store::audit_log::reading;
use powernode_satellite::store::state_key::StateKey;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::call::{call, code_of};
use crate::commands::segment;
use crate::run::not_opened;

/// Carries one command out.
pub async fn audit(config: &HostBridgeConfig, command: &AuditCommand) -> Result<(), Failure> {
    let peer = match command.asked_peer() {
        Some(asked) => Some(peer_id(config, asked).await?),
        None => None,
    };
    let now = Clock::start(BUILD_TIME).trusted().now;
    let client = AdminClient::new(&config.admin_socket);
    // Opened once for all pages: opening verifies the whole file.
    let books = OnceCell::new();
    let ask = async |what: &str, query: &str| {
        patience::once_free(async || {
            if !books.initialized()
                && let Some(answer) = ask_daemon(&client, what, query).await?
            {
                return Ok(answer);
            }
            let books = books.get_or_try_init(async || open(config)).await?;
            reading::answer(books.ledger().database(), what, query, |_| true).map_err(Failure::failed)
        })
        .await
    };
    command.execute(peer, now, ask).await
}

/// By id, also of a peer that is not known any more; else by name.
async fn peer_id(config: &HostBridgeConfig, asked: &str) -> Result<PeerId, Failure> {
    if let Ok(id) = asked.parse() {
        return Ok(id);
    }
    let path = format!("{FEDERATION_PEERS_PATH}/{}", segment(asked)?);
    let peer = call(config, Method::GET, &path, None).await?;
    peer["id"]
        .as_str()
        .unwrap_or_default()
        .parse()
        .map_err(Failure::failed)
}

/// The daemon's answer; `None` when none runs.
async fn ask_daemon(client: &AdminClient, what: &str, query: &str) -> Result<Option<Value>, Failure> {
    let path = format!("{AUDIT_PREFIX}{what}?{query}");
    match client.call(Method::GET, &path, None).await {
        Ok(answer) => match answer.read() {
            Ok(Ok(data)) => Ok(Some(data)),
            Ok(Err(refused)) => Err(Failure::new(code_of(answer.status), refused.error)),
            Err(error) => Err(Failure::failed(error)),
        },
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::new(
            Code::Failed,
            powernode_satellite::base::limit::error_chain(&error),
        )),
    }
}

fn open(config: &HostBridgeConfig) -> Result<Books, Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    Books::open(config, key.as_ref(), Opening::ReadOnly).map_err(|error| not_opened(&error))
}
