//! Identifiers as types of their own, so that a grant's id is never taken for a peer's.
//!
//! All are UUIDs (contract section 11: `UUIDv7`). Parsing accepts any letter case and the forms
//! that the `uuid` crate knows; output is always the lower-case hyphenated form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::radix::sha256_of_text;
use super::time::UnixTime;

/// Random bytes that a `UUIDv7` takes from its caller.
pub type IdEntropy = [u8; 10];

/// A text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a {what} id; a UUID such as 0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e is needed")]
pub struct InvalidId {
    what: &'static str,
    text: String,
}

/// Longest excerpt of a bad id that an error repeats, in characters.
const EXCERPT_CHARS: usize = 64;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new UUIDv7 for the given time.
            pub fn new_v7(now: UnixTime, entropy: IdEntropy) -> Self {
                let millis = u64::try_from(now.as_seconds()).unwrap_or(0).saturating_mul(1000);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &entropy).into_uuid())
            }

            /// Wraps a UUID of any version.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }

            /// The 16 bytes, in order: the key under which stores keep the row.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text.trim()).map(Self).map_err(|_| InvalidId {
                    what: $what,
                    text: text.chars().take(EXCERPT_CHARS).collect(),
                })
            }
        }
    };
}

uuid_id!(
    /// A federation peer: the row that each side keeps about the other.
    PeerId,
    "peer"
);
uuid_id!(
    /// A grant (contract section 7).
    GrantId,
    "grant"
);
uuid_id!(
    /// One authenticated tunnel session, as the host-bridge counts them.
    SessionId,
    "session"
);
uuid_id!(
    /// A person or program that may use the operator API.
    OperatorId,
    "operator"
);
uuid_id!(
    /// A NodeInstance of the platform (contract section 4).
    InstanceId,
    "node instance"
);
uuid_id!(
    /// An SDWAN network of the platform (contract section 8).
    NetworkId,
    "network"
);

/// SHA-256 over a public key's `SubjectPublicKeyInfo` in DER: by this a key is known again,
/// whichever request or certificate it stands in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKeyDigest([u8; 32]);

impl PublicKeyDigest {
    /// The digest of a `SubjectPublicKeyInfo` in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(der).into())
    }

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", crate::base::radix::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PublicKeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 over a whole certificate in DER: what programs call its fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateDigest([u8; 32]);

/// A text that is no such digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a certificate's fingerprint is its SHA-256: 64 hex digits, colons allowed")]
pub struct InvalidCertificateDigest;

impl CertificateDigest {
    /// Of a certificate in DER.
    pub fn of_der(der: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(der).into())
    }
}

impl fmt::Display for CertificateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", crate::base::radix::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CertificateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CertificateDigest {
    type Err = InvalidCertificateDigest;

    fn from_str(text: &str) -> Result<Self, InvalidCertificateDigest> {
        sha256_of_text(text).map(Self).ok_or(InvalidCertificateDigest)
    }
}

/// Ties the log lines of one stream on both sides together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_ordered_by_time() {
        let earlier = PeerId::new_v7(UnixTime::from_seconds(1_700_000_000), [0xff; 10]);
        let later = PeerId::new_v7(UnixTime::from_seconds(1_700_000_001), [0; 10]);
        assert_eq!(earlier.as_uuid().get_version_num(), 7);
        assert!(earlier < later);
    }

    #[test]
    fn upper_case_is_accepted_and_shown_in_lower_case() {
        let id: PeerId = " 0192F0C1-7C1E-7A53-9D0E-3F2B5A6C7D8E ".parse().unwrap();
        assert_eq!(id.to_string(), "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e");
    }

    #[test]
    fn an_error_repeats_a_bounded_excerpt() {
        let error = "x".repeat(10_000).parse::<PeerId>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
