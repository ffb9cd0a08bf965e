//! The ladder against single stories and against every order of events.

use proptest::prelude::*;

use super::*;

mod direct;
mod flapping;

const RUNGS: [Rung; 3] = [Rung::Quic, Rung::Tls, Rung::Proxy];

fn at(millis: u64) -> Moment {
    Moment::after_start(Duration::from_millis(millis))
}

fn failure(why: &str) -> DialFailure {
    DialFailure {
        setback: Setback::Transient,
        answered: false,
        why: why.to_owned(),
    }
}

fn broken() -> Loss {
    Loss {
        setback: Setback::Transient,
        told: false,
        why: "nothing was heard".to_owned(),
    }
}

fn actions(machine: &mut LadderMachine) -> Vec<LadderAction> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

/// The dials among the actions that are due.
fn dials(machine: &mut LadderMachine) -> Vec<(TunnelId, Rung, Option<Duration>)> {
    let dialled = actions(machine).into_iter().filter_map(|action| match action {
        LadderAction::Dial { id, rung, trial } => Some((id, rung, trial)),
        LadderAction::Hangup(_) | LadderAction::Retire(_) | LadderAction::Probe(_) => None,
    });
    dialled.collect()
}

fn enabled(rungs: &[Rung]) -> LadderMachine {
    let policy = LadderPolicy {
        rungs: rungs.to_vec(),
        ..LadderPolicy::default()
    };
    let mut machine = LadderMachine::new(policy, 1, 7);
    machine.handle_event(LadderEvent::Enable, at(0));
    machine
}

/// Lets time pass to the next timeout until there is a dial.
fn next_dial(machine: &mut LadderMachine, mut now: Moment) -> (TunnelId, Rung, Moment) {
    loop {
        if let Some((id, rung, _)) = dials(machine).first() {
            return (*id, *rung, now);
        }
        now = machine.poll_timeout().unwrap().max(now);
        machine.handle_event(LadderEvent::Timeout, now);
    }
}

/// On TLS, because QUIC failed.
fn on_tls() -> (LadderMachine, TunnelId) {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::DialFailed(quic, failure("refused")), at(5));
    let tls = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(tls), at(50));
    assert_eq!(machine.carrier().unwrap().rung, Rung::Tls);
    (machine, tls)
}

#[test]
fn each_rung_has_a_head_start_before_the_next() {
    let mut machine = enabled(&[Rung::Proxy, Rung::Quic, Rung::Tls]);
    let mut order = vec![(dials(&mut machine)[0].1, at(0))];
    while let Some(next) = machine.poll_timeout() {
        machine.handle_event(LadderEvent::Timeout, next);
        order.extend(dials(&mut machine).into_iter().map(|(_, rung, _)| (rung, next)));
    }
    let expected = [(Rung::Quic, at(0)), (Rung::Tls, at(300)), (Rung::Proxy, at(600))];
    assert_eq!(order, expected);
}

#[test]
fn a_rung_that_fails_at_once_gives_its_head_start_away() {
    let (machine, _) = on_tls();
    assert_eq!(machine.carrier().unwrap().since, at(50));
}

#[test]
fn a_slow_better_rung_goes_on_beside_the_winner_and_takes_over_when_proven() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Timeout, at(300));
    let tls = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(tls), at(400));
    assert_eq!(actions(&mut machine), [], "QUIC is not hung up");
    machine.handle_event(LadderEvent::Connected(quic), at(900));
    assert_eq!(machine.carrier().unwrap().id, tls, "not proven yet");
    let mut probes = 0;
    while machine.carrier().unwrap().id == tls {
        let now = machine.poll_timeout().unwrap();
        machine.handle_event(LadderEvent::Timeout, now);
        let done = actions(&mut machine);
        probes += done
            .iter()
            .filter(|action| **action == LadderAction::Probe(quic))
            .count();
    }
    assert_eq!(machine.carrier().unwrap().since, at(900).plus(HOLD));
    assert_eq!(probes, 4);
}

