//! The certificate of the bridge's own listeners: issued by the embedded authority, renewed in
//! time, shown by the next handshake without a restart.

use thiserror::Error;
use tracing::info;

use super::registry::{Registry, RegistryError};
use crate::base::time::UnixTime;
use crate::identity::certificate::{CertificateChain, PemError};
use crate::identity::key::{InvalidPrivateKey, PrivateKey};
use crate::identity::tls::{TlsIdentity, TlsIdentityError};

/// Why the listeners have no certificate.
#[derive(Debug, Error)]
pub enum ServerIdentityError {
    /// Not issued or not stored.
    #[error("the server has no certificate")]
    Registry(#[from] RegistryError),
    /// The stored chain is damaged.
    #[error("the server's stored certificate cannot be read; restore the registry from a backup")]
    Chain(#[from] PemError),
    /// The stored key is damaged.
    #[error("the server's stored key cannot be read; restore the registry from a backup")]
    Key(#[from] InvalidPrivateKey),
    /// They do not fit.
    #[error("the server's stored certificate cannot be used")]
    Identity(#[from] TlsIdentityError),
}

/// The certificate for these names, from the store or new. Blocks on the disk.
pub fn current(
    registry: &Registry,
    names: &[String],
    now: UnixTime,
) -> Result<TlsIdentity, ServerIdentityError> {
    let material = registry.server_certificate(names, now)?;
    if material.renewed {
        info!(names = %names.join(", "), not_after = %material.record.not_after, "the server has a new certificate");
    }
    let chain = CertificateChain::from_pem(&material.record.chain_pem)?;
    let key = PrivateKey::from_pkcs8(material.record.key)?;
    Ok(TlsIdentity::new(&chain, &key)?)
}
