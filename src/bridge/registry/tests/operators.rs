//! Operator accounts: what is kept of them, until when, and who can always mend the others.

use serde::{Deserialize, Serialize};

use super::*;
use crate::base::id::OperatorId;
use crate::bridge::permission::{NameLimit, Role};
use crate::contract::token::TokenDigest;
use crate::store::database::Table;
use crate::store::record::Record;

fn limited(name: &str, life: Option<Duration>) -> NewOperator {
    NewOperator {
        role: Role::Operator,
        peers: NameLimit::parse(&["shop-*"]).unwrap(),
        services: NameLimit::parse(&["ssh", "web"]).unwrap(),
        life,
        ..NewOperator::admin(name)
    }
}

/// An account as the first version kept it.
#[derive(Serialize, Deserialize)]
struct FirstOperator {
    name: String,
    role: FirstRole,
    token: TokenDigest,
    created_at: UnixTime,
}

#[derive(Serialize, Deserialize)]
enum FirstRole {
    Admin,
}

impl Record for FirstOperator {
    const VERSION: u8 = 1;
}

const FIRST_OPERATORS: Table<OperatorId, FirstOperator> = Table::new("operators");

#[test]
fn accounts_of_the_first_version_may_do_everything() {
    let (disk, registry) = Disk::with_registry();
    let id = OperatorId::from_uuid(uuid::Uuid::from_u128(7));
    let first = FirstOperator {
        name: "old".to_owned(),
        role: FirstRole::Admin,
        token: TokenDigest::of(b"secret"),
        created_at: at(-5),
    };
    registry
        .db
        .write(|w| w.put(&FIRST_OPERATORS, &id, &first))
        .unwrap();
    drop(registry);
    let registry = disk.open();
    let (_, operator) = registry.operator("old").unwrap();
    assert_eq!(
        (
            operator.role,
            operator.peers,
            operator.services,
            operator.expires_at
        ),
        (Role::Admin, NameLimit::Any, NameLimit::Any, None)
    );
    assert_eq!((operator.created_at, operator.token_made_at), (at(-5), at(-5)));
    let identity = registry.operator_by_token(b"secret", at(0)).unwrap().unwrap();
    assert_eq!((identity.id, identity.name.as_str()), (Some(id), "old"));
    // Changed, it is written in the new form.
    registry.add_operator(&NewOperator::admin("new"), at(0)).unwrap();
    let change = OperatorChange {
        role: Some(Role::Viewer),
        ..OperatorChange::default()
    };
    registry.change_operator("old", &change, at(1)).unwrap();
    drop(registry);
    assert_eq!(disk.open().operator("old").unwrap().1.role, Role::Viewer);
}

#[test]
fn an_account_ends_when_its_time_is_over_and_can_be_extended() {
    let (_disk, registry) = Disk::with_registry();
    let minted = registry
        .add_operator(&limited("tom", Some(Duration::from_secs(3_600))), at(0))
        .unwrap();
    let recognised = |now| registry.recognise(minted.token.expose(), at(now)).unwrap();
    let Recognised::Known(identity) = recognised(3_599) else {
        panic!("ended early");
    };
    assert_eq!(
        (identity.role, identity.peers.to_string()),
        (Role::Operator, "shop-*".to_owned())
    );
    let ended = Recognised::Expired {
        name: "tom".to_owned(),
        at: at(3_600),
    };
    assert_eq!(recognised(3_600), ended);
    assert_eq!(
        registry
            .operator_by_token(minted.token.expose(), at(3_600))
            .unwrap(),
        None
    );
    assert_eq!(
        registry.operator_identity(minted.id, at(3_599)).unwrap(),
        Some(identity)
    );
    assert_eq!(registry.operator_identity(minted.id, at(3_600)).unwrap(), None);
    let extend = OperatorChange {
        life: Some(Some(Duration::from_secs(86_400))),
        ..OperatorChange::default()
    };
    registry.change_operator("tom", &extend, at(7_200)).unwrap();
    assert!(matches!(recognised(7_201), Recognised::Known(_)));
    let never = OperatorChange {
        life: Some(None),
        ..OperatorChange::default()
    };
    let (_, operator) = registry.change_operator("tom", &never, at(7_200)).unwrap();
    assert_eq!(operator.expires_at, None);
    for life in [Duration::from_secs(59), LIFE_MAX + Duration::from_secs(1)] {
        assert!(registry.add_operator(&limited("x", Some(life)), at(0)).is_err());
    }
}

#[test]
fn a_rotated_token_replaces_the_earlier_one_and_nothing_else() {
    let (_disk, registry) = Disk::with_registry();
    let first = registry.add_operator(&limited("tom", None), at(0)).unwrap();
    let second = registry.rotate_operator("tom", at(9)).unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(
        registry.operator_by_token(first.token.expose(), at(9)).unwrap(),
        None
    );
    let identity = registry
        .operator_by_token(second.token.expose(), at(9))
        .unwrap()
        .unwrap();
    assert_eq!(identity.services.to_string(), "ssh, web");
    assert_eq!(second.operator.token_made_at, at(9));
}

#[test]
fn somebody_can_always_mend_every_account() {
    let (_disk, registry) = Disk::with_registry();
    registry.add_operator(&NewOperator::admin("ada"), at(0)).unwrap();
    registry.add_operator(&limited("tom", None), at(0)).unwrap();
    let some = NameLimit::parse(&["x"]).unwrap();
    for change in [
        OperatorChange {
            role: Some(Role::Operator),
            ..OperatorChange::default()
        },
        OperatorChange {
            peers: Some(some.clone()),
            ..OperatorChange::default()
        },
        OperatorChange {
            services: Some(some),
            ..OperatorChange::default()
        },
        OperatorChange {
            life: Some(Some(Duration::from_secs(600))),
            ..OperatorChange::default()
        },
    ] {
        let refused = registry.change_operator("ada", &change, at(1));
        assert!(
            matches!(refused, Err(RegistryError::LastOperator(_))),
            "{change:?}"
        );
    }
    assert!(matches!(
        registry.remove_operator("ada"),
        Err(RegistryError::LastOperator(_))
    ));
    assert_eq!(
        registry.operator("ada").unwrap().1.role,
        Role::Admin,
        "nothing was changed"
    );
    registry.remove_operator("tom").unwrap();
    registry.add_operator(&NewOperator::admin("eve"), at(2)).unwrap();
    registry.remove_operator("ada").unwrap();
    assert!(matches!(
        registry.operator("ada"),
        Err(RegistryError::UnknownOperator(_))
    ));
}

#[test]
fn names_are_unique_and_nobody_is_local() {
    let (_disk, registry) = Disk::with_registry();
    registry.add_operator(&NewOperator::admin("ada"), at(0)).unwrap();
    for taken in ["ada", "local"] {
        let refused = registry.add_operator(&NewOperator::admin(taken), at(0));
        assert!(
            matches!(refused, Err(RegistryError::OperatorNameTaken(_))),
            "{taken}"
        );
    }
}
