//! How others talk to the loop: settings in, commands in, the status and the health out.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::base::id::PeerId;
use crate::base::time::{Moment, UnixTime};
use crate::identity::own_authority::OwnAuthorityError;
use crate::machine::child::{ChildPolicy, InvitationRefused, Rejoin};
use crate::machine::join::{CancelRefused, JoinState};
use crate::machine::ladder::TunnelId;
use crate::machine::membership::{Membership, Operator, StoredInvitation};
use crate::machine::watchdog::Verdict;
use crate::process::clock::Clock;
use crate::process::config::node::NodeIdentityConfig;
use crate::process::config::satellite::Ways;
use crate::process::hook::Hook;
use crate::satellite::membership_store::SaveStateError;
use crate::satellite::own_authority::{AuthorityError, AuthorityReport, AuthorityWish};
use crate::satellite::status::{HttpsReport, ReachReport, StatusReport};
use crate::tunnel::{Tunnel, TunnelSettings};

/// A loop that has not gone round for so long is stuck: a slow card writes for seconds, not minutes.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What the loop is set up with.
#[derive(Debug, Clone)]
pub struct DriverSettings {
    /// How the parent is reached; its bridges come from the config and outrank the invitation's.
    pub child: ChildPolicy,
    /// Tunnel limits.
    pub tunnel: TunnelSettings,
    /// By which ways the tunnel is dialled.
    pub ways: Ways,
    /// The node's identity.
    pub node: NodeIdentityConfig,
    /// What takes the cluster's part of an accept.
    pub cluster_hook: Option<Hook>,
    /// The operator from the config, which outranks the one that was given at join.
    pub operator: Option<Operator>,
}

/// What others ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Join with this invitation, or join anew.
    Join(
        Box<StoredInvitation>,
        Option<Rejoin>,
        oneshot::Sender<Result<(), JoinCommandError>>,
    ),
    /// Take new settings and try to connect at once.
    Reload(Box<DriverSettings>),
    /// What a heartbeat says has changed.
    ContentChanged,
    /// Show this, and tell the parent of these endpoints from now on: all of them proven.
    Reach(Box<ReachReport>, Vec<SocketAddr>),
    /// Show this of the HTTPS listener, and tell the parent of these endpoints from now on: all of them proven.
    Https(Box<HttpsReport>, Vec<SocketAddr>),
    /// Give a rejoin up.
    CancelRejoin(oneshot::Sender<Result<RejoinCancelled, CancelRejoinError>>),
    /// Change the box's own authority.
    Authority(
        AuthorityWish,
        oneshot::Sender<Result<AuthorityReport, AuthorityError>>,
    ),
    /// End the peering, for this reason.
    Leave(String, oneshot::Sender<Result<Departure, LeaveError>>),
}

/// A rejoin that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinCancelled {
    /// Which peer this box goes on as.
    pub peer_id: PeerId,
    /// Whether the parent may have taken the new token all the same.
    pub may_be_taken: bool,
}

impl RejoinCancelled {
    /// Of the state in which it is given up.
    pub(in crate::satellite) fn of(state: &JoinState) -> Result<Self, CancelRefused> {
        let before = state.without_rejoin()?;
        let membership = before.membership().ok_or(CancelRefused::NoMembership)?;
        Ok(Self {
            peer_id: membership.peer_id,
            may_be_taken: matches!(state, JoinState::Sent { .. }),
        })
    }
}

/// Why a rejoin was not given up.
#[derive(Debug, Error)]
pub enum CancelRejoinError {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] CancelRefused),
    /// It is not durable.
    #[error("the membership of before could not be stored; the rejoin goes on")]
    Save(#[source] SaveStateError),
}

/// How a peering was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Which.
    pub peer_id: PeerId,
    /// Why the parent was not told, if it was not.
    pub not_told: Option<String>,
    /// It was told, and its own operators have to end the peering there.
    #[serde(default)]
    pub ends_by_operator: bool,
}

/// Why a peering was not ended.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// There is none.
    #[error("this box has not joined a parent, so there is nothing to leave")]
    NotJoined,
    /// The keys are still there.
    #[error("the keys could not be destroyed; free the disk or mend it, then leave again")]
    Save(#[source] SaveStateError),
}

/// How the membership stands while a member's tunnel is up.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Another one with every tunnel.
    pub number: TunnelId,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Where its other end is.
    pub bridge: SocketAddr,
    /// Hosts under which this satellite looks for bridges.
    pub names: Vec<String>,
    /// The membership.
    pub membership: Membership,
}

