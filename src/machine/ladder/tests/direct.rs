//! The host-bridge's own dial: when it is asked for, what its loss and a closed way in lead to.

use super::*;

const ALL: [Rung; 4] = [Rung::Direct, Rung::Quic, Rung::Tls, Rung::Proxy];

fn told() -> Loss {
    Loss {
        setback: Setback::RetryAfter(Duration::from_secs(4)),
        told: true,
        why: "the host-bridge stops".to_owned(),
    }
}

/// On QUIC, with no way in yet.
fn on_quic() -> (LadderMachine, TunnelId) {
    let mut machine = enabled(&[Rung::Direct, Rung::Quic, Rung::Tls]);
    let quic = dials(&mut machine);
    assert_eq!(quic[0].1, Rung::Quic, "nobody can be asked for a direct one yet");
    machine.handle_event(LadderEvent::Connected(quic[0].0), at(50));
    actions(&mut machine);
    (machine, quic[0].0)
}

/// Carried by the host-bridge's dial, since the returned time.
fn on_direct() -> (LadderMachine, TunnelId, Moment) {
    let (mut machine, quic) = on_quic();
    machine.handle_event(LadderEvent::WayIn(WayIn::Open), at(1_000));
    let direct = dials(&mut machine);
    assert_eq!(direct[0].1, Rung::Direct);
    machine.handle_event(LadderEvent::Connected(direct[0].0), at(1_100));
    let moved = at(1_100).plus(HOLD);
    machine.handle_event(LadderEvent::Timeout, moved);
    assert_eq!(machine.carrier().unwrap().rung, Rung::Direct);
    machine.handle_event(LadderEvent::Drained(quic), moved);
    let over = moved.plus(OVERLAP);
    machine.handle_event(LadderEvent::Timeout, over);
    assert_eq!(machine.draining(), 0);
    actions(&mut machine);
    (machine, direct[0].0, over)
}

#[test]
fn without_a_way_in_nobody_is_asked_and_the_reason_is_told() {
    let (mut machine, _) = on_quic();
    for minute in 1..200 {
        machine.handle_event(LadderEvent::Timeout, at(minute * 60_000));
        machine.handle_event(LadderEvent::RetryNow, at(minute * 60_000));
        assert_eq!(dials(&mut machine), []);
    }
    let better = machine.better(at(13_000_000));
    assert_eq!(better, [(Rung::Direct, WhyNot::NoWayIn, None)]);
}

#[test]
fn a_way_in_is_tried_at_once_and_takes_over_when_it_has_held() {
    let (mut machine, quic) = on_quic();
    machine.handle_event(LadderEvent::WayIn(WayIn::Open), at(90_000));
    let (direct, rung, trial) = dials(&mut machine)[0];
    assert_eq!((rung, trial), (Rung::Direct, Some(HOLD)));
    machine.handle_event(LadderEvent::Connected(direct), at(90_200));
    assert_eq!(machine.carrier().unwrap().id, quic, "on trial");
    machine.handle_event(LadderEvent::Timeout, at(90_200).plus(HOLD));
    assert_eq!(actions(&mut machine).last(), Some(&LadderAction::Retire(quic)));
    assert_eq!(machine.better(at(200_000)), [], "there is none");
}

#[test]
fn a_call_that_does_not_come_is_asked_for_again_with_backoff() {
    let (mut machine, quic) = on_quic();
    machine.handle_event(LadderEvent::WayIn(WayIn::Open), at(1_000));
    let mut asked = Vec::new();
    let mut now = at(1_000);
    for _ in 0..12 {
        let (id, rung, at) = next_dial(&mut machine, now);
        assert_eq!(rung, Rung::Direct);
        asked.push(at);
        now = at.plus(Duration::from_secs(1));
        machine.handle_event(LadderEvent::DialFailed(id, failure("not reached")), now);
    }
    assert_eq!(machine.carrier().unwrap().id, quic);
    let last = asked[11].since(asked[10]);
    assert!(
        last > CLIMB_INITIAL && last <= CLIMB_MAX.saturating_mul(2),
        "{last:?}"
    );
    machine.handle_event(LadderEvent::WayIn(WayIn::Open), now.plus(Duration::from_secs(2)));
    assert_eq!(dials(&mut machine)[0].1, Rung::Direct, "another endpoint is news");
}

