//! The store as its users see it: open a file under a schema, read one state of it, write one
//! transaction. Every write is durable when it returns, or has changed nothing.
//!
//! All calls but the `_async` ones block on the disk, and so does the drop of the last clone, which
//! closes the file. Async callers use those, or `process::blocking`.
//!
//! Opened under a state key, the values of the schema's secret tables are sealed with it in the
//! file. A store from before the key is sealed when it is opened for writing.
//!
//! What it costs a memory card, measured on ext4 with 4 KiB blocks: a write that changes one
//! small row, 28 KiB and one sync (five to six pages of redb's trees and its header); to make a
//! store, 64 KiB; to open one, 4 KiB; to close one that was written to, 32 KiB; a read, or a write
//! that changes nothing, none. One MiB a day is 36 small writes: what changes by itself is written
//! once an hour, not once in ten minutes.

use std::fmt;
use std::fs::File;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::backend::{FileBytes, MemoryBytes, Written};
use super::file::{self, Draft, Lock};
use super::generation::{Generation, Purpose};
use super::rewrite;
use super::seal::Seals;
use super::state_key::StateKey;
use crate::process::blocking;

pub use super::error::{Damage, Holder, OpenError, StoreError};
pub use super::generation::CACHE_BYTES;
pub use super::schema::{Migration, Schema};
pub use super::transaction::{Direction, Reader, Table, Writer};

/// How often a store that is being written to is copied into memory before it counts as damaged. A write
/// takes milliseconds, and a host-bridge does one a second at most: to meet it twice is a rare accident.
const SNAPSHOT_TRIES: usize = 5;

/// An open store. Clones share it.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

impl Database {
    /// Opens the store at `path` and brings it to the schema's version; makes it, and its
    /// directory, when there is none. Nothing is written before the file is known to be whole
    /// and of a schema that this program knows.
    pub fn open(path: &Path, schema: &'static Schema) -> Result<Self, OpenError> {
        Self::open_under(None, path, schema)
    }

    /// [`Database::open`] under a state key, where there is one. Values that were not sealed are:
    /// the file is then made anew, for which the disk must hold it twice.
    pub fn open_under(
        key: Option<&StateKey>,
        path: &Path,
        schema: &'static Schema,
    ) -> Result<Self, OpenError> {
        let seals = Seals::new(schema, key);
        let file = loop {
            if let Some(file) = file::open_locked(path, Lock::Exclusive)? {
                let file = Arc::new(file);
                Generation::examined(path, bytes_of(&file), &seals)?;
                break file;
            }
            if let Some(draft) = Draft::begin(path)? {
                // Closed at once, which writes the last of it into the draft.
                drop(Generation::prepared(path, bytes_of(draft.file()), &seals)?);
                break draft.publish(path)?;
            }
        };
        let database = Self::open_source(path, source_of(&file), &seals)?;
        if database.0.sealed || !seals.has_key() {
            return Ok(database);
        }
        drop(database);
        let file = rewrite::rewrite(path, &file, &seals, &seals)?;
        tracing::info!(path = %path.display(), "what is secret in the store is sealed from now on");
        if file::aside(path).exists() {
            let aside = file::aside(path);
            tracing::warn!(path = %aside.display(), "this file was set aside before the store was sealed and may hold what is secret; remove it");
        }
        Self::open_source(path, source_of(&file), &seals)
    }

    /// Opens the store at `path` for reading, when no daemon has it open. Writes nothing: what
    /// an earlier crash or an earlier schema makes necessary is done in memory.
    pub fn open_read_only(path: &Path, schema: &'static Schema) -> Result<Self, OpenError> {
        Self::open_read_only_under(None, path, schema)
    }

    /// [`Database::open_read_only`] under a state key, where there is one.
    pub fn open_read_only_under(
        key: Option<&StateKey>,
        path: &Path,
        schema: &'static Schema,
    ) -> Result<Self, OpenError> {
        let missing = || OpenError::Missing {
            path: path.to_owned(),
        };
        let file = file::open_locked(path, Lock::Shared)?.ok_or_else(missing)?;
        let seals = Seals::new(schema, key);
        let generation = Generation::examined(path, bytes_of(&Arc::new(file)), &seals)?;
        generation.prepare(path)?;
        Self::assemble(path, generation, Access::Read, seals)
    }

