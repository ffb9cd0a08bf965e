//! `authority`: the certificate authority of a box that certifies itself, at the running daemon or on its state.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::admin_api::{RETIRE_AUTHORITY_PATH, ROTATE_AUTHORITY_PATH, RetireFields};
use powernode_satellite::satellite::offline::OfflineState;
use powernode_satellite::satellite::own_authority::{AuthorityReport, AuthorityWish};

use crate::arguments::AuthorityCommand;
use crate::owner::{daemon, either_way, offline};

/// Carries the command out.
pub fn authority(config: &SatelliteConfig, command: AuthorityCommand) -> Result<ExitCode, Failure> {
    let (path, body, wish, json) = match command {
        AuthorityCommand::Rotate { json } => (ROTATE_AUTHORITY_PATH, None, AuthorityWish::Rotate, json),
        AuthorityCommand::Retire { force, json } => {
            let fields = RetireFields { force };
            let body = serde_json::to_value(fields).map_err(Failure::failed)?;
            (RETIRE_AUTHORITY_PATH, Some(body), fields.into(), json)
        }
    };
    let (report, running) = either_way(|| {
        if let Some(data) = daemon(config, &Method::POST, path, body.as_ref())? {
            return Ok((serde_json::from_value(data).map_err(Failure::failed)?, true));
        }
        let changed = OfflineState::open(config).and_then(|state| state.change_authority(wish));
        Ok((changed.map_err(offline)?, false))
    })?;
    let shown = if json {
        output::render_json(&serde_json::to_value(&report).map_err(Failure::failed)?)
    } else {
        said(&report, running)
    };
    output::print(&shown).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn said(report: &AuthorityReport, running: bool) -> String {
    let Some(succession) = &report.succession else {
        return format!(
            "the authority of before is served no more; this box is known by {}\n",
            report.issuing.fingerprint
        );
    };
    let next = if running {
        "The parent is served both now, and the certificate is issued anew under the new one when the parent has \
         fetched it, or after a day"
    } else {
        "The parent is served both when the satellite runs again, and the certificate is issued anew after that"
    };
    format!(
        "a new authority of this box is announced: {}, which {} vouches for\n{next}: `powernode-satellite status` \
         shows how far it is.\n",
        succession.other.fingerprint, report.issuing.fingerprint
    )
}
