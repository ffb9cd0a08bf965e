//! The machine against routers in memory, in virtual time.

mod any_order;
mod own_addresses;
mod world;

use std::net::SocketAddr;

use super::*;
use MappingProtocol::{NatPmp, Pcp, Upnp};
use world::{DESCRIPTION, Did, NONCE, PORT, Quirks, Router, World, gateway, ip, settings};

fn endpoint(port: u16) -> SocketAddr {
    SocketAddr::new(ip("93.184.216.34"), port)
}

#[test]
fn upnp_looks_stores_maps_reads_back_proves_and_then_shows() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    assert_eq!(
        world.take(),
        [
            Did::Probe,
            Did::Look(Upnp, PORT),
            Did::Persist(1),
            Did::Map(Upnp, PORT, LEASE_SECONDS),
            Did::Look(Upnp, PORT),
            Did::Prove(endpoint(PORT)),
        ]
    );
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    let view = world.machine.view().unwrap();
    assert_eq!(
        (view.protocol, view.lease_seconds),
        (Some(Upnp), Some(LEASE_SECONDS))
    );
}

#[test]
fn nothing_is_asked_of_a_router_before_somebody_can_prove_it() {
    let mut world = World::with(Router::speaking(&[Pcp, Upnp]));
    world.tell(MappingEvent::Network(vec![gateway()]));
    world.settle();
    world.pass_seconds(7_200);
    assert_eq!(world.take(), []);
    assert_eq!(world.machine.why_not(), Some(Unmapped::NoProver));
}

#[test]
fn protocols_are_fallen_through_within_one_attempt() {
    let denials = vec![(Pcp, Denial::Unsupported), (NatPmp, Denial::Temporary)];
    let mut world = World::with(Router::speaking(&[Pcp, NatPmp, Upnp]).with(Quirks {
        denials,
        ..Quirks::default()
    }));
    world.go();
    let asked: Vec<_> = world.maps().iter().map(|(protocol, ..)| *protocol).collect();
    assert_eq!(asked, [Pcp, NatPmp, Upnp]);
    assert_eq!(world.take().iter().filter(|did| **did == Did::Probe).count(), 1);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
}

#[test]
fn gateways_are_ranked_and_a_mute_one_does_not_stand_in_the_way() {
    let second = Gateway {
        address: ip("10.0.0.1"),
        interface: 0,
        local: ip("10.0.0.5"),
    };
    let mute = Router::speaking(&[]);
    let routers = vec![(gateway(), mute), (second, Router::speaking(&[Upnp]))];
    let mut world = World::start(settings(), routers, Vec::new());
    world.go();
    assert_eq!(world.machine.view().unwrap().gateway, Some(second.address));
    let routers = vec![
        (gateway(), Router::speaking(&[Upnp])),
        (second, Router::speaking(&[Pcp])),
    ];
    let mut world = World::start(settings(), routers, Vec::new());
    world.go();
    assert_eq!(
        world.machine.view().unwrap().gateway,
        Some(gateway().address),
        "the better route, not the better protocol"
    );
}

#[test]
fn a_lease_is_renewed_at_its_half_and_looked_after_meanwhile() {
    let mut world = World::with(Router::speaking(&[NatPmp]));
    world.go().take();
    let half = u64::from(LEASE_SECONDS) / 2;
    world.pass_seconds(half - 1);
    assert!(world.maps().is_empty());
    let looks = world
        .take()
        .iter()
        .filter(|did| matches!(did, Did::Look(..)))
        .count();
    assert!(looks as u64 >= half / 60, "{looks}");
    world.pass_seconds(2);
    assert_eq!(world.maps(), [(NatPmp, PORT, LEASE_SECONDS)]);
    world.pass_seconds(24 * 3_600);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    assert_eq!(world.maps().len() as u64, 24 * 3_600 / half + 1);
}