    /// Opens a copy, in memory, of the store at `path` as it is now, whoever has it open and without
    /// asking them; one of more bytes than that is not copied. Nothing in it changes when the store does.
    pub fn open_snapshot(
        key: Option<&StateKey>,
        (path, max_bytes): (&Path, u64),
        schema: &'static Schema,
    ) -> Result<Self, OpenError> {
        let seals = Seals::new(schema, key);
        let mut tries = 1;
        let generation = loop {
            let bytes = Box::new(MemoryBytes::copy_of(path, max_bytes)?);
            match Generation::examined(path, bytes, &seals) {
                Err(error) if error.is_damaged() && tries < SNAPSHOT_TRIES => tries += 1,
                examined => break examined?,
            }
        };
        generation.prepare(path)?;
        Self::assemble(path, generation, Access::Read, seals)
    }

    /// Opens a store on bytes of any kind: for tests that cut the power.
    pub fn open_with_backend(
        backend: impl StorageBackend,
        schema: &'static Schema,
    ) -> Result<Self, OpenError> {
        Self::open_with_backend_under(None, backend, schema)
    }

    /// [`Database::open_with_backend`] under a state key, where there is one. Values that were not
    /// sealed stay so until they are put: sealing them all takes a file.
    pub fn open_with_backend_under(
        key: Option<&StateKey>,
        backend: impl StorageBackend,
        schema: &'static Schema,
    ) -> Result<Self, OpenError> {
        let path = Path::new("(no file)");
        let seals = Seals::new(schema, key);
        let generation = Generation::prepared(path, Box::new(backend), &seals)?;
        Self::assemble(path, generation, Access::Write { source: None }, seals)
    }

    /// Takes the seals off a store that no daemon has open: the file is made anew. `false` when
    /// nothing in it is sealed.
    pub fn unseal(key: &StateKey, path: &Path, schema: &'static Schema) -> Result<bool, OpenError> {
        let missing = || OpenError::Missing {
            path: path.to_owned(),
        };
        let file = Arc::new(file::open_locked(path, Lock::Exclusive)?.ok_or_else(missing)?);
        let (sealed, bare) = (Seals::new(schema, Some(key)), Seals::new(schema, None));
        let found = Generation::examined(path, bytes_of(&file), &sealed)?.survey(path)?;
        if found.sealed {
            rewrite::rewrite(path, &file, &sealed, &bare)?;
        }
        Ok(found.sealed)
    }

    /// Makes the file of a store that nobody has open anew and overwrites the old one, so that what was
    /// removed from its tables is in neither; redb's freed pages would keep it. An earlier file that
    /// was set aside goes, too.
    pub fn renew(key: Option<&StateKey>, path: &Path, schema: &'static Schema) -> Result<(), OpenError> {
        let missing = || OpenError::Missing {
            path: path.to_owned(),
        };
        let file = Arc::new(file::open_locked(path, Lock::Exclusive)?.ok_or_else(missing)?);
        let seals = Seals::new(schema, key);
        rewrite::rewrite(path, &file, &seals, &seals)?;
        file::remove_aside(path)
            .map_err(|error| OpenError::io(path, "remove beside", "write access to its directory", error))
    }

