//! The log as it is read: verified as a whole, or page by page for tables and excerpts. One state of
//! the store at a time, bounded memory. All calls block on the disk.

use std::ops::ControlFlow;

use super::rows::{AUDIT_ENDS, AUDIT_ROWS};
use crate::audit::chain::{AuditRow, ChainBreak, RowPin, Verified, Verifier};
use crate::audit::entry::{AuditEntry, ExportedEntry};
use crate::audit::query::{AuditPage, AuditQuery, Order, PAGE_MAX_ROWS};
use crate::base::limit::error_chain;
use crate::store::database::{Database, Direction, StoreError};
use crate::store::record::Only;

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
