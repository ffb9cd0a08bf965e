//! What the owner's commands have in common: they go to the running daemon, or are carried out on the
//! state when none runs; and what cannot be undone is confirmed.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use http::Method;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::contract::message::{ContractAnswer, read_answer};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::grants::admin::answer_reading;
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::satellite::offline::{OfflineError, OfflineState};
use powernode_satellite::store::patience;
use powernode_satellite::store::state_key::StateKey;
use serde_json::Value;
use thiserror::Error;

use crate::run::block_on;

#[derive(Debug, Error)]
#[error("this cannot be undone; say --yes, or run it on a terminal to be asked")]
struct NotConfirmed;

/// The answer of the daemon; `None` when none runs.
pub fn daemon(
    config: &SatelliteConfig,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, Failure> {
    let client = AdminClient::new(&config.admin_socket);
    match block_on(client.call(method.clone(), path, body))? {
        Ok(answer) => match answer.read().map_err(Failure::failed)? {
            Ok(data) => Ok(Some(data)),
            Err(refused) => Err(Failure::new(Code::Failed, refused.error)),
        },
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
    }
}

/// Does what asks the daemon and, while none runs, works on the state; again for a while where another process has
/// that: a command that is soon done, or a daemon that does not answer yet.
pub fn either_way<T>(attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    patience::once_free(attempt, Failure::holder)
}

/// Something about grants, from the daemon or from the state. The second value says whether a daemon
/// runs.
pub fn ask(
    config: &SatelliteConfig,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(Value, bool), Failure> {
    either_way(|| ask_once(config, method, path, body))
}

fn ask_once(
    config: &SatelliteConfig,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(Value, bool), Failure> {
    if let Some(data) = daemon(config, method, path, body)? {
        return Ok((data, true));
    }
    let (status, answer) = if *method == Method::GET {
        let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
        let (loaded, _) = MembershipStore::peek(&config.state_dir, key.as_ref()).map_err(Failure::failed)?;
        let clock = Clock::start(BUILD_TIME);
        if let Some(seen) = loaded.latest_known_time() {
            clock.restore_parent_time(seen);
        }
        answer_reading(&loaded.grants, path, clock.trusted().now)
    } else {
        let state = OfflineState::open(config).map_err(offline)?;
        let desk = state.desk().map_err(offline)?;
        let content = body.map(ToString::to_string).unwrap_or_default();
        let now = state.clock().trusted().now;
        let answered = block_on(desk.answer(method, path, content.as_bytes(), now))?;
        drop(desk);
        state.finish().map_err(offline)?;
        answered
    };
    let body = answer.to_string();
    match read_answer(status.as_u16(), body.as_bytes()).map_err(Failure::failed)? {
        ContractAnswer::Data(data) => Ok((data, false)),
        ContractAnswer::Failure(refused) => Err(Failure::new(Code::Failed, refused.error)),
    }
}

/// The failure of a command that was carried out on the state.
pub fn offline(error: OfflineError) -> Failure {
    match error {
        OfflineError::NotJoined => Failure::of(Code::NotJoined, &error),
        OfflineError::StateKey(_) => Failure::usage(error),
        error => Failure::failed(error),
    }
}

/// Asks on the terminal, unless that was answered beforehand. `false` when the owner says no.
pub fn confirmed(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::usage(NotConfirmed));
    }
    let mut told = std::io::stderr();
    write!(told, "{question}\nType `yes` to go on: ").map_err(Failure::failed)?;
    told.flush().map_err(Failure::failed)?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(Failure::failed)?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}
