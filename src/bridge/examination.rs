//! What lies on the disk, as a start of this program would find it: store, certificate authority, and the files
//! that the configuration names. Changes nothing, also beside a running daemon.

use super::material;
use super::registry::record::SCHEMA;
use super::registry::{Books, OpenRegistryError, Opening, Registry};
use crate::base::check::Check;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::store::database::{Holder, OpenError};
use crate::store::state_key::StateKey;

/// Checks without which the program does not run; all others it lives with.
pub const NEEDED: &[&str] = &["configuration", "certificates", "state key", "store"];

/// Looks at the state of a configuration that can be read. Blocking.
pub fn examine(config: &HostBridgeConfig, now: UnixTime) -> Vec<Check> {
    let mut checks = vec![Check::ok("configuration", "good")];
    if let Err(error) = material::check(config) {
        checks.push(Check::fail("certificates", error_chain(&error), ""));
    }
    match StateKey::read(&config.state_key) {
        Ok(key) => checks.extend(kept(config, key.as_ref(), now)),
        Err(error) => checks.push(Check::fail("state key", error_chain(&error), "")),
    }
    checks
}

fn kept(config: &HostBridgeConfig, key: Option<&StateKey>, now: UnixTime) -> Vec<Check> {
    const NAME: &str = "store";
    let (opened, holder) = match Books::open(config, key, Opening::ReadOnly) {
        Err(OpenRegistryError::Open(OpenError::Held { holder, .. })) => {
            (Books::open(config, key, Opening::Snapshot), Some(holder))
        }
        opened => (opened, None),
    };
    match opened {
        Ok(books) => {
            let mut checks = vec![store(config, &books, holder.as_ref())];
            if let Books::Own(registry) = &books {
                checks.push(authority(config, registry, now));
            }
            checks
        }
        Err(OpenRegistryError::NoLedger) => {
            let directory = config.state_dir.display();
            vec![Check::ok(
                NAME,
                format!("none in {directory} yet; the first run makes it"),
            )]
        }
        // These say themselves what to do.
        Err(error @ (OpenRegistryError::NotThere { .. } | OpenRegistryError::NotInitialised)) => {
            vec![Check::fail(NAME, error_chain(&error), "")]
        }
        Err(error) => vec![Check::fail(
            NAME,
            error_chain(&error),
            "the message says what can be done; `restore` puts a backup in its place",
        )],
    }
}

fn store(config: &HostBridgeConfig, books: &Books, holder: Option<&Holder>) -> Check {
    let holder = holder.map_or_else(String::new, |holder| format!(", in use by {holder}"));
    Check::ok(
        "store",
        format!(
            "whole, {} KiB in {}, readable with schema version {}{holder}",
            books.ledger().size_bytes() / 1024,
            config.state_dir.display(),
            SCHEMA.version
        ),
    )
}

/// The server's certificate is issued anew by each start that needs it; the authority is an operator's to rotate.
fn authority(config: &HostBridgeConfig, registry: &Registry, now: UnixTime) -> Check {
    const NAME: &str = "authority";
    let authorities = registry.authorities();
    let ends = authorities.current().not_after();
    let before = authorities.predecessor().map_or_else(String::new, |before| {
        format!(", the one before counts until {} at least", before.overlap_ends)
    });
    if now >= ends {
        return Check::fail(
            NAME,
            format!("expired, ends {ends}{before}"),
            "set the clock of this machine if that is ahead, else `init` anew in another state directory and invite every \
             satellite",
        );
    }
    if now.plus(config.rotation_overlap) >= ends {
        return Check::warn(
            NAME,
            format!("expires soon, ends {ends}{before}"),
            "make the next one now, so that satellites have followed it by then: `powernode-host-bridge ca rotate`",
        );
    }
    Check::ok(NAME, format!("valid, ends {ends}{before}"))
}
