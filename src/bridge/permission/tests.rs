//! Every role with every action, every limit, and the glob against a plain one.

use proptest::prelude::*;

use super::*;

fn id(number: u128) -> PeerId {
    PeerId::from_uuid(uuid::Uuid::from_u128(number))
}

fn shop() -> PeerRef<'static> {
    PeerRef::Known {
        id: id(17),
        name: Some("shop-17"),
    }
}

fn mill() -> PeerRef<'static> {
    PeerRef::Known {
        id: id(3),
        name: Some("mill-3"),
    }
}

fn limit(patterns: &[&str]) -> NameLimit {
    NameLimit::parse(patterns).unwrap()
}

fn alice(role: Role, peers: &[&str], services: &[&str]) -> OperatorIdentity {
    OperatorIdentity {
        id: None,
        name: "alice".to_owned(),
        role,
        peers: limit(peers),
        services: limit(services),
    }
}

/// Every action, what the three roles may of it without a limit, and whether limits to some peers and
/// to some services leave it to an admin, at a peer and a service within them.
fn table() -> Vec<(Action<'static>, [bool; 3], bool, bool)> {
    use Action::{ManageOperators, OnPeer, ReachService, SeeHealth, SeeWholeAudit};
    use PeerAction::{Ask, ChangeGrants, CutSession, Instruct, Invite, Pause, Revoke, See};
    vec![
        (SeeHealth, [true, true, true], true, true),
        (OnPeer(See, shop()), [true, true, true], true, true),
        (SeeWholeAudit, [true, true, true], false, true),
        (OnPeer(Ask, shop()), [false, true, true], true, true),
        (OnPeer(Instruct, shop()), [false, true, true], true, false),
        (ReachService(shop(), "ssh"), [false, true, true], true, true),
        (OnPeer(CutSession, shop()), [false, true, true], true, true),
        (OnPeer(Pause, shop()), [false, true, true], true, true),
        (OnPeer(Invite, shop()), [false, false, true], true, true),
        (OnPeer(Revoke, shop()), [false, false, true], true, true),
        (OnPeer(ChangeGrants, shop()), [false, false, true], true, false),
        (ManageOperators, [false, false, true], false, false),
    ]
}

#[test]
fn every_role_and_action() {
    for (action, allowed, of_some_peers, of_some_services) in table() {
        for (role, allowed) in Role::ALL.into_iter().zip(allowed) {
            let may = alice(role, &[], &[]).may(&action);
            assert_eq!(may.is_ok(), allowed, "{role} {action:?}: {may:?}");
            if let Err(why) = may {
                assert!(matches!(why, NotPermitted::Role { .. }), "{why}");
            }
        }
        let may = alice(Role::Admin, &["shop-*"], &[]).may(&action);
        assert_eq!(may.is_ok(), of_some_peers, "{action:?}: {may:?}");
        let may = alice(Role::Admin, &[], &["ssh", "web*"]).may(&action);
        assert_eq!(may.is_ok(), of_some_services, "{action:?}: {may:?}");
        OperatorIdentity::local().may(&action).unwrap();
        if action.peer().is_some() {
            let may = alice(Role::Admin, &["mill-*"], &[]).may(&action);
            assert!(
                matches!(may, Err(NotPermitted::Peer { .. })),
                "{action:?}: {may:?}"
            );
        }
    }
}

#[test]
fn a_technician_reaches_their_own_boxes_and_services_alone() {
    let technician = alice(Role::Operator, &["shop-*", "depot"], &["ssh", "web"]);
    technician.may_reach(shop(), "ssh").unwrap();
    technician.may_reach(PeerRef::Called("depot"), "web").unwrap();
    for (peer, service) in [(mill(), "ssh"), (shop(), "db"), (PeerRef::Called("shop"), "ssh")] {
        technician.may_reach(peer, service).unwrap_err();
    }
    assert!(technician.sees(shop()) && !technician.sees(mill()));
    assert!(!technician.sees(PeerRef::Nameless));
    let by_id = alice(Role::Operator, &[&id(3).to_string()], &[]);
    assert!(by_id.sees(mill()) && !by_id.sees(shop()));
}