#[test]
fn a_direct_tunnel_that_breaks_is_followed_at_once_by_the_others() {
    let (mut machine, direct, now) = on_direct();
    machine.handle_event(LadderEvent::Lost(direct, broken()), now);
    let next = dials(&mut machine);
    assert_eq!(next[0].1, Rung::Quic, "without a wait");
    machine.handle_event(LadderEvent::Connected(next[0].0), now);
    let (_, rung, again) = next_dial(&mut machine, now);
    assert_eq!(rung, Rung::Direct);
    assert!(again > now, "with backoff");
}

#[test]
fn a_host_bridge_that_says_when_to_come_back_is_obeyed() {
    let (mut machine, direct, now) = on_direct();
    machine.handle_event(LadderEvent::Lost(direct, told()), now);
    assert_eq!(dials(&mut machine), []);
    assert!(matches!(machine.state(), LadderState::Waiting(_)));
}

#[test]
fn a_way_in_that_closes_moves_streams_on_before_the_tunnel_breaks() {
    let (mut machine, direct, now) = on_direct();
    machine.handle_event(LadderEvent::WayIn(WayIn::Closed), now);
    machine.handle_event(LadderEvent::Withdrawn(direct), now);
    let next = dials(&mut machine);
    assert_eq!(next[0].1, Rung::Quic);
    assert_eq!(
        machine.carrier().unwrap().id,
        direct,
        "it carries until there is another"
    );
    machine.handle_event(LadderEvent::Connected(next[0].0), now);
    assert_eq!(actions(&mut machine), [LadderAction::Retire(direct)]);
    assert_eq!(machine.carrier().unwrap().rung, Rung::Quic);
    assert_eq!(machine.draining(), 1, "its streams go on");
    machine.handle_event(LadderEvent::Lost(next[0].0, broken()), now);
    assert!(machine.carrier().is_none(), "and no new ones come back to it");
}

#[test]
fn a_direct_tunnel_that_breaks_while_its_successor_is_dialled_costs_no_second_race() {
    let (mut machine, direct, now) = on_direct();
    machine.handle_event(LadderEvent::Withdrawn(direct), now);
    let quic = dials(&mut machine)[0].0;
    machine.handle_event(LadderEvent::Lost(direct, broken()), now);
    assert_eq!(actions(&mut machine), []);
    machine.handle_event(LadderEvent::Connected(quic), now);
    assert_eq!(machine.carrier().unwrap().id, quic);
}

#[test]
fn where_no_other_rung_works_a_closed_way_in_is_used_for_as_long_as_it_lives() {
    let (mut machine, direct, now) = on_direct();
    machine.handle_event(LadderEvent::Withdrawn(direct), now);
    for _ in 0..2 {
        let (id, ..) = next_dial(&mut machine, now);
        machine.handle_event(LadderEvent::DialFailed(id, failure("refused")), now);
    }
    assert_eq!(machine.carrier().unwrap().id, direct);
    assert_eq!(machine.last_failure(), None, "it is connected");
    let (_, rung, later) = next_dial(&mut machine, now);
    assert!(later > now && rung == Rung::Quic, "tried again");
}

#[test]
fn a_way_in_that_comes_and_goes_is_left_alone_for_a_while() {
    let (mut machine, _) = on_quic();
    let mut now = at(1_000);
    for _ in 0..COLLAPSES_MAX {
        machine.handle_event(LadderEvent::WayIn(WayIn::Open), now);
        let direct = dials(&mut machine)[0].0;
        machine.handle_event(LadderEvent::Connected(direct), now);
        now = now.plus(Duration::from_secs(5));
        machine.handle_event(LadderEvent::WayIn(WayIn::Closed), now);
        machine.handle_event(LadderEvent::Withdrawn(direct), now);
        now = now.plus(Duration::from_secs(20));
    }
    machine.handle_event(LadderEvent::WayIn(WayIn::Open), now);
    actions(&mut machine);
    let (_, rung, again) = next_dial(&mut machine, now);
    assert_eq!(rung, Rung::Direct);
    assert!(again.since(now) > Duration::from_secs(300), "{again:?}");
}

