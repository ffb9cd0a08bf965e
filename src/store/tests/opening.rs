//! Opening, refusing to open, and the life of an open store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::super::copy;
use super::super::database::{Database, StoreError};
use super::super::record::Only;
use super::{NOTES, SCHEMA, TITLE, note, put_two};
use crate::base::secret::Secret;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("state").join("store.redb")
    }

    /// A closed store with two rows.
    fn filled(&self) -> PathBuf {
        let path = self.path();
        put_two(&Database::open(&path, &SCHEMA).unwrap(), "first").unwrap();
        path
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn title(database: &Database) -> Option<String> {
    database
        .read(|r| r.get(&TITLE, &Only))
        .unwrap()
        .map(|note| note.text)
}

#[test]
fn a_new_store_is_private_and_keeps_what_is_written() {
    let place = Place::new();
    let path = place.filled();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "no draft is left"
    );
    let database = Database::open(&path, &SCHEMA).unwrap();
    assert_eq!(title(&database).as_deref(), Some("first"));
    let notes = database.read(|r| r.list(&NOTES)).unwrap();
    assert_eq!(notes, [(1, note("first"))]);
}

/// Only root can give files away: for anybody else there is nothing to show.
#[test]
fn what_root_makes_in_the_daemons_directory_is_the_daemons() {
    const DAEMON: u32 = 61_999;
    let place = Place::new();
    let directory = place.path().parent().unwrap().to_owned();
    fs::create_dir(&directory).unwrap();
    if chown(&directory, Some(DAEMON), Some(DAEMON)).is_err() {
        return;
    }
    let store = place.filled();
    let second = directory.join("second.copy");
    copy::write(&second, &Secret::new(vec![1])).unwrap();
    for path in [store, second] {
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (DAEMON, DAEMON), "{}", path.display());
        assert_eq!(mode(&path), 0o600);
    }
}

#[test]
fn a_table_without_rows_reads_as_empty() {
    let place = Place::new();
    let database = Database::open(&place.path(), &SCHEMA).unwrap();
    assert_eq!(title(&database), None);
    assert_eq!(database.read(|r| r.count(&NOTES)).unwrap(), 0);
    assert!(database.read(|r| r.list(&NOTES)).unwrap().is_empty());
    assert!(!database.write(|w| w.remove(&NOTES, &1)).unwrap());
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("refused")]
    Refused,
    #[error("store")]
    Store(#[from] StoreError),
}

#[test]
fn a_refused_write_changes_nothing() {
    let place = Place::new();
    let database = Database::open(&place.filled(), &SCHEMA).unwrap();
    let refused = database.write(|w| {
        w.put(&TITLE, &Only, &note("second"))?;
        assert_eq!(w.get(&TITLE, &Only)?, Some(note("second")));
        Err::<(), _>(Refusal::Refused)
    });
    assert!(matches!(refused, Err(Refusal::Refused)));
    assert_eq!(title(&database).as_deref(), Some("first"));
}

#[test]
fn a_panic_in_a_write_changes_nothing_and_the_store_goes_on() {
    let place = Place::new();
    let path = place.filled();
    let database = Database::open(&path, &SCHEMA).unwrap();
    let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        database.write(|w| {
            w.put(&TITLE, &Only, &note("second"))?;
            assert!(w.get(&TITLE, &Only)?.is_none(), "this panics");
            Ok::<(), StoreError>(())
        })
    }));
    assert!(panicking.is_err());
    assert_eq!(title(&database).as_deref(), Some("first"));
    put_two(&database, "third").unwrap();
    drop(database);
    assert_eq!(
        title(&Database::open(&path, &SCHEMA).unwrap()).as_deref(),
        Some("third")
    );
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let place = Place::new();
    let database = Database::open(&place.filled(), &SCHEMA).unwrap();
    let before = database.written_bytes();
    put_two(&database, "first").unwrap();
    database.write(|w| w.remove(&NOTES, &7)).unwrap();
    database.write(|w| w.count(&NOTES)).unwrap();
    assert_eq!(database.written_bytes(), before);
}
