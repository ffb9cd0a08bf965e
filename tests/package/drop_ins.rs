//! What the documents let an operator add to the units, under a real systemd: each drop-in does what it is
//! there for, and nothing works by accident without it. And what the units promise of poor machines.

use std::collections::BTreeMap;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::container::Container;
use crate::prerequisites::has;
use crate::support::wait_for;
use crate::units::{BRIDGE, SATELLITE, TIMER, answers, begin, install_units, join};

/// The documents whose fenced blocks of unit files begin with the place that they are for.
const DOCUMENTS: [&str; 2] = ["docs/INSTALL.md", "docs/OPERATING.md"];

const NODE_FILES: &str = "/var/lib/powernode/pki";
const PEM: [&str; 2] = [
    "/etc/powernode-host-bridge/server.pem",
    "/etc/powernode-host-bridge/server.key",
];

/// System calls that came after Linux 3.2: a kernel of then answers ENOSYS.
const LATER_CALLS: &str = "kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf \
    execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx \
    rseq pidfd_send_signal io_uring_setup io_uring_enter io_uring_register pidfd_open clone3 close_range openat2 \
    pidfd_getfd faccessat2 epoll_pwait2 futex_waitv fchmodat2";

/// The unit files in the documents, by the place that each is for.
fn unit_files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(format!("{}/{document}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for block in text.split("```ini\n").skip(1) {
            let (file, _) = block.split_once("```").unwrap();
            let first = file.lines().next().unwrap();
            let place = first
                .strip_prefix("# ")
                .unwrap_or_else(|| panic!("{document}: {first}"));
            let place = match place.strip_prefix("systemctl edit ") {
                Some(unit) if unit.contains('.') => format!("/etc/systemd/system/{unit}.d/override.conf"),
                Some(unit) => format!("/etc/systemd/system/{unit}.service.d/override.conf"),
                None => place.to_owned(),
            };
            assert!(
                files.insert(place, file.to_owned()).is_none(),
                "{first} is told twice"
            );
        }
    }
    files
}

/// Takes the unit files that are still to be tried, by a part of their name.
struct Untried(BTreeMap<String, String>);

impl Untried {
    fn install(&mut self, container: &Container, part: &str) {
        let place = self.0.keys().find(|place| place.contains(part));
        let place = place
            .unwrap_or_else(|| panic!("no document has a unit file {part}"))
            .clone();
        let text = self.0.remove(&place).unwrap();
        put(container, &place, &text);
    }
}

fn put(container: &Container, place: &str, text: &str) {
    let (directory, _) = place.rsplit_once('/').unwrap();
    container.run(&["mkdir", "-p", directory]);
    container.write(place, text);
    container.run(&["systemctl", "daemon-reload"]);
}

#[test]
fn the_documents_drop_ins_do_what_they_are_for() {
    let test = "the_documents_drop_ins_do_what_they_are_for";
    if !has(test, &["openssl"]) {
        return;
    }
    let Some(container) = Container::boot(test) else {
        return;
    };
    install_units(&container);
    let mut untried = Untried(unit_files());

    the_bridge_listens_on_port_443(&container, &mut untried);
    container.run(&["systemctl", "start", SATELLITE]);
    join(&container, "shop-17");
    answers(&container, "shop-17");
    the_satellite_writes_the_nodes_files(&container, &mut untried);
    a_hook_hands_over_to_root(&container, &mut untried);
    the_bridge_reads_a_platforms_files(&container, &mut untried);
    backups_are_made_each_hour(&container, &mut untried);
    assert!(untried.0.is_empty(), "nobody tries {:?}", untried.0.keys());
}

/// Starts with what it is configured with now, by this drop-in and not without it.
fn the_bridge_starts_by(container: &Container, untried: &mut Untried, drop_in: &str) {
    let _ = container.output(&["systemctl", "start", BRIDGE]);
    assert_ne!(
        container.property(BRIDGE, "ActiveState"),
        "active",
        "without the drop-in it may not"
    );
    container.run(&["systemctl", "stop", BRIDGE]);
    untried.install(container, drop_in);
    container.run(&["systemctl", "start", BRIDGE]);
}

