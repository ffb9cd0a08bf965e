//! Stores under a state key: what is in their files, and what opens them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::super::copy;
use super::super::database::{Database, OpenError, Schema, StoreError};
use super::super::record::{Key as _, Only};
use super::super::seal::{self, SealError};
use super::super::state_key::StateKey;
use super::{NOTES, Note, SCHEMA, TITLE, note, state_key};
use crate::base::secret::Secret;

/// The title is secret, the notes are not.
static TITLE_SECRET: Schema = Schema {
    sealed: &[TITLE.name()],
    ..SCHEMA
};

/// All is secret.
static ALL_SECRET: Schema = Schema {
    sealed: &[TITLE.name(), NOTES.name()],
    ..SCHEMA
};

const WORD: &str = "correct horse battery staple";

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    (directory, path)
}

fn open(key: Option<&StateKey>, path: &Path) -> Result<Database, OpenError> {
    Database::open_under(key, path, &TITLE_SECRET)
}

fn write(database: &Database, title: &str) {
    database
        .write(|w| {
            w.put(&TITLE, &Only, &note(title))?;
            w.put(&NOTES, &1, &note("public"))
        })
        .map_err(|error: StoreError| error)
        .unwrap();
}

fn title(database: &Database) -> Result<Option<Note>, StoreError> {
    database.read(|r| r.get(&TITLE, &Only))
}

