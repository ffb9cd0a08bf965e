//! What a refusal speaks against: a certificate that is being proven, an invitation given again.

use super::*;

/// A member at 76 % of its certificate's life, just restarted.
fn renewal_due() -> World {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    world.now = world.now.plus(LIFETIME / 100 * 76);
    world.restart();
    world
}

#[test]
fn a_restarted_satellite_looks_at_its_certificate_at_once() {
    let mut world = renewal_due();
    let keys = world.keys_made;
    let started = world.now;
    while world.keys_made == keys {
        world.step(Fate::Succeeds);
    }
    assert_eq!(
        world.now, started,
        "a box that is switched on for minutes a day is renewed, too"
    );
}

#[test]
fn a_certificate_whose_heartbeats_are_refused_gives_way_to_the_old_one() {
    let mut world = renewal_due();
    let first = world.machine.membership().unwrap().identity.certificate.clone();
    let proving = LinkPurpose::Member(IdentityChoice::Candidate);
    let mut refusals = 0;
    while refusals < 3 {
        let sending = matches!(world.under_way.front(), Some(ChildAction::SendHeartbeat));
        if sending && world.connected_as() == Some(proving) {
            refusals += 1;
            world.under_way.pop_front();
            world.event(ChildEvent::HeartbeatRefused);
        } else {
            world.step(Fate::Succeeds);
        }
    }
    for _ in 0..6 {
        world.step(Fate::Succeeds);
    }
    let membership = world.machine.membership().unwrap();
    assert_eq!(membership.identity.certificate, first);
    assert!(membership.candidate.is_none());
    assert_eq!(
        world.connected_as(),
        Some(LinkPurpose::Member(IdentityChoice::Current))
    );
}

#[test]
fn an_absent_network_does_not_speak_against_a_new_certificate_but_the_parent_may() {
    for (refused, kept) in [(false, true), (true, false)] {
        let mut world = renewal_due();
        while world.machine.purpose() != Some(LinkPurpose::Member(IdentityChoice::Candidate)) {
            world.step(Fate::Succeeds);
        }
        for _ in 0..3 {
            while !matches!(world.under_way.front(), Some(ChildAction::Dial(..))) {
                world.step(Fate::Succeeds);
            }
            let Some(ChildAction::Dial(dial, _)) = world.under_way.pop_front() else {
                panic!("a dial was due");
            };
            // As the host-bridge refuses: with a time to come back.
            let failure = failure(Setback::RetryAfter(Duration::from_secs(30)));
            world.event(if refused {
                ChildEvent::DialRefused(dial.id, failure)
            } else {
                ChildEvent::DialFailed(dial.id, failure)
            });
        }
        assert_eq!(
            world.machine.membership().unwrap().candidate.is_some(),
            kept,
            "{refused}"
        );
    }
}

#[test]
fn the_same_code_again_does_not_disturb_a_join_under_way() {
    let mut world = World::new(true);
    while !matches!(world.under_way.front(), Some(ChildAction::SendAccept { .. })) {
        world.step(Fate::Succeeds);
    }
    world.event(ChildEvent::Invited(Box::new(invitation("t"))));
    assert!(world.connected_as().is_some(), "the request goes on");
    // Another operator, or another trust, is news; that the token may have been used is kept.
    let mut corrected = invitation("t");
    corrected.operator.contact = "corrected".into();
    let state = JoinState::invited(corrected.clone(), world.machine.state());
    assert!(matches!(state, JoinState::Sent { .. }));
    world.event(ChildEvent::Invited(Box::new(corrected)));
    assert_eq!(world.connected_as(), None);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(is_joined(&world));
    assert_eq!(world.machine.membership().unwrap().operator.contact, "corrected");
    assert_eq!(world.keys_made, 1);
}

#[test]
fn another_parent_does_not_get_the_key_of_the_first() {
    let mut world = World::new(true);
    while !matches!(world.under_way.front(), Some(ChildAction::SendAccept { .. })) {
        world.step(Fate::Succeeds);
    }
    let mut other = invitation("t");
    other.parent.url = "https://other.example.com".parse().unwrap();
    assert!(matches!(
        JoinState::invited(other, world.machine.state()),
        JoinState::Invited(_)
    ));
}