#[test]
fn a_slow_worse_rung_is_given_up() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Timeout, at(300));
    let tls = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(quic), at(400));
    assert_eq!(actions(&mut machine), [LadderAction::Hangup(tls)]);
    machine.handle_event(LadderEvent::Connected(tls), at(401));
    assert_eq!(
        actions(&mut machine),
        [LadderAction::Hangup(tls)],
        "it was faster than the hangup"
    );
}

#[test]
fn the_old_tunnel_ends_when_its_streams_have() {
    let (mut machine, tls) = on_tls();
    let (quic, rung, now) = next_dial(&mut machine, at(50));
    assert_eq!(rung, Rung::Quic);
    machine.handle_event(LadderEvent::Connected(quic), now);
    let moved = now.plus(HOLD);
    machine.handle_event(LadderEvent::Timeout, moved);
    assert_eq!(actions(&mut machine), [LadderAction::Retire(tls)]);
    assert_eq!(machine.draining(), 1);
    machine.handle_event(LadderEvent::Timeout, moved.plus(Duration::from_secs(600)));
    assert_eq!(dials(&mut machine), [], "a stream is still open");
    machine.handle_event(LadderEvent::Drained(tls), moved.plus(Duration::from_secs(601)));
    assert_eq!(actions(&mut machine), [LadderAction::Hangup(tls)]);
    assert_eq!(machine.draining(), 0);
}

#[test]
fn a_retired_tunnel_lives_at_least_for_the_overlap_and_at_most_to_its_limit() {
    for drained in [true, false] {
        let (mut machine, tls) = on_tls();
        let (quic, _, now) = next_dial(&mut machine, at(50));
        machine.handle_event(LadderEvent::Connected(quic), now);
        let moved = now.plus(HOLD);
        machine.handle_event(LadderEvent::Timeout, moved);
        if drained {
            machine.handle_event(LadderEvent::Drained(tls), moved);
        }
        actions(&mut machine);
        let end = moved.plus(if drained { OVERLAP } else { DRAIN_LIMIT });
        machine.handle_event(LadderEvent::Timeout, at(1).plus(end.since(at(2))));
        assert_eq!(machine.draining(), 1, "{drained}");
        machine.handle_event(LadderEvent::Timeout, end);
        assert_eq!(machine.draining(), 0, "{drained}");
        assert!(actions(&mut machine).contains(&LadderAction::Hangup(tls)));
    }
}

#[test]
fn a_challenger_that_breaks_moves_nothing_and_one_that_holds_replaces_a_lost_carrier() {
    let (mut machine, tls) = on_tls();
    let (quic, _, now) = next_dial(&mut machine, at(50));
    machine.handle_event(LadderEvent::Connected(quic), now);
    machine.handle_event(LadderEvent::Lost(quic, broken()), now.plus(PROBE_EVERY));
    assert_eq!(machine.carrier().unwrap().id, tls);
    let (quic, _, now) = next_dial(&mut machine, now);
    machine.handle_event(LadderEvent::Connected(quic), now);
    machine.handle_event(LadderEvent::Lost(tls, broken()), now);
    assert_eq!(machine.carrier().unwrap().id, quic, "no gap");
}

#[test]
fn what_still_drains_carries_again_when_its_successor_is_lost() {
    let (mut machine, tls) = on_tls();
    let (quic, _, now) = next_dial(&mut machine, at(50));
    machine.handle_event(LadderEvent::Connected(quic), now);
    machine.handle_event(LadderEvent::Timeout, now.plus(HOLD));
    machine.handle_event(LadderEvent::Lost(quic, broken()), now.plus(HOLD * 2));
    assert_eq!(machine.carrier().unwrap().id, tls);
    assert_eq!(machine.draining(), 0);
}

#[test]
fn better_rungs_are_tried_again_for_ever_with_a_ceiling() {
    let (mut machine, _) = on_tls();
    let mut now = at(50);
    let mut longest = Duration::ZERO;
    for _ in 0..300 {
        let (quic, rung, dialled) = next_dial(&mut machine, now);
        assert_eq!(rung, Rung::Quic);
        longest = longest.max(dialled.since(now));
        now = dialled.plus(Duration::from_secs(10));
        machine.handle_event(LadderEvent::DialFailed(quic, failure("no answer")), now);
    }
    assert!(longest <= CLIMB_MAX && longest > CLIMB_MAX / 2, "{longest:?}");
    assert_eq!(
        machine.better(now)[0].1,
        WhyNot::Failed {
            why: "no answer".into()
        }
    );
}

