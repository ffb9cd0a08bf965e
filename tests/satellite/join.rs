//! Joining: what the parent may answer, and what the operator is told.

use powernode_satellite::bridge::certificate_authority::CertificateAuthority;
use powernode_satellite::contract::ACCEPT_PATH;
use powernode_satellite::identity::key::PrivateKey;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::machine::membership::JoinRefusal;
use powernode_satellite::satellite::daemon;
use powernode_satellite::satellite::status::StatusReport;
use serde_json::json;

use crate::scripted_parent::site::{Site, invitation, invitation_with};
use crate::scripted_parent::{
    Answer, Book, DEADLINE, NOW, PEER, SECOND_TOKEN, ScriptedParent, TOKEN, accept_data,
};

/// The refusal that one scripted answer to accept leads to.
async fn refusal_after(answer: Answer) -> (String, JoinState) {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, answer);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = running.refusal().await;
    assert_eq!(running.report().link.state, "off");
    running.stop().await;
    assert_eq!(parent.book().count(ACCEPT_PATH), 1);
    (why, site.state().await)
}

#[tokio::test]
async fn a_join_sends_what_the_contract_says() {
    let parent = ScriptedParent::start();
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert_eq!(report.peer.unwrap().id.to_string(), PEER);
    let book = parent.book();
    let accept = book.accepts()[0];
    assert_eq!(accept.body["acceptance_token"], TOKEN);
    assert_eq!(accept.body["contract_version"], 1);
    assert_eq!(accept.serial, None);
    assert_eq!(
        accept.body["capabilities"]["disclosure"]["operator_contact"],
        "ops@example.com"
    );
    let heartbeat = book.heartbeats()[0];
    assert!(heartbeat.serial.is_some());
    assert_eq!(heartbeat.body["capabilities"]["disclosure"]["location"], "DE");
    assert_eq!(heartbeat.body["data_residency"], "eu");
    assert!(heartbeat.body["platform_version"].is_string());
}

#[tokio::test]
async fn what_came_with_the_accept_is_kept() {
    let parent = ScriptedParent::start();
    parent.next(
        ACCEPT_PATH,
        Answer::Data(Box::new(|book: &mut Book, body| {
            let authority = std::sync::Arc::clone(&book.authority);
            let csr = body["csr_pem"].as_str().unwrap();
            let certificate = book.certificate(&authority, csr, PEER);
            let mut data = accept_data(book.now, &certificate);
            data["trust_exchange"] = json!({ "ca_bundle_pem": "PEM", "assigned_inbound_subject": "fed:x" });
            data["cluster"] = json!({ "join_token": "of the cluster" });
            data["governance"] = json!(["any", 1]);
            data["node_enrollment"] = json!("soon");
            data["warnings"] = json!(["grant_failed: try\nlater"]);
            data
        })),
    );
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running.wait("active", StatusReport::is_active).await;
    running.stop().await;
    let JoinState::Joined(membership) = site.state().await else {
        panic!("not joined");
    };
    let delivered = membership.delivered;
    assert_eq!(
        delivered.trust_exchange.unwrap().assigned_inbound_subject,
        "fed:x"
    );
    let rest: serde_json::Value = serde_json::from_slice(delivered.rest.expose()).unwrap();
    assert_eq!(
        rest,
        json!({
            "cluster": { "join_token": "of the cluster" },
            "governance": ["any", 1],
            "sdwan_attach": { "anything": true },
        })
    );
    assert_eq!(delivered.warnings[0], "grant_failed: try later");
    assert!(delivered.warnings[1].contains("node_enrollment cannot be used: it is no object"));
    assert_eq!(report.peer.unwrap().warnings, delivered.warnings);
}

