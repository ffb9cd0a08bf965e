//! A certificate that ended while the box lay in a drawer: renewed first where the parent allows it, and
//! said to be of no more use where it does not.

use super::*;

/// A member whose certificate ended ten days ago, just switched on.
fn from_the_drawer() -> World {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    world.now = world.now.plus(LIFETIME + Duration::from_secs(10 * 86_400));
    world.restart();
    world
}

fn next_dial(world: &mut World) -> (TunnelId, LinkPurpose) {
    loop {
        if let Some(ChildAction::Dial(dial, purpose)) = world.under_way.front() {
            let found = (dial.id, *purpose);
            world.under_way.pop_front();
            return found;
        }
        world.step(Fate::Succeeds);
    }
}

/// The dial gives a tunnel on which the certificate counts as expired.
fn let_in_for_renewal(world: &mut World) {
    let (id, purpose) = next_dial(world);
    world.tunnels.push((id, purpose));
    world.event(ChildEvent::RenewalOnly(id));
    world.event(ChildEvent::Connected(id));
}

#[test]
fn renewal_comes_first_and_membership_after_it() {
    let mut world = from_the_drawer();
    let (heartbeats, started) = (world.heartbeats, world.now);
    let old = world.machine.membership().unwrap().identity.certificate.clone();
    let_in_for_renewal(&mut world);
    while world.connected_as() != Some(LinkPurpose::Member(IdentityChoice::Candidate)) {
        assert!(
            !matches!(world.under_way.front(), Some(ChildAction::SendHeartbeat)),
            "nothing but the renewal may be asked here"
        );
        world.step(Fate::Succeeds);
    }
    assert_eq!(world.heartbeats, heartbeats);
    while world.machine.membership().unwrap().candidate.is_some() {
        world.step(Fate::Succeeds);
    }
    assert!(world.heartbeats > heartbeats);
    let new = &world.machine.membership().unwrap().identity.certificate;
    assert!(new.not_after > old.not_after);
    assert!(!world.machine.needs_rejoin());
    assert!(world.now.since(started) < Duration::from_secs(5), "at once");
}

#[test]
fn a_crash_at_every_step_of_it_is_made_up_for() {
    for crash in [Fate::CrashBefore, Fate::CrashAfter, Fate::AnswerLost, Fate::Fails] {
        for at in 0..12 {
            let mut world = from_the_drawer();
            let old = world.machine.membership().unwrap().identity.certificate.clone();
            let mut step = 0;
            let renewed = |world: &World| {
                let membership = world.machine.membership().unwrap();
                membership.identity.certificate != old && membership.candidate.is_none()
            };
            while !renewed(&world) {
                assert!(step < 200, "{crash:?} at step {at}");
                let expired = world.machine.presents_expired(world.wall());
                if expired && matches!(world.under_way.front(), Some(ChildAction::Dial(..))) {
                    let_in_for_renewal(&mut world);
                } else {
                    world.step(if step == at { crash } else { Fate::Succeeds });
                }
                step += 1;
            }
        }
    }
}

#[test]
fn a_parent_that_demands_a_renewal_gets_it_although_the_clock_here_lags() {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    world.restart();
    let keys = world.keys_made;
    let started = world.now;
    let_in_for_renewal(&mut world);
    while world.keys_made == keys {
        world.step(Fate::Succeeds);
    }
    assert_eq!(world.now, started);
}

#[test]
fn a_candidate_that_expired_unused_gives_way_to_a_new_one() {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    world.now = world.now.plus(LIFETIME / 100 * 76);
    world.restart();
    while world.machine.purpose() != Some(LinkPurpose::Member(IdentityChoice::Candidate)) {
        world.step(Fate::Succeeds);
    }
    world.now = world.now.plus(LIFETIME * 2);
    world.restart();
    let started = world.now;
    for _ in 0..2 {
        let_in_for_renewal(&mut world);
        while world.machine.presents_expired(world.wall())
            && !matches!(world.under_way.front(), Some(ChildAction::Dial(..)))
        {
            world.step(Fate::Succeeds);
        }
    }
    while world.machine.membership().unwrap().candidate.is_some() {
        world.step(Fate::Succeeds);
    }
    assert!(!world.machine.presents_expired(world.wall()));
    assert!(world.now.since(started) < Duration::from_secs(5), "at once");
}

#[test]
fn where_it_is_refused_a_new_token_is_needed() {
    let mut world = from_the_drawer();
    assert!(!world.machine.needs_rejoin(), "nobody has been asked yet");
    let (id, _) = next_dial(&mut world);
    world.event(ChildEvent::DialFailed(id, failure(Setback::Transient)));
    assert!(!world.machine.needs_rejoin(), "nobody was reached");
    let (id, _) = next_dial(&mut world);
    world.event(ChildEvent::DialRefused(id, failure(Setback::Persistent)));
    assert!(world.machine.needs_rejoin());

    // The parent's operator allows it after all.
    world.event(ChildEvent::RetryNow);
    let_in_for_renewal(&mut world);
    while !matches!(world.under_way.front(), Some(ChildAction::SendRefresh { .. })) {
        world.step(Fate::Succeeds);
    }
    world.step(Fate::Succeeds);
    assert!(!world.machine.needs_rejoin());
}

#[test]
fn a_refused_renewal_says_the_same_and_is_tried_again_later() {
    let mut world = from_the_drawer();
    let_in_for_renewal(&mut world);
    while !matches!(world.under_way.front(), Some(ChildAction::SendRefresh { .. })) {
        world.step(Fate::Succeeds);
    }
    world.under_way.pop_front();
    world.event(ChildEvent::RefreshRefused);
    assert!(world.machine.needs_rejoin());
    let refused_at = world.now;
    while !matches!(world.under_way.front(), Some(ChildAction::SendRefresh { .. })) {
        world.step(Fate::Succeeds);
    }
    assert!(world.now.since(refused_at) >= Duration::from_secs(30));
}
