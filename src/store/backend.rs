//! What stands between redb and the bytes: [`FileBytes`], a file that is already locked;
//! [`MemoryBytes`], a copy of one that somebody else may be writing to;
//! [`Overlay`], which keeps writes in memory, so that a store can be examined, and even repaired,
//! without changing it; and [`Guarded`], which counts writes and cuts a failed user off.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use redb::StorageBackend;

use super::error::{OpenError, StoreError};
use crate::base::limit::error_chain;

/// A file that its opener has locked. Takes no locks of its own, so that whoever holds the
/// file's lock may give it up and take it up again without letting another process in.
#[derive(Debug)]
pub(super) struct FileBytes(pub(super) Arc<File>);

impl StorageBackend for FileBytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// A copy of a file in memory, to be read.
#[derive(Debug)]
pub(super) struct MemoryBytes(Vec<u8>);

impl MemoryBytes {
    /// Of at most so many bytes.
    pub(super) fn copy_of(path: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::io(path, "read", "read access", error);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(io_error(error)),
        };
        if file.metadata().map_err(io_error)?.len() > max_bytes {
            return Err(io_error(io::ErrorKind::FileTooLarge.into()));
        }
        let mut bytes = Vec::new();
        file.take(max_bytes).read_to_end(&mut bytes).map_err(io_error)?;
        Ok(Self(bytes))
    }
}

impl StorageBackend for MemoryBytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// Bytes of one piece of an [`Overlay`]: redb's page.
const PIECE_BYTES: usize = 4096;

/// Most bytes that an [`Overlay`] keeps. What examining and repairing writes is a few pages per
/// 128 MiB of store; more than this is a broken file that leads redb astray.
const OVERLAY_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Reads another backend and keeps what is written in memory.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Box<dyn StorageBackend>,
    state: Mutex<OverlayState>,
}

#[derive(Debug)]
struct OverlayState {
    len: u64,
    /// How much of what is below may still be seen: less than its length after a `set_len`.
    seen_below: u64,
    pieces: BTreeMap<u64, Box<[u8; PIECE_BYTES]>>,
}

impl Overlay {
    pub(super) fn new(below: Box<dyn StorageBackend>) -> io::Result<Self> {
        let len = below.len()?;
        Ok(Self {
            below,
            state: Mutex::new(OverlayState {
                len,
                seen_below: len,
                pieces: BTreeMap::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, OverlayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The piece as it is below.
    fn piece_below(&self, state: &OverlayState, index: u64) -> io::Result<Box<[u8; PIECE_BYTES]>> {
        let mut piece = Box::new([0; PIECE_BYTES]);
        let start = index * PIECE_BYTES as u64;
        let there = state.seen_below.saturating_sub(start).min(PIECE_BYTES as u64);
        let there = usize::try_from(there).unwrap_or(PIECE_BYTES);
        if let Some(there) = piece.get_mut(..there)
            && !there.is_empty()
        {
            self.below.read(start, there)?;
        }
        Ok(piece)
    }
}

/// The piece that holds the byte at `offset`, and the byte's place in it.
fn place(offset: u64) -> (u64, usize) {
    let piece = PIECE_BYTES as u64;
    (
        offset / piece,
        usize::try_from(offset % piece).unwrap_or_default(),
    )
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !out.is_empty() {
            let (index, start) = place(offset);
            let (part, rest) = out.split_at_mut(out.len().min(PIECE_BYTES - start));
            let piece = match state.pieces.get(&index) {
                Some(piece) => piece,
                None => &self.piece_below(&state, index)?,
            };
            part.copy_from_slice(&piece[start..start + part.len()]);
            offset += part.len() as u64;
            out = rest;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            state.seen_below = state.seen_below.min(len);
            let (index, start) = place(len);
            let _gone = state.pieces.split_off(&(index + u64::from(start > 0)));
            if let Some(last) = state.pieces.get_mut(&index) {
                last[start..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.len = state.len.max(offset.saturating_add(data.len() as u64));
        while !data.is_empty() {
            let (index, start) = place(offset);
            let (part, rest) = data.split_at(data.len().min(PIECE_BYTES - start));
            if !state.pieces.contains_key(&index) {
                if state.pieces.len() >= OVERLAY_MAX_BYTES / PIECE_BYTES {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                let piece = self.piece_below(&state, index)?;
                state.pieces.insert(index, piece);
            }
            if let Some(piece) = state.pieces.get_mut(&index) {
                piece[start..start + part.len()].copy_from_slice(part);
            }
            offset += part.len() as u64;
            data = rest;
        }
        Ok(())
    }
}

/// What became of the writes to a store, over all backends that it has had.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(Arc<Writes>);

#[derive(Debug, Default)]
struct Writes {
    bytes: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Written {
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Why the last change failed, where it did so by its disk.
    pub(super) fn failure(&self) -> Option<String> {
        self.last().clone()
    }

    /// Notes how a change ended.
    pub(super) fn note(&self, failure: Option<String>) {
        *self.last() = failure;
    }

    fn last(&self) -> MutexGuard<'_, Option<String>> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the owner of a [`Guarded`] backend, which redb has, still sees of it.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    pub(super) written: Written,
    len: AtomicU64,
    failure: OnceLock<String>,
    /// Held for reading by each operation, so that retiring waits for those under way.
    retired: RwLock<bool>,
}

impl Gauge {
    /// Goes on with the count of earlier backends.
    pub(super) fn continuing(written: Written) -> Self {
        Self {
            written,
            ..Self::default()
        }
    }

    /// The store's length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether an operation has failed, after which redb refuses every other.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// How the first operation failed that did, in words.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Lets no further operation through, and waits for those under way: when this returns,
    /// another backend may take over the bytes.
    pub(super) fn retire(&self) {
        *self.retired.write().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// Counts the bytes written, remembers failures, and ends when told.
#[derive(Debug)]
pub(super) struct Guarded {
    inner: Box<dyn StorageBackend>,
    gauge: Arc<Gauge>,
}

impl Guarded {
    pub(super) fn new(inner: Box<dyn StorageBackend>, gauge: Arc<Gauge>) -> Self {
        Self { inner, gauge }
    }

    fn pass<T>(&self, operation: impl FnOnce(&dyn StorageBackend) -> io::Result<T>) -> io::Result<T> {
        let retired = self.gauge.retired.read().unwrap_or_else(PoisonError::into_inner);
        if *retired {
            return Err(io::Error::other(
                "the store was opened anew after a failure of the disk",
            ));
        }
        let result = operation(self.inner.as_ref());
        if let Err(error) = &result {
            self.gauge.failure.get_or_init(|| in_words(error));
        }
        result
    }
}

/// As the store's own error says it.
fn in_words(error: &io::Error) -> String {
    let same = match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    };
    error_chain(&StoreError::from(redb::Error::Io(same)))
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        let len = self.pass(StorageBackend::len)?;
        self.gauge.len.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.pass(|inner| inner.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass(|inner| inner.set_len(len))?;
        self.gauge.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.pass(StorageBackend::sync_data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(|inner| inner.write(offset, data))?;
        self.gauge
            .written
            .0
            .bytes
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}
