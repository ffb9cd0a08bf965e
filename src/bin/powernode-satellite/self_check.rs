//! `self-check`: whether this program can run with the configuration and the state that are there.
//! Reads, writes nothing, connects to nothing; the old daemon may run meanwhile.

use std::process::ExitCode;

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::cli::check;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Style};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::satellite::doctor::{Check, Verdict, state};
use powernode_satellite::satellite::parent_client::RELEASE;
use powernode_satellite::store::state_key::StateKey;
use serde::Serialize;
use serde_json::json;

/// How a check came out, as far as starting is concerned. Names are the `--json` output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok,
    /// The program runs all the same.
    Warning,
    /// The program does not run.
    Failed,
}

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
    let usable = checks.iter().all(|check| outcome(check) != Outcome::Failed);
    let text = if json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| json!({ "name": check.name, "outcome": outcome(check), "detail": detail(check) }))
            .collect();
        output::render_json(&json!({ "version": RELEASE, "usable": usable, "checks": checks }))
    } else {
        check::render(&checks, Style::of_stdout())
    };
    output::print(&text).map_err(Failure::failed)?;
    if usable {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::new(
            Code::Failed,
            format!("version {RELEASE} cannot run with what is here; nothing was changed"),
        ))
    }
}

fn detail(check: &Check) -> String {
    match &check.advice {
        Some(advice) => format!("{}; {advice}", check.finding),
        None => check.finding.clone(),
    }
}

fn outcome(check: &Check) -> Outcome {
    match check.verdict {
        Verdict::Ok => Outcome::Ok,
        Verdict::Fail if NEEDED.contains(&check.name.as_str()) => Outcome::Failed,
        Verdict::Warn | Verdict::Fail => Outcome::Warning,
    }
}

/// The time that certificates are judged by, on a box that knows this time to have passed.
pub fn time_after(latest: Option<UnixTime>) -> UnixTime {
    let clock = Clock::start(BUILD_TIME);
    if let Some(latest) = latest {
        clock.restore_parent_time(latest);
    }
    clock.trusted().now
}
