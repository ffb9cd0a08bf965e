//! `join`: hands an invitation to the running daemon, or joins by itself when none runs.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use http::Method;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::contract::invitation::Invitation;
use powernode_satellite::contract::join_code::{InvalidJoinCode, JoinCode};
use powernode_satellite::contract::token::{AcceptanceToken, InvalidToken};
use powernode_satellite::machine::child::{InvitationRefused, Rejoin, RejoinMode, WorkingMembership};
use powernode_satellite::machine::membership::{Operator, StoredInvitation};
use powernode_satellite::machine::past::FormerGrants;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::admin_api::{CANCEL_REJOIN_PATH, JOIN_PATH, JoinRequest, STATUS_PATH};
use powernode_satellite::satellite::daemon::{self, JoinOutcome};
use powernode_satellite::satellite::driver::RejoinCancelled;
use powernode_satellite::satellite::invite;
use powernode_satellite::satellite::offline::cancel_rejoin;
use powernode_satellite::satellite::status::StatusReport;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::arguments::{JoinArguments, RejoinArguments};
use crate::owner;
use crate::run::{block_on, not_run};
use crate::status;

/// Most that is read from standard input or a code file, in bytes.
const INPUT_MAX_BYTES: u64 = 8 * 1024;

/// Pause between two looks at the daemon's status.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Looks for a daemon that holds the state and does not answer yet: ten seconds, for a slow card.
const LOOKS_MAX: u32 = 50;

#[derive(Debug, Error)]
enum InputError {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} is empty")]
    Blank { what: String },
    #[error("{what} is not text; is it the right one?")]
    NotText { what: String },
    #[error("the join code cannot be used")]
    Code(#[source] InvalidJoinCode),
    #[error("the acceptance token cannot be used")]
    Token(#[source] InvalidToken),
    #[error(
        "nothing says whom to join: give a join code (`powernode-satellite join -` reads it from standard input), or \
         --parent-url with --token-file or --token-stdin"
    )]
    Nothing,
}

/// Who keeps the connection after the join.
#[derive(Clone, Copy)]
enum Keeper {
    Daemon,
    Nobody,
}

/// Joins.
pub fn join(config: &SatelliteConfig, arguments: &JoinArguments) -> Result<ExitCode, Failure> {
    let invitation = invitation(config, arguments)?;
    let operator = invite::operator(&config.disclosure).map_err(Failure::usage)?;
    join_as(
        config,
        &StoredInvitation::new(invitation, operator),
        arguments.timeout.0,
        None,
    )
}

/// Joins the same parent anew.
pub fn rejoin(config: &SatelliteConfig, arguments: &RejoinArguments) -> Result<ExitCode, Failure> {
    if arguments.cancel {
        return cancel(config);
    }
    let rejoin = Rejoin {
        grants: if arguments.rebind_grants {
            FormerGrants::Rebound
        } else {
            FormerGrants::Kept
        },
        working: if arguments.force {
            WorkingMembership::Replace
        } else {
            WorkingMembership::Keep
        },
        mode: if arguments.join.has_code() {
            RejoinMode::Told
        } else {
            RejoinMode::AsBefore
        },
    };
    let invitation = invitation(config, &arguments.join)?;
    let invitation = StoredInvitation::new(invitation, operator_as_before(config)?);
    join_as(config, &invitation, arguments.join.timeout.0, Some(rejoin))
}

/// Who runs this box; what the configuration does not say of that, as the parent was told it before.
fn operator_as_before(config: &SatelliteConfig) -> Result<Operator, Failure> {
    let said = &config.disclosure;
    let missing = match invite::operator(said) {
        Ok(operator) => return Ok(operator),
        Err(missing) => missing,
    };
    let report = block_on(status::report(config))??;
    let told = match (report.peer, report.joining_as) {
        (Some(peer), _) => Operator {
            contact: peer.operator_contact,
            location: peer.location,
            data_residency: peer.data_residency,
        },
        (None, Some(operator)) => operator,
        // Asked for more, the owner would give it and be refused then.
        (None, None) if report.parent_url.is_none() || report.state == "left" => {
            return Err(Failure::of(Code::NotJoined, &InvitationRefused::NothingToRejoin));
        }
        (None, None) => return Err(Failure::usage(missing)),
    };
    Ok(Operator {
        contact: said.operator_contact.clone().unwrap_or(told.contact),
        location: said.location.clone().unwrap_or(told.location),
        data_residency: said.data_residency.clone().or(told.data_residency),
    })
}

