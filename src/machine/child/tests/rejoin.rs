//! Joining the same parent anew: whatever is lost or crashes, there is a membership or the way back to the one
//! before, and its key is the one that is certified.

use super::*;
use crate::machine::past::FormerGrants;

const KEEP: Rejoin = Rejoin {
    grants: FormerGrants::Kept,
    working: WorkingMembership::Keep,
    mode: RejoinMode::Told,
};

const FORCE: Rejoin = Rejoin {
    working: WorkingMembership::Replace,
    ..KEEP
};

/// A member whose parent has another token for it, and does not know it any more.
fn forgotten(repeats_answer: bool) -> World {
    let mut world = World::new(true);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    world.parent = ParentModel {
        repeats_answer,
        ..ParentModel::default()
    };
    world
}

/// As the driver does it: durable first.
fn rejoin(world: &mut World, rejoin: Rejoin) {
    let mut invitation = invitation("second");
    let state = world.machine.state().unwrap();
    world
        .machine
        .may_rejoin(&invitation.parent.url, rejoin, None, world.wall())
        .unwrap();
    invitation.past = Past::rejoining(state, rejoin.grants);
    world.durable = Some(JoinState::invited(invitation.clone(), Some(state)));
    world.event(ChildEvent::Invited(Box::new(invitation)));
}

/// The membership that is there, or that is kept for a refusal.
fn held(world: &World) -> &Membership {
    let state = world.durable.as_ref().unwrap();
    state.membership().unwrap_or_else(|| {
        let past = &state.invitation().unwrap().past;
        past.membership.as_deref().unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_order_of_loss_and_crash_costs_the_key_or_the_membership(
        repeats: bool,
        fates in proptest::collection::vec(any_fate(), 0..60)
    ) {
        let mut world = forgotten(repeats);
        let before = held(&world).clone();
        rejoin(&mut world, KEEP);
        for fate in fates {
            world.step(fate);
            prop_assert!(held(&world).identity.pkcs8.matches(&before.identity.pkcs8));
        }
        for _ in 0..FAIR_STEPS {
            world.step(Fate::Succeeds);
        }
        let membership = world.machine.membership().unwrap();
        prop_assert!(membership.identity.pkcs8.matches(&before.identity.pkcs8));
        match &membership.rejoin_refused {
            None => {
                prop_assert!(membership.peer_id != before.peer_id);
                prop_assert_eq!(membership.former[0].peer_id, before.peer_id);
            }
            Some(refused) => {
                prop_assert!(!repeats);
                let spent = matches!(refused.refusal, JoinRefusal::TokenSpent { .. });
                prop_assert!(spent, "{:?}", refused.refusal);
                prop_assert_eq!(membership.peer_id, before.peer_id);
                prop_assert!(membership.former.is_empty());
            }
        }
    }
}

#[test]
fn a_fair_rejoin_takes_one_request_and_no_new_key() {
    let mut world = forgotten(false);
    let before = held(&world).clone();
    rejoin(&mut world, FORCE);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(is_joined(&world));
    assert_eq!(world.parent.peers, 1);
    let now = world.machine.membership().unwrap();
    assert_eq!(now.former.len(), 1);
    assert!(now.identity.pkcs8.matches(&before.identity.pkcs8));
}

#[test]
fn a_refused_rejoin_gives_the_membership_back_and_another_may_follow() {
    let mut world = forgotten(false);
    let before = held(&world).clone();
    rejoin(&mut world, FORCE);
    while !matches!(world.under_way.front(), Some(ChildAction::SendAccept { .. })) {
        world.step(Fate::Succeeds);
    }
    world.under_way.clear();
    world.event(ChildEvent::Join(JoinEvent::Failed(ContractFailure {
        http_status: 401,
        error: "acceptance_token not recognized or expired".into(),
        code: None,
        retry_after: None,
    })));
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    let after = world.machine.membership().unwrap();
    assert_eq!(after.peer_id, before.peer_id);
    assert!(matches!(
        after.rejoin_refused.as_ref().unwrap().refusal,
        JoinRefusal::TokenRejected { .. }
    ));
    assert!(is_joined(&world), "and it works");
    world.parent = ParentModel::default();
    rejoin(&mut world, FORCE);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    let after = world.machine.membership().unwrap();
    assert!(after.rejoin_refused.is_none() && after.former.len() == 1);
}

#[test]
fn what_works_is_not_replaced_without_insisting() {
    let world = forgotten(true);
    let url = &held(&world).parent.url;
    let just_now = Some(world.wall());
    let may = |rejoin, heard| world.machine.may_rejoin(url, rejoin, heard, world.wall());
    assert!(matches!(
        may(KEEP, just_now),
        Err(InvitationRefused::WorkingMembership { .. })
    ));
    assert_eq!(may(FORCE, just_now), Ok(()));
    assert_eq!(
        may(KEEP, None),
        Ok(()),
        "a parent that does not answer may have forgotten it"
    );
    let late = world.wall().plus(LIFETIME);
    assert_eq!(
        world.machine.may_rejoin(url, KEEP, Some(late), late),
        Ok(()),
        "expired"
    );
    let other = "https://other.example.com".parse().unwrap();
    assert!(matches!(
        world.machine.may_rejoin(&other, FORCE, None, START),
        Err(InvitationRefused::OtherParent { .. })
    ));
    let nobody = ChildMachine::new(None, policy(), 5, Moment::START, START);
    assert_eq!(
        nobody.may_rejoin(url, FORCE, None, START),
        Err(InvitationRefused::NothingToRejoin)
    );
}
