//! The state on disk: broken, gone, full, and the second copy.

use std::fs;

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::contract::ACCEPT_PATH;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::satellite::membership_store::{COPY_FILE, MembershipStore, SCHEMA, STORE_FILE};
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::store::database::{Database, StoreError, Table};
use powernode_satellite::store::record::Record;
use serde::{Deserialize, Serialize};

use crate::scripted_parent::site::{Site, invitation};
use crate::scripted_parent::{Answer, ScriptedParent};
use crate::small_disk::SmallDisk;

#[tokio::test]
async fn a_broken_store_is_replaced_from_the_second_copy_and_said() {
    let parent = ScriptedParent::start();
    for (content, words) in [
        (Some(Vec::new()), "damaged"),
        (Some(vec![0xa5; 8_192]), "damaged"),
        (None, "gone"),
    ] {
        parent.mint(crate::scripted_parent::TOKEN);
        let site = Site::joined(&parent).await;
        let path = site.path().join(STORE_FILE);
        match &content {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let (peeked, _) = MembershipStore::peek(site.path(), None).unwrap();
        assert!(
            matches!(peeked.state, Some(JoinState::Joined(_))),
            "{words}: {:?}",
            peeked.state
        );
        assert!(peeked.recovered.is_some(), "{words}");
        let running = site.run().await;
        let report = running.wait("active", StatusReport::is_active).await;
        let said = report.store.recovered.unwrap();
        assert!(said.contains(words) && said.contains("second copy"), "{said}");
        running.stop().await;
        assert_eq!(site.open().await.unwrap().1.recovered, None, "said once");
    }
}

#[tokio::test]
async fn a_power_cut_in_the_middle_of_the_recovery_loses_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    fs::remove_file(site.path().join(STORE_FILE)).unwrap();
    // As if the power went after the new store was made and before it was filled.
    drop(Database::open(&site.path().join(STORE_FILE), &SCHEMA).unwrap());
    let (peeked, _) = MembershipStore::peek(site.path(), None).unwrap();
    assert!(matches!(peeked.state, Some(JoinState::Joined(_))));
    let (_store, loaded) = site.open().await.unwrap();
    assert!(matches!(loaded.state, Some(JoinState::Joined(_))));
    assert!(loaded.recovered.unwrap().contains("second copy"));
}

#[tokio::test]
async fn a_broken_copy_is_mended() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let copy = site.path().join(COPY_FILE);
    let whole = fs::read(&copy).unwrap();
    for broken in [Vec::new(), b"garbage".to_vec()] {
        fs::write(&copy, broken).unwrap();
        let (_store, loaded) = site.open().await.unwrap();
        assert!(matches!(loaded.state, Some(JoinState::Joined(_))));
        assert_eq!(loaded.recovered, None, "the store was whole");
        assert_eq!(fs::read(&copy).unwrap(), whole);
    }
}

#[tokio::test]
async fn both_broken_is_an_error_that_says_so_and_destroys_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let (store, copy) = (site.path().join(STORE_FILE), site.path().join(COPY_FILE));
    fs::write(&store, vec![0xa5; 8_192]).unwrap();
    fs::write(&copy, b"garbage").unwrap();
    let error = MembershipStore::open(site.path(), None).unwrap_err();
    let said = error_chain(&error);
    for words in [
        "second copy",
        "damaged",
        site.path().to_str().unwrap(),
        "join again",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(fs::read(&copy).unwrap(), b"garbage");
    assert_eq!(fs::read(&store).unwrap(), vec![0xa5; 8_192]);

    // A store that is gone and a copy that is broken: a new start, but not a silent one.
    fs::remove_file(&store).unwrap();
    let (_store, loaded) = site.open().await.unwrap();
    assert!(loaded.state.is_none());
    let said = loaded.recovered.unwrap();
    assert!(
        said.contains("gone") && said.contains("damaged") && said.contains("join"),
        "{said}"
    );
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again_and_nothing_goes_on_before() {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::Never);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    parent
        .wait("an accept", |book| (book.count(ACCEPT_PATH) == 1).then_some(()))
        .await;
    // The second copy is part of what must be durable, and a directory is in its place.
    let copy = site.path().join(COPY_FILE);
    fs::remove_file(&copy).unwrap();
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("x"), "x").unwrap();
    parent.break_tunnels();
    let report = running
        .wait("the trouble is shown", |report| report.store.last_error.is_some())
        .await;
    assert_eq!(report.state, "sent", "what is not durable is not true yet");
    let why = report.store.last_error.unwrap();
    assert!(why.contains("second copy"), "{why}");
    assert!(parent.book().heartbeats().is_empty());
    fs::remove_dir_all(&copy).unwrap();
    let report = running.wait("joined", |report| report.state == "joined").await;
    assert_eq!(report.store.last_error, None);
    running.stop().await;
    let book = parent.book();
    assert_eq!((book.peers_made, book.count(ACCEPT_PATH)), (1, 2));
}

