//! Every host-bridge on every way that the configuration allows, tried for real: name, handshake,
//! trust, greeting. As a stranger without a certificate, so that no tunnel of a running daemon is
//! displaced.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::check::{Check, Verdict};
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::contract::invitation::{HostPort, ParentTrust};
use crate::machine::ladder::Rung;
use crate::process::clock::Clock;
use crate::process::config::satellite::{TunnelTransport, Ways};
use crate::reach::connect::{Approach, ConnectError, RESOLVE_TIMEOUT, connect};
use crate::reach::dial::{Credentials, DialError, Established, Introduction};
use crate::reach::tcp;
use crate::tunnel::{TunnelSettings, quic};
use crate::wire::{Goodbye, GoodbyeReason, Welcome};

/// Difference between this box's clock and a bridge's that is worth a word.
const CLOCK_DIFFERENCE_WARN: Duration = Duration::from_secs(120);

/// Pause between two looks at what the path takes, and how many there are: the search takes some ten round
/// trips, and each packet that vanishes is tried three times.
const MTU_LOOK_AGAIN: Duration = Duration::from_millis(100);
const MTU_LOOKS_MAX: u32 = 30;

/// IPv4 and UDP headers of each packet.
const HEADERS_BYTES: u16 = 28;

/// What the bridges showed besides the verdicts.
#[derive(Debug, Default)]
pub struct Seen {
    /// The address of this box as a bridge sees it.
    pub address: Option<IpAddr>,
}

/// Tries one bridge by all of its ways.
pub async fn examine(
    bridge: &HostPort,
    trust: &ParentTrust,
    ways: &Ways,
    clock: &Clock,
    seen: &mut Seen,
) -> Vec<Check> {
    let proxy = ways.proxy.proxy_for(bridge.host(), bridge.port()).cloned();
    let mut checks = Vec::new();
    // Behind a proxy names are the proxy's to resolve.
    let resolved = dns(bridge).await;
    if proxy.is_none() || resolved.verdict == Verdict::Ok {
        checks.push(resolved);
    }
    let attempt = |rung| {
        let approach = Approach {
            bridge: bridge.clone(),
            rung,
            proxy: proxy.clone(),
            remembered: Vec::new(),
            introduction: Introduction {
                credentials: Credentials {
                    trust: trust.clone(),
                    identity: None,
                },
                features: Vec::new(),
                settings: TunnelSettings::default(),
                clock: clock.clone(),
            },
        };
        async move {
            match Box::pin(connect(approach)).await {
                Ok((_, established)) => Ok(look_around(established).await),
                Err(failure) => Err(Failed::of(rung, &failure.error)),
            }
        }
    };
    let wanted = |rung: Rung| match rung {
        Rung::Quic => ways.transport != TunnelTransport::Tls,
        // Nor does the daemon go around a proxy.
        Rung::Tls => proxy.is_none() && ways.transport != TunnelTransport::Quic,
        Rung::Proxy => proxy.is_some() && ways.transport != TunnelTransport::Quic,
        Rung::Direct => false,
    };
    let tried = |rung| {
        let attempt = wanted(rung).then(|| attempt(rung));
        async move {
            match attempt {
                Some(attempt) => Some((rung, attempt.await)),
                None => None,
            }
        }
    };
    let (quic, tls, via) = tokio::join!(tried(Rung::Quic), tried(Rung::Tls), tried(Rung::Proxy));
    let outcomes: Vec<_> = [quic, tls, via].into_iter().flatten().collect();
    let any = outcomes.iter().any(|(_, outcome)| outcome.is_ok());
    for (rung, outcome) in outcomes {
        let mut mtu = None;
        if let Ok(Greeted { welcome, path_mtu }) = &outcome {
            mtu = path_mtu.map(|bytes| judge_path_mtu(bridge, bytes));
            let observed: Option<SocketAddr> = welcome.observed_address.parse().ok();
            seen.address = seen
                .address
                .or(observed.map(|address| address.ip().to_canonical()));
            checks.extend(clock_difference(
                bridge,
                clock.system(),
                UnixTime::from_seconds(welcome.unix_seconds),
            ));
        }
        checks.push(judge(bridge, rung, outcome.map(|greeted| greeted.welcome), any));
        checks.extend(mtu);
    }
    checks
}

/// What a bridge and the way to it showed.
struct Greeted {
    welcome: Welcome,
    path_mtu: Option<u16>,
}

/// Stays until the path's largest packet is known, where that is found out at all, and takes its leave.
async fn look_around(established: Established) -> Greeted {
    let Established {
        tunnel,
        driver,
        welcome,
    } = established;
    let goodbye = Goodbye {
        reason: GoodbyeReason::Done,
        message: "a look by doctor".to_owned(),
        retry_after_millis: 0,
    };
    let looking = async {
        let known = || tunnel.path_mtu().is_none_or(|bytes| bytes >= quic::MAX_MTU_BYTES);
        for _ in 0..MTU_LOOKS_MAX {
            if known() {
                break;
            }
            tokio::time::sleep(MTU_LOOK_AGAIN).await;
        }
        let path_mtu = tunnel.path_mtu();
        tunnel.close(goodbye).await;
        path_mtu
    };
    let (_, path_mtu) = tokio::join!(driver.run(), looking);
    Greeted { welcome, path_mtu }
}

