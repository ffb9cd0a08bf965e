//! What operators may do: a role says which actions, patterns say at which peers and services. A table
//! and a glob; knows no store, no clock and no request.
//!
//! A limit is on names, because that is what people know boxes by: `shop-*` holds for the box that is
//! invited tomorrow. Who is limited never sees the rest: lists leave it out, and a name that no pattern
//! matches is refused whether there is such a peer or not.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::id::{OperatorId, PeerId};
use crate::base::limit::foreign_text;

/// What an operator is there for; each may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Uses and looks after satellites: reaches their services, cuts sessions, pauses peers.
    Operator,
    /// Decides who is in: peers, grants, operators.
    Admin,
}

impl Role {
    /// All of them, from the least on.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a role; known are viewer, operator and admin")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let text = text.trim();
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| UnknownRole(foreign_text(text)))
    }
}

/// Longest pattern, in characters: as long as a name, or the text form of an id.
const PATTERN_MAX_CHARS: usize = 63;

/// Most patterns of one limit: above that the boxes want better names.
pub const PATTERNS_MAX: usize = 64;

/// A pattern of names: `*` is any characters, `?` is one, all else is itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamePattern(String);

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not a pattern of names; use 1 to 63 letters, digits, `-`, `_`, `.`, with `*` for any characters and `?` for one"
)]
pub struct InvalidPattern(String);

