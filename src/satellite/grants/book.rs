//! Makes and ends grants. What the owner or the join decides is durable before it is in force, so
//! that nothing comes back after a power cut; then it is in force at once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::watch;

use super::gate::{Gate, Shared};
use super::record::{BOOK, GRANT_KEY, GRANTS, GrantKeyRecord, Handover, KeptGrant, withhold};
use crate::base::id::{GrantId, PeerId};
use crate::base::time::UnixTime;
use crate::grant::{
    ARCHIVE_AFTER, BearerToken, Grant, GrantKey, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant,
    RevokeError,
};
use crate::machine::past::{FormerGrants, FormerPeer};
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::store::database::{Database, StoreError, Writer};
use crate::store::record::Only;

/// Most grants that are kept, ended ones included: some for each technician of a large parent, and
/// still less than a MiB in memory.
pub const GRANTS_MAX: usize = 1_000;

/// Why the grants cannot be opened.
#[derive(Debug, Error)]
pub enum OpenGrantsError {
    /// The key of the tokens.
    #[error(
        "the key of the grant tokens in the store is damaged; move the state directory away and join again"
    )]
    Key,
    /// The store.
    #[error("the grants cannot be read")]
    Store(#[from] StoreError),
}

/// Why grants were not changed. They are as they were.
#[derive(Debug, Error)]
pub enum GrantBookError {
    /// No such grant.
    #[error("there is no grant {0}; `powernode-satellite grants list` shows all")]
    Unknown(GrantId),
    /// It cannot be revoked.
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    /// A bound is reached.
    #[error("{GRANTS_MAX} grants are kept already, none of them ended long ago; revoke what is not needed")]
    Full,
    /// The key is destroyed.
    #[error("this satellite has left its parent; join again before you issue grants")]
    Left,
    /// The disk.
    #[error("the grants could not be written; nothing was changed")]
    Store(#[from] StoreError),
}

/// How a grant is to be made.
#[derive(Debug, Clone)]
pub struct Issue {
    /// What it says.
    pub new: NewGrant,
    /// Whether the parent is to have it.
    pub handover: Handover,
    /// Whether a live one that says the same will do: the one under which it is asked for, or one that was made
    /// under that one. Any other has an end of its own.
    pub reuse: bool,
    /// The grant under which it is asked for.
    pub derived_from: Option<GrantId>,
}

impl Issue {
    /// A grant of the owner's own making.
    pub const fn of(new: NewGrant, handover: Handover) -> Self {
        Self {
            new,
            handover,
            reuse: false,
            derived_from: None,
        }
    }
}

/// A grant with its token, to be shown once.
#[derive(Debug)]
pub struct Issued {
    /// The grant.
    pub grant: Grant,
    /// Its token.
    pub token: BearerToken,
    /// Whether it was there already.
    pub reused: bool,
}

/// Keeps the grants. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct GrantBook {
    shared: Arc<Shared>,
    pub(super) database: Database,
    /// One change at a time, from the read of the row to what is in force.
    changing: Arc<Mutex<()>>,
}

impl GrantBook {
    /// Reads the grants from the satellite's store and makes their key where there is none.
    /// Blocking.
    pub fn open(database: Database, accept_unsigned: bool, clock: Clock) -> Result<Self, OpenGrantsError> {
        let key = read_or_make_key(&database)?;
        let grants = database.read(|reader| reader.list(&GRANTS))?;
        let shared = Shared::new(key, accept_unsigned, grants.into_iter().collect(), clock);
        Ok(Self {
            shared: Arc::new(shared),
            database,
            changing: Arc::default(),
        })
    }