#[test]
fn one_lost_tunnel_does_not_send_quic_down() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(quic), at(30));
    machine.handle_event(LadderEvent::Lost(quic, broken()), at(40_000));
    let (quic, rung, now) = next_dial(&mut machine, at(40_000));
    assert_eq!(rung, Rung::Quic, "it is first in the next race, too");
    assert!(now.since(at(40_000)) <= Duration::from_millis(250));
    machine.handle_event(LadderEvent::Connected(quic), now);
    assert_eq!(machine.carrier().unwrap().rung, Rung::Quic);
}

/// Lets QUIC come up in each race and collapse after ten seconds, until TLS carries.
fn barred() -> (LadderMachine, Moment) {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let mut now = at(0);
    for _ in 0..COLLAPSES_MAX {
        let (quic, rung, dialled) = next_dial(&mut machine, now);
        assert_eq!(rung, Rung::Quic);
        machine.handle_event(LadderEvent::Connected(quic), dialled);
        now = dialled.plus(Duration::from_secs(10));
        machine.handle_event(LadderEvent::Lost(quic, broken()), now);
    }
    let (tls, rung, dialled) = next_dial(&mut machine, now);
    assert_eq!(rung, Rung::Tls, "QUIC goes last now");
    machine.handle_event(LadderEvent::Connected(tls), dialled);
    (machine, now)
}

#[test]
fn a_rung_that_collapses_again_and_again_is_left_alone_for_a_growing_time() {
    let (mut machine, barred_at) = barred();
    assert!(matches!(machine.better(barred_at)[0].1, WhyNot::Barred { .. }));
    let mut since = barred_at;
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let (quic, _, now) = next_dial(&mut machine, since);
        pauses.push(now.since(since));
        machine.handle_event(LadderEvent::Connected(quic), now);
        since = now.plus(HOLD / 2);
        machine.handle_event(LadderEvent::Lost(quic, broken()), since);
    }
    for (pause, least) in pauses.iter().zip([600, 1_200, 2_400, 3_600, 3_600]) {
        assert!(*pause >= Duration::from_secs(least), "{pauses:?}");
    }
    assert!(pauses.iter().all(|pause| *pause <= BAR_MAX + CLIMB_MAX));
}

#[test]
fn a_barred_rung_is_used_where_nothing_else_works() {
    let (mut machine, mut now) = barred();
    let tls = machine.carrier().unwrap().id;
    now = now.plus(Duration::from_secs(5));
    machine.handle_event(LadderEvent::Lost(tls, broken()), now);
    let (tls, rung, dialled) = next_dial(&mut machine, now);
    assert_eq!(rung, Rung::Tls);
    machine.handle_event(LadderEvent::DialFailed(tls, failure("refused")), dialled);
    let (quic, rung, dialled) = next_dial(&mut machine, dialled);
    assert_eq!(rung, Rung::Quic);
    machine.handle_event(LadderEvent::Connected(quic), dialled);
    assert_eq!(machine.carrier().unwrap().rung, Rung::Quic);
}

#[test]
fn half_an_hour_of_carrying_makes_a_rung_trusted_again() {
    let (mut machine, mut now) = barred();
    let (quic, _, dialled) = next_dial(&mut machine, now);
    machine.handle_event(LadderEvent::Connected(quic), dialled);
    now = dialled.plus(HOLD);
    machine.handle_event(LadderEvent::Timeout, now);
    assert_eq!(machine.carrier().unwrap().id, quic);
    machine.handle_event(LadderEvent::Timeout, now.plus(TRUSTED_AFTER));
    machine.handle_event(LadderEvent::Lost(quic, broken()), now.plus(TRUSTED_AFTER));
    assert!(!machine.is_barred(Rung::Quic, now.plus(TRUSTED_AFTER)));
}

