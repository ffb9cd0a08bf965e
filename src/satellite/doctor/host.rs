//! What the box itself offers: clock, routes, socket buffers, disk, permissions. Reading is kept
//! apart from judging, so that every judgement is tested without the box that deserves it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::base::check::Check;
use crate::base::time::{ClockDoubt, TrustedTime};

/// Socket buffers that the QUIC rung wants, in bytes: a burst of 170 ms at 100 Mbit/s.
const SOCKET_BUFFER_WANTED_BYTES: u64 = 2 * 1024 * 1024;

/// Free space below which a write may soon fail, in bytes: the store, its second copy and the
/// room that a rewrite needs, several times over.
const FREE_SPACE_WARN_BYTES: u64 = 16 * 1024 * 1024;

/// Free space below which a rewrite of the store fails, in bytes.
const FREE_SPACE_FAIL_BYTES: u64 = 2 * 1024 * 1024;

/// The smallest MTU over which QUIC works (RFC 9000, section 14), in bytes of an IP packet.
const MTU_MIN_BYTES: u32 = 1_280;

/// Most interfaces that are told of: a box with containers may have hundreds.
const INTERFACES_MAX: usize = 8;

/// Addresses to which no packet is sent: only the way to them is asked for. Both are of the
/// documentation ranges (RFC 5737, RFC 3849).
const FAR_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const FAR_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);

/// Whether the clock can be believed.
pub fn clock(time: TrustedTime) -> Check {
    const NAME: &str = "clock";
    let advice =
        "set the clock or start NTP; until then the last time told by the parent is used for certificates";
    match time.doubt {
        None => Check::ok(
            NAME,
            format!("{} UTC, not contradicted by anything known", time.now),
        ),
        Some(doubt @ (ClockDoubt::BehindBuild | ClockDoubt::BehindParent)) => {
            Check::warn(NAME, doubt.to_string(), advice)
        }
    }
}

/// The addresses from which this box would send to the far side, by protocol family.
pub fn outbound_addresses() -> (Option<IpAddr>, Option<IpAddr>) {
    (outbound(FAR_V4), outbound(FAR_V6))
}

fn outbound(far: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match far {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Connecting a UDP socket asks for the route and sends nothing.
    socket.connect(far).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Whether there is a way out at all.
pub fn default_route(outbound: (Option<IpAddr>, Option<IpAddr>)) -> Check {
    const NAME: &str = "default route";
    match outbound {
        (None, None) => Check::fail(
            NAME,
            "none, neither for IPv4 nor for IPv6",
            "connect the box to a network: no address from DHCP, or a missing gateway, are the usual reasons",
        ),
        (v4, v6) => {
            let ways: Vec<String> = [("IPv4", v4), ("IPv6", v6)]
                .into_iter()
                .filter_map(|(family, address)| Some(format!("{family} from {}", address?)))
                .collect();
            Check::ok(NAME, ways.join(", "))
        }
    }
}

/// Whether the kernel gives sockets the buffers that QUIC needs.
pub fn socket_buffers() -> Check {
    let limit = |name: &str| {
        std::fs::read_to_string(Path::new("/proc/sys/net/core").join(name))
            .ok()
            .and_then(|text| text.trim().parse().ok())
    };
    judge_socket_buffers(limit("rmem_max"), limit("wmem_max"))
}

fn judge_socket_buffers(receive: Option<u64>, send: Option<u64>) -> Check {
    const NAME: &str = "UDP buffers";
    let (Some(receive), Some(send)) = (receive, send) else {
        return Check::warn(
            NAME,
            "the kernel's limits cannot be read",
            format!("make sure that sockets may have {SOCKET_BUFFER_WANTED_BYTES} bytes"),
        );
    };
    let finding = format!(
        "receive at most {} KiB, send at most {} KiB",
        receive / 1024,
        send / 1024
    );
    if receive.min(send) >= SOCKET_BUFFER_WANTED_BYTES {
        Check::ok(NAME, finding)
    } else {
        Check::warn(
            NAME,
            finding,
            format!(
                "fast transfers over QUIC will lose packets; set net.core.rmem_max and net.core.wmem_max to \
                 {SOCKET_BUFFER_WANTED_BYTES} (the package's sysctl file does)"
            ),
        )
    }
}

/// Whether the interfaces let packets of QUIC's size pass, loopback left out.
pub fn interfaces() -> Vec<Check> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_up = read("operstate").is_some_and(|state| state.trim() == "up");
        if name != "lo" && is_up && found.len() < INTERFACES_MAX {
            let mtu = read("mtu").and_then(|mtu| mtu.trim().parse().ok());
            found.push(interface_mtu(mtu, &name));
        }
    }
    found
}