#[test]
fn a_host_bridge_that_calls_by_itself_is_taken_where_nothing_else_is_up() {
    let (mut machine, quic) = on_quic();
    machine.handle_event(LadderEvent::Called, at(1_000));
    assert_eq!(actions(&mut machine), [LadderAction::Probe(quic)], "is it dead?");
    machine.handle_event(LadderEvent::Lost(quic, broken()), at(2_000));
    assert!(matches!(machine.state(), LadderState::Waiting(_)));
    machine.handle_event(LadderEvent::Called, at(2_010));
    let called = dials(&mut machine);
    assert_eq!((called[0].1, called[0].2), (Rung::Direct, None));
    machine.handle_event(LadderEvent::Called, at(2_020));
    assert_eq!(dials(&mut machine), [], "one at a time");
    machine.handle_event(LadderEvent::Connected(called[0].0), at(2_100));
    assert_eq!(machine.carrier().unwrap().rung, Rung::Direct);
}

#[test]
fn a_call_that_comes_to_nothing_costs_no_dial_of_this_side() {
    let (mut machine, quic) = on_quic();
    machine.handle_event(LadderEvent::Lost(quic, broken()), at(2_000));
    machine.handle_event(LadderEvent::Called, at(2_010));
    let (called, ..) = dials(&mut machine)[0];
    machine.handle_event(LadderEvent::DialFailed(called, failure("cut")), at(2_100));
    let (_, rung, _) = next_dial(&mut machine, at(2_100));
    assert_eq!(rung, Rung::Quic);
}

proptest! {
    /// Whatever happens in whatever order: a direct tunnel is dialled beside a carrier alone, and there is
    /// always a carrier, a dial, or a time.
    #[test]
    fn it_neither_hangs_nor_spins_and_asks_only_where_it_can(
        events in proptest::collection::vec((0_u8..10, any::<prop::sample::Index>(), 0_u64..40_000), 1..80),
    ) {
        let mut machine = enabled(&ALL);
        let (mut now, mut dialled, mut up) = (at(0), Vec::new(), Vec::new());
        for (kind, pick, millis) in events {
            while let Some(action) = machine.poll_action() {
                match action {
                    LadderAction::Dial { id, rung, trial } => {
                        let carried = machine.carrier().is_some();
                        prop_assert!(rung != Rung::Direct || trial.is_some() == carried);
                        dialled.push(id);
                    }
                    LadderAction::Hangup(id) => {
                        dialled.retain(|other| *other != id);
                        up.retain(|other| *other != id);
                    }
                    LadderAction::Retire(id) | LadderAction::Probe(id) => prop_assert!(up.contains(&id)),
                }
            }
            if let Some(carrier) = machine.carrier() {
                prop_assert!(up.contains(&carrier.id));
            }
            prop_assert!(machine.carrier().is_some() || !dialled.is_empty() || machine.poll_timeout().is_some());
            now = now.plus(Duration::from_millis(millis));
            match kind {
                0 | 1 if !dialled.is_empty() => {
                    let id = dialled.remove(pick.index(dialled.len()));
                    up.push(id);
                    machine.handle_event(LadderEvent::Connected(id), now);
                }
                2 if !dialled.is_empty() => {
                    let id = dialled.remove(pick.index(dialled.len()));
                    machine.handle_event(LadderEvent::DialFailed(id, failure("refused")), now);
                }
                3 if !up.is_empty() => {
                    let id = up.remove(pick.index(up.len()));
                    machine.handle_event(LadderEvent::Lost(id, broken()), now);
                }
                4 => machine.handle_event(LadderEvent::WayIn(WayIn::Open), now),
                5 => machine.handle_event(LadderEvent::WayIn(WayIn::Closed), now),
                6 if !up.is_empty() => {
                    let id = up[pick.index(up.len())];
                    machine.handle_event(LadderEvent::Withdrawn(id), now);
                }
                7 => machine.handle_event(LadderEvent::Renew, now),
                8 => machine.handle_event(LadderEvent::Called, now),
                _ => {
                    now = machine.poll_timeout().unwrap_or(now).max(now);
                    machine.handle_event(LadderEvent::Timeout, now);
                    prop_assert!(machine.poll_timeout().is_none_or(|next| next > now), "the same timeout twice");
                }
            }
        }
    }
}