#[test]
fn a_restarted_router_has_the_mapping_again_within_a_minute() {
    for protocol in [Pcp, NatPmp, Upnp] {
        let mut world = World::with(Router::speaking(&[protocol]));
        world.go();
        world.pass_seconds(1_000);
        let now = world.now;
        world.router().reboot(now);
        world.take();
        world.pass_seconds(60);
        assert_eq!(world.maps().len(), 1, "{protocol:?}");
        assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)), "{protocol:?}");
    }
}

#[test]
fn a_router_that_is_away_for_long_is_found_again_with_the_line() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    world.router().quirks.silent = true;
    world.pass_seconds(3_000);
    assert_eq!(world.machine.endpoint(), None);
    let now = world.now;
    world.router().quirks.silent = false;
    world.router().reboot(now);
    world.tell(MappingEvent::ProverReady);
    world.settle();
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
}

#[test]
fn a_tunnel_that_comes_back_is_reason_to_look_at_once() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    world.pass_seconds(100);
    let now = world.now;
    world.router().reboot(now);
    world.tell(MappingEvent::ProverReady);
    world.settle();
    assert_eq!(world.now, now);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    assert_eq!(world.router().table.len(), 1);
}

#[test]
fn what_does_not_forward_is_removed_and_made_anew_under_another_port() {
    let mut world = World::with(Router::speaking(&[Upnp]).with(Quirks {
        deaf_ports: true,
        ..Quirks::default()
    }));
    world.go();
    assert_eq!(world.machine.endpoint(), None, "listed, and yet not shown");
    world.pass_seconds(60);
    let ports: Vec<_> = world.maps().iter().map(|(_, port, _)| *port).collect();
    assert_eq!(ports.len(), 2, "{ports:?}");
    assert_ne!(ports[0], ports[1]);
    assert!(world.router().table.is_empty(), "nothing is left behind");
    assert!(world.disk.is_empty());
    assert!(matches!(
        world.machine.why_not(),
        Some(Unmapped::NotForwarding { .. })
    ));
    world.take();
    world.pass(LONG_REST.saturating_sub(Duration::from_secs(60)));
    assert_eq!(world.take(), [], "and then it is quiet");
}

#[test]
fn a_mapping_that_stops_forwarding_is_withdrawn_and_replaced() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    let router = world.router();
    router.quirks.deaf_ports = true;
    world.pass(PROOF_INTERVAL);
    assert_eq!(world.machine.endpoint(), None, "at the first proof that fails");
    world.router().quirks.deaf_ports = false;
    world.take();
    world.router().quirks.hears_from = None;
    world.pass_seconds(10);
    assert!(world.machine.endpoint().is_some());
    assert_eq!(world.router().table.len(), 1);
}

#[test]
fn one_lost_proof_costs_no_mapping() {
    let mut world = World::with(Router::speaking(&[Pcp]));
    world.go().take();
    world.router().quirks.deaf_ports = true;
    world.pass(PROOF_INTERVAL);
    assert_eq!(world.machine.endpoint(), None);
    world.router().quirks.deaf_ports = false;
    world.pass_seconds(6);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    assert!(world.maps().is_empty());
}

#[test]
fn somebody_who_cannot_dial_proves_nothing_and_refutes_nothing() {
    let mut world = World::with(Router::speaking(&[Pcp]));
    world.dialler = Some(ProofOutcome::Unavailable);
    world.go();
    world.pass_seconds(600);
    assert_eq!(world.machine.endpoint(), None);
    assert_eq!(world.maps().len(), 1);
    world.dialler = None;
    world.pass_seconds(60);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    world.dialler = Some(ProofOutcome::Unavailable);
    world.pass_seconds(3_600);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
}

