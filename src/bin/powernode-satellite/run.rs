//! `run`: the daemon.

use std::process::ExitCode;

use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::service_notify::ServiceManager;
use powernode_satellite::process::telemetry;
use powernode_satellite::satellite::daemon::{self, RunError};

use crate::failure::Failure;

/// Runs until a signal stops it.
pub fn run(
    config: SatelliteConfig,
    environment: &Environment,
    (file, flags): (ConfigFile, Flags),
) -> Result<ExitCode, Failure> {
    let log = telemetry::init(&config.log.filter, config.log.format, environment).map_err(Failure::usage)?;
    let manager = ServiceManager::connect(environment).map_err(Failure::usage)?;
    let environment = environment.clone();
    let reload = Box::new(move || match SatelliteConfig::load(&file, &flags, &environment) {
        Ok((config, _)) => {
            log.set_filter(&config.log.filter);
            tracing::info!("configuration read again");
            Some(config)
        }
        Err(error) => {
            let error = powernode_satellite::base::limit::error_chain(&error);
            tracing::error!(%error, "the configuration cannot be used; the one before stays in force");
            None
        }
    });
    let outcome = runtime()?.block_on(daemon::run(config, manager, reload));
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ RunError::Invite(_)) => Err(Failure::usage(error)),
        Err(error) => Err(Failure::failed(error)),
    }
}

/// One thread: a satellite's work is waiting, and each thread more would cost memory on a small box.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)
}
