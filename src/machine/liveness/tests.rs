use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Moment {
    Moment::after_start(Duration::from_millis(millis))
}

fn started() -> Liveness {
    Liveness::new(DEFAULT_KEEPALIVE, at(0))
}

fn actions(machine: &mut Liveness) -> Vec<LivenessAction> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

/// Fires every timer up to `end` and returns what was to be done, with its time.
fn run_silently(machine: &mut Liveness, end: Moment) -> Vec<(Moment, LivenessAction)> {
    let mut done = Vec::new();
    while let Some(next) = machine.poll_timeout().filter(|next| *next <= end) {
        machine.handle_event(LivenessEvent::Timer, next);
        done.extend(actions(machine).into_iter().map(|action| (next, action)));
    }
    done
}

#[test]
fn an_idle_tunnel_is_pinged_once_per_keepalive_while_answers_come() {
    let mut machine = started();
    for round in 1..=3_u64 {
        let ping_at = at(round * 20_000 + (round - 1) * 100);
        let done = run_silently(&mut machine, ping_at.plus(Duration::from_millis(100)));
        let asked = [LivenessAction::Ping(round), LivenessAction::Knock];
        assert_eq!(done, asked.map(|action| (ping_at, action)));
        machine.handle_event(LivenessEvent::Message, ping_at.plus(Duration::from_millis(100)));
        assert_eq!(actions(&mut machine), []);
    }
}

#[test]
fn a_path_in_doubt_is_asked_at_once_and_given_up_in_five_seconds() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::Doubt, at(7_000));
    assert_eq!(
        actions(&mut machine),
        [LivenessAction::Ping(1), LivenessAction::Knock]
    );
    machine.handle_event(LivenessEvent::Doubt, at(7_100));
    assert_eq!(actions(&mut machine), [], "it is being asked");
    let done = run_silently(&mut machine, at(60_000));
    assert_eq!(done[0], (at(8_000), LivenessAction::ChangePort));
    assert_eq!(done[1], (at(8_000), LivenessAction::Ping(2)));
    let (dead_at, verdict) = *done.last().unwrap();
    assert_eq!(dead_at, at(12_000));
    assert!(matches!(verdict, LivenessAction::Dead { .. }));
    let changes = done
        .iter()
        .filter(|(_, action)| *action == LivenessAction::ChangePort);
    assert_eq!(changes.count(), 1);
}

#[test]
fn asked_twice_in_a_row_it_leaves_a_port_from_which_nothing_arrives_there() {
    let mut machine = started();
    for (millis, changes) in [
        (2_000, 0),
        (30_000, 0),
        (31_000, 1),
        (32_000, 0),
        (33_000, 0),
        (42_000, 0),
        (43_000, 1),
    ] {
        machine.handle_event(LivenessEvent::Message, at(millis));
        machine.handle_event(LivenessEvent::Asked, at(millis));
        assert_eq!(
            actions(&mut machine),
            vec![LivenessAction::ChangePort; changes],
            "{millis}"
        );
    }
}

#[test]
fn an_answer_ends_the_doubt() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::Doubt, at(7_000));
    actions(&mut machine);
    machine.handle_event(LivenessEvent::Message, at(7_050));
    assert_eq!(machine.poll_timeout(), Some(at(27_050)), "the next keepalive");
    assert_eq!(actions(&mut machine), []);
}

#[test]
fn an_idle_ping_without_answer_ends_the_tunnel_after_ten_seconds() {
    let mut machine = started();
    let done = run_silently(&mut machine, at(60_000));
    assert_eq!(
        done.last(),
        Some(&(
            at(30_000),
            LivenessAction::Dead {
                silent_for: Duration::from_secs(30)
            }
        ))
    );
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_stream_that_opens_after_long_quiet_is_given_its_time() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::StreamsOpen(true), at(19_000));
    assert_eq!(
        actions(&mut machine),
        [LivenessAction::Ping(1), LivenessAction::Knock],
        "the peer is asked at once"
    );
    let done = run_silently(&mut machine, at(60_000));
    assert!(
        matches!(done.last(), Some((when, LivenessAction::Dead { .. })) if *when == at(19_000).plus(BUSY_SILENCE))
    );
}