fn judge_path_mtu(bridge: &HostPort, bytes: u16) -> Check {
    let name = format!("path MTU to {bridge}");
    let found = format!(
        "packets of {bytes} bytes get through (with their headers, {} or more)",
        bytes + HEADERS_BYTES
    );
    if bytes >= quic::MAX_MTU_BYTES {
        Check::ok(name, found)
    } else if bytes > quic::MIN_MTU_BYTES {
        Check::ok(
            name,
            format!("{found}; something on the way, PPPoE or a VPN, takes no larger ones"),
        )
    } else {
        Check::warn(
            name,
            format!("{found}, and no larger ones were seen to"),
            "QUIC works with that, and packets of UDP services that are larger go over a stream; if other connections \
             of this box hang, a device on the way drops large packets without a word: have ICMP \"fragmentation \
             needed\" allowed, or lower the MTU of this box's interface",
        )
    }
}

async fn dns(bridge: &HostPort) -> Check {
    let name = format!("DNS {}", bridge.host());
    if bridge.host().parse::<IpAddr>().is_ok() {
        return Check::ok(name, "an address, nothing to resolve");
    }
    let lookup = tokio::net::lookup_host((bridge.host().to_owned(), bridge.port()));
    let advice = "check the box's resolver (/etc/resolv.conf) and the name; a box that was connected before uses remembered addresses meanwhile";
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => {
            let mut found: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
            found.dedup();
            Check::ok(name, found.join(", "))
        }
        Ok(Err(error)) => Check::fail(name, format!("not resolved: {error}"), advice),
        Err(_) => Check::fail(
            name,
            format!("no answer within {} s", RESOLVE_TIMEOUT.as_secs()),
            advice,
        ),
    }
}

/// A way that came to nothing.
struct Failed {
    why: String,
    advice: &'static str,
}

impl Failed {
    fn of(rung: Rung, error: &ConnectError) -> Self {
        let advice = match error {
            // Said where the name is looked up.
            ConnectError::NoAddress { .. } => "",
            // What the other side said, or what it showed, says what to do.
            ConnectError::Dial(error) if error.was_heard() => "",
            ConnectError::Dial(DialError::Tcp {
                source: tcp::DialError::Connect { source, .. },
                ..
            }) if source.kind() == ErrorKind::ConnectionRefused => {
                "see whether the host-bridge runs, and listens at this port"
            }
            _ => advice(rung),
        };
        Self {
            why: error_chain(error),
            advice,
        }
    }
}

/// A way that fails beside one that works is worth a word; one that fails alone is the end.
fn judge(bridge: &HostPort, rung: Rung, outcome: Result<Welcome, Failed>, any: bool) -> Check {
    let name = format!("{} {bridge}", means(rung));
    match outcome {
        Ok(welcome) => Check::ok(
            name,
            format!(
                "greeted by {}, which sees this box as {}",
                crate::base::limit::foreign_text(&welcome.agent),
                crate::base::limit::foreign_text(&welcome.observed_address)
            ),
        ),
        Err(failed) if any => Check::warn(name, failed.why, "another way works and is used"),
        Err(failed) => Check::fail(name, failed.why, failed.advice),
    }
}

const fn means(rung: Rung) -> &'static str {
    match rung {
        Rung::Direct => "direct",
        Rung::Quic => "UDP to",
        Rung::Tls => "TCP to",
        Rung::Proxy => "proxy to",
    }
}

const fn advice(rung: Rung) -> &'static str {
    match rung {
        Rung::Quic => "have UDP to this port allowed on the way",
        Rung::Tls => "have TCP to this port allowed on the way, or name a proxy in tunnel.proxy",
        Rung::Proxy => {
            "check tunnel.proxy and its credentials, and that CONNECT to this port is allowed there"
        }
        Rung::Direct => "",
    }
}

fn clock_difference(bridge: &HostPort, ours: UnixTime, theirs: UnixTime) -> Option<Check> {
    let difference = if ours > theirs {
        ours.since(theirs)
    } else {
        theirs.since(ours)
    };
    (difference > CLOCK_DIFFERENCE_WARN).then(|| {
        Check::warn(
            format!("clock of {bridge}"),
            format!("{} s away from this box's", difference.as_secs()),
            "set the wrong one of the two, or start NTP there",
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bridge() -> HostPort {
        "bridge.example:8443".parse().unwrap()
    }

    #[test]
    fn a_way_that_fails_is_a_failure_only_when_no_other_works() {
        let failed = |any| {
            let failed = Failed {
                why: "no answer".to_owned(),
                advice: advice(Rung::Quic),
            };
            judge(&bridge(), Rung::Quic, Err(failed), any)
        };
        assert_eq!(failed(true).verdict, Verdict::Warn);
        let alone = failed(false);
        assert_eq!(alone.verdict, Verdict::Fail);
        assert_eq!(alone.name, "UDP to bridge.example:8443");
        assert!(alone.advice.unwrap().contains("UDP"));
    }

    #[test]
    fn clocks_that_differ_are_worth_a_word_in_either_direction() {
        let at = UnixTime::from_seconds;
        assert_eq!(clock_difference(&bridge(), at(1_000_000), at(1_000_100)), None);
        for (ours, theirs) in [(1_000_000, 1_010_000), (1_010_000, 1_000_000)] {
            let told = clock_difference(&bridge(), at(ours), at(theirs)).unwrap();
            assert_eq!(
                (told.verdict, told.finding.as_str()),
                (Verdict::Warn, "10000 s away from this box's")
            );
        }
    }

    #[test]
    fn a_path_that_takes_the_least_alone_is_worth_a_word() {
        for (bytes, verdict) in [(1_200, Verdict::Warn), (1_224, Verdict::Ok), (1_452, Verdict::Ok)] {
            let told = judge_path_mtu(&bridge(), bytes);
            assert_eq!(told.verdict, verdict, "{}", told.finding);
        }
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        assert_eq!(dns(&"192.0.2.1:1".parse().unwrap()).await.verdict, Verdict::Ok);
    }
}
