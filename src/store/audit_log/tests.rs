//! The log in a real store: what is recorded is kept, what is done to it from outside is found, and no
//! end of the process breaks it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::sync::watch;

use super::rows::{self, AUDIT_ENDS, AUDIT_ROWS};
use super::*;
use crate::audit::chain::{AuditRow, ChainBreak, Verified};
use crate::audit::entry::ExportedEntry;
use crate::audit::query::{AuditQuery, Order, PAGE_MAX_ENTRIES};
use crate::audit::retention::{Occasion, PRUNE_MAX_ROWS, PRUNE_STEP_ROWS};
use crate::audit::{AuditAction, AuditOutcome};
use crate::base::time::UnixTime;
use crate::process::clock::ManualWallClock;
use crate::process::supervisor::{Stage, Supervisor};
use crate::store::database::{OpenError, Schema};
use crate::store::record::Only;
use crate::store::seal::Seals;
use crate::store::tests::disk::{Disk, Fault};

static SCHEMA: Schema = Schema {
    name: "audit-test",
    version: 1,
    migrations: &[],
    sealed: &[],
};

const NOON: UnixTime = UnixTime::from_seconds(1_800_000_000);

const KEEP: Retention = Retention {
    max_age: Duration::from_secs(90 * 86_400),
    max_rows: 10_000,
};

fn store(directory: &Path) -> Database {
    Database::open(&directory.join("store.redb"), &SCHEMA).unwrap()
}

struct Bench {
    directory: tempfile::TempDir,
    database: Database,
    wall: ManualWallClock,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let wall = ManualWallClock::new(NOON);
        Self {
            database: store(directory.path()),
            clock: Clock::with_wall_clock(UnixTime::EPOCH, wall.clone()),
            directory,
            wall,
        }
    }

    fn open(&self, retention: Retention) -> (AuditLog, AuditWriter) {
        let (_, retention) = watch::channel(retention);
        AuditLog::open(self.database.clone(), self.clock.clone(), retention).unwrap()
    }

    /// Records so many events and writes them.
    fn with_rows(rows: u64) -> Self {
        let bench = Self::new();
        bench.add_rows(rows, KEEP);
        bench
    }

    fn add_rows(&self, rows: u64, retention: Retention) {
        for chunk in 0..rows.div_ceil(QUEUE_MAX_EVENTS as u64) {
            let (log, writer) = self.open(retention);
            let begin = chunk * QUEUE_MAX_EVENTS as u64;
            for number in begin..rows.min(begin + QUEUE_MAX_EVENTS as u64) {
                log.record(&event(&number.to_string()));
            }
            writer.finish().unwrap();
        }
    }

    fn verify(&self) -> Result<Verified, ChainBreak> {
        reading::verify(&self.database, None).unwrap()
    }

    fn rows(&self) -> u64 {
        self.database.read(|r| r.count(&AUDIT_ROWS)).unwrap() as u64
    }

    fn row(&self, number: u64) -> AuditRow {
        self.database
            .read(|r| r.get(&AUDIT_ROWS, &number))
            .unwrap()
            .unwrap()
    }

    fn all(&self, mut query: AuditQuery) -> Vec<ExportedEntry> {
        let mut all = Vec::new();
        loop {
            let page = reading::page(&self.database, &query, |_| true).unwrap();
            all.extend(page.entries);
            query.from = page.next;
            if query.from.is_none() {
                return all;
            }
        }
    }

    fn prune(&self, retention: Retention, occasion: Occasion, now: UnixTime) -> u64 {
        self.database
            .write(|w| rows::prune(w, retention, occasion, now))
            .unwrap()
    }
}

