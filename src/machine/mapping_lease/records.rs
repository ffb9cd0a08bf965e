//! What may exist on gateways: kept until it is known to be gone, so that nothing is left behind.

use std::time::Duration;

use super::MappingLease;
use super::types::{Gateway, MappingAction, MappingRecord, RECORDS_MAX};
use crate::base::time::Moment;

/// A record, and since when this process knows of it: it ends by itself a lease later.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) record: MappingRecord,
    pub(super) since: Moment,
}

impl MappingLease {
    /// Of the present gateways.
    pub(super) fn records_here(&self) -> impl DoubleEndedIterator<Item = MappingRecord> + '_ {
        self.records
            .iter()
            .map(|known| &known.record)
            .filter(|record| self.network.iter().any(|gateway| is_on(record, gateway)))
            .cloned()
    }

    /// Those whose lease is over are gone, whoever their router is.
    pub(super) fn drop_ended(&mut self, now: Moment) {
        self.records.retain(|known| {
            let lease = Duration::from_secs(u64::from(known.record.lease_seconds));
            lease.is_zero() || now.since(known.since) < lease
        });
    }

    /// As the newest; the oldest go when there are too many.
    pub(super) fn remember(&mut self, record: &MappingRecord, now: Moment) {
        self.records.retain(|known| !known.record.is_same_mapping(record));
        self.records.push(Remembered {
            record: record.clone(),
            since: now,
        });
        while self.records.len() > RECORDS_MAX {
            self.records.remove(0);
        }
    }

    pub(super) fn forget(&mut self, record: &MappingRecord) -> bool {
        let before = self.records.len();
        self.records.retain(|known| !known.record.is_same_mapping(record));
        self.records.len() != before
    }

    pub(super) fn forget_durably(&mut self, record: &MappingRecord) {
        if self.forget(record) {
            self.persist();
        }
    }

    pub(super) fn persist(&mut self) -> u64 {
        self.number += 1;
        self.actions
            .push_back(MappingAction::Persist(self.number, self.records()));
        self.number
    }
}

/// Whether a record's router is this gateway. The address of this box may have changed since.
fn is_on(record: &MappingRecord, gateway: &Gateway) -> bool {
    record.gateway == gateway.address && record.interface == gateway.interface
}
