//! Joining the same parent anew: the key, the grants and the history stay, and a refusal costs nothing.

use std::sync::Arc;

use powernode_satellite::base::id::PeerId;
use powernode_satellite::contract::peer::PeerStatus;
use powernode_satellite::contract::{ACCEPT_PATH, HEARTBEAT_PATH};
use powernode_satellite::grant::{GrantRequest, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant};
use powernode_satellite::machine::child::{Rejoin, RejoinMode, WorkingMembership};
use powernode_satellite::machine::membership::{Membership, StoredInvitation};
use powernode_satellite::machine::past::FormerGrants;
use powernode_satellite::satellite::grants::{Handover, Issue};
use powernode_satellite::satellite::status::StatusReport;

use crate::scripted_parent::site::{Running, Site, invitation_with};
use crate::scripted_parent::{Answer, Book, NOW, PEER, SECOND_TOKEN, ScriptedParent, accept_data};

/// The id under which the parent knows the box after it has forgotten it.
const SECOND_PEER: &str = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d90";

const REJOIN: Rejoin = Rejoin {
    grants: FormerGrants::Kept,
    working: WorkingMembership::Replace,
    mode: RejoinMode::Told,
};

/// A member that has stopped, and its membership.
async fn member() -> (ScriptedParent, Site, Membership) {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let membership = membership(&site).await;
    (parent, site, membership)
}

async fn membership(site: &Site) -> Membership {
    site.state().await.membership().unwrap().clone()
}

fn second(parent: &ScriptedParent) -> StoredInvitation {
    invitation_with(parent, SECOND_TOKEN, vec![parent.bridge()])
}

/// The next accept makes this box another peer.
fn accept_as_another(parent: &ScriptedParent) {
    parent.next(
        ACCEPT_PATH,
        Answer::Data(Box::new(|book: &mut Book, body| {
            let authority = Arc::clone(&book.authority);
            let csr = body["csr_pem"].as_str().unwrap();
            let certificate = book.certificate(&authority, csr, SECOND_PEER);
            let mut data = accept_data(book.now, &certificate);
            data["peer_id"] = SECOND_PEER.into();
            data
        })),
    );
}

/// Takes the second invitation.
async fn rejoin(running: &Running, parent: &ScriptedParent, rejoin: Rejoin) {
    let taken = running.handle.join_as(second(parent), Some(rejoin)).await;
    taken.unwrap().unwrap();
}

/// The same while the parent does not answer.
async fn ask_in_vain(running: &Running, parent: &ScriptedParent) {
    parent.mint(SECOND_TOKEN);
    parent.next(ACCEPT_PATH, Answer::Never);
    rejoin(running, parent, REJOIN).await;
    parent
        .wait("asked", |book| (book.accepts().len() == 2).then_some(()))
        .await;
}

async fn rejoined(running: &Running) -> StatusReport {
    running
        .wait("another peer", |report| {
            report.is_active()
                && report
                    .peer
                    .as_ref()
                    .is_some_and(|peer| peer.id.to_string() == SECOND_PEER)
        })
        .await
}

fn peer(id: &str) -> PeerId {
    id.parse().unwrap()
}

async fn issue(running: &Running, to: &str) {
    let request = GrantRequest {
        federation_peer_id: peer(to),
        remote_subject: "anna".to_owned(),
        resource_kind: "service".to_owned(),
        resource_id: Some("ssh".to_owned()),
        permission_scopes: vec!["read".to_owned()],
        node_instance_ids: Vec::new(),
        sdwan_network_ids: Vec::new(),
        source_cidrs: Vec::new(),
        ttl_seconds: None,
    };
    let issue = Issue::of(NewGrant::check(request).unwrap(), Handover::ByHand);
    running.surroundings.grants.issue(issue).await.unwrap();
}

/// Live grants: of which peer, and whether it is the operator's.
fn live(running: &Running) -> Vec<(String, bool)> {
    let mut live: Vec<_> = running
        .surroundings
        .grants
        .all()
        .into_iter()
        .filter(|kept| kept.grant.state(NOW) == GrantState::Active)
        .map(|kept| {
            let operators = kept.grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND;
            (kept.grant.federation_peer_id.to_string(), operators)
        })
        .collect();
    live.sort();
    live
}

#[tokio::test]
async fn a_parent_that_has_forgotten_the_box_takes_it_anew_with_its_key() {
    let (parent, site, before) = member().await;
    parent.mint(SECOND_TOKEN);
    accept_as_another(&parent);
    let running = site.run().await;
    issue(&running, PEER).await;
    rejoin(&running, &parent, REJOIN).await;
    let report = rejoined(&running).await;
    assert_eq!(report.former_peers.len(), 1);
    assert_eq!(report.former_peers[0].id, before.peer_id);
    running
        .wait("the new peer's operator grant", |report| {
            report.grants.active == 1
        })
        .await;
    let report = running.report();
    assert_eq!(report.grants.of_former_peers, 2, "kept, and nobody's");
    running.stop().await;
    let after = membership(&site).await;
    assert!(
        after.identity.pkcs8.matches(&before.identity.pkcs8),
        "the same key"
    );
    let book = parent.book();
    let csrs: Vec<_> = book
        .accepts()
        .iter()
        .map(|seen| seen.body["csr_pem"].clone())
        .collect();
    assert_eq!(csrs[0], csrs[1], "a request of the same key");
}