#[test]
fn a_goodbye_does_not_speak_against_the_rung_and_its_hint_is_obeyed() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let mut now = at(0);
    for _ in 0..COLLAPSES_MAX + 2 {
        let (quic, rung, dialled) = next_dial(&mut machine, now);
        assert_eq!(rung, Rung::Quic);
        machine.handle_event(LadderEvent::Connected(quic), dialled);
        let goodbye = Loss {
            setback: Setback::RetryAfter(Duration::from_secs(3)),
            told: true,
            why: "the host-bridge restarts".into(),
        };
        machine.handle_event(LadderEvent::Lost(quic, goodbye), dialled);
        let LadderState::Waiting(until) = machine.state() else {
            panic!("{:?}", machine.state());
        };
        assert!(until.since(dialled) >= Duration::from_secs(3));
        now = dialled;
    }
}

#[test]
fn a_refusal_by_the_bridge_itself_ends_the_race() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Timeout, at(300));
    let tls = dials(&mut machine)[0].0;
    let refused = DialFailure {
        setback: Setback::RetryAfter(Duration::from_secs(30)),
        answered: true,
        why: "the peer is suspended".into(),
    };
    machine.handle_event(LadderEvent::DialFailed(quic, refused), at(310));
    assert_eq!(actions(&mut machine), [LadderAction::Hangup(tls)]);
    assert!(matches!(machine.state(), LadderState::Waiting(until) if until >= at(30_310)));
    assert_eq!(machine.last_failure(), Some("the peer is suspended"));
}

#[test]
fn a_rung_that_is_overrun_is_left_and_barred_while_its_streams_go_on() {
    let mut machine = enabled(&[Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(quic), at(10));
    actions(&mut machine);
    machine.handle_event(LadderEvent::Overrun(TunnelId(99), "another's".into()), at(20_000));
    assert_eq!(actions(&mut machine), []);
    machine.handle_event(LadderEvent::Overrun(quic, "40 % are dropped".into()), at(20_000));
    let done = actions(&mut machine);
    assert_eq!(done[0], LadderAction::Retire(quic));
    let LadderAction::Dial {
        id: tls,
        rung: Rung::Tls,
        ..
    } = done[1]
    else {
        panic!("{done:?}");
    };
    machine.handle_event(LadderEvent::Connected(tls), at(20_100));
    assert!(matches!(machine.state(), LadderState::Carried(carrier) if carrier.id == tls));
    let (rung, why, next) = machine.better(at(20_100)).remove(0);
    assert_eq!(rung, Rung::Quic);
    assert!(matches!(why, WhyNot::Barred { why, .. } if why == "40 % are dropped"));
    assert!(next.unwrap() >= at(20_000).plus(BAR_INITIAL));
    assert!(!actions(&mut machine).contains(&LadderAction::Hangup(quic)));

    // Where there is no other rung, it is the best that there is.
    let mut machine = enabled(&[Rung::Quic]);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Connected(quic), at(10));
    machine.handle_event(LadderEvent::Overrun(quic, "40 % are dropped".into()), at(20_000));
    assert_eq!(machine.carrier().map(|carrier| carrier.id), Some(quic));
}

#[test]
fn a_changed_network_is_looked_at_at_once() {
    let (mut machine, tls) = on_tls();
    machine.handle_event(LadderEvent::NetworkChanged, at(100));
    let done = actions(&mut machine);
    assert!(done.contains(&LadderAction::Probe(tls)), "{done:?}");
    assert!(
        matches!(done[1], LadderAction::Dial { rung: Rung::Quic, .. }),
        "{done:?}"
    );
    let mut machine = enabled(&[Rung::Tls]);
    let tls = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::DialFailed(tls, failure("no route")), at(1));
    machine.handle_event(LadderEvent::NetworkChanged, at(2));
    assert_eq!(dials(&mut machine).len(), 1);
}

