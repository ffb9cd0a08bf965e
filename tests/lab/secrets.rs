//! What a core file of a joined satellite would show: neither the token nor the join code.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use crate::federation::{Federation, SOON, contains, pieces};
use crate::process::Process;

/// All that a process has in writable memory. What cannot be read is no memory of the process's.
fn writable_memory(process: &Process) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
    let mut memory = File::open(format!("/proc/{}/mem", process.pid())).unwrap();
    let mut content = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(permissions)) = (words.next(), words.next()) else {
            continue;
        };
        let (begin, end) = range.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        if permissions.starts_with("rw") && memory.seek(SeekFrom::Start(begin)).is_ok() {
            let _ = (&memory).take(end - begin).read_to_end(&mut content);
        }
    }
    content
}

fn assert_forgotten(satellite: &Process, secrets: &[String], known: &str) {
    let content = writable_memory(satellite);
    // Otherwise the search would prove nothing.
    assert!(contains(&content, known.as_bytes()), "the memory was not read");
    for secret in secrets {
        assert!(
            !contains(&content, secret.as_bytes()),
            "the memory of a joined satellite holds {}…",
            &secret[..6]
        );
    }
}

#[test]
fn a_joined_satellite_has_forgotten_its_join_code() {
    let Some(mut federation) = Federation::open("core_of_join") else {
        return;
    };
    federation.set_satellite("LOG_LEVEL", "trace");
    federation.set_bridge("LOG_LEVEL", "trace");
    let bridge = federation.run_bridge();
    let satellite = federation.run_satellite();
    let invitation = federation.invite();
    let joined = federation.join(&invitation, &[]);
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    federation.wait_active(SOON);

    let mut secrets = pieces(&invitation.join_code);
    secrets.extend(pieces(&invitation.join_code.to_ascii_uppercase()));
    secrets.push(invitation.token);
    assert_forgotten(&satellite, &secrets, &federation.url());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}

#[test]
fn a_joined_satellite_has_forgotten_its_payload() {
    let Some(mut federation) = Federation::open("core_of_payload") else {
        return;
    };
    federation.set_satellite("LOG_LEVEL", "trace");
    federation.set_bridge("LOG_LEVEL", "trace");
    let bridge = federation.run_bridge();
    let invitation = federation.invite();
    federation.lay_payload(&invitation);
    let satellite = federation.run_satellite();
    federation.wait_active(SOON);
    assert_forgotten(&satellite, &[invitation.token], &federation.url());
    federation.assert_nothing_told(&[&bridge, &satellite]);
}
