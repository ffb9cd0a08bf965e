//! Routers of every kind and events in every order.

use std::time::Duration;

use proptest::prelude::*;

use super::super::*;
use super::world::{Did, Quirks, Router, World, gateway, ip};
use MappingProtocol::{NatPmp, Pcp, Upnp};

/// Requests that a router may get in an hour from a satellite that wants a mapping, in number:
/// twelve in an attempt on each of three ways, four attempts an hour.
const MAPS_AN_HOUR: usize = 150;

#[derive(Debug, Clone)]
enum Happens {
    Steps(u8),
    Seconds(u16),
    Timeout,
    Reboot,
    ProverReady,
    Silent(bool),
    Deaf(bool),
    DiskFull(bool),
    Dialler(Option<ProofOutcome>),
    Foreign(u16),
    External(bool),
    Move(u8),
    Unplug,
    LoseAnswers,
    Crash,
    StaleAnswer(u64, Box<Outcome>),
}

fn denial() -> impl Strategy<Value = Denial> {
    prop_oneof![
        Just(Denial::OnlyPermanent),
        Just(Denial::InvalidArguments),
        Just(Denial::PortTaken),
        Just(Denial::SamePortOnly),
        Just(Denial::NotAllowed),
        Just(Denial::Unsupported),
        Just(Denial::Temporary),
        Just(Denial::Silent),
    ]
}

fn protocol() -> impl Strategy<Value = MappingProtocol> {
    prop_oneof![Just(Pcp), Just(NatPmp), Just(Upnp)]
}

fn router() -> impl Strategy<Value = Router> {
    let quirks = (
        prop::collection::vec((protocol(), denial()), 0..6),
        prop::option::weighted(0.1, denial()),
        any::<[bool; 4]>(),
        prop::option::weighted(0.2, prop_oneof![Just(0), Just(80), Just(50_000), any::<u16>()]),
        prop::option::weighted(0.3, 0_u32..4_000),
    )
        .prop_map(|(denials, always, flags, assigns, longest_lease)| Quirks {
            denials,
            always,
            permanent_only: flags[0],
            drops_leases: flags[1],
            mangles: flags[2] && flags[3],
            deaf_ports: flags[3] && !flags[2],
            hears_from: None,
            assigns: assigns.map(|port: u16| port.min(65_000)),
            longest_lease,
            silent: false,
        });
    (prop::collection::btree_set(protocol(), 0..=3), quirks).prop_map(|(speaks, quirks)| {
        let mut router = Router::speaking(&[]).with(quirks);
        router.speaks = speaks;
        router
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Probed(Vec::new())),
        Just(Outcome::Proved(ProofOutcome::Reached)),
        Just(Outcome::Unmapped(Removal::Gone)),
        denial().prop_map(|denial| Outcome::Mapped(Err(denial))),
        Just(Outcome::Looked(Seen {
            sight: Sight::Absent,
            external: None
        })),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (1_u8..12).prop_map(Happens::Steps),
        4 => (0_u16..4_000).prop_map(Happens::Seconds),
        1 => Just(Happens::Timeout),
        1 => Just(Happens::Reboot),
        2 => Just(Happens::ProverReady),
        1 => any::<bool>().prop_map(Happens::Silent),
        1 => any::<bool>().prop_map(Happens::Deaf),
        1 => any::<bool>().prop_map(Happens::DiskFull),
        1 => prop::option::of(prop_oneof![
            Just(ProofOutcome::Reached),
            Just(ProofOutcome::Unreachable),
            Just(ProofOutcome::Unavailable),
        ]).prop_map(Happens::Dialler),
        1 => any::<u16>().prop_map(Happens::Foreign),
        1 => any::<bool>().prop_map(Happens::External),
        1 => (2_u8..5).prop_map(Happens::Move),
        1 => Just(Happens::Unplug),
        1 => Just(Happens::LoseAnswers),
        1 => Just(Happens::Crash),
        1 => (0_u64..40, outcome()).prop_map(|(number, outcome)| Happens::StaleAnswer(number, Box::new(outcome))),
    ]
}

