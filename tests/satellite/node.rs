//! The node's identity: enrolled once with what the accept delivered, kept, written to files, renewed.

use std::path::Path;
use std::sync::Arc;

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::{ACCEPT_PATH, NODE_ENROLL_PATH, NODE_REFRESH_PATH};
use powernode_satellite::machine::node_identity::{NodeRefusal, NodeStanding};
use powernode_satellite::process::config::node::{NodeFilesPlace, PlatformCa};
use powernode_satellite::satellite::status::StatusReport;
use serde_json::{Value, json};

use crate::scripted_parent::platform::{
    BOOTSTRAP_TOKEN, INSTANCE, NodeAuthority, PlatformAnswer, ScriptedPlatform,
};
use crate::scripted_parent::site::{Running, Site, invitation};
use crate::scripted_parent::{Answer, Book, DAY, NOW, PEER, ScriptedParent, accept_data};

/// The next accept delivers an enrollment at this platform.
fn deliver(parent: &ScriptedParent, platform_url: &str) {
    let enrollment = json!({
        "bootstrap_token": BOOTSTRAP_TOKEN,
        "platform_url": platform_url,
        "intended_subject": INSTANCE,
        "expires_at": NOW.plus(std::time::Duration::from_secs(3_600)).to_string(),
    });
    parent.next(
        ACCEPT_PATH,
        Answer::Data(Box::new(move |book: &mut Book, body| {
            let authority = Arc::clone(&book.authority);
            let csr = body["csr_pem"].as_str().unwrap();
            let certificate = book.certificate(&authority, csr, PEER);
            let mut data = accept_data(book.now, &certificate);
            data["node_enrollment"] = enrollment;
            data
        })),
    );
}

/// A parent and its platform, and a box that is about to join.
async fn invited() -> (ScriptedParent, ScriptedPlatform, Site) {
    let parent = ScriptedParent::start();
    let platform = ScriptedPlatform::start(&parent).await;
    deliver(&parent, &platform.url());
    (parent, platform, Site::new())
}

async fn enrolled(running: &Running) -> StatusReport {
    running
        .wait("a node", |report| {
            report.node.as_ref().is_some_and(|node| node.state == "enrolled")
        })
        .await
}

/// The refusal's words; the membership must be as good as ever.
async fn ended(running: &Running) -> String {
    let report = running
        .wait("ended", |report| {
            report.is_active() && report.node.as_ref().is_some_and(|node| node.refusal.is_some())
        })
        .await;
    report.node.unwrap().refusal.unwrap()
}

async fn standing(site: &Site) -> NodeStanding {
    site.state().await.membership().unwrap().node.clone().unwrap()
}

fn file(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

#[tokio::test]
async fn the_box_becomes_a_node_and_says_so_and_leaves_the_files() {
    let (parent, platform, mut site) = invited().await;
    let pki = site.path().join("powernode/pki");
    site.settings.node.write_to = NodeFilesPlace::At(pki.clone());
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = enrolled(&running).await;
    let node = report.node.unwrap();
    assert_eq!(node.instance_id.as_deref(), Some(INSTANCE));
    assert_eq!(node.certificate.as_ref().unwrap().standing, "valid");
    assert_eq!(node.certificate.unwrap().not_after, NOW.plus(DAY * 90));
    assert!(report.certificate.is_some(), "both identities are shown");
    running
        .wait("written", |report| {
            report.node.as_ref().is_some_and(|node| node.files.is_some())
        })
        .await;
    let meta: Value = serde_json::from_str(&file(&pki, "meta.json")).unwrap();
    assert_eq!(meta["instance_id"], INSTANCE);
    assert_eq!(meta["certificate_id"], "0192f0c1-2222-7222-8222-222222222222");
    assert!(file(&pki, "node.key").contains("PRIVATE KEY"));
    running.stop().await;

    let request = platform.book().requests(NODE_ENROLL_PATH)[0].clone();
    assert_eq!(
        request.serial, None,
        "no certificate is shown before there is one"
    );
    assert!(request.body["agent_version"].is_string());
    assert!(
        parent
            .book()
            .seen
            .iter()
            .all(|seen| seen.path != NODE_ENROLL_PATH),
        "another host than the parent's is asked directly"
    );
    let NodeStanding::Enrolled(kept) = standing(&site).await else {
        panic!("not kept");
    };
    assert_eq!(file(&pki, "node.crt"), kept.identity.certificate.cert_pem);
    let federation = site.state().await.membership().unwrap().identity.clone();
    assert!(
        !federation.pkcs8.matches(&kept.identity.pkcs8),
        "a key of its own"
    );
    std::fs::remove_file(pki.join("node.crt")).unwrap();

    let running = site.run().await;
    running
        .wait("written again", |_| pki.join("node.crt").exists())
        .await;
    running.wait("active", StatusReport::is_active).await;
    assert_eq!(platform.book().seen.len(), 1, "once is enough");
    running.handle.leave("moved".to_owned()).await.unwrap().unwrap();
    assert!(!pki.join("node.key").exists(), "no key stays behind");
}

#[tokio::test]
async fn a_platform_at_the_parents_own_host_is_asked_over_the_tunnel() {
    let parent = ScriptedParent::start();
    deliver(&parent, &format!("https://{}", parent.bridge()));
    let authority = NodeAuthority::new();
    parent.next(NODE_ENROLL_PATH, Answer::busy(503, 0));
    parent.next(
        NODE_ENROLL_PATH,
        Answer::Data(Box::new(move |book: &mut Book, body| {
            authority.certify(body["csr_pem"].as_str().unwrap(), book.now)
        })),
    );
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    enrolled(&running).await;
    let book = parent.book();
    let asked: Vec<_> = book
        .seen
        .iter()
        .filter(|seen| seen.path == NODE_ENROLL_PATH)
        .collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].body, asked[1].body, "each retry is the same request");
    assert_eq!(asked[0].body["bootstrap_token"], BOOTSTRAP_TOKEN);
}

