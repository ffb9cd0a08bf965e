//! Tells the program when its source was last changed: the floor below which no clock is believed.
//! `SOURCE_DATE_EPOCH` wins, then the time of the commit that is built, then a fixed floor; never
//! the clock of the building machine, so that two builds of one source are the same.

use std::path::Path;
use std::process::Command;

/// 2026-01-01T00:00:00Z: for sources that are neither in a repository nor told a date.
const FLOOR_SECONDS: &str = "1767225600";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let seconds = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .filter(|text| is_seconds(text))
        .or_else(commit_time)
        .unwrap_or_else(|| FLOOR_SECONDS.to_owned());
    println!("cargo:rustc-env=POWERNODE_BUILD_SECONDS={seconds}");
}

/// The time of the commit, if this package is the root of the repository it lies in.
fn commit_time() -> Option<String> {
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let package = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    if Path::new(&root).canonicalize().ok()? != Path::new(&package).canonicalize().ok()? {
        return None;
    }
    // Every commit, checkout and reset appends a line here.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["log", "-1", "--format=%ct"]).filter(|text| is_seconds(text))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Eleven digits last until the year 5138.
fn is_seconds(text: &str) -> bool {
    (1..=11).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}
