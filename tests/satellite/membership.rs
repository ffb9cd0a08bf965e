//! Heartbeats: what is kept of the parent's answers, and what bad ones do.

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::HEARTBEAT_PATH;
use powernode_satellite::contract::message::Endpoint;
use powernode_satellite::contract::peer::PeerStatus;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::machine::membership::Operator;
use powernode_satellite::satellite::status::{ReachReport, StatusReport};
use powernode_satellite::wire::GoodbyeReason;
use serde_json::json;

use crate::scripted_parent::site::{Site, operator};
use crate::scripted_parent::{Answer, Book, DAY, NOW, PEER, ScriptedParent};

#[tokio::test]
async fn what_the_parent_tells_is_shown_and_survives_a_restart() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    parent.book().heartbeat = json!({
        "status": "degraded",
        "last_heartbeat_at": NOW.to_string(),
        "our_endpoints": [{ "url": "https://parent.example.com", "scope": "wan", "more": 1 }],
        "schema_compatibility": { "status": "incompatible", "source": "implicit", "notes": "too\u{7} old" },
    });
    let running = site.run().await;
    let report = running
        .wait("the parent's word is shown", |report| {
            report
                .peer
                .as_ref()
                .is_some_and(|peer| peer.status == PeerStatus::Degraded)
        })
        .await;
    let told = |report: &StatusReport| {
        assert_eq!(
            report.heartbeat.our_endpoints[0].url,
            "https://parent.example.com"
        );
        let schema = report.heartbeat.schema_compatibility.clone().unwrap();
        assert_eq!(schema.status, "incompatible");
        assert_eq!(schema.notes.as_deref(), Some("too  old"));
    };
    told(&report);
    running.stop().await;
    assert_eq!(
        site.state().await.membership().unwrap().status,
        PeerStatus::Degraded
    );
    // Known before any tunnel is up.
    let (store, loaded) = site.open().await.unwrap();
    told(&site.run_on(store, loaded).report());
}

#[tokio::test]
async fn a_flood_of_endpoints_is_cut() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let endpoint = json!({ "url": format!("https://{}", "x".repeat(1_000)), "scope": "wan" });
    parent.book().heartbeat = json!({ "status": "active", "our_endpoints": vec![endpoint; 200] });
    let running = site.run().await;
    let report = running
        .wait("endpoints are shown", |report| {
            !report.heartbeat.our_endpoints.is_empty()
        })
        .await;
    let bytes: usize = report.heartbeat.our_endpoints.iter().map(|e| e.url.len()).sum();
    assert!(bytes < 16 * 1024, "{bytes}");
}

#[tokio::test]
async fn the_parents_time_is_adopted() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let later = NOW.plus(DAY * 3);
    parent.book().heartbeat["last_heartbeat_at"] = json!(later.to_string());
    let running = site.run().await;
    let report = running
        .wait("the time is adopted", |report| report.clock.trusted >= later)
        .await;
    assert!(
        report
            .clock
            .doubt
            .unwrap()
            .contains("earlier than the last time seen from the parent")
    );
    running.stop().await;
    let (store, loaded) = site.open().await.unwrap();
    assert!(loaded.facts.seen_from_parent.unwrap() >= later);
    let running = site.run_on(store, loaded);
    assert!(
        running.report().clock.trusted >= later,
        "known at once after a restart"
    );
}

#[tokio::test]
async fn a_refused_heartbeat_is_shown_and_not_repeated_at_once() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let before = parent.book().count(HEARTBEAT_PATH);
    parent.next(
        HEARTBEAT_PATH,
        Answer::failure(401, "No reachable FederationPeer for mTLS subject"),
    );
    let running = site.run().await;
    let report = running
        .wait("the failure is shown", |report| {
            report.heartbeat.last_error.is_some()
        })
        .await;
    assert!(
        report
            .heartbeat
            .last_error
            .as_ref()
            .unwrap()
            .contains("No reachable FederationPeer")
    );
    assert_eq!(report.link.state, "connected");
    assert!(
        report.headline().contains("No reachable FederationPeer"),
        "{}",
        report.headline()
    );
    assert!(
        !report.is_active(),
        "a parent that refuses does not count this box as active"
    );
    // Nor after an operator's nudge, sooner than the least distance.
    running.handle.reload(site.settings.clone()).await.unwrap();
    running
        .wait("a later report", |later| {
            later.generated_at >= report.generated_at
        })
        .await;
    assert_eq!(parent.book().count(HEARTBEAT_PATH), before + 1);
}

#[tokio::test]
async fn answers_that_are_none_harm_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    for (answer, words) in [
        (
            Answer::Http(302, vec![("location", "/login".to_owned())], Vec::new()),
            "302",
        ),
        (Answer::text(200, "garbage"), "not JSON"),
        (Answer::text(200, &" ".repeat(300_000)), "longer than"),
        (
            Answer::json(200, &json!({ "data": { "status": "happy" } })),
            "happy",
        ),
        (
            Answer::failure(500, "Something went wrong"),
            "Something went wrong",
        ),
        (
            Answer::Http(200, vec![("x", "y".repeat(40_000))], Vec::new()),
            "head",
        ),
    ] {
        parent.next(HEARTBEAT_PATH, answer);
        let running = site.run().await;
        let report = running
            .wait("the failure is shown", |report| {
                report.heartbeat.last_error.is_some()
            })
            .await;
        let why = report.heartbeat.last_error.unwrap();
        assert!(why.contains(words), "{words}: {why}");
        assert_eq!(report.link.state, "connected", "{words}");
        running.stop().await;
        assert!(matches!(site.state().await, JoinState::Joined(_)));
    }
    let running = site.run().await;
    running
        .wait("well again", |report| report.heartbeat.last_error.is_none())
        .await;
}

