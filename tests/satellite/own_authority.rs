//! A box among equals goes over to its next authority, at a parent that verifies it by what it has fetched.

use std::sync::Arc;

use http::{Method, Request};
use http_body_util::Full;
use powernode_satellite::base::id::TraceId;
use powernode_satellite::contract::invitation::CaFingerprint;
use powernode_satellite::contract::message::{ContractAnswer, TrustBundle, read_answer};
use powernode_satellite::contract::peer::SpawnMode;
use powernode_satellite::contract::{ACCEPT_PATH, HEARTBEAT_PATH, TRUST_BUNDLE_PATH};
use powernode_satellite::identity::anchors::Anchors;
use powernode_satellite::identity::certificate::peer_subject;
use powernode_satellite::identity::own_authority::has_issued;
use powernode_satellite::identity::succession::{ServedBundle, follow};
use powernode_satellite::machine::child::{Rejoin, RejoinMode, WorkingMembership};
use powernode_satellite::machine::own_authority::{OVERLAP, Retirement};
use powernode_satellite::machine::past::FormerGrants;
use powernode_satellite::satellite::own_authority::{AuthorityReport, AuthorityWish};
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::tunnel::http::{self as tunnel_http, HttpLimits};
use serde_json::{Value, json};

use crate::scripted_parent::site::{Running, Site, invitation, invitation_with};
use crate::scripted_parent::{Answer, Book, DAY, NOW, PEER, SECOND_TOKEN, ScriptedParent};

/// The box has joined as an equal, and runs.
async fn equal() -> (ScriptedParent, Site, Running) {
    let (parent, site) = (ScriptedParent::start(), Site::new());
    accept_as_equal(&parent);
    let running = site.run().await;
    let mut invitation = invitation(&parent);
    invitation.spawn_mode = SpawnMode::AutonomousPeer;
    running.join(invitation).await;
    running.wait("active", StatusReport::is_active).await;
    (parent, site, running)
}

/// The next accept exchanges authorities.
fn accept_as_equal(parent: &ScriptedParent) {
    let known = Arc::clone(&parent.equal);
    parent.next(
        ACCEPT_PATH,
        Answer::Data(Box::new(move |book: &mut Book, body: &Value| {
            let bundle = body["peer_ca_bundle_pem"].as_str().unwrap();
            known.set(Anchors::from_pem(bundle).unwrap());
            json!({
                "peer_id": PEER,
                "status": "enrolled",
                "contract_version_agreed": 1,
                "trust_exchange": {
                    "ca_bundle_pem": book.authority.certificate_pem(),
                    "assigned_inbound_subject": peer_subject(PEER.parse().unwrap()),
                },
            })
        })),
    );
}

/// As the parent fetches it.
async fn bundle(parent: &ScriptedParent) -> TrustBundle {
    let request = Request::builder()
        .method(Method::GET)
        .uri(TRUST_BUNDLE_PATH)
        .header("host", "equal")
        .body(Full::default())
        .unwrap();
    let answer = tunnel_http::request(&parent.tunnel(), TraceId(1), request, HttpLimits::default())
        .await
        .unwrap();
    match read_answer(answer.status().as_u16(), answer.body()).unwrap() {
        ContractAnswer::Data(bundle) => bundle,
        ContractAnswer::Failure(failure) => panic!("{failure:?}"),
    }
}

/// The parent knows the box by what it has served from now on.
async fn fetch(
    parent: &ScriptedParent,
    now: powernode_satellite::base::time::UnixTime,
) -> Vec<CaFingerprint> {
    let served = bundle(parent).await;
    let served = ServedBundle {
        ca_bundle_pem: &served.ca_bundle_pem,
        cross_certificates_pem: served.cross_certificates_pem.as_deref(),
    };
    let followed = follow(&parent.equal.get().unwrap(), served, now).unwrap();
    assert!(followed.unvouched.is_empty());
    let known = followed.anchors.fingerprints().collect();
    parent.equal.set(followed.anchors);
    known
}

fn authority(report: &StatusReport) -> &AuthorityReport {
    report.own_authority.as_ref().unwrap()
}

fn stage(report: &StatusReport) -> Option<&str> {
    let succession = report.own_authority.as_ref()?.succession.as_ref()?;
    Some(&succession.stage)
}

async fn rotate(running: &Running) -> AuthorityReport {
    let rotated = running.handle.authority(AuthorityWish::Rotate).await;
    rotated.unwrap().unwrap()
}

async fn retire(running: &Running, how: Retirement) -> Result<AuthorityReport, String> {
    let retired = running.handle.authority(AuthorityWish::Retire(how)).await;
    retired.unwrap().map_err(|error| error.to_string())
}

async fn certificate(site: &Site) -> String {
    let state = site.state().await;
    state.membership().unwrap().identity.certificate.cert_pem.clone()
}

/// A heartbeat over a certificate of this serial number has been acknowledged.
async fn beats_as(parent: &ScriptedParent, serial: &str) {
    parent
        .wait("a heartbeat of it", |book| {
            let beats = book.heartbeats();
            beats
                .iter()
                .any(|seen| seen.serial.as_deref() == Some(serial))
                .then_some(())
        })
        .await;
}

