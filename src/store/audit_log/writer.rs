//! The one task that writes the log: gathers events for a second, writes them in one transaction, and
//! removes what retention says. A disk that fails is tried again, while the queue fills and then counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::{Shared, rows};
use crate::audit::chain::{FIRST_ROW, LogId};
use crate::audit::entry::AuditEntry;
use crate::audit::retention::{Occasion, Retention};
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::store::database::{Database, StoreError};
use crate::store::record::Only;

/// Longest time that an event waits for others: what a power cut can cost of the log, and one write of
/// a few pages a second at the worst.
pub const BATCH_WAIT: Duration = Duration::from_secs(1);

/// Events of one transaction: it stays a matter of milliseconds on a slow card.
pub const BATCH_MAX_EVENTS: usize = 64;

/// How often retention is looked at when nothing is written.
const DAILY: Duration = Duration::from_secs(24 * 60 * 60);

/// First and longest wait after a write that failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Writes what [`AuditLog::record`](super::AuditLog::record) takes in.
pub struct AuditWriter {
    database: Database,
    shared: Arc<Shared>,
    entries: mpsc::Receiver<AuditEntry>,
    retention: watch::Receiver<Retention>,
    /// What is to be written next.
    batch: Arc<Vec<AuditEntry>>,
    /// Number of the next row, as far as this writer knows.
    next: u64,
    /// Id of the log if it begins now.
    log: LogId,
}

/// What one transaction is to do.
struct Step {
    batch: Arc<Vec<AuditEntry>>,
    next: u64,
    log: LogId,
    retention: Retention,
    occasion: Occasion,
    now: UnixTime,
}

impl AuditWriter {
    pub(super) fn new(
        database: Database,
        shared: Arc<Shared>,
        entries: mpsc::Receiver<AuditEntry>,
        retention: watch::Receiver<Retention>,
    ) -> Result<Self, StoreError> {
        let ends = database.read(|r| r.get(&rows::AUDIT_ENDS, &Only))?;
        Ok(Self {
            database,
            shared,
            entries,
            retention,
            batch: Arc::default(),
            next: ends.map_or(FIRST_ROW, |ends| ends.next),
            log: entropy::bytes(),
        })
    }

    /// Writes until the scope is cancelled, and then what is left in the queue. Give it the last stage
    /// of the shutdown: the others have their last words first.
    pub async fn run(mut self, scope: TaskScope) {
        let mut daily = tokio::time::interval(DAILY);
        daily.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !scope.is_cancelled() {
            let occasion = tokio::select! {
                () = scope.cancelled() => break,
                entry = self.entries.recv() => match entry {
                    Some(entry) => {
                        self.gather(entry, &scope).await;
                        Occasion::Writing
                    }
                    None => break,
                },
                _ = daily.tick() => {
                    self.note_what_was_counted(false);
                    Occasion::Daily
                }
            };
            self.write_in_the_end(occasion, &scope).await;
        }
        self.entries.close();
        if let Err(error) = self.write_rest().await {
            self.give_up(&error);
        }
    }

    /// Writes what is in the queue, and ends: for a command that is no daemon. Blocks on the disk.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.entries.close();
        while self.take_up() {
            let step = self.step(Occasion::Writing);
            let next = self.database.write(|w| step.carry_out(w))?;
            self.written(next);
        }
        Ok(())
    }

    /// Takes what comes within [`BATCH_WAIT`], up to [`BATCH_MAX_EVENTS`].
    async fn gather(&mut self, first: AuditEntry, scope: &TaskScope) {
        let mut batch = vec![first];
        let until = tokio::time::sleep(BATCH_WAIT);
        tokio::pin!(until);
        while batch.len() < BATCH_MAX_EVENTS {
            tokio::select! {
                () = scope.cancelled() => break,
                () = &mut until => break,
                entry = self.entries.recv() => match entry {
                    Some(entry) => batch.push(entry),
                    None => break,
                },
            }
        }
        self.batch = Arc::new(batch);
        self.note_what_was_counted(false);
    }

    /// Tries until it is written or the scope is cancelled.
    async fn write_in_the_end(&mut self, occasion: Occasion, scope: &TaskScope) {
        let mut wait = RETRY_FIRST;
        loop {
            let Err(error) = self.write(occasion).await else {
                return;
            };
            tracing::error!(error = %error_chain(&error), retry_seconds = wait.as_secs(), "the audit log could not be written; it is tried again");
            tokio::select! {
                () = scope.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn write_rest(&mut self) -> Result<(), StoreError> {
        while !self.batch.is_empty() || self.take_up() {
            self.write(Occasion::Writing).await?;
        }
        Ok(())
    }

    async fn write(&mut self, occasion: Occasion) -> Result<(), StoreError> {
        let step = self.step(occasion);
        let next = self.database.write_async(move |w| step.carry_out(w)).await?;
        self.written(next);
        Ok(())
    }

    /// The next batch out of the queue; `false` when there is none.
    fn take_up(&mut self) -> bool {
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX_EVENTS
            && let Ok(entry) = self.entries.try_recv()
        {
            batch.push(entry);
        }
        self.batch = Arc::new(batch);
        self.note_what_was_counted(true);
        !self.batch.is_empty()
    }

    /// Adds entries about events that are not in the log one by one.
    fn note_what_was_counted(&mut self, end: bool) {
        let counted = self.shared.refusals().take_counted(self.shared.clock.now(), end);
        let time = self.shared.clock.trusted();
        let entries = counted.iter().map(|event| AuditEntry::new(event, time));
        Arc::make_mut(&mut self.batch).extend(entries);
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events came faster than the audit log could be written");
            let entry = AuditEntry::of_loss(lost, time);
            Arc::make_mut(&mut self.batch).push(entry);
        }
    }

    fn step(&self, occasion: Occasion) -> Step {
        Step {
            batch: Arc::clone(&self.batch),
            next: self.next,
            log: self.log,
            retention: *self.retention.borrow(),
            occasion,
            now: self.shared.clock.trusted().now,
        }
    }

    fn written(&mut self, next: u64) {
        self.next = next;
        self.batch = Arc::default();
    }

    fn give_up(&mut self, error: &StoreError) {
        let mut lost = self.batch.len();
        while self.entries.try_recv().is_ok() {
            lost += 1;
        }
        tracing::error!(error = %error_chain(error), lost, "the end of the audit log could not be written");
    }
}

impl Step {
    /// Gives the number of the next row. After a failure the system may have kept the transaction all
    /// the same: rows that are there already are not written twice.
    fn carry_out(&self, w: &mut crate::store::database::Writer<'_>) -> Result<u64, StoreError> {
        let mut next = w
            .get(&rows::AUDIT_ENDS, &Only)?
            .map_or(FIRST_ROW, |ends| ends.next);
        if !self.batch.is_empty() && next == self.next {
            next = rows::append(w, &self.batch, self.log)?.next;
        }
        let removed = rows::prune(w, self.retention, self.occasion, self.now)?;
        if removed > 0 {
            tracing::info!(
                removed,
                "rows of the audit log were removed: they have been kept long enough"
            );
        }
        Ok(next)
    }
}