    /// Moves the file of a store that cannot be opened out of the way, to the same name with
    /// `.damaged` after it, and gives the new name. An earlier one is replaced.
    pub fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
        file::set_aside(path)
            .map_err(|error| OpenError::io(path, "set aside", "write access to its directory", error))
    }

    /// Reads one state of the store. Writes that happen meanwhile are not seen.
    pub fn read<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.0.generation(Purpose::Read)?.read(read)
    }

    /// Makes one change. When this returns `Ok` the change is on the disk; when `write` fails or
    /// panics there is none. One that changes nothing writes nothing. Writers wait for each
    /// other: `write` must not call the database again.
    pub fn write<T, E: From<StoreError>>(
        &self,
        write: impl FnOnce(&mut Writer<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        if matches!(self.0.access, Access::Read) {
            return Err(StoreError::ReadOnly.into());
        }
        self.0.generation(Purpose::Write)?.write(write)
    }

    /// [`Database::read`] on a thread that may block.
    pub async fn read_async<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&Reader<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let database = self.clone();
        on_blocking_thread(move || database.read(read)).await
    }

    /// [`Database::write`] on a thread that may block. A caller that stops waiting does not stop
    /// the write.
    pub async fn write_async<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Writer<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let database = self.clone();
        on_blocking_thread(move || database.write(write)).await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether all that is secret in the file is sealed.
    pub fn is_sealed(&self) -> bool {
        self.0.sealed
    }

    /// Length of the file, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.0
            .current()
            .as_ref()
            .map_or(0, |generation| generation.size_bytes())
    }

    /// Bytes written to the file since it was opened.
    pub fn written_bytes(&self) -> u64 {
        self.0.written.bytes()
    }

    /// Whether the disk has failed the last change, or been too full for it.
    pub fn is_failing(&self) -> bool {
        self.failure().is_some()
    }

    /// Why the disk has failed the last change, in words.
    pub fn failure(&self) -> Option<String> {
        self.0.written.failure()
    }

    /// Opens a store on bytes that can be had again after a failure.
    pub(super) fn open_source(path: &Path, source: Source, seals: &Seals) -> Result<Self, OpenError> {
        let generation = Generation::prepared(path, source(), seals)?;
        let access = Access::Write { source: Some(source) };
        Self::assemble(path, generation, access, seals.clone())
    }

    fn assemble(
        path: &Path,
        generation: Generation,
        access: Access,
        seals: Seals,
    ) -> Result<Self, OpenError> {
        let sealed = !generation.survey(path)?.bare && seals.has_key();
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            access,
            sealed,
            seals,
            written: generation.written(),
            current: Mutex::new(Some(Arc::new(generation))),
        })))
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.0.path).finish()
    }
}

/// Gives the store's bytes anew after a failure; the lock on them has not been given up.
pub(super) type Source = Box<dyn Fn() -> Box<dyn StorageBackend> + Send + Sync>;

fn bytes_of(file: &Arc<File>) -> Box<dyn StorageBackend> {
    Box::new(FileBytes(Arc::clone(file)))
}

fn source_of(file: &Arc<File>) -> Source {
    let file = Arc::clone(file);
    Box::new(move || bytes_of(&file))
}

enum Access {
    Read,
    Write { source: Option<Source> },
}

struct Inner {
    path: PathBuf,
    access: Access,
    sealed: bool,
    seals: Seals,
    written: Written,
    current: Mutex<Option<Arc<Generation>>>,
}

impl Inner {
    fn current(&self) -> MutexGuard<'_, Option<Arc<Generation>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file. redb refuses all work after one failure, such as a full disk, until the
    /// file is opened anew: that is done here, so that a daemon outlives the failure. Where the
    /// disk takes no writes at all, and the caller only reads, the file is opened without any.
    fn generation(&self, purpose: Purpose) -> Result<Arc<Generation>, StoreError> {
        let mut current = self.current();
        let source = match (&self.access, current.as_ref()) {
            (Access::Write { source: Some(source) }, Some(generation)) if !generation.serves(purpose) => {
                source
            }
            (Access::Write { source: Some(source) }, None) => source,
            (_, Some(generation)) => return Ok(Arc::clone(generation)),
            (_, None) => return Err(StoreError::Io(io::ErrorKind::NotConnected.into())),
        };
        if let Some(failed) = current.take() {
            failed.retire();
        }
        let path = self.path.display();
        let opened = match Generation::open(source(), self.written.clone(), &self.seals) {
            Ok(opened) => {
                tracing::info!(%path, "the store was opened anew after a failure of its disk");
                opened
            }
            Err(error) if purpose == Purpose::Read => {
                tracing::warn!(%path, %error, "the disk takes no writes; the store is read as it is");
                Generation::open_in_memory(source(), &self.seals)?
            }
            Err(error) => return Err(error.into()),
        };
        let opened = Arc::new(opened);
        *current = Some(Arc::clone(&opened));
        Ok(opened)
    }
}

async fn on_blocking_thread<T, E, F>(work: F) -> Result<T, E>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    match blocking::start(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_cancelled) => Err(StoreError::Stopping.into()),
        },
    }
}
