//! Why a TLS handshake failed, in an operator's words and as a type to decide on. QUIC carries
//! alerts only as numbers and hands on no typed error, so a verifier of ours also leaves its
//! verdict in a [`FailureRecord`] beside the connection.

use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types;
use rustls::{AlertDescription, CertificateError, ExtendedKeyPurpose, OtherError};
use thiserror::Error;

use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;

/// Most names of a certificate that an error lists.
const NAMES_SHOWN_MAX: usize = 8;

/// Why a handshake failed. "Here" is the side that tells it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TlsFailure {
    /// The certificate shown to us is past its end.
    #[error(
        "the other side's certificate expired at {not_after}, and the clock of this box says {now}; renew the certificate there, or set this clock if it is ahead"
    )]
    Expired {
        /// The time used here.
        now: UnixTime,
        /// End of validity.
        not_after: UnixTime,
    },
    /// The certificate shown to us is before its begin.
    #[error(
        "the other side's certificate is valid from {not_before} on, but the clock of this box says {now}; set this clock (or start NTP), or the other side's if that one is ahead"
    )]
    NotYetValid {
        /// The time used here.
        now: UnixTime,
        /// Begin of validity.
        not_before: UnixTime,
    },
    /// No anchor of ours leads to it.
    #[error(
        "the other side's certificate was not issued by a CA that is trusted here; check that the CA given is this parent's and was not replaced since (where none is given, those of this system count), and that no proxy on the way inspects TLS"
    )]
    UnknownIssuer,
    /// The CA named by the join code or by `--ca-sha256` was not shown.
    #[error(
        "none of the {shown} certificates that the other side showed is the expected CA {pin}; check that the join code is this parent's and that its CA was not replaced since, and that no proxy on the way inspects TLS"
    )]
    PinNotInChain {
        /// The fingerprint to find.
        pin: CaFingerprint,
        /// How many certificates the other side showed.
        shown: usize,
    },
    /// A trusted certificate of another name.
    #[error(
        "the other side's certificate is not for `{expected}` but for {}; use one of its names, or have `{expected}` added to the server certificate",
        shown_names(.presented)
    )]
    NameMismatch {
        /// The name that was dialled.
        expected: String,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// The certificate does not allow this use.
    #[error(
        "the other side's certificate is not allowed for {purpose}; a certificate with that extended key usage has to be issued for it"
    )]
    WrongPurpose {
        /// `server authentication` or `client authentication`.
        purpose: &'static str,
    },
    /// Certificate or handshake signature that does not hold, or encoding that cannot be read.
    #[error(
        "the other side's certificate or its signature does not hold ({detail}); a damaged certificate has to be issued again"
    )]
    BadCertificate {
        /// What the verifier said.
        detail: String,
    },
    /// The other side did not like the certificate that we showed.
    #[error("the other side refused our certificate: {reason}")]
    CertificateRefused {
        /// What its alert means.
        reason: RefusalReason,
    },
    /// No version, cipher, group or application protocol in common.
    #[error(
        "the two sides have no protocol in common ({detail}); TLS 1.3 is needed, and the address must be a host-bridge's"
    )]
    Incompatible {
        /// What is missing.
        detail: String,
    },
    /// Whatever answered, it was not TLS.
    #[error(
        "the answer is not TLS; check address and port, and that nothing on the way answers in the other side's place"
    )]
    NotTls,
    /// All else.
    #[error("the TLS handshake failed ({detail})")]
    Other {
        /// What the library said.
        detail: String,
    },
}

/// What the other side's alert says of our certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RefusalReason {
    /// `unknown_ca`.
    #[error(
        "it does not trust the CA that issued it; the certificate is another parent's, or the trust there was replaced"
    )]
    UnknownCa,
    /// `certificate_expired`, which also stands for "not valid yet".
    #[error(
        "by its clock it has expired or is not valid yet; compare the clocks of both sides, then renew the certificate"
    )]
    Expired,
    /// `certificate_revoked` or `access_denied`.
    #[error("it was revoked; ask the parent's operator")]
    Revoked,
    /// `certificate_required`.
    #[error("it wants one and got none; join first")]
    Required,
    /// Any other complaint about it.
    #[error("it finds it unusable; the log of the other side says why")]
    Unusable,
}