#[tokio::test]
async fn a_lost_answer_is_told_as_that_and_costs_the_membership_nothing() {
    let (parent, platform, site) = invited().await;
    platform.next(PlatformAnswer::DoneAndLost);
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = ended(&running).await;
    assert!(
        why.contains("answer to an earlier try was lost") && why.contains("rejoin"),
        "{why}"
    );
    running.stop().await;
    assert!(matches!(
        standing(&site).await,
        NodeStanding::Ended {
            refusal: NodeRefusal::TokenSpent { http_status: 422, .. },
            ..
        }
    ));
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    assert_eq!(platform.book().seen.len(), 2, "what is over is not tried again");
}

#[tokio::test]
async fn a_power_cut_after_the_request_repeats_the_same_request() {
    let (parent, platform, site) = invited().await;
    platform.next(PlatformAnswer::Lost);
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    platform
        .wait("asked", |book| (!book.seen.is_empty()).then_some(()))
        .await;
    running.vanish().await;
    let running = site.run().await;
    enrolled(&running).await;
    let book = platform.book();
    assert!(book.seen.iter().all(|seen| seen.body == book.seen[0].body));
}

#[tokio::test]
async fn a_platform_that_says_no_is_asked_once() {
    let (parent, platform, site) = invited().await;
    let body = json!({ "error": "bootstrap token rejected" });
    platform.next(PlatformAnswer::Http(401, vec![], body));
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = ended(&running).await;
    assert!(why.contains("HTTP 401: \"bootstrap token rejected\""), "{why}");
    assert_eq!(platform.book().seen.len(), 1);
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_host_alone() {
    let (parent, platform, site) = invited().await;
    let to = |location: String| PlatformAnswer::Http(307, vec![("location", location)], Value::Null);
    platform.next(to(format!("{}{NODE_ENROLL_PATH}", platform.url())));
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    enrolled(&running).await;
    assert_eq!(platform.book().seen.len(), 2);

    let (parent, platform, site) = invited().await;
    platform.next(to(format!("https://elsewhere.example{NODE_ENROLL_PATH}")));
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let why = ended(&running).await;
    assert!(why.contains("redirects to https://elsewhere.example"), "{why}");
}

#[tokio::test]
async fn a_platform_of_another_authority_gets_no_token() {
    let (parent, platform, mut site) = invited().await;
    let stranger = site.path().join("stranger.pem");
    let other = ScriptedParent::start();
    std::fs::write(&stranger, other.book().authority.certificate_pem()).unwrap();
    site.settings.node.platform_ca = Some(PlatformCa::File(stranger));
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running
        .wait("the failure is shown", |report| {
            report.node.as_ref().is_some_and(|node| node.last_error.is_some())
        })
        .await;
    let why = report.node.unwrap().last_error.unwrap();
    assert!(why.contains("no TLS connection"), "{why}");
    assert!(platform.book().seen.is_empty());
}

#[tokio::test]
async fn the_certificate_is_renewed_as_the_node_with_a_new_key() {
    let (parent, platform, mut site) = invited().await;
    let pki = site.path().join("pki");
    site.settings.node.write_to = NodeFilesPlace::At(pki.clone());
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let first = enrolled(&running).await.node.unwrap().certificate.unwrap();
    running.stop().await;

    let due: UnixTime = NOW.plus(DAY * 68);
    site.wall.set(due);
    parent.set_time(due);
    platform.book().now = due;
    let running = site.run().await;
    let report = running
        .wait("renewed", |report| {
            let shown = report.node.as_ref().and_then(|node| node.certificate.as_ref());
            shown.is_some_and(|shown| shown.not_after > first.not_after && shown.renewal.is_none())
        })
        .await;
    let new = report.node.unwrap().certificate.unwrap();
    running
        .wait("the files are the new ones", |_| {
            file(&pki, "meta.json").contains(&new.not_after.to_string())
        })
        .await;
    running.stop().await;
    let refresh = platform.book().requests(NODE_REFRESH_PATH)[0].clone();
    assert_eq!(
        refresh.serial.as_ref(),
        Some(&first.serial),
        "asked for as the old one"
    );
    let NodeStanding::Enrolled(kept) = standing(&site).await else {
        panic!("not kept");
    };
    assert_eq!(kept.identity.certificate.serial, new.serial);
    assert_eq!(file(&pki, "node.crt"), kept.identity.certificate.cert_pem);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_shown_and_stops_nothing() {
    let (parent, _platform, mut site) = invited().await;
    let file = site.path().join("file");
    std::fs::write(&file, "").unwrap();
    site.settings.node.write_to = NodeFilesPlace::At(file.join("pki"));
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running
        .wait("the failure is shown", |report| {
            report.is_active()
                && report
                    .node
                    .as_ref()
                    .is_some_and(|node| node.files_error.is_some())
        })
        .await;
    let why = report.node.unwrap().files_error.unwrap();
    assert!(why.contains("ReadWritePaths="), "{why}");
}