fn happen(world: &mut World, what: Happens) {
    match what {
        Happens::Steps(count) => {
            for _ in 0..count {
                world.step();
            }
        }
        Happens::Seconds(seconds) => world.pass(Duration::from_secs(u64::from(seconds))),
        Happens::Timeout => world.tell(MappingEvent::Timeout),
        Happens::Reboot => {
            let now = world.now;
            world.router().reboot(now);
        }
        Happens::ProverReady => world.tell(MappingEvent::ProverReady),
        Happens::Silent(silent) => world.router().quirks.silent = silent,
        Happens::Deaf(deaf) => world.router().quirks.deaf_ports = deaf,
        Happens::DiskFull(full) => world.disk_full = full,
        Happens::Dialler(dialler) => world.dialler = dialler,
        Happens::Foreign(port) => {
            if !world.router().table.contains_key(&port) {
                world.router().put_foreign(port);
            }
        }
        Happens::External(public) => {
            world.router().external = ip(if public { "93.184.216.34" } else { "100.64.3.3" });
        }
        Happens::Move(last) => {
            let moved = Gateway {
                local: ip(&format!("192.168.1.{last}")),
                ..gateway()
            };
            world.network = vec![moved];
            world.tell(MappingEvent::Network(vec![moved]));
        }
        Happens::Unplug => world.tell(MappingEvent::Network(Vec::new())),
        Happens::LoseAnswers => world.lose_waiting(),
        Happens::Crash => {
            world.crash();
            let network = world.network.clone();
            world.tell(MappingEvent::Network(network));
        }
        // Numbers of the past at the most: none of them is awaited any more but by chance.
        Happens::StaleAnswer(number, outcome) => {
            if number == 0 {
                world.tell(MappingEvent::Done(number, *outcome));
            }
        }
    }
}

fn foreign(world: &mut World) -> Vec<u16> {
    let table = &world.router().table;
    let of_others = table.iter().filter(|(_, row)| row.entry.description == "a game");
    of_others.map(|(port, _)| *port).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_keeps_its_promises(
        router in router(),
        events in prop::collection::vec(happens(), 0..60),
    ) {
        let mut world = World::with(router);
        world.tell(MappingEvent::Network(vec![gateway()]));
        for event in events {
            let (others, reboots) = (foreign(&mut world), matches!(event, Happens::Reboot));
            let lost = matches!(event, Happens::LoseAnswers);
            happen(&mut world, event);
            // Nobody else's mapping is ever removed.
            if !reboots {
                let left = foreign(&mut world);
                prop_assert!(others.iter().all(|port| left.contains(port)));
            }
            // Only what was reached is shown.
            if let Some(endpoint) = world.machine.endpoint() {
                prop_assert_eq!(world.reached, Some(endpoint));
            }
            // Something goes on, unless there is a reason that only an event can lift.
            let idle = matches!(
                world.machine.why_not(),
                Some(Unmapped::NoGateway | Unmapped::NoProver | Unmapped::Disabled)
            );
            prop_assert!(
                lost || idle || world.is_waiting() || world.machine.poll_timeout().is_some(),
                "stuck: {:?}", world.machine
            );
            if lost && !idle && world.machine.poll_timeout().is_none() {
                // The store's answer alone has no deadline: it always comes.
                world.crash();
                let network = world.network.clone();
                world.tell(MappingEvent::Network(network));
            }
        }
        world.settle();
        world.tell(MappingEvent::Stop);
        world.settle();
        prop_assert!(world.stopped);
        prop_assert_eq!(world.machine.endpoint(), None);
        prop_assert_eq!(world.machine.poll_timeout(), None);
    }

    #[test]
    fn any_router_left_to_itself_is_not_bothered_much_and_has_nothing_left_in_the_end(
        router in router(),
        deaf_later: bool,
    ) {
        let mut world = World::with(router);
        world.go();
        world.pass(Duration::from_secs(3_600));
        let first_hour = world.maps().len();
        prop_assert!(first_hour <= MAPS_AN_HOUR, "{first_hour} requests");
        world.router().quirks.deaf_ports |= deaf_later;
        world.pass(Duration::from_secs(5 * 3_600));
        prop_assert!(world.maps().len() <= 6 * MAPS_AN_HOUR);
        world.tell(MappingEvent::Stop);
        world.settle();
        prop_assert!(world.stopped);
        prop_assert!(world.router().table.is_empty(), "{:?}", world.router().table);
        prop_assert!(world.disk.is_empty());
    }

    #[test]
    fn a_sound_router_ends_up_mapped_whatever_was_before(
        protocols in prop::collection::btree_set(protocol(), 1..=3),
        events in prop::collection::vec(happens(), 0..40),
    ) {
        let protocols: Vec<_> = protocols.into_iter().collect();
        let mut world = World::with(Router::speaking(&protocols));
        world.tell(MappingEvent::Network(vec![gateway()]));
        for event in events {
            happen(&mut world, event);
        }
        // All is well again.
        let router = world.router();
        router.quirks = Quirks::default();
        router.external = ip("93.184.216.34");
        world.disk_full = false;
        world.dialler = None;
        world.crash();
        let network = world.network.clone();
        world.tell(MappingEvent::Network(network));
        world.tell(MappingEvent::ProverReady);
        world.settle();
        world.pass(LONG_REST + REST);
        let endpoint = world.machine.endpoint();
        prop_assert!(endpoint.is_some(), "{:?}", world.machine);
        prop_assert!(world.did.iter().any(|(_, did)| matches!(did, Did::Prove(_))));
        let own = world.router().table.values().filter(|row| row.entry.description != "a game").count();
        prop_assert_eq!(own, 1, "one mapping, no strays: {:?}", world.router().table);
    }
}
