//! `self-check`: whether this program can run with the configuration and the state that are there.
//! Reads, writes nothing, connects to nothing; the old daemon may run meanwhile.

use std::process::ExitCode;

use powernode_satellite::base::check::Check;
use powernode_satellite::base::limit::error_chain;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::cli::check::tell_self_check;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::satellite::doctor::state;
use powernode_satellite::store::state_key::StateKey;

/// Checks without which the program does not run; all others it lives with.
const NEEDED: &[&str] = &["configuration", "state key", "store"];

/// Checks, tells, and ends with 1 when this program cannot run.
pub fn self_check(
    file: &ConfigFile,
    flags: &Flags,
    environment: &Environment,
    json: bool,
) -> Result<ExitCode, Failure> {
    let checks = match SatelliteConfig::load(file, flags, environment) {
        Ok((config, _)) => {
            let mut checks = vec![Check::ok("configuration", "good")];
            match StateKey::read(&config.state_key) {
                Ok(key) => checks.extend(state::examine(&config.state_dir, key.as_ref(), time_after).0),
                Err(error) => checks.push(Check::fail("state key", error_chain(&error), "")),
            }
            checks
        }
        // Where the state is, only the configuration says.
        Err(error) => vec![Check::fail("configuration", error_chain(&error), "")],
    };
    tell_self_check(&checks, NEEDED, json)?;
    Ok(ExitCode::SUCCESS)
}

/// The time that certificates are judged by, on a box that knows this time to have passed.
pub fn time_after(latest: Option<UnixTime>) -> UnixTime {
    let clock = Clock::start(BUILD_TIME);
    if let Some(latest) = latest {
        clock.restore_parent_time(latest);
    }
    clock.trusted().now
}
