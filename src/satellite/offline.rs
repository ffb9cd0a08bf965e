//! The owner's commands while no daemon runs: the same rules on the same store, and what the parent is
//! to be told waits for the next start.

use thiserror::Error;
use tokio::sync::watch;

use super::driver::{CancelRejoinError, Departure, RejoinCancelled};
use super::grants::admin::GrantDesk;
use super::grants::{GrantBook, OpenGrantsError};
use super::membership_store::{MembershipStore, OpenStateError, SaveStateError};
use super::node_files;
use super::own_authority::{AuthorityError, AuthorityReport, AuthorityWish, by_wish};
use crate::audit::{AuditAction, AuditEvent};
use crate::machine::join::{CancelRefused, Farewell, JoinState};
use crate::machine::node_identity::NodeStanding;
use crate::machine::own_authority::Succession;
use crate::process::clock::{BUILD_TIME, Clock};
use crate::process::config::satellite::SatelliteConfig;
use crate::store::audit_log::{AuditLog, AuditWriter};
use crate::store::database::StoreError;
use crate::store::patience;
use crate::store::state_key::{StateKey, StateKeyError};

/// Why a command could not be carried out.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// There is no membership.
    #[error("this box has not joined a parent; run `powernode-satellite join -` with a join code")]
    NotJoined,
    /// The key of the state.
    #[error(transparent)]
    StateKey(#[from] StateKeyError),
    /// The state.
    #[error(transparent)]
    State(#[from] OpenStateError),
    /// The grants in it.
    #[error(transparent)]
    Grants(#[from] OpenGrantsError),
    /// The audit log in it.
    #[error("the audit log cannot be read or written")]
    Audit(#[source] StoreError),
    /// The box's own authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A rejoin that cannot be given up.
    #[error(transparent)]
    Rejoin(#[from] CancelRejoinError),
    /// The end of the membership.
    #[error("the keys could not be destroyed; free the disk or mend it, then leave again")]
    Save(#[source] SaveStateError),
}

/// The state of a satellite that has joined and does not run.
pub struct OfflineState {
    store: MembershipStore,
    state: JoinState,
    audit: AuditLog,
    writer: AuditWriter,
    clock: Clock,
    accept_unsigned: bool,
    succession: Option<Succession>,
}

/// Gives a rejoin up that is under way. Blocking.
pub fn cancel_rejoin(config: &SatelliteConfig) -> Result<RejoinCancelled, OfflineError> {
    let key = StateKey::read(&config.state_key)?;
    let (peeked, _) = MembershipStore::peek(&config.state_dir, key.as_ref())?;
    let refused = |refused: CancelRefused| OfflineError::Rejoin(refused.into());
    let state = peeked.state.ok_or(refused(CancelRefused::NotUnderWay))?;
    let cancelled = RejoinCancelled::of(&state).map_err(refused)?;
    let (store, _) = MembershipStore::open(&config.state_dir, key.as_ref())?;
    store
        .save_state_blocking(&state.without_rejoin().map_err(refused)?)
        .map_err(|error| OfflineError::Rejoin(CancelRejoinError::Save(error)))?;
    Ok(cancelled)
}

impl OfflineState {
    /// Opens it. Blocking.
    pub fn open(config: &SatelliteConfig) -> Result<Self, OfflineError> {
        let key = StateKey::read(&config.state_key)?;
        // Opening for writing would make a state where there is none.
        let (peeked, _) = MembershipStore::peek(&config.state_dir, key.as_ref())?;
        if peeked.state.as_ref().and_then(JoinState::membership).is_none() {
            return Err(OfflineError::NotJoined);
        }
        let (store, loaded) = MembershipStore::open(&config.state_dir, key.as_ref())?;
        let clock = Clock::start(BUILD_TIME);
        if let Some(seen) = loaded.latest_known_time() {
            clock.restore_parent_time(seen);
        }
        let (_, kept) = watch::channel(config.audit);
        let (audit, writer) =
            AuditLog::open(store.database().clone(), clock.clone(), kept).map_err(OfflineError::Audit)?;
        Ok(Self {
            store,
            state: loaded.state.ok_or(OfflineError::NotJoined)?,
            audit,
            writer,
            clock,
            accept_unsigned: config.accept_unsigned_grants,
            succession: loaded.succession,
        })
    }

    /// What grants are changed at. Blocking.
    pub fn desk(&self) -> Result<GrantDesk, OfflineError> {
        let book = GrantBook::open(
            self.store.database().clone(),
            self.accept_unsigned,
            self.clock.clone(),
        )?;
        Ok(GrantDesk {
            book,
            audit: self.audit.clone(),
            peer: self.state.membership().map(|membership| membership.peer_id),
        })
    }

    /// The time in use.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Writes what is still to be noted. Blocking.
    pub fn finish(self) -> Result<(), OfflineError> {
        self.writer.finish().map_err(OfflineError::Audit)
    }

    /// Changes the box's own authority: the parent hears of it when the satellite runs. Blocking.
    pub fn change_authority(self, wish: AuthorityWish) -> Result<AuthorityReport, OfflineError> {
        let (membership, now) = (self.state.membership(), self.clock.trusted().now);
        let (kept, event) = by_wish(wish, membership, self.succession.as_ref(), now)?;
        self.store
            .save_succession_blocking(kept.as_ref())
            .map_err(AuthorityError::Store)?;
        self.audit.record(&event);
        let report = AuthorityReport::of(membership, kept.as_ref()).ok_or(OfflineError::NotJoined)?;
        self.finish()?;
        Ok(report)
    }

    /// Ends the peering. Nobody can tell the parent from here. Blocking.
    pub fn leave(self, config: &SatelliteConfig, reason: String) -> Result<Departure, OfflineError> {
        let membership = self.state.membership().ok_or(OfflineError::NotJoined)?;
        let peer_id = membership.peer_id;
        let farewell = Farewell {
            parent: membership.parent.clone(),
            peer_id,
            reason,
            at: self.clock.trusted().now,
            told: false,
            erased: false,
            former: membership.former.clone(),
        };
        self.audit.record(&AuditEvent {
            federation_peer_id: Some(peer_id),
            actor: Some("owner".to_owned()),
            object: Some(farewell.reason.clone()),
            ..AuditEvent::of(AuditAction::Left)
        });
        self.store
            .save_farewell_blocking(farewell)
            .map_err(OfflineError::Save)?;
        if let Some(node) = membership.node.as_ref().and_then(NodeStanding::membership) {
            node_files::leave(&config.node_identity.write_to, node);
        }
        let Self { store, writer, .. } = self;
        writer.finish().map_err(OfflineError::Audit)?;
        drop(store);
        // Opening the state of a satellite that has left erases what is left of its keys.
        let key = StateKey::read(&config.state_key)?;
        let open = || MembershipStore::open(&config.state_dir, key.as_ref());
        patience::once_free(open, OpenStateError::holder)?;
        Ok(Departure {
            peer_id,
            not_told: Some("the satellite does not run".to_owned()),
            ends_by_operator: false,
        })
    }
}