#[tokio::test]
async fn a_platform_that_forgets_costs_a_token_but_not_the_key() {
    let parent = ScriptedParent::start();
    parent.forget();
    parent.next(ACCEPT_PATH, Answer::DoneAndLost);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = running.refusal().await;
    for words in [
        "lost",
        "counted the token as used",
        "mint a new token",
        "key of this box is kept",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
    running.stop().await;
    match site.state().await {
        JoinState::Refused {
            refusal: JoinRefusal::TokenSpent { .. },
            key: Some(_),
            ..
        } => {}
        other => panic!("{other:?}"),
    }

    parent.mint(SECOND_TOKEN);
    let running = site.run().await;
    let again = invitation_with(&parent, SECOND_TOKEN, vec![parent.bridge()]);
    running.join(again).await;
    // The report of the refusal is no answer to the new invitation.
    assert_ne!(running.report().state, "refused");
    running.wait("joined", |report| report.state == "joined").await;
    let book = parent.book();
    let csrs: Vec<_> = book.accepts().iter().map(|seen| &seen.body["csr_pem"]).collect();
    assert_eq!(csrs.len(), 3);
    assert!(csrs.iter().all(|csr| *csr == csrs[0]), "one key throughout");
}

#[tokio::test]
async fn a_parent_that_remembers_makes_one_peer_of_any_number_of_lost_answers() {
    let parent = ScriptedParent::start();
    for answer in [Answer::DoneAndLost, Answer::Lost, Answer::DoneAndLost] {
        parent.next(ACCEPT_PATH, answer);
    }
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    running.wait("joined", |report| report.state == "joined").await;
    let book = parent.book();
    assert_eq!((book.peers_made, book.count(ACCEPT_PATH)), (1, 4));
    assert!(
        book.accepts()
            .iter()
            .all(|seen| seen.body == book.accepts()[0].body)
    );
}

#[tokio::test]
async fn a_power_cut_while_the_answer_is_awaited_is_followed_by_the_same_request() {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::Never);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    parent
        .wait("an accept", |book| (book.count(ACCEPT_PATH) == 1).then_some(()))
        .await;
    running.vanish().await;
    assert!(matches!(site.state().await, JoinState::Sent { .. }));
    let running = site.run().await;
    running.wait("joined", |report| report.state == "joined").await;
    let book = parent.book();
    assert_eq!(book.accepts()[0].body, book.accepts()[1].body);
}

#[tokio::test]
async fn the_same_code_pasted_again_changes_nothing_of_a_join_under_way() {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::Never);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    parent
        .wait("an accept", |book| (book.count(ACCEPT_PATH) == 1).then_some(()))
        .await;
    running.join(invitation(&parent)).await;
    running.vanish().await;
    let state = site.state().await;
    assert!(
        matches!(state, JoinState::Sent { .. }),
        "that a request has left must stay known: {state:?}"
    );
    assert_eq!(parent.book().count(ACCEPT_PATH), 1);
}

#[tokio::test]
async fn an_accept_without_a_certificate_is_refused_with_the_parents_warning() {
    let mut data = accept_data(NOW, &json!(null));
    data["warnings"] = json!([
        "federation_csr_signing_failed: no CA\u{1b}[2J",
        "x".repeat(100_000)
    ]);
    let answer = json!({ "success": true, "data": data });
    let (why, state) = refusal_after(Answer::json(200, &answer)).await;
    assert!(why.contains("federation_csr_signing_failed: no CA"), "{why}");
    assert!(!why.contains('\u{1b}') && why.len() < 3_000, "{why}");
    assert!(matches!(state, JoinState::Refused { key: Some(_), .. }));
}

/// An accept's answer with a certificate of another key, name or authority.
fn answer_with(make: impl FnOnce(&mut Book, &str) -> serde_json::Value + Send + 'static) -> Answer {
    Answer::Data(Box::new(move |book, request| {
        let certificate = make(book, request["csr_pem"].as_str().unwrap());
        accept_data(book.now, &certificate)
    }))
}

#[tokio::test]
async fn a_certificate_for_another_key_is_refused() {
    let answer = answer_with(|book, _| {
        let foreign = PrivateKey::generate().unwrap().csr_pem("x").unwrap();
        let authority = std::sync::Arc::clone(&book.authority);
        book.certificate(&authority, &foreign, PEER)
    });
    let (why, _) = refusal_after(answer).await;
    assert!(why.contains("another key"), "{why}");
}

