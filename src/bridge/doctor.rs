//! `doctor`: whether satellites would reach this host-bridge, found out by trying. Each check ends in a verdict, what
//! was found, and what to do about it. Changes nothing, and works beside the running daemon.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use serde_json::Value;

use super::daemon::tcp_listener;
use super::examination;
use super::registry::Books;
use super::settings::BridgeSettings;
use crate::base::check::Check;
use crate::contract::invitation::{ParentTrust, dial_addresses};
use crate::process::blocking;
use crate::process::clock::{BUILD_TIME, Clock};
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::secret_file;
use crate::process::config::ways::Ways;
use crate::process::surroundings;
use crate::reach::trial::{self, Standpoint};

/// Looks at everything. `health` is what the daemon tells of itself, if one runs, or why it does not.
pub async fn examine(config: &HostBridgeConfig, health: Result<Option<&Value>, &str>) -> Vec<Check> {
    let clock = Clock::start(BUILD_TIME);
    let mut checks = vec![surroundings::clock(clock.trusted())];
    let (kept, books) = {
        let (config, now) = (config.clone(), clock.trusted().now);
        blocking::run(move || {
            let directory = &config.state_dir;
            let mut checks = vec![
                surroundings::permissions(directory),
                surroundings::judge_free_space(surroundings::free_space(directory), directory),
            ];
            checks.extend(secret_file::checks(&config.secret_files));
            let (kept, books) = examination::examine(&config, now);
            checks.extend(kept);
            (checks, books)
        })
        .await
    };
    checks.extend(kept);
    checks.push(surroundings::socket_buffers());
    checks.push(daemon(health));
    let running = matches!(health, Ok(Some(_)));
    let tcp = config.listen_https.iter().map(|&address| {
        let free = tcp_listener(address).map(drop);
        listener("TCP", address, free, running)
    });
    let udp = config.listen_quic.iter().map(|&address| {
        let free = udp_socket(address).map(drop);
        listener("UDP", address, free, running)
    });
    checks.extend(tcp.chain(udp));
    if let Some(books) = books {
        checks.extend(ways_in(config, &books, running, &clock).await);
    }
    checks
}

fn daemon(health: Result<Option<&Value>, &str>) -> Check {
    const NAME: &str = "daemon";
    match health {
        Ok(Some(health)) if health["store_failing"] == true => Check::fail(
            NAME,
            "runs, but cannot write its registry",
            "free some space, or see why the disk is read-only; nothing has to be restarted",
        ),
        Ok(Some(health)) => Check::ok(
            NAME,
            format!(
                "runs; {} of {} peers connected",
                health["connected"], health["peer_count"]
            ),
        ),
        Ok(None) => Check::fail(
            NAME,
            "does not run",
            "start it (systemctl start powernode-host-bridge); its log says why where it ends",
        ),
        Err(why) => Check::fail(NAME, why, ""),
    }
}

/// Whether an address is taken by whom it should be; `free` is what became of taking it.
fn listener(kind: &str, address: SocketAddr, free: io::Result<()>, running: bool) -> Check {
    let name = format!("{kind} {address}");
    match free {
        // A port of the system's choice is another each time.
        Ok(()) if address.port() == 0 => Check::ok(name, "any port that is free"),
        Ok(()) if running => Check::fail(
            name,
            "nobody listens there",
            "the daemon was started with another configuration: restart it",
        ),
        Ok(()) => Check::ok(name, "free for the daemon"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && running => {
            Check::ok(name, "taken, as it should be")
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::fail(
            name,
            "taken by another process",
            format!("end that one (`ss -lp` names it), or set {}", key_of(kind)),
        ),
        Err(error) => Check::warn(
            name,
            format!("cannot be tried: {error}"),
            format!(
                "see whether this machine has the address, and this user may use the port; {} sets it",
                key_of(kind)
            ),
        ),
    }
}

fn key_of(kind: &str) -> &'static str {
    match kind {
        "TCP" => "listen.https",
        _ => "listen.quic",
    }
}

/// As the daemon takes tunnels: `[::]` stands for 0.0.0.0 on a machine without IPv6.
fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(address).or_else(|error| {
        if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port())).map_err(|_| error)
        } else {
            Err(error)
        }
    })
}

/// The addresses in join codes, dialled as a box without a certificate dials them.
async fn ways_in(config: &HostBridgeConfig, books: &Books, running: bool, clock: &Clock) -> Vec<Check> {
    const NAME: &str = "public address";
    let told = match books.ledger().public() {
        Ok(told) => told,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), "")],
    };
    let public = BridgeSettings::new(config.clone(), told).public;
    let Some(url) = &public.url else {
        return vec![Check::fail(
            NAME,
            "none is set, so that nobody can be invited",
            "set public.url in the configuration and restart",
        )];
    };
    let addresses = dial_addresses(&public.bridges, url);
    let named = addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let Books::Own(registry) = books else {
        let found = format!("{named}; not tried, since boxes know it by the platform's authorities");
        return vec![Check::ok(NAME, found)];
    };
    if !running {
        return vec![Check::ok(
            NAME,
            format!("{named}; not tried, since the daemon does not run"),
        )];
    }
    let mut checks = vec![Check::ok(NAME, named)];
    let trust = ParentTrust::Pinned(registry.authority().fingerprint());
    for bridge in &addresses {
        let (ways, mut seen) = (Ways::default(), trial::Seen::default());
        let tried = trial::examine(bridge, (&trust, &ways), Standpoint::Bridge, clock, &mut seen);
        checks.extend(Box::pin(tried).await);
    }
    checks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::check::Verdict;

    fn listens(free: Result<(), io::ErrorKind>, running: bool) -> Verdict {
        let address = SocketAddr::from(([192, 0, 2, 1], 8443));
        listener("TCP", address, free.map_err(io::Error::from), running).verdict
    }

    #[test]
    fn a_port_is_the_daemons_or_free_for_it() {
        assert_eq!(listens(Err(io::ErrorKind::AddrInUse), true), Verdict::Ok);
        assert_eq!(listens(Err(io::ErrorKind::AddrInUse), false), Verdict::Fail);
        assert_eq!(listens(Ok(()), true), Verdict::Fail);
        assert_eq!(listens(Ok(()), false), Verdict::Ok);
        assert_eq!(listens(Err(io::ErrorKind::PermissionDenied), true), Verdict::Warn);
    }

    #[test]
    fn a_daemon_that_does_not_run_or_write_is_a_failure() {
        let health = json!({ "connected": 2, "peer_count": 3, "store_failing": false });
        let found = daemon(Ok(Some(&health)));
        assert_eq!(
            (found.verdict, &*found.finding),
            (Verdict::Ok, "runs; 2 of 3 peers connected")
        );
        let failing = json!({ "connected": 2, "peer_count": 3, "store_failing": true });
        assert_eq!(daemon(Ok(Some(&failing))).verdict, Verdict::Fail);
        assert_eq!(daemon(Ok(None)).verdict, Verdict::Fail);
        assert_eq!(daemon(Err("refused")).verdict, Verdict::Fail);
    }
}
