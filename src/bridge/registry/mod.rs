//! The standalone host-bridge's registry: peers, acceptance tokens, grants, operators, and the
//! certificate authority, in one store. Every change is one transaction. Times are given; the
//! registry reads no clock. All calls block on the disk: async callers use `spawn_blocking`. What a
//! host-bridge beside a platform keeps, too, is the [`ledger`].

mod accepting;
mod access;
mod authority;
mod backup;
mod certificates;
mod dated;
mod equals;
mod held;
mod ledger;
mod operators;
mod peers;
mod presence;
pub mod record;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::watch;

use self::ledger::PresenceBook;
use self::presence::Presence;
use self::record::{AUTHORITY, AuthorityRecord, SCHEMA};
use super::authorities::Authorities;
use super::certificate_authority::{
    CertificateAuthority, CreateAuthorityError, RestoreAuthorityError, ServerCertificateError,
};
use super::peer_anchors::PeerAnchors;
use crate::base::id::PeerId;
use crate::base::time::UnixTime;
use crate::contract::peer::TransitionDenied;
use crate::grant::{GrantKey, InvalidGrant, RevokeError};
use crate::identity::anchors::Anchors;
use crate::process::entropy;
use crate::store::database::{Database, Holder, OpenError, StoreError};
use crate::store::record::Only;
use crate::store::state_key::StateKey;

pub use self::accepting::{AcceptError, Accepted};
pub use self::authority::{RetireError, Retirement, RotateError};
pub use self::backup::{Backup, BackupRefused, DatedBackup, Restored};
pub use self::certificates::{RefreshError, ServerMaterial};
pub use self::equals::FollowError;
pub use self::held::HELD_GRANTS_MAX;
pub use self::ledger::{Books, LEDGER_FILE, Ledger, Opening};
pub use self::operators::{
    LIFE_MAX, MintedOperator, NewOperator, OPERATORS_MAX, OperatorChange, Recognised, visible,
};
pub use self::peers::{MintedToken, Proposal, Resumption};
pub use self::presence::{HeartbeatError, HeartbeatTaken, PRESENCE_WRITE_INTERVAL};

/// Name of the registry's file in the state directory.
pub const REGISTRY_FILE: &str = "registry.redb";

/// The registry. Shared between tasks behind an `Arc`.
#[derive(Debug)]
pub struct Registry {
    ledger: Arc<Ledger>,
    authorities: watch::Sender<Arc<Authorities>>,
    peer_anchors: Arc<PeerAnchors>,
    anchors: watch::Sender<Arc<Anchors>>,
    grant_key: GrantKey,
    presence: Arc<PresenceBook>,
}

