//! `doctor`: whether this satellite would work here, found out by trying. Each check ends in a
//! verdict, what was found, and what to do about it. Changes nothing, and works before the join
//! and beside a running daemon, whose tunnels it does not disturb.

pub mod gateways;
pub mod state;

use std::path::PathBuf;

use super::invite::{configured_trust, waiting_invitation};
use super::membership_store::Examination;
use super::status::StatusReport;
use crate::base::check::Check;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::contract::invitation::{HostPort, ParentTrust, dial_addresses};
use crate::machine::membership::{Membership, Parent};
use crate::process::blocking;
use crate::process::clock::{BUILD_TIME, Clock};
use crate::process::config::satellite::SatelliteConfig;
use crate::process::config::secret_file;
use crate::process::surroundings;
use crate::reach::trial::{self, Standpoint};
use crate::store::state_key::StateKey;

/// Looks at everything. `running` is what the daemon tells of itself, if one runs, or why it does not.
pub async fn examine(config: &SatelliteConfig, running: Result<Option<&StatusReport>, &str>) -> Vec<Check> {
    let clock = Clock::start(BUILD_TIME);
    let (mut checks, found) = look_at_disk(config, &clock).await;
    checks.insert(0, surroundings::clock(clock.trusted()));
    checks.push(surroundings::socket_buffers());
    checks.push(surroundings::default_route(surroundings::outbound_addresses()));
    let mut seen = trial::Seen::default();
    match parent(config, found.as_ref()) {
        Ok(Some((addresses, trust))) => {
            for bridge in &addresses {
                let looked = trial::examine(
                    bridge,
                    (&trust, &config.ways),
                    Standpoint::Satellite,
                    &clock,
                    &mut seen,
                );
                checks.extend(Box::pin(looked).await);
            }
        }
        Ok(None) => checks.push(Check::warn(
            "host-bridge",
            "none is known yet, so none was tried",
            "set parent.url (and parent.ca_file) in the configuration, or join first",
        )),
        Err(why) => checks.push(Check::fail("host-bridge", why, "")),
    }
    checks.extend(gateways::examine(seen.address, config.reach.port_mapping).await);
    checks.extend(surroundings::interfaces());
    match running {
        Ok(Some(report)) => {
            checks.extend(report.reach.iter().flat_map(gateways::ways_in));
            checks.extend(gateways::direct(&report.link));
        }
        Ok(None) => checks.push(Check::ok("daemon", "does not run; its ways in cannot be told")),
        Err(why) => checks.push(Check::fail("daemon", why, "")),
    }
    checks
}

/// The directory, and what the store in it knows of the time.
async fn look_at_disk(config: &SatelliteConfig, clock: &Clock) -> (Vec<Check>, Option<Examination>) {
    let (directory, key_file): (PathBuf, _) = (config.state_dir.clone(), config.state_key.clone());
    let (clock, secret_files) = (clock.clone(), config.secret_files.clone());
    let looked = blocking::run(move || {
        let mut checks = vec![
            surroundings::permissions(&directory),
            surroundings::judge_free_space(surroundings::free_space(&directory), &directory),
        ];
        checks.extend(secret_file::checks(&secret_files));
        let key = match StateKey::read(&key_file) {
            Ok(key) => key,
            Err(error) => {
                checks.push(Check::fail("state key", error_chain(&error), ""));
                return (checks, None);
            }
        };
        let now = |latest: Option<UnixTime>| {
            if let Some(latest) = latest {
                clock.restore_parent_time(latest);
            }
            clock.trusted().now
        };
        let (state, found) = state::examine(&directory, key.as_ref(), now);
        checks.extend(state);
        (checks, found)
    });
    looked.await
}

/// The parent as a member knows it: by the authorities that have followed the one of the invitation.
fn known_by(parent: Parent, membership: Option<&Membership>) -> Parent {
    let learned = membership.map(|membership| &membership.identity.certificate.ca_chain_pem);
    let trust = match (parent.trust, learned) {
        (ParentTrust::Pinned(_), Some(learned)) => ParentTrust::Bundle(learned.clone()),
        (ParentTrust::Bundle(named), Some(learned)) => ParentTrust::Bundle(format!("{named}\n{learned}")),
        (trust, _) => trust,
    };
    Parent { trust, ..parent }
}

/// Where the parent is and by what it is known: as the membership says, else a waiting invitation,
/// else the configuration.
fn parent(
    config: &SatelliteConfig,
    found: Option<&Examination>,
) -> Result<Option<(Vec<HostPort>, ParentTrust)>, String> {
    let stored = found
        .and_then(|found| found.loaded.state.as_ref())
        .map(|state| known_by(state.parent().clone(), state.membership()));
    let known = match stored {
        Some(parent) => Some(parent),
        None => waiting_invitation(config)
            .map_err(|error| error_chain(&error))?
            .map(|invitation| invitation.parent),
    };
    let configured = &config.parent.bridges;
    if let Some(parent) = known {
        let addresses = if configured.is_empty() {
            parent.dial_addresses()
        } else {
            configured.clone()
        };
        return Ok(Some((addresses, parent.trust)));
    }
    let Some(url) = &config.parent.url else {
        return Ok(None);
    };
    let trust = configured_trust(&config.parent).map_err(|error| error_chain(&error))?;
    Ok(Some((dial_addresses(configured, url), trust)))
}
