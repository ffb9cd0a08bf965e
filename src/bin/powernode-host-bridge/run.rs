//! `run`: the daemon.

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::bridge::daemon::{self, Surroundings};
use powernode_satellite::bridge::registry::{Books, OpenRegistryError, Opening};
use powernode_satellite::bridge::settings::BridgeSettings;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::secret_file;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::service_notify::ServiceManager;
use powernode_satellite::process::signals::Signals;
use powernode_satellite::process::{entropy, open_files, telemetry};
use powernode_satellite::store::patience;
use powernode_satellite::store::state_key::StateKey;

/// Most threads that wait for the registry's disk. It takes one change at a time; more threads
/// would wait for each other and cost their stacks.
const BLOCKING_THREADS_MAX: usize = 16;

/// Runs until a signal stops it.
pub fn run(
    config: HostBridgeConfig,
    environment: &Environment,
    (file, flags): (ConfigFile, Flags),
) -> Result<(), Failure> {
    let log = telemetry::init(&config.log.filter, config.log.format, environment).map_err(Failure::usage)?;
    secret_file::warn_of_open(&config.secret_files);
    entropy::check().map_err(Failure::failed)?;
    open_files::allow_many();
    let service = ServiceManager::connect(environment).map_err(Failure::usage)?;
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let open = || Books::open(&config, key.as_ref(), Opening::ReadWrite);
    let books = patience::once_free(open, OpenRegistryError::holder).map_err(|error| not_opened(&error))?;
    let public = books.ledger().public().map_err(Failure::failed)?;
    let settings = BridgeSettings::new(config, public.clone());
    let environment = environment.clone();
    let reload = move || match HostBridgeConfig::load(&file, &flags, &environment) {
        Ok((config, _)) => {
            log.set_filter(&config.log.filter);
            secret_file::warn_of_open(&config.secret_files);
            Some(BridgeSettings::new(config, public.clone()))
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(%error, "the configuration cannot be used; the one before stays in force");
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    runtime.block_on(async {
        let surroundings = Surroundings {
            clock: Clock::start(BUILD_TIME),
            service,
            signals: Signals::listen().map_err(Failure::failed)?,
        };
        daemon::run(books, settings, surroundings, reload, |_| {})
            .await
            .map_err(Failure::failed)
    })
}

/// A registry that is not there has a code of its own.
pub fn not_opened(error: &OpenRegistryError) -> Failure {
    let code = match error {
        OpenRegistryError::NotThere { .. }
        | OpenRegistryError::NotInitialised
        | OpenRegistryError::NoLedger => Code::NotJoined,
        _ => Code::Failed,
    };
    Failure::of(code, error)
}
