//! Files that are no store, and stores that another process has.

use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::database::{Damage, Database, OpenError};
use super::super::record::Only;
use super::disk::Disk;
use super::{SCHEMA, TITLE, put_two};

/// Tells a second process of this test program which store it is to open.
const STORE_VARIABLE: &str = "STORE_OF_SECOND_PROCESS";

/// A user other than root; its name does not matter.
const NOBODY: u32 = 65534;

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    (directory, path)
}

fn damage(path: &Path) -> Damage {
    let before = fs::read(path).unwrap();
    let damages = [
        Database::open(path, &SCHEMA),
        Database::open_read_only(path, &SCHEMA),
    ]
    .map(|opened| match opened.unwrap_err() {
        OpenError::Damaged { damage, .. } => damage,
        other => panic!("{other}: {other:?}"),
    });
    assert_eq!(damages[0], damages[1]);
    assert_eq!(fs::read(path).unwrap(), before, "nothing is changed");
    damages[0]
}

#[test]
fn what_is_no_store_is_refused_and_kept() {
    let (_directory, path) = place();
    fs::write(&path, "").unwrap();
    assert_eq!(damage(&path), Damage::Empty);
    fs::write(&path, "[satellite]\nname = \"shop-17\"\n").unwrap();
    assert_eq!(damage(&path), Damage::NotAStore);
    fs::write(&path, vec![0; 100_000]).unwrap();
    assert_eq!(damage(&path), Damage::NotAStore);
    fs::write(&path, vec![0xa5; 100_000]).unwrap();
    assert_eq!(damage(&path), Damage::NotAStore);
}

#[test]
fn a_database_of_something_else_is_no_store() {
    const TABLE: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("numbers");
    let (_directory, path) = place();
    let foreign = redb::Database::create(&path).unwrap();
    let transaction = foreign.begin_write().unwrap();
    transaction.open_table(TABLE).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(foreign);
    assert_eq!(damage(&path), Damage::NotAStore);
}

#[test]
fn a_store_that_cannot_be_used_is_set_aside_and_a_new_one_made() {
    let (_directory, path) = place();
    fs::write(&path, "rubbish").unwrap();
    assert!(Database::open(&path, &SCHEMA).unwrap_err().is_damaged());
    let aside = Database::set_aside(&path).unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"rubbish");
    put_two(&Database::open(&path, &SCHEMA).unwrap(), "anew").unwrap();
}

/// The bytes of a store with two rows.
static FILLED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let disk = Disk::default();
    let database = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
    put_two(&database, &"first".repeat(100)).unwrap();
    drop(database);
    disk.bytes()
});

#[test]
fn a_store_that_was_cut_off_is_damaged_or_whole() {
    let bytes = &*FILLED;
    let (_directory, path) = place();
    for length in (1..bytes.len()).step_by(997) {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_ne!(damage(&path), Damage::Empty, "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_changed_byte_is_noticed_or_does_not_matter(place: prop::sample::Index, other in 1u8..) {
        let mut bytes = FILLED.clone();
        let index = place.index(bytes.len());
        bytes[index] ^= other;
        let (_directory, path) = self::place();
        fs::write(&path, &bytes).unwrap();
        match Database::open(&path, &SCHEMA) {
            Ok(database) => {
                let title = database.read(|r| r.get(&TITLE, &Only)).unwrap();
                prop_assert_eq!(title.map(|note| note.text), Some("first".repeat(100)));
            }
            Err(error) => prop_assert!(error.is_damaged(), "{}: {:?}", error, error),
        }
    }
}

#[test]
fn reading_a_store_that_is_not_there_makes_none() {
    let (directory, path) = place();
    let error = Database::open_read_only(&path, &SCHEMA).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Runs as a second process: opens the store that it is told, says how that went, and keeps it
/// until its input ends.
#[test]
#[ignore = "a part of other tests, which run it in a second process"]
fn second_process() {
    let path = PathBuf::from(std::env::var_os(STORE_VARIABLE).unwrap());
    let opened = Database::open(&path, &SCHEMA);
    match &opened {
        Ok(_) => println!("opened"),
        Err(error) => println!("refused: {error}"),
    }
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A second process, and what it said.
struct Second {
    child: Child,
    // Held open: the process must be able to write until its end.
    output: Lines<BufReader<ChildStdout>>,
    said: String,
}

fn start_second_process(path: &Path, user: Option<u32>) -> io::Result<Second> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "store::tests::refusing::second_process"])
        .args(["--ignored", "--nocapture"])
        .env(STORE_VARIABLE, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let mut child = command.spawn()?;
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = output
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("opened") || line.contains("refused"))
        .unwrap();
    Ok(Second { child, output, said })
}

