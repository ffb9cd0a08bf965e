//! Who the platform takes: what it is asked, and what follows from what it says.

use super::Sidecar;
use super::platform::PEER;
use super::support::{succeed, wait_for};

#[test]
fn a_suspended_satellite_whose_heartbeats_are_not_answered_loses_its_tunnel_all_the_same() {
    let side = Sidecar::start_with(&[("POWERNODE_HOST_BRIDGE_PLATFORM_ASK_AFTER", "5s")]);
    let (satellite, running) = side.satellite();
    {
        let mut book = side.platform.book();
        book.heartbeats_fail = true;
        book.suspended = true;
    }
    side.wait_peer("the tunnel is closed", |peer| {
        (peer["standing"] == "refused").then_some(())
    });
    // What was asked, it was in the satellite's name and by nothing that changes anything.
    let asked = side.platform.last("trust_bundle").unwrap();
    super::assert_vouched(&asked, PEER);
    let peer = side.peer().unwrap();
    assert_eq!(peer["question_answer"]["http_status"], 401);
    let shown = succeed(&side.bridge.output(&["peers", "show", PEER]));
    assert!(
        shown.contains("refused: HTTP 401 when it was asked about it"),
        "{shown}"
    );
    wait_for("the satellite knows that it is suspended", || {
        (satellite.status()["peer"]["status"] == "suspended").then_some(())
    });
    let noted = || succeed(&side.bridge.output(&["audit", "export"]));
    wait_for("the log tells who has decided", || {
        let noted = noted();
        (noted.contains("peer_suspended") && noted.contains("platform")).then_some(())
    });

    {
        let mut book = side.platform.book();
        book.heartbeats_fail = false;
        book.suspended = false;
    }
    running.signal("HUP");
    side.wait_peer("the satellite is taken again", |peer| {
        (peer["standing"] == "taken").then_some(())
    });
    wait_for("the log tells of that, too", || {
        noted().contains("peer_resumed").then_some(())
    });
    // Asked about, and found good, it keeps its tunnel.
    let before = side.peer().unwrap()["tunnel"]["session"].clone();
    let asked = || side.peer().unwrap()["question_answer"]["http_status"] == 200;
    side.platform.book().heartbeats_fail = true;
    wait_for("the platform was asked again", || asked().then_some(()));
    assert_eq!(side.peer().unwrap()["tunnel"]["session"], before);
    assert!(running.stop().success());
}
