//! Whatever is done to a log but by its own writer, the first wrong row is found and named.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A log as a store has it.
#[derive(Debug, Clone)]
struct Log {
    ends: ChainEnds,
    rows: BTreeMap<u64, AuditRow>,
}

impl Log {
    fn of(entries: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut log = Self {
            ends: ChainEnds::begin([7; 16]),
            rows: BTreeMap::new(),
        };
        for entry in entries {
            let row = log.ends.append(entry);
            log.rows.insert(row.number, row);
        }
        log
    }

    fn counted(rows: u8) -> Self {
        Self::of((0..rows).map(|n| vec![1, n]))
    }

    /// Removes the oldest rows, as retention does.
    fn forget_until(&mut self, first: u64) {
        self.ends.before_first = Some(self.rows[&(first - 1)].hash);
        self.ends.first = first;
        self.rows = self.rows.split_off(&first);
    }

    fn swap(&mut self, a: u64, b: u64) {
        let (row_a, row_b) = (self.rows[&a].clone(), self.rows[&b].clone());
        self.rows.insert(a, row_b);
        self.rows.insert(b, row_a);
    }

    fn verify(&self) -> Result<Verified, ChainBreak> {
        verify(
            Some(self.ends.clone()),
            self.rows.iter().map(|(number, row)| (*number, Some(row))),
        )
    }

    fn verify_pinned(&self, pin: RowPin) -> Result<Verified, ChainBreak> {
        let mut verifier = Verifier::new(Some(self.ends.clone()), Some(pin));
        for (number, row) in &self.rows {
            verifier.take(*number, Some(row))?;
        }
        verifier.finish()
    }
}

#[test]
fn a_hash_never_changes() {
    let begin = RowHash::begin(&[7; 16]);
    let first = RowHash::following(&begin, 1, b"entry");
    assert_eq!(
        [begin.to_string(), first.to_string()],
        [
            "1c6b8846c512551b85e57b518dad4d9044328f1dd685ce3ad266534f271ebe74",
            "c6083b6439c5ee7b0e4444229d2e8ed3088f65b2f9f912dbe8bccc648ce49a4f"
        ]
    );
}

#[test]
fn an_empty_log_is_whole_and_so_is_one_with_rows() {
    assert_eq!(
        verify(None, []).unwrap().to_string(),
        "the audit log is whole: it has no rows yet"
    );
    let told = Log::counted(3).verify().unwrap().to_string();
    assert!(
        told.contains("rows 1 to 3 are as they were written; newest row 3:"),
        "{told}"
    );
}

#[test]
fn what_retention_removed_is_explained() {
    let mut log = Log::counted(9);
    log.forget_until(6);
    let told = log.verify().unwrap().to_string();
    assert!(
        told.contains("rows 6 to 9") && told.contains("removed by retention"),
        "{told}"
    );
    // One more than retention removed.
    log.rows.remove(&6);
    assert_eq!(log.verify(), Err(ChainBreak::Missing { first: 6, last: 6 }));
}

#[test]
fn a_log_whose_rows_are_all_gone_by_retention_is_whole() {
    let mut log = Log::counted(4);
    log.ends.before_first = Some(log.ends.head);
    log.ends.first = 5;
    log.rows.clear();
    assert_eq!(log.verify().unwrap().rows, 0);
    let row = log.ends.append(vec![1]);
    log.rows.insert(row.number, row);
    assert_eq!(log.verify().unwrap().rows, 1);
}

#[test]
fn a_changed_row_is_named() {
    let mut log = Log::counted(5);
    log.rows.get_mut(&3).unwrap().entry[1] = 99;
    assert_eq!(log.verify(), Err(ChainBreak::Changed { row: 3 }));
}

#[test]
fn a_changed_row_with_a_new_hash_is_told_by_the_next_one() {
    let mut log = Log::counted(5);
    let entry = vec![1, 99];
    let hash = RowHash::following(&log.rows[&2].hash, 3, &entry);
    log.rows.insert(
        3,
        AuditRow {
            number: 3,
            entry: entry.clone(),
            hash,
        },
    );
    assert_eq!(log.verify(), Err(ChainBreak::Changed { row: 4 }));
    // The newest row has no next one: the record of the end tells.
    let mut log = Log::counted(3);
    log.rows.insert(
        3,
        AuditRow {
            number: 3,
            entry,
            hash,
        },
    );
    assert_eq!(log.verify(), Err(ChainBreak::OtherEnd { row: 3 }));
}

#[test]
fn missing_rows_are_named() {
    let mut log = Log::counted(9);
    log.rows.remove(&4);
    log.rows.remove(&5);
    assert_eq!(log.verify(), Err(ChainBreak::Missing { first: 4, last: 5 }));
    let mut log = Log::counted(9);
    log.rows.remove(&9);
    log.rows.remove(&8);
    assert_eq!(log.verify(), Err(ChainBreak::CutEnd { first: 8, last: 9 }));
}

#[test]
fn swapped_rows_are_named() {
    let mut log = Log::counted(9);
    log.swap(3, 7);
    assert_eq!(log.verify(), Err(ChainBreak::Moved { row: 3, found: 7 }));
}