fn the_bridge_listens_on_port_443(container: &Container, untried: &mut Untried) {
    container.run(&["mkdir", "-p", "/etc/powernode-host-bridge"]);
    container.write(
        "/etc/powernode-host-bridge/host-bridge.toml",
        "[listen]\nhttps = [\"127.0.0.1:443\"]\nquic = [\"127.0.0.1:443\"]\n",
    );
    container.run(&[BRIDGE, "init", "--public-url", "https://127.0.0.1"]);
    the_bridge_starts_by(container, untried, "host-bridge.service.d/override.conf");
    let status = status_of(container, BRIDGE);
    assert!(
        status.contains("CapBnd:\t0000000000000400\n"),
        "that one alone: {status}"
    );
}

fn status_of(container: &Container, unit: &str) -> String {
    let pid = container.property(unit, "MainPID");
    container.run(&["cat", &format!("/proc/{pid}/status")])
}

/// Whether the unit's process could make a file there: as its user, seeing what it sees.
fn may_write(container: &Container, unit: &str, directory: &str) -> bool {
    let pid = container.property(unit, "MainPID");
    let user = container.run(&["stat", "-c", "%u", &format!("/proc/{pid}")]);
    let file = format!("{directory}/written");
    let touched = container.output(&[
        "nsenter",
        "--mount",
        &format!("--target={pid}"),
        "setpriv",
        &format!("--reuid={}", user.trim()),
        "--clear-groups",
        "touch",
        &file,
    ]);
    touched.status.success()
}

fn the_satellite_writes_the_nodes_files(container: &Container, untried: &mut Untried) {
    assert!(may_write(container, SATELLITE, "/var/lib/powernode-satellite"));
    container.run(&["mkdir", "-p", "--mode=0777", NODE_FILES]);
    assert!(
        !may_write(container, SATELLITE, NODE_FILES),
        "without the drop-in it may not"
    );
    container.run(&["rm", "-r", NODE_FILES]);
    untried.install(container, "node-identity.conf");
    container.run(&["systemctl", "restart", SATELLITE]);
    assert!(may_write(container, SATELLITE, NODE_FILES));
    let mode = container.run(&["stat", "-c", "%a %U", NODE_FILES]);
    assert_eq!(mode.trim(), format!("700 {SATELLITE}"));
}

/// The hook runs as the unit's processes do; what needs root is done by a unit of root's.
fn a_hook_hands_over_to_root(container: &Container, untried: &mut Untried) {
    container.write(
        "/usr/local/bin/hand-over",
        "#!/bin/sh\nset -e\numask 077\ncat >/var/lib/powernode-satellite/cluster.new\n\
         mv /var/lib/powernode-satellite/cluster.new /var/lib/powernode-satellite/cluster.json\n",
    );
    container.write(
        "/usr/local/bin/join-cluster",
        "#!/bin/sh\nset -e\nid -u >/root/joined-as\ncat /var/lib/powernode-satellite/cluster.json >/root/joined\n\
         rm /var/lib/powernode-satellite/cluster.json\n",
    );
    container.run(&[
        "chmod",
        "0755",
        "/usr/local/bin/hand-over",
        "/usr/local/bin/join-cluster",
    ]);
    untried.install(container, "powernode-cluster.path");
    untried.install(container, "powernode-cluster.service");
    container.run(&["systemctl", "enable", "--now", "powernode-cluster.path"]);

    // Before the daemon, systemd runs it in the very confinement in which the daemon would.
    let trial = put_drop_in(
        container,
        SATELLITE,
        "hook",
        "ExecStartPre=/bin/sh -c 'echo {\"a\":1} | /usr/local/bin/hand-over'\n",
    );
    container.run(&["systemctl", "restart", SATELLITE]);
    wait_for("root's unit has been called", || {
        let joined = container.output(&["cat", "/root/joined", "/root/joined-as"]);
        (joined.status.success() && joined.stdout == b"{a:1}\n0\n").then_some(())
    });
    container.run(&["rm", &trial]);
    container.run(&["systemctl", "daemon-reload"]);
}

