//! The power is cut at every write and every sync. A disk keeps what was synced, and of what was
//! not any part in any order: each such image must open, with the old value or the new one.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::super::database::{Database, Schema, StoreError, Writer};
use super::super::generation::Generation;
use super::super::record::Only;
use super::super::seal::Seals;
use super::super::state_key::StateKey;
use super::disk::{Disk, Step, apply, new_store};
use super::{NOTES, SCHEMA, TITLE, note, state_key};

/// The same, with all of it secret.
const SECRET: Schema = Schema {
    sealed: &[NOTES.name(), TITLE.name()],
    ..SCHEMA
};

/// How a store is opened.
type Under<'k> = (&'static Schema, Option<&'k StateKey>);

const BARE: Under<'_> = (&SCHEMA, None);

/// The unit in which disks write: less of it is never written.
const SECTOR_BYTES: usize = 512;

/// What a cut may leave, and the values that may then be found.
struct Cut {
    image: Vec<u8>,
    allowed: BTreeSet<Option<u64>>,
    what: String,
}

/// How much of the steps since the last sync reaches the disk.
#[derive(Debug, Clone, Copy)]
enum Kept {
    All,
    /// All, the last one in part.
    LastTorn,
    /// All but one.
    AllBut(usize),
    /// One alone.
    Alone(usize),
    /// A part of the single sectors, as this number has it.
    Sectors(u64),
}

/// All cuts that `kept` says of, after each of the steps.
fn cuts(synced: &[u8], before: Option<u64>, steps: &[Step]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut synced = synced.to_vec();
    let mut pending: Vec<&Step> = Vec::new();
    let mut allowed = BTreeSet::from([before]);
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Begun(value) => {
                allowed.insert(Some(*value));
            }
            Step::Done(value) => allowed = BTreeSet::from([Some(*value)]),
            Step::Sync => {
                for step in pending.drain(..) {
                    apply(&mut synced, step);
                }
            }
            Step::Write(..) | Step::SetLen(_) => pending.push(step),
        }
        let single = (0..pending.len()).flat_map(|i| [Kept::AllBut(i), Kept::Alone(i)]);
        let seeds = (0..4).map(|seed| Kept::Sectors(seed + 4 * at as u64));
        for kept in [Kept::All, Kept::LastTorn].into_iter().chain(single).chain(seeds) {
            cuts.push(Cut {
                image: left(&synced, &pending, kept),
                allowed: allowed.clone(),
                what: format!("after step {at}, {} unsynced, {kept:?}", pending.len()),
            });
        }
    }
    cuts
}