#[test]
fn leases_shrink_or_go_as_the_router_wishes() {
    let refused = |denials: &[Denial]| Quirks {
        denials: denials.iter().map(|denial| (Upnp, *denial)).collect(),
        ..Quirks::default()
    };
    let invalid = Denial::InvalidArguments;
    for (quirks, leases) in [
        (refused(&[Denial::OnlyPermanent]), vec![3_600, 0]),
        (refused(&[invalid]), vec![3_600, 600]),
        (refused(&[invalid, invalid]), vec![3_600, 600, 0]),
    ] {
        let mut world = World::with(Router::speaking(&[Upnp]).with(quirks));
        world.go();
        let asked: Vec<_> = world.maps().iter().map(|(.., lease)| *lease).collect();
        assert_eq!(asked, leases);
        assert!(world.machine.endpoint().is_some());
    }
    let mut world = World::with(Router::speaking(&[Upnp]).with(Quirks {
        drops_leases: true,
        ..Quirks::default()
    }));
    world.go();
    assert_eq!(world.maps().last(), Some(&(Upnp, PORT, 0)));
    assert_eq!(world.machine.view().unwrap().lease_seconds, None);
    world.pass_seconds(3_600);
    assert_eq!(world.maps().len(), 2, "a lease without end is not renewed");
}

#[test]
fn a_permanent_mapping_is_given_back_at_the_end() {
    let mut world = World::with(Router::speaking(&[Upnp]).with(Quirks {
        permanent_only: true,
        ..Quirks::default()
    }));
    world.go();
    assert_eq!(world.disk[0].lease_seconds, 0);
    world.tell(MappingEvent::Stop);
    world.settle();
    assert!(world.stopped && world.router().table.is_empty() && world.disk.is_empty());
    assert_eq!(world.machine.endpoint(), None);
}

#[test]
fn a_port_that_somebody_has_is_left_to_him() {
    let mut router = Router::speaking(&[Upnp]);
    router.put_foreign(PORT);
    let mut world = World::with(router);
    world.go();
    let ports: Vec<_> = world.maps().iter().map(|(_, port, _)| *port).collect();
    assert_eq!(ports.len(), 1);
    assert_ne!(ports[0], PORT, "not even asked for");
    assert_eq!(world.router().table[&PORT].entry.description, "a game");
    let mut world = World::with(Router::speaking(&[Upnp]).with(Quirks {
        denials: vec![(Upnp, Denial::PortTaken)],
        ..Quirks::default()
    }));
    world.go();
    assert_eq!(world.maps().len(), 2);
    assert!(world.machine.endpoint().is_some());
}

#[test]
fn what_somebody_else_has_taken_over_is_not_removed() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go().take();
    world.router().put_foreign(PORT);
    world.pass(LOOK_INTERVAL);
    assert!(!world.take().contains(&Did::Unmap(Upnp, PORT)));
    assert!(world.router().table.contains_key(&PORT));
    assert_eq!(world.router().table.len(), 2);
    assert_ne!(world.machine.endpoint().unwrap().port(), PORT);
}

#[test]
fn a_router_that_does_not_want_to_is_left_alone_for_long() {
    for protocols in [&[Upnp][..], &[Pcp, NatPmp, Upnp]] {
        let mut world = World::with(Router::speaking(protocols).with(Quirks {
            always: Some(Denial::NotAllowed),
            ..Quirks::default()
        }));
        world.go();
        assert_eq!(world.maps().len(), protocols.len(), "each way once");
        assert_eq!(world.machine.why_not(), Some(Unmapped::NotAllowed));
        world.take();
        world.tell(MappingEvent::ProverReady);
        world.settle();
        world.pass(LONG_REST.saturating_sub(Duration::from_secs(1)));
        assert_eq!(world.take(), []);
    }
}

#[test]
fn an_internal_port_that_the_router_has_changed_is_noticed_by_reading_back() {
    let mut world = World::with(Router::speaking(&[Upnp]).with(Quirks {
        mangles: true,
        ..Quirks::default()
    }));
    world.go();
    assert!(!world.take().iter().any(|did| matches!(did, Did::Prove(_))));
    assert!(world.router().table.is_empty(), "both tries are removed");
    assert_eq!(world.machine.why_not(), Some(Unmapped::Refused));

    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    world.router().quirks.mangles = true;
    world.pass_seconds(u64::from(LEASE_SECONDS) / 2 + 1);
    assert_eq!(world.machine.endpoint(), None, "a renewal that overwrites it too");
}

