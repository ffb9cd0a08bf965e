//! What the addresses of the box itself have to do with it: new ones, public ones, firewalls before them.

use super::*;

#[test]
fn a_new_local_address_is_mapped_anew() {
    let mut world = World::with(Router::speaking(&[Upnp]));
    world.go();
    let moved = Gateway {
        local: ip("192.168.1.77"),
        ..gateway()
    };
    world.network = vec![moved];
    world.tell(MappingEvent::Network(vec![moved]));
    assert_eq!(world.machine.endpoint(), None, "at once");
    world.settle();
    assert_eq!(world.machine.endpoint(), Some(endpoint(PORT)));
    let table = &world.router().table;
    assert_eq!(table.len(), 1);
    assert_eq!(table[&PORT].entry.internal, SocketAddr::new(moved.local, PORT));
}

#[test]
fn a_public_address_of_its_own_needs_no_router() {
    let public = Gateway {
        local: ip("93.184.216.40"),
        ..gateway()
    };
    let mut world = World::start(settings(), vec![(public, Router::speaking(&[]))], Vec::new());
    world.dialler = Some(ProofOutcome::Reached);
    world.go();
    let own = SocketAddr::new(public.local, PORT);
    assert_eq!(world.take(), [Did::Probe, Did::Prove(own)]);
    assert_eq!(world.machine.endpoint(), Some(own));
    assert_eq!(world.machine.view().unwrap().protocol, None);
}

#[test]
fn behind_a_firewall_a_pinhole_is_asked_for_after_the_own_address_has_failed() {
    let v6 = Gateway {
        address: ip("fe80::1"),
        interface: 3,
        local: ip("2a00:1::20"),
    };
    let mut router = Router::speaking(&[Pcp]);
    router.external = v6.local;
    let mut world = World::start(settings(), vec![(v6, router)], Vec::new());
    world.go();
    world.pass_seconds(10);
    let own = SocketAddr::new(v6.local, PORT);
    assert_eq!(world.maps(), [(Pcp, PORT, LEASE_SECONDS)]);
    assert_eq!(world.machine.endpoint(), Some(own));
    assert_eq!(world.machine.view().unwrap().protocol, Some(Pcp));
}

#[test]
fn for_an_ipv6_address_of_the_site_alone_nothing_is_asked() {
    let v6 = Gateway {
        address: ip("fe80::1"),
        interface: 3,
        local: ip("fd00::20"),
    };
    let mut world = World::start(settings(), vec![(v6, Router::speaking(&[Pcp]))], Vec::new());
    world.go();
    assert_eq!(world.take(), [Did::Probe]);
    assert_eq!(
        world.machine.why_not(),
        Some(Unmapped::SecondNat { external: v6.local })
    );
}
