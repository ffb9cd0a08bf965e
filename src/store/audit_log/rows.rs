//! The log's two tables, and the one way in which they change: rows at the end, and the oldest ones
//! removed, in the transaction of the caller. Knows no queue and no clock.

use std::ops::ControlFlow;

use crate::audit::chain::{AuditRow, ChainEnds, LogId};
use crate::audit::entry::AuditEntry;
use crate::audit::retention::{Occasion, PRUNE_MAX_ROWS, Retention};
use crate::base::time::UnixTime;
use crate::store::database::{Direction, Reader, StoreError, Table, Writer};
use crate::store::record::{Only, Record, RecordError};

/// The rows, by their numbers.
pub const AUDIT_ROWS: Table<u64, AuditRow> = Table::new("audit_rows");

/// Where they begin and end.
pub const AUDIT_ENDS: Table<Only, ChainEnds> = Table::new("audit_ends");

impl Record for AuditRow {
    const VERSION: u8 = 1;
}

impl Record for ChainEnds {
    const VERSION: u8 = 1;
}

/// Appends entries. `log` is the id of the log that begins where there is none yet.
pub(super) fn append(
    w: &mut Writer<'_>,
    entries: &[AuditEntry],
    log: LogId,
) -> Result<ChainEnds, StoreError> {
    let mut ends = w
        .get(&AUDIT_ENDS, &Only)?
        .unwrap_or_else(|| ChainEnds::begin(log));
    for entry in entries {
        let bytes = entry.to_bytes().map_err(|source| {
            StoreError::record(
                AUDIT_ROWS.name(),
                ends.next.to_string(),
                RecordError::Unencodable(source),
            )
        })?;
        let row = ends.append(bytes);
        w.put(&AUDIT_ROWS, &row.number, &row)?;
    }
    w.put(&AUDIT_ENDS, &Only, &ends)?;
    Ok(ends)
}

/// Removes what has been kept long enough; how many rows that were.
pub(super) fn prune(
    w: &mut Writer<'_>,
    retention: Retention,
    occasion: Occasion,
    now: UnixTime,
) -> Result<u64, StoreError> {
    let Some(mut ends) = w.get(&AUDIT_ENDS, &Only)? else {
        return Ok(0);
    };
    let oldest = oldest(w, &ends)?;
    let times = oldest.iter().map(|row| {
        AuditEntry::from_bytes(&row.as_ref()?.entry)
            .ok()
            .map(|entry| entry.at)
    });
    let due = retention.due(&ends, occasion, now, times);
    let Some(last) = usize::try_from(due).ok().and_then(|due| due.checked_sub(1)) else {
        return Ok(0);
    };
    for number in ends.first..ends.first + due {
        w.remove(&AUDIT_ROWS, &number)?;
    }
    ends.first += due;
    ends.before_first = oldest.get(last).and_then(Option::as_ref).map(|row| row.hash);
    w.put(&AUDIT_ENDS, &Only, &ends)?;
    Ok(due)
}

/// The oldest rows by number, as many as one transaction may remove; `None` for a number whose row is
/// gone or is damaged.
fn oldest(r: &Reader<'_>, ends: &ChainEnds) -> Result<Vec<Option<AuditRow>>, StoreError> {
    let last = ends.next.min(ends.first + PRUNE_MAX_ROWS);
    let mut rows = Vec::new();
    r.walk(
        &AUDIT_ROWS,
        Some(&ends.first),
        Direction::Forward,
        |number, row| {
            if number >= last {
                return ControlFlow::Break(());
            }
            while ends.first + (rows.len() as u64) < number {
                rows.push(None);
            }
            rows.push(row.ok().filter(|row| row.number == number));
            ControlFlow::Continue(())
        },
    )?;
    while ends.first + (rows.len() as u64) < last {
        rows.push(None);
    }
    Ok(rows)
}
