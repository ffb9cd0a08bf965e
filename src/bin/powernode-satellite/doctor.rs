//! `doctor`: whether this satellite would work here, and what to do where not.

use std::process::ExitCode;

use powernode_satellite::cli::check;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Style};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::doctor::{self, Verdict};
use powernode_satellite::satellite::parent_client::RELEASE;
use serde_json::json;

use crate::run::block_on;
use crate::status;

/// Looks, tells, and ends with 1 when it would not work.
pub fn doctor(config: &SatelliteConfig, json: bool) -> Result<ExitCode, Failure> {
    let checks = block_on(async {
        let running = status::of_daemon(config).await;
        let running = running.as_ref().map(Option::as_ref).map_err(Failure::message);
        doctor::examine(config, running).await
    })?;
    let verdict = doctor::worst(&checks);
    let text = if json {
        let value = json!({ "version": RELEASE, "verdict": verdict, "checks": checks });
        output::render_json(&value)
    } else {
        check::render(&checks, Style::of_stdout())
    };
    output::print(&text).map_err(Failure::failed)?;
    match verdict {
        Verdict::Ok | Verdict::Warn => Ok(ExitCode::SUCCESS),
        Verdict::Fail => Err(Failure::new(
            Code::Failed,
            "a satellite would not work here as it is; see the failures above",
        )),
    }
}
