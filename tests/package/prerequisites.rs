//! Whether this machine has what a test needs, and a word past the test runner's capture when not.

use std::io::Write as _;
use std::path::Path;

/// Set to `required` where a skipped test must be a failure.
const REQUIRED_VARIABLE: &str = "POWERNODE_PACKAGE_TESTS";

/// Programs by the Debian packages that have them.
const PACKAGES: &[(&str, &str)] = &[
    ("cargo-cyclonedx", "none: cargo install cargo-cyclonedx"),
    ("cargo-deb", "none: cargo install cargo-deb"),
    ("lintian", "lintian"),
    ("mandoc", "mandoc"),
    ("minisign", "minisign"),
    ("openssl", "openssl"),
    ("readelf", "binutils"),
    ("shellcheck", "shellcheck"),
    ("strip", "binutils"),
    ("systemd-analyze", "systemd"),
    ("systemd-nspawn", "systemd-container"),
];

/// Whether all of the programs are here.
pub fn has(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !is_installed(program))
        .map(|program| {
            let package = PACKAGES.iter().find(|(name, _)| name == program);
            format!(
                "`{program}` (Debian package {})",
                package.map_or("unknown", |(_, package)| package)
            )
        })
        .collect();
    missing.is_empty() || skip(test, &format!("there is no {}", missing.join(", ")))
}

/// Whether this is root.
pub fn is_root(test: &str) -> bool {
    rustix::process::geteuid().is_root() || skip(test, "it needs root")
}

/// Says that a test is skipped; gives `false`.
pub fn skip(test: &str, why: &str) -> bool {
    let required = std::env::var_os(REQUIRED_VARIABLE).is_some_and(|value| value == "required");
    assert!(!required, "{test} is required but cannot run: {why}");
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: package test {test} because {why}");
    false
}

/// Whether this program is here.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").to_owned(), Path::new("/sbin").to_owned()])
        .any(|directory| directory.join(program).is_file())
}
