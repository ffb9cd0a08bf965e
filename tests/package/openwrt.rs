//! The OpenWrt script: read by a shell as strict as OpenWrt's, and run against a procd that writes
//! down what it is told.

use std::path::Path;
use std::process::Command;

use crate::prerequisites::has;
use crate::support::succeed;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/openwrt/powernode-satellite.init"
);
const KEPT: &str = include_str!("../../packaging/openwrt/powernode-satellite.keep");

/// A procd that writes down what it is told.
const PROCD: &str = r#"
for call in open_instance set_param close_instance add_interface_trigger send_signal; do
    eval "procd_$call() { echo $call \"\$@\"; }"
done
. "$1"
CONFIG=$2/satellite.toml
STATE_DIR=$2/state
"$3"
"#;

fn told(function: &str, place: &Path) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-euc", PROCD, "sh", SCRIPT]).arg(place).arg(function);
    succeed(&shell.output().unwrap())
}

#[test]
fn the_script_is_clean() {
    if has("the_script_is_clean", &["shellcheck"]) {
        let checked = Command::new("shellcheck").args(["--shell=dash", SCRIPT]).output();
        succeed(&checked.unwrap());
    }
}

#[test]
fn procd_keeps_the_satellite_running_with_its_state_on_flash() {
    let place = tempfile::tempdir().unwrap();
    let (place, config) = (place.path().join("etc"), place.path().join("etc/satellite.toml"));
    let said = told("start_service", &place);
    assert!(
        said.contains("set_param command /usr/bin/powernode-satellite run\n"),
        "{said}"
    );
    assert!(said.contains("set_param respawn 3600 5 0\n"), "{said}");
    assert!(said.ends_with("close_instance\n"), "{said}");
    assert!(!said.contains("set_param env"), "{said}");
    // The daemon and the commands find both places in the same file.
    let mut program = Command::new(env!("CARGO_BIN_EXE_powernode-satellite"));
    let shown = succeed(
        &program
            .env_clear()
            .arg("--config")
            .arg(&config)
            .args(["config", "show"])
            .output()
            .unwrap(),
    );
    assert!(
        shown.contains(&format!("state_dir = \"{}/state\"", place.display())),
        "{shown}"
    );
    assert!(
        shown.contains("admin_socket = \"/var/run/powernode-satellite.sock\""),
        "{shown}"
    );

    // What an owner has written stays, and does not lead to a state in memory.
    std::fs::write(&config, "[log]\nlevel = \"warn\"\n").unwrap();
    let said = told("start_service", &place);
    assert!(
        said.contains(&format!(
            "POWERNODE_SATELLITE_STATE_DIR={}/state",
            place.display()
        )),
        "{said}"
    );
    assert!(std::fs::read_to_string(&config).unwrap().starts_with("[log]"));
}

/// What sysupgrade does not keep is gone with the old firmware, and nobody reaches the box any more.
#[test]
fn a_new_firmware_keeps_all_that_was_installed() {
    let script = std::fs::read_to_string(SCRIPT).unwrap();
    let number = |name: &str| {
        let line = script.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    };
    let links = [
        format!("/etc/rc.d/S{}powernode-satellite", number("START=")),
        format!("/etc/rc.d/K{}powernode-satellite", number("STOP=")),
    ];
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/INSTALL.md")).unwrap();
    let manual = manual
        .split("\n## ")
        .find(|section| section.starts_with("OpenWrt"));
    let copied: Vec<_> = manual
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("cp "))
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(copied.len(), 3, "{copied:?}");
    for path in copied.into_iter().chain(links.iter().map(String::as_str)) {
        assert!(KEPT.lines().any(|kept| kept == path), "{path} is not kept");
    }
    assert!(KEPT.lines().any(|kept| kept == "/etc/powernode-satellite/"));
}

#[test]
fn wan_coming_up_makes_it_dial_at_once() {
    let place = tempfile::tempdir().unwrap();
    let said = told("service_triggers", place.path());
    assert!(
        said.contains("interface.*.up wan /etc/init.d/powernode-satellite reload"),
        "{said}"
    );
    let said = told("reload_service", place.path());
    assert_eq!(said, "send_signal powernode-satellite satellite HUP\n");
}
