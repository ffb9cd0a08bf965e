//! What a case asks of the parent's owner, because no request to the base URL does it: tokens, suspensions, grants. In
//! the tests it is done in place; for a parent that the environment names, by the owner's own commands.

use std::process::Command;

use serde_json::Value;

/// Something that the owner is asked for.
#[derive(Debug, Clone)]
pub enum Wish<'a> {
    /// A fresh acceptance token for a managed child.
    Token,
    /// The same for an `autonomous_peer`.
    EqualToken,
    /// The same for a peer of the kind `sdwan_only`.
    NetworkToken,
    /// The same for a managed child whose node the parent knows.
    NodeToken,
    /// A token that has expired.
    ExpiredToken,
    /// A fresh token for a peer that there is.
    TokenFor(&'a str),
    /// Suspends a peer.
    Suspend(&'a str),
    /// Lets it go on.
    Resume(&'a str),
    /// Ends its peering.
    Revoke(&'a str),
    /// The peer's row, as JSON.
    Peer(&'a str),
    /// A bearer token by which a peer may read resources of the kind `skill`; the restrictions as a grant's fields.
    Grant(&'a str, &'a Value),
    /// Ends the grant of a bearer token.
    RevokeGrant(&'a str),
    /// The slug of an offering that takes subscribers.
    Offering,
    /// The slug of one that is at capacity.
    FullOffering,
    /// An operator's token.
    OperatorToken,
    /// Of a child: a bearer token of a grant with these fields, by default for all services.
    ChildGrant(&'a Value),
    /// Ends that grant.
    RevokeChildGrant(&'a str),
    /// The name of a service that the child publishes.
    ChildService,
}

impl Wish<'_> {
    /// What the environment calls it, after `POWERNODE_CONFORMANCE_`.
    pub const fn variable(&self) -> &'static str {
        match self {
            Self::Token => "TOKEN_COMMAND",
            Self::EqualToken => "EQUAL_TOKEN_COMMAND",
            Self::NetworkToken => "NETWORK_TOKEN_COMMAND",
            Self::NodeToken => "NODE_TOKEN_COMMAND",
            Self::ExpiredToken => "EXPIRED_TOKEN_COMMAND",
            Self::TokenFor(_) => "TOKEN_FOR_COMMAND",
            Self::Suspend(_) => "SUSPEND_COMMAND",
            Self::Resume(_) => "RESUME_COMMAND",
            Self::Revoke(_) => "REVOKE_COMMAND",
            Self::Peer(_) => "PEER_COMMAND",
            Self::Grant(..) => "GRANT_COMMAND",
            Self::RevokeGrant(_) => "REVOKE_GRANT_COMMAND",
            Self::Offering => "OFFERING_COMMAND",
            Self::FullOffering => "FULL_OFFERING_COMMAND",
            Self::OperatorToken => "OPERATOR_TOKEN_COMMAND",
            Self::ChildGrant(_) => "CHILD_GRANT_COMMAND",
            Self::RevokeChildGrant(_) => "REVOKE_CHILD_GRANT_COMMAND",
            Self::ChildService => "CHILD_SERVICE_COMMAND",
        }
    }

    /// What its command is told, as `$1` and `$2`.
    fn arguments(&self) -> Vec<String> {
        match self {
            Self::TokenFor(peer)
            | Self::Suspend(peer)
            | Self::Resume(peer)
            | Self::Revoke(peer)
            | Self::Peer(peer) => {
                vec![(*peer).to_owned()]
            }
            Self::Grant(peer, restrictions) => vec![(*peer).to_owned(), restrictions.to_string()],
            Self::RevokeGrant(token) | Self::RevokeChildGrant(token) => vec![(*token).to_owned()],
            Self::ChildGrant(fields) => vec![fields.to_string()],
            _ => Vec::new(),
        }
    }
}

/// Why a case cannot be shown here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

impl Skip {
    pub fn missing(wish: &Wish<'_>) -> Self {
        Self(format!(
            "nothing stands for POWERNODE_CONFORMANCE_{} here",
            wish.variable()
        ))
    }
}

/// Whoever fulfils wishes.
pub trait Owner {
    /// What was wished for, or nothing where that is not to be had.
    fn fulfil(&self, wish: &Wish<'_>) -> Option<String>;
}

/// The owner of a parent that the environment names.
pub struct Commands;

impl Owner for Commands {
    fn fulfil(&self, wish: &Wish<'_>) -> Option<String> {
        let command = variable(wish.variable())?;
        let output = Command::new("sh")
            .args(["-c", &command, "conformance"])
            .args(wish.arguments())
            .output()
            .unwrap();
        Some(super::support::succeed(&output).trim().to_owned())
    }
}

/// Of the environment's.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(format!("POWERNODE_CONFORMANCE_{name}")).ok()?;
    (!value.trim().is_empty()).then_some(value)
}