fn cancel(config: &SatelliteConfig) -> Result<ExitCode, Failure> {
    let cancelled: RejoinCancelled =
        owner::either_way(
            || match owner::daemon(config, &Method::POST, CANCEL_REJOIN_PATH, None)? {
                Some(data) => serde_json::from_value(data).map_err(Failure::failed),
                None => cancel_rejoin(config).map_err(owner::offline),
            },
        )?;
    output::print(&given_up(&cancelled)).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn given_up(cancelled: &RejoinCancelled) -> String {
    let taken = if cancelled.may_be_taken {
        "The parent may have taken the new token all the same, without its answer getting here: should it not know this \
         box any more, ask its operator for another token and rejoin with that.\n"
    } else {
        ""
    };
    format!(
        "the rejoin is given up; this box goes on as peer {}\n{taken}",
        cancelled.peer_id
    )
}

fn join_as(
    config: &SatelliteConfig,
    invitation: &StoredInvitation,
    timeout: Duration,
    rejoin: Option<Rejoin>,
) -> Result<ExitCode, Failure> {
    if std::io::stderr().is_terminal() {
        // A closed standard error cannot be told.
        let _ = writeln!(
            std::io::stderr(),
            "Asking the parent, for up to {} s; Ctrl-C ends the waiting, not the join.",
            timeout.as_secs()
        );
    }
    let (keeper, outcome) = block_on(async {
        tokio::select! {
            joined = join_either_way(config, invitation, rejoin, timeout) => joined,
            Ok(()) = tokio::signal::ctrl_c() => (Keeper::Nobody, Err(interrupted(rejoin))),
        }
    })?;
    match outcome? {
        JoinOutcome::Joined(report) => {
            output::print(&success(&report, keeper)).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        JoinOutcome::Refused(why) => Err(Failure::new(Code::Refused, why)),
        JoinOutcome::TimedOut(last) => Err(Failure::new(
            Code::Unreachable,
            format!(
                "no answer from the parent within {} s{}. The invitation is stored: {} keeps trying, and {}",
                timeout.as_secs(),
                last.map_or_else(String::new, |last| format!("; the last try: {last}")),
                match keeper {
                    Keeper::Daemon => "the running satellite",
                    Keeper::Nobody => "`powernode-satellite run`",
                },
                goes_on(rejoin)
            ),
        )),
    }
}

fn interrupted(rejoin: Option<Rejoin>) -> Failure {
    Failure::new(
        Code::Failed,
        format!(
            "not waited for the parent's answer any longer. The invitation stays stored: a satellite that runs, or \
             `powernode-satellite run`, keeps trying, and {}",
            goes_on(rejoin)
        ),
    )
}

const fn goes_on(rejoin: Option<Rejoin>) -> &'static str {
    match rejoin {
        None => "a join with the same code goes on from here",
        Some(_) => {
            "a rejoin with the same code goes on from here; `powernode-satellite rejoin --cancel` gives it up and goes \
             back to the membership of before"
        }
    }
}

/// By the daemon, or without one. A daemon that has just been started holds the state before it answers at
/// its socket: that is waited for.
async fn join_either_way(
    config: &SatelliteConfig,
    invitation: &StoredInvitation,
    rejoin: Option<Rejoin>,
    timeout: Duration,
) -> (Keeper, Result<JoinOutcome, Failure>) {
    let mut looks = 0;
    let mut troubled = tell_the_first();
    loop {
        if let Some(outcome) = ask_daemon(config, invitation, rejoin, timeout, &mut troubled).await {
            return (Keeper::Daemon, outcome);
        }
        match daemon::join_once(config, invitation.clone(), rejoin, timeout, &mut troubled).await {
            Err(error) if error.holder().is_some() && looks < LOOKS_MAX => {
                if looks == 0 {
                    // A closed standard error cannot be told.
                    let _ = writeln!(
                        std::io::stderr(),
                        "another process holds the state, but no daemon answers at {} yet; waiting for up to {} s",
                        config.admin_socket.display(),
                        (LOOK_AGAIN * LOOKS_MAX).as_secs()
                    );
                }
                looks += 1;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            outcome => return (Keeper::Nobody, outcome.map_err(not_run)),
        }
    }
}

/// Whoever waits at a terminal hears at once what is wrong; a script hears it at the end.
fn tell_the_first() -> impl FnMut(&str) {
    let mut told = !std::io::stderr().is_terminal();
    move |trouble| {
        if !std::mem::replace(&mut told, true) {
            // A closed standard error cannot be told.
            let _ = writeln!(std::io::stderr(), "No answer yet, and trying on: {trouble}");
        }
    }
}

fn success(report: &StatusReport, keeper: Keeper) -> String {
    let peer = report
        .peer
        .as_ref()
        .map_or_else(String::new, |peer| format!(" as peer {}", peer.id));
    let parent = report.parent_url.as_deref().unwrap_or("the parent");
    let next = match keeper {
        Keeper::Daemon => "The running satellite keeps the connection.",
        Keeper::Nobody => {
            "Now start it: `systemctl enable --now powernode-satellite`, or `powernode-satellite run`."
        }
    };
    format!("joined {parent}{peer}\n{next}\n")
}

/// What code, token and configuration say of whom to join. Asked for first: who cannot join gains nothing by
/// saying who runs the box.
fn invitation(config: &SatelliteConfig, arguments: &JoinArguments) -> Result<Invitation, Failure> {
    if let Some(code) = code(arguments)? {
        let code = JoinCode::parse(code).map_err(|error| Failure::usage(InputError::Code(error)))?;
        return Ok(code.into_invitation());
    }
    let token = token(config, arguments)?;
    let trust = invite::configured_trust(&config.parent).map_err(Failure::usage)?;
    invite::of_token(&config.parent, token, trust).map_err(Failure::usage)
}

fn code(arguments: &JoinArguments) -> Result<Option<String>, Failure> {
    match (&arguments.code, &arguments.code_file) {
        (Some(dash), _) if dash == "-" => {
            // Mail programs break it into several lines.
            let is_whole = |text: &str| JoinCode::parse(text.to_owned()).is_ok();
            read_stdin("the join code", is_whole).map(Some)
        }
        (Some(code), _) => {
            warn_of_argv(
                "the join code",
                "`powernode-satellite join -` and paste it, or use --code-file",
            );
            Ok(Some(code.clone()))
        }
        (None, Some(path)) => read_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

fn token(config: &SatelliteConfig, arguments: &JoinArguments) -> Result<AcceptanceToken, Failure> {
    let invalid = |error| Failure::usage(InputError::Token(error));
    if arguments.token_stdin {
        return AcceptanceToken::parse(read_stdin("the token", |_| true)?).map_err(invalid);
    }
    if let Some(token) = &arguments.token {
        warn_of_argv("the token", "--token-stdin or --token-file");
        return AcceptanceToken::parse(token.clone()).map_err(invalid);
    }
    match config
        .parent
        .token_file
        .as_ref()
        .or(config.parent.token_credential.as_ref())
    {
        Some(path) => invite::read_token(path).map_err(Failure::usage),
        None => Err(Failure::usage(InputError::Nothing)),
    }
}

fn warn_of_argv(what: &str, safer: &str) {
    output::warn(format_args!(
        "{what} was on the command line, where other users of this box can read it (ps, /proc); safer: {safer}"
    ));
}

/// To its end; what is pasted on a terminal ends with the line that makes it whole, or with an empty one.
fn read_stdin(what: &str, is_whole: impl Fn(&str) -> bool) -> Result<String, Failure> {
    let source = format!("{what} from standard input");
    let input = std::io::stdin();
    if !input.is_terminal() {
        return read_text(input.lock(), &source);
    }
    // A closed standard error cannot be told.
    let _ = writeln!(
        std::io::stderr(),
        "Paste {what} and press Enter; an empty line ends it:"
    );
    let mut lines = input.lock().take(INPUT_MAX_BYTES);
    let mut text = String::new();
    loop {
        let before = text.len();
        match lines.read_line(&mut text) {
            Ok(_) if text[before..].trim().is_empty() || is_whole(&text) => return Ok(text),
            Ok(_) => {}
            Err(error) => {
                return Err(Failure::usage(InputError::Read {
                    what: source,
                    source: error,
                }));
            }
        }
    }
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let what = format!("the code file {}", path.display());
    match std::fs::File::open(path) {
        Ok(file) => read_text(file, &what),
        Err(source) => Err(Failure::usage(InputError::Read { what, source })),
    }
}

/// One buffer of the final size, so that no copies of a secret stay behind.
fn read_text(source: impl std::io::Read, what: &str) -> Result<String, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(INPUT_MAX_BYTES).unwrap_or(0) + 1,
    ));
    source
        .take(INPUT_MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| {
            Failure::usage(InputError::Read {
                what: what.to_owned(),
                source,
            })
        })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.trim().is_empty() => Err(Failure::usage(InputError::Blank {
            what: what.to_owned(),
        })),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Failure::usage(InputError::NotText {
            what: what.to_owned(),
        })),
    }
}

