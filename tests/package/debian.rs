//! The Debian packages, from `scripts/package` through a box's life: install, join, upgrade, remove,
//! purge.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::prerequisites::{has, is_root};
use crate::support::succeed;
use crate::units::{BRIDGE, SATELLITE, answers, begin, join};

/// The longest silence that an upgrade of either end may cost: a stop and a start each, the bridge's word of
/// when to come back, and handshakes of programs without optimisation.
const RECONNECT_MAX: Duration = Duration::from_secs(20);

/// Both packages of one version, out of the programs under test.
struct Packages {
    directory: PathBuf,
    version: &'static str,
}

impl Packages {
    fn make(place: &Path, version: &'static str) -> Self {
        let binaries = place.join("binaries");
        let directory = place.join(version);
        std::fs::create_dir_all(&binaries).unwrap();
        for program in [
            env!("CARGO_BIN_EXE_powernode-satellite"),
            env!("CARGO_BIN_EXE_powernode-host-bridge"),
        ] {
            let name = Path::new(program).file_name().unwrap();
            let mut strip = Command::new("strip");
            strip.args([Path::new("-o"), &binaries.join(name), Path::new(program)]);
            succeed(&strip.output().unwrap());
        }
        let made = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/package"))
            .args(["--fast", "--version", version, "--binaries"])
            .arg(&binaries)
            .arg("--output")
            .arg(&directory)
            .output();
        let said = succeed(&made.unwrap());
        assert_eq!(said.lines().count(), 2, "{said}");
        Self { directory, version }
    }

    fn file(&self, package: &str) -> PathBuf {
        let found = std::fs::read_dir(&self.directory)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let prefix = format!("{package}_{}_", self.version);
        found
            .into_iter()
            .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
            .unwrap()
    }

    /// Installs both in the container.
    fn install(&self, container: &Container) {
        for package in [SATELLITE, BRIDGE] {
            let inside = format!("/root/{package}.deb");
            container.install(&self.file(package), &inside);
            // As an upgrade without a terminal goes: the operator's files stay.
            container.run(&["dpkg", "--force-confdef", "--force-confold", "--install", &inside]);
        }
    }
}

#[test]
fn the_packages_live_a_boxs_life() {
    let test = "the_packages_live_a_boxs_life";
    if !is_root(test) || !has(test, &["cargo-deb", "lintian", "strip"]) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let first = Packages::make(place.path(), "0.1.0-1");
    let second = Packages::make(place.path(), "0.1.0-2");
    for package in [SATELLITE, BRIDGE] {
        let lintian = Command::new("lintian")
            .args(["--fail-on=error,warning", "--allow-root"])
            // Programs under test are linked as this machine links; those of a release are static.
            .args(["--suppress-tags=mismatched-override,unused-override"])
            .arg(first.file(package))
            .output();
        succeed(&lintian.unwrap());
    }
    let Some(container) = Container::boot(test) else {
        return;
    };
    // Each installation would go through all of this machine's manual pages.
    container.run(&["rm", "-f", "/var/lib/man-db/auto-update"]);
    first.install(&container);
    is_documented(&container);
    the_satellite_waits_and_the_bridge_is_not_started(&container);
    begin(&container);
    join(&container, "shop-17");
    answers(&container, "shop-17");

    an_upgrade_restarts_and_keeps_what_the_operator_wrote(&container, &second);
    an_upgrade_costs_no_more_than_a_reconnect(&container, &first);
    removed_keeps_the_state_and_purged_keeps_nothing(&container, &second);
}

fn is_documented(container: &Container) {
    for page in ["powernode-satellite-join", "powernode-host-bridge-invite"] {
        let page = format!("/usr/share/man/man1/{page}.1.gz");
        let text = container.run(&["sh", "-c", &format!("zcat {page} | grep -c '^.SH'")]);
        assert!(text.trim().parse::<u32>().unwrap() >= 3, "{page}: {text}");
    }
    let bash = container.run(&[
        "bash",
        "-c",
        ". /usr/share/bash-completion/completions/powernode-satellite && complete -p powernode-satellite",
    ]);
    assert!(bash.contains("powernode-satellite"), "{bash}");
    let settings = container.run(&["cat", "/etc/powernode-satellite/satellite.toml"]);
    let mut set = settings
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    assert_eq!(set.next(), None, "the file changes nothing as it comes");
}