impl FromStr for NamePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let text = text.trim();
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*' | '?');
        if text.is_empty() || text.len() > PATTERN_MAX_CHARS || !text.chars().all(known) {
            return Err(InvalidPattern(foreign_text(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NamePattern {
    /// Whether the whole name is of the pattern. In time of the product of the lengths at most.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut seen) = (0, 0);
        // Where the last star is, and how much of the name it has taken.
        let mut star: Option<(usize, usize)> = None;
        while seen < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[seen] => {
                    at += 1;
                    seen += 1;
                }
                _ => match star {
                    // The star takes one more, and what follows it is tried again.
                    Some((star_at, taken)) => {
                        star = Some((star_at, taken + 1));
                        at = star_at + 1;
                        seen = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

/// At which names somebody may act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameLimit {
    /// At all.
    Any,
    /// At those that one of these matches.
    Only(Vec<NamePattern>),
}

/// Why texts are no limit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidLimit {
    /// One is no pattern.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// Too many.
    #[error("a limit has at most {PATTERNS_MAX} patterns; use fewer, with `*`")]
    TooMany,
}

impl NameLimit {
    /// Of patterns as they are written; none at all, or `*`, is no limit.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, InvalidLimit> {
        let patterns = texts
            .iter()
            .map(|text| text.as_ref().parse::<NamePattern>())
            .collect::<Result<Vec<_>, _>>()?;
        if patterns.len() > PATTERNS_MAX {
            return Err(InvalidLimit::TooMany);
        }
        if patterns.is_empty() || patterns.iter().any(|pattern| pattern.0 == "*") {
            return Ok(Self::Any);
        }
        Ok(Self::Only(patterns))
    }

    /// Whether a name is within.
    pub fn admits(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// As views show it: `any`, or the patterns.
    pub fn view(&self) -> serde_json::Value {
        match self {
            Self::Any => "any".into(),
            Self::Only(patterns) => patterns.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for NameLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Only(patterns) => {
                for (number, pattern) in patterns.iter().enumerate() {
                    let separator = if number == 0 { "" } else { ", " };
                    write!(f, "{separator}{pattern}")?;
                }
                Ok(())
            }
        }
    }
}

/// The peer that an action is about. Patterns match its name or its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRef<'a> {
    /// One that is there.
    Known {
        /// Its id.
        id: PeerId,
        /// Its name, if it has one.
        name: Option<&'a str>,
    },
    /// As somebody called it; there may be no such peer.
    Called(&'a str),
    /// One that is to be made without a name.
    Nameless,
}

impl fmt::Display for PeerRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { name: Some(name), .. } => write!(f, "`{}`", foreign_text(name)),
            Self::Known { id, name: None } => write!(f, "`{id}`"),
            Self::Called(name) => write!(f, "`{}`", foreign_text(name)),
            Self::Nameless => f.write_str("a peer without a name"),
        }
    }
}

/// What somebody wants to do with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAction {
    /// See it, its grants, its sessions and its audit entries.
    See,
    /// Read its own interface through its tunnel.
    Ask,
    /// Change something through its own interface: its subscriptions.
    Instruct,
    /// End somebody's session with it.
    CutSession,
    /// Suspend or resume it.
    Pause,
    /// Propose or invite it, mint its token, carry out its accept, readmit it with another key.
    Invite,
    /// End the peering.
    Revoke,
    /// Make or end a grant for it.
    ChangeGrants,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// See the health of the bridge, the authority's certificate, and whether the audit log is whole.
    SeeHealth,
    /// See audit entries that are about no peer.
    SeeWholeAudit,
    /// See and change operators.
    ManageOperators,
    /// Rotate the certificate authority, and retire the one before.
    ManageAuthority,
    /// Something with a peer.
    OnPeer(PeerAction, PeerRef<'a>),
    /// Reach a service of a peer.
    ReachService(PeerRef<'a>, &'a str),
}

impl<'a> Action<'a> {
    /// The least role that may.
    const fn role(&self) -> Role {
        match self {
            Self::SeeHealth | Self::SeeWholeAudit => Role::Viewer,
            Self::ReachService(..) => Role::Operator,
            Self::ManageOperators | Self::ManageAuthority => Role::Admin,
            Self::OnPeer(action, _) => match action {
                PeerAction::See => Role::Viewer,
                PeerAction::Ask | PeerAction::Instruct | PeerAction::CutSession | PeerAction::Pause => {
                    Role::Operator
                }
                PeerAction::Invite | PeerAction::Revoke | PeerAction::ChangeGrants => Role::Admin,
            },
        }
    }

    /// The peer that it is about.
    pub const fn peer(&self) -> Option<&PeerRef<'a>> {
        match self {
            Self::OnPeer(_, peer) | Self::ReachService(peer, _) => Some(peer),
            Self::SeeHealth | Self::SeeWholeAudit | Self::ManageOperators | Self::ManageAuthority => None,
        }
    }

    /// Whether a limit to some peers forbids it altogether: what concerns all peers, or could lift the
    /// limit itself.
    const fn needs_all_peers(&self) -> bool {
        matches!(
            self,
            Self::SeeWholeAudit | Self::ManageOperators | Self::ManageAuthority
        )
    }

    /// Whether a limit to some services forbids it altogether: it goes around them.
    const fn needs_all_services(&self) -> bool {
        matches!(
            self,
            Self::ManageOperators
                | Self::ManageAuthority
                | Self::OnPeer(PeerAction::Instruct | PeerAction::ChangeGrants, _)
        )
    }

    /// What is done, as a sentence has it.
    pub const fn doing(&self) -> &'static str {
        match self {
            Self::SeeHealth => "seeing the health of the bridge",
            Self::SeeWholeAudit => "seeing audit entries that are about no peer",
            Self::ManageOperators => "managing operators",
            Self::ManageAuthority => "rotating the certificate authority",
            Self::ReachService(..) => "reaching a service",
            Self::OnPeer(action, _) => match action {
                PeerAction::See => "seeing a peer",
                PeerAction::Ask => "sending a request to a peer",
                PeerAction::Instruct => "changing something at a peer",
                PeerAction::CutSession => "cutting a session",
                PeerAction::Pause => "suspending and resuming peers",
                PeerAction::Invite => "inviting peers",
                PeerAction::Revoke => "revoking peers",
                PeerAction::ChangeGrants => "making and ending grants",
            },
        }
    }
}