/// The running daemon's outcome; `None` when none runs.
async fn ask_daemon(
    config: &SatelliteConfig,
    invitation: &StoredInvitation,
    rejoin: Option<Rejoin>,
    timeout: Duration,
    troubled: &mut dyn FnMut(&str),
) -> Option<Result<JoinOutcome, Failure>> {
    let client = AdminClient::new(&config.admin_socket);
    let request = JoinRequest::of(invitation, rejoin)?;
    let body = serde_json::to_value(&request).ok()?;
    match client.call(Method::POST, JOIN_PATH, Some(&body)).await {
        Err(AdminError::NotRunning { .. }) => None,
        Err(error) => Some(Err(Failure::failed(error))),
        Ok(answer) => match answer.read() {
            Err(error) => Some(Err(Failure::failed(error))),
            Ok(Err(refused)) => Some(Err(Failure::new(Code::Failed, refused.error))),
            Ok(Ok(_)) => Some(await_daemon(&client, timeout, troubled).await),
        },
    }
}

async fn await_daemon(
    client: &AdminClient,
    timeout: Duration,
    troubled: &mut dyn FnMut(&str),
) -> Result<JoinOutcome, Failure> {
    let settled = async {
        let mut of_before = None;
        loop {
            let report = status_of(client).await?;
            if let Some(outcome) = daemon::outcome_of(&report) {
                return Ok(outcome);
            }
            // What the daemon suffered from before it was asked to join says nothing of this.
            let of_before = of_before.get_or_insert_with(|| report.link.last_error.clone());
            match &report.link.last_error {
                error if error == of_before => {}
                Some(error) => troubled(error),
                None => *of_before = None,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(timeout, settled).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(JoinOutcome::TimedOut(status_of(client).await?.link.last_error)),
    }
}

/// The daemon's report.
pub async fn status_of(client: &AdminClient) -> Result<StatusReport, Failure> {
    let answer = client
        .call(Method::GET, STATUS_PATH, None)
        .await
        .map_err(Failure::failed)?;
    match answer.read() {
        Ok(Ok(data)) => serde_json::from_value(data).map_err(Failure::failed),
        Ok(Err(refused)) => Err(Failure::new(Code::Failed, refused.error)),
        Err(error) => Err(Failure::failed(error)),
    }
}
