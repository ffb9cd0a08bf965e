//! The host-bridge's program as operators meet it: the command line with and without a
//! daemon, and what it says when something is wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/authority.rs"]
mod authority;
mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use support::{BridgeSite, SatelliteSite, fail, succeed, wait_for};

#[test]
fn init_shows_its_token_once_and_never_overwrites() {
    let bridge = BridgeSite::init();
    let registry = bridge.dir.path().join("state/registry.redb");
    let before = std::fs::read(&registry).unwrap();
    assert_eq!(
        std::fs::metadata(&registry).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let token = bridge.operator_token.as_bytes();
    assert!(
        !before.windows(token.len()).any(|bytes| bytes == token),
        "the operator token is in the registry"
    );
    let (code, said) = fail(&bridge.output(&["init"]));
    assert_eq!(code, 1);
    assert!(said.contains("already"), "{said}");
    assert!(
        std::fs::read(&registry).unwrap() == before,
        "the registry was touched"
    );
}

#[test]
fn the_command_line_says_the_same_with_and_without_a_daemon() {
    let bridge = BridgeSite::init();
    let invited = bridge.invite("shop-17");
    assert!(invited["join_code"].as_str().unwrap().starts_with("pnjoin1"));
    let alone = bridge.json(&["peers", "show", "shop-17"]);
    let daemon = bridge.run();
    assert_eq!(bridge.json(&["peers", "show", "shop-17"])["id"], alone["id"]);
    assert_eq!(bridge.json(&["status"])["daemon_running"], true);
    let secret = bridge.invite("shop-18");
    for shown_once in ["acceptance_token", "join_code"] {
        let shown_once = secret[shown_once].as_str().unwrap();
        assert!(!daemon.log_text().contains(shown_once), "a token is in the log");
    }
    let (code, said) = fail(&bridge.output(&["request", "shop-17", "/federation_api/service_catalog"]));
    assert_eq!(code, 5);
    assert!(said.contains("has not joined yet"), "{said}");
    assert!(daemon.stop().success());
    assert_eq!(bridge.json(&["status"])["daemon_running"], false);
    succeed(&bridge.output(&["peers", "revoke", "shop-18", "--reason", "never came"]));
    let table = succeed(&bridge.output(&["peers", "list"]));
    assert!(table.contains("shop-17") && !table.contains("shop-18"), "{table}");
    assert!(!table.contains('\u{1b}'), "colours without a terminal");
    let (code, said) = fail(&bridge.output(&["peers", "show", "shop-71"]));
    assert_eq!(code, 4);
    assert!(said.contains("did you mean shop-17"), "{said}");
}

#[test]
fn what_is_wrong_is_said_with_a_code() {
    let bridge = BridgeSite::init();
    let elsewhere = bridge.dir.path().join("elsewhere");
    let nowhere = elsewhere.display().to_string();
    let (code, said) = fail(&bridge.output(&["peers", "list", "--state-dir", &nowhere]));
    assert_eq!(code, 3);
    assert!(said.contains("init"), "{said}");
    let (code, _) = fail(&bridge.output(&["run", "--state-dir", &nowhere]));
    assert_eq!(code, 3);
    assert!(!elsewhere.exists(), "looking made a state directory");
    let (code, _) = fail(&bridge.output(&["peers", "show", "../x"]));
    assert_eq!(code, 2);
    let (code, _) = fail(&bridge.output(&["invite"]));
    assert_eq!(code, 2);
    let nothing = bridge.dir.path().join("nothing").display().to_string();
    let (code, said) = fail(&bridge.output(&["restore", &nothing]));
    assert_eq!(code, 1);
    assert!(said.contains("there is no file"), "{said}");
    bridge.invite("shop-17");
    let grant = [
        "grants",
        "create",
        "shop-17",
        "--subject",
        "anna",
        "--kind",
        "x",
        "--scope",
        "raed",
    ];
    let (code, said) = fail(&bridge.output(&grant));
    assert_eq!(code, 4);
    assert!(said.contains("raed") && said.contains("read"), "{said}");
    let config = bridge.dir.path().join("bad.toml");
    std::fs::write(&config, "[listen]\nhttp = \"[::]:1\"\n").unwrap();
    let (code, said) = fail(&bridge.output(&["config", "check", "--config", &config.display().to_string()]));
    assert_eq!(code, 2);
    assert!(said.contains("listen.https"), "{said}");

    let daemon = bridge.run();
    let (code, said) = fail(&bridge.output(&["run"]));
    assert_eq!(code, 1);
    assert!(
        said.contains(&daemon.id().to_string()),
        "the holder is named: {said}"
    );
    let text = daemon.log_text();
    assert!(
        !text.contains(&bridge.operator_token),
        "the log has the operator token"
    );
}

#[test]
fn files_with_secrets_that_others_can_read_are_warned_of() {
    let (mut bridge, mut satellite) = (BridgeSite::init(), SatelliteSite::new());
    let credential = bridge.dir.path().join("credential");
    let proxy = satellite.dir.path().join("proxy");
    let key = satellite.dir.path().join("key");
    for (file, content) in [
        (&credential, "c".repeat(40)),
        (&proxy, "anna:secret".into()),
        (&key, "ab12".repeat(16)),
    ] {
        std::fs::write(file, content).unwrap();
    }
    let open = |mode| {
        for file in [&credential, &proxy, &key] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    bridge.variables = vec![(
        "POWERNODE_HOST_BRIDGE_CALLERS_CREDENTIAL_FILE",
        credential.clone(),
    )];
    satellite.variables = vec![
        ("POWERNODE_SATELLITE_TUNNEL_PROXY", "http://127.0.0.1:9".into()),
        ("POWERNODE_SATELLITE_TUNNEL_PROXY_CREDENTIALS_FILE", proxy.clone()),
        ("POWERNODE_SATELLITE_STATE_KEY_FILE", key.clone()),
    ];
    let checks = || {
        [
            bridge.output(&["config", "check"]),
            satellite.output(&["config", "check"]),
        ]
        .map(|output| {
            assert_eq!(succeed(&output), "the configuration is good\n");
            String::from_utf8(output.stderr).unwrap()
        })
    };
    open(0o640);
    assert_eq!(checks(), ["", ""]);
    open(0o644);
    let [of_bridge, of_satellite] = checks();
    assert!(
        of_bridge.starts_with("warning: `callers.credential_file`"),
        "{of_bridge}"
    );
    for named in ["`state_key_file`", "`tunnel.proxy_credentials_file`", "can read"] {
        assert!(of_satellite.contains(named), "{of_satellite}");
    }
    for (daemon, named) in [
        (bridge.run(), "callers.credential_file"),
        (satellite.run(), "tunnel.proxy_credentials_file"),
    ] {
        let log = daemon.log_text();
        assert!(
            log.contains(named) && log.contains("other users of this machine can read"),
            "{log}"
        );
    }
}

#[test]
fn operators_come_and_go() {
    let bridge = BridgeSite::init();
    let added = bridge.json(&["operators", "add", "second", "--role", "admin"]);
    assert_eq!(added["operator_token"].as_str().unwrap().len(), 43);
    succeed(&bridge.output(&["operators", "revoke", "admin"]));
    let (code, said) = fail(&bridge.output(&["operators", "revoke", "second"]));
    assert_eq!(code, 4);
    assert!(said.contains("only admin"), "{said}");
    assert_eq!(
        bridge.json(&["operators", "list"])["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn operators_are_limited_changed_and_given_new_tokens() {
    let bridge = BridgeSite::init();
    let added = bridge.json(&[
        "operators",
        "add",
        "tom",
        "--peers",
        "shop-*,depot",
        "--services",
        "ssh,web",
        "--expires",
        "90d",
    ]);
    let operator = &added["operator"];
    assert_eq!(operator["role"], "operator");
    assert_eq!(operator["peers"], json!(["shop-*", "depot"]));
    assert_eq!(operator["services"], json!(["ssh", "web"]));
    assert!(operator["expires_at"].is_string() && operator["expired"] == false);

    let set = [
        "operators",
        "set",
        "tom",
        "--role",
        "viewer",
        "--peers",
        "*",
        "--expires",
        "never",
    ];
    let set = bridge.json(&set);
    assert_eq!((&set["role"], &set["peers"]), (&json!("viewer"), &json!("any")));
    assert_eq!(
        (&set["services"], &set["expires_at"]),
        (&json!(["ssh", "web"]), &json!(null))
    );
    let shown = succeed(&bridge.output(&["operators", "show", "tom"]));
    assert!(shown.contains("viewer") && shown.contains("ssh, web"), "{shown}");
    let table = succeed(&bridge.output(&["operators", "list"]));
    assert!(table.contains("never") && table.contains("any"), "{table}");

    let rotated = bridge.json(&["operators", "rotate", "tom"]);
    assert_ne!(rotated["operator_token"], added["operator_token"]);
    succeed(&bridge.output(&["operators", "remove", "tom"]));
    let log = succeed(&bridge.output(&["audit", "export"]));
    for action in [
        "operator_added",
        "operator_changed",
        "operator_token_rotated",
        "operator_removed",
    ] {
        assert!(log.contains(action), "{action}: {log}");
    }
    for token in [&added, &rotated].map(|answer| answer["operator_token"].as_str().unwrap()) {
        assert!(!log.contains(token), "a token is in the audit log");
    }

    for (wrong, word) in [
        (["operators", "set", "admin"].as_slice(), "--role"),
        (
            &["operators", "add", "x", "--role", "boss"],
            "viewer, operator and admin",
        ),
        (&["operators", "add", "x", "--peers", "a b"], "pattern"),
        (&["operators", "add", "x", "--expires", "soon"], "not a duration"),
    ] {
        let (code, said) = fail(&bridge.output(wrong));
        assert_eq!(code, 2, "{wrong:?}: {said}");
        assert!(said.contains(word), "{wrong:?}: {said}");
    }
}

#[test]
fn a_killed_daemon_leaves_a_socket_that_the_next_one_replaces() {
    let bridge = BridgeSite::init();
    bridge.run().kill();
    assert!(bridge.dir.path().join("admin.sock").exists());
    assert_eq!(bridge.json(&["status"])["daemon_running"], false);
    let daemon = bridge.run();
    wait_for("the daemon answers", || {
        (bridge.json(&["status"])["daemon_running"] == json!(true)).then_some(())
    });
    assert!(daemon.stop().success());
    assert!(!bridge.dir.path().join("admin.sock").exists());
}

#[test]
fn a_directory_that_cannot_be_looked_into_is_not_said_to_be_empty() {
    let bridge = BridgeSite::init();
    let elsewhere = bridge.dir.path().join("elsewhere").display().to_string();
    let (_, said) = fail(&bridge.output(&["peers", "list", "--state-dir", &elsewhere]));
    assert!(said.contains(&elsewhere), "which one is not told: {said}");
    // As root sees everything, a file where a directory should be takes the place of one that is closed.
    let closed = bridge.dir.path().join("closed");
    std::fs::write(&closed, "").unwrap();
    let closed = closed.display().to_string();
    for command in [&["peers", "list"][..], &["invite", "--name", "x"], &["run"]] {
        let (code, said) = fail(&bridge.output(&[command, &["--state-dir", &closed]].concat()));
        assert_eq!(code, 1, "{said}");
        assert!(!said.contains("init") && said.contains(&closed), "{said}");
    }
}

#[test]
fn an_invitation_that_cannot_be_made_says_what_to_change() {
    let bridge = BridgeSite::init();
    for (ttl, shown) in [("0s", "0s"), ("9999d", "9999d")] {
        let (code, said) = fail(&bridge.output(&["invite", "--name", "x", "--ttl", ttl]));
        assert_eq!(code, 4);
        assert!(
            said.contains(&format!("lives from 1m to 366d, not {shown}")),
            "{said}"
        );
    }
    let state = bridge.dir.path().join("without-url").display().to_string();
    succeed(&bridge.output(&["init", "--state-dir", &state]));
    let (code, said) = fail(&bridge.output(&["invite", "--name", "x", "--state-dir", &state]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("public.url"), "{said}");
}

#[test]
fn a_registry_that_others_may_read_is_warned_of() {
    let bridge = BridgeSite::init();
    assert!(!bridge.run().log_text().contains("chmod 600"));
    let registry = bridge.dir.path().join("state/registry.redb");
    std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o644)).unwrap();
    let daemon = bridge.run();
    assert!(daemon.log_text().contains("chmod 600"), "{}", daemon.log_text());
}

#[test]
fn a_client_with_a_certificate_of_another_authority_is_found_in_the_log() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let stranger = authority::Authority::new("another parent's").client("fed:shop-17");
    let (certificate, key) = (bridge.dir.path().join("c.pem"), bridge.dir.path().join("c.key"));
    std::fs::write(&certificate, stranger.certificate).unwrap();
    std::fs::write(&key, stranger.key).unwrap();
    let url = format!("{}/api/v1/system/federation_api/trust_bundle", bridge.url());
    for _ in 0..4 {
        let curl = std::process::Command::new("curl")
            .args(["-sS", &url, "--cacert"])
            .arg(&bridge.ca_file)
            .arg("--cert")
            .arg(&certificate)
            .arg("--key")
            .arg(&key)
            .output();
        let Ok(output) = curl else {
            println!("SKIPPED: curl is not installed");
            return;
        };
        fail(&output);
    }
    let refused = "a client's certificate was refused";
    let log = wait_for("all four are noted", || {
        let log = daemon.log_text();
        (log.matches(refused).count() == 4).then_some(log)
    });
    let warned: Vec<_> = log
        .lines()
        .filter(|line| line.contains(refused) && line.to_ascii_lowercase().contains("warn"))
        .collect();
    assert_eq!(
        warned.len(),
        2,
        "one source is told of twice a minute: {warned:?}"
    );
    assert!(
        warned[0].contains("127.0.0.1") && warned[0].contains("not issued by a CA that is trusted here"),
        "{warned:?}"
    );
}

#[test]
fn backups_of_a_directory_follow_each_other_and_the_oldest_go() {
    let bridge = BridgeSite::init();
    let directory = bridge.dir.path().join("backups");
    let into = directory.to_str().unwrap().to_owned();
    let (code, said) = fail(&bridge.output(&["backup", "--into", &into]));
    assert_eq!(code, 1);
    assert!(said.contains("name a directory that is there"), "{said}");
    std::fs::create_dir(&directory).unwrap();
    for file in [
        "registry-2024-05-17T031500Z.redb",
        "registry-2024-05-18T031500Z.redb",
        "notes.txt",
    ] {
        std::fs::write(directory.join(file), "x").unwrap();
    }
    let made = succeed(&bridge.output(&["backup", "--into", &into, "--keep", "2"]));
    assert!(made.contains("1 earlier"), "{made}");
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(
        (&*names[0], &*names[1]),
        ("notes.txt", "registry-2024-05-18T031500Z.redb")
    );
    assert!(made.contains(&names[2]), "{made}");
    let newest = directory.join(&names[2]);
    succeed(&bridge.output(&["restore", newest.to_str().unwrap()]));
    for wrong in [
        &["backup"][..],
        &["backup", "/nowhere/x", "--keep", "2"],
        &["backup", "--into", &into, "--keep", "0"],
        &["backup", "/nowhere/x", "--into", &into],
    ] {
        assert_eq!(fail(&bridge.output(wrong)).0, 2, "{wrong:?}");
    }
}

#[test]
fn a_backup_is_made_beside_the_daemon_and_restored_without_it() {
    let bridge = BridgeSite::init();
    let file = bridge.dir.path().join("backup.redb");
    let file = file.to_str().unwrap();
    let (code, _) = fail(&bridge.output(&["backup", file, "--state-dir", "/nowhere"]));
    assert_eq!(code, 3);
    let daemon = bridge.run();
    bridge.invite("shop-17");
    let made = succeed(&bridge.output(&["backup", file]));
    let authority = bridge.json(&["ca", "show"])["fingerprint"].clone();
    assert!(made.contains(authority.as_str().unwrap()), "{made}");
    assert!(made.contains("not sealed"), "{made}");
    assert_eq!(
        std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (code, said) = fail(&bridge.output(&["backup", file]));
    assert_eq!(code, 1);
    assert!(said.contains("already"), "{said}");
    bridge.invite("shop-18");
    let (code, said) = fail(&bridge.output(&["restore", file]));
    assert_eq!(code, 1);
    assert!(said.contains("in use by"), "{said}");
    assert!(daemon.stop().success());
    let (_, said) = fail(&bridge.output(&["restore", "/etc/hostname"]));
    assert!(said.contains("is not a store"), "{said}");
    let beside = [("POWERNODE_HOST_BRIDGE_PLATFORM_URL", "http://127.0.0.1:9")];
    let mut wrong = bridge.command(&["restore", file]);
    let (_, said) = fail(&wrong.envs(beside).output().unwrap());
    assert!(said.contains("platform"), "{said}");

    let restored = succeed(&bridge.output(&["restore", file]));
    assert!(restored.contains("registry.redb.before"), "{restored}");
    let _daemon = bridge.run();
    assert_eq!(bridge.json(&["ca", "show"])["fingerprint"], authority);
    assert!(bridge.json(&["peers", "show", "shop-17"])["id"].is_string());
    let (code, _) = fail(&bridge.output(&["peers", "show", "shop-18"]));
    assert_eq!(code, 4);
}

/// A bridge whose registry is that of a backup, the box that this knows as `shop-17`, and the one that has replaced
/// it since. None of them runs.
fn replaced_after_the_backup() -> (BridgeSite, SatelliteSite, SatelliteSite) {
    let bridge = BridgeSite::init();
    let file = bridge.dir.path().join("backup.redb");
    let file = file.to_str().unwrap();
    let daemon = bridge.run();
    let before = SatelliteSite::new();
    succeed(&before.join(&bridge.join_code("shop-17")));
    succeed(&bridge.output(&["backup", file]));
    succeed(&bridge.output(&["peers", "suspend", "shop-17", "--reason", "a new box"]));
    let minted = bridge.json(&["token", "mint", "shop-17"]);
    let after = SatelliteSite::new();
    succeed(&after.join(minted["join_code"].as_str().unwrap()));
    assert!(daemon.stop().success());
    succeed(&bridge.output(&["restore", file]));
    (bridge, before, after)
}

#[test]
fn a_box_is_readmitted_by_the_fingerprint_that_it_shows_before_it_comes() {
    let (bridge, before, after) = replaced_after_the_backup();

    let status = after.status();
    let shown = status["certificate"]["fingerprint"].as_str().unwrap().to_owned();
    assert!(succeed(&after.output(&["status"])).contains(&shown));
    let readmit = |named: &str| bridge.output(&["peers", "readmit", "shop-17", "--fingerprint", named]);
    let (_, said) = fail(&readmit(&shown));
    assert!(said.contains("no host-bridge runs"), "{said}");
    let _daemon = bridge.run();
    assert_eq!(fail(&readmit("sha256:1234")).0, 2);
    let another = format!("sha256:{}", "0".repeat(64));
    let said = succeed(&readmit(&another));
    assert!(said.contains("when the box comes with it"), "{said}");

    // One that was named wrongly lets nobody in, and the box that is known stays in.
    let running = before.run();
    // As the box sees it: the bridge holds the tunnel of a killed one for a while.
    let is_in = |site: &SatelliteSite| {
        wait_for("the box has a tunnel", || {
            (site.status()["link"]["state"] == "connected").then_some(())
        });
    };
    is_in(&before);
    running.kill();
    let running = after.run();
    let turned = wait_for("the new box is turned away", || {
        let peer = bridge.json(&["peers", "show", "shop-17"]);
        let turned = &peer["turned_away"];
        turned.is_object().then(|| turned.clone())
    });
    assert_eq!(turned["certificate"], shown, "what the operator compares");
    assert!(succeed(&bridge.output(&["peers", "show", "shop-17"])).contains(&shown));
    running.kill();
    let running = before.run();
    is_in(&before);
    running.kill();

    let said = succeed(&readmit(&shown.to_uppercase().replace("SHA256:", "")));
    assert!(said.contains("when the box comes with it"), "{said}");
    let running = after.run();
    is_in(&after);
    running.kill();
    let _running = before.run();
    wait_for("the box before is turned away", || {
        let peer = bridge.json(&["peers", "show", "shop-17"]);
        peer["turned_away"].is_object().then_some(())
    });
}

#[test]
fn a_restored_registry_tells_whom_it_does_not_know_any_more() {
    let (bridge, before, after) = replaced_after_the_backup();

    let _daemon = bridge.run();
    let running = after.run();
    let turned = wait_for("the new box is turned away", || {
        let turned = bridge.json(&["peers", "show", "shop-17"])["turned_away"].clone();
        turned["why"].as_str().map(str::to_owned)
    });
    assert!(turned.contains("rejoin"), "{turned}");
    let table = succeed(&bridge.output(&["peers", "list"]));
    assert!(table.contains("turned away"), "{table}");
    let has_a_tunnel = || {
        let peer = bridge.json(&["peers", "show", "shop-17"]);
        (peer["tunnel"].is_object() && peer["turned_away"].is_null()).then_some(())
    };
    running.kill();
    let running = before.run();
    wait_for("the one that it knows has a tunnel", has_a_tunnel);
    let (code, said) = fail(&bridge.output(&["peers", "readmit", "shop-17"]));
    assert_eq!(code, 4);
    assert!(said.contains("no key"), "{said}");
    running.kill();

    // The operator says that the new box is the right one; then the old one is not, whatever it has.
    let running = after.run();
    wait_for("the new box is turned away", || {
        let peer = bridge.json(&["peers", "show", "shop-17"]);
        peer["turned_away"].is_object().then_some(())
    });
    succeed(&bridge.output(&["peers", "readmit", "shop-17"]));
    running.kill();
    let running = after.run();
    wait_for("the readmitted box has a tunnel", has_a_tunnel);
    running.kill();
    let _running = before.run();
    wait_for("the box before is turned away", || {
        let peer = bridge.json(&["peers", "show", "shop-17"]);
        peer["turned_away"].is_object().then_some(())
    });
    succeed(&bridge.output(&["peers", "suspend", "shop-17", "--reason", "moving"]));
    let (_, said) = fail(&bridge.output(&["peers", "readmit", "shop-17"]));
    assert!(said.contains("suspended"), "{said}");
}
