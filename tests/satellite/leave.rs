//! The owner leaves: the parent is told over the tunnel, and over another one where that is dead.

use powernode_satellite::contract::TUNNEL_LEAVE_PATH;
use powernode_satellite::wire::{RefusalCode, Refused};

use crate::scripted_parent::site::{Running, Site};
use crate::scripted_parent::{Answer, ScriptedParent};

async fn member() -> (ScriptedParent, Site, Running) {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let running = site.run().await;
    running
        .wait("a tunnel", |report| report.link.state == "connected")
        .await;
    (parent, site, running)
}

#[tokio::test]
async fn a_tunnel_that_breaks_under_the_last_notice_is_replaced_by_another() {
    let (parent, _site, running) = member().await;
    parent.next(TUNNEL_LEAVE_PATH, Answer::Lost);
    let departure = running.handle.leave("sold".to_owned()).await.unwrap().unwrap();
    assert_eq!(departure.not_told, None);
    assert_eq!(parent.book().count(TUNNEL_LEAVE_PATH), 2);
    running.stop().await;
}

#[tokio::test]
async fn what_became_of_the_second_try_is_said() {
    let (parent, _site, running) = member().await;
    parent.next(TUNNEL_LEAVE_PATH, Answer::Lost);
    parent.refuse_next(Refused {
        code: RefusalCode::ShuttingDown,
        message: "closing for today".to_owned(),
        retry_after_millis: 0,
    });
    let departure = running.handle.leave("sold".to_owned()).await.unwrap().unwrap();
    let why = departure.not_told.unwrap();
    assert!(
        why.contains("the tunnel to it broke") && why.contains("closing for today"),
        "{why}"
    );
    assert_eq!(parent.book().count(TUNNEL_LEAVE_PATH), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_parent_that_refuses_the_notice_is_not_asked_again() {
    let (parent, _site, running) = member().await;
    parent.next(TUNNEL_LEAVE_PATH, Answer::failure(500, "the disk is full"));
    let departure = running.handle.leave("sold".to_owned()).await.unwrap().unwrap();
    let why = departure.not_told.unwrap();
    assert!(
        why.contains("the disk is full") && !why.contains("broke"),
        "{why}"
    );
    running.stop().await;
}
