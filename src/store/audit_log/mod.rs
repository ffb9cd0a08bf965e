//! Takes audit events in and keeps them. Knows how they are stored, not what they mean.
//!
//! [`AuditLog::record`] puts an event into a bounded queue and returns; the [`writer`] gathers what
//! comes within a second into one transaction. When the queue is full, events are counted instead, and
//! an entry says how many; so are refusals of a caller who causes too many. [`reading`] verifies the log and gives excerpts of it, page by page.

pub mod reading;
mod rows;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use super::database::{Database, StoreError, Writer};
use crate::audit::entry::AuditEntry;
use crate::audit::refusals::RefusalBudgets;
use crate::audit::retention::Retention;
use crate::audit::{AuditEvent, AuditOutcome};
use crate::base::counter::Counter;
use crate::process::clock::Clock;

pub use self::rows::{AUDIT_ENDS, AUDIT_ROWS};
pub use self::writer::{AuditWriter, BATCH_MAX_EVENTS, BATCH_WAIT};

/// Events that wait for the writer, at most: a burst of connections in the second of one batch, in
/// about 512 KiB of memory.
pub const QUEUE_MAX_EVENTS: usize = 1_024;

/// A handle; clones write to the same log. The default one keeps nothing and tells the log of the
/// program alone.
#[derive(Clone, Default)]
pub struct AuditLog(Option<Arc<Shared>>);

/// An event that is noted however the work that it is about ends: who asks for something and hangs up in the middle
/// leaves as much of a trace as anybody.
#[derive(Debug)]
pub struct Unsettled {
    log: AuditLog,
    event: AuditEvent,
    noted: bool,
}

/// How it ends where nothing else is known.
const GIVEN_UP: &str =
    "the asking side went away before it was answered; what it asked for may have been done";

impl Unsettled {
    /// It came to what is not noted.
    pub fn pass_over(mut self) {
        self.noted = false;
    }
}

impl Deref for Unsettled {
    type Target = AuditEvent;

    fn deref(&self) -> &AuditEvent {
        &self.event
    }
}

impl DerefMut for Unsettled {
    fn deref_mut(&mut self) -> &mut AuditEvent {
        &mut self.event
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if self.noted {
            self.log.record(&self.event);
        }
    }
}

struct Shared {
    queue: mpsc::Sender<AuditEntry>,
    /// Events that found the queue full since the last entry that said so.
    lost: AtomicU64,
    /// All of these since the log was opened.
    lost_in_all: Counter,
    refusals: Mutex<RefusalBudgets>,
    clock: Clock,
}

impl AuditLog {
    /// Opens the log in a store. The writer is to be run, or finished, by the caller: until then
    /// nothing is written. Blocks on the disk.
    pub fn open(
        database: Database,
        clock: Clock,
        retention: watch::Receiver<Retention>,
    ) -> Result<(Self, AuditWriter), StoreError> {
        let (queue, entries) = mpsc::channel(QUEUE_MAX_EVENTS);
        let shared = Arc::new(Shared {
            queue,
            lost: AtomicU64::new(0),
            lost_in_all: Counter::default(),
            refusals: Mutex::default(),
            clock,
        });
        let writer = AuditWriter::new(database, Arc::clone(&shared), entries, retention)?;
        Ok((Self(Some(shared)), writer))
    }

    /// Notes an event. Returns at once; a writer makes it durable within a second.
    pub fn record(&self, event: &AuditEvent) {
        tracing::debug!(?event, "audit");
        if let Some(shared) = &self.0
            && shared.admits(event)
        {
            let entry = AuditEntry::new(event, shared.clock.trusted());
            if shared.queue.try_send(entry).is_err() {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                shared.lost_in_all.increment();
            }
        }
    }

    /// Takes an event whose outcome is not known yet. It is noted when what this gives is dropped, with what has
    /// been set by then.
    pub fn begin(&self, event: AuditEvent) -> Unsettled {
        Unsettled {
            log: self.clone(),
            event: AuditEvent {
                outcome: AuditOutcome::Failed(GIVEN_UP.to_owned()),
                ..event
            },
            noted: true,
        }
    }

    /// Events that came faster than they could be written, since the log was opened.
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.lost_in_all.get())
    }
}

impl Shared {
    fn admits(&self, event: &AuditEvent) -> bool {
        self.refusals().admit(event, self.clock.now())
    }

    /// Held for the look at one budget: nobody waits for it.
    fn refusals(&self) -> std::sync::MutexGuard<'_, RefusalBudgets> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuditLog").field(&self.0.is_some()).finish()
    }
}

/// The step of a store's schema that adds the audit log: its tables begin with their first rows. A
/// program from before it must not run on the store, for it would leave holes in the log.
pub fn add_audit_log(_writer: &mut Writer<'_>) -> Result<(), StoreError> {
    Ok(())
}
