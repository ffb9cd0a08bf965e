//! The parents of this repository's own tests: the standalone host-bridge, and a platform behind a host-bridge, each with
//! the owner whom the cases ask.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::authority::{Authority, Identity};
use super::client::{Ask, Client};
use super::owner::{Owner, Wish};
use super::platform::Platform;
use super::suite::{Kind, Target};
use super::support::{BridgeSite, Running, SatelliteSite, free_port};

/// The common name of the parent's client.
pub const CALLER: &str = "platform.example.com";

/// A credential of the parent's programs.
pub const CREDENTIAL: &str = "0123456789abcdef0123456789abcdef";

/// The network on which the platform's listener stands.
pub const NETWORK: &str = "0192f0c1-7c1e-7a53-9d0e-000000000009";

/// All cases come from one address.
const ACCEPTS: (&str, &str) = (
    "POWERNODE_HOST_BRIDGE_LIMITS_ACCEPTS_PER_SOURCE_PER_MINUTE",
    "1000",
);

fn client_of(bridge: &BridgeSite) -> Client {
    Client {
        url: bridge.url(),
        ca_file: Some(bridge.ca_file.clone()),
        dir: tempfile::tempdir().unwrap(),
    }
}

fn written(dir: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// A platform with a host-bridge in front of it.
pub struct Sidecar {
    pub platform: Platform,
    pub bridge: BridgeSite,
    /// Who the parent's own programs are.
    pub caller: Identity,
    operator_token: String,
    #[allow(dead_code, reason = "it ends when this is dropped")]
    daemon: Running,
}

impl Sidecar {
    pub fn start() -> Self {
        let platform = Platform::start();
        let (servers, callers) = (Authority::new("Server CA"), Authority::new("Caller CA"));
        let dir = tempfile::tempdir().unwrap();
        let server = servers.server(&["127.0.0.1", "localhost"]);
        let port = free_port();
        let mut variables: Vec<_> = [
            (
                "POWERNODE_HOST_BRIDGE_PLATFORM_URL",
                format!("http://{}", platform.address),
            ),
            (
                "POWERNODE_HOST_BRIDGE_PLATFORM_NETWORKS",
                format!("127.0.0.1:{port}={NETWORK}"),
            ),
            (
                "POWERNODE_HOST_BRIDGE_PUBLIC_URL",
                format!("https://127.0.0.1:{port}"),
            ),
            ("POWERNODE_HOST_BRIDGE_CALLERS_SUBJECTS", CALLER.to_owned()),
            (ACCEPTS.0, ACCEPTS.1.to_owned()),
        ]
        .map(|(name, value)| (name, PathBuf::from(value)))
        .into();
        variables.extend(
            [
                (
                    "POWERNODE_HOST_BRIDGE_PLATFORM_CA_FILE",
                    "federation-ca.pem",
                    &platform.authority().pem,
                ),
                (
                    "POWERNODE_HOST_BRIDGE_CALLERS_CA_FILE",
                    "callers-ca.pem",
                    &callers.pem,
                ),
                (
                    "POWERNODE_HOST_BRIDGE_SERVER_CERTIFICATE_FILE",
                    "server.pem",
                    &server.certificate,
                ),
                ("POWERNODE_HOST_BRIDGE_SERVER_KEY_FILE", "server.key", &server.key),
            ]
            .map(|(variable, name, content)| (variable, written(&dir, name, content))),
        );
        let bridge = BridgeSite {
            program: env!("CARGO_BIN_EXE_powernode-host-bridge").into(),
            host: "127.0.0.1",
            port,
            operator_token: String::new(),
            ca_file: written(&dir, "ca.pem", &servers.pem),
            dir,
            variables,
        };
        let daemon = bridge.run();
        let added = bridge.json(&["operators", "add", "anna", "--role", "admin"]);
        Self {
            operator_token: added["operator_token"].as_str().unwrap().to_owned(),
            caller: callers.client(CALLER),
            platform,
            bridge,
            daemon,
        }
    }

    pub fn client(&self) -> Client {
        client_of(&self.bridge)
    }

    /// As a parent to be asked.
    pub fn target(self: Rc<Self>) -> Target {
        Target {
            client: self.client(),
            kind: Kind::Platform,
            owner: Box::new(PlatformOwner(self)),
        }
    }
}

struct PlatformOwner(Rc<Sidecar>);

impl Owner for PlatformOwner {
    fn fulfil(&self, wish: &Wish<'_>) -> Option<String> {
        let mut book = self.0.platform.book();
        let done = Some(String::new());
        match wish {
            Wish::Token => Some(book.propose("box").1),
            Wish::NetworkToken => {
                let (id, token) = book.propose("network");
                book.peer(&id).kind = "sdwan_only";
                Some(token)
            }
            Wish::NodeToken => {
                let (id, token) = book.propose("node");
                // Of the same form, and another one.
                book.peer(&id).node = Some(id.replacen("0192f0c1", "0192f0c2", 1));
                Some(token)
            }
            Wish::ExpiredToken => {
                let (_, token) = book.propose("late");
                book.expired.insert(token.clone());
                Some(token)
            }
            Wish::TokenFor(peer) => Some(book.mint_for(peer)),
            Wish::Suspend(peer) => {
                "suspended".clone_into(&mut book.peer(peer).status);
                done
            }
            Wish::Resume(peer) => {
                "accepted".clone_into(&mut book.peer(peer).status);
                done
            }
            Wish::Revoke(peer) => {
                "revoked".clone_into(&mut book.peer(peer).status);
                done
            }
            Wish::Peer(peer) => {
                let row = book.peer(peer);
                let row = json!({
                    "id": peer, "status": row.status, "capabilities": row.capabilities, "endpoints": row.endpoints,
                    "data_residency": row.data_residency, "last_heartbeat_at": row.last_heartbeat_at,
                });
                Some(row.to_string())
            }
            Wish::Grant(peer, restrictions) => Some(book.grant(peer, restrictions)),
            Wish::RevokeGrant(token) => {
                book.grants.get_mut(*token)?.revoked = true;
                done
            }
            Wish::Offering => Some("backup".to_owned()),
            Wish::FullOffering => Some("full".to_owned()),
            Wish::OperatorToken => Some(self.0.operator_token.clone()),
            // A host-bridge beside a platform knows satellites by the platform's authority alone.
            Wish::EqualToken => None,
            Wish::ChildGrant(_) | Wish::RevokeChildGrant(_) | Wish::ChildService => None,
        }
    }
}

/// The standalone host-bridge, running.
pub struct Standalone {
    pub bridge: BridgeSite,
    minted: AtomicU32,
    #[allow(dead_code, reason = "it ends when this is dropped")]
    daemon: Running,
    #[allow(dead_code, reason = "its files are there as long as this")]
    files: tempfile::TempDir,
}

impl Standalone {
    pub fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let credential = written(&files, "credential", CREDENTIAL);
        let bridge = BridgeSite::init_with(vec![
            (ACCEPTS.0, ACCEPTS.1.into()),
            ("POWERNODE_HOST_BRIDGE_CALLERS_CREDENTIAL_FILE", credential),
        ]);
        Self {
            daemon: bridge.run(),
            minted: AtomicU32::new(0),
            bridge,
            files,
        }
    }

    pub fn client(&self) -> Client {
        client_of(&self.bridge)
    }

    /// As a parent to be asked.
    pub fn target(self: Rc<Self>) -> Target {
        Target {
            client: self.client(),
            kind: Kind::Standalone,
            owner: Box::new(StandaloneOwner {
                client: self.client(),
                of: self,
            }),
        }
    }
}