#[test]
fn behind_a_second_nat_nothing_is_mapped_and_the_reason_is_known() {
    for external in [
        "192.168.178.20",
        "100.72.1.1",
        "10.1.1.1",
        "198.51.100.7",
        "0.0.0.0",
    ] {
        let external = ip(external);
        for protocol in [NatPmp, Upnp] {
            let mut router = Router::speaking(&[Pcp, protocol]);
            router.external = external;
            let mut world = World::with(router);
            world.go();
            assert_eq!(world.maps(), [], "{external}");
            assert_eq!(world.machine.why_not(), Some(Unmapped::SecondNat { external }));
        }
        // PCP tells only with the mapping, which goes away again.
        let mut router = Router::speaking(&[Pcp]);
        router.external = external;
        let mut world = World::with(router);
        world.go();
        assert!(world.router().table.is_empty());
        assert_eq!(world.machine.why_not(), Some(Unmapped::SecondNat { external }));
        assert_eq!(world.machine.endpoint(), None);
    }
    let told = |external| Unmapped::SecondNat { external }.to_string();
    assert!(told(ip("100.72.1.1")).contains("100.72.1.1, an address of a provider's own NAT"));
    assert!(told(ip("0.0.0.0")).contains("second NAT, or its line is down"));
}

#[test]
fn a_port_of_the_routers_own_is_not_accepted() {
    for assigned in [0, 80, 1_023] {
        for protocol in [Pcp, NatPmp] {
            let mut world = World::with(Router::speaking(&[protocol]).with(Quirks {
                assigns: Some(assigned),
                ..Quirks::default()
            }));
            world.go();
            assert_eq!(world.machine.endpoint(), None);
            assert!(world.router().table.is_empty(), "{protocol:?} {assigned}");
        }
    }
}

#[test]
fn the_port_that_the_router_gives_is_the_one_that_counts() {
    let mut world = World::with(Router::speaking(&[Pcp]).with(Quirks {
        assigns: Some(50_001),
        ..Quirks::default()
    }));
    world.go();
    assert_eq!(world.machine.endpoint(), Some(endpoint(50_001)));
    assert_eq!(world.disk[0].external_port, 50_001);
}

#[test]
fn after_a_crash_the_first_thing_is_to_remove_what_is_left() {
    for protocol in [Pcp, NatPmp, Upnp] {
        let mut world = World::with(Router::speaking(&[protocol]));
        world.go().take();
        world.crash();
        world.tell(MappingEvent::Network(vec![gateway()]));
        world.settle();
        assert_eq!(
            world.take(),
            [Did::Unmap(protocol, PORT), Did::Persist(0)],
            "even without a tunnel"
        );
        assert!(world.router().table.is_empty());
        world.go();
        assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    }
}

#[test]
fn where_the_owner_has_forwarded_a_port_no_router_is_asked() {
    let by_hand: SocketAddr = "203.0.114.7:41234".parse().unwrap();
    let forwarded = LeaseSettings {
        forwarded: Some(by_hand),
        ..settings()
    };
    let mut machine = MappingLease::new(forwarded, Vec::new(), Moment::START);
    let at = |seconds| Moment::after_start(Duration::from_secs(seconds));
    assert_eq!(machine.poll_action(), None, "nobody could prove it");
    machine.handle_event(MappingEvent::ProverReady, at(1));
    let Some(MappingAction::Prove(number, endpoint)) = machine.poll_action() else {
        panic!("it is proven first");
    };
    assert_eq!(endpoint, by_hand);
    let reached = Outcome::Proved(ProofOutcome::Reached);
    machine.handle_event(MappingEvent::Done(number, reached), at(2));
    assert_eq!(machine.endpoint(), Some(by_hand));
    assert_eq!(machine.poll_action(), None);

    // Twice in a row nothing comes through: it is withdrawn, and looked at again when somebody may have mended it.
    for _ in 0..2 {
        let now = machine.poll_timeout().unwrap();
        machine.handle_event(MappingEvent::Timeout, now);
        let Some(MappingAction::Prove(number, _)) = machine.poll_action() else {
            panic!("it is proven again");
        };
        let refuted = Outcome::Proved(ProofOutcome::Unreachable);
        machine.handle_event(MappingEvent::Done(number, refuted), now);
    }
    assert_eq!(machine.endpoint(), None);
    assert!(matches!(machine.why_not(), Some(Unmapped::NotForwarding { .. })));
    assert!(machine.poll_timeout().is_some(), "in any case");
    let now = at(3_600);
    machine.handle_event(MappingEvent::ProverReady, now);
    assert!(
        matches!(machine.poll_action(), Some(MappingAction::Prove(..))),
        "another bridge may reach it"
    );
}

