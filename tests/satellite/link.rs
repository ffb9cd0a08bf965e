//! The tunnel: lost, refused, several addresses, a parent that comes back.

use std::net::UdpSocket;
use std::time::Duration;

use http_body_util::Full;
use powernode_satellite::base::id::TraceId;
use powernode_satellite::contract::SERVICE_CATALOG_PATH;
use powernode_satellite::process::clock::Clock;
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::tunnel::http::{HttpLimits, request};
use powernode_satellite::wire::{GoodbyeReason, RefusalCode, Refused};

use crate::scripted_parent::site::{Site, invitation, invitation_with};
use crate::scripted_parent::{NOW, ScriptedParent, Setup, TOKEN};

fn not_admitted(retry_after_millis: u32) -> Refused {
    Refused {
        code: RefusalCode::NotAdmitted,
        message: "this peer is suspended".to_owned(),
        retry_after_millis,
    }
}

#[tokio::test]
async fn a_lost_tunnel_comes_back() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    for _ in 0..3 {
        running
            .wait("connected", |report| report.link.state == "connected")
            .await;
        let dials = parent.book().greeted.len();
        parent
            .wait("the parent has it too", |book| {
                (!book.ended.is_empty() || book.greeted.len() >= dials).then_some(())
            })
            .await;
        parent.break_tunnels();
        parent
            .wait("dialled again", |book| (book.greeted.len() > dials).then_some(()))
            .await;
    }
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_goodbye_with_a_time_to_come_back_is_obeyed() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    running
        .wait("connected", |report| {
            report.is_active() && report.link.state == "connected"
        })
        .await;
    let dials = parent.book().greeted.len();
    let clock = Clock::start(NOW);
    parent.say_goodbye(GoodbyeReason::ShuttingDown, 1_000).await;
    let report = running
        .wait("waiting", |report| report.link.state == "waiting")
        .await;
    assert!(report.link.next_attempt_at.is_some());
    assert!(report.link.last_error.unwrap().contains("ShuttingDown"));
    parent
        .wait("dialled again", |book| (book.greeted.len() > dials).then_some(()))
        .await;
    assert!(
        clock.now().since_start() >= Duration::from_millis(990),
        "{:?}",
        clock.now()
    );
}

#[tokio::test]
async fn told_to_come_back_in_a_millisecond_it_does_not_spin() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    for _ in 0..8 {
        parent.refuse_next(Refused {
            code: RefusalCode::Busy,
            message: "busy".to_owned(),
            retry_after_millis: 1,
        });
    }
    let clock = Clock::start(NOW);
    let running = site.run().await;
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    let floor = powernode_satellite::machine::backoff::DELAY_FLOOR * 8;
    assert!(clock.now().since_start() >= floor, "{:?}", clock.now());
}

#[tokio::test]
async fn not_admitted_is_shown_and_asked_again_patiently() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    parent.refuse_next(not_admitted(0));
    let running = site.run().await;
    let report = running
        .wait("waiting", |report| report.link.state == "waiting")
        .await;
    let why = report.link.last_error.unwrap();
    assert!(why.contains("this peer is suspended"), "{why}");
    assert!(report.link.failures >= 1);
    let report = running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    assert_eq!(report.link.last_error, None);
}

#[tokio::test]
async fn of_several_addresses_the_one_that_works_is_found_and_remembered() {
    // Nobody answers here, but nobody else gets the port either.
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = dead.local_addr().unwrap().to_string().parse().unwrap();
    let (parent, stranger) = (ScriptedParent::start(), ScriptedParent::start());
    let site = Site::new();
    let running = site.run().await;
    let bridges = vec![stranger.bridge(), dead, parent.bridge()];
    running.join(invitation_with(&parent, TOKEN, bridges)).await;
    let report = running.wait("joined", |report| report.state == "joined").await;
    assert_eq!(report.link.bridge, Some(parent.address.to_string()));
    running.stop().await;
    assert!(
        stranger.book().greeted.is_empty(),
        "a foreign authority is no parent"
    );
    let (store, loaded) = site.open().await.unwrap();
    assert_eq!(loaded.facts.good_addresses[0].1, parent.address);
    // What worked last is tried first: no wait for the dead one.
    let clock = Clock::start(NOW);
    let running = site.run_on(store, loaded);
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    assert!(clock.now().since_start() < powernode_satellite::reach::dial::DIAL_TIMEOUT);
}

#[tokio::test]
async fn a_parent_that_is_away_at_the_start_is_waited_for() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let address = parent.address;
    drop(parent);
    let mut site = site;
    // No bridge of that name exists; the remembered address belongs to another name.
    site.settings.child.bridges = vec!["bridge.invalid:8443".parse().unwrap()];
    let running = site.run().await;
    let report = running
        .wait("the reason is shown", |report| report.link.last_error.is_some())
        .await;
    let why = report.link.last_error.unwrap();
    assert!(
        why.contains("bridge.invalid:8443") && why.contains("DNS"),
        "{why}"
    );
    assert!(!why.contains(&address.to_string()));
    assert_eq!(report.state, "joined");
    running.stop().await;
}

#[tokio::test]
async fn a_stranger_at_the_parents_address_gets_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let stranger = ScriptedParent::with(&Setup::default());
    let mut site = site;
    site.settings.child.bridges = vec![stranger.bridge()];
    let running = site.run().await;
    let report = running
        .wait("waiting", |report| report.link.state == "waiting")
        .await;
    let why = report.link.last_error.unwrap();
    assert!(why.contains("authority") || why.contains("CA"), "{why}");
    assert!(stranger.book().greeted.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn an_operator_changes_the_bridges_without_a_restart() {
    let parent = ScriptedParent::start();
    let mut site = Site::joined(&parent).await;
    site.settings.child.bridges = vec!["bridge.invalid:8443".parse().unwrap()];
    let running = site.run().await;
    running
        .wait("no address", |report| report.link.last_error.is_some())
        .await;
    let mut settings = site.settings.clone();
    settings.child.bridges = vec![parent.bridge()];
    running.handle.reload(settings).await.unwrap();
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
}

#[tokio::test]
async fn the_parent_is_answered_through_the_tunnel_and_breaks_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    running.wait("active", StatusReport::is_active).await;
    let tunnel = parent.tunnel();
    for (path, status) in [(SERVICE_CATALOG_PATH, 200), ("/nothing", 404)] {
        let asked = http::Request::get(path).body(Full::default()).unwrap();
        let answer = request(&tunnel, TraceId(1), asked, HttpLimits::default())
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}
