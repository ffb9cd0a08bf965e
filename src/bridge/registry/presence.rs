//! Who was heard of last and when. A heartbeat a minute from each peer would wear out a disk:
//! its time stays in memory and is written when something else of the peer changes, when
//! [`PRESENCE_WRITE_INTERVAL`] has passed, and at shutdown.

use std::time::Duration;

use thiserror::Error;

use super::Registry;
use super::record::{PEERS, PeerRecord};
use crate::base::id::PeerId;
use crate::base::time::UnixTime;
use crate::bridge::heartbeat::Declaration;
use crate::contract::peer::{PeerEvent, PeerStatus, TransitionDenied};
use crate::store::database::{StoreError, Writer};

/// How old a heartbeat's time in the store may be. A crash of the bridge loses no more than this
/// of "last seen", and a peer causes at most 144 writes a day.
pub const PRESENCE_WRITE_INTERVAL: Duration = Duration::from_secs(600);

/// What is in memory of a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Presence {
    pub(super) last_heartbeat_at: UnixTime,
    written_at: UnixTime,
}

/// What a heartbeat came to.
#[derive(Debug, Clone, PartialEq)]
pub struct HeartbeatTaken {
    /// The row after it.
    pub peer: PeerRecord,
    /// The status before it.
    pub was: PeerStatus,
    /// What was not taken of it.
    pub errors: Vec<String>,
}

/// Why a heartbeat was not taken.
#[derive(Debug, Error)]
pub enum HeartbeatError {
    /// The row is gone.
    #[error("No reachable FederationPeer for mTLS subject")]
    UnknownPeer,
    /// The peer may not heartbeat.
    #[error(transparent)]
    Denied(#[from] TransitionDenied),
    /// The disk.
    #[error("the heartbeat could not be recorded")]
    Store(#[from] StoreError),
}

impl Registry {
    /// Takes a heartbeat.
    pub fn heartbeat(
        &self,
        peer: PeerId,
        sent: &Declaration,
        now: UnixTime,
    ) -> Result<HeartbeatTaken, HeartbeatError> {
        let before = self
            .db
            .read(|r| r.get(&PEERS, &peer))
            .map_err(HeartbeatError::Store)?
            .ok_or(HeartbeatError::UnknownPeer)?;
        let mut taken = apply(before.clone(), sent, now)?;
        let written_at = self.presence().get(&peer).map(|seen| seen.written_at);
        let due = written_at.is_none_or(|at| now.since(at) >= PRESENCE_WRITE_INTERVAL);
        let changed = taken.peer.declared != before.declared || taken.was != taken.peer.status;
        let write = due || changed;
        if write {
            taken = self.db.write(|w| {
                let before = w.get(&PEERS, &peer)?.ok_or(HeartbeatError::UnknownPeer)?;
                let taken = apply(before, sent, now)?;
                w.put(&PEERS, &peer, &taken.peer)?;
                Ok::<_, HeartbeatError>(taken)
            })?;
        }
        let seen = Presence {
            last_heartbeat_at: now,
            written_at: if write { now } else { written_at.unwrap_or(now) },
        };
        self.presence().insert(peer, seen);
        Ok(taken)
    }

    /// Calls active peers degraded whose last heartbeat is older than `stale_after`. A bridge
    /// that was away itself cannot know of heartbeats before `listening_since`.
    pub fn sweep(
        &self,
        stale_after: Duration,
        listening_since: UnixTime,
        now: UnixTime,
    ) -> Result<Vec<PeerRecord>, StoreError> {
        let stale = |peer: &PeerRecord| {
            let heard = peer.last_heartbeat_at.unwrap_or(peer.status_since);
            peer.status == PeerStatus::Active && now.since(heard.max(listening_since)) > stale_after
        };
        let suspects: Vec<PeerRecord> = self.peers()?.into_iter().filter(|peer| stale(peer)).collect();
        if suspects.is_empty() {
            return Ok(suspects);
        }
        self.db.write(|w| {
            let mut degraded = Vec::new();
            for suspect in suspects {
                if let Some(peer) = degrade(w, &suspect, stale_after, now)? {
                    degraded.push(peer);
                }
            }
            Ok(degraded)
        })
    }

    /// Writes the times that are in memory alone: at shutdown.
    pub fn write_presence(&self) -> Result<(), StoreError> {
        let seen: Vec<(PeerId, Presence)> = self.presence().iter().map(|(id, seen)| (*id, *seen)).collect();
        if seen
            .iter()
            .all(|(_, seen)| seen.last_heartbeat_at == seen.written_at)
        {
            return Ok(());
        }
        self.db.write(|w| {
            for (id, seen) in &seen {
                if let Some(mut peer) = w.get(&PEERS, id)?
                    && peer.last_heartbeat_at < Some(seen.last_heartbeat_at)
                {
                    peer.last_heartbeat_at = Some(seen.last_heartbeat_at);
                    w.put(&PEERS, id, &peer)?;
                }
            }
            Ok(())
        })
    }
}

fn apply(
    mut peer: PeerRecord,
    sent: &Declaration,
    now: UnixTime,
) -> Result<HeartbeatTaken, TransitionDenied> {
    let was = peer.status;
    peer.status = was.apply(PeerEvent::Heartbeat)?;
    if peer.status != was {
        peer.status_since = now;
    }
    if was == PeerStatus::Accepted {
        peer.last_handshake_at = Some(now);
    }
    peer.last_heartbeat_at = Some(now);
    let errors = peer.declared.update(sent.clone());
    Ok(HeartbeatTaken { peer, was, errors })
}

fn degrade(
    w: &mut Writer,
    suspect: &PeerRecord,
    stale_after: Duration,
    now: UnixTime,
) -> Result<Option<PeerRecord>, StoreError> {
    let Some(mut peer) = w.get(&PEERS, &suspect.id)? else {
        return Ok(None);
    };
    // A suspension that came in between stays what it is.
    let Ok(status) = peer.status.apply(PeerEvent::HeartbeatStale) else {
        return Ok(None);
    };
    peer.status = status;
    peer.status_since = now;
    peer.last_heartbeat_at = suspect.last_heartbeat_at;
    let minutes = stale_after.as_secs() / 60;
    peer.degraded_reason = Some(match suspect.last_heartbeat_at {
        Some(heard) => format!(
            "no heartbeat since {heard}; found at {now}, {} s later, where {minutes} min are allowed",
            now.since(heard).as_secs()
        ),
        None => format!("no heartbeat at all until {now}, where {minutes} min are allowed"),
    });
    w.put(&PEERS, &peer.id, &peer)?;
    Ok(Some(peer))
}