#[test]
fn traffic_alone_keeps_a_busy_tunnel() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::StreamsOpen(true), at(0));
    for second in 1..100 {
        machine.handle_event(LivenessEvent::Traffic, at(second * 1_000));
        assert_eq!(actions(&mut machine), []);
    }
}

#[test]
fn traffic_does_not_postpone_the_idle_keepalive() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::Traffic, at(19_000));
    assert_eq!(machine.poll_timeout(), Some(at(20_000)));
}

#[test]
fn a_verdict_that_was_slept_through_is_put_off_once() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::StreamsOpen(true), at(0));
    machine.handle_event(LivenessEvent::Timer, at(60_000));
    assert_eq!(
        actions(&mut machine),
        [LivenessAction::Ping(1), LivenessAction::Knock]
    );
    machine.handle_event(LivenessEvent::Timer, at(120_000));
    assert!(matches!(actions(&mut machine)[..], [LivenessAction::Dead { .. }]));
}

#[test]
fn another_sides_keepalive_is_kept_within_reason() {
    let machine = Liveness::new(Duration::ZERO, at(0));
    assert_eq!(machine.poll_timeout(), Some(at(0).plus(MIN_KEEPALIVE)));
    let machine = Liveness::new(Duration::MAX, at(0));
    assert_eq!(machine.poll_timeout(), Some(at(0).plus(MAX_KEEPALIVE)));
}

#[test]
fn a_host_that_says_that_nobody_is_there_is_believed_of_a_tunnel_that_is_silent() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::Gone, at(1_000));
    assert_eq!(actions(&mut machine), [], "nobody had asked");
    machine.handle_event(LivenessEvent::Doubt, at(7_000));
    assert_eq!(
        actions(&mut machine),
        [LivenessAction::Ping(1), LivenessAction::Knock]
    );
    machine.handle_event(LivenessEvent::Gone, at(7_050));
    assert_eq!(actions(&mut machine), [], "it may answer yet");
    machine.handle_event(LivenessEvent::Message, at(7_900));
    assert_eq!(run_silently(&mut machine, at(20_000)), [], "it has");

    machine.handle_event(LivenessEvent::StreamsOpen(true), at(21_000));
    assert!(actions(&mut machine).contains(&LivenessAction::Knock));
    machine.handle_event(LivenessEvent::Gone, at(21_050));
    let done = run_silently(&mut machine, at(30_000));
    assert!(
        matches!(done[..], [(dead_at, LivenessAction::Dead { .. })] if dead_at == at(22_000)),
        "{done:?}"
    );
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn what_came_unseen_while_idle_does_not_count_as_just_heard() {
    let mut machine = started();
    machine.handle_event(LivenessEvent::Traffic, at(15_000));
    machine.handle_event(LivenessEvent::StreamsOpen(true), at(15_000));
    assert!(
        actions(&mut machine).contains(&LivenessAction::Ping(1)),
        "it is asked at once"
    );
}

