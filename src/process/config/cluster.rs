//! The key of the hook that takes what a cluster member is given: an executable and its arguments, as they
//! are passed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::key::{DurationBetween, Fallback, Form, Key, Line, ListOf, Raw, Refusal};
use super::loader::{ConfigError, Settings};
use crate::process::hook::Hook;

/// Most words of a hook's command line: who needs more writes a script.
const HOOK_WORDS_MAX: usize = 16;

/// Longest word of it, in characters.
const HOOK_WORD_MAX_CHARS: usize = 1_024;

/// Longest time that a hook may have: it may fetch and start the cluster's software.
const HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// The section's heading.
pub const SECTION: (&str, &str) = (
    "cluster",
    "What the parent hands over to a member of its cluster with the join.",
);

/// The hook, where there is one.
pub fn hook(settings: &Settings) -> Result<Option<Hook>, ConfigError> {
    let timeout = settings.required(&HOOK_TIMEOUT)?;
    let mut words = settings.required(&HOOK)?.into_iter();
    Ok(words.next().map(|program| Hook {
        program: PathBuf::from(program),
        arguments: words.collect(),
        timeout,
    }))
}

/// Words, the first of which is an absolute path.
struct CommandLine(ListOf<Line>);

impl Form<Vec<String>> for CommandLine {
    fn read(&self, raw: &Raw) -> Result<Vec<String>, Refusal> {
        let words = self.0.read(raw)?;
        if words
            .first()
            .is_some_and(|program| !Path::new(program).is_absolute())
        {
            return Err(Refusal::new("does not begin with an absolute path"));
        }
        Ok(words)
    }

    fn write(&self, value: &Vec<String>) -> String {
        self.0.write(value)
    }

    fn allowed(&self) -> String {
        format!(
            "a list of an executable's absolute path and at most {} arguments",
            HOOK_WORDS_MAX - 1
        )
    }
}

pub(super) static HOOK: Key<Vec<String>> = Key {
    path: "cluster.hook",
    form: &CommandLine(ListOf {
        item: Line {
            max_chars: HOOK_WORD_MAX_CHARS,
        },
        least: 0,
        most: HOOK_WORDS_MAX,
    }),
    default: Fallback::Value(""),
    doc: "Executable and arguments that get it as JSON on standard input, without a shell and with PATH alone in the\nenvironment: hook = [\"/usr/local/bin/join-cluster\", \"--quiet\"]. It is called until it has ended with 0 once, so that\na crash in between calls it again: `idempotency_key` in the JSON is the same each time. Empty: it is kept.",
    discreet: false,
};

pub(super) static HOOK_TIMEOUT: Key<Duration> = Key {
    path: "cluster.hook_timeout",
    form: &DurationBetween(Duration::from_secs(1), HOOK_TIMEOUT_MAX),
    default: Fallback::Value("60s"),
    doc: "How long the hook may take before it is killed with all that it has started, and called again later.",
    discreet: false,
};
