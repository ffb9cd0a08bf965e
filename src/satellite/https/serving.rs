//! What the listener serves with, made anew with every change of the membership.

use std::sync::Arc;

use rustls::ServerConfig;
use thiserror::Error;
use tokio::sync::watch;

use super::ALPN;
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::{CertificateChain, PemError, peer_subject};
use crate::identity::key::{InvalidPrivateKey, PrivateKey};
use crate::identity::parent_caller::parent_server_config;
use crate::identity::reversed::BridgeTrust;
use crate::identity::tls::{TimeSource, TlsConfigError, TlsIdentity, TlsIdentityError};
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::satellite::driver::Member;

/// One membership's.
pub(super) struct Serving {
    pub(super) peer: PeerId,
    pub(super) tls: Arc<ServerConfig>,
    pub(super) ca_bundle_pem: String,
}

/// Why a membership cannot be served.
#[derive(Debug, Error)]
enum ServeError {
    #[error("the stored key cannot be used")]
    Key(#[from] InvalidPrivateKey),
    #[error("the stored certificate cannot be used")]
    Certificate(#[from] PemError),
    #[error("the stored authorities cannot be used")]
    Anchors(#[from] AnchorsError),
    #[error(transparent)]
    Pair(#[from] TlsIdentityError),
    #[error("cannot prepare to be called")]
    Tls(#[from] TlsConfigError),
}

/// Follows the membership for as long as there is one who tells of it.
pub(super) async fn follow_membership(
    mut member: watch::Receiver<Option<Member>>,
    clock: Clock,
    serving: watch::Sender<Option<Arc<Serving>>>,
) {
    loop {
        let now = member.borrow_and_update().clone();
        let made = match now {
            None => None,
            Some(now) => {
                let clock = clock.clone();
                match blocking::run(move || serve(&now, clock)).await {
                    Ok(made) => Some(Arc::new(made)),
                    Err(error) => {
                        tracing::error!(error = %error_chain(&error), "the parent cannot call this satellite by HTTPS");
                        None
                    }
                }
            }
        };
        serving.send_replace(made);
        if member.changed().await.is_err() {
            return;
        }
    }
}

/// Reads the system's roots where the trust says so: blocking.
fn serve(member: &Member, clock: Clock) -> Result<Serving, ServeError> {
    let identity = &member.membership.identity;
    let key = PrivateKey::from_pkcs8(identity.pkcs8.clone())?;
    let chain = CertificateChain::from_pem(&identity.certificate.cert_pem)?;
    let ca_bundle_pem = identity.certificate.ca_chain_pem.clone();
    let bridge = BridgeTrust {
        trust: member.membership.parent.trust.clone(),
        learned: Some(Anchors::from_pem(&ca_bundle_pem)?),
        names: member.names.clone(),
    };
    let time: TimeSource = Arc::new(move || clock.trusted().now);
    let peer = member.membership.peer_id;
    let own = TlsIdentity::new(&chain, &key)?;
    let tls = parent_server_config(own, &bridge, peer_subject(peer), ALPN, time)?;
    Ok(Serving {
        peer,
        tls: Arc::new(tls),
        ca_bundle_pem,
    })
}
