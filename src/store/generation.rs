//! One opening of a store's bytes by redb, from there to its end: the check of what a file holds
//! before anything is written to it, what brings it to the schema, and the transactions.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Once};

use redb::{ReadableDatabase, StorageBackend};

use super::backend::{Gauge, Guarded, Overlay, Written};
use super::error::{Damage, OpenError, StoreError};
use super::rewrite::{self, Survey};
use super::schema::Need;
use super::seal::Seals;
use super::transaction::{Reader, Writer};

/// Memory for redb's pages, in bytes. A satellite's whole store is a tenth of this, and a
/// host-bridge's largest listing is read page by page; it has its place beside everything else
/// in a box of 64 MiB. redb's own default is 1 GiB.
pub const CACHE_BYTES: usize = 1024 * 1024;

/// What a transaction is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

/// What becomes of a change.
enum Verdict {
    Keep,
    Undo,
}

/// One opening of a store's bytes. Closed when dropped.
pub(super) struct Generation {
    redb: redb::Database,
    gauge: Arc<Gauge>,
    seals: Seals,
    in_memory: bool,
}

impl Generation {
    /// Opens the bytes, repairing what a crash has left; empty ones become an empty store.
    pub(super) fn open(
        bytes: Box<dyn StorageBackend>,
        written: Written,
        seals: &Seals,
    ) -> Result<Self, redb::Error> {
        Self::build(bytes, written, seals, false)
    }

    /// Opens the bytes without writing to them: what the opening changes stays in memory.
    pub(super) fn open_in_memory(bytes: Box<dyn StorageBackend>, seals: &Seals) -> Result<Self, redb::Error> {
        let overlay = Overlay::new(bytes).map_err(redb::Error::Io)?;
        let mut generation = Self::build(Box::new(overlay), Written::default(), seals, false)?;
        generation.in_memory = true;
        Ok(generation)
    }

    /// Opens the bytes and brings them to the schema.
    pub(super) fn prepared(
        path: &Path,
        bytes: Box<dyn StorageBackend>,
        seals: &Seals,
    ) -> Result<Self, OpenError> {
        let generation = Self::open(bytes, Written::default(), seals)
            .map_err(|error| OpenError::from_redb(path, error))?;
        generation.prepare(path)?;
        Ok(generation)
    }

