//! How sessions end that do not come to their end: the other side is told why, and both note it.

use std::net::TcpStream;
use std::thread;

use super::*;

/// The last session to `service` that a side has noted as closed, once it has.
fn closed(log: impl Fn() -> String, service: &str) -> Value {
    wait_for("the end is noted", || {
        let mut rows = audit(&log());
        rows.retain(|row| row["action"] == "service_closed" && row["object"] == service);
        // Those before have come to their end.
        rows.pop().filter(|row| row["outcome"] != "done")
    })
}

impl Site {
    fn closed_on_both(&self, service: &str) -> [Value; 2] {
        let bridge = closed(|| succeed(&self.bridge.output(&["audit", "export"])), service);
        let satellite = closed(|| succeed(&self.satellite.output(&["audit", "export"])), service);
        [bridge, satellite]
    }
}

/// Says everything back and breaks off when more than a greeting comes.
fn breaking_server() -> String {
    server(|mut stream| {
        let look_for = |stream: &TcpStream, count: usize| {
            let mut seen = [0; 16];
            while stream.peek(&mut seen).is_ok_and(|got| got < count) {
                thread::yield_now();
            }
        };
        look_for(&stream, 5);
        let _ = stream.write_all(b"hello");
        // What is not read makes the system reset the connection.
        look_for(&stream, 6);
    })
}

#[test]
fn a_session_that_the_satellite_ends_says_why_to_its_user() {
    let site = Site::start();
    site.publish("breaks", &breaking_server(), &[]);
    site.publish("going", &echo_server(), &[]);

    let mut session = open_session(&mut site.bridge.command(&["connect", "shop-17", "breaks"]));
    session.stdin.as_mut().unwrap().write_all(b"more").unwrap();
    let (code, said) = ended(session);
    assert_eq!(code, 1, "{said}");
    let words = "the service's program broke the connection off";
    assert!(said.contains(words), "{said}");
    let [bridge, satellite] = site.closed_on_both("breaks");
    assert_eq!(
        (&bridge["outcome"], &satellite["outcome"]),
        (&"failed".into(), &"failed".into())
    );

    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "going"]));
    succeed(&site.satellite.output(&["services", "withdraw", "going"]));
    let (code, said) = ended(session);
    assert_eq!(code, 1, "{said}");
    let words = "shop-17 has ended the session: the service was withdrawn";
    assert!(said.contains(words), "{said}");
    let [bridge, satellite] = site.closed_on_both("going");
    assert_eq!(
        (&bridge["outcome"], &satellite["outcome"]),
        (&"cut".into(), &"cut".into())
    );

    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "echo"]));
    succeed(
        &site
            .satellite
            .output(&["emancipate", "--reason", "sold", "--yes"]),
    );
    let (code, said) = ended(session);
    assert_eq!(code, 1, "{said}");
    let words = "shop-17 has ended the session: the grant was revoked";
    assert!(said.contains(words), "{said}");
    let [bridge, satellite] = site.closed_on_both("echo");
    assert_eq!(bridge["outcome"], "cut", "{bridge}");
    assert!(bridge.to_string().contains("the grant was revoked"), "{bridge}");
    assert!(satellite.to_string().contains("sold"), "{satellite}");
}

#[test]
fn the_satellite_is_told_who_ended_a_session_on_the_other_side() {
    let site = Site::start();
    let session = open_session(&mut site.bridge.command(&["connect", "shop-17", "echo"]));
    let list = site.bridge.json(&["sessions", "list"]);
    let id = list["data"][0]["id"].as_str().unwrap();
    succeed(&site.bridge.output(&["sessions", "cut", id]));
    let (code, said) = ended(session);
    assert!(code == 1 && said.contains("local cut the session"), "{said}");
    let [_, satellite] = site.closed_on_both("echo");
    assert_eq!(satellite["outcome"], "cut", "{satellite}");
    assert!(
        satellite.to_string().contains("an operator cut the session"),
        "{satellite}"
    );
}
