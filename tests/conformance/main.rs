//! The contract, told by what is sent and answered: the same cases against the standalone host-bridge, against a
//! platform behind a host-bridge, and against whatever the environment names:
//!
//! - `POWERNODE_CONFORMANCE_URL`, such as `https://platform.example.com`: the parent to ask. It is a test parent: cases
//!   leave peers behind.
//! - `POWERNODE_CONFORMANCE_TOKEN_COMMAND`: a shell command that prints a fresh acceptance token each time it runs.
//! - `POWERNODE_CONFORMANCE_CA_FILE`: PEM file with its authorities, where the system's list does not have them.
//! - `POWERNODE_CONFORMANCE_KIND`: `platform` (the default) or `standalone`.
//!
//! And how the satellite fares with a parent that answers in every way that was ever observed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod accept_cases;
mod answers;
#[path = "../support/authority.rs"]
mod authority;
mod client;
mod platform;
mod satellite_cases;
mod server_cases;
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;

use authority::Authority;
use client::Client;
use platform::Platform;
use server_cases::{CASES, Kind, Target};
use support::{BridgeSite, Running, free_port};

/// Runs all cases, says which hold, and fails with those that do not.
fn run_cases(name: &str, target: &Target) {
    let mut failed = Vec::new();
    for (section, claim, case) in CASES {
        let held = catch_unwind(AssertUnwindSafe(|| case(target))).is_ok();
        println!(
            "{name}: section {section}: {claim}: {}",
            if held { "ok" } else { "FAILED" }
        );
        if !held {
            failed.push(*claim);
        }
    }
    assert!(failed.is_empty(), "{name}: {failed:?}");
}

/// A platform with a host-bridge in front of it.
struct Sidecar {
    platform: Platform,
    bridge: BridgeSite,
    #[allow(dead_code, reason = "it ends when this is dropped")]
    daemon: Running,
}

impl Sidecar {
    fn start() -> Self {
        let platform = Platform::start();
        let servers = Authority::new("Server CA");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let server = servers.server(&["127.0.0.1", "localhost"]);
        let port = free_port();
        let text = |name: &'static str, value: String| (name, PathBuf::from(value));
        let variables = vec![
            text(
                "POWERNODE_HOST_BRIDGE_PLATFORM_URL",
                format!("http://{}", platform.address),
            ),
            text(
                "POWERNODE_HOST_BRIDGE_PUBLIC_URL",
                format!("https://127.0.0.1:{port}"),
            ),
            // All cases come from one address.
            text(
                "POWERNODE_HOST_BRIDGE_LIMITS_ACCEPTS_PER_SOURCE_PER_MINUTE",
                "1000".to_owned(),
            ),
            (
                "POWERNODE_HOST_BRIDGE_PLATFORM_CA_FILE",
                at("federation-ca.pem", &platform.authority().pem),
            ),
            (
                "POWERNODE_HOST_BRIDGE_SERVER_CERTIFICATE_FILE",
                at("server.pem", &server.certificate),
            ),
            (
                "POWERNODE_HOST_BRIDGE_SERVER_KEY_FILE",
                at("server.key", &server.key),
            ),
        ];
        let bridge = BridgeSite {
            program: env!("CARGO_BIN_EXE_powernode-host-bridge").into(),
            host: "127.0.0.1",
            port,
            operator_token: String::new(),
            ca_file: at("ca.pem", &servers.pem),
            dir,
            variables,
        };
        let daemon = bridge.run();
        Self {
            platform,
            bridge,
            daemon,
        }
    }

    fn client(&self) -> Client {
        Client {
            url: self.bridge.url(),
            ca_file: Some(self.bridge.ca_file.clone()),
            dir: tempfile::tempdir().unwrap(),
        }
    }
}

#[test]
fn the_standalone_host_bridge_keeps_the_contract() {
    let limit = (
        "POWERNODE_HOST_BRIDGE_LIMITS_ACCEPTS_PER_SOURCE_PER_MINUTE",
        PathBuf::from("1000"),
    );
    let bridge = std::rc::Rc::new(BridgeSite::init_with(vec![limit]));
    let _daemon = bridge.run();
    let minted = std::cell::Cell::new(0);
    let (minting, suspending) = (std::rc::Rc::clone(&bridge), std::rc::Rc::clone(&bridge));
    let target = Target {
        client: Client {
            url: bridge.url(),
            ca_file: Some(bridge.ca_file.clone()),
            dir: tempfile::tempdir().unwrap(),
        },
        kind: Kind::Standalone,
        mint: Box::new(move || {
            minted.set(minted.get() + 1);
            let invited = minting.invite(&format!("peer-{}", minted.get()));
            invited["acceptance_token"].as_str().unwrap().to_owned()
        }),
        suspend: Some(Box::new(move |peer| {
            support::succeed(&suspending.output(&["peers", "suspend", peer, "--reason", "maintenance"]));
        })),
        grant: None,
    };
    run_cases("standalone", &target);
}

#[test]
fn a_platform_keeps_the_contract_behind_a_host_bridge() {
    let side = std::rc::Rc::new(Sidecar::start());
    let (minting, suspending, granting) = (
        std::rc::Rc::clone(&side),
        std::rc::Rc::clone(&side),
        std::rc::Rc::clone(&side),
    );
    let target = Target {
        client: side.client(),
        kind: Kind::Platform,
        mint: Box::new(move || minting.platform.book().propose("box").1),
        suspend: Some(Box::new(move |peer| {
            let mut book = suspending.platform.book();
            "suspended".clone_into(&mut book.peers.get_mut(peer).unwrap().status);
        })),
        grant: Some(Box::new(move |peer| {
            let token = format!("fgs.{peer}.00");
            let mut book = granting.platform.book();
            book.grants.insert(token.clone(), peer.to_owned());
            token
        })),
    };
    run_cases("platform", &target);
}

#[test]
fn the_parent_that_the_environment_names_keeps_the_contract() {
    let named = |name: &str| std::env::var(format!("POWERNODE_CONFORMANCE_{name}")).ok();
    let Some(url) = named("URL") else {
        println!("SKIPPED: POWERNODE_CONFORMANCE_URL names no parent");
        return;
    };
    let command = named("TOKEN_COMMAND").expect("POWERNODE_CONFORMANCE_TOKEN_COMMAND prints a fresh token");
    let target = Target {
        client: Client {
            url: url.trim_end_matches('/').to_owned(),
            ca_file: named("CA_FILE").map(PathBuf::from),
            dir: tempfile::tempdir().unwrap(),
        },
        kind: match named("KIND").as_deref() {
            None | Some("platform") => Kind::Platform,
            Some("standalone") => Kind::Standalone,
            Some(other) => panic!("POWERNODE_CONFORMANCE_KIND is `{other}`; it is platform or standalone"),
        },
        mint: Box::new(move || {
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            support::succeed(&output).trim().to_owned()
        }),
        suspend: None,
        grant: None,
    };
    run_cases(&url, &target);
}
