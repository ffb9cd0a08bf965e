//! Services that speak UDP, through both real programs: packets of every size, over QUIC and over
//! TLS on TCP.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use support::{BridgeSite, DEADLINE, SatelliteSite, succeed, wait_for};

/// Answers each packet with itself, until the test ends.
fn echo() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut packet = vec![0; 65_536];
        while let Ok((count, from)) = socket.recv_from(&mut packet) {
            let _ = socket.send_to(&packet[..count], from);
        }
    });
    port
}

/// A running `forward`, ended with the test.
struct Forward(Child);

impl Forward {
    /// Where it listens.
    fn start(mut command: Command) -> (Self, SocketAddr) {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let address = line.split(' ').nth(2).unwrap().parse().unwrap();
        (Self(child), address)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn packets_pass(transport: &str) {
    let bridge = BridgeSite::init();
    let _daemon = bridge.run();
    let mut satellite = SatelliteSite::new();
    satellite.variables = vec![("POWERNODE_SATELLITE_TUNNEL_TRANSPORT", transport.into())];
    succeed(&satellite.join(&bridge.join_code("shop-17")));
    let _running = satellite.run();
    let address = format!("127.0.0.1:{}", echo());
    succeed(&satellite.output(&["services", "publish", "echo", "--protocol", "udp", &address]));
    wait_for("the satellite is connected", || {
        (satellite.status()["link"]["state"] == "connected").then_some(())
    });

    let (_forward, at) =
        Forward::start(bridge.command(&["forward", "shop-17", "echo", "--udp", "--listen", "127.0.0.1:0"]));
    let clients: Vec<UdpSocket> = (0..3)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(at).unwrap();
            client
                .set_read_timeout(Some(std::time::Duration::from_secs(2)))
                .unwrap();
            client
        })
        .collect();
    for size in [1, 512, 1_400, 1_500, 9_000, 65_507] {
        for (number, client) in clients.iter().enumerate() {
            let mut packet = vec![u8::try_from(number).unwrap(); size];
            packet[0] = u8::try_from(size % 251).unwrap();
            // A packet may be lost, as UDP's may: a program asks again.
            let heard = (0..DEADLINE.as_secs()).any(|_| {
                client.send(&packet).unwrap();
                let mut answer = vec![0; 65_536];
                client
                    .recv(&mut answer)
                    .is_ok_and(|count| answer[..count] == packet[..])
            });
            assert!(heard, "{size} bytes of client {number}");
        }
    }
    let sessions = bridge.json(&["sessions", "list"]);
    assert_eq!(
        sessions["data"].as_array().unwrap().len(),
        3,
        "one a client: {sessions}"
    );
}

#[test]
fn packets_pass_over_quic() {
    packets_pass("quic");
}

#[test]
fn packets_pass_over_tcp() {
    packets_pass("tls");
}
