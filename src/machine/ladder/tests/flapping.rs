//! The ladder against hours of a network in which ways come and go.

use super::*;

/// A network in which each rung works or not, and a bridge behind it.
struct World {
    machine: LadderMachine,
    now: Moment,
    works: [bool; 3],
    /// Dials under way and when they end.
    dialling: Vec<(TunnelId, Rung, Moment)>,
    up: Vec<(TunnelId, Rung)>,
    retired: Vec<TunnelId>,
    /// When a tunnel whose rung has failed is found out.
    dying: Vec<(TunnelId, Moment)>,
    carried: Option<TunnelId>,
    moves: Vec<Moment>,
}

/// A handshake.
const CONNECTS_AFTER: Duration = Duration::from_millis(80);

/// A dial without answer.
const FAILS_AFTER: Duration = Duration::from_secs(10);

/// Liveness.
const FOUND_OUT_AFTER: Duration = Duration::from_secs(5);

impl World {
    fn new(seed: u64) -> Self {
        let policy = LadderPolicy {
            rungs: RUNGS.to_vec(),
            ..LadderPolicy::default()
        };
        let mut world = Self {
            machine: LadderMachine::new(policy, 1, seed),
            now: at(0),
            works: [true; 3],
            dialling: Vec::new(),
            up: Vec::new(),
            retired: Vec::new(),
            dying: Vec::new(),
            carried: None,
            moves: Vec::new(),
        };
        world.event(LadderEvent::Enable);
        world
    }

    fn works(&self, rung: Rung) -> bool {
        RUNGS
            .iter()
            .zip(self.works)
            .any(|(known, works)| *known == rung && works)
    }

    fn set(&mut self, works: [bool; 3]) {
        self.works = works;
        for (id, rung) in self.up.clone() {
            let dies = self.dying.iter().any(|(dying, _)| *dying == id);
            if !self.works(rung) && !dies {
                self.dying.push((id, self.now.plus(FOUND_OUT_AFTER)));
            }
        }
    }

    fn event(&mut self, event: LadderEvent) {
        self.machine.handle_event(event, self.now);
        while let Some(action) = self.machine.poll_action() {
            match action {
                LadderAction::Dial { id, rung, .. } => {
                    let takes = if self.works(rung) {
                        CONNECTS_AFTER
                    } else {
                        FAILS_AFTER
                    };
                    self.dialling.push((id, rung, self.now.plus(takes)));
                }
                LadderAction::Hangup(id) => {
                    self.dialling.retain(|(dialled, _, _)| *dialled != id);
                    self.forget(id);
                }
                LadderAction::Retire(id) => self.retired.push(id),
                LadderAction::Probe(id) => {
                    assert!(self.up.iter().any(|(up, _)| *up == id), "a probe of nothing");
                }
            }
        }
        self.check();
    }

    fn forget(&mut self, id: TunnelId) {
        self.up.retain(|(up, _)| *up != id);
        self.retired.retain(|retired| *retired != id);
        self.dying.retain(|(dying, _)| *dying != id);
    }

    fn check(&mut self) {
        let carrier = self.machine.carrier();
        if let Some(carrier) = carrier {
            assert!(
                self.up.iter().any(|(up, _)| *up == carrier.id),
                "carried by nothing"
            );
        }
        // Each tunnel that is up is the carrier, on trial, or retired: none is forgotten.
        let spare = self
            .up
            .iter()
            .filter(|(up, _)| carrier.is_none_or(|carrier| carrier.id != *up) && !self.retired.contains(up));
        assert!(
            spare.count() <= 1,
            "more than one beside the carrier: {:?}",
            self.up
        );
        assert!(self.up.len() <= 2 + RETIRED_MAX);
        assert!(
            carrier.is_some() || !self.dialling.is_empty() || self.machine.poll_timeout().is_some(),
            "stuck"
        );
        let carrier = carrier.map(|carrier| carrier.id);
        if carrier != self.carried && carrier.is_some() {
            self.moves.push(self.now);
        }
        self.carried = carrier;
        assert!(self.moves.len() < 100_000, "it spins");
    }

    /// Lets the world go on until `until`.
    fn run(&mut self, until: Moment) {
        loop {
            let dial = self.dialling.iter().map(|(_, _, at)| *at).min();
            let death = self.dying.iter().map(|(_, at)| *at).min();
            let next = [dial, death, self.machine.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if let Some(index) = self.dialling.iter().position(|(_, _, at)| *at <= self.now) {
                let (id, rung, _) = self.dialling.remove(index);
                if self.works(rung) {
                    self.up.push((id, rung));
                    self.event(LadderEvent::Connected(id));
                } else {
                    self.event(LadderEvent::DialFailed(id, failure("no answer")));
                }
            } else if let Some(index) = self.dying.iter().position(|(_, at)| *at <= self.now) {
                let (id, _) = self.dying.remove(index);
                self.forget(id);
                self.event(LadderEvent::Lost(id, broken()));
            } else {
                self.event(LadderEvent::Timeout);
                for id in self.retired.clone() {
                    self.event(LadderEvent::Drained(id));
                }
            }
        }
    }

    fn most_moves_in_an_hour(&self) -> usize {
        let hour = Duration::from_secs(3_600);
        let within = |start: &Moment| {
            let later = self.moves.iter().filter(|moved| *moved >= start);
            later.filter(|moved| moved.since(*start) < hour).count()
        };
        self.moves.iter().map(within).max().unwrap_or(0)
    }
}

/// Three collapses to a bar and one after each bar, each down and up again, for two rungs that flap.
const MOVES_IN_AN_HOUR: usize = 24;

/// What proves the ladder's end: the best rung carries when all have worked for so long.
const BACK_WITHIN: Duration = Duration::from_secs(2 * 3_600 + 1_800 + 60);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// QUIC comes and goes for hours while TCP works: a bounded number of moves, always a carrier
    /// but for the moments between; and in the end QUIC carries again.
    #[test]
    fn a_network_that_flaps_does_not_make_it_oscillate(
        seed: u64,
        phases in proptest::collection::vec(1u64..120, 40..160),
    ) {
        let mut world = World::new(seed);
        for (index, seconds) in phases.iter().enumerate() {
            world.set([index % 2 == 0, true, true]);
            let until = world.now.plus(Duration::from_secs(*seconds));
            world.run(until);
        }
        let moves = world.most_moves_in_an_hour();
        prop_assert!(moves <= MOVES_IN_AN_HOUR, "{moves} moves in one hour");
        world.set([true; 3]);
        world.run(world.now.plus(BACK_WITHIN));
        prop_assert_eq!(world.machine.carrier().map(|carrier| carrier.rung), Some(Rung::Quic));
    }

    /// Everything comes and goes. Whenever something has worked for two minutes, something carries.
    #[test]
    fn whatever_works_is_found(
        seed: u64,
        phases in proptest::collection::vec((any::<[bool; 3]>(), 1u64..2_000), 1..40),
    ) {
        let mut world = World::new(seed);
        for (works, seconds) in phases {
            world.set(works);
            world.run(world.now.plus(Duration::from_secs(seconds)));
            if seconds >= 120 && works.contains(&true) {
                let rung = world.machine.carrier().map(|carrier| carrier.rung);
                prop_assert!(rung.is_some_and(|rung| world.works(rung)), "{rung:?} of {works:?}");
            }
        }
        world.set([true; 3]);
        world.run(world.now.plus(BACK_WITHIN));
        prop_assert_eq!(world.machine.carrier().map(|carrier| carrier.rung), Some(Rung::Quic));
    }
}