#[test]
fn a_new_identity_gets_a_new_tunnel_and_the_old_one_keeps_its_streams() {
    let (mut machine, tls) = on_tls();
    machine.handle_event(LadderEvent::Renew, at(1_000));
    let done = actions(&mut machine);
    assert_eq!(done[0], LadderAction::Retire(tls));
    assert!(matches!(done[1], LadderAction::Dial { trial: None, .. }));
    machine.handle_event(
        LadderEvent::DialFailed(TunnelId(3), failure("no answer")),
        at(1_010),
    );
    let LadderAction::Dial { id, .. } = actions(&mut machine)[0] else {
        panic!("TLS is dialled next");
    };
    machine.handle_event(LadderEvent::DialFailed(id, failure("no answer")), at(1_020));
    assert_eq!(
        machine.carrier(),
        None,
        "what presents the old identity carries nothing new"
    );
}

#[test]
fn a_rung_that_is_forbidden_is_left() {
    let (mut machine, tls) = on_tls();
    let policy = LadderPolicy {
        rungs: vec![Rung::Quic],
        ..LadderPolicy::default()
    };
    machine.set_policy(policy, at(100));
    let done = actions(&mut machine);
    assert_eq!(done[0], LadderAction::Retire(tls));
    assert!(matches!(done[1], LadderAction::Dial { rung: Rung::Quic, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Every order of events, those that make no sense included: it neither hangs nor spins, and
    /// numbers no two tunnels alike.
    #[test]
    fn it_neither_hangs_nor_spins(
        events in proptest::collection::vec((0u8..11, 0u64..8, 0u64..20_000), 1..80),
    ) {
        let mut machine = enabled(&RUNGS);
        let mut now = at(0);
        let mut issued = Vec::new();
        let (mut open, mut up) = (Vec::new(), Vec::new());
        // Nothing is told of a dial that has not begun.
        for (id, ..) in dials(&mut machine) {
            issued.push(id);
            open.push(id);
        }
        for (kind, back, millis) in events {
            let id = TunnelId((issued.len() as u64 + 1).saturating_sub(back));
            let setback = match back % 3 {
                0 => Setback::Transient,
                1 => Setback::Persistent,
                _ => Setback::RetryAfter(Duration::from_secs(back)),
            };
            let event = match kind {
                0 => LadderEvent::Enable,
                1 => LadderEvent::Disable,
                2 => LadderEvent::Dismiss,
                3 => LadderEvent::Renew,
                4 | 5 => LadderEvent::Connected(id),
                6 => LadderEvent::DialFailed(id, DialFailure { setback, answered: back == 7, why: String::new() }),
                7 => LadderEvent::Lost(id, Loss { setback, told: back > 3, why: String::new() }),
                8 => LadderEvent::Drained(id),
                9 => LadderEvent::NetworkChanged,
                _ => LadderEvent::Timeout,
            };
            match &event {
                LadderEvent::Connected(id) if open.contains(id) => up.push(*id),
                LadderEvent::DialFailed(id, _) if !up.contains(id) => open.retain(|open| open != id),
                LadderEvent::Lost(id, _) if up.contains(id) => open.retain(|open| open != id),
                _ => {}
            }
            now = now.plus(Duration::from_millis(millis));
            machine.handle_event(event, now);
            let mut steps = 0;
            loop {
                for action in actions(&mut machine) {
                    match action {
                        LadderAction::Dial { id, .. } => {
                            prop_assert!(!issued.contains(&id));
                            issued.push(id);
                            open.push(id);
                        }
                        LadderAction::Hangup(id) => open.retain(|open| *open != id),
                        LadderAction::Retire(_) | LadderAction::Probe(_) => {}
                    }
                }
                match machine.state() {
                    LadderState::Off => prop_assert!(machine.poll_timeout().is_none() || machine.draining() > 0),
                    LadderState::Waiting(until) => prop_assert!(until > now && machine.poll_timeout().is_some()),
                    LadderState::Racing => prop_assert!(!open.is_empty(), "a race without a dial"),
                    LadderState::Carried(carrier) => prop_assert!(open.contains(&carrier.id)),
                }
                let Some(timeout) = machine.poll_timeout().filter(|timeout| *timeout <= now) else {
                    break;
                };
                machine.handle_event(LadderEvent::Timeout, timeout.max(now));
                steps += 1;
                prop_assert!(steps < 5, "it spins");
            }
        }
    }
}
