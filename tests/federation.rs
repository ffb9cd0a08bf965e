//! Both real programs on loopback, from invitation to active and through what can go wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::{Value, json};
use support::{BridgeSite, SatelliteSite, fail, joined, run_with_input, succeed, wait_for};

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

#[test]
fn from_a_join_code_to_active_and_an_answer_through_the_tunnel() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    assert_eq!(
        bridge.join_code("shop-17").len(),
        bridge.join_code("shop-18").len()
    );
    assert_eq!(bridge.peer_status("shop-17"), "proposed");

    let satellite = SatelliteSite::new();
    assert_eq!(satellite.status()["state"], "not_invited");
    let said = succeed(
        &satellite.join(
            bridge.json(&["token", "mint", "shop-17"])["join_code"]
                .as_str()
                .unwrap(),
        ),
    );
    assert!(said.contains("joined"), "{said}");
    bridge.wait_status("shop-17", "active");

    let running = satellite.run();
    let status = wait_for("the satellite reports an active membership", || {
        let status = satellite.status();
        (status["link"]["state"] == "connected" && status["peer"]["status"] == "active").then_some(status)
    });
    assert_eq!(status["state"], "joined");
    assert_eq!(status["certificate"]["standing"], "valid");
    let answer = wait_for("the satellite answers", || {
        let output = bridge.output(&["request", "shop-17", CATALOG]);
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["data"]["offerings"], json!([]));

    // Nobody else on this machine needed the token, and it works no second time.
    assert!(running.stop().success());
    assert!(daemon.stop().success());
}

fn has_script(test: &str) -> bool {
    let there = Command::new("script").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: {test} because there is no script");
    }
    there
}

/// Runs it with a terminal into which a line is typed, to its end. What both of its outputs have said is one.
fn on_a_terminal(command: &Command, line: &str) -> (ExitStatus, String) {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    terminal.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut terminal = terminal
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: nobody presses Ctrl-D.
    let mut typed = terminal.stdin.take().unwrap();
    writeln!(typed, "{line}").unwrap();
    let ended = wait_for("it ends by itself", || terminal.try_wait().unwrap());
    let mut said = String::new();
    terminal.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    (ended, said)
}

#[test]
fn whoever_waits_at_a_terminal_hears_at_once_why_there_is_no_answer() {
    if !has_script("whoever_waits_at_a_terminal_hears_at_once_why_there_is_no_answer") {
        return;
    }
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let code = bridge.join_code("shop-17");
    assert!(daemon.stop().success());
    for daemon_runs in [false, true] {
        let satellite = SatelliteSite::new();
        let _running = daemon_runs.then(|| satellite.run());
        let mut join = satellite.join_command(&["-"]);
        join.args(["--timeout", "3s"]);
        let (ended, said) = on_a_terminal(&join, &code);
        assert!(!ended.success(), "{said}");
        assert_eq!(said.matches("No answer yet").count(), 1, "{said}");
        assert!(said.contains("within 3 s; the last try: "), "{said}");
    }
}

#[test]
fn a_code_pasted_on_a_terminal_ends_with_its_line() {
    if !has_script("a_code_pasted_on_a_terminal_ends_with_its_line") {
        return;
    }
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let code = bridge.join_code("shop-17");
    let satellite = SatelliteSite::new();
    let (ended, said) = on_a_terminal(&satellite.join_command(&["-"]), &code);
    assert!(ended.success(), "{said}");
    assert!(said.contains("Paste the join code"), "{said}");
    assert!(said.contains("joined "), "{said}");
}

