//! `audit show`, `audit verify`, `audit export` of both programs: what is asked, page by page, and how it
//! is shown. Knows not where the answers come from: the daemon, or the store while none runs.

use std::io::{self, Write as _};
use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::Value;
use thiserror::Error;

use super::command_line::{Argument, Definition, Given, UsageError};
use super::failure::{Code, Failure};
use super::output::{self, Cell, Style, Table, Tone, short_duration};
use crate::audit::chain::RowPin;
use crate::audit::entry::ExportedEntry;
use crate::audit::query::{AuditPage, AuditQuery, Order, PAGE_MAX_ENTRIES};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::process::config::duration::HumaneDuration;
use crate::store::audit_log::reading::{ENTRIES, VERIFICATION, Verification};

/// Most rows that `show` puts into one table, which is held in memory; `export` has no bound.
const SHOWN_MAX: usize = 5_000;

/// What to do with the audit log.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Show the last entries, newest last
    Show {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 50)]
        last: usize,
        /// Which
        #[command(flatten)]
        filter: AuditFilter,
    },
    /// Say whether the log is as it was written; ends with 1 when it is not
    Verify {
        /// A row that was noted earlier, as `verify` printed it: finds out whether the whole log was
        /// written anew
        #[arg(long, value_name = "NUMBER:HASH")]
        noted: Option<RowPin>,
    },
    /// Print entries as JSON, one object a line, oldest first
    Export {
        /// Which
        #[command(flatten)]
        filter: AuditFilter,
    },
}

/// Which entries.
#[derive(Debug, Clone, Default, Args)]
pub struct AuditFilter {
    /// Of this peer
    #[arg(long, value_name = "PEER")]
    pub peer: Option<String>,
    /// Under this grant
    #[arg(long, value_name = "ID")]
    grant: Option<GrantId>,
    /// Of this subject of the other side
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// From then on: a time such as 2026-05-17T13:44:12Z, or how long ago, such as 72h
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Before then: a time, or how long ago
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,
}

const PEER: Argument = Argument::value("peer", "PEER", "Of this peer");
const GRANT: Argument = Argument::value("grant", "ID", "Under this grant");
const SUBJECT: Argument = Argument::value("subject", "SUBJECT", "Of this subject of the other side");
const SINCE: Argument = Argument::value(
    "since",
    "WHEN",
    "From then on: a time such as 2026-05-17T13:44:12Z, or how long ago, such as 72h",
);
const UNTIL: Argument = Argument::value("until", "WHEN", "Before then: a time, or how long ago");

/// [`AuditCommand`] for a program that reads its command line by a table.
pub const COMMANDS: &[Definition] = &[
    Definition {
        name: "show",
        about: "Show the last entries, newest last",
        arguments: &[
            Argument::value("last", "N", "How many").or("50"),
            PEER,
            GRANT,
            SUBJECT,
            SINCE,
            UNTIL,
        ],
        ..Definition::BARE
    },
    Definition {
        name: "verify",
        about: "Say whether the log is as it was written; ends with 1 when it is not",
        arguments: &[Argument::value(
            "noted",
            "NUMBER:HASH",
            "A row that was noted earlier, as `verify` printed it: finds out whether the whole log was written anew",
        )],
        ..Definition::BARE
    },
    Definition {
        name: "export",
        about: "Print entries as JSON, one object a line, oldest first",
        arguments: &[PEER, GRANT, SUBJECT, SINCE, UNTIL],
        ..Definition::BARE
    },
];

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// That time.
    At(UnixTime),
    /// So long ago.
    Ago(HumaneDuration),
}

/// A text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is neither a time such as 2026-05-17T13:44:12Z nor a span such as 72h")]
pub struct InvalidWhen(String);

impl FromStr for When {
    type Err = InvalidWhen;

    fn from_str(text: &str) -> Result<Self, InvalidWhen> {
        if let Ok(span) = text.parse() {
            return Ok(Self::Ago(span));
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| InvalidWhen(foreign_text(text)))
    }
}

impl When {
    fn at(self, now: UnixTime) -> UnixTime {
        match self {
            Self::At(time) => time,
            Self::Ago(HumaneDuration(span)) => now.minus(span),
        }
    }
}

impl AuditFilter {
    fn of(given: &Given) -> Result<Self, UsageError> {
        Ok(Self {
            peer: given.text(PEER.name)?,
            grant: given.value(GRANT.name)?,
            subject: given.text(SUBJECT.name)?,
            since: given.value(SINCE.name)?,
            until: given.value(UNTIL.name)?,
        })
    }

