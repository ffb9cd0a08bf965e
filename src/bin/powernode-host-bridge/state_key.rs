//! `state-key`: takes the seals off the registry.

use powernode_satellite::bridge::registry::{Books, Registry};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::store::state_key::StateKey;

use crate::print;
use crate::run::not_opened;

/// Writes the registry without seals. The key is needed this once more.
pub fn unseal(config: &HostBridgeConfig) -> Result<(), Failure> {
    let Some(key) = StateKey::read(&config.state_key).map_err(Failure::usage)? else {
        return Err(Failure::new(Code::Usage, output::NO_STATE_KEY));
    };
    let unsealed = Registry::unseal(&Books::path(config), &key).map_err(|error| not_opened(&error))?;
    print(output::unsealed(unsealed))
}
