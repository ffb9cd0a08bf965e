//! `self-check`: whether this program can run with the configuration and the state that are there.
//! Reads, writes nothing, connects to nothing; the old daemon may run meanwhile.

use std::path::Path;
use std::process::ExitCode;

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Cell, Style, Tone};
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::machine::renewal::CertificateStanding;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::satellite::membership_store::{CopyStanding, Examination, MembershipStore, SCHEMA};
use powernode_satellite::satellite::parent_client::RELEASE;
use powernode_satellite::store::state_key::StateKey;
use serde::Serialize;
use serde_json::json;

/// How a check came out. Names are the `--json` output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok,
    /// The program runs all the same.
    Warning,
    /// The program does not run.
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    outcome: Outcome,
    detail: String,
}

/// Checks, tells, and ends with 1 when this program cannot run.
pub fn self_check(
    file: &ConfigFile,
    flags: &Flags,
    environment: &Environment,
    json: bool,
) -> Result<ExitCode, Failure> {
    let checks = match SatelliteConfig::load(file, flags, environment) {
        Ok((config, _)) => {
            let mut checks = vec![Check::new("configuration", Outcome::Ok, "good")];
            match StateKey::read(&config.state_key) {
                Ok(key) => checks.extend(check_state(&config.state_dir, key.as_ref())),
                Err(error) => checks.push(Check::new("state key", Outcome::Failed, error_chain(&error))),
            }
            checks
        }
        // Where the state is, only the configuration says.
        Err(error) => vec![Check::new("configuration", Outcome::Failed, error_chain(&error))],
    };
    let usable = checks.iter().all(|check| check.outcome != Outcome::Failed);
    let text = if json {
        output::render_json(&json!({ "version": RELEASE, "usable": usable, "checks": checks }))
    } else {
        render(&checks, Style::of_stdout())
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

fn check_state(directory: &Path, key: Option<&StateKey>) -> Vec<Check> {
    let found = match MembershipStore::examine(directory, key) {
        Ok(found) => found,
        Err(error) => return vec![Check::new("store", Outcome::Failed, error_chain(&error))],
    };
    let mut checks = vec![store(&found, directory), second_copy(&found)];
    match &found.loaded.state {
        None => checks.push(Check::new("membership", Outcome::Ok, "not invited yet")),
        Some(state) => {
            checks.push(Check::new(
                "membership",
                Outcome::Ok,
                state.name().replace('_', " "),
            ));
            checks.extend(certificate(state, found.loaded.latest_known_time()));
        }
    }
    checks
}

fn store(found: &Examination, directory: &Path) -> Check {
    let directory = directory.display();
    if let Some(recovered) = &found.loaded.recovered {
        return Check::new("store", Outcome::Warning, recovered.clone());
    }
    let Some(size) = found.size_bytes else {
        return Check::new(
            "store",
            Outcome::Ok,
            format!("none in {directory} yet; the first run makes it"),
        );
    };
    let holder = found
        .holder
        .as_ref()
        .map_or_else(String::new, |holder| format!(", in use by {holder}"));
    Check::new(
        "store",
        Outcome::Ok,
        format!(
            "whole, {} KiB in {directory}, readable with schema version {}{holder}",
            size / 1024,
            SCHEMA.version
        ),
    )
}

fn second_copy(found: &Examination) -> Check {
    let (outcome, detail) = match &found.copy {
        CopyStanding::Absent if found.loaded.state.is_none() => {
            (Outcome::Ok, "none yet; it comes with an invitation".to_owned())
        }
        CopyStanding::Absent => (Outcome::Warning, "missing; a start writes it anew".to_owned()),
        CopyStanding::Same => (Outcome::Ok, "whole, the same as the store".to_owned()),
        CopyStanding::Different => (
            Outcome::Warning,
            "whole, but not the same as the store; a start writes it anew".to_owned(),
        ),
        CopyStanding::Damaged(damage) => (Outcome::Warning, format!("{damage}; a start writes it anew")),
        CopyStanding::Used => (
            Outcome::Warning,
            "whole, and all that is left of the membership".to_owned(),
        ),
    };
    Check::new("second copy", outcome, detail)
}

fn certificate(state: &JoinState, latest: Option<UnixTime>) -> Option<Check> {
    let identity = &state.membership()?.identity;
    let clock = Clock::start(BUILD_TIME);
    if let Some(latest) = latest {
        clock.restore_parent_time(latest);
    }
    let standing = CertificateStanding::judge(
        identity.not_before,
        identity.certificate.not_after,
        clock.trusted().now,
    );
    let outcome = match standing {
        CertificateStanding::Valid | CertificateStanding::RenewalDue => Outcome::Ok,
        CertificateStanding::NotYetValid
        | CertificateStanding::ExpiresSoon
        | CertificateStanding::Expired => Outcome::Warning,
    };
    Some(Check::new("certificate", outcome, standing.to_string()))
}

fn render(checks: &[Check], style: Style) -> String {
    let pairs: Vec<(&str, Option<Cell>)> = checks
        .iter()
        .map(|check| {
            let (word, tone) = match check.outcome {
                Outcome::Ok => ("ok", Tone::Good),
                Outcome::Warning => ("warning", Tone::Warn),
                Outcome::Failed => ("failed", Tone::Bad),
            };
            let cell = Cell::toned(format!("{word}: {}", check.detail), tone);
            (check.name, Some(cell))
        })
        .collect();
    output::render_pairs(&pairs, style)
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name,
            outcome,
            detail: detail.into(),
        }
    }
}