#[test]
fn refusals_say_what_it_would_take() {
    let said =
        |identity: &OperatorIdentity, action: Action<'_>| identity.may(&action).unwrap_err().to_string();
    assert_eq!(
        said(
            &alice(Role::Viewer, &[], &[]),
            Action::OnPeer(PeerAction::Pause, shop())
        ),
        "alice has the role viewer; suspending and resuming peers takes the role operator. An admin can give it: \
         operators set alice --role operator"
    );
    let technician = alice(Role::Operator, &["shop-*", "depot"], &["ssh"]);
    assert_eq!(
        said(&technician, Action::OnPeer(PeerAction::See, mill())),
        "alice is limited to the peers shop-*, depot, and `mill-3` is not among them. An admin can change that: \
         operators set alice --peers …"
    );
    assert_eq!(
        said(&technician, Action::ReachService(shop(), "db\n")),
        "alice is limited to the services ssh, and `db ` is not among them. An admin can change that: operators \
         set alice --services …"
    );
    assert_eq!(
        said(&alice(Role::Admin, &["shop-*"], &[]), Action::ManageOperators),
        "alice is limited to some peers; managing operators is for operators without such a limit"
    );
}

#[test]
fn limits_are_read_and_shown() {
    assert_eq!(limit(&[]), NameLimit::Any);
    assert_eq!(limit(&["shop-1", "*"]), NameLimit::Any);
    assert_eq!(limit(&["shop-*", "a?"]).to_string(), "shop-*, a?");
    assert_eq!(limit(&["x"]).view(), serde_json::json!(["x"]));
    assert_eq!(limit(&[]).view(), "any");
    for bad in ["", "a b", "a/b", "ä", &"x".repeat(64)] {
        assert!(NameLimit::parse(&[bad]).is_err(), "{bad}");
    }
    assert_eq!(
        NameLimit::parse(&["x"; PATTERNS_MAX + 1]),
        Err(InvalidLimit::TooMany)
    );
    assert!(
        "boss"
            .parse::<Role>()
            .unwrap_err()
            .to_string()
            .contains("viewer, operator and admin")
    );
}

#[test]
fn stars_and_question_marks() {
    let matches = |pattern: &str, name: &str| pattern.parse::<NamePattern>().unwrap().matches(name);
    for (pattern, name) in [
        ("shop-*", "shop-"),
        ("shop-*", "shop-17"),
        ("*", ""),
        ("*-17", "shop-17"),
        ("s*p-?7", "shop-17"),
        ("a*b*c", "a-b-b-c"),
        ("??", "ab"),
    ] {
        assert!(matches(pattern, name), "{pattern} {name}");
    }
    for (pattern, name) in [
        ("shop-*", "workshop-17"),
        ("shop-?", "shop-17"),
        ("shop", "shop-17"),
        ("Shop-*", "shop-17"),
        ("?", ""),
        ("a*b*c", "a-b-c-d"),
        (".*", "shop"),
    ] {
        assert!(!matches(pattern, name), "{pattern} {name}");
    }
}

/// The glob as its definition has it; slow, and so plain that it is right.
fn plainly(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            plainly(rest, name) || name.split_first().is_some_and(|(_, left)| plainly(pattern, left))
        }
        (Some((b'?', rest)), Some((_, left))) => plainly(rest, left),
        (Some((byte, rest)), Some((other, left))) => byte == other && plainly(rest, left),
        _ => false,
    }
}

proptest! {
    #[test]
    fn the_glob_is_what_it_is_defined_as(pattern in "[ab*?]{1,10}", name in "[ab]{0,12}") {
        let parsed: NamePattern = pattern.parse().unwrap();
        prop_assert_eq!(parsed.matches(&name), plainly(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn no_limit_ever_gives_more(
        role in 0usize..3, peers in proptest::collection::vec("[a-z?*-]{1,6}", 0..3),
        services in proptest::collection::vec("[a-z?*]{1,4}", 0..3),
    ) {
        let (role, any) = (Role::ALL[role], Vec::<String>::new());
        let limited = OperatorIdentity {
            peers: NameLimit::parse(&peers).unwrap(),
            services: NameLimit::parse(&services).unwrap(),
            ..alice(role, &[], &[])
        };
        let free = OperatorIdentity {
            peers: NameLimit::parse(&any).unwrap(),
            ..alice(role, &[], &[])
        };
        for (action, ..) in table() {
            prop_assert!(limited.may(&action).is_err() || free.may(&action).is_ok());
        }
    }
}

#[test]
fn a_long_pattern_is_no_work() {
    let pattern: NamePattern = "*a".repeat(31).parse().unwrap();
    assert!(!pattern.matches(&"a".repeat(10_000).replace('a', "ab")));
}