#[test]
fn a_row_that_was_put_in_is_named() {
    let mut log = Log::counted(5);
    log.forget_until(3);
    let old = Log::counted(5).rows[&2].clone();
    log.rows.insert(2, old);
    assert_eq!(
        log.verify(),
        Err(ChainBreak::PutIn {
            row: 2,
            first: 3,
            last: 5
        })
    );
    let mut log = Log::counted(5);
    let new = Log::counted(6).rows[&6].clone();
    log.rows.insert(6, new);
    assert_eq!(
        log.verify(),
        Err(ChainBreak::PutIn {
            row: 6,
            first: 1,
            last: 5
        })
    );
}

#[test]
fn unreadable_rows_and_lost_ends_are_named() {
    let log = Log::counted(2);
    let rows = [(1, Some(&log.rows[&1])), (2, None)];
    assert_eq!(
        verify(Some(log.ends.clone()), rows),
        Err(ChainBreak::Unreadable { row: 2 })
    );
    assert_eq!(
        verify(None, [(1, Some(&log.rows[&1]))]),
        Err(ChainBreak::NoEnds { row: 1 })
    );
}

#[test]
fn a_log_that_was_written_anew_is_told_by_a_noted_row() {
    let log = Log::counted(5);
    let pin = RowPin {
        number: 3,
        hash: log.rows[&3].hash,
    };
    assert_eq!(pin.to_string().parse(), Ok(pin));
    log.verify_pinned(pin).unwrap();
    let forged = Log::of((0..5).map(|n| vec![1, n + 1]));
    forged.verify().unwrap();
    assert_eq!(forged.verify_pinned(pin), Err(ChainBreak::NotAsNoted { row: 3 }));
    let short = Log::counted(2);
    assert_eq!(
        short.verify_pinned(pin),
        Err(ChainBreak::NotedRowGone {
            row: 3,
            first: 1,
            last: 2
        })
    );
}

#[test]
fn a_row_of_another_log_does_not_fit() {
    let mut log = Log::counted(3);
    let mut other = Log {
        ends: ChainEnds::begin([8; 16]),
        rows: BTreeMap::new(),
    };
    for n in 0..3 {
        let row = other.ends.append(vec![1, n]);
        other.rows.insert(row.number, row);
    }
    log.rows.insert(2, other.rows[&2].clone());
    assert_eq!(log.verify(), Err(ChainBreak::Changed { row: 2 }));
}

#[derive(Debug, Clone)]
enum Tampering {
    Flip(usize, usize),
    FlipHash(usize, usize),
    Remove(usize),
    Swap(usize, usize),
    Duplicate(usize, usize),
    FalseNumber(usize, u64),
}

fn tampering() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        (any::<usize>(), any::<usize>()).prop_map(|(row, bit)| Tampering::Flip(row, bit)),
        (any::<usize>(), any::<usize>()).prop_map(|(row, bit)| Tampering::FlipHash(row, bit)),
        any::<usize>().prop_map(Tampering::Remove),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Tampering::Swap(a, b)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Tampering::Duplicate(a, b)),
        (any::<usize>(), any::<u64>()).prop_map(|(row, number)| Tampering::FalseNumber(row, number)),
    ]
}

proptest! {
    #[test]
    fn any_rows_and_any_retention_verify(
        entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..40),
        kept in any::<prop::sample::Index>(),
    ) {
        let mut log = Log::of(entries);
        let first = kept.index(log.rows.len()) as u64 + 1;
        if first > 1 {
            log.forget_until(first);
        }
        let verified = log.verify().unwrap();
        prop_assert_eq!(verified.rows, log.rows.len() as u64);
        prop_assert_eq!(verified.first, first);
    }

    #[test]
    fn any_tampering_is_found(
        entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 2..20),
        tampering in tampering(),
    ) {
        let mut log = Log::of(entries);
        let before = log.rows.clone();
        let number = |at: usize| (at % before.len()) as u64 + 1;
        // The first row that is not as it was; the break must not be named later than one row after it.
        match tampering {
            Tampering::Flip(at, bit) => {
                let entry = &mut log.rows.get_mut(&number(at)).unwrap().entry;
                let bit = bit % (entry.len() * 8);
                entry[bit / 8] ^= 1 << (bit % 8);
            }
            Tampering::FlipHash(at, bit) => {
                let hash = &mut log.rows.get_mut(&number(at)).unwrap().hash.0;
                hash[bit % 256 / 8] ^= 1 << (bit % 8);
            }
            Tampering::Remove(at) => {
                log.rows.remove(&number(at));
            }
            Tampering::Swap(a, b) => log.swap(number(a), number(b)),
            Tampering::Duplicate(a, b) => {
                let copy = log.rows[&number(a)].clone();
                log.rows.insert(number(b), copy);
            }
            Tampering::FalseNumber(at, false_number) => {
                log.rows.get_mut(&number(at)).unwrap().number = false_number;
            }
        }
        let first_wrong = (1..=before.len() as u64).find(|n| log.rows.get(n) != before.get(n));
        match (first_wrong, log.verify()) {
            (None, verified) => prop_assert!(verified.is_ok()),
            (Some(wrong), Err(
                ChainBreak::Changed { row } | ChainBreak::Moved { row, .. } | ChainBreak::OtherEnd { row }
                | ChainBreak::Missing { first: row, .. } | ChainBreak::CutEnd { first: row, .. },
            )) => prop_assert_eq!(row, wrong),
            (Some(wrong), other) => prop_assert!(false, "row {} is wrong, and: {:?}", wrong, other),
        }
    }
}