    /// Opens the bytes without writing to them, verifies every checksum in them, and makes sure
    /// that they are of the schema or an earlier one, and sealed with no other key.
    pub(super) fn examined(
        path: &Path,
        bytes: Box<dyn StorageBackend>,
        seals: &Seals,
    ) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::io(path, "read", "read access", error);
        if bytes.len().map_err(io_error)? == 0 {
            return Err(OpenError::damaged(path, Damage::Empty, None));
        }
        let overlay = Box::new(Overlay::new(bytes).map_err(io_error)?);
        // redb does not promise to take every broken file for one without panicking.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let generation = Self::build(overlay, Written::default(), seals, true)
                .map_err(|error| OpenError::from_redb(path, error))?;
            generation.need(path)?;
            generation.survey(path)?;
            Ok(generation)
        }));
        opened.unwrap_or_else(|_panic| Err(OpenError::damaged(path, Damage::Broken, None)))
    }

    fn build(
        bytes: Box<dyn StorageBackend>,
        written: Written,
        seals: &Seals,
        check: bool,
    ) -> Result<Self, redb::Error> {
        let gauge = Arc::new(Gauge::continuing(written));
        let mut builder = redb::Builder::new();
        builder
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(check);
        if !check {
            let said = Once::new();
            builder.set_repair_callback(move |_| {
                said.call_once(|| tracing::info!("the store was not closed properly; all of it is checked"));
            });
        }
        let redb = builder.create_with_backend(Guarded::new(bytes, Arc::clone(&gauge)))?;
        Ok(Self {
            redb,
            gauge,
            seals: seals.clone(),
            in_memory: false,
        })
    }

    /// Brings the tables to the schema in one transaction.
    pub(super) fn prepare(&self, path: &Path) -> Result<(), OpenError> {
        let schema = self.seals.schema();
        let from = match self.need(path)? {
            Need::Nothing => return Ok(()),
            Need::Beginning => None,
            Need::Migration { from } => Some(from),
        };
        self.write(|writer| schema.bring_forward(writer, from))
            .map_err(|error| match from {
                Some(from) => OpenError::migration(path, from, schema.version, error),
                None => OpenError::from_store(path, error),
            })
    }

    fn need(&self, path: &Path) -> Result<Need, OpenError> {
        let transaction = self
            .redb
            .begin_read()
            .map_err(|error| OpenError::from_store(path, error.into()))?;
        self.seals
            .schema()
            .examine(path, &Reader::new(&transaction, &self.seals))
    }

    /// What of the secret is sealed, and that it is with the key that there is.
    pub(super) fn survey(&self, path: &Path) -> Result<Survey, OpenError> {
        let surveyed = self
            .redb
            .begin_read()
            .map_err(StoreError::from)
            .and_then(|transaction| rewrite::survey(&transaction, &self.seals));
        surveyed.map_err(|error| OpenError::from_store(path, error))
    }

    /// Copies all rows to an empty store, in the form that its seals say.
    pub(super) fn copy_to(&self, target: &Self) -> Result<(), StoreError> {
        rewrite::copy_tables((&self.redb, &self.seals), (&target.redb, &target.seals))
    }

    pub(super) fn read<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.redb.begin_read().map_err(StoreError::from)?;
        read(&Reader::new(&transaction, &self.seals))
    }

    pub(super) fn write<T, E: From<StoreError>>(
        &self,
        write: impl FnOnce(&mut Writer<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut write = Some(write);
        let mut result = None;
        self.change(&mut |writer| {
            result = write.take().map(|write| write(writer));
            match result {
                Some(Ok(_)) => Verdict::Keep,
                _ => Verdict::Undo,
            }
        })?;
        result.unwrap_or_else(|| Err(StoreError::Stopping.into()))
    }

    /// One transaction. Apart from what it is about, so that this is in the program once.
    fn change(&self, write: &mut dyn FnMut(&mut Writer<'_>) -> Verdict) -> Result<(), StoreError> {
        let outcome = self.transact(write);
        match (self.gauge.failure(), &outcome) {
            (Some(why), _) => self.gauge.written.note(Some(why.to_owned())),
            (None, Ok(Verdict::Keep)) => self.gauge.written.note(None),
            (None, Ok(Verdict::Undo) | Err(_)) => {}
        }
        outcome.map(drop)
    }

    fn transact(&self, write: &mut dyn FnMut(&mut Writer<'_>) -> Verdict) -> Result<Verdict, StoreError> {
        let transaction = self.redb.begin_write()?;
        let mut writer = Writer::new(&transaction, &self.seals);
        // A transaction that is dropped while a panic unwinds is not undone by redb.
        let verdict = catch_unwind(AssertUnwindSafe(|| write(&mut writer)));
        if matches!(verdict, Ok(Verdict::Keep)) && writer.changed() {
            transaction.commit()?;
            return Ok(Verdict::Keep);
        }
        if let Err(error) = transaction.abort() {
            // Nothing of it is on the disk either way, and the next opening tidies up.
            tracing::debug!(%error, "an unwanted transaction was not undone in memory");
        }
        verdict.map_or_else(|panic| resume_unwind(panic), drop);
        Ok(Verdict::Undo)
    }

    /// Length of the bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.gauge.len()
    }

    /// The count of bytes written.
    pub(super) fn written(&self) -> Written {
        self.gauge.written.clone()
    }

    /// Whether such a transaction can be had: not after an operation on the bytes has failed,
    /// for redb then refuses all work.
    pub(super) fn serves(&self, purpose: Purpose) -> bool {
        !self.gauge.has_failed() && (purpose == Purpose::Read || !self.in_memory)
    }

    /// Keeps transactions that are still running away from the bytes.
    pub(super) fn retire(&self) {
        self.gauge.retire();
    }
}
