//! The contract, told by what is sent and answered, in both directions: README.md has it line by line. The same cases run
//! against the standalone host-bridge, against a platform behind a host-bridge, and against whatever the environment
//! names; all variables begin with `POWERNODE_CONFORMANCE_`:
//!
//! - `URL`, such as `https://platform.example.com`: the parent to ask. It is a test parent: cases leave peers behind.
//! - `CA_FILE`: PEM file with its authorities, where the system's list does not have them.
//! - `KIND`: `platform` (the default) or `standalone`.
//! - `TOKEN_COMMAND`: a shell command that prints a fresh acceptance token each time it runs.
//! - further commands for what no request does, see `owner.rs`; they find the peer's id in `$1`. Cases for which there
//!   is none are skipped, and say so.
//!
//! A child is asked at `CHILD_URL`, `https://<bridge>/peers/<peer id>` or its own endpoint, by `CHILD_CERTIFICATE_FILE`
//! and `CHILD_KEY_FILE` or by `CHILD_CREDENTIAL`; `CHILD_GRANT_COMMAND` finds a grant's fields as JSON in `$1`.
//!
//! And how the satellite fares with a parent that answers in every way that was ever observed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(
    clippy::unnecessary_wraps,
    reason = "all cases have one type, also those that never skip"
)]

mod accept_cases;
mod answers;
#[path = "../support/authority.rs"]
mod authority;
mod child_cases;
mod client;
mod grant_cases;
mod node_cases;
mod operator_cases;
mod owner;
mod parents;
mod peer_cases;
mod platform;
mod raw;
mod satellite_cases;
mod server_cases;
mod shapes;
mod suite;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::rc::Rc;

use child_cases::{CHILD_CASES, Caller, Child};
use client::Client;
use owner::Commands;
use parents::{CREDENTIAL, SatelliteOwner, Sidecar, Standalone};
use serde_json::Value;
use server_cases::CASES;
use suite::{Kind, Target, run_cases};
use support::{SatelliteSite, succeed, wait_for};

#[test]
fn the_standalone_host_bridge_keeps_the_contract() {
    let target = Rc::new(Standalone::start()).target();
    let skipped = run_cases("standalone", CASES, &target);
    assert_eq!(
        skipped,
        [
            "an expired token is an unknown one",
            "a node enrolls once and renews by its certificate",
            "a grant opens its resources to its peer",
            "a revoked grant opens nothing",
            "a grant reaches as far as it says",
            "an offering at capacity is told",
        ]
    );
}

#[test]
fn a_platform_keeps_the_contract_behind_a_host_bridge() {
    let side = Rc::new(Sidecar::start());
    let target = Rc::clone(&side).target();
    let skipped = run_cases("platform", CASES, &target);
    assert_eq!(
        skipped,
        [
            "equals exchange their authorities",
            "a request wins over a bundle",
            "a proposed peer contacts nobody and its token is shown once",
            "suspend, resume and revoke have reasons",
            "access grants are made with their restrictions",
            "the same three verbs are tools",
        ]
    );
    // The log of the host-bridge has all of it, and who it was.
    wait_for("all is noted", || {
        let noted = succeed(&side.bridge.output(&["audit", "export"]));
        let has = |action: &str, field: &str| {
            let rows = noted
                .lines()
                .map(|row| serde_json::from_str::<Value>(row).unwrap());
            rows.filter(|row| row["action"] == action)
                .any(|row| row[field].is_string())
        };
        let all = has("joined", "federation_peer_id")
            && has("node_enrolled", "actor")
            && has("certificate_renewed", "actor");
        all.then_some(())
    });
}

#[test]
fn the_parent_that_the_environment_names_keeps_the_contract() {
    let Some(url) = owner::variable("URL") else {
        println!("SKIPPED: POWERNODE_CONFORMANCE_URL names no parent");
        return;
    };
    let target = Target {
        client: Client {
            url: url.trim_end_matches('/').to_owned(),
            ca_file: owner::variable("CA_FILE").map(PathBuf::from),
            dir: tempfile::tempdir().unwrap(),
        },
        kind: match owner::variable("KIND").as_deref() {
            None | Some("platform") => Kind::Platform,
            Some("standalone") => Kind::Standalone,
            Some(other) => panic!("POWERNODE_CONFORMANCE_KIND is `{other}`; it is platform or standalone"),
        },
        owner: Box::new(Commands),
    };
    let skipped = run_cases(&url, CASES, &target);
    println!(
        "{url}: {} of {} cases hold, the others were skipped",
        CASES.len() - skipped.len(),
        CASES.len()
    );
}

/// A satellite's base URL at a host-bridge, and its owner.
fn child_of(mut client: Client, caller: Caller, satellite: Rc<SatelliteSite>) -> Child {
    succeed(&satellite.output(&["services", "publish", "web", "localhost:9"]));
    let id = satellite.status()["peer"]["id"].as_str().unwrap().to_owned();
    client.url = format!("{}/peers/{id}", client.url);
    Child {
        client,
        caller,
        owner: Box::new(SatelliteOwner(satellite)),
    }
}

#[test]
fn a_satellite_keeps_the_contract_behind_a_platforms_host_bridge() {
    let side = Sidecar::start();
    let (satellite, _running) = side.member("box");
    let child = child_of(
        side.client(),
        Caller::Certificate(side.caller.clone()),
        Rc::new(satellite),
    );
    assert!(run_cases("child of a platform", CHILD_CASES, &child).is_empty());
}

#[test]
fn a_satellite_keeps_the_contract_behind_a_standalone_host_bridge() {
    let parent = Standalone::start();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&parent.bridge.join_code("box")));
    let _running = satellite.run();
    wait_for("the satellite is connected", || {
        (satellite.status()["link"]["state"] == "connected").then_some(())
    });
    let child = child_of(
        parent.client(),
        Caller::Credential(CREDENTIAL.to_owned()),
        Rc::new(satellite),
    );
    assert!(run_cases("child of a host-bridge", CHILD_CASES, &child).is_empty());
}

#[test]
fn the_child_that_the_environment_names_keeps_the_contract() {
    match Child::named() {
        Some(child) => drop(run_cases(&child.client.url.clone(), CHILD_CASES, &child)),
        None => println!("SKIPPED: POWERNODE_CONFORMANCE_CHILD_URL names no child"),
    }
}
