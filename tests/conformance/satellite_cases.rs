//! The real satellite with a platform that answers in every way that was observed (contract section 11), and in
//! some that were not: it becomes a member where it can, and says what to do where it cannot.

use std::collections::VecDeque;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use super::parents::Sidecar;
use super::platform::{Canned, Form};
use super::support::{Running, SatelliteSite, fail, run_with_input, succeed, wait_for};

const ACCEPT: &str = "/accept";
const HEARTBEAT: &str = "/heartbeat";

/// More than any answer to an accept has.
const HUGE_BYTES: usize = 8 * 1024 * 1024;

impl Sidecar {
    fn join(&self, satellite: &SatelliteSite, token: &str) -> Output {
        let (url, ca) = (self.bridge.url(), self.bridge.ca_file.display().to_string());
        let arguments = ["--parent-url", &url, "--ca-file", &ca, "--token-stdin"];
        run_with_input(satellite.join_command(&arguments), token)
    }

    /// The token of a new peer of this name.
    fn propose(&self, name: &str) -> String {
        self.platform.book().propose(name).1
    }

    /// A satellite that is a member and runs.
    pub(super) fn member(&self, name: &str) -> (SatelliteSite, Running) {
        let satellite = SatelliteSite::new();
        succeed(&self.join(&satellite, &self.propose(name)));
        let running = satellite.run();
        is_active(&satellite);
        (satellite, running)
    }

    /// Heartbeats that the platform has taken from the peer of this name.
    fn heartbeats(&self, name: &str) -> usize {
        self.platform.book().named(name).heartbeats
    }
}

fn is_active(satellite: &SatelliteSite) -> Value {
    wait_for("the satellite is active", || {
        let status = satellite.status();
        (status["link"]["state"] == "connected" && status["peer"]["status"] == "active").then_some(status)
    })
}

#[test]
fn every_published_form_of_an_answer_makes_a_member() {
    let side = Sidecar::start();
    for (form, name) in [
        (Form::Wrapped, "wrapped"),
        (Form::Bare, "bare"),
        (Form::Odd, "odd"),
    ] {
        side.platform.book().form = form;
        let (satellite, running) = side.member(name);
        let status = satellite.status();
        let id = status["peer"]["id"].as_str().unwrap();
        assert_eq!(id, id.to_ascii_lowercase(), "one form of an id");
        assert!(side.platform.book().peers.contains_key(id));
        assert!(status["heartbeat"]["last_error"].is_null(), "{status}");
        assert!(running.stop().success());
    }
}

#[test]
fn refusals_of_an_accept_are_told_in_the_parents_words_and_with_advice() {
    let side = Sidecar::start();
    let body = |error: &str| json!({ "success": false, "error": error }).to_string();
    for (status, error) in [
        (401, "acceptance_token not recognized or expired"),
        (422, "Unsupported contract_version 1; supported: [2]"),
        (422, "accept transition failed: cannot accept from revoked"),
    ] {
        let satellite = SatelliteSite::new();
        let token = side.propose("refused");
        side.platform
            .book()
            .answer_next(ACCEPT, Canned::new(status, body(error)));
        let (code, said) = fail(&side.join(&satellite, &token));
        assert_eq!(code, 4, "{said}");
        assert!(said.contains(error), "{said}");
        assert_eq!(satellite.status()["state"], "refused");
    }
}

#[test]
fn a_certificate_that_could_not_be_signed_is_a_failure_with_its_reason() {
    let side = Sidecar::start();
    let satellite = SatelliteSite::new();
    let (id, token) = side.platform.book().propose("unsigned");
    let body = json!({ "data": {
        "peer_id": id, "status": "enrolled", "peer_kind": "platform", "contract_version_agreed": 1,
        "accepted_at": "2026-11-01T10:00:00Z", "handshake_at": "2026-11-01T10:00:00Z",
        "warnings": ["federation_csr_signing_failed: the signing key is offline"],
    } });
    side.platform
        .book()
        .answer_next(ACCEPT, Canned::new(200, body.to_string()));
    let (code, said) = fail(&side.join(&satellite, &token));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("the signing key is offline"), "{said}");
}