impl Deref for Registry {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

/// Why a registry was not made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// There is one.
    #[error(
        "there is a registry in {path} already; nothing was changed. Use another state directory, or move the old one away"
    )]
    Exists {
        /// The file.
        path: String,
    },
    /// The store.
    #[error("the registry's store could not be made")]
    Open(#[source] OpenError),
    /// The authority.
    #[error("the registry's certificate authority could not be made")]
    Authority(#[source] CreateAuthorityError),
    /// What was written does not read.
    #[error("the new registry cannot be used")]
    Unusable(#[source] OpenRegistryError),
    /// The disk.
    #[error("the new registry could not be written")]
    Store(#[from] StoreError),
}

/// Why a registry was not opened.
#[derive(Debug, Error)]
pub enum OpenRegistryError {
    /// The store.
    #[error("the registry's store could not be opened")]
    Open(#[source] OpenError),
    /// No store: `init` was not run, or for another directory.
    #[error(
        "there is no registry {}; run `powernode-host-bridge init` first, or name the state directory that it is in",
        path.display()
    )]
    NotThere {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A store without an authority: `init` was interrupted.
    #[error("there is no registry in the state directory; run `powernode-host-bridge init` first")]
    NotInitialised,
    /// A host-bridge beside a platform that has not run yet.
    #[error("there is no ledger in the state directory yet: the host-bridge makes it when it first runs")]
    NoLedger,
    /// The authority is damaged.
    #[error("the registry's certificate authority cannot be used")]
    Authority(#[source] RestoreAuthorityError),
    /// The key of the grant tokens is damaged.
    #[error("the key of the grant tokens in the registry is damaged; restore the registry from a backup")]
    GrantKey,
    /// The disk.
    #[error("the registry could not be read")]
    Store(#[from] StoreError),
}

impl OpenRegistryError {
    /// Who has the store, where that is why it was not opened.
    pub const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Open(error) => error.holder(),
            _ => None,
        }
    }
}

/// Why an operator's wish was not carried out. Nothing was changed.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No such peer.
    #[error("there is no peer `{asked}`{}", nearest(near))]
    UnknownPeer {
        /// What was asked for.
        asked: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// No such grant.
    #[error("there is no grant `{0}`; `powernode-host-bridge grants list` shows all")]
    UnknownGrant(String),
    /// No such operator.
    #[error("there is no operator `{0}`; `powernode-host-bridge operators list` shows all")]
    UnknownOperator(String),
    /// Another peer has it.
    #[error("there is a peer named `{0}` already; choose another name, or revoke that peer first")]
    NameTaken(String),
    /// Another operator has it.
    #[error("there is an operator named `{0}` already; choose another name, or remove that operator first")]
    OperatorNameTaken(String),
    /// Not a name.
    #[error(
        "`{0}` cannot be a name; use 1 to 63 letters, digits, `-`, `_` or `.`, beginning with a letter or digit, and not the form of an id"
    )]
    InvalidName(String),
    /// A field that is too long or empty.
    #[error("{0}")]
    InvalidField(String),
    /// The peer's status does not allow it.
    #[error("{0}")]
    Transition(TransitionDenied),
    /// A bound is reached.
    #[error("the registry holds {max} {what} already, which is the most it keeps")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        max: usize,
    },
    /// The last operator who can mend every account would be gone.
    #[error(
        "`{0}` is the only admin without limits and end; add another one first (operators add NAME --role admin)"
    )]
    LastOperator(String),
    /// A grant that cannot be.
    #[error(transparent)]
    Grant(#[from] InvalidGrant),
    /// A grant that cannot be revoked.
    #[error(transparent)]
    RevokeGrant(#[from] RevokeError),
    /// The server's certificate.
    #[error("the server's certificate could not be issued")]
    ServerCertificate(#[from] ServerCertificateError),
    /// This host-bridge is no parent of its own.
    #[error(
        "this host-bridge runs beside a platform, which decides about peers, invitations, their grants and certificates: do that there"
    )]
    PlatformDecides,
    /// The disk.
    #[error("the registry could not be read or written")]
    Store(#[from] StoreError),
}

fn nearest(near: &[String]) -> String {
    if near.is_empty() {
        "; `powernode-host-bridge peers list` shows all".to_owned()
    } else {
        format!("; did you mean {}?", near.join(" or "))
    }
}

impl RegistryError {
    /// The HTTP status of the answer.
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::UnknownPeer { .. } | Self::UnknownGrant(_) | Self::UnknownOperator(_) => 404,
            Self::NameTaken(_)
            | Self::OperatorNameTaken(_)
            | Self::LastOperator(_)
            | Self::PlatformDecides => 409,
            Self::InvalidName(_)
            | Self::InvalidField(_)
            | Self::Transition(_)
            | Self::Grant(_)
            | Self::RevokeGrant(_) => 422,
            Self::Full { .. } => 507,
            Self::ServerCertificate(_) | Self::Store(_) => 500,
        }
    }
}

impl Registry {
    /// Makes a new registry with a certificate authority, under a state key where there is one.
    /// Refuses where there is a registry.
    pub fn create(
        path: &Path,
        key: Option<&StateKey>,
        authority_name: &str,
        now: UnixTime,
    ) -> Result<Self, CreateError> {
        if path.exists() {
            // Opening for writing would touch the file; what is there is looked at first.
            let there = Database::open_read_only_under(key, path, &SCHEMA).map_err(CreateError::Open)?;
            if there.read(|r| r.get(&AUTHORITY, &Only))?.is_some() {
                return Err(CreateError::Exists {
                    path: path.display().to_string(),
                });
            }
        }
        let db = Database::open_under(key, path, &SCHEMA).map_err(CreateError::Open)?;
        Self::create_in(db, &path.display().to_string(), authority_name, now)
    }