#[tokio::test]
async fn what_the_parent_has_fetched_is_used_and_no_heartbeat_is_lost() {
    let (parent, site, running) = equal().await;
    let before = running.report();
    let old = authority(&before).issuing.clone();
    assert_eq!(stage(&before), None);
    let announced = rotate(&running).await;
    assert_eq!(announced.issuing, old);
    let succession = announced.succession.unwrap();
    assert_eq!(
        (succession.stage.as_str(), succession.fetched_at),
        ("announced", None)
    );
    let again = running.handle.authority(AuthorityWish::Rotate).await.unwrap();
    assert!(again.unwrap_err().to_string().contains("is under way"));
    assert!(
        retire(&running, Retirement::Forced)
            .await
            .unwrap_err()
            .contains("still needed")
    );

    let known = fetch(&parent, NOW).await;
    let known: Vec<_> = known.iter().map(ToString::to_string).collect();
    assert_eq!(
        known,
        [old.fingerprint.clone(), succession.other.fingerprint.clone()]
    );
    let report = running
        .wait("it is in use", |report| stage(report) == Some("overlap"))
        .await;
    assert_eq!(authority(&report).issuing.fingerprint, known[1]);
    assert_eq!(authority(&report).succession.as_ref().unwrap().other, old);
    beats_as(&parent, &report.certificate.unwrap().serial).await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert_eq!(
        (
            report.counters.heartbeats_failed,
            report.counters.certificate_renewals_failed
        ),
        (0, 0)
    );
    running.vanish().await;

    // Both are served over a restart, and the old one for its month.
    let running = site.run().await;
    let beats = parent.book().count(HEARTBEAT_PATH);
    parent
        .wait("back", |book| (book.count(HEARTBEAT_PATH) > beats).then_some(()))
        .await;
    assert_eq!(fetch(&parent, NOW).await.len(), 2);
    let late = NOW.plus(OVERLAP + DAY);
    parent.set_time(late);
    site.wall.set(late);
    running.wait("retired", |report| stage(report).is_none()).await;
    let left: Vec<_> = fetch(&parent, late)
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(left, known[1..]);
    running.wait("active", StatusReport::is_active).await;
    running.stop().await;
}

#[tokio::test]
async fn a_parent_that_never_fetches_takes_the_old_authoritys_word_in_the_chain() {
    let (parent, site, running) = equal().await;
    let old = bundle(&parent).await.ca_bundle_pem;
    rotate(&running).await;
    running.vanish().await;
    assert!(has_issued(&old, &certificate(&site).await));

    let later = NOW.plus(DAY);
    parent.set_time(later);
    site.wall.set(later);
    let running = site.run().await;
    let report = running
        .wait("it is in use", |report| stage(report) == Some("overlap"))
        .await;
    beats_as(&parent, &report.certificate.unwrap().serial).await;
    assert_eq!(
        parent.equal.get().unwrap().certificates().len(),
        1,
        "it knows the old one alone"
    );
    let refused = retire(&running, Retirement::InTime).await.unwrap_err();
    assert!(
        refused.contains("has not fetched") && refused.contains("--force"),
        "{refused}"
    );
    let retired = retire(&running, Retirement::Forced).await.unwrap();
    assert_eq!(retired.succession, None);
    running.stop().await;
    assert!(!has_issued(&old, &certificate(&site).await));
}

#[tokio::test]
async fn an_equal_that_rejoins_by_a_bare_token_stays_one_and_keeps_its_authority() {
    let (parent, _site, running) = equal().await;
    let before = authority(&running.report()).clone();
    accept_as_equal(&parent);
    let rejoin = Rejoin {
        grants: FormerGrants::Kept,
        working: WorkingMembership::Replace,
        mode: RejoinMode::AsBefore,
    };
    let bare = invitation_with(&parent, SECOND_TOKEN, vec![parent.bridge()]);
    assert_eq!(
        bare.spawn_mode,
        SpawnMode::ManagedChild,
        "as a bare token is taken else"
    );
    running.handle.join_as(bare, Some(rejoin)).await.unwrap().unwrap();
    parent
        .wait("asked anew", |book| (book.accepts().len() == 2).then_some(()))
        .await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert_eq!(
        report.peer.as_ref().unwrap().spawn_mode,
        SpawnMode::AutonomousPeer
    );
    assert_eq!(*authority(&report), before);
    assert_eq!(report.grants.active, 0, "no operator grant");
    running.stop().await;
}

#[tokio::test]
async fn a_change_ends_with_the_peering_among_equals() {
    let (parent, site, running) = equal().await;
    rotate(&running).await;
    let managed = Rejoin {
        grants: FormerGrants::Kept,
        working: WorkingMembership::Replace,
        mode: RejoinMode::Told,
    };
    parent.mint(SECOND_TOKEN);
    parent.equal.set(parent.book().authority.anchors().clone());
    let invitation = invitation_with(&parent, SECOND_TOKEN, vec![parent.bridge()]);
    running
        .handle
        .join_as(invitation, Some(managed))
        .await
        .unwrap()
        .unwrap();
    running
        .wait("certified by the parent", |report| {
            report.is_active()
                && report
                    .certificate
                    .as_ref()
                    .is_some_and(|shown| !shown.self_issued)
        })
        .await;
    running.stop().await;
    let (_, loaded) = site.open().await.unwrap();
    assert!(loaded.succession.is_none(), "its key is not kept for nothing");
}

#[tokio::test]
async fn a_box_that_its_parent_certifies_has_none() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    let report = running.wait("joined", |report| report.state == "joined").await;
    assert_eq!(report.own_authority, None);
    let refused = running.handle.authority(AuthorityWish::Rotate).await.unwrap();
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("certified by its parent")
    );
    running.stop().await;
}
