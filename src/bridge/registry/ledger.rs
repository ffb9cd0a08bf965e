//! What a host-bridge keeps whether it is a parent or stands beside one: who operates it, the grants
//! that peers have given to this side, the audit log; and whom it knows. A parent's peers are rows of
//! its registry; beside a platform they are those that have been seen in tunnels, in memory alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::peers::find;
use super::presence::Presence;
use super::record::{PEERS, PUBLIC, PeerRecord, PublicRecord, SCHEMA};
use super::{OpenRegistryError, REGISTRY_FILE, Registry, RegistryError};
use crate::base::id::PeerId;
use crate::base::limit::foreign_text;
use crate::bridge::platform::roll::Roll;
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::platform::{ParentConfig, PlatformUrl};
use crate::store::database::{Database, StoreError};
use crate::store::record::Only;
use crate::store::state_key::StateKey;

/// Name of the ledger's file in the state directory of a host-bridge beside a platform. Not the
/// registry's: who tries both has each as it was.
pub const LEDGER_FILE: &str = "sidecar.redb";

/// Most bytes of a store that are copied into memory while a daemon has it open. The largest audit log that
/// can be configured takes a quarter of it.
const SNAPSHOT_MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// Times of heartbeats that are in memory.
pub(super) type PresenceBook = Mutex<BTreeMap<PeerId, Presence>>;

/// The ledger. Shared between tasks behind an `Arc`.
#[derive(Debug)]
pub struct Ledger {
    pub(super) db: Database,
    known: Known,
}

/// Whom a host-bridge knows.
#[derive(Debug)]
enum Known {
    /// The registry's rows.
    Rows(Arc<PresenceBook>),
    /// Those that a platform lets in.
    Seen(Arc<Roll>),
}

/// What a host-bridge keeps, by whose word.
#[derive(Debug, Clone)]
pub enum Books {
    /// It is the parent.
    Own(Arc<Registry>),
    /// A platform is; the host-bridge stands beside it.
    Platform {
        /// What is kept all the same.
        ledger: Arc<Ledger>,
        /// Who was seen.
        roll: Arc<Roll>,
        /// Where the platform is.
        url: PlatformUrl,
    },
}

/// For what a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Without writing a byte, where no daemon has it open.
    ReadOnly,
    /// As it is now, in memory, whoever has it open.
    Snapshot,
    /// For everything.
    ReadWrite,
}

impl Opening {
    pub(super) fn database(self, path: &Path, key: Option<&StateKey>) -> Result<Database, OpenRegistryError> {
        let opened = match self {
            Self::ReadOnly => Database::open_read_only_under(key, path, &SCHEMA),
            Self::Snapshot => Database::open_snapshot(key, (path, SNAPSHOT_MAX_BYTES), &SCHEMA),
            Self::ReadWrite => Database::open_under(key, path, &SCHEMA),
        };
        opened.map_err(OpenRegistryError::Open)
    }
}

impl Books {
    /// Opens what the configuration's parent keeps in its state directory, under a state key where there is
    /// one. Blocks on the disk.
    pub fn open(
        config: &HostBridgeConfig,
        key: Option<&StateKey>,
        opening: Opening,
    ) -> Result<Self, OpenRegistryError> {
        let path = Self::path(config);
        match &config.parent {
            ParentConfig::Standalone => Ok(Self::Own(Arc::new(Registry::open(&path, key, opening)?))),
            ParentConfig::Platform(platform) => {
                if opening != Opening::ReadWrite && matches!(path.try_exists(), Ok(false)) {
                    return Err(OpenRegistryError::NoLedger);
                }
                let roll = Arc::<Roll>::default();
                let ledger = Ledger {
                    db: opening.database(&path, key)?,
                    known: Known::Seen(Arc::clone(&roll)),
                };
                Ok(Self::Platform {
                    ledger: Arc::new(ledger),
                    roll,
                    url: platform.url.clone(),
                })
            }
        }
    }

    /// The file that they are in.
    pub fn path(config: &HostBridgeConfig) -> PathBuf {
        config.state_dir.join(match config.parent {
            ParentConfig::Standalone => REGISTRY_FILE,
            ParentConfig::Platform(_) => LEDGER_FILE,
        })
    }

    /// What both keep.
    pub fn ledger(&self) -> &Arc<Ledger> {
        match self {
            Self::Own(registry) => registry.ledger(),
            Self::Platform { ledger, .. } => ledger,
        }
    }

