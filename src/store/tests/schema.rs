//! Stores of earlier and later programs. The file under `tests/fixtures/store` was written by
//! the first schema here and must open for ever.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::database::{Database, OpenError, Schema, StoreError, Table, Writer};
use super::super::record::{self, Only, Record, RecordError};
use super::{SCHEMA, TITLE, note, put_two};
use crate::base::id::PeerId;

/// What the fixture was written with.
const FIRST: Schema = Schema {
    name: "upgrade-test",
    version: 1,
    migrations: &[],
    sealed: &[],
};

/// Version 2 keys the boxes by id; version 3 is rid of a table.
const THIRD: Schema = Schema {
    name: "upgrade-test",
    version: 3,
    migrations: &[key_boxes_by_id, drop_drafts],
    sealed: &[],
};

const BOXES_BY_NUMBER: Table<u64, FirstBox> = Table::new("boxes");
const DRAFTS: Table<String, FirstBox> = Table::new("drafts");
const BOXES: Table<PeerId, SecondBox> = Table::new("boxes_by_id");

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FirstBox {
    name: String,
}

impl Record for FirstBox {
    const VERSION: u8 = 1;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SecondBox {
    name: String,
    site: Option<String>,
}

impl Record for SecondBox {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Result<Self, RecordError> {
        match version {
            1 => record::decode_content(bytes).map(|FirstBox { name }| Self { name, site: None }),
            found => Err(RecordError::UnknownVersion {
                found,
                known: Self::VERSION,
            }),
        }
    }
}

fn id(number: u64) -> PeerId {
    PeerId::from_uuid(uuid::Uuid::from_u128(number.into()))
}

fn key_boxes_by_id(w: &mut Writer<'_>) -> Result<(), StoreError> {
    for (number, FirstBox { name }) in w.list(&BOXES_BY_NUMBER)? {
        w.put(&BOXES, &id(number), &SecondBox { name, site: None })?;
    }
    w.delete_table(&BOXES_BY_NUMBER)
}

fn drop_drafts(w: &mut Writer<'_>) -> Result<(), StoreError> {
    w.delete_table(&DRAFTS)
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/schema-1.redb")
}

fn in_directory(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("store.redb")
}

/// Writes the fixture. Not run with the others: a fixture that is made anew proves nothing.
#[test]
#[ignore = "writes tests/fixtures/store/schema-1.redb"]
fn record_the_fixture() {
    let database = Database::open(&fixture(), &FIRST).unwrap();
    database
        .write(|w| {
            for (number, name) in [(1, "shop-17"), (2, "mill-3"), (u64::MAX, "käfer")] {
                let name = name.to_owned();
                w.put(&BOXES_BY_NUMBER, &number, &FirstBox { name })?;
            }
            let name = "unsent".to_owned();
            w.put(&DRAFTS, &"draft".to_owned(), &FirstBox { name })
        })
        .unwrap();
}

fn check_raised(database: &Database) {
    database
        .read(|r| {
            let names: Vec<_> = r
                .list(&BOXES)?
                .into_iter()
                .map(|(id, row)| (id, row.name))
                .collect();
            let expected = [(1, "shop-17"), (2, "mill-3"), (u64::MAX, "käfer")];
            assert_eq!(
                names,
                expected.map(|(number, name)| (id(number), name.to_owned()))
            );
            assert_eq!(r.count(&BOXES_BY_NUMBER)? + r.count(&DRAFTS)?, 0);
            Ok::<_, StoreError>(())
        })
        .unwrap();
}

#[test]
fn a_recorded_store_of_the_first_schema_is_raised_to_the_third() {
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    check_raised(&Database::open(&path, &THIRD).unwrap());
    check_raised(&Database::open(&path, &THIRD).unwrap());
}

#[test]
fn a_recorded_store_is_read_in_the_newest_schema_without_being_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    check_raised(&Database::open_read_only(&path, &THIRD).unwrap());
    assert_eq!(fs::read(&path).unwrap(), fs::read(fixture()).unwrap());
}

#[test]
fn a_record_of_an_earlier_version_is_upgraded_where_it_is_read() {
    const SAME_TABLE: Table<u64, SecondBox> = Table::new("boxes");
    let database = Database::open_read_only(&fixture(), &FIRST).unwrap();
    let row = database.read(|r| r.get(&SAME_TABLE, &2)).unwrap().unwrap();
    assert_eq!(row.name, "mill-3");
}

#[test]
fn a_record_of_a_newer_version_is_named_and_refused() {
    const AS_FIRST: Table<PeerId, FirstBox> = Table::new("boxes_by_id");
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    let database = Database::open(&path, &THIRD).unwrap();
    let error = database.read(|r| r.get(&AS_FIRST, &id(1))).unwrap_err();
    assert!(matches!(
        error,
        StoreError::NewerRecord {
            found: 2,
            known: 1,
            ..
        }
    ));
    let shown = error.to_string();
    assert!(
        shown.contains("boxes_by_id") && shown.contains(&id(1).to_string()),
        "{shown}"
    );
}

#[test]
fn a_newer_schema_is_refused_and_the_file_is_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    drop(Database::open(&path, &THIRD).unwrap());
    let before = fs::read(&path).unwrap();
    for error in [
        Database::open(&path, &FIRST).unwrap_err(),
        Database::open_read_only(&path, &FIRST).unwrap_err(),
    ] {
        assert!(matches!(
            error,
            OpenError::NewerSchema {
                found: 3,
                known: 1,
                ..
            }
        ));
        assert!(error.to_string().contains("Update the program"), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_schema_is_refused_unchanged_even_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    let running = Database::open(&path, &THIRD).unwrap();
    running.write(|w| w.put(&TITLE, &Only, &note("x"))).unwrap();
    // What a crash would leave: the file of a store that is open.
    let crashed = directory.path().join("crashed.redb");
    fs::copy(&path, &crashed).unwrap();
    let before = fs::read(&crashed).unwrap();
    assert!(matches!(
        Database::open(&crashed, &FIRST),
        Err(OpenError::NewerSchema { .. })
    ));
    check_raised(&Database::open_read_only(&crashed, &THIRD).unwrap());
    assert_eq!(fs::read(&crashed).unwrap(), before);
    check_raised(&Database::open(&crashed, &THIRD).unwrap());
}

#[test]
fn a_store_of_another_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    put_two(&Database::open(&path, &SCHEMA).unwrap(), "first").unwrap();
    let before = fs::read(&path).unwrap();
    let error = Database::open(&path, &FIRST).unwrap_err();
    assert!(matches!(&error, OpenError::OtherStore { found, .. } if found == SCHEMA.name));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_migration_that_fails_is_undone() {
    const FAILING: Schema = Schema {
        name: "upgrade-test",
        version: 3,
        migrations: &[key_boxes_by_id, |_| Err(StoreError::Stopping)],
        sealed: &[],
    };
    let directory = tempfile::tempdir().unwrap();
    let path = in_directory(&directory);
    fs::copy(fixture(), &path).unwrap();
    let error = Database::open(&path, &FAILING).unwrap_err();
    assert!(matches!(error, OpenError::Migration { from: 1, to: 3, .. }));
    let database = Database::open(&path, &FIRST).unwrap();
    assert_eq!(database.read(|r| r.count(&BOXES_BY_NUMBER)).unwrap(), 3);
}