fn event(object: &str) -> AuditEvent {
    AuditEvent {
        object: Some(object.to_owned()),
        remote_subject: Some("someone@there".to_owned()),
        ..AuditEvent::of(AuditAction::ServiceOpened)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_recorded_is_on_the_disk_after_a_second_with_its_time() {
    let bench = Bench::new();
    let (log, writer) = bench.open(KEEP);
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Base);
    scope.spawn("audit", writer.run(scope.clone()));
    log.record(&event("first"));
    bench.wall.set(NOON.plus(Duration::from_secs(7)));
    log.record(&event("second"));
    tokio::time::timeout(Duration::from_secs(60), async {
        while bench.rows() < 2 {
            tokio::time::sleep(BATCH_WAIT / 4).await;
        }
    })
    .await
    .unwrap();
    let entries = bench.all(AuditQuery::default());
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.row, e.at, e.object.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, NOON, Some("first")),
            (2, NOON.plus(Duration::from_secs(7)), Some("second"))
        ]
    );
    bench.verify().unwrap();
    supervisor
        .shutdown(Duration::from_secs(5), std::future::pending())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_writes_what_is_left() {
    let bench = Bench::new();
    let (log, writer) = bench.open(KEEP);
    for number in 0..200 {
        log.record(&event(&number.to_string()));
    }
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Base);
    scope.spawn("audit", writer.run(scope.clone()));
    let report = supervisor
        .shutdown(Duration::from_secs(20), std::future::pending())
        .await;
    assert!(report.aborted.is_empty(), "{report:?}");
    assert_eq!(bench.verify().unwrap().rows, 200);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_for_a_while_costs_nothing_and_doubles_nothing() {
    for fault in [Fault::TakesNoWrites, Fault::CannotSync, Fault::Full] {
        let disk = Disk::default();
        let source = disk.clone();
        let database = Database::open_source(
            Path::new("test"),
            Box::new(move || Box::new(source.clone())),
            &Seals::new(&SCHEMA, None),
        )
        .unwrap();
        let (_, retention) = watch::channel(KEEP);
        let clock = Clock::with_wall_clock(UnixTime::EPOCH, ManualWallClock::new(NOON));
        let (log, writer) = AuditLog::open(database.clone(), clock, retention).unwrap();
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Base);
        scope.spawn("audit", writer.run(scope.clone()));
        disk.fail(Some(fault));
        for number in 0..150 {
            log.record(&event(&format!("{number} {}", "x".repeat(250))));
        }
        // Long enough for several tries.
        tokio::time::sleep(Duration::from_secs(20)).await;
        disk.fail(None);
        let found = || reading::verify(&database, None).unwrap().unwrap().rows;
        tokio::time::timeout(Duration::from_secs(600), async {
            while found() < 150 {
                tokio::time::sleep(BATCH_WAIT).await;
            }
        })
        .await
        .unwrap();
        supervisor
            .shutdown(Duration::from_secs(20), std::future::pending())
            .await;
        assert_eq!(found(), 150, "{fault:?}");
        let page = reading::page(&database, &AuditQuery::default(), |_| true).unwrap();
        let numbers: Vec<_> = page
            .entries
            .iter()
            .map(|e| e.object.as_deref().unwrap().split(' ').next().unwrap().to_owned())
            .collect();
        let expected: Vec<_> = (0..150).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expected, "{fault:?}");
    }
}

#[test]
fn a_flood_of_refusals_washes_nothing_out() {
    let bench = Bench::new();
    let (log, writer) = bench.open(KEEP);
    log.record(&event("what was done before"));
    for _ in 0..5_000 {
        log.record(&AuditEvent {
            outcome: AuditOutcome::Refused("no".into()),
            ..event("x")
        });
    }
    log.record(&event("what was done after"));
    writer.finish().unwrap();
    let entries = bench.all(AuditQuery::default());
    assert!(entries.len() < 200, "{}", entries.len());
    let said = entries
        .iter()
        .filter_map(|e| e.reason.as_deref())
        .filter(|why| why.contains("more refusals"));
    assert_eq!(
        said.collect::<Vec<_>>(),
        ["4900 more refusals came too fast to be noted one by one"]
    );
    let done: Vec<_> = entries
        .iter()
        .filter(|e| e.outcome == "done")
        .filter_map(|e| e.object.as_deref())
        .collect();
    assert_eq!(done, ["what was done before", "what was done after"]);
}

#[test]
fn a_batch_is_one_write() {
    let bench = Bench::with_rows(1);
    let before = bench.database.written_bytes();
    bench.add_rows(1, KEEP);
    let one = bench.database.written_bytes() - before;
    bench.add_rows(BATCH_MAX_EVENTS as u64, KEEP);
    let batch = bench.database.written_bytes() - before - one;
    assert!(
        batch < 3 * one,
        "{BATCH_MAX_EVENTS} events: {batch} bytes, one: {one}"
    );
}

#[test]
fn events_that_find_the_queue_full_are_counted_and_said() {
    let bench = Bench::new();
    let (log, writer) = bench.open(KEEP);
    for number in 0..QUEUE_MAX_EVENTS + 5 {
        log.record(&event(&number.to_string()));
    }
    writer.finish().unwrap();
    let entries = bench.all(AuditQuery::default());
    assert_eq!(entries.len(), QUEUE_MAX_EVENTS + 1);
    let said: Vec<_> = entries.iter().filter(|e| e.action == "events_lost").collect();
    assert_eq!(said.len(), 1);
    assert!(
        said[0].reason.as_deref().unwrap().starts_with("5 events"),
        "{said:?}"
    );
    bench.verify().unwrap();
}

