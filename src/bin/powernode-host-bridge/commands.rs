//! The commands that are calls of the operator API: which call, and how its answer is shown.

use http::Method;
use powernode_satellite::base::limit::foreign_text;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::bridge::operator_api::{
    ACCESS_GRANTS_PATH, CA_PATH, HEALTH_PATH, OPERATORS_PATH, PEER_PREFIX, SESSIONS_PATH,
};
use powernode_satellite::bridge::permission::NamePattern;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Style};
use powernode_satellite::contract::{API_BASE, FEDERATION_PEERS_PATH};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::duration::HumaneDuration;
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use serde_json::{Value, json};

use crate::arguments::operators::{Expiry, OperatorsCommand};
use crate::arguments::{
    CaCommand, Command, GrantArguments, GrantsCommand, InviteArguments, Mode, PeersCommand, SessionsCommand,
    TokenCommand,
};
use crate::call::{call, code_of, exchange};
use crate::{audit, print, show};

/// Carries one command out.
pub fn execute(config: &HostBridgeConfig, command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let shell = Shell { config };
    runtime.block_on(shell.execute(command))
}

struct Shell<'a> {
    config: &'a HostBridgeConfig,
}

impl Shell<'_> {
    async fn execute(&self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Invite(invite) => self.invite(&invite).await,
            Command::Audit { command } => audit::audit(self.config, &command).await,
            Command::Peers { command } => self.peers(command).await,
            Command::Token {
                command: TokenCommand::Mint { peer, ttl, json },
            } => {
                let path = format!("{FEDERATION_PEERS_PATH}/{}/acceptance_token", segment(&peer)?);
                let minted = self
                    .post(&path, &json!({ "ttl_seconds": seconds(ttl.as_ref()) }))
                    .await?;
                print_answer(&minted, json, show::minted)
            }
            Command::Grants { command } => self.grants(command).await,
            Command::Request { peer, path } => self.request(&peer, &path).await,
            Command::Sessions { command } => self.sessions(command).await,
            Command::Operators { command } => self.operators(command).await,
            Command::Ca { command } => self.authority(command).await,
            Command::Status { json } => {
                let health = self.get(HEALTH_PATH).await?;
                print_answer(&health, json, show::health)
            }
            // Those that are no calls were carried out before.
            Command::Init(_)
            | Command::Run
            | Command::Complete { .. }
            | Command::Connect(_)
            | Command::Forward(_)
            | Command::StateKey { .. }
            | Command::Backup(_)
            | Command::Restore { .. }
            | Command::SelfCheck { .. }
            | Command::Doctor { .. }
            | Command::Config { .. }
            | Command::Version => Ok(()),
        }
    }

    async fn invite(&self, invite: &InviteArguments) -> Result<(), Failure> {
        let mode = match invite.spawn_mode {
            Mode::ManagedChild => "managed_child",
            Mode::AutonomousPeer => "autonomous_peer",
            Mode::ClusterMember => "cluster_member",
            Mode::OutOfBand => "out_of_band",
        };
        let body = json!({
            "name": invite.name,
            "description": invite.description,
            "spawn_mode": mode,
            "ttl_seconds": seconds(invite.ttl.as_ref()),
        });
        let minted = self
            .post(&format!("{FEDERATION_PEERS_PATH}/invite"), &body)
            .await?;
        print_answer(&minted, invite.json, show::minted)
    }

    async fn peers(&self, command: PeersCommand) -> Result<(), Failure> {
        let of = |peer: &str| Ok::<_, Failure>(format!("{FEDERATION_PEERS_PATH}/{}", segment(peer)?));
        match command {
            PeersCommand::List { all, json } => {
                let peers = self.get(FEDERATION_PEERS_PATH).await?;
                print_answer(&peers, json, |peers, style, now| {
                    show::peers(peers, all, style, now)
                })
            }
            PeersCommand::Show { peer, json } => {
                let peer = self.get(&of(&peer)?).await?;
                print_answer(&peer, json, show::peer)
            }
            PeersCommand::Suspend { peer, reason } => {
                let path = format!("{}/suspend", of(&peer)?);
                let peer = self.post(&path, &json!({ "reason": reason })).await?;
                print(&format!("{} is suspended\n", show::name_of(&peer)))
            }
            PeersCommand::Resume { peer } => {
                let peer = self.post(&format!("{}/resume", of(&peer)?), &json!({})).await?;
                let next = peer["next"].as_str().unwrap_or_default();
                print(&format!("{} is resumed: {next}\n", show::name_of(&peer)))
            }
            PeersCommand::Readmit { peer, fingerprint } => {
                let body = json!({ "fingerprint": fingerprint.map(|named| named.to_string()) });
                let peer = self.post(&format!("{}/readmit", of(&peer)?), &body).await?;
                print(&show::readmitted(&peer))
            }
            PeersCommand::Revoke { peer, reason } => {
                let path = format!("{}/revoke", of(&peer)?);
                let peer = self.post(&path, &json!({ "reason": reason })).await?;
                print(&format!("{} is revoked for good\n", show::name_of(&peer)))
            }
        }
    }

    async fn authority(&self, command: CaCommand) -> Result<(), Failure> {
        match command {
            CaCommand::Show { json } => {
                let authority = self.get(CA_PATH).await?;
                print_answer(&authority, json, show::authority)
            }
            CaCommand::Rotate { overlap, json } => {
                let body = json!({ "overlap_seconds": seconds(overlap.as_ref()) });
                let rotated = self.post(&format!("{CA_PATH}/rotate"), &body).await?;
                print_answer(&rotated, json, show::rotated_authority)
            }
            CaCommand::Retire { force } => {
                let path = format!("{CA_PATH}/retire");
                let retired = self.post(&path, &json!({ "force": force })).await?;
                print(&show::retired_authority(&retired))
            }
        }
    }

    async fn grants(&self, command: GrantsCommand) -> Result<(), Failure> {
        match command {
            GrantsCommand::List { json } => {
                let grants = self.get(ACCESS_GRANTS_PATH).await?;
                print_answer(&grants, json, show::grants)
            }
            GrantsCommand::Create(create) => self.create_grant(&create).await,
            GrantsCommand::Revoke { grant, reason } => {
                let path = format!("{ACCESS_GRANTS_PATH}/{}/revoke", segment(&grant)?);
                self.post(&path, &json!({ "reason": reason })).await?;
                print(&format!("grant {grant} is revoked\n"))
            }
        }
    }

    async fn create_grant(&self, create: &GrantArguments) -> Result<(), Failure> {
        let path = format!("{FEDERATION_PEERS_PATH}/{}", segment(&create.peer)?);
        let peer = self.get(&path).await?;
        let body = json!({
            "federation_peer_id": peer["id"],
            "remote_subject": create.subject,
            "resource_kind": create.kind,
            "resource_id": create.resource,
            "permission_scopes": create.scopes,
            "node_instance_ids": create.instances,
            "sdwan_network_ids": create.networks,
            "source_cidrs": create.sources,
            "ttl_seconds": seconds(create.ttl.as_ref()),
        });
        let created = self.post(ACCESS_GRANTS_PATH, &body).await?;
        print_answer(&created, create.json, show::created_grant)
    }

    async fn sessions(&self, command: SessionsCommand) -> Result<(), Failure> {
        match command {
            SessionsCommand::List { json } => {
                let sessions = self.get(SESSIONS_PATH).await?;
                print_answer(&sessions, json, show::sessions)
            }
            SessionsCommand::Cut { id, reason } => {
                let path = format!("{SESSIONS_PATH}/{}/cut", segment(&id)?);
                let cut = self.post(&path, &json!({ "reason": reason })).await?;
                let text = |field: &str| cut[field].as_str().unwrap_or("?").to_owned();
                print(&format!(
                    "the session of {} to {} of {} is cut\n",
                    text("operator"),
                    text("service"),
                    text("peer")
                ))
            }
        }
    }

    async fn operators(&self, command: OperatorsCommand) -> Result<(), Failure> {
        match command {
            OperatorsCommand::Add(add) => {
                let body = json!({
                    "name": add.name,
                    "role": add.role,
                    "peers": words(&add.peers),
                    "services": words(&add.services),
                    "ttl_seconds": add.expires.seconds(),
                });
                let added = self.post(OPERATORS_PATH, &body).await?;
                print_answer(&added, add.json, show::minted_operator)
            }
            OperatorsCommand::List { json } => {
                let operators = self.get(OPERATORS_PATH).await?;
                print_answer(&operators, json, show::operators)
            }
            OperatorsCommand::Show { operator, json } => {
                let path = format!("{OPERATORS_PATH}/{}", segment(&operator)?);
                print_answer(&self.get(&path).await?, json, show::operator)
            }
            OperatorsCommand::Set(set) => {
                let path = format!("{OPERATORS_PATH}/{}/change", segment(&set.operator)?);
                let body = json!({
                    "role": set.role,
                    "peers": set.peers.as_deref().map(words),
                    "services": set.services.as_deref().map(words),
                    "ttl_seconds": set.expires.and_then(Expiry::seconds),
                    "never_expires": matches!(set.expires, Some(Expiry::Never)),
                });
                print_answer(&self.post(&path, &body).await?, set.json, show::operator)
            }
            OperatorsCommand::Rotate { operator, json } => {
                let path = format!("{OPERATORS_PATH}/{}/rotate", segment(&operator)?);
                let minted = self.post(&path, &json!({})).await?;
                print_answer(&minted, json, show::minted_operator)
            }
            OperatorsCommand::Remove { operator } => {
                let path = format!("{OPERATORS_PATH}/{}/revoke", segment(&operator)?);
                self.post(&path, &json!({})).await?;
                print(&format!(
                    "{operator} is removed; the token is not known any more\n"
                ))
            }
        }
    }

    /// The body goes to standard output whatever the peer's answer is; a refusal is an exit code.
    async fn request(&self, peer: &str, path: &str) -> Result<(), Failure> {
        let path = if path.starts_with("/federation_api/") {
            format!("{API_BASE}{path}")
        } else {
            path.to_owned()
        };
        let target = format!("{PEER_PREFIX}{}{path}", segment(peer)?);
        let answer = exchange(self.config, Method::GET, &target, None).await?;
        if answer.status.is_success() {
            let mut body = String::from_utf8_lossy(&answer.body).into_owned();
            if !body.ends_with('\n') {
                body.push('\n');
            }
            return print(&body);
        }
        let said = match answer.read() {
            Ok(Err(refused)) if !refused.error.is_empty() => refused.error,
            _ => format!("the answer was HTTP {}", answer.status.as_u16()),
        };
        Err(Failure::new(code_of(answer.status), said))
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        call(self.config, Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        call(self.config, Method::POST, path, Some(body)).await
    }
}

/// Prints an answer, for a script or for a person.
fn print_answer(
    data: &Value,
    json: bool,
    render: impl FnOnce(&Value, Style, UnixTime) -> String,
) -> Result<(), Failure> {
    if json {
        // A list looks as it does over HTTPS, so that one filter, `.data[]`, reads both.
        let list = data.is_array().then(|| json!({ "data": data }));
        return print(&output::render_json(list.as_ref().unwrap_or(data)));
    }
    let now = Clock::start(BUILD_TIME).trusted().now;
    print(&render(data, Style::of_stdout(), now))
}

fn words(patterns: &[NamePattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

fn seconds(ttl: Option<&HumaneDuration>) -> Option<u64> {
    ttl.map(|ttl| ttl.0.as_secs())
}

/// A name or id as one part of a path.
pub fn segment(text: &str) -> Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(plain) && !matches!(text, "." | "..") {
        return Ok(text);
    }
    Err(Failure::new(
        Code::Usage,
        format!("`{}` is neither an id nor a name", foreign_text(text)),
    ))
}
