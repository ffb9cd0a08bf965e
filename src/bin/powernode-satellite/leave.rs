//! `leave`: ends the peering, destroys its keys, keeps the logs.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::admin_api::LEAVE_PATH;
use powernode_satellite::satellite::driver::Departure;
use powernode_satellite::satellite::offline::OfflineState;
use serde_json::json;

use crate::arguments::Parting;
use crate::owner::{confirmed, daemon, either_way, offline};

const QUESTION: &str = "This box leaves its parent for good: the keys of the peering are destroyed, and to come back it \
    needs a new invitation. The audit log stays.";

/// Leaves the parent.
pub fn leave(config: &SatelliteConfig, arguments: &Parting) -> Result<ExitCode, Failure> {
    if !confirmed(arguments.yes, QUESTION)? {
        return Err(Failure::new(Code::Failed, "nothing was changed"));
    }
    let reason = arguments.reason.clone().unwrap_or_default();
    let body = json!({ "reason": reason });
    let departure: Departure =
        either_way(|| match daemon(config, &Method::POST, LEAVE_PATH, Some(&body))? {
            Some(data) => serde_json::from_value(data).map_err(Failure::failed),
            None => OfflineState::open(config)
                .and_then(|state| state.leave(config, reason.clone()))
                .map_err(offline),
        })?;
    let shown = if arguments.json {
        let data = serde_json::to_value(&departure).map_err(Failure::failed)?;
        output::render_json(&data)
    } else {
        said(&departure)
    };
    output::print(&shown).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn said(departure: &Departure) -> String {
    let peer = departure.peer_id;
    match &departure.not_told {
        None if departure.ends_by_operator => format!(
            "left the parent, which was told; the keys of peer {peer} are destroyed. There a peering ends by its \
             operators alone: ask them to revoke peer {peer}, whose capabilities say that it has left\n"
        ),
        None => format!("left the parent, which was told; the keys of peer {peer} are destroyed\n"),
        Some(why) => format!(
            "left the parent; the keys of peer {peer} are destroyed. The parent was not told ({why}): ask its operator \
             to revoke peer {peer}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_was_not_told_is_said_so() {
        let peer_id = powernode_satellite::base::id::PeerId::from_uuid(uuid::Uuid::nil());
        let untold = Departure {
            peer_id,
            not_told: Some("no tunnel".to_owned()),
            ends_by_operator: false,
        };
        assert!(said(&untold).contains("was not told (no tunnel)"));
        let told = Departure {
            peer_id,
            not_told: None,
            ends_by_operator: false,
        };
        assert!(said(&told).contains("was told") && !said(&told).contains("revoke"));
        let declared = Departure {
            ends_by_operator: true,
            ..told
        };
        assert!(said(&declared).contains("was told") && said(&declared).contains("revoke peer"));
    }
}