#[tokio::test]
async fn the_configured_operator_is_told_and_shown() {
    let parent = ScriptedParent::start();
    let mut site = Site::joined(&parent).await;
    let before = parent.book().count(HEARTBEAT_PATH);
    site.settings.operator = Some(Operator {
        contact: "night@example.com".to_owned(),
        ..operator()
    });
    let running = site.run().await;
    parent
        .wait("a heartbeat", |book| {
            (book.count(HEARTBEAT_PATH) > before).then_some(())
        })
        .await;
    let told = parent.book().heartbeats().last().unwrap().body["capabilities"]["disclosure"].clone();
    assert_eq!(told["operator_contact"], "night@example.com");
    assert_eq!(
        running.report().peer.unwrap().operator_contact,
        "night@example.com"
    );
}

#[tokio::test]
async fn proven_endpoints_are_told_and_withdrawn_with_the_next_heartbeat() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    let told = |book: &Book| -> Vec<(String, String)> {
        let last = book.heartbeats().last().unwrap().body["endpoints"].clone();
        let endpoints: Vec<Endpoint> = serde_json::from_value(last).unwrap();
        endpoints.into_iter().map(|told| (told.scope, told.url)).collect()
    };
    let report = ReachReport {
        listening: Some(41_234),
        mappings: Vec::new(),
    };
    let proven = vec!["93.184.216.34:41234".parse().unwrap()];
    running.handle.tell_reach(report.clone(), proven).await.unwrap();
    let wan = ("wan".to_owned(), "quic://93.184.216.34:41234".to_owned());
    parent
        .wait("the endpoint is told", |book| {
            told(book).contains(&wan).then_some(())
        })
        .await;
    assert_eq!(running.report().reach, Some(report.clone()));
    running.handle.tell_reach(report, Vec::new()).await.unwrap();
    parent
        .wait("it is withdrawn", |book| {
            (!told(book).contains(&wan)).then_some(())
        })
        .await;
    // The list is never empty: that would change nothing at the parent.
    let told = told(&parent.book());
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "sdwan");
    assert!(told[0].1.ends_with(&format!("/peers/{PEER}")), "{told:?}");
    running.stop().await;
}

#[tokio::test]
async fn suspended_is_shown_and_revoked_is_the_end() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    parent
        .wait("a tunnel", |book| (!book.greeted.is_empty()).then_some(()))
        .await;
    parent.say_goodbye(GoodbyeReason::Suspended, 0).await;
    running
        .wait("suspended", |report| {
            report
                .peer
                .as_ref()
                .is_some_and(|peer| peer.status == PeerStatus::Suspended)
        })
        .await;
    // It asks again, and the parent takes it again.
    running.wait("active again", StatusReport::is_active).await;
    parent.say_goodbye(GoodbyeReason::Revoked, 0).await;
    let report = running.wait("off", |report| report.link.state == "off").await;
    assert_eq!(report.peer.as_ref().unwrap().status, PeerStatus::Revoked);
    assert!(report.headline().contains("revoked"), "{}", report.headline());
    let why = report.link.last_error.unwrap_or_default();
    assert!(why.contains("Revoked"), "what the parent said is lost: {why}");
    running.stop().await;
    let dials = parent.book().greeted.len();
    let running = site.run().await;
    assert_eq!(running.report().link.state, "off", "not even after a restart");
    running.stop().await;
    assert_eq!(parent.book().greeted.len(), dials);
}

#[tokio::test]
async fn a_stop_says_goodbye_and_leaves_nothing_behind() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    running
        .wait("connected", |report| report.link.state == "connected")
        .await;
    assert!(running.tasks().contains(&"driver"));
    parent.book().ended.clear();
    let report = running.stop().await;
    assert!(!report.forced);
    parent
        .wait("the goodbye", |book| {
            book.said_goodbye(GoodbyeReason::ShuttingDown).then_some(())
        })
        .await;
}

#[tokio::test]
async fn times_before_the_epoch_and_after_all_calendars_harm_nothing() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    parent.book().heartbeat["last_heartbeat_at"] = json!("9999-12-31T23:59:59Z");
    let running = site.run().await;
    let report = running.wait("acknowledged", StatusReport::is_active).await;
    assert!(report.clock.trusted < NOW.plus(DAY), "{}", report.clock.trusted);
    assert!(report.certificate.unwrap().standing == "valid");
    site.wall.set(UnixTime::from_seconds(-5));
    running.handle.reload(site.settings.clone()).await.unwrap();
    running
        .wait("a doubt", |report| report.clock.doubt.is_some())
        .await;
}
