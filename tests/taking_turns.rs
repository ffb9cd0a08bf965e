//! One process at a time has a store: how daemons and commands of both real programs wait for each other, and what they
//! say when they have waited for long enough.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use powernode_satellite::bridge::registry::{Opening, REGISTRY_FILE, Registry};
use powernode_satellite::satellite::membership_store::MembershipStore;
use support::{BridgeSite, SatelliteSite, fail, joined, succeed, wait_for};

#[test]
fn a_second_daemon_is_told_who_holds_the_store() {
    let (_bridge, _daemon, satellite) = joined();
    let running = satellite.run();
    let mut second = satellite.command(&["run"]);
    second.env(
        "POWERNODE_SATELLITE_ADMIN_SOCKET",
        satellite.dir.path().join("other.sock"),
    );
    let (exit, said) = fail(&second.output().unwrap());
    assert_eq!(exit, 1);
    let holder = format!("in use by powernode-satellite (process {})", running.id());
    assert!(said.contains(&holder), "{said}");
    assert!(said.contains("--admin-socket"), "{said}");
}

#[test]
fn a_daemon_waits_for_a_command_that_has_its_store() {
    let (bridge, satellite) = (BridgeSite::init(), SatelliteSite::new());
    // As a command has it, in the middle of its work.
    let (state, _) = MembershipStore::open(&satellite.state_dir(), None).unwrap();
    let registry = bridge.dir.path().join("state").join(REGISTRY_FILE);
    let registry = Registry::open(&registry, None, Opening::ReadWrite).unwrap();
    let daemons = [satellite.run_unwatched(), bridge.run_unwatched()];
    let holder = format!("(process {})", std::process::id());
    for daemon in &daemons {
        let said = wait_for("the log says for whom the daemon waits", || {
            let said = daemon.log_text();
            assert!(!said.contains("is in use by"), "{said}");
            said.contains("waiting for it to end").then_some(said)
        });
        assert!(said.contains(&holder), "{said}");
    }
    drop((state, registry));
    for (daemon, directory) in daemons.iter().zip([&satellite.dir, &bridge.dir]) {
        wait_for("the daemon answers", || {
            UnixStream::connect(directory.path().join("admin.sock")).ok()
        });
        assert_eq!(daemon.log_text().matches("waiting for it to end").count(), 1);
    }
}

#[test]
fn commands_at_once_wait_for_each_other_and_for_a_daemon_that_starts() {
    let all_succeed = |commands: Vec<Command>| {
        let spawned: Vec<_> = commands
            .into_iter()
            .map(|mut command| {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        for child in spawned {
            succeed(&child.wait_with_output().unwrap());
        }
    };
    let (bridge, daemon, satellite) = joined();
    assert!(daemon.stop().success());
    let names: Vec<String> = (0..5).map(|number| format!("shop-2{number}")).collect();
    let invitations = || {
        let all = names.iter();
        all.map(|name| bridge.command(&["token", "mint", name])).collect()
    };
    all_succeed(
        names
            .iter()
            .map(|name| bridge.command(&["invite", "--name", name]))
            .collect(),
    );
    let grants = || -> Vec<Command> {
        let all = names.iter();
        all.map(|name| satellite.command(&["grants", "issue", "--subject", name]))
            .collect()
    };
    all_succeed(
        grants()
            .into_iter()
            .chain([satellite.command(&["audit", "verify"])])
            .collect(),
    );
    let _daemons = (bridge.run_unwatched(), satellite.run_unwatched());
    all_succeed(invitations());
    all_succeed(grants());
}
