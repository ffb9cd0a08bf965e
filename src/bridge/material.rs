//! What the listeners show and whom they trust: of the registry's own authority, or beside a platform
//! of files that others renew. Read again while the daemon runs; the next handshake has what is new, and
//! tunnels that are up stay up.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use super::registry::Books;
use super::server_identity::{self, ServerIdentityError};
use super::settings::BridgeSettings;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::invitation::ParentTrust;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::operator_files::{OperatorFilesError, identity_of_pem};
use crate::identity::tls::{IdentityWatch, TlsIdentity};
use crate::process::config::host_bridge::HostBridgeConfig;
use crate::process::config::platform::{CallersConfig, ParentConfig, PlatformConfig};

/// Largest file that is read as certificates, a key or a credential, in bytes: a system's whole bundle of
/// authorities has a quarter of it.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Shortest and longest shared credential, in bytes: below that it could be guessed, above it does not
/// fit into a header.
const CREDENTIAL_BYTES: std::ops::RangeInclusive<usize> = 32..=1_024;

/// Why there is nothing to show, or nobody to trust.
#[derive(Debug, Error)]
pub enum MaterialError {
    /// The registry's own certificate.
    #[error("the host-bridge cannot show a certificate")]
    Own(#[from] ServerIdentityError),
    /// A file cannot be read.
    #[error("`{key}`: cannot read {path}; it must be there and readable for this user", path = path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The server's own certificate.
    #[error("`server.certificate_file` and `server.key_file` cannot be used")]
    Server(#[from] OperatorFilesError),
    /// Authorities.
    #[error("`{key}` cannot be used")]
    Authorities {
        /// The key that names the file.
        key: &'static str,
        /// Why.
        #[source]
        source: AnchorsError,
    },
    /// The configuration names no platform any more.
    #[error("beside which platform this host-bridge stands is changed by a restart alone")]
    Restart,
    /// The credential.
    #[error(
        "`callers.credential_file` must hold one line of {} to {} visible characters", CREDENTIAL_BYTES.start(), CREDENTIAL_BYTES.end()
    )]
    Credential,
}

/// By what callers are known that are not satellites.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallerTrust {
    /// Authorities of their own.
    pub authorities: Option<Anchors>,
    /// Digest of the credential that they share.
    pub credential: Option<[u8; 32]>,
}

/// All of it, and its present state.
#[derive(Debug)]
pub struct Material {
    identity: watch::Sender<Arc<TlsIdentity>>,
    satellites: Authorities,
    visitors: watch::Sender<Arc<Anchors>>,
    callers: watch::Sender<Arc<CallerTrust>>,
    platform: watch::Sender<Arc<ParentTrust>>,
}

/// Whose certificates are satellites'.
#[derive(Debug)]
enum Authorities {
    /// The registry's, which tells itself when it changes.
    Own(watch::Receiver<Arc<Anchors>>),
    /// Those of a file.
    Platform(watch::Sender<Arc<Anchors>>),
}

/// As it was read.
struct Found {
    identity: TlsIdentity,
    satellites: Anchors,
    callers: CallerTrust,
    platform: ParentTrust,
}

impl Material {
    /// Reads it for the first time. Blocks on the disk.
    pub fn read(books: &Books, settings: &BridgeSettings, now: UnixTime) -> Result<Self, MaterialError> {
        let found = Found::read(books, settings, now)?;
        Ok(Self {
            visitors: watch::Sender::new(Arc::new(found.visitors())),
            identity: watch::Sender::new(Arc::new(found.identity)),
            satellites: match books {
                Books::Own(registry) => Authorities::Own(registry.anchors()),
                Books::Platform { .. } => {
                    Authorities::Platform(watch::Sender::new(Arc::new(found.satellites)))
                }
            },
            callers: watch::Sender::new(Arc::new(found.callers)),
            platform: watch::Sender::new(Arc::new(found.platform)),
        })
    }

    /// Reads it again; what cannot be read leaves all of it as it was. Blocks on the disk.
    pub fn refresh(
        &self,
        books: &Books,
        settings: &BridgeSettings,
        now: UnixTime,
    ) -> Result<(), MaterialError> {
        let found = Found::read(books, settings, now)?;
        replace(&self.visitors, found.visitors());
        if let Authorities::Platform(satellites) = &self.satellites
            && replace(satellites, found.satellites)
        {
            info!("the authorities of the satellites' certificates have changed");
        }
        if replace(&self.callers, found.callers) {
            info!("the trust in callers has changed");
        }
        if replace(&self.platform, found.platform) {
            info!("the authorities of the platform's server have changed");
        }
        let not_after = found.identity.facts().not_after;
        let fingerprint = found.identity.facts().fingerprint;
        let other = self.identity.send_if_modified(|shown| {
            let other = shown.facts().fingerprint != fingerprint;
            if other {
                *shown = Arc::new(found.identity);
            }
            other
        });
        if other {
            info!(%not_after, "the next handshakes show a new server certificate");
        }
        Ok(())
    }

    /// What the listeners show.
    pub fn identity(&self) -> IdentityWatch {
        self.identity.subscribe()
    }