impl TlsFailure {
    /// Whether waiting alone may cure it: clocks get set and servers renew their certificates.
    /// The others need an operator, so a first join ends on them; a daemon retries on any.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::CertificateRefused {
                reason: RefusalReason::Expired,
            }
            | Self::NotTls
            | Self::Other { .. } => true,
            Self::UnknownIssuer
            | Self::PinNotInChain { .. }
            | Self::NameMismatch { .. }
            | Self::WrongPurpose { .. }
            | Self::BadCertificate { .. }
            | Self::CertificateRefused { .. }
            | Self::Incompatible { .. } => false,
        }
    }
}

fn shown_names(names: &[String]) -> String {
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    let mut shown: Vec<String> = names
        .iter()
        .take(NAMES_SHOWN_MAX)
        .map(|name| foreign_text(name))
        .collect();
    if names.len() > NAMES_SHOWN_MAX {
        shown.push(format!("{} more", names.len() - NAMES_SHOWN_MAX));
    }
    shown.join(", ")
}

/// What a verifier of ours reports where no pinned CA was shown. It travels inside
/// `rustls::Error`, from which [`explain_tls_failure`] takes it out again.
#[derive(Debug, Error)]
#[error("the pinned CA {pin} is not among the {shown} certificates shown")]
pub(super) struct PinMissing {
    pub(super) pin: CaFingerprint,
    pub(super) shown: usize,
}

/// What a failed handshake means.
pub fn explain_tls_failure(error: &rustls::Error) -> TlsFailure {
    match error {
        rustls::Error::InvalidCertificate(cause) => explain_certificate(cause),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert),
        rustls::Error::NoApplicationProtocol => TlsFailure::Incompatible {
            detail: "no application protocol in common".to_owned(),
        },
        rustls::Error::PeerIncompatible(what) => TlsFailure::Incompatible {
            detail: format!("{what:?}"),
        },
        rustls::Error::NoCertificatesPresented => TlsFailure::BadCertificate {
            detail: "no certificate was shown".to_owned(),
        },
        rustls::Error::InvalidMessage(_) => TlsFailure::NotTls,
        other => TlsFailure::Other {
            detail: foreign_text(&other.to_string()),
        },
    }
}

fn explain_certificate(cause: &CertificateError) -> TlsFailure {
    match cause {
        CertificateError::ExpiredContext { time, not_after } => TlsFailure::Expired {
            now: from_pki(*time),
            not_after: from_pki(*not_after),
        },
        CertificateError::NotValidYetContext { time, not_before } => TlsFailure::NotYetValid {
            now: from_pki(*time),
            not_before: from_pki(*not_before),
        },
        CertificateError::UnknownIssuer => TlsFailure::UnknownIssuer,
        CertificateError::NotValidForNameContext { expected, presented } => TlsFailure::NameMismatch {
            expected: expected.to_str().into_owned(),
            presented: presented.iter().map(|name| plain_name(name)).collect(),
        },
        CertificateError::InvalidPurposeContext { required, .. } => TlsFailure::WrongPurpose {
            purpose: match required {
                ExtendedKeyPurpose::ClientAuth => "client authentication",
                ExtendedKeyPurpose::ServerAuth => "server authentication",
                ExtendedKeyPurpose::Other(_) => "this use",
            },
        },
        CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<PinMissing>() {
            Some(missing) => TlsFailure::PinNotInChain {
                pin: missing.pin,
                shown: missing.shown,
            },
            None => TlsFailure::BadCertificate {
                detail: foreign_text(&inner.to_string()),
            },
        },
        other => TlsFailure::BadCertificate {
            detail: foreign_text(&other.to_string()),
        },
    }
}

/// The library writes names as `DnsName("a.example")` and `IpAddress(192.0.2.1)`.
fn plain_name(presented: &str) -> String {
    let inner = presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .unwrap_or(presented);
    inner.trim_matches('"').to_owned()
}

impl TlsFailure {
    /// Whether it is the other side's certificate that this side did not take.
    pub const fn is_about_their_certificate(&self) -> bool {
        match self {
            Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::UnknownIssuer
            | Self::PinNotInChain { .. }
            | Self::NameMismatch { .. }
            | Self::WrongPurpose { .. }
            | Self::BadCertificate { .. } => true,
            Self::CertificateRefused { .. }
            | Self::Incompatible { .. }
            | Self::NotTls
            | Self::Other { .. } => false,
        }
    }
}

