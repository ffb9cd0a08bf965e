//! A disk that fails for a while. The store says so, loses nothing, and goes on by itself.

use std::path::Path;

use super::super::database::{Database, StoreError};
use super::super::record::Only;
use super::super::seal::Seals;
use super::disk::{Disk, Fault, new_store};
use super::{NOTES, SCHEMA, TITLE, note, put_two};

fn store_on(disk: &Disk) -> Database {
    let source = disk.clone();
    Database::open_source(
        Path::new("test"),
        Box::new(move || Box::new(source.clone())),
        &Seals::new(&SCHEMA, None),
    )
    .unwrap()
}

fn title(database: &Database) -> String {
    database.read(|r| r.get(&TITLE, &Only)).unwrap().unwrap().text
}

fn put_again(database: &Database, text: &str) -> Result<(), StoreError> {
    database.write(|w| w.put_again(&TITLE, &Only, &note(text)))
}

fn put_much(database: &Database) -> Result<(), StoreError> {
    database.write(|w| {
        w.put(&TITLE, &Only, &note("much"))?;
        (0..200).try_for_each(|key| w.put(&NOTES, &key, &note("x".repeat(2000))))
    })
}

#[test]
fn a_full_disk_is_said_and_outlived() {
    let disk = Disk::holding(new_store());
    let database = store_on(&disk);
    put_two(&database, "first").unwrap();
    disk.fail(Some(Fault::Full));
    assert!(matches!(put_much(&database), Err(StoreError::DiskFull)));
    assert_eq!(title(&database), "first");
    put_two(&database, "small").unwrap();
    assert!(!database.is_failing());
    assert!(matches!(put_much(&database), Err(StoreError::DiskFull)));
    disk.fail(None);
    assert_eq!(title(&database), "small");
    assert!(database.is_failing(), "a read says nothing of writes");
    let why = database.failure().unwrap();
    assert!(why.contains("full"), "{why}");
    put_much(&database).unwrap();
    assert!(!database.is_failing());
    assert_eq!(title(&database), "much");
    drop(database);
    assert_eq!(title(&store_on(&Disk::holding(disk.bytes()))), "much");
}

#[test]
fn a_disk_that_takes_no_writes_is_read_on() {
    let disk = Disk::holding(new_store());
    let database = store_on(&disk);
    put_two(&database, "first").unwrap();
    disk.fail(Some(Fault::TakesNoWrites));
    let bytes = disk.bytes();
    for _ in 0..3 {
        assert!(matches!(put_two(&database, "second"), Err(StoreError::Io(_))));
        assert_eq!(title(&database), "first");
        assert!(database.is_failing());
    }
    assert_eq!(disk.bytes(), bytes);
    put_again(&database, "first").unwrap_err();
    assert!(database.is_failing(), "asked with what is there already");
    disk.fail(None);
    put_two(&database, "first").unwrap();
    assert!(database.is_failing(), "what changes nothing is not written");
    put_again(&database, "first").unwrap();
    assert_eq!((database.failure(), title(&database)), (None, "first".to_owned()));
    put_two(&database, "third").unwrap();
    assert_eq!(title(&database), "third");
}

#[test]
fn after_a_failed_sync_the_store_has_the_old_or_the_new_value() {
    let disk = Disk::holding(new_store());
    let database = store_on(&disk);
    put_two(&database, "first").unwrap();
    disk.fail(Some(Fault::CannotSync));
    assert!(matches!(put_two(&database, "second"), Err(StoreError::Io(_))));
    disk.fail(None);
    let found = title(&database);
    assert!(["first", "second"].contains(&found.as_str()), "{found}");
    put_two(&database, "third").unwrap();
    assert_eq!(title(&database), "third");
}

#[test]
fn a_read_that_was_begun_before_a_failure_never_sees_other_bytes() {
    let disk = Disk::holding(new_store());
    let database = store_on(&disk);
    put_two(&database, "first").unwrap();
    let seen = database.read(|r| {
        disk.fail(Some(Fault::Full));
        assert!(put_much(&database).is_err());
        disk.fail(None);
        // Opens the file anew, and writes to the pages that the reader has not read yet.
        (0..9).try_for_each(|n| put_two(&database, &format!("later {n}")))?;
        r.get(&TITLE, &Only)
    });
    assert!(
        matches!(&seen, Err(StoreError::Io(_))) || seen.as_ref().is_ok_and(|n| *n == Some(note("first"))),
        "{seen:?}"
    );
}
