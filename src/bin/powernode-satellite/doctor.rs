//! `doctor`: whether this satellite would work here, and what to do where not.

use std::process::ExitCode;

use powernode_satellite::cli::check::tell_doctor;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::doctor;

use crate::run::block_on;
use crate::status;

/// Looks, tells, and ends with 1 when it would not work.
pub fn doctor(config: &SatelliteConfig, json: bool) -> Result<ExitCode, Failure> {
    let checks = block_on(async {
        let running = status::of_daemon(config).await;
        let running = running.as_ref().map(Option::as_ref).map_err(Failure::message);
        doctor::examine(config, running).await
    })?;
    tell_doctor(
        &checks,
        "a satellite would not work here as it is; see the failures above",
        json,
    )?;
    Ok(ExitCode::SUCCESS)
}