    fn query(&self, peer: Option<PeerId>, order: Order, now: UnixTime) -> AuditQuery {
        AuditQuery {
            peer,
            grant: self.grant,
            subject: self.subject.clone(),
            since: self.since.map(|when| when.at(now)),
            until: self.until.map(|when| when.at(now)),
            order,
            from: None,
            limit: None,
        }
    }
}

impl AuditCommand {
    /// The one of [`COMMANDS`] that is called so, with what was given.
    pub fn of(name: &str, given: &Given) -> Result<Self, UsageError> {
        Ok(match name {
            "verify" => Self::Verify {
                noted: given.value("noted")?,
            },
            "export" => Self::Export {
                filter: AuditFilter::of(given)?,
            },
            _ => Self::Show {
                last: given.required("last")?,
                filter: AuditFilter::of(given)?,
            },
        })
    }

    /// The peer that is asked for, in the words of the command line.
    pub fn asked_peer(&self) -> Option<&str> {
        match self {
            Self::Show { filter, .. } | Self::Export { filter } => filter.peer.as_deref(),
            Self::Verify { .. } => None,
        }
    }

    /// Carries the command out. `ask` answers `entries?…` and `verification?…`, the last part of a
    /// path and its query; `peer` is the peer that [`Self::asked_peer`] means.
    pub async fn execute(
        &self,
        peer: Option<PeerId>,
        now: UnixTime,
        ask: impl AsyncFn(&str, &str) -> Result<Value, Failure>,
    ) -> Result<(), Failure> {
        match self {
            Self::Show { last, filter } => {
                let last = (*last).clamp(1, SHOWN_MAX);
                let entries = newest(filter.query(peer, Order::NewestFirst, now), last, ask).await?;
                output::print(&render(&entries, Style::of_stdout())).map_err(Failure::failed)
            }
            Self::Verify { noted } => {
                let query = noted.map_or_else(String::new, |pin| format!("noted={pin}"));
                let answer = ask(VERIFICATION, &query).await?;
                let verification: Verification = serde_json::from_value(answer).map_err(Failure::failed)?;
                if !verification.whole {
                    return Err(Failure::new(Code::Failed, verification.said));
                }
                output::print(&format!("{}\n", verification.said)).map_err(Failure::failed)
            }
            Self::Export { filter } => export(filter.query(peer, Order::OldestFirst, now), ask).await,
        }
    }
}

/// The last entries, oldest of them first.
async fn newest(
    mut query: AuditQuery,
    last: usize,
    ask: impl AsyncFn(&str, &str) -> Result<Value, Failure>,
) -> Result<Vec<ExportedEntry>, Failure> {
    let mut entries = Vec::new();
    loop {
        query.limit = Some((last - entries.len()).min(PAGE_MAX_ENTRIES));
        let page = page(&query, &ask).await?;
        entries.extend(page.entries);
        query.from = page.next;
        if query.from.is_none() || entries.len() >= last {
            break;
        }
    }
    entries.reverse();
    Ok(entries)
}

/// Page after page to standard output. A reader that goes away, as `head` does, ends it.
async fn export(
    mut query: AuditQuery,
    ask: impl AsyncFn(&str, &str) -> Result<Value, Failure>,
) -> Result<(), Failure> {
    loop {
        let page = page(&query, &ask).await?;
        let mut lines = String::new();
        for entry in &page.entries {
            lines += &serde_json::to_string(entry).map_err(Failure::failed)?;
            lines.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(Failure::failed)?,
        }
        query.from = page.next;
        if query.from.is_none() {
            return Ok(());
        }
    }
}

async fn page(
    query: &AuditQuery,
    ask: &impl AsyncFn(&str, &str) -> Result<Value, Failure>,
) -> Result<AuditPage, Failure> {
    serde_json::from_value(ask(ENTRIES, &query.to_url()).await?).map_err(Failure::failed)
}