#[test]
fn a_join_waits_for_a_daemon_that_has_just_been_started() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let satellite = SatelliteSite::new();
    // What a daemon does before it answers at its socket: it holds the state.
    let elsewhere = satellite.dir.path().join("other.sock");
    let mut daemon = satellite.command(&["run"]);
    daemon.env("POWERNODE_SATELLITE_ADMIN_SOCKET", &elsewhere);
    let running = satellite.run_as(daemon, &elsewhere);
    let mut join = satellite
        .join_command(&["-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let code = bridge.join_code("shop-17");
    join.stdin.take().unwrap().write_all(code.as_bytes()).unwrap();
    let mut told = BufReader::new(join.stderr.take().unwrap()).lines();
    let waits = told.find(|line| line.as_ref().unwrap().contains("waiting for up to"));
    assert!(waits.is_some(), "it did not say that it waits");
    std::os::unix::fs::symlink(&elsewhere, satellite.dir.path().join("admin.sock")).unwrap();
    // Its log must be read, or it could not write on.
    let rest: Vec<_> = told.map(Result::unwrap).collect();
    assert!(join.wait().unwrap().success(), "{rest:?}");
    bridge.wait_status("shop-17", "active");
    assert!(running.stop().success());
}

#[test]
fn a_restart_of_either_side_goes_on_where_it_was() {
    let (bridge, daemon, satellite) = joined();
    let peer_id = satellite.status()["peer"]["id"].clone();
    let running = satellite.run();
    wait_for("connected", || {
        (satellite.status()["link"]["state"] == "connected").then_some(())
    });
    daemon.kill();
    let daemon = bridge.run();
    wait_for("answers after the bridge was killed", || {
        bridge
            .output(&["request", "shop-17", CATALOG])
            .status
            .success()
            .then_some(())
    });
    running.kill();
    let _running = satellite.run();
    wait_for("answers after the satellite was killed", || {
        bridge
            .output(&["request", "shop-17", CATALOG])
            .status
            .success()
            .then_some(())
    });
    assert_eq!(satellite.status()["peer"]["id"], peer_id);
    assert_eq!(bridge.peers().len(), 1);
    drop(daemon);
}

#[test]
fn a_join_that_is_killed_at_any_moment_ends_in_one_active_peer() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    for millis in [5u64, 20, 40, 60, 80, 100, 130, 170, 230, 300] {
        let name = format!("box-{millis}");
        let code = bridge.join_code(&name);
        let satellite = SatelliteSite::new();
        let mut child = satellite
            .join_command(&["-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), code.as_bytes()).unwrap();
        let _ = child.wait_timeout(std::time::Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        // The operator pastes the same code again.
        let output = satellite.join(&code);
        assert!(
            output.status.success() || String::from_utf8_lossy(&output.stderr).contains("already joined"),
            "{millis}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let _running = satellite.run();
        bridge.wait_status(&name, "active");
    }
    assert_eq!(bridge.peers().len(), 10);
}

#[test]
fn the_runbooks_line_works_word_for_word() {
    let (bridge, _daemon, _satellite) = joined();
    let url = bridge.url();
    let script = format!(
        "curl -sS --fail --cacert {} -H 'Authorization: Bearer {}' {url}/api/v1/system/sdwan/federation_peers \
         | jq -r '.data[] | \"\\(.id) \\(.remote_instance_url) \\(.status) \\(.last_heartbeat_at)\"'",
        bridge.ca_file.display(),
        bridge.operator_token,
    );
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", &script])
        .output()
        .unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("command not found") {
        println!("SKIPPED: curl or jq is not installed");
        return;
    }
    let line = succeed(&output);
    assert!(line.contains(" active 20"), "{line}");
}

#[test]
fn refusals_have_words_and_exit_codes() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let code = bridge.join_code("shop-17");
    let satellite = SatelliteSite::new();

    let (exit, said) = fail(&satellite.join(&code[..code.len() - 7]));
    assert_eq!(exit, 2, "{said}");
    assert!(said.contains("changed or cut"), "{said}");

    let output = run_with_input(satellite.command(&["join", "-"]), &code);
    let (exit, said) = fail(&output);
    assert_eq!(exit, 2, "{said}");
    assert!(
        said.contains("--contact") && said.contains("--location"),
        "{said}"
    );

    let newer = bridge.json(&["token", "mint", "shop-17"]);
    let (exit, said) = fail(&satellite.join(&code));
    assert_eq!(exit, 4, "{said}");
    assert!(said.contains("new invitation"), "{said}");
    assert!(!said.contains(newer["acceptance_token"].as_str().unwrap()));

    assert!(daemon.stop().success());
    let other = SatelliteSite::new();
    let mut command = other.join_command(&["-", "--timeout", "3s"]);
    command.env("RUST_BACKTRACE", "1");
    let (exit, said) = fail(&run_with_input(command, newer["join_code"].as_str().unwrap()));
    assert_eq!(exit, 5, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let shown = other.output(&["status"]).stdout;
    assert!(
        String::from_utf8(shown)
            .unwrap()
            .contains("joining (not running)"),
        "{said}"
    );

    let (exit, _) = fail(&SatelliteSite::new().output(&["status"]));
    assert_eq!(exit, 3);
}

#[test]
fn suspended_means_no_tunnel_and_revoked_means_the_end() {
    let (bridge, _daemon, satellite) = joined();
    let running = satellite.run();
    wait_for("connected", || {
        (satellite.status()["link"]["state"] == "connected").then_some(())
    });
    succeed(&bridge.output(&["peers", "suspend", "shop-17", "--reason", "maintenance"]));
    wait_for("suspended at the satellite", || {
        (satellite.status()["peer"]["status"] == "suspended").then_some(())
    });
    let shown = succeed(&satellite.output(&["status"]));
    assert!(shown.contains("after it is resumed"), "{shown}");
    succeed(&bridge.output(&["peers", "resume", "shop-17"]));
    // The satellite asks again patiently; a reload asks at once.
    running.signal("HUP");
    bridge.wait_status("shop-17", "active");
    succeed(&bridge.output(&["peers", "revoke", "shop-17", "--reason", "sold"]));
    wait_for("revoked at the satellite", || {
        let status = satellite.status();
        (status["peer"]["status"] == "revoked" && status["link"]["state"] == "off").then_some(())
    });
    let shown = succeed(&satellite.output(&["status"]));
    assert!(shown.contains("rejoin -"), "{shown}");
    let examined = satellite.output(&["doctor", "--json"]).stdout;
    let examined: Value = serde_json::from_slice(&examined).unwrap();
    let membership = examined["checks"].as_array().unwrap().iter();
    let membership = membership.into_iter().find(|check| check["name"] == "membership");
    assert_eq!(membership.unwrap()["verdict"], "warn", "{examined}");
}

#[test]
fn a_broken_store_is_replaced_by_the_second_copy() {
    let (bridge, _daemon, satellite) = joined();
    let store = satellite.state_dir().join("satellite.redb");
    std::fs::write(&store, b"").unwrap();
    let running = satellite.run();
    bridge.wait_status("shop-17", "active");
    wait_for("an answer", || {
        bridge
            .output(&["request", "shop-17", CATALOG])
            .status
            .success()
            .then_some(())
    });
    assert!(
        satellite.status()["store"]["recovered"]
            .as_str()
            .unwrap()
            .contains("second copy")
    );
    assert!(running.stop().success());
}

#[test]
fn a_box_that_is_no_member_is_told_so_before_it_is_asked_who_runs_it() {
    let satellite = SatelliteSite::new();
    let rejoin = |code: &str| fail(&run_with_input(satellite.command(&["rejoin", "-"]), code));
    let (exit, said) = rejoin("pnjoin1nonsense");
    assert!(exit == 2 && said.contains("join code"), "{exit}: {said}");
    assert!(!said.contains("--contact"), "{said}");
    let bridge = BridgeSite::init();
    let (exit, said) = rejoin(&bridge.join_code("shop-17"));
    assert!(
        exit == 3 && said.contains("joined no parent yet"),
        "{exit}: {said}"
    );
}

#[test]
fn a_spawn_payload_is_found_and_used() {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let invitation = bridge.invite("vm-1");
    let satellite = SatelliteSite::new();
    let payload = json!({
        "parent_url": bridge.url(),
        "acceptance_token": invitation["acceptance_token"],
        "spawn_mode": "managed_child",
        "parent_peer_id": invitation["peer"]["id"],
        "contract_version": "v1",
    });
    std::fs::write(satellite.dir.path().join("payload.json"), payload.to_string()).unwrap();
    let mut command = satellite.command(&["run"]);
    command
        .env("POWERNODE_SATELLITE_PARENT_CA_FILE", &bridge.ca_file)
        .env(
            "POWERNODE_SATELLITE_DISCLOSURE_OPERATOR_CONTACT",
            "ops@example.com",
        )
        .env("POWERNODE_SATELLITE_DISCLOSURE_LOCATION", "DE");
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    bridge.wait_status("vm-1", "active");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// `Child::wait` with a limit, for a process that is killed afterwards whether it ended or not.
trait WaitTimeout {
    fn wait_timeout(&mut self, limit: std::time::Duration) -> bool;
}

impl WaitTimeout for std::process::Child {
    #[allow(clippy::disallowed_methods, reason = "the moment of a kill is real time")]
    fn wait_timeout(&mut self, limit: std::time::Duration) -> bool {
        let started = std::time::Instant::now();
        while started.elapsed() < limit {
            if self.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}

#[test]
fn a_rotated_authority_is_followed_by_the_word_of_the_one_before() {
    let (bridge, daemon, satellite) = joined();
    let running = satellite.run();
    bridge.wait_status("shop-17", "active");
    let code_of_before = bridge.join_code("shop-18");
    let rotated = bridge.json(&["ca", "rotate"]);
    assert_eq!(rotated["predecessor"]["in_use_by"], json!(["shop-17"]));
    let (_, again) = fail(&bridge.output(&["ca", "rotate"]));
    assert!(again.contains("under way"), "{again}");

    // It comes back with what it knew before, and hears of the new one in the answer to its heartbeat.
    running.kill();
    let running = satellite.run();
    let status = wait_for("both authorities are trusted", || {
        let status = satellite.status();
        let anchors = status["certificate"]["anchors"].as_array().map_or(0, Vec::len);
        (anchors == 2).then_some(status)
    });
    assert_eq!(status["heartbeat"]["last_error"], Value::Null);
    assert_eq!(
        status["certificate"]["anchors"][1]["fingerprint"],
        rotated["fingerprint"]
    );
    running.kill();
    daemon.kill();
    let _daemon = bridge.run();
    let running = satellite.run();
    bridge.wait_status("shop-17", "active");
    assert_eq!(
        satellite.status()["certificate"]["anchors"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );

    let late = SatelliteSite::new();
    succeed(&late.join(&code_of_before));
    let (_, refused) = fail(&bridge.output(&["ca", "retire"]));
    assert!(refused.contains("overlap"), "{refused}");
    succeed(&bridge.output(&["ca", "retire", "--force"]));
    let ca = bridge.json(&["ca", "show"]);
    assert_eq!(ca["predecessor"], Value::Null);
    assert_eq!(ca["fingerprint"], rotated["fingerprint"]);
    drop(running);
}

#[test]
fn equals_certify_themselves_and_give_no_operator_grant() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let satellite = SatelliteSite::new();
    let invited = bridge.json(&["invite", "--name", "equal", "--mode", "autonomous-peer"]);
    let code = invited["join_code"].as_str().unwrap().to_owned();
    assert!(code.starts_with("pnjoin2"), "{code}");
    succeed(&satellite.join(&code));
    let running = satellite.run();
    bridge.wait_status("equal", "active");
    let status = wait_for("connected", || {
        let status = satellite.status();
        (status["link"]["state"] == "connected").then_some(status)
    });
    assert_eq!(status["peer"]["spawn_mode"], "autonomous_peer");
    assert_eq!(status["certificate"]["self_issued"], true);
    assert_eq!(status["grants"]["active"], 0);

    // Its own authority is what the bridge knows it by, also after either side was killed.
    let bundle = "/api/v1/system/federation_api/trust_bundle";
    let served: Value =
        serde_json::from_str(&succeed(&bridge.output(&["request", "equal", bundle]))).unwrap();
    assert!(
        served["data"]["ca_bundle_pem"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    // It goes over to its next authority as soon as the bridge has fetched that, and both may be killed on the way.
    daemon.kill();
    let announced = succeed(&satellite.output(&["authority", "rotate", "--json"]));
    let announced: Value = serde_json::from_str(&announced).unwrap();
    assert_eq!(announced["succession"]["stage"], "announced");
    running.kill();
    let (_, refused) = fail(&satellite.output(&["authority", "rotate"]));
    assert!(refused.contains("under way since"), "{refused}");
    assert_eq!(satellite.status()["own_authority"], announced);
    let _daemon = bridge.run();
    let running = satellite.run();
    let status = wait_for("the new authority is in use", || {
        let status = satellite.status();
        (status["own_authority"]["succession"]["stage"] == "overlap").then_some(status)
    });
    let new = &announced["succession"]["other"]["fingerprint"];
    assert_eq!(&status["own_authority"]["issuing"]["fingerprint"], new);
    let served = || -> Value {
        serde_json::from_str(&succeed(&bridge.output(&["request", "equal", bundle]))).unwrap()
    };
    let count = |field: &Value| field.as_str().map(|pem| pem.matches("BEGIN CERTIFICATE").count());
    let both = served();
    assert_eq!(count(&both["data"]["ca_bundle_pem"]), Some(2));
    assert_eq!(count(&both["data"]["cross_certificates_pem"]), Some(1));
    succeed(&satellite.output(&["authority", "retire"]));
    assert_eq!(count(&served()["data"]["ca_bundle_pem"]), Some(1));
    bridge.wait_status("equal", "active");
    wait_for("connected again", || {
        (satellite.status()["link"]["state"] == "connected").then_some(())
    });
    succeed(&bridge.output(&["peers", "suspend", "equal", "--reason", "a look"]));
    wait_for("its tunnel is closed", || {
        (satellite.status()["link"]["state"] != "connected").then_some(())
    });
    drop(running);
}

#[test]
fn a_bare_token_rejoins_by_the_configured_trust_and_what_gets_no_answer_is_given_up() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let satellite = SatelliteSite::new();
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let peer = satellite.status()["peer"]["id"].clone();
    succeed(&bridge.output(&["peers", "suspend", "shop-17", "--reason", "rejoins"]));
    let minted = bridge.json(&["token", "mint", "shop-17"]);
    let token = minted["acceptance_token"].as_str().unwrap();
    // Who runs the box need not be said again.
    let rejoin = |more: &[&str]| {
        run_with_input(
            satellite.command(&[&["rejoin", "--token-stdin"], more].concat()),
            token,
        )
    };
    let (code, said) = fail(&rejoin(&[]));
    assert!(code == 2 && said.contains("--parent-url"), "{code}: {said}");

    // The system's roots do not know this parent: it gets no token.
    let url = bridge.url();
    let (code, said) = fail(&rejoin(&["--force", "--parent-url", &url, "--timeout", "2s"]));
    assert!(code == 5 && said.contains("rejoin --cancel"), "{code}: {said}");
    let (code, said) = fail(&rejoin(&["--force", "--parent-url", &url, "--timeout", "1s"]));
    assert!(code == 5, "it goes on from there: {code}: {said}");
    let status = satellite.status();
    assert_eq!((&status["peer"], &status["replaces"]), (&Value::Null, &peer));
    let given_up = succeed(&satellite.output(&["rejoin", "--cancel"]));
    assert!(given_up.contains("goes on as peer"), "{given_up}");
    let status = satellite.status();
    assert_eq!(
        (&status["peer"]["id"], &status["replaces"]),
        (&peer, &Value::Null)
    );
    let (_, said) = fail(&satellite.output(&["rejoin", "--cancel"]));
    assert!(said.contains("no rejoin is under way"), "{said}");

    let ca = bridge.ca_file.display().to_string();
    succeed(&rejoin(&["--force", "--parent-url", &url, "--ca-file", &ca]));
    let status = satellite.status();
    assert_eq!(status["peer"]["id"], peer);
    assert_eq!(status["peer"]["operator_contact"], "ops@example.com");
    drop(daemon);
}
