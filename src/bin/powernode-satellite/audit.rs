//! `audit`: from the running daemon, or from the store when none runs.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::base::id::PeerId;
use powernode_satellite::cli::audit::AuditCommand;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::patience;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::admin_api::AUDIT_PREFIX;
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::store::audit_log::reading;
use powernode_satellite::store::database::Database;
use powernode_satellite::store::state_key::StateKey;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::run::block_on;

/// Carries one command out.
pub fn audit(config: &SatelliteConfig, command: &AuditCommand) -> Result<ExitCode, Failure> {
    let peer = command
        .asked_peer()
        .map(str::parse::<PeerId>)
        .transpose()
        .map_err(Failure::usage)?;
    let now = Clock::start(BUILD_TIME).trusted().now;
    block_on(async {
        let client = AdminClient::new(&config.admin_socket);
        let store = OnceCell::new();
        let ask = async |what: &str, query: &str| {
            patience::once_free(async || {
                if !store.initialized()
                    && let Some(answer) = ask_daemon(&client, what, query).await?
                {
                    return Ok(answer);
                }
                let database = store.get_or_try_init(async || open(config)).await?;
                reading::answer(database, what, query, |_| true).map_err(Failure::failed)
            })
            .await
        };
        command.execute(peer, now, ask).await
    })??;
    Ok(ExitCode::SUCCESS)
}

/// The daemon's answer; `None` when none runs.
async fn ask_daemon(client: &AdminClient, what: &str, query: &str) -> Result<Option<Value>, Failure> {
    let path = format!("{AUDIT_PREFIX}{what}?{query}");
    match client.call(Method::GET, &path, None).await {
        Ok(answer) => match answer.read() {
            Ok(Ok(data)) => Ok(Some(data)),
            Ok(Err(refused)) => Err(Failure::new(Code::Failed, refused.error)),
            Err(error) => Err(Failure::failed(error)),
        },
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn open(config: &SatelliteConfig) -> Result<Database, Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    MembershipStore::open_read_only(&config.state_dir, key.as_ref()).map_err(Failure::failed)
}