#[test]
fn a_switched_off_machine_still_removes_what_is_left() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    let router = world.router().clone();
    let off = LeaseSettings {
        enabled: false,
        ..settings()
    };
    let mut world = World::start(off, vec![(gateway(), router)], world.disk.clone());
    world.go();
    assert_eq!(world.take(), [Did::Unmap(Upnp, PORT), Did::Persist(0)]);
    assert_eq!(world.machine.why_not(), Some(Unmapped::Disabled));
    assert_eq!(world.machine.poll_timeout(), None);
}

#[test]
fn a_record_of_somewhere_else_waits_for_its_router_and_not_for_ever() {
    let record = MappingRecord {
        gateway: ip("172.16.0.1"),
        interface: 0,
        protocol: Upnp,
        internal: SocketAddr::new(ip("172.16.0.9"), PORT),
        external_port: PORT,
        lease_seconds: 0,
        nonce: NONCE,
        description: DESCRIPTION.to_owned(),
    };
    let leased = MappingRecord {
        lease_seconds: 600,
        external_port: PORT + 1,
        ..record.clone()
    };
    let routers = vec![(gateway(), Router::speaking(&[Upnp]))];
    let mut world = World::start(settings(), routers, vec![record.clone(), leased]);
    world.go();
    assert!(!world.take().iter().any(|did| matches!(did, Did::Unmap(..))));
    assert_eq!(world.disk.len(), 3);
    world.pass_seconds(700);
    // Back at the other place.
    let there = Gateway {
        address: record.gateway,
        interface: 0,
        local: ip("172.16.0.9"),
    };
    world.routers.insert(there.address, Router::speaking(&[]));
    world.tell(MappingEvent::Network(vec![there]));
    world.settle();
    assert_eq!(
        world
            .take()
            .iter()
            .filter(|did| matches!(did, Did::Unmap(..)))
            .count(),
        1
    );
}

#[test]
fn what_cannot_be_stored_is_not_asked_for() {
    let mut world = World::with(Router::speaking(&[Pcp, Upnp]));
    world.disk_full = true;
    world.go();
    assert_eq!(world.maps(), []);
    assert_eq!(world.machine.why_not(), Some(Unmapped::NotStored));
    world.disk_full = false;
    world.pass(SHORT_REST);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
}

#[test]
fn a_tiny_lease_is_no_offer() {
    let mut world = World::with(Router::speaking(&[Pcp]).with(Quirks {
        longest_lease: Some(5),
        ..Quirks::default()
    }));
    world.go();
    world.pass_seconds(600);
    assert_eq!(world.machine.endpoint(), None);
    assert!(world.maps().len() <= 2);
    let mut world = World::with(Router::speaking(&[Pcp]).with(Quirks {
        longest_lease: Some(120),
        ..Quirks::default()
    }));
    world.go();
    world.pass_seconds(600);
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    assert_eq!(world.maps().len(), 11);
}

#[test]
fn a_changed_external_address_is_proven_before_it_is_shown() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    world.router().external = ip("93.184.216.99");
    world.pass(LOOK_INTERVAL);
    let moved = SocketAddr::new(ip("93.184.216.99"), PORT);
    assert_eq!(world.reached, Some(moved));
    assert_eq!(world.machine.endpoint(), Some(moved));
    world.router().external = ip("100.64.0.9");
    world.pass(LOOK_INTERVAL);
    assert_eq!(world.machine.endpoint(), None);
    assert!(world.router().table.is_empty());
}
