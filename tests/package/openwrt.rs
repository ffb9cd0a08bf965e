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

/// A procd that writes down what it is told.
const PROCD: &str = r#"
for call in open_instance set_param close_instance add_interface_trigger send_signal; do
    eval "procd_$call() { echo $call \"\$@\"; }"
done
. "$1"
STATE_DIR=$2
"$3"
"#;

fn told(function: &str, state: &Path) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-euc", PROCD, "sh", SCRIPT]).arg(state).arg(function);
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
    let state = place.path().join("state");
    let said = told("start_service", &state);
    assert!(
        said.contains("set_param command /usr/bin/powernode-satellite run\n"),
        "{said}"
    );
    assert!(
        said.contains(&format!("POWERNODE_SATELLITE_STATE_DIR={}", state.display())),
        "{said}"
    );
    assert!(said.contains("set_param respawn 3600 5 0\n"), "{said}");
    assert!(said.ends_with("close_instance\n"), "{said}");
    assert!(state.is_dir());
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
