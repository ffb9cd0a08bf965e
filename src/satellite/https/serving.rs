//! What the listener serves with, made anew with every change of the membership.

use std::sync::Arc;

use rustls::ServerConfig;
use thiserror::Error;
use tokio::sync::watch;

use super::ALPN;
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::identity::certificate::peer_subject;
use crate::identity::parent_caller::parent_server_config;
use crate::identity::reversed::BridgeTrust;
use crate::identity::tls::TlsConfigError;
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::reach::dial::certificate_time;
use crate::reach::presented::{Presented, PresentedError};
use crate::satellite::driver::Member;

/// One membership's.
pub(super) struct Serving {
    pub(super) peer: PeerId,
    pub(super) tls: Arc<ServerConfig>,
}

/// Why a membership cannot be served.
#[derive(Debug, Error)]
enum ServeError {
    #[error("the stored identity cannot be used")]
    Identity(#[from] PresentedError),
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
                match blocking::run(move || serve(&now, &clock)).await {
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
fn serve(member: &Member, clock: &Clock) -> Result<Serving, ServeError> {
    let (shown, learned) = Presented::read(&member.membership.identity)?.fixed();
    let bridge = BridgeTrust {
        trust: member.membership.parent.trust.clone(),
        learned: Some(learned),
        names: member.names.clone(),
    };
    let peer = member.membership.peer_id;
    let time = certificate_time(clock);
    let tls = parent_server_config(shown, &bridge, peer_subject(peer), ALPN, time)?;
    Ok(Serving {
        peer,
        tls: Arc::new(tls),
    })
}