struct StandaloneOwner {
    of: Rc<Standalone>,
    client: Client,
}

impl StandaloneOwner {
    /// By the operator API, which has cases of its own.
    fn operate(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/api/v1/system/sdwan/federation_peers{path}");
        let bearer = format!("Authorization: Bearer {}", self.of.bridge.operator_token);
        let (headers, body) = ([bearer.as_str()], body.to_string());
        let ask = Ask {
            method,
            ..Ask::post(&path, &body).with(&headers)
        };
        self.client.ask(ask).data().clone()
    }

    fn invite(&self, fields: &Value) -> String {
        let name = format!("peer-{}", self.of.minted.fetch_add(1, Ordering::Relaxed));
        let mut asked = json!({ "name": name });
        for (field, value) in fields.as_object().unwrap() {
            asked[field] = value.clone();
        }
        let invited = self.operate("POST", "/invite", &asked);
        invited["acceptance_token"].as_str().unwrap().to_owned()
    }
}

impl Owner for StandaloneOwner {
    fn fulfil(&self, wish: &Wish<'_>) -> Option<String> {
        let reason = json!({ "reason": "maintenance" });
        let changed = |peer: &str, verb: &str| self.operate("POST", &format!("/{peer}/{verb}"), &reason);
        match wish {
            Wish::Token => Some(self.invite(&json!({}))),
            Wish::EqualToken => Some(self.invite(&json!({ "spawn_mode": "autonomous_peer" }))),
            Wish::NetworkToken => Some(self.invite(&json!({ "peer_kind": "sdwan_only" }))),
            Wish::TokenFor(peer) => {
                let minted = changed(peer, "acceptance_token");
                Some(minted["acceptance_token"].as_str()?.to_owned())
            }
            Wish::Suspend(peer) => Some(changed(peer, "suspend").to_string()),
            Wish::Resume(peer) => Some(changed(peer, "resume").to_string()),
            Wish::Revoke(peer) => Some(changed(peer, "revoke").to_string()),
            Wish::Peer(peer) => Some(self.operate("GET", &format!("/{peer}"), &json!({})).to_string()),
            Wish::OperatorToken => Some(self.of.bridge.operator_token.clone()),
            // Its tokens live for minutes at the least; nodes, resources and offerings are a platform's.
            Wish::ExpiredToken | Wish::NodeToken | Wish::Offering | Wish::FullOffering => None,
            Wish::Grant(..) | Wish::RevokeGrant(_) => None,
            Wish::ChildGrant(_) | Wish::RevokeChildGrant(_) | Wish::ChildService => None,
        }
    }
}

