//! Boards without a clock: 1970 after each boot.

use std::time::Duration;

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::process::clock::PARENT_TIME_TRUST_MAX;
use powernode_satellite::satellite::status::StatusReport;

use crate::scripted_parent::site::{Site, invitation};
use crate::scripted_parent::{DAY, NOW, ScriptedParent, Setup};

/// A box that was built so long before now, and has just booted in 1970.
fn board(age: Duration) -> Site {
    let mut site = Site::new();
    site.wall.set(UnixTime::EPOCH);
    site.build = NOW.minus(age);
    site
}

#[tokio::test]
async fn a_board_in_1970_joins_and_shows_the_doubt() {
    let parent = ScriptedParent::start();
    let site = board(DAY * 10);
    let running = site.run().await;
    let doubt = running.report().clock.doubt.unwrap();
    assert!(doubt.contains("build"), "{doubt}");
    running.join(invitation(&parent)).await;
    let report = running.wait("active", StatusReport::is_active).await;
    let doubt = report.clock.doubt.unwrap();
    assert!(doubt.contains("last time seen from the parent"), "{doubt}");
    assert!(report.clock.trusted >= NOW);
    assert_eq!(report.certificate.unwrap().standing, "valid");
    running.stop().await;
    // The next boot in 1970 knows better from the start.
    let running = site.run().await;
    assert!(running.report().clock.trusted >= NOW);
    running.wait("active", StatusReport::is_active).await;
}

#[tokio::test]
async fn a_board_with_an_image_of_years_ago_joins_too() {
    let parent = ScriptedParent::start();
    let site = board(PARENT_TIME_TRUST_MAX * 2);
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert!(report.clock.trusted >= NOW, "{}", report.clock.trusted);
    assert_eq!(report.certificate.unwrap().standing, "valid");
    running.vanish().await;
    let running = site.run().await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert_eq!(report.certificate.unwrap().standing, "valid");
}

#[tokio::test]
async fn an_expired_server_certificate_is_refused_even_by_a_clock_in_doubt() {
    // The parent's own clock does not matter: the certificate ended before this box was built.
    let parent = ScriptedParent::with(&Setup {
        now: NOW,
        certified_at: NOW.minus(DAY * 200),
        ..Setup::default()
    });
    let site = board(DAY * 10);
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running
        .wait("waiting", |report| report.link.state == "waiting")
        .await;
    let why = report.link.last_error.unwrap();
    assert!(why.contains("ended") || why.contains("expired"), "{why}");
    assert!(parent.book().greeted.is_empty());
}

#[tokio::test]
async fn a_right_clock_does_not_believe_a_certificate_of_the_future() {
    let parent = ScriptedParent::with(&Setup {
        now: NOW.plus(DAY * 5),
        certified_at: NOW.plus(DAY * 5),
        ..Setup::default()
    });
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running
        .wait("waiting", |report| report.link.state == "waiting")
        .await;
    let why = report.link.last_error.unwrap();
    assert!(why.contains("clock"), "{why}");
    assert!(parent.book().greeted.is_empty());
}
