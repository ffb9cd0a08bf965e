//! How lists of checks look, for `doctor` and `self-check`: one line each, its advice below it.

use crate::satellite::doctor::{Check, Verdict};

use super::output::{self, Cell, Style, Tone};

/// The checks as a person reads them.
pub fn render(checks: &[Check], style: Style) -> String {
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
