//! Configuration as operators meet it: good and bad files, variables, flags, and the example files.
//!
//! A bad file begins with what its error must say (`# error: …`) and must not say (`# never: …`).

#![allow(clippy::unwrap_used, reason = "functions that tests share are tests, too")]

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use powernode_satellite::process::config::duration::HumaneDuration;
use powernode_satellite::process::config::host_bridge::{self, HostBridgeConfig};
use powernode_satellite::process::config::key::Fallback;
use powernode_satellite::process::config::loader::{
    ConfigError, ConfigFile, Flags, Origin, Program, Settings,
};
use powernode_satellite::process::config::satellite::{self, SatelliteConfig};
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::supervisor::{ABORT_WAIT, LAST_WORDS};
use powernode_satellite::satellite::daemon::SHUTDOWN_GRACE;

/// Set to have the example files written instead of compared.
const WRITE_EXAMPLES: &str = "WRITE_EXAMPLES";

const PROGRAMS: [(&Program, &str); 2] = [
    (&satellite::PROGRAM, "satellite"),
    (&host_bridge::PROGRAM, "host-bridge"),
];

#[test]
fn good_files_are_taken() {
    for (program, name) in PROGRAMS {
        for path in fixtures(name, "good") {
            if let Err(error) = load(program, &ConfigFile::Named(path.clone()), &[], &[]) {
                panic!("{}: {}", path.display(), told(&error));
            }
        }
    }
}

#[test]
fn bad_files_are_refused_with_the_reason() {
    for (program, name) in PROGRAMS {
        let paths = fixtures(name, "bad");
        assert!(!paths.is_empty());
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap();
            let Err(error) = load(program, &ConfigFile::Named(path.clone()), &[], &[]) else {
                panic!("{} was taken", path.display());
            };
            let told = told(&error);
            let directives = |kind: &str| {
                text.lines()
                    .filter_map(|line| line.strip_prefix(kind))
                    .collect::<Vec<_>>()
            };
            assert!(!directives("# error: ").is_empty(), "{}", path.display());
            for expected in directives("# error: ") {
                assert!(told.contains(expected), "{}: {told}", path.display());
            }
            for secret in directives("# never: ") {
                assert!(!told.contains(secret), "{}: {told}", path.display());
            }
        }
    }
}

#[test]
fn a_good_file_means_what_it_says() {
    let path = fixture("satellite/good/site.toml");
    let (config, settings) = SatelliteConfig::load(
        &ConfigFile::Named(path.clone()),
        &Flags::new(),
        &Environment::default(),
    )
    .unwrap();
    assert_eq!(config.state_dir, Path::new("/data/satellite"));
    assert_eq!(
        config.parent.url.unwrap().as_str(),
        "https://parent.example.com:9443/prefix"
    );
    assert_eq!(config.parent.bridges[0].to_string(), "bridge.example.com:8443");
    assert_eq!(config.reconnect_max, Duration::from_secs(300));
    assert_eq!(config.log.filter.to_string(), "info,quinn=debug");
    assert_eq!(
        settings.origin("reconnect.max"),
        Some(&Origin::File { path, line: 16 })
    );
    assert_eq!(settings.origin("log.format"), Some(&Origin::Default));
}

#[test]
fn services_are_sections_of_their_own_and_are_shown_as_they_are_read() {
    let load = |path: PathBuf| {
        SatelliteConfig::load(&ConfigFile::Named(path), &Flags::new(), &Environment::default()).unwrap()
    };
    let (config, settings) = load(fixture("satellite/good/services.toml"));
    let names: Vec<_> = config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["docker", "ssh", "web-2"]);
    let web = &config.services[2];
    assert_eq!(web.address.to_string(), "192.168.7.9:8080");
    assert_eq!(web.health_check.to_string(), "/healthz");
    assert_eq!(
        (
            web.health_interval_seconds,
            web.max_connections,
            web.bandwidth,
            web.proxy_protocol
        ),
        (60, 32, 2 << 20, true)
    );
    assert_eq!(config.services[1].max_connections, 256, "a default");
    assert_eq!(config.limits.session_bandwidth.map(u64::from), Some(10_000_000));
    let dir = tempfile::tempdir().unwrap();
    let shown = dir.path().join("shown.toml");
    std::fs::write(&shown, settings.to_string()).unwrap();
    assert_eq!(load(shown).0.services, config.services);
}

#[test]
fn no_more_services_than_a_heartbeat_can_tell() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.toml");
    let file = |count: usize| {
        (0..count).fold(String::new(), |mut text, number| {
            writeln!(
                text,
                "[services.s{number}]\nprotocol = \"tcp\"\naddress = \"localhost:1\""
            )
            .unwrap();
            text
        })
    };
    for (count, taken) in [(64, true), (65, false)] {
        std::fs::write(&path, file(count)).unwrap();
        let loaded = load(&satellite::PROGRAM, &ConfigFile::Named(path.clone()), &[], &[]);
        assert_eq!(loaded.is_ok(), taken, "{count}");
    }
}

