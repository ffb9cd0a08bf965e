//! The lab itself: if its router let packets in, or its processes lived on, every scenario would
//! prove less than it says.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::namespace::{Link, Namespace, remove_leftovers};
use crate::places::ALONE;
use crate::process::{finish, succeed};
use crate::topology::{
    Lab, PARENT_V4, PARENT_V6, ROUTER_WAN_V4, ROUTER_WAN_V6, SATELLITE_V4, SATELLITE_V6, json_file,
};
use crate::wait::wait_until;
use crate::{HOST_BRIDGE_BIN, SATELLITE_BIN};

/// Time in which anything in the lab happens; far longer than it takes, for busy machines.
const SOON: Duration = Duration::from_secs(20);

/// How long a packet is waited for that must not come. In the lab packets need microseconds.
const NEVER: Duration = Duration::from_millis(300);

fn listen(namespace: &Namespace, address: impl Into<IpAddr>) -> TcpListener {
    let address = SocketAddr::new(address.into(), 0);
    namespace.enter(|| TcpListener::bind(address)).unwrap()
}

fn connect(namespace: &Namespace, to: SocketAddr, at_most: Duration) -> std::io::Result<TcpStream> {
    namespace.enter(|| TcpStream::connect_timeout(&to, at_most))
}

fn udp(namespace: &Namespace, address: impl Into<IpAddr>) -> UdpSocket {
    let address = SocketAddr::new(address.into(), 0);
    let socket = namespace.enter(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

fn receives_nothing(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(NEVER)).unwrap();
    let outcome = socket.recv_from(&mut [0; 64]);
    socket.set_read_timeout(Some(SOON)).unwrap();
    outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn connections_leave_masqueraded() {
    let Some(lab) = Lab::open("connections_leave_masqueraded") else {
        return;
    };
    for (parent, seen) in [
        (IpAddr::from(PARENT_V4), IpAddr::from(ROUTER_WAN_V4)),
        (IpAddr::from(PARENT_V6), IpAddr::from(ROUTER_WAN_V6)),
    ] {
        let listener = listen(&lab.parent, parent);
        let mut dialled = connect(&lab.satellite, listener.local_addr().unwrap(), SOON).unwrap();
        let (mut accepted, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), seen, "the parent sees the router, not the satellite");
        dialled.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[test]
fn nothing_gets_inward() {
    let Some(lab) = Lab::open("nothing_gets_inward") else {
        return;
    };
    // Even a parent that knows the way is not let in.
    lab.parent
        .ip(&format!("route add 10.77.0.0/24 via {ROUTER_WAN_V4}"));
    lab.parent
        .ip(&format!("-6 route add fd77::/64 via {ROUTER_WAN_V6}"));
    for satellite in [IpAddr::from(SATELLITE_V4), IpAddr::from(SATELLITE_V6)] {
        let listener = listen(&lab.satellite, satellite);
        let target = listener.local_addr().unwrap();
        connect(lab.router.namespace(), target, SOON).expect("the listener is there");
        let inward = connect(&lab.parent, target, NEVER);
        assert_eq!(inward.unwrap_err().kind(), ErrorKind::TimedOut, "{target}");
    }
}

#[test]
fn a_udp_mapping_serves_its_own_flow_alone() {
    let Some(lab) = Lab::open("a_udp_mapping_serves_its_own_flow_alone") else {
        return;
    };
    let satellite = udp(&lab.satellite, SATELLITE_V4);
    let (known, stranger) = (udp(&lab.parent, PARENT_V4), udp(&lab.parent, PARENT_V4));
    satellite.send_to(b"out", known.local_addr().unwrap()).unwrap();
    let (text, mapped) = receive(&known);
    assert_eq!((text.as_str(), mapped.ip()), ("out", IpAddr::from(ROUTER_WAN_V4)));

    stranger.send_to(b"stranger", mapped).unwrap();
    known.send_to(b"back", mapped).unwrap();
    assert_eq!(
        receive(&satellite),
        ("back".to_owned(), known.local_addr().unwrap())
    );
    assert!(receives_nothing(&satellite));
}

#[test]
fn udp_can_be_blocked_while_tcp_goes_on() {
    let Some(lab) = Lab::open("udp_can_be_blocked_while_tcp_goes_on") else {
        return;
    };
    let (satellite, parent) = (udp(&lab.satellite, SATELLITE_V4), udp(&lab.parent, PARENT_V4));
    let to = parent.local_addr().unwrap();
    satellite.send_to(b"before", to).unwrap();
    assert_eq!(receive(&parent).0, "before");

    lab.router.block_udp();
    satellite.send_to(b"blocked", to).unwrap();
    wait_until("the router has dropped it", SOON, || {
        (lab.router.counted_packets() > 0).then_some(())
    });
    assert!(receives_nothing(&parent));
    let listener = listen(&lab.parent, PARENT_V4);
    connect(&lab.satellite, listener.local_addr().unwrap(), SOON).expect("TCP goes on");

    lab.router.clear_rules();
    satellite.send_to(b"after", to).unwrap();
    assert_eq!(receive(&parent).0, "after");
}

#[test]
fn a_router_that_forgets_its_flows_drops_what_comes_back() {
    let Some(lab) = Lab::open("a_router_that_forgets_its_flows_drops_what_comes_back") else {
        return;
    };
    let (satellite, parent) = (udp(&lab.satellite, SATELLITE_V4), udp(&lab.parent, PARENT_V4));
    satellite.send_to(b"out", parent.local_addr().unwrap()).unwrap();
    let (_, mapped) = receive(&parent);
    assert!(lab.router.flow_count() > 0);

    lab.router.forget_flows();
    assert_eq!(lab.router.flow_count(), 0);
    parent.send_to(b"lost", mapped).unwrap();
    assert!(receives_nothing(&satellite));

    satellite.send_to(b"again", parent.local_addr().unwrap()).unwrap();
    let (_, mapped) = receive(&parent);
    parent.send_to(b"found", mapped).unwrap();
    assert_eq!(receive(&satellite).0, "found");
}

#[test]
fn an_unplugged_cable_heals() {
    let Some(lab) = Lab::open("an_unplugged_cable_heals") else {
        return;
    };
    let unplug: [fn(&Lab, Link); 2] = [
        |lab, link| lab.router.set_satellite_link(link),
        |lab, link| lab.router.set_parent_link(link),
    ];
    for set_link in unplug {
        for parent in [IpAddr::from(PARENT_V4), IpAddr::from(PARENT_V6)] {
            let listener = listen(&lab.parent, parent);
            let to = listener.local_addr().unwrap();
            set_link(&lab, Link::Down);
            connect(&lab.satellite, to, NEVER).expect_err("the cable is out");
            set_link(&lab, Link::Up);
            wait_until("the cable carries again", SOON, || {
                connect(&lab.satellite, to, NEVER).ok()
            });
        }
    }
}

#[test]
fn programs_run_inside_with_their_output_in_files() {
    let Some(lab) = Lab::open("programs_run_inside_with_their_output_in_files") else {
        return;
    };
    let state = lab.directory("state");
    let mut shell = lab.satellite.command("sh");
    shell.current_dir(&state).args([
        "-c",
        "ip -json address show up0 > addresses.json; echo shown; echo ready >&2; exec sleep 600",
    ]);
    let mut first = lab.spawn("first", shell);
    first.wait_for_log("ready", SOON);
    assert_eq!(first.stdout(), "shown\n");
    let addresses = json_file(&state.join("addresses.json")).to_string();
    assert!(addresses.contains(&SATELLITE_V4.to_string()), "{addresses}");
    wait_until("the pid is the program's own", SOON, || {
        let command_line = fs::read_to_string(format!("/proc/{}/cmdline", first.pid())).unwrap();
        (command_line == "sleep\u{0}600\u{0}").then_some(())
    });

    first.terminate();
    assert_eq!(first.exit_within(SOON).signal(), Some(15));

    let mut shell = lab.satellite.command("sh");
    shell.args(["-c", "echo again >&2; exec sleep 600"]);
    let mut second = lab.spawn("first", shell);
    second.wait_for_log("again", SOON);
    assert!(
        second.stderr().starts_with("ready\n"),
        "logs of a restart are added"
    );
    assert!(second.is_running());
    second.kill_and_wait();
    assert!(!second.is_running());
}

#[test]
fn the_products_programs_start_inside() {
    let Some(lab) = Lab::open("the_products_programs_start_inside") else {
        return;
    };
    for (namespace, program) in [(&lab.satellite, SATELLITE_BIN), (&lab.parent, HOST_BRIDGE_BIN)] {
        let mut version = namespace.command(program);
        version.arg("--version");
        let code = finish(version).code;
        assert!((0..100).contains(&code), "{program}: {code}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let Some(lab) = Lab::open("nothing_is_left_behind") else {
        return;
    };
    let paths = [&lab.satellite, lab.router.namespace(), &lab.parent].map(Namespace::path);
    let directory = lab.directory("state");
    let mut sleep = lab.parent.command("sh");
    // A grandchild that nobody waits for, as a daemon that forks would leave it.
    sleep.args(["-c", "sleep 600 >/dev/null 2>&1 & echo $!"]);
    let orphan = succeed(sleep).stdout.trim().to_owned();
    let runs = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.starts_with(" Z"))
        })
    };
    assert!(runs(&orphan) && paths.iter().all(|path| path.exists()));
    drop(lab);
    assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    assert!(!directory.exists());
    wait_until("the orphan is gone", SOON, || (!runs(&orphan)).then_some(()));
}

#[test]
fn what_a_dead_run_left_is_removed_and_what_lives_stays() {
    let Some(lab) = Lab::open("what_a_dead_run_left_is_removed_and_what_lives_stays") else {
        return;
    };
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let leftover = Namespace::create_leftover(dead.id()).unwrap();
    assert!(leftover.path().exists());
    remove_leftovers();
    assert!(!leftover.path().exists());
    assert!(lab.satellite.path().exists());
}

#[test]
fn every_scenario_that_stands_alone_is_there() {
    let mut sources = String::new();
    for directory in ["tests/lab", "tests/lab/programs"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for name in ALONE {
        assert!(sources.contains(&format!("::open(\"{name}\"")), "{name}");
    }
}
