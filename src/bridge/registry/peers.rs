//! Operators' changes to peers: propose, mint a token, suspend, resume, revoke; and finding a
//! peer by id or name.

use std::time::Duration;

use zeroize::Zeroizing;

use super::record::{
    HELD_GRANTS, LiveToken, PEER_NAMES, PEERS, PeerNameRecord, PeerRecord, StoredTokenState, TOKENS,
    TokenRecord,
};
use super::{Registry, RegistryError};
use crate::base::id::PeerId;
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::bridge::heartbeat::Declaration;
use crate::contract::peer::{PeerEvent, PeerKind, PeerStatus, SpawnMode, SpawnRole};
use crate::contract::token::{AcceptanceToken, TOKEN_ENTROPY_BYTES};
use crate::process::config::duration::HumaneDuration;
use crate::process::entropy;
use crate::store::database::{Reader, Writer};

/// Most peers that are kept, revoked ones included. At about 2 KiB each this is 20 MiB of store
/// and a listing of 10 MiB, which is what one process and one table are good for.
pub const PEERS_MAX: usize = 10_000;

/// Longest name of a peer or an operator, in characters: what a DNS label holds.
pub const NAME_MAX_CHARS: usize = 63;

/// Longest description, URL or reason, in characters.
pub const TEXT_MAX_CHARS: usize = 1_024;

/// Shortest and longest life of an acceptance token. Below a minute nobody can carry it to a
/// box; a token that is not used within a year was forgotten.
pub const TOKEN_TTL_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(366 * 86_400);

/// Names offered when one is not known.
const NEAR_NAMES: usize = 3;

/// How alike a name must be to be offered: Jaro-Winkler, 1 is equal.
const NEAR_ENOUGH: f64 = 0.8;

/// A peer that an operator proposes (contract section 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// What to call it.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Where the other side runs, where that is known.
    pub remote_instance_url: Option<String>,
    /// What it is.
    pub kind: PeerKind,
    /// Our role.
    pub role: SpawnRole,
    /// What follows from how it came to be.
    pub mode: SpawnMode,
}

/// A token, to be shown once.
#[derive(Debug)]
pub struct MintedToken {
    /// In clear.
    pub token: AcceptanceToken,
    /// Whom it lets in.
    pub peer: PeerRecord,
    /// From then on it is not known.
    pub expires_at: UnixTime,
}

impl MintedToken {
    /// Set when the token will be refused as the peer stands.
    pub fn caution(&self) -> Option<String> {
        self.peer.status.apply(PeerEvent::Accept).err().map(|denied| {
            format!(
                "the token will be refused while the peer is {}; suspend the peer if another box is to take its place",
                denied.from
            )
        })
    }
}

/// What a resumed peer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// Its next heartbeat makes it active.
    AwaitsHeartbeat,
    /// It never had a certificate: it has to accept again.
    AwaitsAccept,
}

impl Registry {
    /// Makes a row in `proposed`; nothing is contacted.
    pub fn propose(&self, proposal: &Proposal, now: UnixTime) -> Result<PeerRecord, RegistryError> {
        let record = new_peer(proposal, now)?;
        self.db.write(|w| {
            insert_peer(w, &record)?;
            Ok(record.clone())
        })
    }