/// Two machines, one at each end of a router that forgets a silent flow: only who is inside opens it again.
/// Each heartbeat's stream counts as traffic. Returns the inner machine and the times at which the outer
/// one's question did not come through.
fn through_a_router(forgets_after: Duration, heartbeats: bool, end: Moment) -> (Liveness, Vec<Moment>) {
    let longest = Duration::from_secs(45);
    let mut inner = Liveness::learning(BindingTime::UNKNOWN, longest, at(0));
    let mut outer = Liveness::new(Duration::from_secs(22), at(0));
    let (mut used, mut shut, mut heartbeat, mut now) = (at(0), Vec::new(), at(10_000), at(0));
    loop {
        let (wanted, theirs) = (actions(&mut inner), actions(&mut outer));
        let quiet = wanted.is_empty() && theirs.is_empty();
        for action in wanted {
            used = now;
            outer.handle_event(LivenessEvent::Message, now);
            match action {
                LivenessAction::Ping(_) => inner.handle_event(LivenessEvent::Message, now),
                LivenessAction::Wish(silence) => outer.handle_event(LivenessEvent::Wished(silence), now),
                LivenessAction::Knock => {}
                other => panic!("{other:?} at {now:?}"),
            }
        }
        for action in theirs {
            match action {
                LivenessAction::Ping(_) => {}
                // What an accepting side cannot do.
                LivenessAction::ChangePort | LivenessAction::Knock => continue,
                other => panic!("{other:?} at {now:?}"),
            }
            if now.since(used) < forgets_after {
                used = now;
                inner.handle_event(LivenessEvent::Message, now);
                inner.handle_event(LivenessEvent::Asked, now);
                outer.handle_event(LivenessEvent::Message, now);
            } else {
                shut.push(now);
            }
        }
        if !quiet {
            continue;
        }
        let timers = [
            inner.poll_timeout().unwrap(),
            outer.poll_timeout().unwrap(),
            heartbeat,
        ];
        let next = *timers.iter().min().unwrap();
        if next > end {
            return (inner, shut);
        }
        now = next;
        if now == heartbeat {
            heartbeat = heartbeat.plus(Duration::from_secs(60));
            if heartbeats {
                used = now;
                for machine in [&mut inner, &mut outer] {
                    machine.handle_event(LivenessEvent::Traffic, now);
                    machine.handle_event(LivenessEvent::StreamsOpen(true), now);
                    machine.handle_event(LivenessEvent::StreamsOpen(false), now);
                }
            }
        }
        inner.handle_event(LivenessEvent::Timer, now);
        outer.handle_event(LivenessEvent::Timer, now);
    }
}

#[test]
fn the_silence_grows_behind_a_router_that_remembers() {
    for heartbeats in [false, true] {
        let (inner, shut) = through_a_router(Duration::from_secs(180), heartbeats, at(3_600_000));
        assert_eq!(shut, []);
        assert_eq!(inner.binding().unwrap().silence(), Duration::from_secs(45));
    }
}

#[test]
fn behind_a_router_that_forgets_the_box_is_out_of_reach_once_and_never_again() {
    for (seconds, heartbeats) in [(18, false), (18, true), (30, false), (30, true), (40, true)] {
        let forgets_after = Duration::from_secs(seconds);
        let (inner, shut) = through_a_router(forgets_after, heartbeats, at(86_400_000));
        let binding = inner.binding().unwrap();
        assert!(binding.silence() < forgets_after, "{binding:?}");
        // One gap: the other side has asked in vain once or twice, until this side spoke.
        let (first, last) = (shut.first().unwrap(), shut.last().unwrap());
        assert!(last.since(*first) <= ASKED_TOO_LATE, "{shut:?}");
    }
}

#[test]
fn another_network_is_another_beginning() {
    let (mut inner, _) = through_a_router(Duration::from_secs(18), false, at(600_000));
    assert!(inner.binding().unwrap().lost().is_some());
    inner.handle_event(LivenessEvent::Moved, at(600_000));
    let done = actions(&mut inner);
    assert!(
        done.contains(&LivenessAction::Wish(Duration::from_secs(20))),
        "{done:?}"
    );
    assert!(
        matches!(done[..], [_, LivenessAction::Ping(_), LivenessAction::Knock]),
        "{done:?}"
    );
    assert_eq!(inner.binding(), Some(BindingTime::UNKNOWN));
}

#[test]
fn a_question_that_lies_unread_while_the_machine_sleeps_is_no_loss() {
    let mut machine = Liveness::learning(BindingTime::UNKNOWN, MAX_KEEPALIVE, at(0));
    actions(&mut machine);
    machine.handle_event(LivenessEvent::Timer, at(90_000));
    assert_eq!(
        actions(&mut machine),
        [LivenessAction::Ping(1), LivenessAction::Knock]
    );
    machine.handle_event(LivenessEvent::Message, at(90_010));
    assert_eq!(machine.binding(), Some(BindingTime::UNKNOWN));
}

