use std::time::Duration;

use super::*;
use crate::identity::certificate::write_pem;
use crate::identity::test_handshake::{NOW, TestAuthority};

const DAY: Duration = Duration::from_secs(86_400);

fn bundle(authorities: &[&TestAuthority]) -> String {
    write_pem(authorities.iter().map(|authority| &authority.certificate))
}

fn anchors(authorities: &[&TestAuthority]) -> Anchors {
    Anchors::from_pem(&bundle(authorities)).unwrap()
}

fn followed(
    known: &[&TestAuthority],
    served: &[&TestAuthority],
    cross: &[CertificateDer<'static>],
) -> Result<Followed, BundleError> {
    let cross = write_pem(cross);
    let served = ServedBundle {
        ca_bundle_pem: &bundle(served),
        cross_certificates_pem: Some(&cross),
    };
    follow(&anchors(known), served, NOW)
}

#[test]
fn trust_moves_with_the_word_of_the_old_authority() {
    let (old, new) = (TestAuthority::new("ca"), TestAuthority::new("ca G2"));
    let word = old.vouch_for(&new);
    let during = followed(&[&old], &[&old, &new], std::slice::from_ref(&word)).unwrap();
    assert_eq!(during.anchors, anchors(&[&old, &new]));
    assert!(during.unvouched.is_empty());
    let order = followed(&[&old], &[&new, &old], std::slice::from_ref(&word)).unwrap();
    assert_eq!(
        order.anchors,
        anchors(&[&old, &new]),
        "the oldest first in any case"
    );
    let after = followed(&[&old, &new], &[&new], &[]).unwrap();
    assert_eq!(after.anchors, anchors(&[&new]), "the old one was retired");
    let late = followed(&[&old], &[&new], &[word]).unwrap();
    assert_eq!(late.anchors, anchors(&[&new]), "both at once");
}

#[test]
fn without_its_word_nothing_moves() {
    let (old, new, stranger) = (
        TestAuthority::new("ca"),
        TestAuthority::new("ca G2"),
        TestAuthority::new("ca"),
    );
    let silent = followed(&[&old], &[&old, &new], &[]).unwrap();
    assert_eq!(silent.anchors, anchors(&[&old]));
    assert_eq!(silent.unvouched, [new.pin()]);
    for word in [
        // Another authority of the same name, the new one itself, and a word for somebody else.
        stranger.vouch_for(&new),
        new.vouch_for(&new),
        old.vouch_for(&stranger),
        new.certificate.clone(),
        old.certificate.clone(),
    ] {
        let followed = followed(&[&old], &[&old, &new], &[word]).unwrap();
        assert_eq!(followed.anchors, anchors(&[&old]));
        assert_eq!(followed.unvouched, [new.pin()]);
    }
    assert_eq!(
        followed(&[&old], &[&new], &[]),
        Err(BundleError::Foreign {
            served: vec![new.pin()]
        })
    );
}

#[test]
fn a_word_for_a_name_is_none_for_another_key_of_that_name() {
    let (old, new, impostor) = (
        TestAuthority::new("ca"),
        TestAuthority::new("ca G2"),
        TestAuthority::new("ca G2"),
    );
    let followed = followed(&[&old], &[&old, &impostor], &[old.vouch_for(&new)]).unwrap();
    assert_eq!(followed.unvouched, [impostor.pin()]);
}

#[test]
fn a_changed_byte_is_no_word() {
    let (old, new) = (TestAuthority::new("ca"), TestAuthority::new("ca G2"));
    let word = old.vouch_for(&new).to_vec();
    assert!(vouches(&old.certificate, &word, &new.certificate, NOW));
    for at in 0..word.len() {
        let mut changed = word.clone();
        changed[at] ^= 1;
        assert!(
            !vouches(&old.certificate, &changed, &new.certificate, NOW),
            "byte {at}"
        );
    }
}

#[test]
fn an_authority_that_has_ended_has_no_word_and_a_leaf_never_has() {
    let old = TestAuthority::ending("ca", NOW.plus(DAY));
    let new = TestAuthority::new("ca G2");
    let word = old.vouch_for(&new);
    let at = |now| vouches(&old.certificate, &word, &new.certificate, now);
    assert!(at(NOW));
    assert!(!at(NOW.plus(DAY * 2)));
    let ended = TestAuthority::ending("ca G2", NOW.plus(DAY));
    let word = TestAuthority::new("ca").vouch_for(&ended);
    assert!(!vouches(
        &TestAuthority::new("ca").certificate,
        &word,
        &ended.certificate,
        NOW.plus(DAY * 2)
    ));
}

#[test]
fn several_rotations_are_followed_at_once_and_no_old_bundle_leads_back() {
    let all = ["ca", "ca G2", "ca G3"].map(TestAuthority::new);
    let [first, second, third] = &all;
    let words = [second.vouch_for(third), first.vouch_for(second)];
    let through = followed(&[first], &[third, second], &words).unwrap();
    assert_eq!(through.anchors, anchors(&[second, third]));
    let back = followed(&[second, third], &[second], &[]).unwrap();
    assert_eq!(back.anchors, anchors(&[second, third]), "a restored parent");
    let forked = followed(&[second, third], &[first, second], &[first.vouch_for(second)]).unwrap();
    assert_eq!(forked.anchors, anchors(&[second, third]));
    assert_eq!(forked.unvouched, [first.pin()]);
}

#[test]
fn anchors_do_not_pile_up() {
    let all: Vec<_> = (0..7).map(|n| TestAuthority::new(&format!("ca G{n}"))).collect();
    let words: Vec<_> = all.windows(2).map(|pair| pair[0].vouch_for(&pair[1])).collect();
    let served: Vec<_> = all.iter().collect();
    let once = followed(&[&all[0]], &served, &words).unwrap().anchors;
    assert_eq!(once.certificates().len(), AUTHORITIES_MAX);
    let twice = follow(
        &once,
        ServedBundle {
            ca_bundle_pem: &bundle(&served),
            cross_certificates_pem: Some(&write_pem(&words)),
        },
        NOW,
    );
    assert_eq!(twice.unwrap().anchors.certificates().len(), AUTHORITIES_MAX);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let old = TestAuthority::new("ca");
    let known = anchors(&[&old]);
    let follow = |ca_bundle_pem, cross| {
        let served = ServedBundle {
            ca_bundle_pem,
            cross_certificates_pem: cross,
        };
        follow(&known, served, NOW)
    };
    assert!(matches!(follow("", None), Err(BundleError::Bundle(_))));
    let good = bundle(&[&old]);
    assert!(matches!(follow(&good, Some("x")), Err(BundleError::Cross(_))));
    assert_eq!(follow(&good, Some(" ")).unwrap().anchors, known);
}
