//! A disk in memory that remembers every step, and fails when told.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::super::database::Database;
use super::SCHEMA;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
    /// The write of this value has begun.
    Begun(u64),
    /// The write of this value has returned.
    Done(u64),
}

/// A disk that notes what is done to it, and can be made to fail. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    fault: Option<Fault>,
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Fault {
    /// There is no room for what is not there yet; what is there can be overwritten.
    Full,
    /// It takes no writes.
    TakesNoWrites,
    /// Syncs fail.
    CannotSync,
}

impl Disk {
    pub(in crate::store) fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(DiskState {
            bytes,
            ..DiskState::default()
        })))
    }

    pub(super) fn note(&self, step: Step) {
        self.0.lock().unwrap().steps.push(step);
    }

    pub(in crate::store) fn fail(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().fault = fault;
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().steps.clone()
    }
}

impl DiskState {
    /// Whether a write up to this offset is refused.
    fn refuse(&self, end: u64) -> io::Result<()> {
        match self.fault {
            Some(Fault::Full) if end > self.bytes.len() as u64 => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::TakesNoWrites) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Some(Fault::Full | Fault::CannotSync) | None => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let there = state.bytes.get(start..start + out.len());
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let step = Step::SetLen(usize::try_from(len).unwrap());
        let mut state = self.0.lock().unwrap();
        state.refuse(len)?;
        apply(&mut state.bytes, &step);
        state.steps.push(step);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.fault == Some(Fault::CannotSync) {
            return Err(io::Error::other("the disk cannot sync"));
        }
        state.steps.push(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let step = Step::Write(usize::try_from(offset).unwrap(), data.to_vec());
        let mut state = self.0.lock().unwrap();
        state.refuse(offset + data.len() as u64)?;
        apply(&mut state.bytes, &step);
        state.steps.push(step);
        Ok(())
    }
}

/// What the step does to the bytes.
pub(super) fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        Step::SetLen(len) => bytes.resize(*len, 0),
        Step::Sync | Step::Begun(_) | Step::Done(_) => {}
    }
}

/// The bytes of a store that was made and closed.
pub(super) fn new_store() -> Vec<u8> {
    let disk = Disk::default();
    drop(Database::open_with_backend(disk.clone(), &SCHEMA).unwrap());
    disk.bytes()
}