fn end(mut second: Second) {
    drop(second.child.stdin.take());
    second.output.for_each(drop);
    assert!(second.child.wait().unwrap().success());
}

#[test]
fn a_second_process_is_told_who_has_the_store() {
    let (_directory, path) = place();
    let second = start_second_process(&path, None).unwrap();
    assert!(second.said.contains("opened"), "{}", second.said);
    let pid = second.child.id();
    let program = std::env::current_exe().unwrap();
    let program = program.file_name().and_then(|name| name.to_str());
    assert!(
        program.is_some_and(|name| name.len() > 15),
        "longer than the system's short name"
    );
    for error in [
        Database::open(&path, &SCHEMA).unwrap_err(),
        Database::open_read_only(&path, &SCHEMA).unwrap_err(),
    ] {
        let OpenError::Held { holder, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(error.holder().is_some());
        assert_eq!(holder.pid, Some(pid));
        assert_eq!(holder.command.as_deref(), program);
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
    }
    end(second);
    Database::open(&path, &SCHEMA).unwrap();
}

#[test]
fn what_stands_in_the_way_of_the_directory_is_named() {
    let (directory, _) = place();
    let link = directory.path().join("state");
    std::os::unix::fs::symlink("/mnt/not/there", &link).unwrap();
    for path in [link.join("store.redb"), link.join("deeper").join("store.redb")] {
        let said = Database::open(&path, &SCHEMA).unwrap_err().to_string();
        assert!(
            said.starts_with(&link.display().to_string()) && said.contains("symbolic link to /mnt/not/there"),
            "{said}"
        );
    }
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let said = Database::open(&file.join("store.redb"), &SCHEMA)
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("file is a file where a directory is needed"),
        "{said}"
    );
}

#[test]
fn readers_share_a_store_and_a_writer_waits_for_them() {
    let (_directory, path) = place();
    drop(Database::open(&path, &SCHEMA).unwrap());
    let first = Database::open_read_only(&path, &SCHEMA).unwrap();
    let second = Database::open_read_only(&path, &SCHEMA).unwrap();
    let writer = std::thread::spawn({
        let path = path.clone();
        move || Database::open(&path, &SCHEMA).map(|_| ())
    });
    drop((first, second));
    writer.join().unwrap().unwrap();
}

#[test]
fn a_store_that_is_open_for_reading_is_not_written() {
    let (_directory, path) = place();
    drop(Database::open(&path, &SCHEMA).unwrap());
    let before = fs::read(&path).unwrap();
    let database = Database::open_read_only(&path, &SCHEMA).unwrap();
    let error = put_two(&database, "no").unwrap_err();
    assert!(matches!(error, super::StoreError::ReadOnly));
    drop(database);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn without_permission_the_store_and_what_is_needed_are_named() {
    let (directory, path) = place();
    drop(Database::open(&path, &SCHEMA).unwrap());
    let as_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if as_root {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    } else {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    match start_second_process(&path, as_root.then_some(NOBODY)) {
        Ok(second) => {
            let said = &second.said;
            assert!(said.contains("refused: no permission to open"), "{said}");
            assert!(
                said.contains("store.redb") && said.contains("read and write access"),
                "{said}"
            );
            end(second);
        }
        // The other user cannot see this test program: what is tested here is tested elsewhere.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
}
