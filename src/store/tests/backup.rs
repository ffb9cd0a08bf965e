//! Copies for keeping, and their return.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::backup::BackupError;
use super::super::database::{Database, OpenError};
use super::super::record::Only;
use super::{NOTES, SCHEMA, TITLE, note, put_two};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A closed store whose rows say `text`.
    fn store(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        put_two(&Database::open(&path, &SCHEMA).unwrap(), text).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn back_up(path: &Path, to: &Path) -> Result<(), BackupError> {
    Database::back_up(None, (path, to), &SCHEMA)
}

fn put_back(from: &Path, path: &Path) -> Result<Option<PathBuf>, BackupError> {
    Database::put_back(None, (from, path), &SCHEMA)
}

fn title(path: &Path) -> String {
    let database = Database::open(path, &SCHEMA).unwrap();
    database.read(|r| r.get(&TITLE, &Only)).unwrap().unwrap().text
}

#[test]
fn a_copy_that_is_taken_between_writes_is_one_state_of_the_store() {
    let place = Place::new();
    let path = place.store("store", "0");
    let database = Database::open(&path, &SCHEMA).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1_u64;
            while !done.load(Ordering::Relaxed) {
                // Both rows say the same in each state, and there are enough of them that a copy takes a while.
                let text = format!("{number} {}", "x".repeat(3_000));
                let wrote = database.write(|w| {
                    w.put(&TITLE, &Only, &note(&text))?;
                    (0..50).try_for_each(|row| w.put(&NOTES, &row, &note(&text)))
                });
                wrote.unwrap();
                number += 1;
            }
        });
        for number in 0..10 {
            let copy = place.at(&format!("copy-{number}"));
            let outcome = back_up(&path, &copy);
            // Writes without a pause may run across every try; then it is said, and there is no file.
            match outcome {
                Ok(()) => {
                    let kept = Database::open_read_only(&copy, &SCHEMA).unwrap();
                    let title = kept.read(|r| r.get(&TITLE, &Only)).unwrap().unwrap();
                    let notes = kept.read(|r| r.list(&NOTES)).unwrap();
                    assert!(notes.iter().all(|(_, note)| *note == title), "{}", title.text);
                }
                Err(error) => {
                    assert!(matches!(error, BackupError::NeverWhole { .. }), "{error}");
                    assert!(!copy.exists());
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    back_up(&path, &place.at("last")).unwrap();
    drop(database);
    assert_eq!(title(&place.at("last")), title(&path));
}

#[test]
fn a_copy_takes_the_place_of_no_file_and_leaves_no_half_of_one() {
    let place = Place::new();
    let path = place.store("store", "now");
    let other = place.store("other", "of yesterday");
    let refused = back_up(&path, &other).unwrap_err();
    assert!(matches!(refused, BackupError::Exists { .. }), "{refused}");
    assert_eq!(title(&other), "of yesterday");
    // Its own name, too.
    back_up(&path, &path).unwrap_err();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x5a; 8192], 8192).unwrap();
    let damaged = back_up(&path, &place.at("copy")).unwrap_err();
    assert!(
        matches!(damaged, BackupError::Open(OpenError::Damaged { .. })),
        "{damaged}"
    );
    assert_eq!(place.names(), ["other", "store"]);
}

/// A directory of everybody's, in which somebody knows what a copy will be called.
#[test]
fn a_copy_is_not_written_to_what_another_has_put_in_its_way() {
    let place = Place::new();
    let path = place.store("store", "secret");
    let precious = place.at("precious");
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, place.at("copy.new")).unwrap();
    back_up(&path, &place.at("copy")).unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    std::os::unix::fs::symlink(place.at("nothing"), place.at("second.new")).unwrap();
    back_up(&path, &place.at("second")).unwrap();
    let waiting = place.at("third.new");
    fs::write(&waiting, "").unwrap();
    let eye = File::open(&waiting).unwrap();
    back_up(&path, &place.at("third")).unwrap();
    assert_eq!(eye.metadata().unwrap().len(), 0, "it reads along");
    assert_eq!(title(&place.at("third")), "secret");
    assert_eq!(place.names(), ["copy", "precious", "second", "store", "third"]);
}

#[test]
fn what_is_put_back_takes_the_stores_place_and_what_was_there_is_kept() {
    let place = Place::new();
    let path = place.store("store", "now");
    let from = place.store("backup", "then");
    let before = put_back(&from, &path).unwrap().unwrap();
    assert_eq!(title(&path), "then");
    assert_eq!(title(&before), "now");
    // Once more, and where there is none.
    put_two(&Database::open(&path, &SCHEMA).unwrap(), "later").unwrap();
    assert_eq!(put_back(&from, &path).unwrap().unwrap(), before);
    assert_eq!(title(&before), "later");
    let elsewhere = place.at("new");
    assert_eq!(put_back(&from, &elsewhere).unwrap(), None);
    assert_eq!(title(&elsewhere), "then");
}

#[test]
fn nothing_is_put_back_over_an_open_store_nor_anything_that_is_no_store() {
    let place = Place::new();
    let path = place.store("store", "now");
    let from = place.store("backup", "then");
    let database = Database::open(&path, &SCHEMA).unwrap();
    let held = put_back(&from, &path).unwrap_err();
    assert!(matches!(held, BackupError::InUse { .. }), "{held}");
    drop(database);
    fs::write(place.at("text"), "no store").unwrap();
    put_back(&place.at("text"), &path).unwrap_err();
    let missing = put_back(&place.at("missing"), &path).unwrap_err();
    assert!(
        matches!(missing, BackupError::Open(OpenError::Missing { .. })),
        "{missing}"
    );
    assert_eq!(title(&path), "now");
    assert_eq!(place.names(), ["backup", "store", "text"]);
}
