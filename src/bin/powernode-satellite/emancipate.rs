//! `emancipate`: takes the parent's operator rights back; the peering goes on.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::grants::admin::EMANCIPATE_PATH;
use serde_json::json;

use crate::arguments::Parting;
use crate::owner::{ask, confirmed};

const QUESTION: &str = "The parent's operators lose all rights on this box that come of its operator grant, at once; \
    their open connections are cut. The peering and the heartbeat go on. Grants that you made by hand stay.";

/// Emancipates this box.
pub fn emancipate(config: &SatelliteConfig, arguments: &Parting) -> Result<ExitCode, Failure> {
    if !confirmed(arguments.yes, QUESTION)? {
        return Err(Failure::new(Code::Failed, "nothing was changed"));
    }
    let body = json!({ "reason": arguments.reason.clone().unwrap_or_default() });
    let (data, running) = ask(config, &Method::POST, EMANCIPATE_PATH, Some(&body))?;
    if arguments.json {
        output::print(&output::render_json(&data)).map_err(Failure::failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let revoked = data["revoked"].as_array().map_or(0, Vec::len);
    let told = match (revoked, running) {
        (0, _) => "the parent had no operator grant that was still good; nothing was changed\n".to_owned(),
        (_, true) => format!(
            "emancipated: grants of the parent's operators that were revoked: {revoked}. Their connections are cut; the \
             parent is told. The peering goes on\n"
        ),
        (_, false) => format!(
            "emancipated: grants of the parent's operators that were revoked: {revoked}. The parent is told when the \
             satellite runs again\n"
        ),
    };
    output::print(&told).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}