#[tokio::test]
async fn a_certificate_for_another_peer_is_refused() {
    let other = "0192f0c1-7c1e-7a53-9d0e-000000000000";
    let answer = answer_with(move |book, csr| {
        let authority = std::sync::Arc::clone(&book.authority);
        book.certificate(&authority, csr, other)
    });
    let (why, _) = refusal_after(answer).await;
    assert!(why.contains(other) && why.contains(PEER), "{why}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let answer = answer_with(|book, csr| {
        let stranger = CertificateAuthority::create("stranger", NOW, [9; 16]).unwrap();
        book.certificate(&stranger, csr, PEER)
    });
    let (why, _) = refusal_after(answer).await;
    assert!(why.contains("lacks the expected CA"), "{why}");
}

#[tokio::test]
async fn a_parent_in_trouble_is_asked_again_and_not_before_it_said() {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::failure(500, "Something went wrong"));
    parent.next(ACCEPT_PATH, Answer::busy(503, 1));
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    parent
        .wait("two accepts", |book| (book.count(ACCEPT_PATH) == 2).then_some(()))
        .await;
    running
        .wait("the failure is shown", |report| {
            report
                .link
                .last_error
                .as_ref()
                .is_some_and(|why| why.contains("503"))
        })
        .await;
    assert!(
        running.report().headline().contains("503"),
        "{}",
        running.report().headline()
    );
    let told = std::time::Duration::from_secs(1);
    let early = parent.wait("a third accept", |book| {
        (book.count(ACCEPT_PATH) == 3).then_some(())
    });
    assert!(
        tokio::time::timeout(told * 9 / 10, early).await.is_err(),
        "came back before it was told to"
    );
    running.wait("joined", |report| report.state == "joined").await;
}

#[tokio::test]
async fn a_retry_after_of_nothing_is_no_tight_loop() {
    let parent = ScriptedParent::start();
    for _ in 0..6 {
        parent.next(ACCEPT_PATH, Answer::busy(503, 0));
    }
    let site = Site::new();
    let running = site.run().await;
    let clock = powernode_satellite::process::clock::Clock::start(NOW);
    running.join(invitation(&parent)).await;
    running.wait("joined", |report| report.state == "joined").await;
    let floor = powernode_satellite::machine::backoff::DELAY_FLOOR * 6;
    assert!(clock.now().since_start() >= floor);
}

#[tokio::test]
async fn a_transition_that_is_not_allowed_is_refused_in_the_parents_words() {
    let words = "accept transition failed: revoked";
    let (why, _) = refusal_after(Answer::failure(422, words)).await;
    assert!(why.contains(words) && why.contains("422"), "{why}");
}

#[tokio::test]
async fn what_is_no_powernode_parent_is_told_so() {
    for answer in [
        Answer::text(200, "<html>It works!</html>"),
        Answer::text(404, "<html>not found</html>"),
        Answer::Http(
            302,
            vec![("location", "https://login.example.com/".to_owned())],
            Vec::new(),
        ),
        Answer::text(200, "{}"),
    ] {
        let (why, _) = refusal_after(answer).await;
        assert!(why.contains("no Powernode parent"), "{why}");
        assert!(why.contains("Check the parent URL"), "{why}");
    }
}

#[tokio::test]
async fn a_wrong_token_and_a_spent_one_are_told_apart() {
    let refused = || Answer::failure(401, "acceptance_token not recognized or expired");
    let (why, _) = refusal_after(refused()).await;
    assert!(why.contains("mistyped, used or expired"), "{why}");

    // A gateway that gives up says nothing of what the parent has done.
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::text(504, ""));
    parent.next(ACCEPT_PATH, refused());
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = running.refusal().await;
    assert!(why.contains("answer to an earlier try was lost"), "{why}");
}

#[tokio::test]
async fn a_short_run_for_join_tells_this_joins_outcome() {
    let parent = ScriptedParent::start();
    parent.next(
        ACCEPT_PATH,
        Answer::failure(422, "accept transition failed: suspended"),
    );
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    running.refusal().await;
    running.join(invitation(&parent)).await;
    match daemon::await_join(&running.handle, DEADLINE, &mut |_| {}).await {
        daemon::JoinOutcome::Joined(report) => assert_eq!(report.state, "joined"),
        other => panic!("{other:?}"),
    }
}