fn the_satellite_waits_and_the_bridge_is_not_started(container: &Container) {
    assert_eq!(container.property(SATELLITE, "ActiveState"), "active");
    assert_eq!(container.property(BRIDGE, "ActiveState"), "inactive");
    for name in [SATELLITE, BRIDGE] {
        assert_eq!(container.property(name, "UnitFileState"), "enabled");
    }
    let timer = container.output(&["systemctl", "is-enabled", "powernode-host-bridge-backup.timer"]);
    assert_eq!(String::from_utf8_lossy(&timer.stdout).trim(), "disabled");
    let status = container.output(&[SATELLITE, "status"]);
    assert_eq!(status.status.code(), Some(3));
}

fn an_upgrade_restarts_and_keeps_what_the_operator_wrote(container: &Container, next: &Packages) {
    let settings = "/etc/powernode-satellite/satellite.toml";
    container.write(settings, "[disclosure]\nlocation = \"Shop 17\"\n");
    let before = [SATELLITE, BRIDGE].map(|name| container.property(name, "MainPID"));
    next.install(container);
    let after = [SATELLITE, BRIDGE].map(|name| container.property(name, "MainPID"));
    assert!(
        before[0] != after[0] && before[1] != after[1],
        "{before:?} {after:?}"
    );
    assert!(container.run(&["cat", settings]).contains("Shop 17"));
    answers(container, "shop-17");
    let said = container.run(&[SATELLITE, "self-check"]);
    assert!(said.contains("joined"), "{said}");
    let said = container.run(&[BRIDGE, "self-check"]);
    assert!(said.contains("in use by"), "{said}");
}

/// While both packages are replaced, one after the other, the parent asks the satellite without a pause.
#[expect(clippy::disallowed_methods, reason = "real daemons: real time")]
fn an_upgrade_costs_no_more_than_a_reconnect(container: &Container, next: &Packages) {
    let done = AtomicBool::new(false);
    let programs = || [SATELLITE, BRIDGE].map(|name| container.property(name, "MainPID"));
    let before = programs();
    let longest = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            // Once more after the end, so that an answer closes the last silence.
            loop {
                let is_last = done.load(Ordering::Acquire);
                answers(container, "shop-17");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if is_last {
                    return longest;
                }
            }
        });
        next.install(container);
        done.store(true, Ordering::Release);
        asking.join().unwrap()
    });
    assert_ne!(programs(), before, "both are others");
    assert!(
        longest < RECONNECT_MAX,
        "the parent heard nothing for {longest:?}"
    );
}

fn removed_keeps_the_state_and_purged_keeps_nothing(container: &Container, again: &Packages) {
    let state = [
        "/var/lib/private/powernode-satellite/satellite.redb",
        "/var/lib/private/powernode-host-bridge/registry.redb",
    ];
    container.run(&["dpkg", "--remove", SATELLITE, BRIDGE]);
    for name in [SATELLITE, BRIDGE] {
        assert_ne!(container.property(name, "ActiveState"), "active");
    }
    container.run(&[
        "ls",
        state[0],
        state[1],
        "/etc/powernode-satellite/satellite.toml",
    ]);

    again.install(container);
    container.run(&["systemctl", "start", BRIDGE]);
    answers(container, "shop-17");

    container.run(&["systemctl", "start", "powernode-host-bridge-backup.service"]);
    container.run(&[
        "systemctl",
        "enable",
        "--now",
        "powernode-host-bridge-backup.timer",
    ]);
    container.write("/etc/powernode-satellite/acceptance-token", "x");
    container.run(&["dpkg", "--purge", SATELLITE, BRIDGE]);
    let left = container.run(&["sh", "-c", "find / -xdev -name '*powernode*' -not -path '/proc/*' -not -path '/root/*' \
        \\( -path '/etc/*' -o -path '/var/lib/private/*' -o -path '/var/lib/powernode*' -o -path '/usr/bin/*' \\)"]);
    assert_eq!(left, "");
}
