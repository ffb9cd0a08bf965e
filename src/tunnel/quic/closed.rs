//! Why a QUIC connection is closed, in the tunnel's words.

use std::sync::Arc;

use quinn::ConnectionError;
use rustls::AlertDescription;

use crate::base::limit::foreign_text;
use crate::identity::tls_failure::{FailureRecord, explain_alert, explain_own_alert};
use crate::tunnel::transport::{Side, TransportClosed};

/// A TLS alert within a QUIC error code (RFC 9001, section 4.8).
const CRYPTO_ERROR_BASE: u64 = 0x100;

pub(super) fn closed(error: ConnectionError) -> TransportClosed {
    let (found_by, code) = match &error {
        ConnectionError::TimedOut => return TransportClosed::TimedOut,
        ConnectionError::Reset => return TransportClosed::Reset,
        ConnectionError::LocallyClosed => return TransportClosed::ByUs,
        ConnectionError::VersionMismatch => return TransportClosed::UnsupportedVersion,
        ConnectionError::ApplicationClosed(close) => {
            return TransportClosed::ByPeer {
                code: close.error_code.into_inner(),
                reason: foreign_text(&String::from_utf8_lossy(&close.reason)),
            };
        }
        ConnectionError::ConnectionClosed(close) => (Side::Theirs, close.error_code),
        ConnectionError::TransportError(own) => (Side::Ours, own.code),
        ConnectionError::CidsExhausted => (Side::Ours, quinn::TransportErrorCode::INTERNAL_ERROR),
    };
    if code == quinn::TransportErrorCode::CONNECTION_REFUSED {
        return TransportClosed::Busy;
    }
    let alert = u64::from(code)
        .checked_sub(CRYPTO_ERROR_BASE)
        .and_then(|alert| u8::try_from(alert).ok());
    match alert {
        Some(alert) => TransportClosed::Tls {
            found_by,
            failure: match found_by {
                Side::Theirs => explain_alert(AlertDescription::from(alert)),
                Side::Ours => {
                    explain_own_alert(AlertDescription::from(alert), foreign_text(&error.to_string()))
                }
            },
        },
        None => TransportClosed::Protocol {
            found_by,
            cause: Arc::new(error),
        },
    }
}

/// QUIC keeps only the alert of what our verifier found; the record has the whole verdict.
pub(super) fn dial_failed(error: ConnectionError, failures: &FailureRecord) -> TransportClosed {
    match (closed(error), failures.take()) {
        (
            TransportClosed::Tls {
                found_by: Side::Ours, ..
            },
            Some(failure),
        ) => TransportClosed::Tls {
            found_by: Side::Ours,
            failure,
        },
        (reason, _) => reason,
    }
}