fn backups_are_made_each_hour(container: &Container, untried: &mut Untried) {
    let calendar = || container.run(&["systemctl", "show", "--property=TimersCalendar", TIMER]);
    let daily = calendar();
    assert!(daily.contains("OnCalendar=*-*-* 00:00:00"), "{daily}");
    untried.install(container, "backup.timer");
    let hourly = calendar();
    assert!(hourly.contains("OnCalendar=*-*-* *:00:00"), "{hourly}");
    assert_eq!(hourly.matches("OnCalendar=").count(), 1, "{hourly}");
}

/// A section `[Service]` of a test's own; gives its place.
fn put_drop_in(container: &Container, unit: &str, name: &str, lines: &str) -> String {
    let place = format!("/etc/systemd/system/{unit}.service.d/{name}.conf");
    put(container, &place, &format!("[Service]\n{lines}"));
    place
}

/// Certificate and key for the loopback address, new ones each time.
fn install_certificate(container: &Container) -> String {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap().pem();
    for (place, text) in PEM.into_iter().zip([&certificate, &key.serialize_pem()]) {
        let new = format!("{place}.new");
        container.write(&new, text);
        container.run(&["chgrp", "powernode-files", &new]);
        container.run(&["chmod", "0640", &new]);
        container.run(&["mv", &new, place]);
    }
    certificate
}

fn the_bridge_reads_a_platforms_files(container: &Container, untried: &mut Untried) {
    container.run(&["systemctl", "stop", BRIDGE]);
    container.run(&["groupadd", "--system", "powernode-files"]);
    install_certificate(container);
    container.run(&["cp", PEM[0], "/etc/powernode-host-bridge/platform-ca.pem"]);
    container.run(&["chmod", "0644", "/etc/powernode-host-bridge/platform-ca.pem"]);
    container.write(
        "/etc/powernode-host-bridge/host-bridge.toml",
        "[platform]\nurl = \"http://127.0.0.1:3000\"\nca_file = \"/etc/powernode-host-bridge/platform-ca.pem\"\n\
         [server]\ncertificate_file = \"/etc/powernode-host-bridge/server.pem\"\n\
         key_file = \"/etc/powernode-host-bridge/server.key\"\n[public]\nurl = \"https://127.0.0.1:8443\"\n\
         [listen]\nhttps = [\"127.0.0.1:8443\"]\nquic = [\"127.0.0.1:8443\"]\n",
    );
    the_bridge_starts_by(container, untried, "host-bridge.service.d/files.conf");

    let renewed = install_certificate(container);
    wait_for("the listener shows the renewed certificate", || {
        let shown = container.output(&[
            "sh",
            "-c",
            "openssl s_client -connect 127.0.0.1:8443 </dev/null 2>/dev/null | openssl x509",
        ]);
        (String::from_utf8_lossy(&shown.stdout).trim() == renewed.replace('\r', "").trim()).then_some(())
    });
}

/// A kernel of January 2012 and a box with 64 MiB, as far as a newer and larger one can stand in for them.
#[test]
fn the_daemons_run_without_later_system_calls_and_in_little_memory() {
    let Some(container) = Container::boot("the_daemons_run_without_later_system_calls_and_in_little_memory")
    else {
        return;
    };
    install_units(&container);
    let denied = LATER_CALLS
        .split_whitespace()
        .fold(String::from("SystemCallFilter=\n"), |lines, call| {
            lines + &format!("SystemCallFilter=~{call}:ENOSYS\n")
        });
    for unit in [SATELLITE, BRIDGE] {
        put_drop_in(&container, unit, "old-kernel", &denied);
        let filter = container.property(unit, "SystemCallFilter");
        assert!(
            filter.starts_with('~') && filter.contains("statx:ENOSYS"),
            "{filter}"
        );
    }
    // What a process may write to in memory, stacks included: half of such a box.
    put_drop_in(&container, SATELLITE, "small-box", "LimitDATA=32M\n");
    begin(&container);
    container.run(&["systemctl", "start", SATELLITE]);
    join(&container, "shop-17");
    answers(&container, "shop-17");
    for unit in [SATELLITE, BRIDGE] {
        assert_eq!(container.property(unit, "NRestarts"), "0", "{unit}");
    }
}