    /// The registry, where this host-bridge is the parent.
    pub const fn registry(&self) -> Result<&Arc<Registry>, RegistryError> {
        match self {
            Self::Own(registry) => Ok(registry),
            Self::Platform { .. } => Err(RegistryError::PlatformDecides),
        }
    }
}

impl Ledger {
    pub(super) const fn of_rows(db: Database, presence: Arc<PresenceBook>) -> Self {
        Self {
            db,
            known: Known::Rows(presence),
        }
    }

    /// Who was seen beside a platform; nobody where the peers are rows.
    pub fn roll(&self) -> Option<&Arc<Roll>> {
        match &self.known {
            Known::Seen(roll) => Some(roll),
            Known::Rows(_) => None,
        }
    }

    /// Whether a peer may be reached through a tunnel that it has. One that has left holds its tunnel until it has
    /// heard the answer, and it need not read that.
    pub fn may_be_reached(&self, peer: &PeerRecord) -> bool {
        match &self.known {
            Known::Rows(_) => peer.status.heartbeat_allowed(),
            Known::Seen(roll) => roll.may_be_reached(peer.id),
        }
    }

    /// All peers, oldest first, with their latest heartbeats.
    pub fn peers(&self) -> Result<Vec<PeerRecord>, StoreError> {
        let presence = match &self.known {
            Known::Seen(roll) => return Ok(roll.peers()),
            Known::Rows(presence) => presence,
        };
        let mut peers: Vec<PeerRecord> = self
            .db
            .read(|r| Ok::<_, StoreError>(r.list(&PEERS)?.into_iter().map(|(_, peer)| peer).collect()))?;
        let presence = presence.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in &mut peers {
            if let Some(seen) = presence.get(&peer.id) {
                peer.last_heartbeat_at = peer.last_heartbeat_at.max(Some(seen.last_heartbeat_at));
            }
        }
        Ok(peers)
    }

    /// One peer by id or name.
    pub fn peer(&self, asked: &str) -> Result<PeerRecord, RegistryError> {
        if let Known::Seen(roll) = &self.known {
            let id = asked.trim().parse().ok();
            return id
                .and_then(|id| roll.peer(id))
                .ok_or_else(|| RegistryError::UnknownPeer {
                    asked: foreign_text(asked),
                    near: Vec::new(),
                });
        }
        let peer = self.db.read(|r| find(r, asked))?;
        Ok(self.with_presence(peer))
    }

    /// One peer by id.
    pub fn peer_by_id(&self, id: PeerId) -> Result<Option<PeerRecord>, StoreError> {
        if let Known::Seen(roll) = &self.known {
            return Ok(roll.peer(id));
        }
        let peer = self.db.read(|r| r.get(&PEERS, &id))?;
        Ok(peer.map(|peer| self.with_presence(peer)))
    }

    pub(super) fn with_presence(&self, mut peer: PeerRecord) -> PeerRecord {
        if let Known::Rows(presence) = &self.known {
            let presence = presence.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = presence.get(&peer.id) {
                peer.last_heartbeat_at = peer.last_heartbeat_at.max(Some(seen.last_heartbeat_at));
            }
        }
        peer
    }

    /// How this bridge is found from outside, as `init` was told.
    pub fn public(&self) -> Result<PublicRecord, StoreError> {
        self.db.read(|r| Ok(r.get(&PUBLIC, &Only)?.unwrap_or_default()))
    }

    /// Keeps how this bridge is found from outside.
    pub fn set_public(&self, public: &PublicRecord) -> Result<(), StoreError> {
        self.db.write(|w| w.put(&PUBLIC, &Only, public))
    }

    /// The store itself, which the audit log shares.
    pub const fn database(&self) -> &Database {
        &self.db
    }

    /// Whether the private keys in the store are sealed with a state key.
    pub fn is_sealed(&self) -> bool {
        self.db.is_sealed()
    }

    /// Why the disk has failed the last change, where it did.
    pub fn failure(&self) -> Option<String> {
        self.db.failure()
    }

    /// Tries whether the disk takes writes again, by writing what is there once more.
    pub fn prove_writable(&self) -> Result<(), StoreError> {
        self.db.write(|w| {
            let public = w.get(&PUBLIC, &Only)?.unwrap_or_default();
            w.put_again(&PUBLIC, &Only, &public)
        })
    }

    /// Size of the store on disk.
    pub fn size_bytes(&self) -> u64 {
        self.db.size_bytes()
    }
}