#[test]
fn the_chain_goes_on_after_a_restart() {
    let bench = Bench::with_rows(3);
    let path = bench.directory.path().to_owned();
    let ends = bench.database.read(|r| r.get(&AUDIT_ENDS, &Only)).unwrap();
    drop(bench.database);
    let bench = Bench {
        database: store(&path),
        ..bench
    };
    assert_eq!(bench.database.read(|r| r.get(&AUDIT_ENDS, &Only)).unwrap(), ends);
    bench.add_rows(2, KEEP);
    assert_eq!(bench.verify().unwrap().rows, 5);
}

#[test]
fn a_store_from_before_the_log_is_raised_and_then_closed_to_earlier_programs() {
    static RAISED: Schema = Schema {
        name: SCHEMA.name,
        version: 2,
        migrations: &[add_audit_log],
        sealed: &[],
    };
    let bench = Bench::new();
    let path = bench.database.path().to_owned();
    drop(bench.database);
    let bench = Bench {
        database: Database::open(&path, &RAISED).unwrap(),
        ..bench
    };
    bench.add_rows(3, KEEP);
    assert_eq!(bench.verify().unwrap().rows, 3);
    drop(bench.database);
    let earlier = Database::open(&path, &SCHEMA);
    assert!(
        matches!(earlier, Err(OpenError::NewerSchema { .. })),
        "it would leave a hole in the log"
    );
}

#[test]
fn a_changed_row_is_found() {
    let bench = Bench::with_rows(9);
    let mut row = bench.row(4);
    let at = row.entry.len() - 1;
    row.entry[at] ^= 1;
    bench.database.write(|w| w.put(&AUDIT_ROWS, &4, &row)).unwrap();
    assert_eq!(bench.verify(), Err(ChainBreak::Changed { row: 4 }));
}

#[test]
fn a_removed_row_is_found() {
    let bench = Bench::with_rows(9);
    bench.database.write(|w| w.remove(&AUDIT_ROWS, &9)).unwrap();
    assert_eq!(bench.verify(), Err(ChainBreak::CutEnd { first: 9, last: 9 }));
    bench.database.write(|w| w.remove(&AUDIT_ROWS, &5)).unwrap();
    assert_eq!(bench.verify(), Err(ChainBreak::Missing { first: 5, last: 5 }));
}

#[test]
fn swapped_rows_are_found() {
    let bench = Bench::with_rows(9);
    let (third, eighth) = (bench.row(3), bench.row(8));
    bench
        .database
        .write(|w| {
            w.put(&AUDIT_ROWS, &3, &eighth)?;
            w.put(&AUDIT_ROWS, &8, &third)
        })
        .unwrap();
    assert_eq!(bench.verify(), Err(ChainBreak::Moved { row: 3, found: 8 }));
}

#[test]
fn a_lost_record_of_the_ends_is_found() {
    let bench = Bench::with_rows(2);
    bench.database.write(|w| w.remove(&AUDIT_ENDS, &Only)).unwrap();
    assert_eq!(bench.verify(), Err(ChainBreak::NoEnds { row: 1 }));
}

#[test]
fn retention_removes_the_oldest_and_the_rest_verifies() {
    let few = Retention {
        max_rows: 100,
        ..KEEP
    };
    let bench = Bench::with_rows(100);
    bench.add_rows(PRUNE_STEP_ROWS - 1, few);
    assert_eq!(bench.rows(), 100 + PRUNE_STEP_ROWS - 1, "not worth a page yet");
    bench.add_rows(1, few);
    assert_eq!(bench.rows(), 100);
    let verified = bench.verify().unwrap();
    assert_eq!(
        (verified.first, verified.first_is_tied),
        (PRUNE_STEP_ROWS + 1, true)
    );
    // By age, all of them.
    let later = NOON.plus(KEEP.max_age + Duration::from_secs(1));
    assert_eq!(bench.prune(KEEP, Occasion::Daily, later), 100);
    assert_eq!(bench.verify().unwrap().rows, 0);
    bench.add_rows(1, KEEP);
    assert_eq!(bench.verify().unwrap().rows, 1);
}