#[test]
fn numbers_may_have_underscores() {
    let path = fixture("host-bridge/good/public.toml");
    let (config, _) =
        HostBridgeConfig::load(&ConfigFile::Named(path), &Flags::new(), &Environment::default()).unwrap();
    assert_eq!(config.limits.sessions, 5_000);
    assert_eq!(config.listen_https.len(), 2);
    assert_eq!(config.acceptance_ttl, Duration::from_secs(36 * 3_600));
}

#[test]
fn flag_over_variable_over_file_over_default() {
    let file = ConfigFile::Named(fixture("satellite/good/site.toml"));
    let shown = |variables: &[(&str, &str)], flags: &[(&'static str, &str)]| {
        let settings = load(&satellite::PROGRAM, &file, variables, flags).unwrap();
        value_of(&settings, "reconnect.max")
    };
    let variable = ("POWERNODE_SATELLITE_RECONNECT_MAX", "90s");
    let default = load(&satellite::PROGRAM, &ConfigFile::Default, &[], &[]).unwrap();
    assert_eq!(value_of(&default, "reconnect.max"), r#""1m"  # default"#);
    assert!(shown(&[], &[]).starts_with(r#""5m"  # /"#));
    assert_eq!(
        shown(&[variable], &[]),
        r#""1m30s"  # environment variable POWERNODE_SATELLITE_RECONNECT_MAX"#
    );
    assert_eq!(
        shown(&[variable], &[("reconnect.max", "2m")]),
        r#""2m"  # command line"#
    );
    assert!(shown(&[("POWERNODE_SATELLITE_RECONNECT_MAX", "")], &[]).starts_with(r#""5m""#));
}

#[test]
fn unknown_variables_are_refused_and_others_left_alone() {
    let loaded = |name, value| load(&satellite::PROGRAM, &ConfigFile::Default, &[(name, value)], &[]);
    let error = loaded("POWERNODE_SATELLITE_RECONECT_MAX", "90s").err().unwrap();
    assert!(
        told(&error).contains("did you mean `POWERNODE_SATELLITE_RECONNECT_MAX`?"),
        "{error}"
    );
    let error = loaded("POWERNODE_SATELLITE_PARENT_TOKEN", "hunter2")
        .err()
        .unwrap();
    assert!(
        told(&error).contains("POWERNODE_SATELLITE_PARENT_TOKEN_FILE"),
        "{error}"
    );
    assert!(!told(&error).contains("hunter2"));
    let error = loaded("POWERNODE_SATELLITE_FOO", "1").err().unwrap();
    assert!(told(&error).contains("config show"), "{error}");
    assert!(loaded("POWERNODE_HOST_BRIDGE_NONSENSE", "1").is_ok());
    assert!(loaded("HOME", "/root").is_ok());
}

#[test]
fn a_bad_variable_or_flag_says_where_it_stands() {
    let variable = [("POWERNODE_HOST_BRIDGE_LIMITS_SESSIONS", "many")];
    let error = load(&host_bridge::PROGRAM, &ConfigFile::Default, &variable, &[])
        .err()
        .unwrap();
    assert!(
        told(&error).starts_with("environment variable POWERNODE_HOST_BRIDGE_LIMITS_SESSIONS: "),
        "{error}"
    );
    let flag = [("limits.sessions", "many")];
    let error = load(&host_bridge::PROGRAM, &ConfigFile::Default, &[], &flag)
        .err()
        .unwrap();
    assert!(
        told(&error).starts_with("command line: `limits.sessions` = many"),
        "{error}"
    );
}

#[test]
fn a_missing_default_file_is_fine_and_a_missing_named_one_is_not() {
    assert!(load(&satellite::PROGRAM, &ConfigFile::Default, &[], &[]).is_ok());
    let named = ConfigFile::Named("/nonexistent/satellite.toml".into());
    let error = load(&satellite::PROGRAM, &named, &[], &[]).err().unwrap();
    assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
    let variable = [("POWERNODE_SATELLITE_CONFIG", "/nonexistent/satellite.toml")];
    let error = load(&satellite::PROGRAM, &ConfigFile::Default, &variable, &[])
        .err()
        .unwrap();
    assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
}

#[test]
fn what_is_no_text_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let load_bytes = |bytes: &[u8]| {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, bytes).unwrap();
        load(&satellite::PROGRAM, &ConfigFile::Named(path), &[], &[])
            .err()
            .unwrap()
    };
    assert!(matches!(
        load_bytes(&[0xff, 0xfe]),
        ConfigError::Unreadable { .. }
    ));
    assert!(matches!(
        load_bytes(&vec![b'#'; 100_000]),
        ConfigError::TooLarge { .. }
    ));
    let directory = ConfigFile::Named(dir.path().to_owned());
    let error = load(&satellite::PROGRAM, &directory, &[], &[]).err().unwrap();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
}

#[test]
fn what_is_shown_is_a_configuration_of_the_same_meaning() {
    let dir = tempfile::tempdir().unwrap();
    for (program, name) in PROGRAMS {
        for source in fixtures(name, "good") {
            let settings = load(program, &ConfigFile::Named(source), &[], &[]).unwrap();
            let path = dir.path().join("shown.toml");
            std::fs::write(&path, settings.to_string()).unwrap();
            let again = load(program, &ConfigFile::Named(path), &[], &[]).unwrap();
            assert_eq!(values(&again), values(&settings));
        }
    }
}

#[test]
fn every_key_has_its_own_variable_section_and_doc() {
    for (program, _) in PROGRAMS {
        let mut variables: Vec<_> = program
            .keys
            .iter()
            .map(|key| program.variable(key.path()))
            .collect();
        variables.push(program.file_variable());
        variables.sort();
        let count = variables.len();
        variables.dedup();
        assert_eq!(variables.len(), count, "{}", program.name);
        for key in program.keys {
            let section = key.path().rsplit_once('.').map_or("", |(section, _)| section);
            assert!(
                program.sections.iter().any(|(name, _)| *name == section),
                "{}",
                key.path()
            );
            assert!(key.doc().ends_with('.'), "{}", key.path());
        }
    }
}

#[test]
fn the_units_give_a_shutdown_the_time_that_it_may_take() {
    let last_words = 3 * (LAST_WORDS + ABORT_WAIT);
    for (unit, drain) in [
        ("host-bridge", host_bridge::DRAIN_MAX),
        ("satellite", SHUTDOWN_GRACE),
    ] {
        let text = std::fs::read_to_string(repository(&format!("systemd/powernode-{unit}.service"))).unwrap();
        let stop = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let HumaneDuration(stop) = stop.unwrap().parse().unwrap();
        assert!(stop > drain + last_words, "{unit}: {stop:?}");
    }
}

#[test]
fn the_example_files_show_every_key() {
    for (program, name) in PROGRAMS {
        let path = repository(&format!("config/{name}.example.toml"));
        if std::env::var_os(WRITE_EXAMPLES).is_some() {
            std::fs::write(&path, program.example()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text == program.example(),
            "{} is out of date; run this test with {WRITE_EXAMPLES}=1 and look at the difference",
            path.display()
        );
    }
}

#[test]
fn the_example_files_uncommented_are_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    for (program, name) in PROGRAMS {
        let text = std::fs::read_to_string(repository(&format!("config/{name}.example.toml"))).unwrap();
        let uncommented: String = text.lines().fold(String::new(), |mut out, line| {
            let code = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            writeln!(out, "{}", code.unwrap_or(line)).unwrap();
            out
        });
        let path = dir.path().join("example.toml");
        std::fs::write(&path, uncommented).unwrap();
        let example = load(program, &ConfigFile::Named(path), &[], &[]).unwrap();
        let defaults = load(program, &ConfigFile::Default, &[], &[]).unwrap();
        for ((key, shown), (_, default)) in values(&example).into_iter().zip(values(&defaults)) {
            let known = program.keys.iter().find(|known| known.path() == key).unwrap();
            match known.fallback() {
                Fallback::Value(_) => assert_eq!(shown, default, "{key}"),
                Fallback::Unset { .. } => assert!(shown.is_some() && default.is_none(), "{key}"),
            }
        }
    }
}

fn load(
    program: &'static Program,
    file: &ConfigFile,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Settings, ConfigError> {
    let flags: Flags = flags
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect();
    let environment: Environment = variables.iter().copied().collect();
    // Through the program's own type, so that values which do not go together are refused, too;
    // only the example file of the satellite sets two of them on purpose.
    let is_example = matches!(file, ConfigFile::Named(path) if path.ends_with("example.toml"));
    if is_example {
        Settings::load(
            program,
            file,
            &flags,
            &environment,
            &std::collections::BTreeMap::new(),
        )
    } else if program.name == satellite::PROGRAM.name {
        SatelliteConfig::load(file, &flags, &environment).map(|(_, settings)| settings)
    } else {
        HostBridgeConfig::load(file, &flags, &environment).map(|(_, settings)| settings)
    }
}

/// The error and its causes, as a program prints them.
fn told(error: &ConfigError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        write!(text, ": {next}").unwrap();
        cause = next.source();
    }
    text
}

fn values(settings: &Settings) -> Vec<(&'static str, Option<String>)> {
    let text = |(key, value): (&'static str, Option<(String, &Origin)>)| (key, value.map(|(text, _)| text));
    settings.effective().into_iter().map(text).collect()
}

fn value_of(settings: &Settings, key: &str) -> String {
    let shown = settings.to_string();
    let line = shown
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key} = ")));
    line.unwrap().to_owned()
}

fn fixtures(program: &str, kind: &str) -> Vec<PathBuf> {
    let directory = fixture(&format!("{program}/{kind}"));
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn fixture(path: &str) -> PathBuf {
    repository("tests/fixtures/config").join(path)
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