/// One whose state is on that disk.
fn site_on(disk: &SmallDisk) -> Site {
    let mut site = Site::new();
    let state = disk.path().join("state");
    fs::create_dir(&state).unwrap();
    let plain = std::mem::replace(&mut site.dir, tempfile::tempdir_in(&state).unwrap());
    drop(plain);
    site
}

#[tokio::test]
async fn a_full_disk_stops_the_join_but_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let parent = ScriptedParent::start();
    let site = site_on(&disk);

    parent.next(ACCEPT_PATH, Answer::Never);
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    parent
        .wait("an accept", |book| (book.count(ACCEPT_PATH) == 1).then_some(()))
        .await;
    disk.fill();
    parent.break_tunnels();
    // The answer comes and cannot be stored: it is kept, and stored when there is room.
    let report = running
        .wait("the trouble is shown", |report| report.store.last_error.is_some())
        .await;
    assert_eq!(report.state, "sent");
    let why = report.store.last_error.unwrap();
    assert!(why.contains("full"), "{why}");
    disk.empty();
    running.wait("joined", |report| report.state == "joined").await;
    running.stop().await;
    assert_eq!(parent.book().peers_made, 1);
    drop(site);
}

/// What a member may have to keep besides its state.
#[derive(Serialize, Deserialize)]
struct Large(String);

impl Record for Large {
    const VERSION: u8 = 1;
}

#[tokio::test]
async fn a_member_tells_of_a_disk_that_is_full_for_others_than_its_state() {
    let Some(disk) = SmallDisk::mount() else { return };
    let parent = ScriptedParent::start();
    let site = site_on(&disk);
    let (store, loaded) = site.open().await.unwrap();
    let running = site.run_on(store.clone(), loaded);
    running.join(invitation(&parent)).await;
    running.wait("joined", |report| report.state == "joined").await;
    // What it has told is written by then.
    running
        .wait("a heartbeat", |report| {
            report.heartbeat.last_acknowledged_at.is_some()
        })
        .await;

    // No state, and in the same store: as the log and the grants are.
    let table = Table::<u64, Large>::new("large");
    let large = Large("x".repeat(32 * 1024));
    let full = store
        .database()
        .write(|w| (0..200).try_for_each(|key| w.put(&table, &key, &large)))
        .unwrap_err();
    assert!(matches!(full, StoreError::DiskFull), "{full}");
    assert!(store.is_failing());
    parent.break_tunnels();
    let report = running
        .wait("the trouble is shown", |report| report.store.last_error.is_some())
        .await;
    assert!(report.store.last_error.unwrap().contains("full"));

    let small = Large("x".to_owned());
    store.database().write(|w| w.put(&table, &0, &small)).unwrap();
    parent.break_tunnels();
    running
        .wait("all is well", |report| report.store.last_error.is_none())
        .await;
    running.stop().await;
    drop(store);
    drop(site);
}
