//! The daemon as `run` starts it: what invites it, what it refuses to start with, how it stops.

use std::path::Path;

use powernode_satellite::base::limit::error_chain;
use powernode_satellite::contract::ACCEPT_PATH;
use powernode_satellite::process::config::loader::{ConfigFile, Flags};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::service_notify::ServiceManager;
use powernode_satellite::satellite::daemon::{self, RunError};
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::wire::GoodbyeReason;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;
use tokio::sync::Mutex;

use crate::scripted_parent::{Answer, DEADLINE, PEER, ScriptedParent, Setup, TOKEN};

/// Signals reach the whole process: one daemon at a time.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub fn config(dir: &Path, more: &[(&'static str, &str)]) -> SatelliteConfig {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let mut flags = Flags::from([
        ("state_dir", path("state")),
        ("admin_socket", path("admin.sock")),
        ("payload.file", path("payload.json")),
        ("payload.fw_cfg_dir", path("fw")),
        ("reconnect.initial", "100ms".to_owned()),
        ("disclosure.operator_contact", "ops@example.com".to_owned()),
        ("disclosure.location", "DE".to_owned()),
    ]);
    for (key, value) in more {
        if value.is_empty() {
            flags.remove(key);
        } else {
            flags.insert(key, (*value).to_owned());
        }
    }
    std::fs::write(dir.join("empty.toml"), "").unwrap();
    let file = ConfigFile::Named(dir.join("empty.toml"));
    SatelliteConfig::load(&file, &flags, &Environment::default())
        .unwrap()
        .0
}

/// A parent of today, with its CA in a file and a payload that names it.
pub fn invited(dir: &Path) -> (ScriptedParent, String) {
    let now = powernode_satellite::process::clock::Clock::start(
        crate::scripted_parent::NOW.minus(crate::scripted_parent::DAY * 9_999),
    )
    .system();
    let parent = ScriptedParent::with(&Setup {
        now,
        certified_at: now,
        ..Setup::default()
    });
    let payload = json!({
        "parent_url": format!("https://{}", parent.address),
        "acceptance_token": TOKEN,
        "spawn_mode": "managed_child",
        "parent_peer_id": PEER,
        "contract_version": "v1",
    });
    std::fs::write(dir.join("payload.json"), payload.to_string()).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, parent.book().authority.certificate_pem()).unwrap();
    (parent, ca.to_str().unwrap().to_owned())
}

async fn run(config: SatelliteConfig) -> Result<(), RunError> {
    let manager = ServiceManager::connect(&Environment::default()).unwrap();
    Box::pin(daemon::run(config, manager, Box::new(|| None))).await
}

/// Runs the daemon until the parent's book shows something, then sends TERM.
async fn run_until<T>(
    config: SatelliteConfig,
    parent: &ScriptedParent,
    what: &str,
    look: impl FnMut(&crate::scripted_parent::Book) -> Option<T>,
) -> T {
    let seen = async {
        let seen = parent.wait(what, look).await;
        kill_process(getpid(), Signal::TERM).unwrap();
        seen
    };
    let both = async { tokio::join!(run(config), seen) };
    let (ended, seen) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    ended.unwrap();
    seen
}

#[tokio::test]
async fn a_payload_is_found_and_a_term_takes_leave() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let (parent, ca) = invited(dir.path());
    let config = config(dir.path(), &[("parent.ca_file", &ca)]);
    run_until(config.clone(), &parent, "a heartbeat", |book| {
        (!book.heartbeats().is_empty()).then_some(())
    })
    .await;
    parent
        .wait("the goodbye", |book| {
            book.said_goodbye(GoodbyeReason::ShuttingDown).then_some(())
        })
        .await;
    assert!(!config.admin_socket.exists());
    let (loaded, _) = MembershipStore::peek(&config.state_dir, None).unwrap();
    assert_eq!(loaded.state.unwrap().name(), "joined");
    // The payload is still there; a member does not look at it.
    let dials = parent.book().greeted.len();
    run_until(config, &parent, "the next tunnel", |book| {
        (book.greeted.len() > dials).then_some(())
    })
    .await;
    assert_eq!(parent.book().count(ACCEPT_PATH), 1);
}

#[tokio::test]
async fn a_refused_token_is_not_tried_at_every_start() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let (parent, ca) = invited(dir.path());
    parent.next(ACCEPT_PATH, Answer::failure(401, "unknown"));
    let config = config(dir.path(), &[("parent.ca_file", &ca)]);
    run_until(config.clone(), &parent, "the leave of a refused box", |book| {
        book.said_goodbye(GoodbyeReason::Done).then_some(())
    })
    .await;
    let (loaded, _) = MembershipStore::peek(&config.state_dir, None).unwrap();
    assert_eq!(loaded.state.unwrap().name(), "refused");

    // The next start leaves it alone, until there is a new one.
    let dials = parent.book().greeted.len();
    let stop = async {
        let socket = config.admin_socket.clone();
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::task::yield_now().await;
        }
        kill_process(getpid(), Signal::TERM).unwrap();
    };
    let both = async { tokio::join!(run(config.clone()), stop) };
    tokio::time::timeout(DEADLINE, both).await.unwrap().0.unwrap();
    assert_eq!(parent.book().greeted.len(), dials);

    let payload = std::fs::read_to_string(dir.path().join("payload.json")).unwrap();
    let second = payload.replace(TOKEN, crate::scripted_parent::SECOND_TOKEN);
    std::fs::write(dir.path().join("payload.json"), second).unwrap();
    parent.mint(crate::scripted_parent::SECOND_TOKEN);
    run_until(config, &parent, "a heartbeat", |book| {
        (!book.heartbeats().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_contact_and_location_nobody_is_joined() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let (parent, ca) = invited(dir.path());
    for missing in ["disclosure.operator_contact", "disclosure.location"] {
        let config = config(dir.path(), &[("parent.ca_file", &ca), (missing, "")]);
        let error = run(config).await.unwrap_err();
        let said = error_chain(&error);
        assert!(
            said.contains("disclosure.operator_contact") && said.contains("disclosure.location"),
            "{said}"
        );
    }
    assert!(parent.book().greeted.is_empty());
}

#[tokio::test]
async fn a_second_daemon_is_told_of_the_first() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let first = config(dir.path(), &[]);
    let second = config(
        dir.path(),
        &[("admin_socket", dir.path().join("other.sock").to_str().unwrap())],
    );
    let contest = async {
        while tokio::net::UnixStream::connect(&first.admin_socket)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
        let error = run(second).await.unwrap_err();
        kill_process(getpid(), Signal::TERM).unwrap();
        error
    };
    let both = async { tokio::join!(run(first.clone()), contest) };
    let (ended, error) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    ended.unwrap();
    let said = error_chain(&error);
    assert!(said.contains(&std::process::id().to_string()), "{said}");
}
