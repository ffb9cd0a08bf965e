//! `run`: the daemon.

use std::process::ExitCode;
use std::time::Duration;

use powernode_satellite::cli::failure::Failure;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::config::secret_file;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::service_notify::ServiceManager;
use powernode_satellite::process::{fresh_start, open_files, telemetry};
use powernode_satellite::satellite::daemon::{self, RunError};

/// Runs until a signal stops it.
pub fn run(
    config: SatelliteConfig,
    environment: &Environment,
    (file, flags): (ConfigFile, Flags),
) -> Result<ExitCode, Failure> {
    let log = telemetry::init(&config.log.filter, config.log.format, environment).map_err(Failure::usage)?;
    if cfg!(panic = "abort") {
        fresh_start::after_panics(Clock::start(BUILD_TIME), fresh_start::RUN_AT_LEAST);
    }
    secret_file::warn_of_open(&config.secret_files);
    let manager = ServiceManager::connect(environment).map_err(Failure::usage)?;
    open_files::allow_many();
    let (environment, running) = (environment.clone(), config.clone());
    let reload = Box::new(move || match SatelliteConfig::load(&file, &flags, &environment) {
        Ok((config, _)) => {
            log.set_filter(&config.log.filter);
            tracing::info!("configuration read again");
            secret_file::warn_of_open(&config.secret_files);
            for key in waiting_for_restart(&running, &config) {
                tracing::warn!(key, "this key takes effect with a restart only");
            }
            Some(config)
        }
        Err(error) => {
            let error = powernode_satellite::base::limit::error_chain(&error);
            tracing::error!(%error, "the configuration cannot be used; the one before stays in force");
            None
        }
    });
    match block_on(daemon::run(config, manager, reload))? {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(not_run(error)),
    }
}

/// What only an operator can mend has a code of its own: the service manager does not try again.
pub fn not_run(error: RunError) -> Failure {
    match error {
        RunError::Invite(_) | RunError::StateKey(_) => Failure::usage(error),
        error => Failure::failed(error),
    }
}

/// The keys that were changed and that a reload does not bring into force.
fn waiting_for_restart(running: &SatelliteConfig, read: &SatelliteConfig) -> Vec<&'static str> {
    [
        ("state_dir", running.state_dir != read.state_dir),
        ("admin_socket", running.admin_socket != read.admin_socket),
        ("log.format", running.log.format != read.log.format),
        (
            "reach.port_mapping",
            running.reach.port_mapping != read.reach.port_mapping,
        ),
        (
            "reach.listen_port",
            running.reach.listen_port != read.reach.listen_port,
        ),
        (
            "reach.allow_private",
            running.reach.allow_private != read.reach.allow_private,
        ),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// Time for what still blocks a thread when all work is done: a resolver without an answer waits
/// for half a minute and has nothing to lose.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

/// Runs to the end on one thread: a satellite's work is waiting, and each thread more would cost
/// memory on a small box.
pub fn block_on<F: Future>(work: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let output = runtime.block_on(work);
    runtime.shutdown_timeout(LEFT_BEHIND);
    Ok(output)
}
