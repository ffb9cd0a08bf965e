//! Whether this machine can hold a lab, found out once, by trying.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::namespace::{Namespace, remove_leftovers};
use crate::process::finish;

/// Program and Debian package of each tool.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
];

/// Set to `required` where a skipped lab must be a failure.
const REQUIRED_VARIABLE: &str = "POWERNODE_LAB";

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether the lab can run; says on standard error what was skipped and why when not.
pub fn met(test: &str) -> bool {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    match FOUND.get_or_init(look) {
        Ok(()) => true,
        Err(why) => {
            skip(test, why);
            false
        }
    }
}

/// Whether the programs of one scenario are there too, or files of theirs, each with its Debian package; says which are not.
pub fn have(test: &str, programs: &[(&str, &str)]) -> bool {
    let missing = missing(programs);
    if missing.is_empty() {
        return true;
    }
    skip(test, &missing);
    false
}

fn skip(test: &str, why: &str) {
    let required = std::env::var_os(REQUIRED_VARIABLE).is_some_and(|value| value == "required");
    assert!(!required, "the lab is required but cannot run: {why}");
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Past the test runner's capture, which hides what passing tests print, and on a line of its own,
    // whatever the runner has written of its own line.
    let line = format!("\nSKIPPED: lab test {test} because {why} ({count} lab tests skipped so far)\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A program that can be started, or a file.
fn is_there(what: &str) -> bool {
    if what.contains('/') {
        return Path::new(what).exists();
    }
    Command::new(what).arg("-V").output().is_ok()
}

/// What is not installed, in words; empty where all is.
fn missing(programs: &[(&str, &str)]) -> String {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(program, package)| format!("`{program}` (Debian package {package})"))
        .collect();
    match missing.as_slice() {
        [] => String::new(),
        missing => format!(
            "not all that it needs is installed; missing: {}",
            missing.join(", ")
        ),
    }
}

fn look() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root; run the tests as root".to_owned());
    }
    let missing = missing(TOOLS);
    if !missing.is_empty() {
        return Err(missing);
    }
    remove_leftovers();
    let probe = Namespace::create("probe")?;
    let mut nft = probe.command("nft");
    nft.arg("table inet probe { chain nat { type nat hook postrouting priority srcnat; masquerade; }; }");
    let masquerade = finish(nft);
    if masquerade.code != 0 {
        return Err(format!(
            "this kernel does not masquerade: {}",
            masquerade.stderr.trim()
        ));
    }
    let mut tc = probe.command("tc");
    tc.args(["qdisc", "add", "dev", "lo", "root", "tbf"])
        .args(["rate", "1mbit", "burst", "1600", "latency", "1s"]);
    let slow = finish(tc);
    if slow.code != 0 {
        return Err(format!(
            "this kernel cannot slow a line down: {}",
            slow.stderr.trim()
        ));
    }
    Ok(())
}
