//! `state-key`: takes the seals off the state.

use std::process::ExitCode;

use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::store::state_key::StateKey;

/// Writes the state without seals. The key is needed this once more.
pub fn unseal(config: &SatelliteConfig) -> Result<ExitCode, Failure> {
    let Some(key) = StateKey::read(&config.state_key).map_err(Failure::usage)? else {
        return Err(Failure::new(Code::Usage, output::NO_STATE_KEY));
    };
    let unsealed = MembershipStore::unseal(&config.state_dir, &key).map_err(Failure::failed)?;
    output::print(output::unsealed(unsealed)).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}
