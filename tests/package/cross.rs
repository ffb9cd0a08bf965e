//! `cross.toml`, read as cross reads it. No container engine is here to build by it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// What cross knows and we use; another word in the file is a mistake, which cross would merely warn of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    build: Build,
    /// With nothing in any: cross has an image for each.
    target: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    env: Environment,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Environment {
    passthrough: Vec<String>,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn cross_builds_the_targets_of_a_release_as_our_script_does() {
    let read: Configuration = toml::from_str(&text("cross.toml")).unwrap();
    let release = text("scripts/release");
    let default = release
        .lines()
        .find_map(|line| line.split_once("|| targets=("))
        .unwrap()
        .1;
    let mut targets: Vec<_> = default.trim_end_matches(')').split(' ').collect();
    targets.sort_unstable();
    assert_eq!(read.target.keys().collect::<Vec<_>>(), targets);
    assert!(read.target.values().all(BTreeMap::is_empty), "{read:?}");

    let script = text("scripts/cross/build");
    for variable in &read.build.env.passthrough {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        assert!(
            name.chars().all(|c| c.is_ascii_uppercase() || c == '_'),
            "{variable}"
        );
        // The commit's time, which scripts/release and scripts/reproducible set.
        assert!(name == "SOURCE_DATE_EPOCH" || script.contains(name), "{variable}");
        // What chooses code is the same in both; what is for one compiler alone is not.
        for define in value.split(' ').filter(|word| word.starts_with("-D")) {
            assert!(script.contains(define), "{define}");
        }
    }
    // And none of the script's is missing.
    let switches = script
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("AWS_LC_SYS_")?.split_once('='));
    for (switch, _) in switches {
        let name = format!("AWS_LC_SYS_{}=", switch.trim_end_matches('+'));
        assert!(
            read.build
                .env
                .passthrough
                .iter()
                .any(|variable| variable.starts_with(&name)),
            "{name}"
        );
    }
}

/// On a file system that knows capitals, cross looks for another name.
#[test]
fn cross_finds_its_file() {
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cross.toml");
    assert_eq!(std::fs::read_link(link).unwrap(), Path::new("cross.toml"));
}