    fn create_in(db: Database, path: &str, authority_name: &str, now: UnixTime) -> Result<Self, CreateError> {
        let authority = CertificateAuthority::create(authority_name, now, entropy::bytes())
            .map_err(CreateError::Authority)?;
        let grant_key = GrantKey::new(entropy::secret_bytes());
        let record = AuthorityRecord {
            key: authority.expose_key().clone(),
            certificate_pem: authority.certificate_pem(),
            grant_secret: grant_key.to_secret(),
        };
        db.write(|w| {
            if w.get(&AUTHORITY, &Only)?.is_some() {
                return Err(CreateError::Exists {
                    path: path.to_owned(),
                });
            }
            w.put(&AUTHORITY, &Only, &record)?;
            Ok(())
        })?;
        let authorities = db
            .read(|r| authority::restore(r, authority))
            .map_err(CreateError::Unusable)?;
        Ok(Self::assemble(
            db,
            (authorities, PeerAnchors::default()),
            grant_key,
        ))
    }

    /// Opens a registry, under a state key where there is one. Opening a store for writing makes one where there
    /// is none; a registry comes of `init` alone.
    pub fn open(path: &Path, key: Option<&StateKey>, opening: Opening) -> Result<Self, OpenRegistryError> {
        Self::look_for(path)?;
        Self::open_in(opening.database(path, key)?)
    }

    /// Takes the seals off a registry that no daemon has open. `false` when it has none.
    pub fn unseal(path: &Path, key: &StateKey) -> Result<bool, OpenRegistryError> {
        Self::look_for(path)?;
        Database::unseal(key, path, &SCHEMA).map_err(OpenRegistryError::Open)
    }

    /// What cannot be looked at is not said to be missing: opening it says why.
    fn look_for(path: &Path) -> Result<(), OpenRegistryError> {
        if matches!(path.try_exists(), Ok(false)) {
            let path = path.to_owned();
            return Err(OpenRegistryError::NotThere { path });
        }
        Ok(())
    }

    /// On an open store.
    pub fn open_in(db: Database) -> Result<Self, OpenRegistryError> {
        let record = db
            .read(|r| Ok::<_, OpenRegistryError>(r.get(&AUTHORITY, &Only)?))?
            .ok_or(OpenRegistryError::NotInitialised)?;
        let authority = CertificateAuthority::restore(record.key, &record.certificate_pem)
            .map_err(OpenRegistryError::Authority)?;
        let (authorities, equals) = db.read(|r| {
            let authorities = authority::restore(r, authority)?;
            Ok::<_, OpenRegistryError>((authorities, equals::load(r)?))
        })?;
        let grant_key =
            GrantKey::from_secret(&record.grant_secret).map_err(|_| OpenRegistryError::GrantKey)?;
        Ok(Self::assemble(db, (authorities, equals), grant_key))
    }

    fn assemble(
        db: Database,
        (authorities, equals): (Authorities, PeerAnchors),
        grant_key: GrantKey,
    ) -> Self {
        let presence = Arc::new(PresenceBook::default());
        Self {
            ledger: Arc::new(Ledger::of_rows(db, Arc::clone(&presence))),
            peer_anchors: Arc::new(equals),
            anchors: watch::Sender::new(Arc::clone(authorities.anchors())),
            authorities: watch::Sender::new(Arc::new(authorities)),
            grant_key,
            presence,
        }
    }

    /// What a host-bridge keeps that is no parent, too.
    pub const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn presence(&self) -> MutexGuard<'_, BTreeMap<PeerId, Presence>> {
        // Each change of the map is one insert or remove: a panic elsewhere leaves it whole.
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