    /// What decides on the parent's requests.
    pub fn gate(&self) -> Gate {
        Gate {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether unsigned tokens are taken from now on.
    pub fn set_accept_unsigned(&self, accept: bool) {
        self.shared.set_accept_unsigned(accept);
    }

    /// Counts changes: for whoever hands grants over.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes()
    }

    /// All grants, oldest first.
    pub fn all(&self) -> Vec<KeptGrant> {
        self.shared.look(|grants| grants.values().cloned().collect())
    }

    /// One grant.
    pub fn get(&self, id: GrantId) -> Option<KeptGrant> {
        self.shared.look(|grants| grants.get(&id).cloned())
    }

    /// The token of a grant that is to be handed over.
    pub fn token_of(&self, id: GrantId) -> Option<BearerToken> {
        self.shared.token_of(id)
    }

    /// Makes a grant.
    pub async fn issue(&self, issue: Issue) -> Result<Issued, GrantBookError> {
        self.change(move |book, now| book.issue_blocking(issue, now))
            .await
    }

    /// Ends a grant and those that were made under it; their streams are cut.
    pub async fn revoke(&self, id: GrantId, reason: &str) -> Result<Grant, GrantBookError> {
        let reason = reason.to_owned();
        self.change(move |book, now| book.revoke_blocking(id, &reason, now))
            .await
    }

    /// The grant under which the parent operates this child: made when there is none, left alone when
    /// a live one is there, and not made again when the owner has revoked it. `None` when there is
    /// none to be had.
    pub async fn mirror(&self, peer: PeerId) -> Result<Option<Issued>, GrantBookError> {
        self.change(move |book, now| book.mirror_blocking(peer, now))
            .await
    }

    /// Carries on for a peer what the owner has decided about those that this box was before, the latest first:
    /// grants that are to be the new one's become it and are told to the parent anew, and an emancipated box
    /// stays so. The operator grant names its peer and is never carried over. Once done, it changes nothing more.
    pub async fn succeed(&self, former: Vec<FormerPeer>, peer: PeerId) -> Result<(), GrantBookError> {
        if former.is_empty() {
            return Ok(());
        }
        self.change(move |book, now| book.succeed_blocking(&former, peer, now))
            .await
    }

    /// Ends every live grant under which the parent operates this box, and what was made under them.
    pub async fn emancipate(&self, peer: PeerId, reason: &str) -> Result<Vec<Grant>, GrantBookError> {
        let reason = reason.to_owned();
        self.change(move |book, now| book.emancipate_blocking(peer, &reason, now))
            .await
    }

    /// Whether the owner has taken back the parent's operator rights and given none since.
    pub fn is_emancipated(&self, peer: PeerId) -> bool {
        let now = self.now();
        self.shared
            .look(|grants| is_emancipated(grants.values(), peer, now))
    }

    /// Puts grants away that were revoked long ago. How many there were.
    pub async fn archive(&self) -> Result<usize, GrantBookError> {
        self.change(Self::archive_blocking).await
    }

    /// Notes that the parent has acknowledged what it was told of a grant.
    pub async fn acknowledged(&self, id: GrantId, told: Handover) -> Result<(), GrantBookError> {
        self.change(move |book, _| book.acknowledged_blocking(id, told))
            .await
    }

    /// Forgets the key and with it all tokens, for good; what was let in is cut. The key in the store
    /// is the caller's to destroy.
    pub fn close(&self) {
        self.shared.forget_key();
    }

    fn now(&self) -> UnixTime {
        self.shared.clock.trusted().now
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Self, UnixTime) -> Result<T, GrantBookError> + Send + 'static,
    ) -> Result<T, GrantBookError> {
        let book = self.clone();
        let changed = blocking::start(move || {
            let _alone = book.changing.lock().unwrap_or_else(PoisonError::into_inner);
            change(&book, book.now())
        });
        match changed.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => Err(StoreError::Stopping.into()),
            },
        }
    }

    fn issue_blocking(&self, issue: Issue, now: UnixTime) -> Result<Issued, GrantBookError> {
        let Issue {
            new,
            handover,
            reuse,
            derived_from,
        } = issue;
        let same = |kept: &&KeptGrant| {
            let ends_with_it = kept.derived_from == derived_from || Some(kept.grant.id) == derived_from;
            reuse && ends_with_it && new.is_served_by(&kept.grant, now)
        };
        let there = self.shared.look(|grants| grants.values().find(same).cloned());
        let reused = there.is_some();
        let grant = there.map_or_else(
            || new.issue(GrantId::new_v7(now, entropy::id_entropy()), now),
            |kept| kept.grant,
        );
        let token = self.shared.token_of(grant.id).ok_or(GrantBookError::Left)?;
        if !reused {
            let kept = KeptGrant {
                grant: grant.clone(),
                handover,
                derived_from,
            };
            let dropped = self.database.write(|w| {
                let dropped = make_room(w, now)?;
                w.put(&GRANTS, &kept.grant.id, &kept)?;
                Ok::<_, GrantBookError>(dropped)
            })?;
            self.shared.change(|grants| {
                if let Some(dropped) = dropped {
                    grants.remove(&dropped);
                }
                grants.insert(kept.grant.id, kept);
            });
        }
        Ok(Issued { grant, token, reused })
    }

    fn revoke_blocking(&self, id: GrantId, reason: &str, now: UnixTime) -> Result<Grant, GrantBookError> {
        let kept = self.get(id).ok_or(GrantBookError::Unknown(id))?;
        let ended = self.revoke_with_derived(vec![kept], reason, now)?;
        let ended = ended.into_iter().find(|grant| grant.id == id);
        ended.ok_or(GrantBookError::Unknown(id))
    }

    /// Ends these and whatever was made under them, in one transaction.
    fn revoke_with_derived(
        &self,
        mut ending: Vec<KeptGrant>,
        reason: &str,
        now: UnixTime,
    ) -> Result<Vec<Grant>, GrantBookError> {
        for kept in &mut ending {
            revoke(kept, reason, now)?;
        }
        let mut at = 0;
        while let Some(origin) = ending.get(at).map(|kept| kept.grant.id) {
            let mut derived = self.shared.look(|grants| {
                let under = |kept: &&KeptGrant| {
                    kept.derived_from == Some(origin) && kept.grant.state(now) == GrantState::Active
                };
                grants.values().filter(under).cloned().collect::<Vec<_>>()
            });
            derived.retain(|kept| ending.iter().all(|other| other.grant.id != kept.grant.id));
            for kept in &mut derived {
                revoke(
                    kept,
                    &format!("made under grant {origin}, which was revoked"),
                    now,
                )?;
            }
            ending.append(&mut derived);
            at += 1;
        }
        self.put_all(&ending)?;
        Ok(ending.into_iter().map(|kept| kept.grant).collect())
    }

    /// Durable, then in force.
    fn put_all(&self, changed: &[KeptGrant]) -> Result<(), GrantBookError> {
        self.database.write(|w| {
            for kept in changed {
                w.put(&GRANTS, &kept.grant.id, kept)?;
            }
            Ok::<_, StoreError>(())
        })?;
        self.shared.change(|all| {
            for kept in changed {
                all.insert(kept.grant.id, kept.clone());
            }
        });
        Ok(())
    }

    fn mirror_blocking(&self, peer: PeerId, now: UnixTime) -> Result<Option<Issued>, GrantBookError> {
        let states = self.shared.look(|grants| {
            let operator = grants
                .values()
                .filter(|kept| is_operator_grant(&kept.grant, peer));
            operator
                .map(|kept| (kept.grant.state(now), kept.grant.clone()))
                .collect::<Vec<_>>()
        });
        let mut settled = false;
        for (state, grant) in states {
            match state {
                GrantState::Active => {
                    let token = self.shared.token_of(grant.id).ok_or(GrantBookError::Left)?;
                    return Ok(Some(Issued {
                        grant,
                        token,
                        reused: true,
                    }));
                }
                GrantState::Revoked | GrantState::Archived => settled = true,
                GrantState::Expired => {}
            }
        }
        let book = self.database.read(|reader| reader.get(&BOOK, &Only))?;
        if settled || book.is_some_and(|book| book.withheld_from == Some(peer)) {
            return Ok(None);
        }
        let issue = Issue::of(NewGrant::managed_child_operator(peer), Handover::Due);
        self.issue_blocking(issue, now).map(Some)
    }

    fn succeed_blocking(
        &self,
        former: &[FormerPeer],
        peer: PeerId,
        now: UnixTime,
    ) -> Result<(), GrantBookError> {
        let all = self.all();
        let withheld = self.database.read(|reader| reader.get(&BOOK, &Only))?;
        let withheld = withheld.and_then(|book| book.withheld_from);
        let emancipated = former.first().is_some_and(|latest| {
            withheld == Some(latest.peer_id) || is_emancipated(all.iter(), latest.peer_id, now)
        });
        let has_own = all.iter().any(|kept| is_operator_grant(&kept.grant, peer));
        if emancipated && !has_own && withheld != Some(peer) {
            self.database.write(|w| withhold(w, peer))?;
        }
        let rebound = |id| {
            let mut former = former.iter().filter(|peer| peer.grants == FormerGrants::Rebound);
            former.any(|peer| peer.peer_id == id)
        };
        let mut moved: Vec<KeptGrant> = all;
        moved.retain(|kept| {
            rebound(kept.grant.federation_peer_id)
                && kept.grant.resource_kind != MANAGED_CHILD_OPERATOR_KIND
                && kept.grant.state(now) == GrantState::Active
        });
        for kept in &mut moved {
            kept.grant.federation_peer_id = peer;
            kept.handover = match kept.handover {
                Handover::ByHand => Handover::ByHand,
                _ => Handover::Due,
            };
        }
        if moved.is_empty() {
            return Ok(());
        }
        tracing::info!(grants = moved.len(), %peer, "grants of an earlier peering are this one's now");
        self.put_all(&moved)
    }

    fn emancipate_blocking(
        &self,
        peer: PeerId,
        reason: &str,
        now: UnixTime,
    ) -> Result<Vec<Grant>, GrantBookError> {
        let live = |kept: &&KeptGrant| {
            is_operator_grant(&kept.grant, peer) && kept.grant.state(now) == GrantState::Active
        };
        let ending: Vec<KeptGrant> = self
            .shared
            .look(|grants| grants.values().filter(live).cloned().collect());
        self.revoke_with_derived(ending, reason, now)
    }

    fn archive_blocking(&self, now: UnixTime) -> Result<usize, GrantBookError> {
        let mut due: Vec<KeptGrant> = self.all();
        due.retain_mut(|kept| kept.grant.archive(now));
        if due.is_empty() {
            return Ok(0);
        }
        self.put_all(&due)?;
        Ok(due.len())
    }

    fn acknowledged_blocking(&self, id: GrantId, told: Handover) -> Result<(), GrantBookError> {
        self.update(id, |kept| {
            kept.handover = match (told, kept.handover) {
                // It was revoked while it was handed over.
                (Handover::Due, Handover::Due) if kept.grant.revocation.is_some() => Handover::RevocationDue,
                (Handover::Due, Handover::Due) => Handover::Done,
                // It may have arrived unacknowledged, so the end is told of what was never said to be there.
                (Handover::RevocationDue, Handover::RevocationDue | Handover::Due) => {
                    Handover::RevocationDone
                }
                (_, now) => now,
            };
            Ok(())
        })?;
        Ok(())
    }

    /// Changes one grant: durable, then in force.
    fn update(
        &self,
        id: GrantId,
        change: impl FnOnce(&mut KeptGrant) -> Result<(), GrantBookError>,
    ) -> Result<KeptGrant, GrantBookError> {
        let mut kept = self.get(id).ok_or(GrantBookError::Unknown(id))?;
        change(&mut kept)?;
        self.put_all(std::slice::from_ref(&kept))?;
        Ok(kept)
    }
}

