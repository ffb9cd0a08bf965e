//! `forward`: what it says when the bridge or the satellite is not there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::{Child, Command};

use super::support::{self, BridgeSite, fail, wait_for};
use super::{Site, spawn};

const FORWARD: [&str; 5] = ["forward", "shop-17", "echo", "--listen", "127.0.0.1:0"];

/// Where it says that it listens.
pub(super) fn address_of(forward: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    line.split([' ', ',']).nth(2).unwrap().to_owned()
}

#[test]
fn a_bridge_that_is_not_there_or_does_not_know_the_caller_is_said_at_once() {
    let bridge = BridgeSite::init();
    for udp in [&[][..], &["--udp"]] {
        let output = bridge.output(&[&FORWARD[..], udp].concat());
        assert!(output.stdout.is_empty(), "it listens for nothing");
        let (code, said) = fail(&output);
        assert!(
            code == 5 && said.contains("no daemon answers at"),
            "{code}: {said}"
        );
    }
    let _daemon = bridge.run();
    let token = bridge.dir.path().join("token");
    std::fs::write(&token, "not-a-token").unwrap();
    let mut command = bridge.command(&FORWARD);
    command
        .args(["--bridge", &bridge.url(), "--token-file"])
        .arg(&token);
    let (code, said) = fail(&command.output().unwrap());
    assert!(
        code == 5 && said.contains("not issued by a CA that is trusted here") && said.contains("--ca-file"),
        "{code}: {said}"
    );
    let mut command = bridge.command(&FORWARD);
    command
        .args(["--bridge", &bridge.url(), "--ca-file"])
        .arg(&bridge.ca_file);
    let output = command.arg("--token-file").arg(token).output().unwrap();
    assert!(output.stdout.is_empty(), "it listens for nothing");
    let (code, said) = fail(&output);
    assert!(
        code == 4 && said.contains("operator token is not known"),
        "{code}: {said}"
    );
}

#[test]
fn a_bridge_that_goes_later_is_said_of_each_connection() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let mut forward = spawn(&mut bridge.command(&FORWARD));
    let address = address_of(&mut forward);
    assert!(daemon.stop().success());
    let mut told = BufReader::new(forward.stderr.take().unwrap()).lines();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "nothing comes");
        let said = told.next().unwrap().unwrap();
        assert!(
            said.contains("connection of 127.0.0.1:") && said.contains("no daemon answers at"),
            "{said}"
        );
    }
    forward.kill().unwrap();
    forward.wait().unwrap();
}

#[test]
fn a_bridge_that_goes_later_is_said_once_and_not_of_each_packet() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let mut forward = spawn(bridge.command(&FORWARD).arg("--udp"));
    let address = address_of(&mut forward);
    let told = BufReader::new(forward.stderr.take().unwrap()).lines();
    let (tell, told_so_far) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in told.map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Each packet that finds no flow tries to open one.
    let says = |what: &str| {
        wait_for(what, || {
            client.send_to(b"anybody there?", &address).unwrap();
            told_so_far.try_recv().ok()
        })
    };
    assert!(daemon.stop().success());
    let said = says("the bridge is said to be gone");
    assert!(
        said.contains("packets of 127.0.0.1:") && said.contains("no daemon answers at"),
        "{said}"
    );
    // Each of them has a flow of its own.
    for _ in 0..20 {
        let another = UdpSocket::bind("127.0.0.1:0").unwrap();
        another.send_to(b"anybody there?", &address).unwrap();
    }
    let _daemon = bridge.run();
    let said = says("something else is in the way");
    assert!(said.contains("shop-17"), "the next that it says: {said}");
    forward.kill().unwrap();
    forward.wait().unwrap();
}

#[test]
fn forward_goes_on_when_the_satellite_has_been_away() {
    let mut site = Site::start();
    let mut forward =
        spawn(
            &mut site
                .bridge
                .command(&["forward", "shop-17", "echo", "--listen", "127.0.0.1:0"]),
        );
    let address = address_of(&mut forward);
    let through = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        let mut got = Vec::new();
        let sent = stream
            .write_all(b"ping")
            .and_then(|()| stream.shutdown(Shutdown::Write));
        let read = sent.and_then(|()| stream.read_to_end(&mut got));
        read.is_ok() && got == b"ping"
    };
    assert!(through());
    assert!(site.agent.take().unwrap().stop().success());
    wait_for("the satellite is away", || (!through()).then_some(()));
    site.agent = Some(site.satellite.run());
    wait_for("the forwarded port works again", || through().then_some(()));
    let stopped = Command::new("kill")
        .args(["-TERM", &forward.id().to_string()])
        .status();
    assert!(stopped.unwrap().success());
    assert!(wait_for("forward has ended", || forward.try_wait().unwrap()).success());
    let mut said = String::new();
    forward.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("shop-17 is not connected"), "{said}");

    let (code, said) = fail(
        &site
            .bridge
            .output(&["forward", "shop-17", "echo", "--listen", "0.0.0.0:0"]),
    );
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--expose"), "{said}");
}