    /// By whom satellites are known.
    pub fn satellites(&self) -> watch::Receiver<Arc<Anchors>> {
        match &self.satellites {
            Authorities::Own(anchors) => anchors.clone(),
            Authorities::Platform(anchors) => anchors.subscribe(),
        }
    }

    /// By whom everybody is known who comes to the HTTPS listener. Where that can be satellites alone, a
    /// rotated authority counts at once.
    pub fn visitors(&self) -> watch::Receiver<Arc<Anchors>> {
        match &self.satellites {
            Authorities::Own(anchors) if self.callers.borrow().authorities.is_none() => anchors.clone(),
            Authorities::Own(_) | Authorities::Platform(_) => self.visitors.subscribe(),
        }
    }

    /// By what callers are known.
    pub fn callers(&self) -> watch::Receiver<Arc<CallerTrust>> {
        self.callers.subscribe()
    }

    /// By what the platform's server is known.
    pub fn platform(&self) -> watch::Receiver<Arc<ParentTrust>> {
        self.platform.subscribe()
    }
}

/// Whether the files that a configuration names can be used. Blocks on the disk.
pub fn check(config: &HostBridgeConfig) -> Result<(), MaterialError> {
    let callers = read_callers(&config.callers)?;
    if let Some(platform) = config.parent.platform() {
        Found::of_files(platform, callers)?;
    }
    Ok(())
}

impl Found {
    fn read(books: &Books, settings: &BridgeSettings, now: UnixTime) -> Result<Self, MaterialError> {
        let callers = read_callers(&settings.config.callers)?;
        match (books, &settings.config.parent) {
            (Books::Platform { .. }, ParentConfig::Platform(platform)) => Self::of_files(platform, callers),
            (Books::Platform { .. }, ParentConfig::Standalone) => Err(MaterialError::Restart),
            (Books::Own(registry), _) => Ok(Self {
                identity: server_identity::current(registry, &settings.server_names(), now)?,
                satellites: Anchors::clone(&registry.anchors().borrow()),
                callers,
                platform: ParentTrust::SystemRoots,
            }),
        }
    }

    fn of_files(platform: &PlatformConfig, callers: CallerTrust) -> Result<Self, MaterialError> {
        let server = &platform.server;
        let chain = read_text("server.certificate_file", &server.certificate)?;
        let key = Secret::new(read_file("server.key_file", &server.key)?);
        Ok(Self {
            identity: identity_of_pem(&chain, key.expose())?,
            satellites: read_authorities("platform.ca_file", &platform.ca_file)?,
            callers,
            platform: match &platform.server_ca_file {
                Some(path) => {
                    let pem = read_text("platform.server_ca_file", path)?;
                    check_authorities("platform.server_ca_file", &pem)?;
                    ParentTrust::Bundle(pem)
                }
                None => ParentTrust::SystemRoots,
            },
        })
    }

    fn visitors(&self) -> Anchors {
        match &self.callers.authorities {
            Some(more) => self.satellites.with(more),
            None => self.satellites.clone(),
        }
    }
}

fn read_callers(config: &CallersConfig) -> Result<CallerTrust, MaterialError> {
    let authorities = match &config.ca_file {
        Some(path) => Some(read_authorities("callers.ca_file", path)?),
        None => None,
    };
    let credential = match &config.credential_file {
        Some(path) => Some(read_credential(path)?),
        None => None,
    };
    Ok(CallerTrust {
        authorities,
        credential,
    })
}

fn read_credential(path: &Path) -> Result<[u8; 32], MaterialError> {
    let read = Secret::new(read_file("callers.credential_file", path)?);
    let credential = read.expose().trim_ascii();
    let usable = CREDENTIAL_BYTES.contains(&credential.len()) && credential.iter().all(u8::is_ascii_graphic);
    if !usable {
        return Err(MaterialError::Credential);
    }
    Ok(credential_digest(credential))
}

/// By what a credential is known: kept and compared instead of it.
pub(super) fn credential_digest(credential: &[u8]) -> [u8; 32] {
    Sha256::digest(credential).into()
}

fn read_authorities(key: &'static str, path: &Path) -> Result<Anchors, MaterialError> {
    check_authorities(key, &read_text(key, path)?)
}

fn check_authorities(key: &'static str, pem: &str) -> Result<Anchors, MaterialError> {
    Anchors::from_pem(pem).map_err(|source| MaterialError::Authorities { key, source })
}

fn read_text(key: &'static str, path: &Path) -> Result<String, MaterialError> {
    // What is not text in a PEM file is no part of what it is read for.
    Ok(String::from_utf8_lossy(&read_file(key, path)?).into_owned())
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, MaterialError> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| MaterialError::File {
        key,
        path: path.to_owned(),
        source,
    })
}

/// Whether it is another than before.
fn replace<T: PartialEq>(shown: &watch::Sender<Arc<T>>, new: T) -> bool {
    shown.send_if_modified(|shown| {
        let other = **shown != new;
        if other {
            *shown = Arc::new(new);
        }
        other
    })
}