impl fmt::Debug for GrantBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantBook").finish_non_exhaustive()
    }
}

fn revoke(kept: &mut KeptGrant, reason: &str, now: UnixTime) -> Result<(), GrantBookError> {
    kept.grant.revoke(reason, now)?;
    kept.handover = match kept.handover {
        Handover::Done | Handover::RevocationDue => Handover::RevocationDue,
        // It may be on its way: what has arrived is told of when that is known.
        Handover::Due => Handover::Due,
        Handover::ByHand => Handover::ByHand,
        Handover::RevocationDone => Handover::RevocationDone,
    };
    Ok(())
}

/// Whether among these some operator grant of the peer's was revoked and none is live.
pub(super) fn is_emancipated<'g>(
    grants: impl Iterator<Item = &'g KeptGrant>,
    peer: PeerId,
    now: UnixTime,
) -> bool {
    let mut any_revoked = false;
    for kept in grants.filter(|kept| is_operator_grant(&kept.grant, peer)) {
        match kept.grant.state(now) {
            GrantState::Active => return false,
            GrantState::Revoked | GrantState::Archived => any_revoked = true,
            GrantState::Expired => {}
        }
    }
    any_revoked
}

fn is_operator_grant(grant: &Grant, peer: PeerId) -> bool {
    grant.federation_peer_id == peer && grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND
}