fn has(path: &Path, word: &str) -> bool {
    let bytes = fs::read(path).unwrap();
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

fn refusal(opened: Result<Database, OpenError>) -> SealError {
    match opened.unwrap_err() {
        OpenError::Sealed { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_secret_is_not_in_the_file() {
    let (_directory, path) = place();
    let key = state_key(1);
    let database = open(Some(&key), &path).unwrap();
    assert!(database.is_sealed());
    write(&database, WORD);
    assert_eq!(title(&database).unwrap(), Some(note(WORD)));
    drop(database);
    assert!(!has(&path, WORD));
    assert!(has(&path, "public"), "the search would not find it anyway");
    let read_only = Database::open_read_only_under(Some(&key), &path, &TITLE_SECRET).unwrap();
    assert_eq!(title(&read_only).unwrap(), Some(note(WORD)));
    assert!(read_only.is_sealed());
}

#[test]
fn without_its_key_a_sealed_store_is_left_alone() {
    let (_directory, path) = place();
    let (key, other) = (state_key(1), state_key(2));
    write(&open(Some(&key), &path).unwrap(), WORD);
    let before = fs::read(&path).unwrap();
    let sealed_with = key.id();
    let wrong = SealError::OtherKey {
        sealed_with,
        given: other.id(),
    };
    assert_eq!(refusal(open(None, &path)), SealError::NoKey { sealed_with });
    assert_eq!(refusal(open(Some(&other), &path)), wrong);
    let read_only = |key| Database::open_read_only_under(key, &path, &TITLE_SECRET);
    assert_eq!(refusal(read_only(None)), SealError::NoKey { sealed_with });
    assert_eq!(refusal(read_only(Some(&other))), wrong);
    assert!(matches!(
        Database::unseal(&other, &path, &TITLE_SECRET),
        Err(OpenError::Sealed { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_program_that_knows_no_seals_takes_it_for_a_newer_one() {
    let (_directory, path) = place();
    write(&open(Some(&state_key(1)), &path).unwrap(), WORD);
    let raw = redb::Database::open(&path).unwrap();
    let definition = redb::TableDefinition::<&[u8], &[u8]>::new(TITLE.name());
    let rows = redb::ReadableDatabase::begin_read(&raw)
        .unwrap()
        .open_table(definition)
        .unwrap();
    let stored = rows.get(Only.encode().as_slice()).unwrap().unwrap();
    assert!(stored.value()[0] > <Note as super::Record>::VERSION);
}

/// What no row has any more, and a freed page still has.
const FORGOTTEN: &str = "the secret of an earlier day";

/// A life without a key, long enough for pages to be freed and not yet used again.
fn lived_without(path: &Path) {
    let database = open(None, path).unwrap();
    (0..20).for_each(|n| write(&database, &format!("{WORD} {n}")));
    write(&database, FORGOTTEN);
    write(&database, &format!("{WORD} 9"));
    drop(database);
    assert!(has(path, WORD));
    assert!(has(path, FORGOTTEN), "no freed page is left");
}

#[test]
fn a_key_that_comes_later_seals_all_and_leaves_no_old_page() {
    let (directory, path) = place();
    lived_without(&path);
    let old = fs::File::open(&path).unwrap();
    let key = state_key(1);
    let database = open(Some(&key), &path).unwrap();
    assert!(database.is_sealed());
    assert_eq!(title(&database).unwrap(), Some(note(format!("{WORD} 9"))));
    let notes = database.read(|r| r.list(&NOTES)).unwrap();
    assert_eq!(notes, [(1, note("public"))]);
    // Another writer cannot have it, as before.
    assert!(open(Some(&key), &path).unwrap_err().holder().is_some());
    drop(database);
    assert!(!has(&path, WORD) && !has(&path, FORGOTTEN));
    // Whoever still has the old file open sees zeros in it.
    let mut left = Vec::new();
    std::io::Read::read_to_end(&mut &old, &mut left).unwrap();
    assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "no draft is left"
    );
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let sealed = fs::read(&path).unwrap();
    drop(open(Some(&key), &path).unwrap());
    let inode = fs::metadata(&path).unwrap().ino();
    drop(open(Some(&key), &path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "sealed once");
    assert!(sealed.len() < 1024 * 1024);
}

#[test]
fn a_file_that_is_linked_elsewhere_is_not_erased() {
    let (directory, path) = place();
    lived_without(&path);
    let backup = directory.path().join("backup");
    fs::hard_link(&path, &backup).unwrap();
    drop(open(Some(&state_key(1)), &path).unwrap());
    assert!(has(&backup, WORD) && !has(&path, WORD));
    assert!(open(None, &backup).is_ok());
}

#[test]
fn a_power_cut_while_sealing_leaves_a_draft_that_does_no_harm() {
    let (directory, path) = place();
    lived_without(&path);
    let key = state_key(1);
    // What the cut may leave of the new file before it has its name: any part of it.
    let (_other, sealed) = place();
    fs::copy(&path, &sealed).unwrap();
    drop(open(Some(&key), &sealed).unwrap());
    let whole = fs::read(&sealed).unwrap();
    let bare = fs::read(&path).unwrap();
    for left in [0, 1, 4096, whole.len() / 2, whole.len()] {
        fs::write(&path, &bare).unwrap();
        fs::write(directory.path().join("store.redb.new"), &whole[..left]).unwrap();
        assert_eq!(
            title(&open(None, &path).unwrap()).unwrap(),
            Some(note(format!("{WORD} 9")))
        );
        let database = open(Some(&key), &path).unwrap();
        assert_eq!(title(&database).unwrap(), Some(note(format!("{WORD} 9"))));
        drop(database);
        assert!(!has(&path, WORD));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_table_that_becomes_secret_is_sealed_at_the_next_start() {
    let (_directory, path) = place();
    let key = state_key(1);
    write(&open(Some(&key), &path).unwrap(), WORD);
    let database = Database::open_under(Some(&key), &path, &ALL_SECRET).unwrap();
    assert_eq!(
        database.read(|r| r.get(&NOTES, &1)).unwrap(),
        Some(note("public"))
    );
    drop(database);
    assert!(!has(&path, "public"));
    // And one that is secret no more is still read.
    let database = open(Some(&key), &path).unwrap();
    assert_eq!(
        database.read(|r| r.get(&NOTES, &1)).unwrap(),
        Some(note("public"))
    );
}

#[test]
fn a_migration_before_the_first_sealing_leaves_nothing_behind() {
    static RAISED: Schema = Schema {
        version: 2,
        migrations: &[|w| w.put(&NOTES, &7, &note("made by the migration"))],
        ..ALL_SECRET
    };
    let (_directory, path) = place();
    lived_without(&path);
    let key = state_key(1);
    let database = Database::open_under(Some(&key), &path, &RAISED).unwrap();
    assert_eq!(database.read(|r| r.count(&NOTES)).unwrap(), 2);
    drop(database);
    assert!(!has(&path, WORD) && !has(&path, "made by the migration"));
}

#[test]
fn the_seals_can_be_taken_off() {
    let (_directory, path) = place();
    let key = state_key(1);
    write(&open(Some(&key), &path).unwrap(), WORD);
    assert!(Database::unseal(&key, &path, &TITLE_SECRET).unwrap());
    assert!(
        !Database::unseal(&key, &path, &TITLE_SECRET).unwrap(),
        "there is nothing to do"
    );
    let database = open(None, &path).unwrap();
    assert!(!database.is_sealed());
    assert_eq!(title(&database).unwrap(), Some(note(WORD)));
    assert!(
        Database::unseal(&key, &path, &TITLE_SECRET)
            .unwrap_err()
            .holder()
            .is_some()
    );
    drop(database);
    // A changed key is one taken off and another put on.
    drop(open(Some(&state_key(2)), &path).unwrap());
    assert!(matches!(
        refusal(open(Some(&key), &path)),
        SealError::OtherKey { .. }
    ));
}

#[test]
fn the_same_value_is_not_written_again_although_its_bytes_would_differ() {
    let (_directory, path) = place();
    let key = state_key(1);
    let database = open(Some(&key), &path).unwrap();
    write(&database, WORD);
    let before = database.written_bytes();
    write(&database, WORD);
    assert_eq!(database.written_bytes(), before);
    write(&database, "other");
    assert!(database.written_bytes() > before);
}

#[test]
fn rows_that_were_exchanged_are_found_out() {
    let (_directory, path) = place();
    let key = state_key(1);
    let database = Database::open_under(Some(&key), &path, &ALL_SECRET).unwrap();
    database
        .write(|w| (1..=2).try_for_each(|n| w.put(&NOTES, &n, &note(format!("note {n}")))))
        .map_err(|error: StoreError| error)
        .unwrap();
    drop(database);
    let raw = redb::Database::open(&path).unwrap();
    let definition = redb::TableDefinition::<&[u8], &[u8]>::new(NOTES.name());
    let transaction = raw.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(definition).unwrap();
        let (first, second) = (1u64.to_be_bytes(), 2u64.to_be_bytes());
        let moved = redb::ReadableTable::get(&rows, &first[..])
            .unwrap()
            .unwrap()
            .value()
            .to_vec();
        rows.insert(&second[..], moved.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(raw);
    let database = Database::open_under(Some(&key), &path, &ALL_SECRET).unwrap();
    let read = |n: u64| database.read(|r| r.get(&NOTES, &n));
    assert_eq!(read(1).unwrap(), Some(note("note 1")));
    let error = read(2).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Sealed {
                source: SealError::Broken,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("row 2"), "{error}");
}

#[test]
fn a_sealed_copy_holds_nothing_readable() {
    let (directory, _) = place();
    let path = directory.path().join("identity.copy");
    let (key, content) = (state_key(1), Secret::from_text(WORD.into()));
    let sealed = seal::seal_copy(&SCHEMA, Some(&key), &content).unwrap();
    copy::write(&path, &sealed).unwrap();
    assert!(!has(&path, WORD));
    let copy::Copy::Whole(copied) = copy::read(&path).unwrap() else {
        panic!("the copy is not whole");
    };
    assert!(
        seal::open_copy(&SCHEMA, Some(&key), &copied)
            .unwrap()
            .matches(&content)
    );
    assert!(seal::open_copy(&SCHEMA, None, &copied).is_err());
}

#[test]
fn a_copy_can_be_replaced_without_leaving_the_old_one() {
    let (directory, _) = place();
    let path = directory.path().join("identity.copy");
    copy::write_and_erase(&path, &Secret::from_text("first".into())).unwrap();
    let old = fs::File::open(&path).unwrap();
    copy::write_and_erase(&path, &Secret::from_text("second".into())).unwrap();
    let mut left = Vec::new();
    std::io::Read::read_to_end(&mut &old, &mut left).unwrap();
    assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0));
    assert!(has(&path, "second"));
}