/// Why somebody may not, and what it would take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotPermitted {
    /// Another role.
    #[error(
        "{operator} has the role {has}; {doing} takes the role {takes}. An admin can give it: operators set {operator} --role {takes}"
    )]
    Role {
        /// Who.
        operator: String,
        /// Their role.
        has: Role,
        /// What they wanted.
        doing: &'static str,
        /// The least role.
        takes: Role,
    },
    /// Another peer.
    #[error(
        "{operator} is limited to the peers {limit}, and {peer} is not among them. An admin can change that: operators set {operator} --peers …"
    )]
    Peer {
        /// Who.
        operator: String,
        /// Their limit.
        limit: String,
        /// What they wanted.
        peer: String,
    },
    /// Another service.
    #[error(
        "{operator} is limited to the services {limit}, and `{service}` is not among them. An admin can change that: operators set {operator} --services …"
    )]
    Service {
        /// Who.
        operator: String,
        /// Their limit.
        limit: String,
        /// What they wanted.
        service: String,
    },
    /// Something that only who has no limit may.
    #[error("{operator} is limited to some {what}; {doing} is for operators without such a limit")]
    Limited {
        /// Who.
        operator: String,
        /// Peers or services.
        what: &'static str,
        /// What they wanted.
        doing: &'static str,
    },
}

/// A person or program that has proven who they are, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorIdentity {
    /// Of their account; none for the local user.
    pub id: Option<OperatorId>,
    /// What they are called, here and in the audit logs of both sides.
    pub name: String,
    /// What for.
    pub role: Role,
    /// At which peers.
    pub peers: NameLimit,
    /// Which of their services.
    pub services: NameLimit,
}

/// What the user of the admin socket is called; no account has this name.
pub const LOCAL_NAME: &str = "local";

impl OperatorIdentity {
    /// The owner of this machine, whom the admin socket or the registry's file let in.
    pub fn local() -> Self {
        Self {
            id: None,
            name: LOCAL_NAME.to_owned(),
            role: Role::Admin,
            peers: NameLimit::Any,
            services: NameLimit::Any,
        }
    }

    /// Whether they may, or why not.
    pub fn may(&self, action: &Action<'_>) -> Result<(), NotPermitted> {
        let (operator, doing, takes) = (|| self.name.clone(), action.doing(), action.role());
        if self.role < takes {
            return Err(NotPermitted::Role {
                operator: operator(),
                has: self.role,
                doing,
                takes,
            });
        }
        let limited = |what| NotPermitted::Limited {
            operator: operator(),
            what,
            doing,
        };
        if action.needs_all_peers() && self.peers != NameLimit::Any {
            return Err(limited("peers"));
        }
        if let Some(peer) = action.peer()
            && !self.within(peer)
        {
            return Err(NotPermitted::Peer {
                operator: operator(),
                limit: self.peers.to_string(),
                peer: peer.to_string(),
            });
        }
        if action.needs_all_services() && self.services != NameLimit::Any {
            return Err(limited("services"));
        }
        match action {
            Action::ReachService(_, service) if !self.services.admits(service) => {
                Err(NotPermitted::Service {
                    operator: operator(),
                    limit: self.services.to_string(),
                    service: foreign_text(service),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether they may reach a service of a peer: [`Action::ReachService`].
    pub fn may_reach(&self, peer: PeerRef<'_>, service: &str) -> Result<(), NotPermitted> {
        self.may(&Action::ReachService(peer, service))
    }

    /// Whether they may see a peer: [`PeerAction::See`].
    pub fn sees(&self, peer: PeerRef<'_>) -> bool {
        self.may(&Action::OnPeer(PeerAction::See, peer)).is_ok()
    }

    fn within(&self, peer: &PeerRef<'_>) -> bool {
        match peer {
            PeerRef::Known { id, name } => {
                name.is_some_and(|name| self.peers.admits(name)) || self.peers.admits(&id.to_string())
            }
            PeerRef::Called(name) => self.peers.admits(name),
            PeerRef::Nameless => self.peers == NameLimit::Any,
        }
    }
}

#[cfg(test)]
mod tests;
