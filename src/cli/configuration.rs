//! How a program's configuration reads on a terminal: every key with its value as TOML, and where
//! the value comes from.

use std::fmt::Write as _;

use crate::process::config::loader::Settings;

/// The text of `config show`.
pub fn show(settings: &Settings) -> String {
    let mut text = String::new();
    for (path, value) in settings.effective() {
        // Writing to a String cannot fail.
        let _ = match value {
            Some((value, origin)) => writeln!(text, "{path} = {value}  # {origin}"),
            None => writeln!(text, "# {path} is not set"),
        };
    }
    text
}
