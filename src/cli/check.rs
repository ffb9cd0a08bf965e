//! How lists of checks look, and what they make the command end with, for `doctor` and `self-check`: one line
//! each, its advice below it.

use serde::Serialize;
use serde_json::json;

use crate::base::check::{Check, Verdict, worst};

use super::failure::{Code, Failure};
use super::output::{self, Cell, Style, Tone};

/// This build's version, which both programs share.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

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

impl Outcome {
    fn of(check: &Check, needed: &[&str]) -> Self {
        match check.verdict {
            Verdict::Ok => Self::Ok,
            Verdict::Fail if needed.contains(&check.name.as_str()) => Self::Failed,
            Verdict::Warn | Verdict::Fail => Self::Warning,
        }
    }
}

/// Tells what `self-check` has found; a failure where one of the checks failed without which the program
/// does not run.
pub fn tell_self_check(checks: &[Check], needed: &[&str], json: bool) -> Result<(), Failure> {
    let outcome = |check: &Check| Outcome::of(check, needed);
    let usable = checks.iter().all(|check| outcome(check) != Outcome::Failed);
    let text = if json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| json!({ "name": check.name, "outcome": outcome(check), "detail": detail(check) }))
            .collect();
        output::render_json(&json!({ "version": RELEASE, "usable": usable, "checks": checks }))
    } else {
        render(checks, Style::of_stdout())
    };
    output::print(&text).map_err(Failure::failed)?;
    if usable {
        return Ok(());
    }
    let message = format!("version {RELEASE} cannot run with what is here; nothing was changed");
    Err(Failure::new(Code::Failed, message))
}

/// Tells what `doctor` has found; a failure, in these words, where one of the checks failed.
pub fn tell_doctor(checks: &[Check], failed: &str, json: bool) -> Result<(), Failure> {
    let verdict = worst(checks);
    let text = if json {
        output::render_json(&json!({ "version": RELEASE, "verdict": verdict, "checks": checks }))
    } else {
        render(checks, Style::of_stdout())
    };
    output::print(&text).map_err(Failure::failed)?;
    match verdict {
        Verdict::Ok | Verdict::Warn => Ok(()),
        Verdict::Fail => Err(Failure::new(Code::Failed, failed)),
    }
}

fn detail(check: &Check) -> String {
    match &check.advice {
        Some(advice) => format!("{}; {advice}", check.finding),
        None => check.finding.clone(),
    }
}

fn render(checks: &[Check], style: Style) -> String {
    let mut pairs: Vec<(&str, Option<Cell>)> = Vec::new();
    for check in checks {
        let (word, tone) = match check.verdict {
            Verdict::Ok => ("ok", Tone::Good),
            Verdict::Warn => ("warn", Tone::Warn),
            Verdict::Fail => ("FAIL", Tone::Bad),
        };
        let cell = Cell::toned(format!("{word:4} {}", check.finding), tone);
        pairs.push((&check.name, Some(cell)));
        if let Some(advice) = &check.advice {
            pairs.push(("", Some(Cell::toned(format!("  -> {advice}"), Tone::Plain))));
        }
    }
    output::render_pairs(&pairs, style)
}
