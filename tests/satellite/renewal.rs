//! Renewal at 75 % of the certificate's life, and what can go wrong on the way.

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::{CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH};
use powernode_satellite::machine::membership::{Candidate, Membership};
use powernode_satellite::machine::renewal::CANDIDATE_REFUSALS_MAX;
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::wire::{RefusalCode, Refused};
use serde_json::Value;

use crate::scripted_parent::site::{Running, Site};
use crate::scripted_parent::{Answer, Book, DAY, NOW, ScriptedParent};

/// Past three quarters of 90 days.
const DUE: UnixTime = UnixTime::from_seconds(NOW.as_seconds() + 68 * 86_400);

/// A member whose certificate is due for renewal, and its present membership.
async fn due(parent: &ScriptedParent) -> (Site, Membership) {
    let site = Site::joined(parent).await;
    let membership = membership(&site).await;
    site.wall.set(DUE);
    parent.set_time(DUE);
    (site, membership)
}

/// Runs it until it has asked for a new certificate, and the heartbeat over the old one is through.
async fn run_until_asked(parent: &ScriptedParent, site: &Site) -> Running {
    let beats = parent.book().count(HEARTBEAT_PATH);
    let running = site.run().await;
    parent
        .wait("the old tunnel has done its part", |book| {
            (!book.refreshes().is_empty() && book.count(HEARTBEAT_PATH) > beats).then_some(())
        })
        .await;
    running
}

async fn membership(site: &Site) -> Membership {
    site.state().await.membership().unwrap().clone()
}

fn serial(book: &Book) -> String {
    book.heartbeats().last().unwrap().serial.clone().unwrap()
}

#[tokio::test]
async fn a_new_key_is_certified_proven_and_then_kept() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    let running = site.run().await;
    let report = running
        .wait("renewed", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.not_after > old.identity.certificate.not_after && c.renewal.is_none())
        })
        .await;
    assert_eq!(report.certificate.as_ref().unwrap().standing, "valid");
    running.stop().await;
    let new = membership(&site).await;
    assert!(new.candidate.is_none());
    assert!(!new.identity.pkcs8.matches(&old.identity.pkcs8), "a new key");
    let book = parent.book();
    let refresh = book.refreshes()[0];
    assert_eq!(
        refresh.serial.as_ref(),
        Some(&old.identity.certificate.serial),
        "asked for over the old one"
    );
    assert_eq!(
        serial(&book),
        new.identity.certificate.serial,
        "proven by a heartbeat"
    );
    assert_eq!(book.refreshes().len(), 1);
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_the_old_one_in_use_and_says_so() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    parent.next(CERTIFICATE_REFRESH_PATH, Answer::failure(503, "the CA is away"));
    let running = site.run().await;
    let report = running
        .wait("the failure is shown", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.renewal_error.is_some())
        })
        .await;
    let certificate = report.certificate.unwrap();
    assert!(certificate.renewal_error.unwrap().contains("the CA is away"));
    assert_eq!(certificate.serial, old.identity.certificate.serial);
    assert_eq!(certificate.renewal.as_deref(), Some("requested"));
    running.wait("still active", StatusReport::is_active).await;
}

#[tokio::test]
async fn a_certificate_for_a_foreign_key_is_not_taken() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    parent.next(
        CERTIFICATE_REFRESH_PATH,
        Answer::Data(Box::new(|book, _| {
            let foreign = powernode_satellite::identity::key::PrivateKey::generate().unwrap();
            let authority = std::sync::Arc::clone(&book.authority);
            book.certificate(
                &authority,
                &foreign.csr_pem("x").unwrap(),
                crate::scripted_parent::PEER,
            )
        })),
    );
    let running = site.run().await;
    let report = running
        .wait("the failure is shown", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.renewal_error.is_some())
        })
        .await;
    let why = report.certificate.unwrap().renewal_error.unwrap();
    assert!(why.contains("another key"), "{why}");
    running.stop().await;
    assert_eq!(
        membership(&site).await.identity.certificate,
        old.identity.certificate
    );
}

/// Serial numbers count from 1: the join's certificate has the first, the renewal's the second.
fn second_serial() -> String {
    format!("42{}", "02".repeat(15))
}

#[tokio::test]
async fn a_new_certificate_that_is_not_admitted_gives_way_to_the_old_one() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    // As the host-bridge refuses: with a time to come back.
    let refused = Refused {
        code: RefusalCode::NotAdmitted,
        message: "no such certificate".to_owned(),
        retry_after_millis: 10,
    };
    parent.refuse_serial(&second_serial(), refused);
    let running = site.run().await;
    parent
        .wait("the new one is refused", |book| {
            let tries = book
                .greeted
                .iter()
                .filter(|s| s.as_ref() == Some(&second_serial()))
                .count();
            (tries >= CANDIDATE_REFUSALS_MAX as usize).then_some(())
        })
        .await;
    running
        .wait("back on the old one", |report| {
            report.link.state == "connected"
                && report
                    .certificate
                    .as_ref()
                    .is_some_and(|c| c.renewal.is_none() && c.serial == old.identity.certificate.serial)
        })
        .await;
    running.stop().await;
    let now = membership(&site).await;
    assert!(now.candidate.is_none());
    assert_eq!(now.identity.certificate, old.identity.certificate);
}

