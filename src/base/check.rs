//! What `doctor` and `self-check` of either program find: a verdict, what was found, and what to do about it.
//! Knows nothing of what is looked at.

use serde::Serialize;

/// How a check came out. Names are the `--json` output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works all the same, or worse than it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One check's outcome. Field names are the `--json` output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: impl Into<String>, finding: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, finding, None)
    }

    /// It works, but somebody should look.
    pub fn warn(name: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, finding, Some(advice.into()))
    }

    /// It does not work. An empty advice is none: some errors bring their own.
    pub fn fail(name: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = advice.into();
        Self::new(
            name,
            Verdict::Fail,
            finding,
            (!advice.is_empty()).then_some(advice),
        )
    }

    fn new(
        name: impl Into<String>,
        verdict: Verdict,
        finding: impl Into<String>,
        advice: Option<String>,
    ) -> Self {
        Self {
            name: name.into(),
            verdict,
            finding: finding.into(),
            advice,
        }
    }
}

/// The worst of the verdicts.
pub fn worst(checks: &[Check]) -> Verdict {
    checks
        .iter()
        .map(|check| check.verdict)
        .max()
        .unwrap_or(Verdict::Ok)
}
