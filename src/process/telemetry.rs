//! Logs: where they go, in which form, and from which level on.
//!
//! The level says what an operator has to do about a line:
//! - `error`: act. Something will not get better by itself; the line says what to do.
//! - `warn`: nothing yet. Something is degraded and being worked on, and there is a line when it is over.
//! - `info`: nothing. A state has changed: joined, connected, renewed, suspended. An idle daemon
//!   writes none.
//! - `debug`: for the one who looks for a fault: each attempt, each request.
//! - `trace`: for the one who looks at a protocol: each message. Release builds have none.
//!
//! Ids are fields (`peer`, `session`), texts are constant. Secrets have no `Display` and no field.
//! A filter such as `debug` speaks of this program; libraries stay at `warn` unless they are named
//! (`info,quinn=debug`).

#[cfg(panic = "unwind")]
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::panic::PanicHookInfo;
use std::str::FromStr;

use thiserror::Error;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

use super::environment::Environment;
use super::log_lines::{Form, Lines};
use super::supervisor::panic_message;
use crate::base::limit::foreign_text;

/// The crate's own target, for which a filter without a target is meant.
const OWN_TARGET: &str = "powernode_satellite";

/// Its warnings tell of every address that a box without network cannot send to, once per dial. The
/// satellite says that itself, once per outage; here it stays silent below errors unless named.
const UDP_TARGET: &str = "quinn_udp";

/// Longest filter, in characters: some twenty targets.
const FILTER_MAX_CHARS: usize = 1_000;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, journald where standard error is the journal's, else JSON.
    #[default]
    Auto,
    /// For people; coloured on a terminal unless `NO_COLOR` is set.
    Human,
    /// One JSON object per line.
    Json,
    /// The journal's native fields.
    Journald,
}

/// A level for this program, and levels for named targets.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter {
    text: String,
    targets: Targets,
}

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a log filter; write a level (error, warn, info, debug, trace, off) and, if need be, targets: info,quinn=debug"
)]
pub struct InvalidLogFilter {
    text: String,
}

/// A text that is no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a log format; write auto, human, json or journald")]
pub struct InvalidLogFormat {
    text: String,
}

/// Why logging could not begin.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The journal was asked for by name but is not there.
    #[error(
        "log.format is journald, but the journal cannot be reached; start systemd-journald or set log.format to auto"
    )]
    Journal(#[source] io::Error),
    /// Something else in this process logs already.
    #[error(
        "logging has already been set up in this process; this is a defect of the program, please report it"
    )]
    AlreadySet(#[source] TryInitError),
}

/// Changes the filter while the program runs.
#[derive(Debug, Clone)]
pub struct LogControl {
    filter: reload::Handle<Targets, Registry>,
}

/// Sets up logs on standard error, and has panics logged like everything else.
pub fn init(
    filter: &LogFilter,
    format: LogFormat,
    environment: &Environment,
) -> Result<LogControl, TelemetryError> {
    let (targets, handle) = reload::Layer::new(filter.targets.clone());
    let surroundings = Surroundings::look(environment);
    let output: Box<dyn Layer<_> + Send + Sync> = match surroundings.resolve(format) {
        LogFormat::Human if surroundings.colours => Lines(Form::Coloured).boxed(),
        LogFormat::Human => Lines(Form::Plain).boxed(),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(layer) => layer.boxed(),
            Err(error) if format == LogFormat::Journald => return Err(TelemetryError::Journal(error)),
            Err(_) => Lines(Form::Json).boxed(),
        },
        LogFormat::Json | LogFormat::Auto => Lines(Form::Json).boxed(),
    };
    tracing_subscriber::registry()
        .with(targets)
        .with(output)
        .try_init()
        .map_err(TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(LogControl { filter: handle })
}

impl LogControl {
    /// Logs by this filter from now on.
    pub fn set_filter(&self, filter: &LogFilter) {
        if let Err(error) = self.filter.reload(filter.targets.clone()) {
            tracing::warn!(%error, "the log filter could not be changed; restart the daemon to change it");
        }
    }
}

impl FromStr for LogFilter {
    type Err = InvalidLogFilter;

    fn from_str(text: &str) -> Result<Self, InvalidLogFilter> {
        let invalid = || InvalidLogFilter {
            text: foreign_text(text),
        };
        if text.trim().is_empty() || text.chars().count() > FILTER_MAX_CHARS {
            return Err(invalid());
        }
        let mut own = None;
        let mut named = Vec::new();
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None => {
                    let level = level_of(part).ok_or_else(invalid)?;
                    if own.replace(level).is_some() {
                        return Err(invalid());
                    }
                }
                Some((target, level)) if is_target(target.trim()) => {
                    let level = level_of(level.trim()).ok_or_else(invalid)?;
                    named.push((target.trim(), level));
                }
                Some(_) => return Err(invalid()),
            }
        }
        let own = own.unwrap_or(LevelFilter::INFO);
        let targets = Targets::new()
            .with_default(own.min(LevelFilter::WARN))
            .with_target(OWN_TARGET, own)
            .with_target(UDP_TARGET, own.min(LevelFilter::ERROR))
            .with_targets(named);
        Ok(Self {
            text: text.to_owned(),
            targets,
        })
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl LogFormat {
    /// All of them, by name.
    const NAMES: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("human", Self::Human),
        ("json", Self::Json),
        ("journald", Self::Journald),
    ];
}

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;

    fn from_str(text: &str) -> Result<Self, InvalidLogFormat> {
        let known = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        known.map(|(_, format)| format).ok_or_else(|| InvalidLogFormat {
            text: foreign_text(text),
        })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
            Self::Journald => "journald",
        })
    }
}

