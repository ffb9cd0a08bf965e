//! Many at once: a thousand connections through one forwarded port, and readers who do not read.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{LONG, Site, resident_mebibytes};
use crate::federation::SOON;
use crate::wait::wait_timed;

const CONNECTIONS: usize = 1_000;

/// What most systems let a program open unless it asks for more.
const USUAL_OPEN_FILES: u64 = 1_024;

/// What each program may take for a thousand connections.
const RESIDENT_MAX_MEBIBYTES: u64 = 300;

/// What passes on each of them, beside a greeting.
const LOAD_BYTES: usize = 64 * 1024;

const STALLED: usize = 12;

/// What a reader gets who goes on after a pause: more than waits on the way.
const RESUMED_BYTES: usize = 32 * 1024 * 1024;

const READ_AT_ONCE: usize = 64 * 1024;

/// Bytes after which the source begins again; a prime, so that no block of the way's fits it.
const CYCLE: u8 = 251;

/// What the reader who reads gets.
const READ_BYTES: usize = 64 * 1024 * 1024;

/// A program on the box with a thread for each connection, on loopback.
fn serve(site: &Site, handle: fn(TcpStream) -> std::io::Result<()>) -> String {
    let lab = &site.federation.lab;
    let listener = lab.satellite.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever hangs up ends it.
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back)?;
    stream.shutdown(Shutdown::Write)
}

/// What the source sends, again and again: as many bytes as are read at once, from any byte of the cycle on.
fn cycles() -> Vec<u8> {
    (0..CYCLE)
        .collect::<Vec<_>>()
        .repeat(READ_AT_ONCE / usize::from(CYCLE) + 2)
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let cycles = cycles();
    loop {
        stream.write_all(&cycles)?;
    }
}

/// Reads on behind so many bytes of the source's; how many there were.
fn read_on(stream: &mut impl Read, behind: usize, cycles: &[u8]) -> usize {
    let mut buffer = vec![0; READ_AT_ONCE];
    let more = stream.read(&mut buffer).unwrap();
    assert!(more > 0, "it ended after {behind} bytes");
    let expected = &cycles[behind % usize::from(CYCLE)..][..more];
    assert!(buffer[..more] == *expected, "wrong bytes after {behind}");
    more
}

fn connect(site: &Site, to: SocketAddr) -> TcpStream {
    let connecting = || TcpStream::connect_timeout(&to, SOON);
    let stream = site.federation.lab.parent.enter(connecting).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

fn set_open_files(limit: Rlimit) {
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn a_thousand_connections_through_one_forwarded_port_echo_right() {
    // The programs find what they find on most systems; this one, which holds both ends, needs more.
    let allowed = getrlimit(Resource::Nofile);
    set_open_files(Rlimit {
        current: Some(USUAL_OPEN_FILES),
        ..allowed
    });
    let Some(site) = Site::open("thousand", &[]) else {
        return;
    };
    site.publish("echo", &serve(&site, echo), &["--max-connections", "1024"]);
    let forward = site.forward("echo", &[]);
    let processes = [
        ("host-bridge", &site.bridge),
        ("satellite", &site.satellite),
        ("forward", &forward.program),
    ];
    let before = processes.map(|(_, process)| resident_mebibytes(process));
    set_open_files(Rlimit {
        current: allowed.maximum,
        ..allowed
    });

    let open = || {
        let streams: Vec<_> = (0..CONNECTIONS)
            .map(|_| connect(&site, forward.address))
            .collect();
        for (number, mut stream) in streams.iter().enumerate() {
            write!(stream, "{number:08}").unwrap();
        }
        for (number, mut stream) in streams.iter().enumerate() {
            let mut back = [0; 8];
            let read = stream.read_exact(&mut back);
            assert!(
                read.is_ok() && back == *format!("{number:08}").as_bytes(),
                "connection {number}: {read:?}\n{}",
                forward.program.stderr()
            );
        }
        Some(streams)
    };
    let (streams, _) = wait_timed(&format!("{CONNECTIONS} connections have answered"), LONG, open);
    let all_at_once = || {
        std::thread::scope(|scope| {
            for mut stream in &streams {
                scope.spawn(move || {
                    let load = vec![7; LOAD_BYTES];
                    stream.write_all(&load).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
            }
            for (number, mut stream) in streams.iter().enumerate() {
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert!(
                    back == vec![7; LOAD_BYTES],
                    "connection {number}: {} bytes",
                    back.len()
                );
            }
        });
        Some(())
    };
    wait_timed("64 KiB on each have come back", LONG, all_at_once);
    for ((name, process), before) in processes.into_iter().zip(before) {
        let now = resident_mebibytes(process);
        println!("{name}: {before} MiB resident before, {now} MiB after {CONNECTIONS} connections");
        assert!(now < RESIDENT_MAX_MEBIBYTES, "{name}: {now} MiB");
    }
    assert_eq!(forward.program.stderr(), "");
    site.assert_well();
}

#[test]
fn readers_who_do_not_read_hold_nobody_up() {
    let Some(site) = Site::open("stalled", &[]) else {
        return;
    };
    site.publish("source", &serve(&site, source), &[]);
    let forward = site.forward("source", &[]);
    let cycles = cycles();
    let read = |what: &str| {
        let reading = || {
            let mut stream = connect(&site, forward.address);
            let mut count = 0;
            while count < READ_BYTES {
                count += read_on(&mut stream, count, &cycles);
            }
            Some(())
        };
        wait_timed(
            &format!("{} MiB are read {what}", READ_BYTES >> 20),
            LONG,
            reading,
        )
        .1
    };
    read("with nobody beside");
    let stalled: Vec<_> = (0..STALLED).map(|_| connect(&site, forward.address)).collect();
    for mut stream in &stalled {
        stream.read_exact(&mut [0]).unwrap();
    }
    read("beside readers who have stopped");
    // Nor are those lost who only pause.
    let (mut slow, mut count) = (&stalled[0], 1);
    while count < RESUMED_BYTES {
        count += read_on(&mut slow, count, &cycles);
    }
    for process in [&site.bridge, &site.satellite] {
        println!("{} MiB resident", resident_mebibytes(process));
    }
    site.assert_well();
}