fn render(entries: &[ExportedEntry], style: Style) -> String {
    if entries.is_empty() {
        return "no entries\n".to_owned();
    }
    let mut table = Table::new(&[
        "ROW", "TIME", "ACTION", "WHO", "OBJECT", "PEER", "SOURCE", "IN", "OUT", "TOOK", "OUTCOME",
    ]);
    for entry in entries {
        table.row(vec![
            entry.row.into(),
            entry.at.into(),
            entry.action.as_str().into(),
            who(entry).into(),
            entry.object.as_deref().unwrap_or_default().into(),
            entry
                .federation_peer_id
                .map(|peer| peer.to_string())
                .unwrap_or_default()
                .into(),
            entry.source.as_deref().unwrap_or_default().into(),
            bytes(entry.bytes_in).into(),
            bytes(entry.bytes_out).into(),
            took(entry.duration_ms).into(),
            outcome(entry),
        ]);
    }
    table.render(style)
}

/// The person, and for which subject of the other side.
fn who(entry: &ExportedEntry) -> String {
    match (&entry.actor, &entry.remote_subject) {
        (Some(actor), Some(subject)) => format!("{actor} ({subject})"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    }
}

fn outcome(entry: &ExportedEntry) -> Cell {
    let tone = match entry.outcome.as_str() {
        "done" => Tone::Good,
        "refused" | "cut" => Tone::Warn,
        _ => Tone::Bad,
    };
    let text = match &entry.reason {
        Some(reason) => format!("{}: {reason}", entry.outcome),
        None => entry.outcome.clone(),
    };
    Cell::toned(text, tone)
}

fn bytes(count: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = KIB * KIB;
    match count {
        0 => String::new(),
        1..KIB => format!("{count} B"),
        KIB..MIB => format!("{} KiB", count / KIB),
        _ => format!("{} MiB", count / MIB),
    }
}

fn took(millis: u64) -> String {
    match millis {
        0 => String::new(),
        1..1_000 => format!("{millis}ms"),
        _ => short_duration(std::time::Duration::from_millis(millis)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use serde_json::json;

    use super::*;
    use crate::audit::chain::RowHash;
    use crate::audit::entry::AuditEntry;
    use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
    use crate::base::time::TrustedTime;

    fn exported(row: u64) -> ExportedEntry {
        let event = AuditEvent {
            actor: Some("alice".into()),
            remote_subject: Some("parent-operator@x".into()),
            object: Some("ssh".into()),
            source: "192.0.2.7:0".parse().ok(),
            bytes_in: 2_048,
            duration: std::time::Duration::from_millis(250),
            outcome: AuditOutcome::Cut("the grant was revoked\u{1b}[2J".into()),
            ..AuditEvent::of(AuditAction::ServiceClosed)
        };
        let time = TrustedTime {
            now: UnixTime::from_seconds(1_800_000_000),
            doubt: None,
        };
        ExportedEntry::new(row, &RowHash::from_bytes([0; 32]), AuditEntry::new(&event, time))
    }

    #[test]
    fn a_row_says_who_what_and_how_it_ended() {
        let table = render(&[exported(7)], Style::PLAIN);
        let line = table.lines().nth(1).unwrap();
        for part in [
            "7    2027-01-15T08:00:00Z  service_closed  alice (parent-operator@x)  ssh",
            "192.0.2.7 ",
            "2 KiB",
            "250ms",
            "cut: the grant was revoked",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!table.contains('\u{1b}'));
    }

    #[test]
    fn times_are_points_or_spans() {
        let now = UnixTime::from_seconds(1_000_000);
        let at = |text: &str| text.parse::<When>().map(|when| when.at(now).as_seconds());
        assert_eq!(at("72h"), Ok(1_000_000 - 259_200));
        assert_eq!(at("1970-01-01T00:01:00Z"), Ok(60));
        assert!(at("yesterday").unwrap_err().to_string().contains("72h"));
    }

    #[tokio::test]
    async fn the_last_entries_are_gathered_over_pages_newest_last() {
        let asked = RefCell::new(Vec::new());
        let ask = async |what: &str, query: &str| {
            asked.borrow_mut().push(format!("{what}?{query}"));
            let from = AuditQuery::of_url(query).unwrap().from.unwrap_or(9);
            // Two rows a page, of which one is asked for.
            Ok(json!(AuditPage {
                entries: vec![exported(from)],
                next: (from > 2).then(|| from - 2),
            }))
        };
        let query = AuditQuery {
            order: Order::NewestFirst,
            ..AuditQuery::default()
        };
        let entries = newest(query, 3, ask).await.unwrap();
        let rows: Vec<_> = entries.iter().map(|entry| entry.row).collect();
        assert_eq!(rows, [5, 7, 9]);
        assert_eq!(asked.borrow()[0], "entries?order=newest&limit=3");
        assert_eq!(asked.borrow().len(), 3);
    }
}