fn left(synced: &[u8], pending: &[&Step], kept: Kept) -> Vec<u8> {
    let mut image = synced.to_vec();
    let mut dice = match kept {
        Kept::Sectors(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        _ => 0,
    };
    for (index, step) in pending.iter().enumerate() {
        match kept {
            Kept::AllBut(gone) if gone == index => {}
            Kept::Alone(only) if only != index => {}
            Kept::LastTorn if index + 1 == pending.len() => tear(&mut image, step, |sector| sector == 0),
            Kept::Sectors(_) => tear(&mut image, step, |_| {
                // xorshift: any fair dice will do.
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                dice & 1 == 0
            }),
            _ => apply(&mut image, step),
        }
    }
    image
}

/// Applies those sectors of a write that `reaches` lets through.
fn tear(image: &mut Vec<u8>, step: &Step, mut reaches: impl FnMut(usize) -> bool) {
    match step {
        Step::Write(offset, data) => {
            // Sectors of the disk, not of the write.
            let mut start = 0;
            while start < data.len() {
                let end = ((offset + start) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                let end = end.min(data.len());
                if reaches(start / SECTOR_BYTES) {
                    apply(image, &Step::Write(offset + start, data[start..end].to_vec()));
                }
                start = end;
            }
        }
        _ if reaches(0) => apply(image, step),
        _ => {}
    }
}

/// Opens the image as the next start of the program does, and gives the value that all rows have.
fn found_in(image: &[u8], (schema, key): Under<'_>, what: &str) -> Option<u64> {
    let disk = Box::new(Disk::holding(image.to_vec()));
    let examined = Generation::examined(Path::new("image"), disk, &Seals::new(schema, key));
    let opened =
        examined.and_then(|_| Database::open_with_backend_under(key, Disk::holding(image.to_vec()), schema));
    let database = opened.unwrap_or_else(|error| panic!("{what}: {error}: {error:?}"));
    let found = database
        .read(|r| {
            let title = r.get(&TITLE, &Only)?.map(|note| value_of(&note.text));
            for (_, note) in r.list(&NOTES)? {
                assert_eq!(Some(value_of(&note.text)), title, "{what}: half a write");
            }
            Ok::<_, StoreError>(title)
        })
        .unwrap_or_else(|error| panic!("{what}: {error}: {error:?}"));
    database
        .write(|w| write_value(w, 99, 1))
        .unwrap_or_else(|error| panic!("{what}: cannot be written: {error}: {error:?}"));
    found
}

fn value_of(text: &str) -> u64 {
    text.trim_end_matches('.').parse().unwrap()
}

/// One write that leaves no row as it was: all say `value`.
fn write_value(w: &mut Writer<'_>, value: u64, rows: u64) -> Result<(), StoreError> {
    // Two rows to a page.
    let text = note(format!("{value}{}", ".".repeat(1500)));
    for (key, _) in w.list(&NOTES)? {
        if key >= rows {
            w.remove(&NOTES, &key)?;
        }
    }
    for key in 0..rows {
        w.put(&NOTES, &key, &text)?;
    }
    w.put(&TITLE, &Only, &text)
}

/// Opens, makes writes of so many rows each, closes, and gives what the disk saw.
fn life(image: &[u8], (schema, key): Under<'_>, first: u64, writes: &[u64]) -> Vec<Step> {
    let disk = Disk::holding(image.to_vec());
    let database = Database::open_with_backend_under(key, disk.clone(), schema).unwrap();
    for (value, rows) in (first..).zip(writes) {
        disk.note(Step::Begun(value));
        database.write(|w| write_value(w, value, *rows)).unwrap();
        disk.note(Step::Done(value));
    }
    drop(database);
    disk.steps()
}

/// Opens what each of the cuts leaves. Gives them.
fn check(image: &[u8], before: Option<u64>, steps: &[Step], under: Under<'_>) -> Vec<Cut> {
    let cuts = cuts(image, before, steps);
    for cut in &cuts {
        let found = found_in(&cut.image, under, &cut.what);
        assert!(
            cut.allowed.contains(&found),
            "{}: {found:?} is none of {:?}",
            cut.what,
            cut.allowed
        );
    }
    cuts
}

#[test]
fn every_cut_leaves_the_old_or_the_new_value() {
    let new = new_store();
    // The file grows and shrinks on the way.
    let cuts = check(&new, None, &life(&new, BARE, 1, &[1, 12, 2]), BARE);
    assert!(
        cuts.len() > 200,
        "{} cuts are too few to mean anything",
        cuts.len()
    );
}

#[test]
fn every_cut_of_a_sealed_store_leaves_the_old_or_the_new_value() {
    let key = state_key(1);
    let under = (&SECRET, Some(&key));
    let new = new_store();
    let cuts = check(&new, None, &life(&new, under, 1, &[1, 12, 2]), under);
    assert!(cuts.len() > 200);
}

#[test]
fn a_cut_while_an_earlier_one_is_repaired_does_no_harm() {
    let new = new_store();
    let first = check(&new, None, &life(&new, BARE, 1, &[1, 1]), BARE);
    // Three are enough: what repairs do differs little from one cut to the next.
    for cut in first.iter().step_by(first.len() / 3) {
        let before = found_in(&cut.image, BARE, &cut.what);
        check(&cut.image, before, &life(&cut.image, BARE, 50, &[2]), BARE);
    }
}

#[test]
fn a_cut_during_a_migration_leaves_it_undone_or_done() {
    const RAISED: Schema = Schema {
        name: SCHEMA.name,
        version: 2,
        migrations: &[|w| write_value(w, 2, 8)],
        sealed: &[],
    };
    let disk = Disk::holding(new_store());
    let database = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
    database.write(|w| write_value(w, 1, 4)).unwrap();
    drop(database);
    let image = disk.bytes();
    let disk = Disk::holding(image.clone());
    drop(Database::open_with_backend(disk.clone(), &RAISED).unwrap());
    // However far it came, the next start takes it to the end.
    let cuts = check(&image, Some(2), &disk.steps(), (&RAISED, None));
    assert!(!cuts.is_empty());
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let new = new_store();
    let steps: Vec<Step> = life(&new, BARE, 1, &[1])
        .into_iter()
        .filter(|step| !matches!(step, Step::Sync))
        .collect();
    let lost = cuts(&new, None, &steps).into_iter().any(|cut| {
        let opened = Database::open_with_backend(Disk::holding(cut.image), &SCHEMA);
        let found = opened.map(|database| database.read(|r| r.get(&TITLE, &Only)));
        !matches!(found, Ok(Ok(note)) if cut.allowed.contains(&note.as_ref().map(|note| value_of(&note.text))))
    });
    assert!(lost, "the cuts of these tests would not notice a missing sync");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]
    #[test]
    fn any_writes_survive_any_cut(writes in proptest::collection::vec(0u64..6, 1..3)) {
        let new = new_store();
        check(&new, None, &life(&new, BARE, 1, &writes), BARE);
    }
}
