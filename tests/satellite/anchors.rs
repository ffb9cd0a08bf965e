//! The parent's authority is rotated: the satellite follows the old one's word and nothing else.

use std::fs;

use powernode_satellite::bridge::certificate_authority::{CertificateAuthority, Succession};
use powernode_satellite::contract::TRUST_BUNDLE_PATH;
use powernode_satellite::contract::invitation::{CaFingerprint, ParentTrust};
use powernode_satellite::identity::anchors::Anchors;
use powernode_satellite::satellite::membership_store::STORE_FILE;
use powernode_satellite::satellite::status::StatusReport;
use serde_json::{Value, json};

use crate::scripted_parent::site::Site;
use crate::scripted_parent::{Answer, NOW, ScriptedParent};

fn succession(parent: &ScriptedParent) -> Succession {
    let authority = std::sync::Arc::clone(&parent.book().authority);
    authority.succeed(NOW, [[0x57; 16], [0x58; 16]]).unwrap()
}

/// What the parent serves from now on, and hints.
fn serve(parent: &ScriptedParent, authorities: &[&CertificateAuthority], cross: Option<&str>) {
    let pem: String = authorities.iter().map(|one| one.certificate_pem()).collect();
    let fingerprints: Vec<_> = authorities
        .iter()
        .map(|one| one.fingerprint().to_string())
        .collect();
    parent.book().heartbeat["trust_anchors"] = json!(fingerprints);
    let bundle =
        json!({ "ca_bundle_pem": pem, "cross_certificates_pem": cross, "generated_at": NOW.to_string() });
    let answer = Answer::Data(Box::new(move |_: &mut _, _: &Value| bundle));
    parent.next(TRUST_BUNDLE_PATH, answer);
}

fn shown(report: &StatusReport) -> Vec<String> {
    let certificate = report.certificate.as_ref();
    certificate.map_or_else(Vec::new, |shown| {
        shown
            .anchors
            .iter()
            .map(|anchor| anchor.fingerprint.clone())
            .collect()
    })
}

fn texts(fingerprints: &[CaFingerprint]) -> Vec<String> {
    fingerprints.iter().map(ToString::to_string).collect()
}

async fn kept(site: &Site) -> (Vec<CaFingerprint>, ParentTrust) {
    let state = site.state().await;
    let membership = state.membership().unwrap();
    let anchors = Anchors::from_pem(&membership.identity.certificate.ca_chain_pem).unwrap();
    (anchors.fingerprints().collect(), membership.parent.trust.clone())
}

#[tokio::test]
async fn it_is_followed_on_a_hint_kept_twice_and_outlives_a_power_cut() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let (old, succession) = (parent.fingerprint, succession(&parent));
    let new = succession.next.fingerprint();
    let authority = std::sync::Arc::clone(&parent.book().authority);
    serve(
        &parent,
        &[&authority, &succession.next],
        Some(&succession.cross_pem()),
    );
    let running = site.run().await;
    running
        .wait("both are trusted", |report| shown(report) == texts(&[old, new]))
        .await;
    running.vanish().await;
    assert_eq!(kept(&site).await, (vec![old, new], ParentTrust::Pinned(old)));
    fs::remove_file(site.path().join(STORE_FILE)).unwrap();
    assert_eq!(kept(&site).await.0, [old, new], "from the second copy");

    // The old one is retired.
    serve(&parent, &[&succession.next], None);
    let running = site.run().await;
    running
        .wait("the new one alone is trusted", |report| {
            shown(report) == texts(&[new])
        })
        .await;
    running.stop().await;
    assert_eq!(kept(&site).await, (vec![new], ParentTrust::Pinned(new)));
}

#[tokio::test]
async fn without_the_old_authoritys_word_nothing_changes_and_status_says_so() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let (old, succession) = (parent.fingerprint, succession(&parent));
    let authority = std::sync::Arc::clone(&parent.book().authority);
    let forged = CertificateAuthority::create("test", NOW, [0x59; 16])
        .unwrap()
        .succeed(NOW, [[0x60; 16], [0x61; 16]])
        .unwrap();
    for (authorities, cross) in [
        (vec![&*authority, &succession.next], None),
        (vec![&*authority, &succession.next], Some(forged.cross_pem())),
        (vec![&succession.next], None),
        (vec![&forged.next], Some(forged.cross_pem())),
    ] {
        serve(&parent, &authorities, cross.as_deref());
        let running = site.run().await;
        let report = running
            .wait("it is said", |report| {
                report
                    .certificate
                    .as_ref()
                    .is_some_and(|certificate| certificate.bundle_error.is_some())
            })
            .await;
        let error = report.certificate.as_ref().unwrap().bundle_error.clone().unwrap();
        assert!(error.contains("vouched"), "{error}");
        assert_eq!(shown(&report), texts(&[old]));
        running.wait("still active", StatusReport::is_active).await;
        running.stop().await;
        assert_eq!(kept(&site).await.0, [old]);
    }
}