    /// Proposes a peer and mints its token in one transaction.
    pub fn invite(
        &self,
        proposal: &Proposal,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<MintedToken, RegistryError> {
        let mut peer = new_peer(proposal, now)?;
        check_ttl(ttl)?;
        let token = new_token();
        let expires_at = now.plus(ttl);
        self.db.write(|w| {
            insert_peer(w, &peer)?;
            replace_token(w, &mut peer, &token, expires_at)
        })?;
        Ok(MintedToken {
            token,
            peer,
            expires_at,
        })
    }

    /// Mints a token; the peer's earlier one is not known any more.
    pub fn mint_token(&self, peer: &str, ttl: Duration, now: UnixTime) -> Result<MintedToken, RegistryError> {
        check_ttl(ttl)?;
        let token = new_token();
        let expires_at = now.plus(ttl);
        let peer = self.db.write(|w| {
            let mut peer = find(w, peer)?;
            if peer.status == PeerStatus::Revoked {
                return Err(RegistryError::InvalidField(
                    "a revoked peer gets no token; invite the box as a new peer".to_owned(),
                ));
            }
            replace_token(w, &mut peer, &token, expires_at)?;
            Ok(peer)
        })?;
        Ok(MintedToken {
            token,
            peer,
            expires_at,
        })
    }

    /// Pauses a peering: its calls are refused until it is resumed.
    pub fn suspend(&self, peer: &str, reason: &str, now: UnixTime) -> Result<PeerRecord, RegistryError> {
        let reason = required_reason(reason)?;
        self.change(peer, PeerEvent::Suspend, now, |record| {
            record.suspended_reason = Some(reason);
        })
    }

    /// Lets a suspended peering go on.
    pub fn resume(&self, peer: &str, now: UnixTime) -> Result<(PeerRecord, Resumption), RegistryError> {
        let record = self.change(peer, PeerEvent::Resume, now, |record| {
            record.suspended_reason = None;
        })?;
        let awaits = if record.certificates.is_empty() {
            Resumption::AwaitsAccept
        } else {
            Resumption::AwaitsHeartbeat
        };
        Ok((record, awaits))
    }

    /// Ends a peering for good. Its name is free again.
    pub fn revoke(&self, peer: &str, reason: &str, now: UnixTime) -> Result<PeerRecord, RegistryError> {
        let reason = required_reason(reason)?;
        let record = self.change(peer, PeerEvent::Revoke, now, |record| {
            record.revocation_reason = Some(reason);
            record.certificates.clear();
        })?;
        self.presence().remove(&record.id);
        Ok(record)
    }

    fn change(
        &self,
        peer: &str,
        event: PeerEvent,
        now: UnixTime,
        and: impl FnOnce(&mut PeerRecord),
    ) -> Result<PeerRecord, RegistryError> {
        let record = self.db.write(|w| {
            let mut record = find(w, peer)?;
            record.status = record.status.apply(event).map_err(RegistryError::Transition)?;
            record.status_since = now;
            and(&mut record);
            if record.status == PeerStatus::Revoked {
                if let Some(name) = &record.name {
                    w.remove(&PEER_NAMES, name)?;
                }
                // Their tokens are of no use any more.
                w.remove(&HELD_GRANTS, &record.id)?;
            }
            w.put(&PEERS, &record.id, &record)?;
            Ok::<_, RegistryError>(record)
        })?;
        Ok(self.with_presence(record))
    }
}

fn new_peer(proposal: &Proposal, now: UnixTime) -> Result<PeerRecord, RegistryError> {
    let text = |what: &str, text: &Option<String>| match text.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) if text.chars().nth(TEXT_MAX_CHARS).is_some() => Err(RegistryError::InvalidField(
            format!("{what} is too long (maximum is {TEXT_MAX_CHARS} characters)"),
        )),
        Some(text) => Ok(Some(text.to_owned())),
    };
    if let Some(name) = &proposal.name {
        check_name(name)?;
    }
    Ok(PeerRecord {
        id: PeerId::new_v7(now, entropy::id_entropy()),
        name: proposal.name.clone(),
        description: text("description", &proposal.description)?,
        remote_instance_url: text("remote_instance_url", &proposal.remote_instance_url)?,
        kind: proposal.kind,
        role: proposal.role,
        mode: proposal.mode,
        status: PeerStatus::Proposed,
        status_since: now,
        declared: Declaration::default(),
        contract_version_agreed: None,
        proposed_at: now,
        signed_at: None,
        last_handshake_at: None,
        last_heartbeat_at: None,
        inbound_subject: None,
        degraded_reason: None,
        suspended_reason: None,
        revocation_reason: None,
        certificates: Vec::new(),
        live_token: None,
        used_token: None,
    })
}