#[tokio::test]
async fn a_new_certificate_whose_heartbeat_is_refused_does_not_replace_the_old_one() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    let running = run_until_asked(&parent, &site).await;
    parent.next(
        HEARTBEAT_PATH,
        Answer::failure(401, "Client certificate not issued by this peer's CA"),
    );
    let report = running
        .wait("the refusal is shown", |report| {
            report.heartbeat.last_error.is_some()
        })
        .await;
    let certificate = report.certificate.unwrap();
    assert_eq!(certificate.serial, old.identity.certificate.serial);
    assert_eq!(certificate.renewal.as_deref(), Some("proving"));
    assert_eq!(serial(&parent.book()), second_serial());
}

/// Runs until the parent has seen `until`, cuts the power, and gives the state that the store has.
async fn cut(site: &Site, parent: &ScriptedParent, until: impl FnMut(&Book) -> Option<()>) -> Membership {
    let running = site.run().await;
    parent.wait("the step before the power cut", until).await;
    running.vanish().await;
    membership(site).await
}

async fn finishes(site: &Site, old: &Membership) {
    let running = site.run().await;
    running
        .wait("renewed", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.renewal.is_none() && c.not_after > old.identity.certificate.not_after)
        })
        .await;
    running.wait("active", StatusReport::is_active).await;
    running.stop().await;
}

#[tokio::test]
async fn a_power_cut_before_the_new_certificate_came_is_followed_by_the_same_request() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    parent.next(CERTIFICATE_REFRESH_PATH, Answer::Never);
    let at = cut(&site, &parent, |book| {
        (!book.refreshes().is_empty()).then_some(())
    })
    .await;
    assert!(
        matches!(at.candidate, Some(Candidate::Requested(_))),
        "{:?}",
        at.candidate
    );
    finishes(&site, &old).await;
    let book = parent.book();
    let csrs: Vec<&Value> = book
        .refreshes()
        .iter()
        .map(|seen| &seen.body["csr_pem"])
        .collect();
    assert_eq!(csrs.len(), 2);
    assert_eq!(csrs[0], csrs[1]);
}

#[tokio::test]
async fn a_power_cut_before_the_new_certificate_is_proven_goes_on_proving_it() {
    let parent = ScriptedParent::start();
    let (site, old) = due(&parent).await;
    let running = run_until_asked(&parent, &site).await;
    parent.next(HEARTBEAT_PATH, Answer::Never);
    parent
        .wait("the heartbeat that would prove it", |book| {
            (serial(book) == second_serial()).then_some(())
        })
        .await;
    running.vanish().await;
    let at = membership(&site).await;
    let Some(Candidate::Issued(candidate)) = &at.candidate else {
        panic!("{:?}", at.candidate);
    };
    assert_eq!(at.identity.certificate, old.identity.certificate);
    assert_eq!(candidate.certificate.serial, second_serial());
    finishes(&site, &old).await;
    assert_eq!(parent.book().refreshes().len(), 1, "no second certificate");
}

#[tokio::test]
async fn a_certificate_that_runs_out_is_shown_as_such() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let end = NOW.plus(DAY * 90);
    for (now, standing) in [(end.minus(DAY * 3), "expires soon"), (end.plus(DAY), "expired")] {
        site.wall.set(now);
        let (store, loaded) = site.open().await.unwrap();
        let running = site.run_on(store, loaded);
        assert_eq!(running.report().certificate.unwrap().standing, standing);
        assert!(
            running.report().headline().contains(standing),
            "{}",
            running.report().headline()
        );
        running.vanish().await;
    }
}

#[tokio::test]
async fn a_box_from_the_drawer_renews_first_and_is_back() {
    let parent = ScriptedParent::start();
    // Its certificate ends before the parent's own does.
    parent.book().now = NOW.minus(DAY * 60);
    let site = Site::joined(&parent).await;
    let old = membership(&site).await;
    let late = NOW.plus(DAY * 40);
    site.wall.set(late);
    parent.set_time(late);
    let beats = parent.book().heartbeats().len();

    // Not allowed: it says what it takes.
    let running = site.run().await;
    let report = running
        .wait("it says that it needs a new token", |report| {
            report.certificate.as_ref().is_some_and(|c| c.needs_rejoin)
        })
        .await;
    assert_eq!(report.certificate.as_ref().unwrap().standing, "expired");
    assert!(report.headline().contains("rejoin"), "{}", report.headline());

    // Allowed after all.
    parent.grace.send_replace(DAY * 60);
    let report = running
        .wait("renewed", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.not_after > late && c.renewal.is_none())
        })
        .await;
    assert!(!report.certificate.as_ref().unwrap().needs_rejoin);
    running.wait("active", StatusReport::is_active).await;
    running.stop().await;
    let book = parent.book();
    let asked: Vec<_> = book
        .seen
        .iter()
        .skip_while(|seen| seen.path != CERTIFICATE_REFRESH_PATH)
        .collect();
    assert_eq!(asked[0].serial.as_ref(), Some(&old.identity.certificate.serial));
    let later = book.heartbeats();
    assert!(later.len() > beats);
    for beat in &later[beats..] {
        assert_ne!(
            beat.serial.as_ref(),
            Some(&old.identity.certificate.serial),
            "nothing but the renewal is asked with the ended one"
        );
    }
}
