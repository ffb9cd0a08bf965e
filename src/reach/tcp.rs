//! One dial of the TLS rung: TCP to an address, then the tunnel's transport over it. Who is
//! dialled when is decided elsewhere.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::base::limit::foreign_text;
use crate::identity::tls_failure::FailureRecord;
use crate::tunnel::tcp::{self as transport, TcpSettings};
use crate::tunnel::transport::{Outlook, Transport, TransportClosed};

/// Time for TCP to be there: three tries of the system's, after 1 s and 3 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// The system says no.
    #[error(
        "no TCP connection to {address}; does the host-bridge listen there, and does this box have a route?"
    )]
    Connect {
        /// Whom.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error(
        "{address} did not take a TCP connection within {} s; is TCP to it allowed on the way?",
        CONNECT_TIMEOUT.as_secs()
    )]
    TimedOut {
        /// Whom.
        address: SocketAddr,
    },
    /// The connection was closed during the handshake.
    #[error("no tunnel connection to {address} over TCP")]
    Closed {
        /// Whom.
        address: SocketAddr,
        /// Why.
        #[source]
        reason: TransportClosed,
    },
    /// It was not even tried.
    #[error("`{server_name}` is no name that a certificate can have; write a DNS name or an address")]
    Name {
        /// The name.
        server_name: String,
    },
}

impl DialError {
    /// Whether another attempt may fare better.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } => Outlook::Retryable,
            Self::Closed { reason, .. } => reason.outlook(),
            Self::Name { .. } => Outlook::Permanent,
        }
    }
}

/// Dials `address`. `server_name` is what the certificate is checked for; `failures` is the record
/// that `tls` was made with, whose verdict the error takes over. Takes at most [`CONNECT_TIMEOUT`]
/// and [`transport::HANDSHAKE_TIMEOUT`].
pub async fn dial(
    address: SocketAddr,
    server_name: &str,
    tls: rustls::ClientConfig,
    failures: &FailureRecord,
    settings: TcpSettings,
) -> Result<Arc<dyn Transport>, DialError> {
    let name = certificate_name(server_name).ok_or_else(|| DialError::Name {
        server_name: foreign_text(server_name),
    })?;
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(DialError::Connect { address, source }),
        Err(_) => return Err(DialError::TimedOut { address }),
    };
    transport::tune(&stream);
    transport::connect(Box::new(stream), address, name, tls, failures, settings)
        .await
        .map_err(|reason| DialError::Closed { address, reason })
}

/// A name, or an address without brackets, as certificates have them.
pub(super) fn certificate_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).ok()
}