#[test]
fn much_that_is_due_goes_in_steps() {
    let bench = Bench::with_rows(2 * PRUNE_MAX_ROWS);
    let later = NOON.plus(KEEP.max_age + Duration::from_secs(1));
    assert_eq!(bench.prune(KEEP, Occasion::Daily, later), PRUNE_MAX_ROWS);
    bench.verify().unwrap();
    assert_eq!(bench.prune(KEEP, Occasion::Daily, later), PRUNE_MAX_ROWS);
    bench.verify().unwrap();
}

#[test]
fn retention_gets_past_damaged_and_missing_rows_and_the_log_says_so() {
    let none = Retention { max_rows: 1, ..KEEP };
    let bench = Bench::with_rows(10);
    bench.database.write(|w| w.remove(&AUDIT_ROWS, &9)).unwrap();
    assert_eq!(bench.prune(none, Occasion::Daily, NOON), 9);
    let verified = bench.verify().unwrap();
    assert_eq!((verified.rows, verified.first_is_tied), (1, false));
    assert!(verified.to_string().contains("was damaged"), "{verified}");
}

#[test]
fn pages_give_every_row_once_in_both_directions() {
    let rows = 2 * PAGE_MAX_ENTRIES as u64 + 7;
    let bench = Bench::with_rows(rows);
    let numbers = |order| {
        let query = AuditQuery {
            order,
            ..AuditQuery::default()
        };
        bench
            .all(query)
            .into_iter()
            .map(|entry| entry.row)
            .collect::<Vec<_>>()
    };
    let expected: Vec<_> = (1..=rows).collect();
    assert_eq!(numbers(Order::OldestFirst), expected);
    let mut newest = numbers(Order::NewestFirst);
    newest.reverse();
    assert_eq!(newest, expected);
}

#[test]
fn a_page_shows_unreadable_rows_and_only_what_the_caller_may_see() {
    let bench = Bench::with_rows(5);
    let mut row = bench.row(2);
    row.entry = vec![200];
    bench.database.write(|w| w.put(&AUDIT_ROWS, &2, &row)).unwrap();
    let query = AuditQuery::default();
    let page = reading::page(&bench.database, &query, |entry| {
        entry.object.as_deref() == Some("3")
    })
    .unwrap();
    let seen: Vec<_> = page.entries.iter().map(|e| (e.row, e.outcome.as_str())).collect();
    assert_eq!(seen, [(2, "unreadable"), (4, "done")]);
}

#[test]
fn a_log_without_a_store_takes_events_all_the_same() {
    AuditLog::default().record(&AuditEvent {
        outcome: AuditOutcome::Refused("no".into()),
        ..event("x")
    });
}

/// Where the program that is killed has its store.
const KILLED_IN: &str = "POWERNODE_TEST_AUDIT_DIRECTORY";

/// Batches that the program writes at most before it ends by itself.
const KILLED_BATCHES_MAX: usize = 5_000;

/// Not a test of its own: what the next one starts, and kills.
#[test]
#[ignore = "is started by the test that kills it"]
fn a_program_that_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(KILLED_IN).map(PathBuf::from) else {
        return;
    };
    let clock = Clock::start(UnixTime::EPOCH);
    let database = store(&directory);
    for batch in 0..KILLED_BATCHES_MAX {
        let (_, retention) = watch::channel(Retention {
            max_rows: 150,
            ..KEEP
        });
        let (log, writer) = AuditLog::open(database.clone(), clock.clone(), retention).unwrap();
        for number in 0..batch % 90 {
            log.record(&event(&number.to_string()));
        }
        writer.finish().unwrap();
        println!("batch {batch}");
    }
}

#[test]
fn a_writer_that_is_killed_leaves_a_chain_that_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let mut rows = 0;
    for batches in [3, 8, 12, 17] {
        let mut writing = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::audit_log::tests::a_program_that_writes_until_it_is_killed",
            ])
            .args(["--ignored", "--nocapture"])
            .env(KILLED_IN, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(writing.stdout.take().unwrap()).lines();
        let written = said
            .map_while(Result::ok)
            .filter(|line| line.starts_with("batch"))
            .take(batches)
            .count();
        // In the middle of the next one.
        writing.kill().unwrap();
        writing.wait().unwrap();
        assert_eq!(written, batches);
        let database = store(directory.path());
        let verified = reading::verify(&database, None).unwrap().unwrap();
        let last = verified.first + verified.rows;
        assert!(last > rows, "the chain went on");
        rows = last;
    }
}
