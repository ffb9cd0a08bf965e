//! No secret in any log: a whole life of a satellite (join with a lost answer, a refusal, a second
//! invitation, heartbeats, a renewal, a stop) at TRACE of every crate, and none of what must stay
//! secret in it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that it failed"
)]

mod scripted_parent;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use powernode_satellite::contract::ACCEPT_PATH;
use powernode_satellite::contract::join_code::JoinCode;
use powernode_satellite::contract::peer::SpawnMode;
use powernode_satellite::contract::token::AcceptanceToken;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::machine::membership::StoredInvitation;
use powernode_satellite::satellite::status::StatusReport;
use scripted_parent::site::{Site, invitation, operator};
use scripted_parent::{Answer, DAY, NOW, SECOND_TOKEN, ScriptedParent, TOKEN};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a key looks like in a log that leaks it: encoded, or as Rust prints bytes.
fn forms_of(key: &[u8]) -> Vec<String> {
    // The last 32 bytes of an Ed25519 key's PKCS#8 version 1 are its seed; in version 2 it comes earlier.
    let mut parts = vec![key.to_vec()];
    parts.extend(
        key.windows(32)
            .step_by(1)
            .filter(|w| is_seed(key, w))
            .map(<[u8]>::to_vec),
    );
    parts
        .iter()
        .flat_map(|part| {
            let decimal = part.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            [
                HEXLOWER.encode(part),
                HEXUPPER.encode(part),
                BASE64.encode(part),
                BASE64URL_NOPAD.encode(part),
                decimal,
            ]
        })
        .collect()
}

/// The seed follows its header, an octet string in an octet string.
fn is_seed(key: &[u8], window: &[u8]) -> bool {
    let header = [0x04, 0x22, 0x04, 0x20];
    let at = window.as_ptr() as usize - key.as_ptr() as usize;
    at >= header.len() && key[at - header.len()..at] == header
}

fn key_of(state: &JoinState) -> Vec<u8> {
    let secret = match state {
        JoinState::KeyReady { key, .. }
        | JoinState::Sent { key, .. }
        | JoinState::Accepted { key, .. }
        | JoinState::Refused { key: Some(key), .. } => &key.pkcs8,
        JoinState::Enrolled(membership) | JoinState::Joined(membership) => &membership.identity.pkcs8,
        JoinState::Invited(_) | JoinState::Refused { key: None, .. } | JoinState::Left(_) => panic!("no key"),
    };
    secret.expose().to_vec()
}

#[tokio::test]
async fn no_secret_of_a_satellites_life_is_in_its_log() {
    let captured = Captured::default();
    let sink = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let parent = ScriptedParent::start();
    parent.forget();
    parent.next(ACCEPT_PATH, Answer::DoneAndLost);
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    running.refusal().await;
    running.stop().await;
    let mut keys = vec![key_of(&site.state().await)];

    parent.mint(SECOND_TOKEN);
    let code = JoinCode {
        parent_url: format!("https://{}", parent.bridge()).parse().unwrap(),
        bridges: vec![parent.bridge()],
        token: AcceptanceToken::parse(SECOND_TOKEN.to_owned()).unwrap(),
        ca: parent.fingerprint,
        minted_at: NOW,
        spawn_mode: SpawnMode::ManagedChild,
    };
    let text = code.encode().as_str().to_owned();
    let joined = StoredInvitation::new(
        JoinCode::parse(text.clone()).unwrap().into_invitation(),
        operator(),
    );
    tracing::debug!(invitation = ?joined, "a careless line");
    let running = site.run().await;
    running.join(joined).await;
    running.wait("active", StatusReport::is_active).await;
    running.stop().await;
    tracing::debug!(state = ?site.state().await, "another");

    let due = NOW.plus(DAY * 70);
    site.wall.set(due);
    parent.set_time(due);
    let running = site.run().await;
    running
        .wait("renewed", |report| {
            report
                .certificate
                .as_ref()
                .is_some_and(|c| c.not_after > due.plus(DAY * 80) && c.renewal.is_none())
        })
        .await;
    // The parent was to be given the operator grant, token and all.
    let book = &running.surroundings.grants;
    let grant = book.all().remove(0).grant.id;
    let token = book.token_of(grant).unwrap().to_secret();
    let token = token.expose_text().unwrap().to_owned();
    running.stop().await;
    keys.push(key_of(&site.state().await));
    assert_ne!(keys[0], keys[1]);

    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    for expected in ["a careless line", "tunnel up", "the join was refused", "quinn"] {
        assert!(log.contains(expected), "the log was not captured: {expected}");
    }
    let mut secrets = vec![TOKEN.to_owned(), SECOND_TOKEN.to_owned()];
    secrets.push(text.clone());
    // Its signature in any form: the grant's id is no secret.
    secrets.push(token.rsplit('.').next().unwrap().to_owned());
    secrets.extend(keys.iter().flat_map(|key| {
        let forms = forms_of(key);
        assert_eq!(forms.len(), 10, "whole key and seed");
        forms
    }));
    for secret in secrets {
        assert!(!log.contains(&secret), "in the log: {secret}");
    }
    // A join code may be broken over lines; a good part of its body is as bad as the whole.
    let body: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    assert!(!log.contains(&body[body.len() / 2..body.len() / 2 + 24]));
}
