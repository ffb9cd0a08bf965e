//! Both units as they are in `systemd/`, hardened as they are, under a real systemd: a join, the life
//! of a tunnel, restarts, credentials.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::container::Container;
use crate::prerequisites::has;
use crate::support::{succeed, wait_for};

pub const SATELLITE: &str = "powernode-satellite";
pub const BRIDGE: &str = "powernode-host-bridge";
const BACKUP: &str = "powernode-host-bridge-backup";
pub const TIMER: &str = "powernode-host-bridge-backup.timer";
const BACKUPS: &str = "/var/lib/private/powernode-host-bridge-backups";
const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

/// The most exposure that a unit may have, in tenths, as systemd-analyze counts it.
const EXPOSURE_MAX: &str = "15";

fn unit_file(name: &str) -> String {
    format!("{}/systemd/{name}.service", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_units_expose_little() {
    if !has("the_units_expose_little", &["systemd-analyze"]) {
        return;
    }
    for name in [SATELLITE, BRIDGE, BACKUP] {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .args([&format!("--threshold={EXPOSURE_MAX}"), &unit_file(name)])
            .output();
        let said = succeed(&output.unwrap());
        assert!(said.contains("Overall exposure level"), "{said}");
    }
}

#[test]
fn the_units_are_understood_and_work_with_all_their_hardening() {
    let Some(container) = Container::boot("the_units_are_understood_and_work_with_all_their_hardening")
    else {
        return;
    };
    install_units(&container);

    without_a_registry_the_bridge_stays_down(&container);
    let ca = begin(&container);
    satellite_joins(&container);
    for name in [SATELLITE, BRIDGE] {
        assert_confined(&container, name);
    }
    both_outlive_reload_and_restart(&container);
    the_timers_backups_are_the_daemons_own_and_few(&container);
    a_backup_comes_back_here_and_elsewhere(&container);
    an_administrator_joins_while_the_daemon_is_stopped(&container);
    a_token_arrives_as_a_credential(&container, &ca);
    let journal = container.journal();
    for bad in [
        "panicked",
        "Operation not permitted",
        "core-dump",
        "status=31/SYS",
    ] {
        assert!(!journal.contains(bad), "{bad}: {journal}");
    }
}

/// The programs under test with their units, which systemd understands without a complaint.
pub fn install_units(container: &Container) {
    for (name, program) in [
        (SATELLITE, env!("CARGO_BIN_EXE_powernode-satellite")),
        (BRIDGE, env!("CARGO_BIN_EXE_powernode-host-bridge")),
    ] {
        container.install(Path::new(program), &format!("/usr/bin/{name}"));
    }
    let units = [SATELLITE, BRIDGE, BACKUP].map(|name| format!("{name}.service"));
    for unit in units.iter().map(String::as_str).chain([TIMER]) {
        let place = format!("/etc/systemd/system/{unit}");
        let file = format!("{}/systemd/{unit}", env!("CARGO_MANIFEST_DIR"));
        container.install(Path::new(&file), &place);
    }
    for unit in units.iter().map(String::as_str).chain([TIMER]) {
        let place = format!("/etc/systemd/system/{unit}");
        let verified = container.output(&["systemd-analyze", "verify", "--man=no", &place]);
        let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
        let own: Vec<_> = complaints
            .lines()
            .filter(|line| line.contains("powernode"))
            .collect();
        assert!(verified.status.success() && own.is_empty(), "{complaints}");
    }
    container.run(&["systemctl", "daemon-reload"]);
}

fn without_a_registry_the_bridge_stays_down(container: &Container) {
    let _ = container.output(&["systemctl", "start", BRIDGE]);
    wait_for("the bridge without a registry has failed for good", || {
        (container.property(BRIDGE, "ActiveState") == "failed").then_some(())
    });
    assert_eq!(container.property(BRIDGE, "ExecMainStatus"), "3");
    assert_eq!(container.property(BRIDGE, "NRestarts"), "0");
}

/// `init` as root, then the unit; gives the authority's certificate.
pub fn begin(container: &Container) -> String {
    let made = container.run(&[BRIDGE, "init", "--public-url", "https://127.0.0.1:8443", "--json"]);
    container.run(&["systemctl", "start", BRIDGE]);
    assert_eq!(container.property(BRIDGE, "ActiveState"), "active");
    let made: Value = serde_json::from_str(&made).unwrap();
    made["ca_certificate_pem"].as_str().unwrap().to_owned()
}

fn satellite_joins(container: &Container) {
    container.run(&["systemctl", "start", SATELLITE]);
    let status = container.output(&[SATELLITE, "status"]);
    assert_eq!(status.status.code(), Some(3), "not invited yet, and running");
    join(container, "shop-17");
    answers(container, "shop-17");
    let text = container.property(SATELLITE, "StatusText");
    assert!(text.contains("active") && text.contains("connected"), "{text}");
    assert_eq!(container.property(SATELLITE, "WatchdogUSec"), "1min");
}

/// Invites, and joins: through the daemon if it runs, else by itself.
pub fn join(container: &Container, name: &str) {
    let invitation = container.run(&[BRIDGE, "invite", "--name", name, "--json"]);
    let invitation: Value = serde_json::from_str(&invitation).unwrap();
    let join = [
        SATELLITE,
        "join",
        "-",
        "--contact",
        "ops@example.com",
        "--location",
        "DE",
    ];
    container.run_with_input(&join, invitation["join_code"].as_str().unwrap());
    is_active(container, name);
}

pub fn is_active(container: &Container, name: &str) {
    wait_for(&format!("{name} is active"), || {
        let peer = container.output(&[BRIDGE, "peers", "show", name, "--json"]);
        let peer: Value = serde_json::from_slice(&peer.stdout).ok()?;
        (peer["status"] == "active" || peer["data"]["status"] == "active").then_some(())
    });
}

/// The satellite answers a request through the tunnel.
pub fn answers(container: &Container, name: &str) {
    wait_for("the satellite answers through the tunnel", || {
        let answer = container.output(&[BRIDGE, "request", name, CATALOG]);
        answer.status.success().then_some(())
    });
}

/// What the kernel says of the daemon's process.
fn assert_confined(container: &Container, name: &str) {
    let pid = container.property(name, "MainPID");
    let status = container.run(&["cat", &format!("/proc/{pid}/status")]);
    let fields: BTreeMap<_, _> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(fields[capabilities], "0000000000000000", "{name}: {capabilities}");
    }
    assert_eq!(fields["NoNewPrivs"], "1", "{name}");
    // The container has filters of its own, which its first process shows.
    let first = container.run(&["cat", "/proc/1/status"]);
    let outer = first
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:"));
    let filters = |text: &str| text.trim().parse::<u32>().unwrap();
    assert!(
        filters(fields["Seccomp_filters"]) > filters(outer.unwrap()),
        "{name}: {status}"
    );
    let user: u32 = fields["Uid"].split_whitespace().next().unwrap().parse().unwrap();
    assert!(
        (61_184..=65_519).contains(&user),
        "{name}: a dynamic user, not {user}"
    );
    let mounts = container.run(&["cat", &format!("/proc/{pid}/mountinfo")]);
    let options = |place: &str| {
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
        line.and_then(|line| line.split(' ').nth(5))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(options("/").starts_with("ro"), "{name}: {mounts}");
    let state = options(&format!("/var/lib/private/{name}"));
    assert!(state.starts_with("rw"), "{name}: {mounts}");
    let owner = container.run(&["stat", "-c", "%a %u", &format!("/var/lib/private/{name}")]);
    assert_eq!(owner.trim(), format!("700 {user}"), "{name}");
}

fn both_outlive_reload_and_restart(container: &Container) {
    for name in [SATELLITE, BRIDGE] {
        let before = container.property(name, "MainPID");
        container.run(&["systemctl", "reload", name]);
        assert_eq!(container.property(name, "MainPID"), before, "{name} goes on");
    }
    for name in [BRIDGE, SATELLITE] {
        container.run(&["systemctl", "restart", name]);
        answers(container, "shop-17");
        assert_eq!(container.property(name, "Result"), "success");
        assert_eq!(container.property(name, "NRestarts"), "0");
    }
    // A crash is none of the operator's business.
    container.run(&["systemctl", "kill", "--signal=KILL", SATELLITE]);
    wait_for("systemd has started it again", || {
        (container.property(SATELLITE, "NRestarts") == "1").then_some(())
    });
    answers(container, "shop-17");
}

/// Beside the daemon and without it, as its user, and from there back into the registry's place.
fn the_timers_backups_are_the_daemons_own_and_few(container: &Container) {
    let user = |path: &str| container.run(&["stat", "-c", "%a %u", path]);
    let backups = || {
        let listed = container.run(&["ls", BACKUPS]);
        listed.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    // Files are called after the second.
    let back_up = || {
        wait_for("a backup is made", || {
            container
                .output(&["systemctl", "start", BACKUP])
                .status
                .success()
                .then_some(())
        });
    };
    back_up();
    let first = backups();
    assert_eq!(first.len(), 1, "{first:?}");
    let file = format!("{BACKUPS}/{}", first[0]);
    let registry = "/var/lib/private/powernode-host-bridge/registry.redb";
    assert_eq!(user(&file), user(registry), "mode and owner");
    answers(container, "shop-17");

    let drop_in = format!("/etc/systemd/system/{BACKUP}.service.d");
    container.run(&["mkdir", &drop_in]);
    container.write(&format!("{drop_in}/keep.conf"), "[Service]\nEnvironment=KEEP=2\n");
    container.run(&["systemctl", "daemon-reload"]);
    container.run(&["systemctl", "stop", BRIDGE]);
    back_up();
    back_up();
    let kept = backups();
    assert!(kept.len() == 2 && !kept.contains(&first[0]), "{kept:?}");
    container.run(&[BRIDGE, "restore", &format!("{BACKUPS}/{}", kept[1])]);
    container.run(&["systemctl", "start", BRIDGE]);
    answers(container, "shop-17");

    container.run(&["systemctl", "enable", "--now", TIMER]);
    let next = container.run(&["systemctl", "list-timers", "--no-legend", TIMER]);
    assert!(next.contains(BACKUP), "{next}");
    container.run(&["systemctl", "disable", "--now", TIMER]);
}

/// As OPERATING.md says it: over what was there, and on a machine that has none.
fn a_backup_comes_back_here_and_elsewhere(container: &Container) {
    let directory = "/var/lib/powernode-host-bridge";
    let file = &format!("{directory}/registry.redb");
    container.run(&["systemctl", "stop", BRIDGE]);
    container.run(&["cp", file, "/root/backup"]);
    container.run(&["rm", file]);
    container.run(&["install", "-m", "0600", "/root/backup", file]);
    container.run(&["chown", &format!("--reference={directory}/."), file]);
    container.run(&["systemctl", "start", BRIDGE]);
    answers(container, "shop-17");

    container.run(&["systemctl", "stop", BRIDGE]);
    container.run(&["rm", "-r", directory, "/var/lib/private/powernode-host-bridge"]);
    container.run(&["mkdir", "-m", "0700", directory]);
    container.run(&["install", "-m", "0600", "/root/backup", file]);
    container.run(&["systemctl", "start", BRIDGE]);
    answers(container, "shop-17");
}

/// What root's `join` writes, the daemon's user must be able to take over.
fn an_administrator_joins_while_the_daemon_is_stopped(container: &Container) {
    container.run(&["systemctl", "stop", SATELLITE]);
    container.run(&[
        "find",
        "/var/lib/private/powernode-satellite",
        "-type",
        "f",
        "-delete",
    ]);
    join(container, "shop-19");
    container.run(&["systemctl", "start", SATELLITE]);
    answers(container, "shop-19");
}

/// A box that is set up by files alone: nobody types a command on it.
fn a_token_arrives_as_a_credential(container: &Container, ca: &str) {
    container.run(&["systemctl", "stop", SATELLITE]);
    container.run(&["rm", "-rf", "/var/lib/private/powernode-satellite"]);
    let invitation = container.run(&[BRIDGE, "invite", "--name", "shop-18", "--json"]);
    let invitation: Value = serde_json::from_str(&invitation).unwrap();
    container.run(&["mkdir", "-p", "/etc/powernode-satellite"]);
    container.write("/etc/powernode-satellite/ca.pem", ca);
    container.write(
        "/etc/powernode-satellite/satellite.toml",
        "[parent]\nurl = \"https://127.0.0.1:8443\"\nca_file = \"/etc/powernode-satellite/ca.pem\"\n\
         [disclosure]\noperator_contact = \"ops@example.com\"\nlocation = \"DE\"\n",
    );
    let token = "/etc/powernode-satellite/acceptance-token";
    container.write(token, invitation["acceptance_token"].as_str().unwrap());
    container.run(&["chmod", "0600", token]);
    container.run(&["systemctl", "start", SATELLITE]);
    is_active(container, "shop-18");
    answers(container, "shop-18");
}
