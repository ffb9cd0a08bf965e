//! `self-check`: whether this program can run with the configuration and the state that are there.
//! Reads, writes nothing, connects to nothing; the old daemon may run meanwhile.

use powernode_satellite::base::check::Check;
use powernode_satellite::base::limit::error_chain;
use powernode_satellite::bridge::examination::{NEEDED, examine};
use powernode_satellite::cli::check::tell_self_check;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::environment::Environment;

/// Checks, tells, and ends with 1 when this program cannot run.
pub fn self_check(
    file: &ConfigFile,
    flags: &Flags,
    environment: &Environment,
    json: bool,
) -> Result<(), Failure> {
    let checks = match HostBridgeConfig::load(file, flags, environment) {
        Ok((config, _)) => examine(&config, Clock::start(BUILD_TIME).trusted().now),
        // Where the state is, only the configuration says.
        Err(error) => vec![Check::fail("configuration", error_chain(&error), "")],
    };
    tell_self_check(&checks, NEEDED, json)
}