/// Names are for command lines and must not be taken for ids.
pub(super) fn check_name(name: &str) -> Result<(), RegistryError> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = name.chars().all(known)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= NAME_MAX_CHARS
        && name.parse::<PeerId>().is_err();
    if good {
        Ok(())
    } else {
        Err(RegistryError::InvalidName(foreign_text(name)))
    }
}

fn check_ttl(ttl: Duration) -> Result<(), RegistryError> {
    if TOKEN_TTL_RANGE.contains(&ttl) {
        return Ok(());
    }
    Err(RegistryError::InvalidField(format!(
        "an acceptance token lives from {} to {}, not {}",
        HumaneDuration(*TOKEN_TTL_RANGE.start()),
        HumaneDuration(*TOKEN_TTL_RANGE.end()),
        HumaneDuration(ttl)
    )))
}

pub(super) fn required_reason(reason: &str) -> Result<String, RegistryError> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(RegistryError::InvalidField(
            "a reason is required; the record keeps it".to_owned(),
        ));
    }
    if reason.chars().nth(TEXT_MAX_CHARS).is_some() {
        return Err(RegistryError::InvalidField(format!(
            "the reason is too long (maximum is {TEXT_MAX_CHARS} characters)"
        )));
    }
    Ok(reason.to_owned())
}

fn new_token() -> AcceptanceToken {
    let entropy: Zeroizing<[u8; TOKEN_ENTROPY_BYTES]> = entropy::secret_bytes();
    AcceptanceToken::mint(&entropy)
}

fn insert_peer(w: &mut Writer, record: &PeerRecord) -> Result<(), RegistryError> {
    if w.count(&PEERS)? >= PEERS_MAX {
        return Err(RegistryError::Full {
            what: "peers",
            max: PEERS_MAX,
        });
    }
    if let Some(name) = &record.name {
        if w.get(&PEER_NAMES, name)?.is_some() {
            return Err(RegistryError::NameTaken(name.clone()));
        }
        w.put(&PEER_NAMES, name, &PeerNameRecord { peer: record.id })?;
    }
    w.put(&PEERS, &record.id, record)?;
    Ok(())
}

fn replace_token(
    w: &mut Writer,
    peer: &mut PeerRecord,
    token: &AcceptanceToken,
    expires_at: UnixTime,
) -> Result<(), RegistryError> {
    if let Some(earlier) = peer.live_token {
        w.remove(&TOKENS, &earlier.digest)?;
    }
    let digest = token.digest();
    let record = TokenRecord {
        peer: peer.id,
        state: StoredTokenState::Live { expires_at },
    };
    w.put(&TOKENS, &digest, &record)?;
    peer.live_token = Some(LiveToken { digest, expires_at });
    w.put(&PEERS, &peer.id, peer)?;
    Ok(())
}

/// By id, by name, or the newest revoked peer that had the name.
pub(super) fn find(r: &Reader, asked: &str) -> Result<PeerRecord, RegistryError> {
    let asked = asked.trim();
    let id = match asked.parse::<PeerId>() {
        Ok(id) => Some(id),
        Err(_) => r.get(&PEER_NAMES, &asked.to_owned())?.map(|record| record.peer),
    };
    if let Some(id) = id
        && let Some(peer) = r.get(&PEERS, &id)?
    {
        return Ok(peer);
    }
    let peers = r.list(&PEERS)?;
    if let Some((_, revoked)) = peers
        .iter()
        .rev()
        .find(|(_, peer)| peer.name.as_deref() == Some(asked))
    {
        return Ok(revoked.clone());
    }
    let mut near: Vec<(f64, &str)> = peers
        .iter()
        .filter_map(|(_, peer)| peer.name.as_deref())
        .map(|name| (strsim::jaro_winkler(name, asked), name))
        .filter(|(likeness, _)| *likeness >= NEAR_ENOUGH)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.dedup_by(|a, b| a.1 == b.1);
    Err(RegistryError::UnknownPeer {
        asked: foreign_text(asked),
        near: near
            .iter()
            .take(NEAR_NAMES)
            .map(|(_, name)| (*name).to_owned())
            .collect(),
    })
}
