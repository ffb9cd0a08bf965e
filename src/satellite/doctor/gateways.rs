//! What the routers of the default routes offer, and what that makes of this box: reachable, or
//! behind one NAT or several.

use std::net::IpAddr;

use crate::base::check::Check;
use crate::machine::ladder::Rung;
use crate::machine::mapping_lease::Gateway;
use crate::process::blocking;
use crate::reach::default_route::{Family, gateways};
use crate::reach::port_mapping::{NatKind, ProtocolAnswer, nat_kind, probe};
use crate::satellite::status::{LinkReport, ReachReport};

/// Asks them, without changing anything on them; none where the configuration lets nobody ask them for a port.
pub async fn examine(seen: Option<IpAddr>, port_mapping: bool) -> Vec<Check> {
    if !port_mapping {
        return vec![Check::ok(
            "routers",
            "not asked for anything: reach.port_mapping is false",
        )];
    }
    // The routes are two small files of the kernel's.
    let found = blocking::start(|| {
        let mut found = gateways(Family::V4);
        found.extend(gateways(Family::V6));
        found
    });
    let found: Vec<Gateway> = found.await.unwrap_or_default();
    let answers = probe(&found).await;
    let mut checks: Vec<Check> = answers.iter().map(protocol).collect();
    if let Some(gateway) = found.first() {
        checks.push(nat(gateway.local, &answers, seen));
    }
    checks
}

fn protocol(answer: &ProtocolAnswer) -> Check {
    let name = format!("{} of {}", answer.protocol.name(), answer.gateway.address);
    match &answer.answer {
        Ok(finding) => {
            let external = match finding.external {
                Some(address) if address.is_unspecified() => {
                    "it says that it has no external address".to_owned()
                }
                Some(address) => format!("its external address is {address}"),
                None => "it does not tell its external address".to_owned(),
            };
            Check::ok(name, format!("answers; {external}"))
        }
        // None of them is needed: the tunnel goes outward.
        Err(why) => Check::ok(name, format!("not there: {why}")),
    }
}

fn nat(local: IpAddr, answers: &[ProtocolAnswer], seen: Option<IpAddr>) -> Check {
    const NAME: &str = "NAT";
    let external = answers
        .iter()
        .filter_map(|answer| answer.answer.as_ref().ok()?.external)
        .find(|address| !address.is_unspecified());
    let kind = nat_kind(local, external, seen);
    match kind {
        NatKind::None | NatKind::One | NatKind::Unknown => Check::ok(NAME, kind.words()),
        NatKind::Double | NatKind::CarrierGrade => Check::warn(
            NAME,
            kind.words(),
            "the tunnel works all the same; for a way in ask the provider for a public address, or open the outer router",
        ),
    }
}

/// What the running daemon has got of them.
pub fn ways_in(reach: &ReachReport) -> Vec<Check> {
    const NAME: &str = "way in";
    reach
        .mappings
        .iter()
        .filter_map(|mapping| match (mapping.endpoint, &mapping.reason) {
            (Some(endpoint), _) if mapping.proven => Some(Check::ok(
                NAME,
                format!("{endpoint}, which the host-bridge has dialled"),
            )),
            (Some(endpoint), reason) => Some(Check::warn(
                NAME,
                format!("{endpoint}, not proven"),
                reason.clone().unwrap_or_default(),
            )),
            (None, Some(reason)) => Some(Check::ok(NAME, format!("none over {}: {reason}", mapping.family))),
            (None, None) => None,
        })
        .collect()
}

/// Whether the host-bridges use it.
pub fn direct(link: &LinkReport) -> Vec<Check> {
    let bridges = link.bridges.iter();
    bridges
        .filter_map(|bridge| {
            let name = format!("direct tunnel of {}", bridge.bridge);
            if bridge.rung.as_deref() == Some(Rung::Direct.name()) {
                return Some(Check::ok(name, "the host-bridge has dialled this satellite"));
            }
            let direct = bridge
                .better
                .iter()
                .find(|better| better.rung == Rung::Direct.name())?;
            // Another way carries: nothing is wrong.
            Some(Check::ok(name, format!("none: {}", direct.why)))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::check::Verdict;
    use crate::machine::mapping_lease::{Finding, MappingProtocol};

    fn answer(external: Option<&str>) -> ProtocolAnswer {
        let gateway = Gateway {
            address: "192.168.1.1".parse().unwrap(),
            interface: 0,
            local: "192.168.1.20".parse().unwrap(),
        };
        ProtocolAnswer {
            gateway,
            protocol: MappingProtocol::Upnp,
            answer: external
                .map(|external| Finding {
                    gateway,
                    protocol: MappingProtocol::Upnp,
                    external: Some(external.parse().unwrap()),
                    epoch: None,
                })
                .ok_or_else(|| "no answer".to_owned()),
        }
    }

    #[test]
    fn a_second_nat_is_told_with_what_can_be_done() {
        let local = "192.168.1.20".parse().unwrap();
        let verdict = |external| nat(local, &[answer(external)], None).verdict;
        assert_eq!(verdict(Some("203.0.114.7")), Verdict::Ok);
        assert_eq!(verdict(Some("100.64.0.9")), Verdict::Warn);
        assert_eq!(verdict(Some("10.0.0.9")), Verdict::Warn);
        assert_eq!(verdict(None), Verdict::Ok);
    }

    #[test]
    fn a_router_without_a_protocol_is_no_fault() {
        let told = protocol(&answer(None));
        assert_eq!(
            (told.verdict, told.finding.as_str()),
            (Verdict::Ok, "not there: no answer")
        );
        assert_eq!(told.name, "UPnP of 192.168.1.1");
    }
}