impl Standing {
    /// Whether the other one differs in what others act upon.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let key = |standing: &Self| {
            let certificate = &standing.membership.identity.certificate;
            let trust = certificate.ca_chain_pem.clone();
            (
                standing.number,
                certificate.serial.clone(),
                trust,
                standing.names.clone(),
            )
        };
        key(self) != key(other)
    }
}

/// The membership, whether a tunnel is up or not.
#[derive(Debug, Clone)]
pub struct Member {
    /// Hosts under which this satellite looks for bridges.
    pub names: Vec<String>,
    /// The membership.
    pub membership: Membership,
}

/// Why an invitation was not taken.
#[derive(Debug, Error)]
pub enum JoinCommandError {
    /// Member already.
    #[error(transparent)]
    Refused(#[from] InvitationRefused),
    /// The invitation could not be stored.
    #[error("the invitation could not be stored; nothing was sent")]
    Save(#[source] SaveStateError),
    /// The box has no authority to certify itself by.
    #[error("this box could not make a certificate authority of its own; nothing was sent")]
    Authority(#[source] OwnAuthorityError),
}

/// Talks to the loop.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    pub(super) commands: mpsc::Sender<Command>,
    /// The latest report.
    pub status: watch::Receiver<StatusReport>,
    /// How the membership stands; none while no member's tunnel is up.
    pub standing: watch::Receiver<Option<Standing>>,
    /// The membership; none before the join and after the box has left.
    pub member: watch::Receiver<Option<Member>>,
    /// The watchdog's verdict.
    pub health: watch::Receiver<Verdict>,
    /// When the loop last went round.
    pub(super) pulse: watch::Receiver<Moment>,
    pub(super) clock: Clock,
}

/// The loop is not there any more: the daemon stops.
#[derive(Debug, Error)]
#[error("the satellite is stopping")]
pub struct Stopping;

impl DriverHandle {
    /// Whether the loop still goes round: one that hangs on its disk does not.
    pub fn is_moving(&self) -> bool {
        self.clock.now().since(*self.pulse.borrow()) < STUCK_AFTER
    }

    /// The time that certificates are judged by.
    pub fn trusted_now(&self) -> UnixTime {
        self.clock.trusted().now
    }

    /// Hands an invitation over; returns when it is stored.
    pub async fn join(&self, invitation: StoredInvitation) -> Result<Result<(), JoinCommandError>, Stopping> {
        self.join_as(invitation, None).await
    }

    /// The same, or for a membership that is to be replaced.
    pub async fn join_as(
        &self,
        invitation: StoredInvitation,
        rejoin: Option<Rejoin>,
    ) -> Result<Result<(), JoinCommandError>, Stopping> {
        self.ask(|reply| Command::Join(Box::new(invitation), rejoin, reply))
            .await
    }

    /// Has the next heartbeat sent soon: what it says has changed.
    pub async fn content_changed(&self) -> Result<(), Stopping> {
        self.commands
            .send(Command::ContentChanged)
            .await
            .map_err(|_| Stopping)
    }

    /// Hands over what is known of the ways in.
    pub async fn tell_reach(&self, report: ReachReport, proven: Vec<SocketAddr>) -> Result<(), Stopping> {
        self.commands
            .send(Command::Reach(Box::new(report), proven))
            .await
            .map_err(|_| Stopping)
    }

    /// Hands over what is known of the HTTPS listener.
    pub async fn tell_https(&self, report: HttpsReport, proven: Vec<SocketAddr>) -> Result<(), Stopping> {
        self.commands
            .send(Command::Https(Box::new(report), proven))
            .await
            .map_err(|_| Stopping)
    }

    /// Ends the peering; returns when its keys are out of use and the parent was told or cannot be. The
    /// daemon stops after it.
    pub async fn leave(&self, reason: String) -> Result<Result<Departure, LeaveError>, Stopping> {
        self.ask(|reply| Command::Leave(reason, reply)).await
    }

    /// Gives a rejoin up; returns when the membership of before is stored.
    pub async fn cancel_rejoin(&self) -> Result<Result<RejoinCancelled, CancelRejoinError>, Stopping> {
        self.ask(Command::CancelRejoin).await
    }

    /// Changes the box's own authority; returns when that is stored.
    pub async fn authority(
        &self,
        wish: AuthorityWish,
    ) -> Result<Result<AuthorityReport, AuthorityError>, Stopping> {
        self.ask(|reply| Command::Authority(wish, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Takes new settings and tries to connect at once.
    pub async fn reload(&self, settings: DriverSettings) -> Result<(), Stopping> {
        self.commands
            .send(Command::Reload(Box::new(settings)))
            .await
            .map_err(|_| Stopping)
    }
}