#[test]
fn an_accept_whose_answer_was_cut_is_known_as_such() {
    let side = Sidecar::start();
    let satellite = SatelliteSite::new();
    let token = side.propose("cut");
    let cut = Canned {
        done: true,
        cut: true,
        ..Canned::new(200, r#"{"success":true,"data":{"peer_id""#)
    };
    side.platform.book().answer_next(ACCEPT, cut);
    // The platform has taken the token; the same request again is refused, and that is no mystery.
    let (code, said) = fail(&side.join(&satellite, &token));
    assert_eq!(code, 4, "{said}");
    assert_eq!(side.platform.book().named("cut").accepts, 1);
    assert!(said.contains("lost"), "{said}");
}

#[test]
fn slow_and_broken_answers_cost_a_try_and_no_token() {
    let side = Sidecar::start();
    let slow = Canned {
        delay: Duration::from_secs(2),
        done: true,
        ..Canned::new(504, "")
    };
    for (name, canned) in [
        ("broken", Canned::new(500, "<html>")),
        ("no JSON", Canned::new(502, "Bad Gateway")),
        (
            "busy",
            Canned {
                headers: vec![("retry-after", "1".to_owned())],
                ..Canned::new(503, r#"{"error":"busy"}"#)
            },
        ),
    ] {
        let satellite = SatelliteSite::new();
        let token = side.propose(name);
        side.platform.book().answer_next(ACCEPT, canned);
        succeed(&side.join(&satellite, &token));
        assert_eq!(side.platform.book().named(name).accepts, 1, "{name}");
    }
    // A gateway that gave up on a parent that had done it.
    let satellite = SatelliteSite::new();
    let token = side.propose("slow");
    side.platform.book().answer_next(ACCEPT, slow);
    let (code, said) = fail(&side.join(&satellite, &token));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("lost"), "{said}");
}

#[test]
fn a_huge_answer_is_no_parents_and_is_not_read_to_its_end() {
    let side = Sidecar::start();
    let satellite = SatelliteSite::new();
    let token = side.propose("huge");
    let huge = format!(r#"{{"success":true,"data":"{}"}}"#, "x".repeat(HUGE_BYTES));
    side.platform.book().answer_next(ACCEPT, Canned::new(200, huge));
    let (code, said) = fail(&side.join(&satellite, &token));
    assert_eq!(code, 4, "{said}");
    assert!(
        said.contains("longer than") && said.contains("the key of this box is kept"),
        "{said}"
    );
    succeed(&side.join(&satellite, &token));
}

#[test]
fn redirects_are_followed_on_the_parents_own_host_alone() {
    let side = Sidecar::start();
    let redirect = |to: String| Canned {
        headers: vec![("location", to)],
        ..Canned::new(307, "")
    };
    let own = format!("{}/api/v1/system/federation_api/accept", side.bridge.url());
    for to in [own, "/api/v1/system/federation_api/accept".to_owned()] {
        let satellite = SatelliteSite::new();
        let token = side.propose("moved");
        side.platform.book().answer_next(ACCEPT, redirect(to));
        succeed(&side.join(&satellite, &token));
    }
    for to in [
        "https://elsewhere.example.com/accept".to_owned(),
        format!("http://127.0.0.1:{}/accept", side.bridge.port),
        "//elsewhere.example.com/accept".to_owned(),
    ] {
        let satellite = SatelliteSite::new();
        let token = side.propose("away");
        side.platform.book().answer_next(ACCEPT, redirect(to.clone()));
        let (code, said) = fail(&side.join(&satellite, &token));
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("redirects to") && said.contains(&to), "{said}");
    }
}

#[test]
fn every_heartbeat_discloses_who_is_responsible_and_a_child_that_leaves_says_so() {
    let side = Sidecar::start();
    let (satellite, mut running) = side.member("shop");
    let disclosed = |of: &Value| {
        let disclosure = &of["disclosure"];
        assert_eq!(disclosure["operator_contact"], "ops@example.com", "{of}");
        assert_eq!(disclosure["location"], "DE", "{of}");
        assert!(
            disclosure["release"]
                .as_str()
                .is_some_and(|tag| tag.starts_with('v')),
            "{of}"
        );
    };
    let declared = side.platform.book().named("shop").capabilities.clone();
    disclosed(&declared);
    assert!(
        declared["left"].is_null() && declared["tunnel"].is_object(),
        "{declared}"
    );

    // No request of the contract ends a peering, so the last heartbeat says it, and the owner what is left to do.
    let said = succeed(&satellite.output(&["leave", "--yes", "--reason", "the shop moves"]));
    assert!(
        said.contains("was told") && said.contains("ask them to revoke peer"),
        "{said}"
    );
    let declared = side.platform.book().named("shop").capabilities.clone();
    disclosed(&declared);
    assert_eq!(declared["left"]["reason"], "the shop moves");
    assert_eq!(declared["services"], json!([]));
    assert!(
        declared["tunnel"].is_null(),
        "nothing is declared that is not so: {declared}"
    );
    assert!(running.wait().success());
    wait_for("the host-bridge has noted it", || {
        let noted = succeed(&side.bridge.output(&["audit", "export"]));
        (noted.contains(r#""left""#) && noted.contains("the shop moves")).then_some(())
    });
    // Its keys are gone, its log is there.
    let log = succeed(&satellite.output(&["audit", "export"]));
    assert!(log.contains("the shop moves"), "{log}");
}

/// Sends heartbeats until one is taken.
fn heard_again(side: &Sidecar, running: &Running) {
    let before = side.heartbeats("shop");
    running.signal("HUP");
    wait_for("a heartbeat is taken", || {
        (side.heartbeats("shop") > before).then_some(())
    });
}

/// Lets the next heartbeats be answered so, one after the other, and proves that the one after them is taken.
fn survives(answers: impl IntoIterator<Item = Canned>) {
    let side = Sidecar::start();
    let (satellite, running) = side.member("shop");
    for canned in answers {
        side.platform.book().answer_next(HEARTBEAT, canned);
        running.signal("HUP");
        wait_for("the answer was given", || {
            side.platform
                .book()
                .next
                .get(HEARTBEAT)
                .is_none_or(VecDeque::is_empty)
                .then_some(())
        });
    }
    heard_again(&side, &running);
    is_active(&satellite);
    assert!(running.stop().success());
}

#[test]
fn heartbeats_survive_a_parent_at_fault() {
    survives([
        Canned::new(
            500,
            r#"{"success":false,"error":"Something went wrong","code":"INTERNAL_ERROR"}"#,
        ),
        Canned::new(200, "{}"),
        Canned::new(200, "not JSON"),
        Canned::new(
            422,
            r#"{"success":false,"error":"Data residency is too long","code":"VALIDATION_ERROR"}"#,
        ),
    ]);
}

#[test]
fn heartbeats_survive_what_comes_slowly_in_part_or_without_end() {
    let huge = format!(r#"{{"success":true,"data":"{}"}}"#, "x".repeat(HUGE_BYTES));
    survives([
        Canned {
            cut: true,
            ..Canned::new(200, r#"{"success":true,"data":{"status""#)
        },
        Canned {
            delay: Duration::from_secs(1),
            ..Canned::new(504, "")
        },
        Canned::new(200, huge),
        Canned {
            headers: vec![("location", "https://elsewhere.example.com/heartbeat".to_owned())],
            ..Canned::new(307, "")
        },
    ]);
}

#[test]
fn a_later_parents_heartbeats_are_understood_and_a_suspension_is_believed() {
    let side = Sidecar::start();
    let (satellite, running) = side.member("shop");
    // A parent of a later version, whose answers have more in them.
    side.platform.book().form = Form::Odd;
    heard_again(&side, &running);
    is_active(&satellite);

    side.platform.book().named("shop").status = "suspended".to_owned();
    running.signal("HUP");
    wait_for("the suspension is believed", || {
        (satellite.status()["peer"]["status"] == "suspended").then_some(())
    });
    side.platform.book().named("shop").status = "active".to_owned();
    running.signal("HUP");
    is_active(&satellite);
}