fn interface_mtu(mtu_bytes: Option<u32>, interface: &str) -> Check {
    const NAME: &str = "MTU";
    match mtu_bytes {
        None => Check::ok(NAME, format!("{interface} tells none")),
        Some(mtu) if mtu >= MTU_MIN_BYTES => Check::ok(NAME, format!("{mtu} bytes on {interface}")),
        Some(mtu) => Check::fail(
            NAME,
            format!("{mtu} bytes on {interface}"),
            format!(
                "raise it to at least {MTU_MIN_BYTES}: QUIC and IPv6 need that; TLS over TCP works with less"
            ),
        ),
    }
}

/// Free space where the state is kept, in bytes.
pub fn free_space(directory: &Path) -> io::Result<u64> {
    let existing = directory
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(existing)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether there is room for the state.
pub fn judge_free_space(found: io::Result<u64>, directory: &Path) -> Check {
    const NAME: &str = "disk";
    let place = directory.display();
    let advice = "free some space: without it renewals and joins cannot be stored";
    match found {
        Err(error) => Check::warn(
            NAME,
            format!("free space of {place} cannot be told: {error}"),
            "check that the file system is mounted",
        ),
        Ok(bytes) => {
            let finding = format!("{} MiB free for {place}", bytes / 1024 / 1024);
            if bytes < FREE_SPACE_FAIL_BYTES {
                Check::fail(NAME, finding, advice)
            } else if bytes < FREE_SPACE_WARN_BYTES {
                Check::warn(NAME, finding, advice)
            } else {
                Check::ok(NAME, finding)
            }
        }
    }
}

/// Whether the state directory is the daemon's alone.
pub fn permissions(directory: &Path) -> Check {
    const NAME: &str = "permissions";
    let place = directory.display();
    match std::fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(NAME, format!("{place} is not there yet; the first run makes it"))
        }
        Err(error) => Check::warn(
            NAME,
            format!("{place} cannot be looked at: {error}"),
            "run doctor as root or as the satellite's user",
        ),
        Ok(found) => judge_permissions(directory, found.permissions().mode(), found.uid()),
    }
}

fn judge_permissions(directory: &Path, mode: u32, owner: u32) -> Check {
    const NAME: &str = "permissions";
    let place = directory.display();
    let mode = mode & 0o777;
    let others = mode & 0o077;
    if others == 0 {
        Check::ok(NAME, format!("{place} is user {owner}'s alone (mode {mode:04o})"))
    } else {
        Check::fail(
            NAME,
            format!("{place} is open to others (mode {mode:04o})"),
            format!("private keys are in it: chmod 0700 {place}"),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::check::Verdict;
    use crate::base::time::UnixTime;

    #[test]
    fn each_way_out_is_named_and_none_is_a_failure() {
        let v4: Option<IpAddr> = Some("192.0.2.7".parse().unwrap());
        assert_eq!(default_route((v4, None)).finding, "IPv4 from 192.0.2.7");
        assert_eq!(default_route((None, None)).verdict, Verdict::Fail);
    }

    #[test]
    fn a_clock_in_doubt_is_a_warning_because_the_parents_time_helps() {
        let now = UnixTime::from_seconds(1_800_000_000);
        let time = |doubt| TrustedTime { now, doubt };
        assert_eq!(clock(time(None)).verdict, Verdict::Ok);
        assert_eq!(clock(time(Some(ClockDoubt::BehindBuild))).verdict, Verdict::Warn);
    }

    #[test]
    fn small_buffers_are_a_warning_that_names_the_setting() {
        let small = judge_socket_buffers(Some(212_992), Some(4 << 20));
        assert_eq!(small.verdict, Verdict::Warn);
        assert!(small.advice.unwrap().contains("net.core.rmem_max"));
        assert_eq!(
            judge_socket_buffers(Some(4 << 20), Some(4 << 20)).verdict,
            Verdict::Ok
        );
        assert_eq!(judge_socket_buffers(None, None).verdict, Verdict::Warn);
    }

    #[test]
    fn a_full_disk_fails_and_a_nearly_full_one_warns() {
        let verdict = |bytes| judge_free_space(Ok(bytes), Path::new("/x")).verdict;
        assert_eq!(verdict(1024), Verdict::Fail);
        assert_eq!(verdict(8 << 20), Verdict::Warn);
        assert_eq!(verdict(1 << 30), Verdict::Ok);
        assert!(free_space(Path::new("/not/there/yet")).unwrap() > 0);
    }

    #[test]
    fn a_directory_that_others_may_read_fails() {
        let directory = Path::new("/var/lib/x");
        assert_eq!(judge_permissions(directory, 0o40700, 998).verdict, Verdict::Ok);
        let open = judge_permissions(directory, 0o40750, 998);
        assert_eq!(open.verdict, Verdict::Fail);
        assert!(open.advice.unwrap().contains("chmod 0700 /var/lib/x"));
        assert_eq!(permissions(Path::new("/not/there/yet")).verdict, Verdict::Ok);
    }

    #[test]
    fn a_small_mtu_fails() {
        assert_eq!(interface_mtu(Some(1_500), "eth0").verdict, Verdict::Ok);
        assert_eq!(interface_mtu(Some(576), "ppp0").verdict, Verdict::Fail);
    }
}
