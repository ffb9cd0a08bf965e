//! The registry on disks that lose power, and under orders of events that nobody planned.

#![allow(clippy::unwrap_used)]

mod authority;
mod equals;
mod exactly_once;
mod held;
mod operators;
mod rows;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::StorageBackend;
use serde_json::json;

use super::*;
use crate::bridge::acceptance::{AcceptCall, AcceptRefusal};
use crate::contract::message::{AcceptResponse, ContractAnswer, read_answer};
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode, SpawnRole};
use crate::identity::key::PrivateKey;

const GRACE: Duration = Duration::from_secs(86_400);
const TTL: Duration = Duration::from_secs(7 * 86_400);

fn at(seconds: i64) -> UnixTime {
    UnixTime::from_seconds(1_800_000_000 + seconds)
}

/// A disk that can lose its power: what was not synced is gone.
#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    live: Vec<u8>,
    /// Operations that still succeed; none when the power stays.
    power: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn with_registry() -> (Self, Registry) {
        let disk = Self::default();
        let db = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
        let registry = Registry::create_in(db, "(test)", "Test CA", at(0)).unwrap();
        (disk, registry)
    }

    fn cut_power_after(&self, operations: usize) {
        self.0.lock().unwrap().power = Some(operations);
    }

    /// What a restart finds.
    fn after_power_cut(&self) -> Self {
        let image = self.0.lock().unwrap().synced.clone();
        Self(Arc::new(Mutex::new(Platter {
            synced: image.clone(),
            live: image,
            power: None,
        })))
    }

    fn open(&self) -> Registry {
        let db = Database::open_with_backend(self.clone(), &SCHEMA).unwrap();
        Registry::open_in(db).unwrap()
    }

    fn operate<T>(&self, operation: impl FnOnce(&mut Platter) -> T) -> io::Result<T> {
        let mut platter = self.0.lock().unwrap();
        match &mut platter.power {
            Some(0) => return Err(io::Error::other("the power is out")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(operation(&mut platter))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&platter.live[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(|platter| platter.live.resize(usize::try_from(len).unwrap(), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|platter| platter.synced = platter.live.clone())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.operate(|platter| platter.live[start..start + data.len()].copy_from_slice(data))
    }
}

fn proposal(name: &str) -> Proposal {
    Proposal {
        name: Some(name.to_owned()),
        description: None,
        remote_instance_url: None,
        kind: PeerKind::Platform,
        role: SpawnRole::Parent,
        mode: SpawnMode::ManagedChild,
    }
}

fn call(token: &crate::contract::token::AcceptanceToken, key: Option<&PrivateKey>) -> AcceptCall {
    let csr = key.map(|key| key.csr_pem("powernode-satellite").unwrap());
    let body = json!({
        "acceptance_token": token.expose().expose_text().unwrap(),
        "contract_version": 1,
        "csr_pem": csr,
    });
    AcceptCall::read(body.to_string().as_bytes()).unwrap()
}

fn response(accepted: &Accepted) -> AcceptResponse {
    match read_answer(200, &accepted.answer).unwrap() {
        ContractAnswer::Data(data) => data,
        ContractAnswer::Failure(failure) => panic!("{failure:?}"),
    }
}

fn refusal(result: Result<Accepted, AcceptError>) -> AcceptRefusal {
    match result.unwrap_err() {
        AcceptError::Refused(refusal) => refusal,
        AcceptError::Store(error) => panic!("{error}"),
    }
}

fn enrolled(registry: &Registry) -> (PeerId, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    registry
        .accept(&call(&minted.token, Some(&key)), GRACE, at(0))
        .unwrap();
    (minted.peer.id, key)
}
