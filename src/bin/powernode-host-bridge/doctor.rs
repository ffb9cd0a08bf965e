//! `doctor`: whether satellites would reach this host-bridge, and what to do where not.

use http::Method;
use powernode_satellite::bridge::doctor;
use powernode_satellite::bridge::operator_api::HEALTH_PATH;
use powernode_satellite::cli::check::tell_doctor;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use serde_json::Value;

use crate::call::call;

/// Looks, tells, and ends with 1 when they would not.
pub fn doctor(config: &HostBridgeConfig, json: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let checks = runtime.block_on(async {
        let running = health(config).await;
        let running = running.as_ref().map(Option::as_ref).map_err(Failure::message);
        doctor::examine(config, running).await
    });
    tell_doctor(
        &checks,
        "satellites would not reach this host-bridge as it is; see the failures above",
        json,
    )
}

/// What the daemon tells of itself, if one runs.
async fn health(config: &HostBridgeConfig) -> Result<Option<Value>, Failure> {
    match AdminClient::new(&config.admin_socket)
        .call(Method::GET, HEALTH_PATH, None)
        .await
    {
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
        Ok(_) => call(config, Method::GET, HEALTH_PATH, None).await.map(Some),
    }
}
