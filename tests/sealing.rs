//! Both real programs under state keys: from the start, from later on, and without the right one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

use support::{BridgeSite, SatelliteSite, fail, succeed, wait_for};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

const BRIDGE_KEY: &str = "POWERNODE_HOST_BRIDGE_STATE_KEY_FILE";
const SATELLITE_KEY: &str = "POWERNODE_SATELLITE_STATE_KEY_FILE";

/// What every Ed25519 key in PKCS#8 has: the algorithm, and the head of the private key.
const PKCS8_MARK: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// A directory with key files in all their forms.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        let raw: Vec<u8> = (0..32).map(|place| place * 7 + 1).collect();
        keys.write("credentials/state-key", &raw);
        keys.write("hex", format!("{}\n", "0123456789abcdef".repeat(4)).as_bytes());
        keys.write("base64", b"ZGVhZGJlZWYgZGVhZGJlZWYgZGVhZGJlZWYgZGVhZC4=\n");
        keys.write("short", b"hunter2\n");
        keys
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// The files in a state directory that have a readable private key somewhere.
fn readable_keys(state: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(state).unwrap() {
        let entry = entry.unwrap();
        let content = std::fs::read(entry.path()).unwrap();
        if content
            .windows(PKCS8_MARK.len())
            .any(|window| window == PKCS8_MARK)
        {
            names.push(entry.file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

fn answers(bridge: &BridgeSite) {
    wait_for("the satellite answers through the tunnel", || {
        let output = bridge.output(&["request", "shop-17", CATALOG]);
        output.status.success().then_some(())
    });
}

#[test]
fn a_federation_whose_both_ends_are_sealed_from_the_start() {
    let keys = Keys::new();
    let bridge = BridgeSite::init_with(vec![(BRIDGE_KEY, keys.path("hex"))]);
    let bridge_state = bridge.dir.path().join("state");
    assert_eq!(readable_keys(&bridge_state), [""; 0]);
    assert_eq!(bridge.json(&["status"])["store_sealed"], true);
    let daemon = bridge.run();
    let mut satellite = SatelliteSite::new();
    // As the service manager hands it over.
    satellite.variables = vec![("CREDENTIALS_DIRECTORY", keys.path("credentials"))];
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    assert_eq!(readable_keys(&satellite.state_dir()), [""; 0]);
    let running = satellite.run();
    bridge.wait_status("shop-17", "active");
    answers(&bridge);
    assert_eq!(satellite.status()["store"]["sealed"], true);
    assert_eq!(bridge.json(&["status"])["store_sealed"], true);

    // Both go on where they were after a crash.
    running.kill();
    daemon.kill();
    let daemon = bridge.run();
    let running = satellite.run();
    answers(&bridge);
    assert!(running.stop().success());
    assert!(daemon.stop().success());
    assert_eq!(readable_keys(&bridge_state), [""; 0]);
    assert_eq!(readable_keys(&satellite.state_dir()), [""; 0]);

    // Without a daemon the command line finds the same key, and by a flag, too.
    let status = satellite.status();
    assert_eq!(status["store"]["sealed"], true);
    assert_eq!(status["state"], "joined");
    satellite.variables.clear();
    let (code, said) = fail(&satellite.output(&["status"]));
    assert_eq!(code, 1);
    assert!(
        said.contains("no state key was given") && said.contains("state_key_file"),
        "{said}"
    );
    let flag = satellite.output(&["status", "--state-key-file", &keys.text("credentials/state-key")]);
    assert!(succeed(&flag).contains("sealed with the state key"));
}

#[test]
fn keys_come_later_and_go_again() {
    let keys = Keys::new();
    let mut bridge = BridgeSite::init();
    let bridge_state = bridge.dir.path().join("state");
    let daemon = bridge.run();
    let mut satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    assert!(daemon.stop().success());
    assert_eq!(readable_keys(&bridge_state), ["registry.redb"]);
    assert_eq!(
        readable_keys(&satellite.state_dir()),
        ["membership.copy", "satellite.redb"]
    );
    assert_eq!(satellite.status()["store"]["sealed"], false);

    bridge.variables = vec![(BRIDGE_KEY, keys.path("base64"))];
    satellite.variables = vec![(SATELLITE_KEY, keys.path("hex"))];
    assert_eq!(
        bridge.json(&["status"])["store_sealed"],
        false,
        "looking seals nothing"
    );
    let daemon = bridge.run();
    let running = satellite.run();
    answers(&bridge);
    assert_eq!(satellite.status()["store"]["sealed"], true);
    assert!(running.stop().success());
    assert!(daemon.stop().success());
    assert_eq!(readable_keys(&bridge_state), [""; 0]);
    assert_eq!(readable_keys(&satellite.state_dir()), [""; 0]);

    // The other's key opens neither; both are named.
    let before = std::fs::read(satellite.state_dir().join("satellite.redb")).unwrap();
    let (code, said) = fail(&satellite.output(&["run", "--state-key-file", &keys.text("base64")]));
    assert_eq!(code, 1);
    assert!(said.contains("and the one given is"), "{said}");
    assert_eq!(
        std::fs::read(satellite.state_dir().join("satellite.redb")).unwrap(),
        before
    );
    let (code, said) = fail(&bridge.output(&["run", "--state-key-file", &keys.text("hex")]));
    assert_eq!(code, 1);
    assert!(said.contains("and the one given is"), "{said}");

    assert!(succeed(&satellite.output(&["state-key", "unseal"])).contains("not sealed any more"));
    assert!(succeed(&bridge.output(&["state-key", "unseal"])).contains("not sealed any more"));
    assert!(succeed(&bridge.output(&["state-key", "unseal"])).contains("nothing was changed"));
    bridge.variables.clear();
    satellite.variables.clear();
    let _daemon = bridge.run();
    let _running = satellite.run();
    answers(&bridge);
    assert_eq!(bridge.json(&["status"])["store_sealed"], false);
}

#[test]
fn a_key_file_that_is_none_is_refused_before_anything_is_made() {
    let keys = Keys::new();
    let satellite = SatelliteSite::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let state = elsewhere.path().join("state").display().to_string();
    let mut bridge = support::BridgeSite::init();
    bridge.variables = vec![("POWERNODE_HOST_BRIDGE_STATE_DIR", PathBuf::from(&state))];
    for (name, words) in [
        ("short", "has not the length of a key"),
        ("missing", "there is no state key file"),
    ] {
        let file = keys.text(name);
        let outputs = [
            satellite.output(&["run", "--state-key-file", &file]),
            bridge.output(&["init", "--state-key-file", &file]),
        ];
        for output in outputs {
            let (code, said) = fail(&output);
            assert_eq!(code, 2, "{said}");
            assert!(
                said.contains(words) && said.contains("head -c 32 /dev/urandom"),
                "{said}"
            );
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
    assert!(!satellite.state_dir().exists() && !Path::new(&state).exists());
    let (code, said) = fail(&satellite.output(&["state-key", "unseal"]));
    assert_eq!(code, 2);
    assert!(said.contains("--state-key-file"), "{said}");
    let beside = satellite.state_dir().join("state-key").display().to_string();
    let (code, said) = fail(&satellite.output(&["run", "--state-key-file", &beside]));
    assert_eq!(code, 2);
    assert!(said.contains("stolen with it"), "{said}");
}
