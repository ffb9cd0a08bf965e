//! What a write costs a memory card. The numbers stand in the documentation of `database`.

use super::super::database::{Database, StoreError, Writer};
use super::super::record::Only;
use super::disk::{Disk, Step, new_store};
use super::{NOTES, SCHEMA, TITLE, note};

/// Bytes and syncs since `from` steps.
fn cost(disk: &Disk, from: usize) -> (usize, usize) {
    disk.steps()[from..]
        .iter()
        .fold((0, 0), |(bytes, syncs), step| match step {
            Step::Write(_, data) => (bytes + data.len(), syncs),
            Step::Sync => (bytes, syncs + 1),
            Step::SetLen(_) | Step::Begun(_) | Step::Done(_) => (bytes, syncs),
        })
}

#[test]
fn a_small_write_costs_a_few_pages_and_one_sync() {
    let disk = Disk::holding(new_store());
    let database = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
    let fill = |w: &mut Writer<'_>| (0..1000).try_for_each(|key| w.put(&NOTES, &key, &note("y".repeat(300))));
    database.write(fill).unwrap();
    for n in 0..50 {
        let from = disk.steps().len();
        let written = database.written_bytes();
        database
            .write(|w| w.put(&NOTES, &(n * 20), &note(format!("{n}"))))
            .unwrap();
        let (bytes, syncs) = cost(&disk, from);
        assert!(bytes <= 32 * 1024, "{bytes} bytes");
        assert_eq!(syncs, 1);
        assert_eq!(database.written_bytes() - written, bytes as u64);
    }
}

#[test]
fn opening_reading_and_closing_cost_little() {
    let disk = Disk::holding(new_store());
    let database = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
    for _ in 0..100 {
        database.read(|r| r.get(&TITLE, &Only)).unwrap();
    }
    assert!(cost(&disk, 0).0 <= 1024);
    drop(database);
    assert!(cost(&disk, 0).0 <= 32 * 1024);
}

#[test]
fn a_store_that_was_large_once_gives_its_room_back() {
    let disk = Disk::holding(new_store());
    let database = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
    let put = |key| move |w: &mut Writer<'_>| w.put(&NOTES, &key, &note("y".repeat(1000)));
    database
        .write(|w| (0..2000).try_for_each(|key| put(key)(w)))
        .unwrap();
    let large = database.size_bytes();
    assert!(large > 2_000_000, "{large}");
    database
        .write(|w| (0..2000).try_for_each(|key| w.remove(&NOTES, &key).map(|_| ())))
        .unwrap();
    for n in 0..8 {
        database
            .write(|w| w.put(&TITLE, &Only, &note(format!("{n}"))))
            .unwrap();
    }
    drop(database);
    let small = disk.bytes().len() as u64;
    assert!(small < large / 5, "{small} of {large}");
    let reopened = Database::open_with_backend(disk, &SCHEMA).unwrap();
    assert_eq!(reopened.size_bytes(), small);
    reopened
        .read(|r| r.count(&NOTES))
        .map(|n| assert_eq!(n, 0))
        .unwrap();
}

#[tokio::test]
async fn the_async_twins_do_the_same() {
    let database = Database::open_with_backend(Disk::holding(new_store()), &SCHEMA).unwrap();
    database
        .write_async(|w| w.put(&TITLE, &Only, &note("async")))
        .await
        .unwrap();
    let read = database.read_async(|r| r.get(&TITLE, &Only)).await.unwrap();
    assert_eq!(read, Some(note("async")));
    let refused: Result<(), StoreError> = database.write_async(|_| Err(StoreError::Stopping)).await;
    assert!(matches!(refused, Err(StoreError::Stopping)));
}
