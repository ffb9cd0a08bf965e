//! What a cluster member's parent delivers goes to the configured hook, until that is done, and to nobody else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use powernode_satellite::contract::ACCEPT_PATH;
use powernode_satellite::contract::peer::SpawnMode;
use powernode_satellite::process::hook::Hook;
use powernode_satellite::satellite::status::{ClusterReport, StatusReport};
use serde_json::{Value, json};

use crate::scripted_parent::site::{Running, Site, invitation};
use crate::scripted_parent::{Answer, PEER, ScriptedParent, accept_data};

const SECRET: &str = "k3s-join-secret";

/// A satellite whose hook is this script; `$1` is its directory.
fn site(script: &str) -> Site {
    let mut site = Site::new();
    let program = site.path().join("hook");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    site.settings.cluster_hook = Some(Hook {
        program,
        arguments: vec![site.path().display().to_string()],
        timeout: Duration::from_secs(20),
    });
    site
}

/// Joins as a member of a cluster, with something for it in the answer.
async fn join(parent: &ScriptedParent, running: &Running, spawn_mode: SpawnMode) {
    parent.next(
        ACCEPT_PATH,
        Answer::Data(Box::new(|book, body| {
            let authority = std::sync::Arc::clone(&book.authority);
            let certificate = book.certificate(&authority, body["csr_pem"].as_str().unwrap(), PEER);
            let mut data = accept_data(book.now, &certificate);
            data["cluster"] = json!({ "token": SECRET, "server": "https://10.0.0.1:6443" });
            data
        })),
    );
    let mut invitation = invitation(parent);
    invitation.spawn_mode = spawn_mode;
    running.join(invitation).await;
    running.wait("joined", |report| report.state == "joined").await;
}

fn cluster(report: &StatusReport) -> &ClusterReport {
    report.cluster.as_ref().unwrap()
}

fn calls(site: &Site) -> Vec<Value> {
    let text = fs::read_to_string(site.path().join("calls")).unwrap_or_default();
    // A line without its end is still being written.
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_hook_gets_it_once_and_status_never_shows_it() {
    let parent = ScriptedParent::start();
    let site = site(r#"cat >> "$1/calls"; echo >> "$1/calls""#);
    let running = site.run().await;
    join(&parent, &running, SpawnMode::ClusterMember).await;
    let report = running
        .wait("handed over", |report| {
            report
                .cluster
                .as_ref()
                .is_some_and(|cluster| cluster.handed_over_at.is_some())
        })
        .await;
    assert!(cluster(&report).parts.contains_key("cluster"));
    let shown = serde_json::to_string(&report).unwrap();
    assert!(!shown.contains(SECRET), "{shown}");
    running.stop().await;

    let running = site.run().await;
    running.wait("active again", StatusReport::is_active).await;
    let report = running.report();
    assert!(cluster(&report).handed_over_at.is_some(), "also after a restart");
    running.stop().await;
    let calls = calls(&site);
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["delivered"]["cluster"]["token"], SECRET);
    assert_eq!(calls[0]["peer_id"], PEER);
    assert_eq!(calls[0]["idempotency_key"].as_str().map(str::len), Some(32));
}

#[tokio::test]
async fn a_hook_that_failed_or_was_cut_off_is_called_again_with_the_same_key() {
    let parent = ScriptedParent::start();
    let site = site(
        r#"cat >> "$1/calls"; echo >> "$1/calls"
case "$(wc -l < "$1/calls")" in 1) exit 7;; 2) sleep 600;; esac"#,
    );
    let running = site.run().await;
    join(&parent, &running, SpawnMode::ClusterMember).await;
    let report = running
        .wait("the failure is shown", |report| {
            report
                .cluster
                .as_ref()
                .is_some_and(|cluster| cluster.trouble.is_some())
        })
        .await;
    let trouble = cluster(&report).trouble.clone().unwrap();
    assert!(trouble.contains('7'), "{trouble}");
    running.vanish().await;

    // The power goes while it runs.
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    let called = async {
        while calls(&site).len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::scripted_parent::DEADLINE, called)
        .await
        .unwrap();
    running.vanish().await;

    let running = site.run().await;
    running
        .wait("handed over", |report| {
            report
                .cluster
                .as_ref()
                .is_some_and(|cluster| cluster.handed_over_at.is_some())
        })
        .await;
    running.stop().await;
    let calls = calls(&site);
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| call == &calls[0]));
}

#[tokio::test]
async fn who_is_no_member_of_a_cluster_hands_nothing_over() {
    let parent = ScriptedParent::start();
    let site = site(r#"cat >> "$1/calls"; echo >> "$1/calls""#);
    let running = site.run().await;
    join(&parent, &running, SpawnMode::ManagedChild).await;
    let report = running.wait("active", StatusReport::is_active).await;
    assert!(report.cluster.is_none());
    running.stop().await;
    assert!(calls(&site).is_empty());
}