/// What standard error is.
#[derive(Debug, Clone, Copy)]
struct Surroundings {
    terminal: bool,
    journal: bool,
    colours: bool,
}

impl Surroundings {
    fn look(environment: &Environment) -> Self {
        let terminal = io::stderr().is_terminal();
        // The link stands for the open file itself, whatever it is.
        let identity = std::fs::metadata("/proc/self/fd/2").map(|file| (file.dev(), file.ino()));
        Self {
            terminal,
            journal: identity.is_ok_and(|file| is_journal(environment.text("JOURNAL_STREAM"), file)),
            colours: terminal && environment.get("NO_COLOR").is_none(),
        }
    }

    fn resolve(self, format: LogFormat) -> LogFormat {
        match format {
            LogFormat::Auto if self.terminal => LogFormat::Human,
            LogFormat::Auto if self.journal => LogFormat::Journald,
            LogFormat::Auto => LogFormat::Json,
            LogFormat::Human | LogFormat::Json | LogFormat::Journald => format,
        }
    }
}

/// `JOURNAL_STREAM` is `device:inode` of the stream that the service manager gave the process; it
/// is inherited by children whose standard error may be something else.
fn is_journal(variable: Option<&str>, (device, inode): (u64, u64)) -> bool {
    variable == Some(format!("{device}:{inode}").as_str())
}

fn level_of(text: &str) -> Option<LevelFilter> {
    if text.eq_ignore_ascii_case("off") {
        return Some(LevelFilter::OFF);
    }
    // Numbers are levels to the library, too; a person who writes `5` may mean anything.
    text.bytes()
        .all(|byte| byte.is_ascii_alphabetic())
        .then(|| text.parse::<Level>().ok().map(LevelFilter::from_level))
        .flatten()
}

fn is_target(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

/// Logs a panic with its place, within the span of the task in which it happened.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic_message(panic.payload());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // Where panics abort there are no tables by which the way up the stack could be found.
    #[cfg(panic = "unwind")]
    {
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            tracing::error!(message, place, %trace, "panic");
            return;
        }
    }
    tracing::error!(message, place, "panic");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(filter: &str, target: &str, level: Level) -> bool {
        let filter: LogFilter = filter.parse().unwrap();
        filter.targets.would_enable(target, &level)
    }

    #[test]
    fn a_level_speaks_of_this_program() {
        assert!(enabled("debug", "powernode_satellite::tunnel", Level::DEBUG));
        assert!(!enabled("debug", "quinn", Level::INFO));
        assert!(enabled("debug", "quinn", Level::WARN));
        assert!(
            !enabled("error", "quinn", Level::WARN),
            "not louder than this program"
        );
        assert!(!enabled("debug", "quinn_udp", Level::WARN));
        assert!(enabled("info,quinn_udp=warn", "quinn_udp", Level::WARN));
    }

    #[test]
    fn targets_are_set_apart() {
        assert!(enabled("warn,quinn=trace", "quinn::endpoint", Level::TRACE));
        assert!(!enabled("warn,quinn=trace", "powernode_satellite", Level::INFO));
        assert!(enabled(
            "powernode_satellite::wire=trace",
            "powernode_satellite::wire",
            Level::TRACE
        ));
        assert!(enabled(
            "powernode_satellite::wire=trace",
            "powernode_satellite::store",
            Level::INFO
        ));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for bad in [
            "",
            " ",
            "loud",
            "5",
            "info,debug",
            "quinn=",
            "=info",
            "info,,",
            "a b=info",
        ] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
        assert!("x".repeat(FILTER_MAX_CHARS + 1).parse::<LogFilter>().is_err());
    }

    #[test]
    fn auto_looks_at_standard_error() {
        let resolved = |terminal, journal| {
            Surroundings {
                terminal,
                journal,
                colours: false,
            }
            .resolve(LogFormat::Auto)
        };
        assert_eq!(resolved(true, false), LogFormat::Human);
        assert_eq!(resolved(false, true), LogFormat::Journald);
        assert_eq!(resolved(false, false), LogFormat::Json);
    }

    #[test]
    fn the_journal_is_known_by_its_stream() {
        assert!(is_journal(Some("8:1234"), (8, 1234)));
        assert!(
            !is_journal(Some("8:1234"), (8, 1235)),
            "inherited by a child that writes elsewhere"
        );
        assert!(!is_journal(None, (8, 1234)));
    }

    #[test]
    fn formats_by_name() {
        for (name, format) in LogFormat::NAMES {
            assert_eq!(name.parse(), Ok(format));
            assert_eq!(format.to_string(), name);
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
