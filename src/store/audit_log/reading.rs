//! The log as it is read: verified as a whole, or page by page for tables and excerpts. One state of
//! the store at a time, bounded memory. All calls block on the disk.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::rows::{AUDIT_ENDS, AUDIT_ROWS};
use crate::audit::chain::{AuditRow, ChainBreak, InvalidPin, RowPin, Verified, Verifier};
use crate::audit::entry::{AuditEntry, ExportedEntry};
use crate::audit::query::{AuditPage, AuditQuery, InvalidQuery, Order, PAGE_MAX_ROWS};
use crate::base::limit::{error_chain, foreign_text};
use crate::store::database::{Database, Direction, StoreError};
use crate::store::record::Only;

/// Below the path under which a daemon answers: one page, `entries?since=…&limit=…`.
pub const ENTRIES: &str = "entries";

/// Below the path under which a daemon answers: the whole log is verified, `verification?noted=12:ab…`.
pub const VERIFICATION: &str = "verification";

/// What became of a verification, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the log is as it was written.
    pub whole: bool,
    /// In a sentence: what is there, or the first row that is wrong and how.
    pub said: String,
    /// Number and hash of the newest row, to be noted elsewhere.
    pub head: Option<String>,
}

/// Why a question to the log has no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Not a question.
    #[error("the audit log is asked for `entries` or `verification`, not for `{0}`")]
    Unknown(String),
    /// Of the entries.
    #[error(transparent)]
    Query(#[from] InvalidQuery),
    /// Of the verification.
    #[error(transparent)]
    Pin(#[from] InvalidPin),
    /// The disk.
    #[error("the audit log could not be read")]
    Store(#[from] StoreError),
}

/// Answers what a URL asks: `what` is the last part of its path, `query` what follows the `?`. `admit`
/// says which entries the caller may see; a verification tells nothing of them.
pub fn answer(
    database: &Database,
    what: &str,
    query: &str,
    admit: impl Fn(&AuditEntry) -> bool,
) -> Result<Value, AskError> {
    let answered = match what {
        ENTRIES => serde_json::to_value(page(database, &AuditQuery::of_url(query)?, admit)?),
        VERIFICATION => {
            let pin = query.strip_prefix("noted=").map(str::parse).transpose()?;
            serde_json::to_value(match verify(database, pin)? {
                Ok(verified) => Verification {
                    whole: true,
                    said: verified.to_string(),
                    head: verified.head,
                },
                Err(broken) => Verification {
                    whole: false,
                    said: format!("the audit log is not as it was written: {broken}"),
                    head: None,
                },
            })
        }
        other => return Err(AskError::Unknown(foreign_text(other))),
    };
    // Plain structs of texts and numbers: there is nothing in them that JSON cannot hold.
    Ok(answered.unwrap_or_default())
}

/// Goes through the whole log. The outer error is the disk's, the inner one the log's.
pub fn verify(database: &Database, pin: Option<RowPin>) -> Result<Result<Verified, ChainBreak>, StoreError> {
    database.read(|r| {
        let mut verifier = Verifier::new(r.get(&AUDIT_ENDS, &Only)?, pin);
        let mut broken = None;
        r.walk(
            &AUDIT_ROWS,
            None,
            Direction::Forward,
            |number, row| match verifier.take(number, row.as_ref().ok()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(found) => {
                    broken = Some(found);
                    ControlFlow::Break(())
                }
            },
        )?;
        Ok(match broken {
            Some(broken) => Err(broken),
            None => verifier.finish(),
        })
    })
}

/// One page of what is asked for. `admit` says what the caller may see besides.
pub fn page(
    database: &Database,
    query: &AuditQuery,
    admit: impl Fn(&AuditEntry) -> bool,
) -> Result<AuditPage, StoreError> {
    let direction = match query.order {
        Order::OldestFirst => Direction::Forward,
        Order::NewestFirst => Direction::Backward,
    };
    let mut page = AuditPage::default();
    let mut looked_at = 0;
    database.read(|r| {
        r.walk(&AUDIT_ROWS, query.from.as_ref(), direction, |number, row| {
            if looked_at == PAGE_MAX_ROWS || page.entries.len() == query.page_limit() {
                page.next = Some(number);
                return ControlFlow::Break(());
            }
            looked_at += 1;
            page.entries
                .extend(shown(number, row, |entry| query.matches(entry) && admit(entry)));
            ControlFlow::Continue(())
        })
    })?;
    Ok(page)
}

fn shown(
    number: u64,
    row: Result<AuditRow, StoreError>,
    wanted: impl Fn(&AuditEntry) -> bool,
) -> Option<ExportedEntry> {
    let row = match row {
        Ok(row) => row,
        Err(error) => return Some(ExportedEntry::unreadable(number, &error_chain(&error))),
    };
    match AuditEntry::from_bytes(&row.entry) {
        Ok(entry) => wanted(&entry).then(|| ExportedEntry::new(number, &row.hash, entry)),
        Err(error) => Some(ExportedEntry::unreadable(number, &error.to_string())),
    }
}