/// What this side found, of which there is but the alert that it sent, and words.
pub fn explain_own_alert(alert: AlertDescription, detail: String) -> TlsFailure {
    match explain_alert(alert) {
        TlsFailure::CertificateRefused {
            reason: RefusalReason::UnknownCa,
        } => TlsFailure::UnknownIssuer,
        TlsFailure::CertificateRefused { .. } => TlsFailure::BadCertificate { detail },
        _ => TlsFailure::Other { detail },
    }
}

/// What an alert means that the other side sent.
pub fn explain_alert(alert: AlertDescription) -> TlsFailure {
    let reason = match alert {
        AlertDescription::UnknownCA => RefusalReason::UnknownCa,
        AlertDescription::CertificateExpired => RefusalReason::Expired,
        AlertDescription::CertificateRevoked | AlertDescription::AccessDenied => RefusalReason::Revoked,
        AlertDescription::CertificateRequired => RefusalReason::Required,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => RefusalReason::Unusable,
        AlertDescription::NoApplicationProtocol
        | AlertDescription::ProtocolVersion
        | AlertDescription::HandshakeFailure
        | AlertDescription::InsufficientSecurity => {
            return TlsFailure::Incompatible {
                detail: format!("the other side says {alert:?}"),
            };
        }
        other => {
            return TlsFailure::Other {
                detail: format!("the other side says {other:?}"),
            };
        }
    };
    TlsFailure::CertificateRefused { reason }
}

/// The TLS failure somewhere in an error's chain of sources, where one is: IO errors of TLS
/// streams carry theirs inside.
pub fn find_tls_failure(error: &(dyn StdError + 'static)) -> Option<TlsFailure> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(tls) = current.downcast_ref::<rustls::Error>() {
            return Some(explain_tls_failure(tls));
        }
        let inside = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn StdError + 'static));
        next = inside.or_else(|| current.source());
    }
    None
}

/// Where a client configuration leaves the verdict of its last failed verification. One per
/// dial, so that two dials at a time do not mix up theirs.
#[derive(Debug, Clone, Default)]
pub struct FailureRecord(Arc<Mutex<Option<TlsFailure>>>);

impl FailureRecord {
    /// The verdict, once.
    pub fn take(&self) -> Option<TlsFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn note(&self, error: &rustls::Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(explain_tls_failure(error));
    }
}

/// The library's time as ours.
fn from_pki(time: pki_types::UnixTime) -> UnixTime {
    UnixTime::from_seconds(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// Our time as the library's; `None` before 1970, which it cannot express.
pub(super) fn to_pki(time: UnixTime) -> Option<pki_types::UnixTime> {
    u64::try_from(time.as_seconds())
        .ok()
        .map(|seconds| pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_found_inside_an_io_error() {
        let error = io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
        );
        assert_eq!(find_tls_failure(&error), Some(TlsFailure::UnknownIssuer));
        assert_eq!(find_tls_failure(&io::Error::other("something else")), None);
    }

    #[test]
    fn alerts_about_certificates_are_told_apart() {
        let reason = |alert| match explain_alert(alert) {
            TlsFailure::CertificateRefused { reason } => Some(reason),
            _ => None,
        };
        assert_eq!(
            reason(AlertDescription::UnknownCA),
            Some(RefusalReason::UnknownCa)
        );
        assert_eq!(
            reason(AlertDescription::CertificateExpired),
            Some(RefusalReason::Expired)
        );
        assert_eq!(
            reason(AlertDescription::CertificateRequired),
            Some(RefusalReason::Required)
        );
        assert_eq!(reason(AlertDescription::InternalError), None);
        assert!(matches!(
            explain_alert(AlertDescription::NoApplicationProtocol),
            TlsFailure::Incompatible { .. }
        ));
    }

    #[test]
    fn a_record_gives_its_verdict_once() {
        let record = FailureRecord::default();
        record.clone().note(&rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer,
        ));
        assert_eq!(record.take(), Some(TlsFailure::UnknownIssuer));
        assert_eq!(record.take(), None);
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: Vec<String> = (0..100).map(|n| format!("n{n}.example")).collect();
        assert!(shown_names(&names).ends_with("n7.example, 92 more"));
        assert_eq!(shown_names(&[]), "no name at all");
    }
}