#[test]
fn a_wish_is_obeyed_within_reason_and_told_by_one_side_alone() {
    let mut machine = started();
    for (wished, kept) in [(0, 1), (30, 30), (1_000_000, 45)] {
        machine.handle_event(LivenessEvent::Wished(Duration::from_secs(wished)), at(0));
        assert_eq!(machine.poll_timeout(), Some(at(kept * 1_000)));
    }
    let mut learning = Liveness::learning(BindingTime::UNKNOWN, MAX_KEEPALIVE, at(0));
    learning.handle_event(LivenessEvent::Wished(Duration::from_secs(1)), at(0));
    assert_eq!(learning.poll_timeout(), Some(at(24_000)));
}

proptest! {
    /// The other side answers each ping in time while streams come and go: never dead.
    #[test]
    fn a_peer_that_answers_lives(
        keepalive in 0_u64..60_000,
        steps in proptest::collection::vec((0_u64..900, 0_u64..1_900, any::<bool>()), 1..200),
    ) {
        let mut machine = Liveness::new(Duration::from_millis(keepalive), at(0));
        let mut now = at(0);
        for (late, answer_after, open) in steps {
            let Some(next) = machine.poll_timeout() else { panic!("given up") };
            prop_assert!(next > now);
            now = next.plus(Duration::from_millis(late));
            machine.handle_event(LivenessEvent::Timer, now);
            let done = actions(&mut machine);
            prop_assert!(
                done.iter().all(|action| matches!(action, LivenessAction::Ping(_) | LivenessAction::Knock)),
                "{done:?}"
            );
            machine.handle_event(LivenessEvent::StreamsOpen(open), now);
            let asked = !done.is_empty() || !actions(&mut machine).is_empty();
            if asked {
                now = now.plus(Duration::from_millis(answer_after));
                machine.handle_event(LivenessEvent::Message, now);
                prop_assert_eq!(actions(&mut machine), []);
            }
        }
    }

    /// After any history, silence is found out in time, by finitely many wake-ups, each later
    /// than the one before.
    #[test]
    fn a_silent_peer_is_found_out(
        keepalive in 0_u64..60_000,
        history in proptest::collection::vec((0_u64..1_500, 0_u8..4), 0..100),
        busy in any::<bool>(),
        late in 0_u64..250,
    ) {
        let mut machine = Liveness::new(Duration::from_millis(keepalive), at(0));
        let mut now = at(0);
        let mut alive_at = now;
        for (pause, event) in history {
            now = now.plus(Duration::from_millis(pause));
            let event = match event {
                0 => LivenessEvent::Traffic,
                1 => LivenessEvent::Message,
                2 => LivenessEvent::StreamsOpen(true),
                _ => LivenessEvent::Timer,
            };
            if matches!(event, LivenessEvent::Traffic | LivenessEvent::Message) {
                alive_at = now;
            }
            machine.handle_event(event, now);
            actions(&mut machine);
        }
        machine.handle_event(LivenessEvent::StreamsOpen(busy), now);
        let silent_from = now;
        let bound = if busy {
            silent_from.plus(DEAD_AFTER_BUSY.saturating_sub(BUSY_SAMPLE))
        } else {
            silent_from
                .plus(machine.keepalive())
                .plus(DEAD_AFTER_IDLE_PING)
                .plus(Duration::from_millis(2 * late))
        };
        actions(&mut machine);
        let mut wakeups = 0;
        while let Some(next) = machine.poll_timeout() {
            prop_assert!(next > now, "a wake-up that is no later");
            now = next.plus(Duration::from_millis(late));
            machine.handle_event(LivenessEvent::Timer, now);
            actions(&mut machine);
            wakeups += 1;
            prop_assert!(wakeups < 100);
        }
        prop_assert!(now <= bound.max(alive_at), "{now:?} is after {bound:?}");
    }
}