/// The owner of a satellite of these tests.
pub struct SatelliteOwner(pub Rc<SatelliteSite>);

impl Owner for SatelliteOwner {
    fn fulfil(&self, wish: &Wish<'_>) -> Option<String> {
        match wish {
            Wish::ChildGrant(fields) => {
                let mut arguments = vec![
                    "grants",
                    "issue",
                    "--subject",
                    "backup@parent",
                    "--no-deliver",
                    "--json",
                ];
                let listed = |field: &str| -> Option<String> {
                    let values = fields[field].as_array()?;
                    let values: Vec<_> = values.iter().map(|value| value.as_str().unwrap()).collect();
                    Some(values.join(","))
                };
                let one = |field: &str| fields[field].as_str().map(str::to_owned);
                let values = [
                    ("--kind", one("resource_kind")),
                    ("--service", one("resource_id")),
                    ("--scopes", listed("permission_scopes")),
                    ("--source", listed("source_cidrs")),
                    ("--instance", listed("node_instance_ids")),
                    ("--network", listed("sdwan_network_ids")),
                ];
                for (flag, value) in &values {
                    if let Some(value) = value {
                        arguments.extend([flag, value.as_str()]);
                    }
                }
                let issued = super::support::succeed(&self.0.output(&arguments));
                let issued: Value = serde_json::from_str(&issued).unwrap();
                Some(issued["bearer_token"].as_str().unwrap().to_owned())
            }
            Wish::RevokeChildGrant(token) => {
                let id = token.split('.').nth(1).unwrap();
                Some(super::support::succeed(
                    &self.0.output(&["grants", "revoke", id, "--reason", "done"]),
                ))
            }
            Wish::ChildService => Some("web".to_owned()),
            _ => None,
        }
    }
}