fn read_or_make_key(database: &Database) -> Result<GrantKey, OpenGrantsError> {
    let stored = database.read(|reader| reader.get(&GRANT_KEY, &Only))?;
    if let Some(stored) = stored {
        return GrantKey::from_secret(&stored.secret).map_err(|_| OpenGrantsError::Key);
    }
    let key = GrantKey::new(entropy::secret_bytes());
    let record = GrantKeyRecord {
        secret: key.to_secret(),
    };
    database.write(|w| w.put(&GRANT_KEY, &Only, &record))?;
    Ok(key)
}

/// Makes room for one grant: the oldest that ended long ago goes. Operator grants stay, because
/// whether one was revoked decides whether another is made.
fn make_room(w: &mut Writer<'_>, now: UnixTime) -> Result<Option<GrantId>, GrantBookError> {
    if w.count(&GRANTS)? < GRANTS_MAX {
        return Ok(None);
    }
    let all = w.list(&GRANTS)?;
    let over = all.iter().map(|(_, kept)| &kept.grant).find(|grant| {
        grant.resource_kind != MANAGED_CHILD_OPERATOR_KIND
            && match grant.state(now) {
                GrantState::Archived => true,
                GrantState::Expired => now >= grant.expires_at.plus(ARCHIVE_AFTER),
                GrantState::Active | GrantState::Revoked => false,
            }
    });
    let over = over.ok_or(GrantBookError::Full)?.id;
    w.remove(&GRANTS, &over)?;
    Ok(Some(over))
}