#[tokio::test]
async fn grants_go_on_for_the_new_peer_when_the_owner_says_so() {
    let (parent, site, _) = member().await;
    parent.mint(SECOND_TOKEN);
    accept_as_another(&parent);
    let running = site.run().await;
    issue(&running, PEER).await;
    let rebind = Rejoin {
        grants: FormerGrants::Rebound,
        ..REJOIN
    };
    rejoin(&running, &parent, rebind).await;
    rejoined(&running).await;
    running
        .wait("both grants", |report| report.grants.active == 2)
        .await;
    assert_eq!(
        live(&running),
        [
            (PEER.to_owned(), true),
            (SECOND_PEER.to_owned(), false),
            (SECOND_PEER.to_owned(), true)
        ],
        "the operator's names its peer and is made anew"
    );
}

#[tokio::test]
async fn an_emancipated_box_stays_so() {
    let (parent, site, _) = member().await;
    let running = site.run().await;
    running
        .wait("the operator grant", |report| report.grants.active == 1)
        .await;
    let grants = &running.surroundings.grants;
    grants.emancipate(peer(PEER), "mine again").await.unwrap();
    parent.mint(SECOND_TOKEN);
    accept_as_another(&parent);
    rejoin(&running, &parent, REJOIN).await;
    rejoined(&running).await;
    let beats = parent.book().count(HEARTBEAT_PATH);
    running.stop().await;
    let running = site.run().await;
    parent
        .wait("a tunnel later", |book| {
            (book.count(HEARTBEAT_PATH) > beats).then_some(())
        })
        .await;
    assert_eq!(live(&running), [], "no operator grant by itself");
    let mirrored = running
        .surroundings
        .grants
        .mirror(peer(SECOND_PEER))
        .await
        .unwrap();
    assert!(mirrored.is_none());
}

#[tokio::test]
async fn a_refusal_leaves_the_membership_in_use_and_says_why() {
    let (parent, site, before) = member().await;
    let running = site.run().await;
    rejoin(&running, &parent, REJOIN).await;
    let report = running
        .wait("the refusal", |report| {
            report.is_active() && report.refusal.is_some()
        })
        .await;
    assert!(
        report
            .refusal
            .unwrap()
            .contains("does not take the acceptance token")
    );
    assert_eq!(report.peer.unwrap().id, before.peer_id);
    running.stop().await;
    let after = membership(&site).await;
    assert!(after.rejoin_refused.is_some() && after.former.is_empty());
    assert_eq!(after.identity.certificate, before.identity.certificate);
}

#[tokio::test]
async fn a_power_cut_on_the_way_ends_in_one_of_the_two_memberships() {
    let (parent, site, before) = member().await;
    let running = site.run().await;
    ask_in_vain(&running, &parent).await;
    running.vanish().await;
    let state = site.state().await;
    let kept = state.invitation().unwrap().past.membership.as_ref().unwrap();
    assert_eq!(kept.peer_id, before.peer_id);
    accept_as_another(&parent);
    let running = site.run().await;
    let report = rejoined(&running).await;
    assert_eq!(report.former_peers[0].id, before.peer_id);
}

#[tokio::test]
async fn a_rejoin_that_is_not_answered_can_be_given_up() {
    let (parent, site, before) = member().await;
    let running = site.run().await;
    let refused = running.handle.cancel_rejoin().await.unwrap().unwrap_err();
    assert!(
        refused.to_string().contains("no rejoin is under way"),
        "{refused}"
    );
    ask_in_vain(&running, &parent).await;
    let cancelled = running.handle.cancel_rejoin().await.unwrap().unwrap();
    assert_eq!(
        (cancelled.peer_id, cancelled.may_be_taken),
        (before.peer_id, true)
    );
    let report = running.wait("active again", StatusReport::is_active).await;
    assert_eq!((report.replaces, report.refusal), (None, None));
    running.vanish().await;
    let after = membership(&site).await;
    assert_eq!(after.identity.certificate, before.identity.certificate);
    assert!(after.rejoin_refused.is_none() && after.former.is_empty());
    assert_eq!(parent.book().accepts().len(), 2, "not asked again");
}

#[tokio::test]
async fn a_first_join_cannot_be_given_up_but_for_another() {
    let parent = ScriptedParent::start();
    parent.next(ACCEPT_PATH, Answer::Never);
    let site = Site::new();
    let running = site.run().await;
    running.join(second(&parent)).await;
    let refused = running.handle.cancel_rejoin().await.unwrap().unwrap_err();
    assert!(
        refused.to_string().contains("join with another code"),
        "{refused}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_revoked_box_comes_back_as_another_peer() {
    let (parent, site, before) = member().await;
    parent.book().heartbeat["status"] = PeerStatus::Revoked.as_str().into();
    let running = site.run().await;
    running
        .wait("revoked", |report| {
            report
                .peer
                .as_ref()
                .is_some_and(|peer| peer.status == PeerStatus::Revoked)
        })
        .await;
    parent.book().heartbeat["status"] = PeerStatus::Active.as_str().into();
    parent.mint(SECOND_TOKEN);
    accept_as_another(&parent);
    let keep = Rejoin {
        working: WorkingMembership::Keep,
        ..REJOIN
    };
    rejoin(&running, &parent, keep).await;
    let report = rejoined(&running).await;
    assert_eq!(report.former_peers[0].id, before.peer_id);
}

#[tokio::test]
async fn a_member_in_good_standing_and_a_stranger_are_told_what_to_do() {
    let (parent, site, _) = member().await;
    let keep = Rejoin {
        working: WorkingMembership::Keep,
        ..REJOIN
    };
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    let refused = running.handle.join_as(second(&parent), Some(keep)).await.unwrap();
    assert!(refused.unwrap_err().to_string().contains("--force"));
    running.wait("still active", StatusReport::is_active).await;

    let running = Site::new().run().await;
    let refused = running.handle.join_as(second(&parent), Some(keep)).await.unwrap();
    assert!(refused.unwrap_err().to_string().contains("joined no parent yet"));
}
