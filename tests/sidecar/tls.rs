//! A platform that speaks TLS itself, and whom the host-bridge takes for it.

use http::Method;
use serde_json::Value;

use super::authority::{Authority, Identity};
use super::platform::PEER;
use super::support::wait_for;
use super::{API, Answer, Sidecar, request};

impl Sidecar {
    /// A heartbeat of the peer's, over HTTPS.
    fn beat(&self, peer: &Identity) -> Answer {
        let heartbeat = request(Method::POST, &format!("{API}/heartbeat"), &[], b"{}".to_vec());
        self.asked(Some(peer), heartbeat)
    }

    /// Starts the platform anew, so that no connection is left, with another certificate.
    fn platform_shows(&mut self, identity: &Identity) {
        self.platform.go_away();
        self.platform.show(identity);
        self.platform.come_back();
    }
}

#[test]
fn the_platform_is_known_by_its_authority_its_name_and_its_time() {
    let authority = Authority::new("Platform Server CA");
    let files = tempfile::tempdir().unwrap();
    let trusted = files.path().join("platform-server-ca.pem");
    std::fs::write(&trusted, &authority.pem).unwrap();
    let mut side = Sidecar::start_secure(&trusted);
    let peer = side.platform.authority().client(&format!("fed:{PEER}"));
    let good = authority.server(&["localhost"]);
    let ended = -time::Duration::days(1);
    let elsewhere = Authority::new("Platform Server CA").server(&["localhost"]);
    let refused = [
        (elsewhere, "not issued by a CA that is trusted here"),
        (authority.server(&["platform.example.com"]), "not for `localhost`"),
        (authority.server_for(&["localhost"], ended), "expired at"),
    ];
    for (shown, why) in &refused {
        side.platform_shows(shown);
        let answer = side.beat(&peer);
        // Nothing was sent, so it may be sent again.
        assert_eq!(answer.status, 503, "{why}");
        assert!(answer.headers.contains_key("retry-after"));
        assert!(
            answer.text().contains("PLATFORM_UNREACHABLE"),
            "{}",
            answer.text()
        );
        let status = side.bridge.json(&["status"]);
        let found = status["platform"]["found"]["error"].as_str().unwrap_or_default();
        assert!(
            found.contains(why) && found.contains("platform.server_ca_file"),
            "{found}"
        );
        assert!(side.platform.book().seen.is_empty(), "{why}");
    }
    side.platform_shows(&good);
    assert_eq!(side.beat(&peer).status, 200);
    assert_eq!(
        side.platform.last("heartbeat").unwrap().header("host"),
        Some(side.platform_name().as_str())
    );

    // Another authority takes over: the file is read again, and the old one counts no more.
    let next = Authority::new("Next Server CA");
    std::fs::write(&trusted, &next.pem).unwrap();
    side.platform_shows(&next.server(&["localhost"]));
    wait_for("the new authority is trusted", || {
        (side.beat(&peer).status == 200).then_some(())
    });
    side.platform_shows(&good);
    let answer: Value = serde_json::from_slice(&side.beat(&peer).body).unwrap();
    assert_eq!(answer["code"], "PLATFORM_UNREACHABLE");
}
