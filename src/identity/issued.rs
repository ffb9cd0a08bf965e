//! What a satellite checks before it keeps a certificate that its parent issued: that it is for
//! this box's key and name, valid now, allowed for client authentication, and signed by an
//! authority that the box has reason to trust. Pure but for the cryptography.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use thiserror::Error;

use super::anchors::{Anchors, AnchorsError};
use super::certificate::{
    AuthorityStanding, CHAIN_MAX_CERTIFICATES, CHAIN_PEM_MAX_BYTES, CertificateChain, CertificateFacts,
    PemError, authority_standing, read_pem, shown_name,
};
use super::tls::{provider, verify_client_certificate};
use super::tls_failure::{TlsFailure, explain_tls_failure, to_pki};
use crate::base::id::PublicKeyDigest;
use crate::base::time::UnixTime;
use crate::contract::invitation::{CaFingerprint, ParentTrust};

/// How far this box's clock may lag behind the begin of a fresh certificate. Parents sign with
/// their own clock and may not backdate; five minutes is what Kerberos and most authorities
/// grant, and a fresh certificate gains an attacker nothing by it.
pub const NOT_BEFORE_SKEW: Duration = Duration::from_secs(5 * 60);

/// Whose signature is taken.
#[derive(Debug, Clone, Copy)]
pub enum IssuerTrust<'a> {
    /// The CA with this fingerprint, which must be in the chain that was delivered.
    Pinned(CaFingerprint),
    /// The authorities that this box knows from before: a refresh.
    Known(&'a Anchors),
    /// The authority that was delivered with the certificate: the connection, already verified
    /// by a CA file or the system's roots, vouches for it.
    Delivered,
}

impl From<&ParentTrust> for IssuerTrust<'_> {
    /// The trust of a first join.
    fn from(trust: &ParentTrust) -> Self {
        match trust {
            ParentTrust::Pinned(pin) => Self::Pinned(*pin),
            ParentTrust::Bundle(_) | ParentTrust::SystemRoots => Self::Delivered,
        }
    }
}

/// What the certificate must be.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedCertificate<'a> {
    /// Its common name, exactly.
    pub subject_cn: &'a str,
    /// The key that the request was made with.
    pub key: PublicKeyDigest,
    /// Whose signature is taken.
    pub trust: IssuerTrust<'a>,
    /// The trusted time.
    pub now: UnixTime,
}

/// A certificate that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCertificate {
    /// To be shown in handshakes: the leaf and what leads to its anchor.
    pub chain: CertificateChain,
    /// The authorities to trust from now on.
    pub anchors: Anchors,
}

/// Why an issued certificate is not kept.
#[derive(Debug, Error)]
pub enum IssuedCertificateError {
    /// `cert_pem` is not usable.
    #[error("the certificate that the parent sent cannot be read; report it to the parent's operator")]
    Certificate(#[source] PemError),
    /// `ca_chain_pem` is not usable.
    #[error("the CA chain that the parent sent cannot be read; report it to the parent's operator")]
    Chain(#[source] PemError),
    /// An authority in `ca_chain_pem` is not usable.
    #[error("the CA that the parent sent cannot be used; report it to the parent's operator")]
    Anchor(#[source] AnchorsError),
    /// Another name.
    #[error(
        "the parent issued the certificate for {} where `{expected}` was due; ask its operator for a new invitation",
        shown_name(.found.as_deref())
    )]
    Subject {
        /// The name due.
        expected: String,
        /// The name in it.
        found: Option<String>,
    },
    /// Another key.
    #[error(
        "the parent issued the certificate for another key than this box's; ask its operator for a new invitation"
    )]
    ForeignKey,
    /// Before its begin by more than [`NOT_BEFORE_SKEW`].
    #[error(
        "the certificate that the parent issued is valid from {not_before} on, but the clock of this box says {now}; set this clock (or start NTP), or the parent's if that one is ahead, and retry"
    )]
    NotYetValid {
        /// The time used here.
        now: UnixTime,
        /// Begin of validity.
        not_before: UnixTime,
    },
    /// Past its end.
    #[error(
        "the certificate that the parent issued ended at {not_after}, and the clock of this box says {now}; set this clock if it is ahead, and retry"
    )]
    Expired {
        /// The time used here.
        now: UnixTime,
        /// End of validity.
        not_after: UnixTime,
    },
    /// The pinned CA was not delivered.
    #[error(
        "the CA chain that the parent sent lacks the expected CA {pin}; check that the join code is this parent's and that its CA was not replaced since"
    )]
    PinNotInChain {
        /// The fingerprint to find.
        pin: CaFingerprint,
    },
    /// No authority was delivered.
    #[error("the parent sent no CA certificate with the certificate; report it to the parent's operator")]
    NoAuthority,
    /// The signature or usage does not hold.
    #[error("the certificate that the parent issued does not hold; report it to the parent's operator")]
    Untrusted(#[source] TlsFailure),
}

/// Checks the answer to an accept or a refresh.
pub fn verify_issued(
    cert_pem: &str,
    ca_chain_pem: &str,
    expected: &ExpectedCertificate<'_>,
) -> Result<VerifiedCertificate, IssuedCertificateError> {
    let issued = CertificateChain::from_pem(cert_pem).map_err(IssuedCertificateError::Certificate)?;
    check_facts(issued.facts(), expected)?;
    let mut issuers = issued.issuers().to_vec();
    issuers.extend(
        read_pem(ca_chain_pem, CHAIN_PEM_MAX_BYTES, CHAIN_MAX_CERTIFICATES)
            .map_err(IssuedCertificateError::Chain)?,
    );

    let anchors = anchors(&issuers, expected.trust)?;
    let checked_at = within_skew(expected.now, issued.facts(), &issuers);
    let checked_at = to_pki(checked_at).ok_or(IssuedCertificateError::NotYetValid {
        now: expected.now,
        not_before: issued.facts().not_before,
    })?;
    verify_client_certificate(issued.leaf(), &issuers, anchors.roots(), &provider(), checked_at)
        .map_err(|error| IssuedCertificateError::Untrusted(explain_tls_failure(&error)))?;

    issuers.retain(|issuer| !anchors.certificates().contains(issuer));
    let chain = issued.with_issuers(issuers);
    Ok(VerifiedCertificate { chain, anchors })
}

fn check_facts(
    facts: &CertificateFacts,
    expected: &ExpectedCertificate<'_>,
) -> Result<(), IssuedCertificateError> {
    let now = expected.now;
    if facts.public_key_digest != expected.key {
        return Err(IssuedCertificateError::ForeignKey);
    }
    if facts.subject_cn.as_deref() != Some(expected.subject_cn) {
        return Err(IssuedCertificateError::Subject {
            expected: expected.subject_cn.to_owned(),
            found: facts.subject_cn.clone(),
        });
    }
    if facts.not_before > now.plus(NOT_BEFORE_SKEW) {
        return Err(IssuedCertificateError::NotYetValid {
            now,
            not_before: facts.not_before,
        });
    }
    if facts.not_after < now {
        return Err(IssuedCertificateError::Expired {
            now,
            not_after: facts.not_after,
        });
    }
    Ok(())
}

fn anchors(
    delivered: &[CertificateDer<'static>],
    trust: IssuerTrust<'_>,
) -> Result<Anchors, IssuedCertificateError> {
    let chosen = match trust {
        IssuerTrust::Known(anchors) => return Ok(anchors.clone()),
        IssuerTrust::Pinned(pin) => {
            let pinned = delivered.iter().find(|der| CaFingerprint::of_der(der) == pin);
            vec![
                pinned
                    .cloned()
                    .ok_or(IssuedCertificateError::PinNotInChain { pin })?,
            ]
        }
        IssuerTrust::Delivered => delivered_authorities(delivered),
    };
    if chosen.is_empty() {
        return Err(IssuedCertificateError::NoAuthority);
    }
    Anchors::from_der(chosen).map_err(IssuedCertificateError::Anchor)
}

/// The roots among them; where no root was delivered, all authorities.
fn delivered_authorities(delivered: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let authorities = |roots_only: bool| -> Vec<CertificateDer<'static>> {
        delivered
            .iter()
            .filter(|der| match authority_standing(der) {
                AuthorityStanding::Root => true,
                AuthorityStanding::Intermediate => !roots_only,
                AuthorityStanding::None => false,
            })
            .cloned()
            .collect()
    };
    let roots = authorities(true);
    if roots.is_empty() {
        authorities(false)
    } else {
        roots
    }
}

/// The time to check at: `now`, or where a certificate of the chain begins within the skew, that
/// begin.
fn within_skew(now: UnixTime, leaf: &CertificateFacts, issuers: &[CertificateDer<'static>]) -> UnixTime {
    let latest = now.plus(NOT_BEFORE_SKEW);
    issuers
        .iter()
        .filter_map(|der| CertificateFacts::of_der(der).ok())
        .map(|facts| facts.not_before)
        .chain([leaf.not_before])
        .filter(|not_before| *not_before <= latest)
        .fold(now, UnixTime::max)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::identity::certificate::write_pem;
    use crate::identity::key::PrivateKey;
    use crate::identity::test_handshake::{Leaf, NOW, TestAuthority};

    const PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";

    struct Answer {
        cert_pem: String,
        ca_chain_pem: String,
        key: PublicKeyDigest,
    }

    impl Answer {
        fn of(ca: &TestAuthority, leaf: &Leaf<'_>) -> Self {
            let key = PrivateKey::generate().unwrap();
            let chain = ca.issue(leaf, &key);
            Self {
                cert_pem: write_pem([chain.leaf()]),
                ca_chain_pem: write_pem(chain.issuers()),
                key: key.public_key_digest(),
            }
        }

        fn verify(
            &self,
            trust: IssuerTrust<'_>,
            now: UnixTime,
        ) -> Result<VerifiedCertificate, IssuedCertificateError> {
            let expected = ExpectedCertificate {
                subject_cn: PEER,
                key: self.key,
                trust,
                now,
            };
            verify_issued(&self.cert_pem, &self.ca_chain_pem, &expected)
        }
    }

    #[test]
    fn a_certificate_of_the_pinned_authority_holds() {
        let ca = TestAuthority::new("ca");
        let answer = Answer::of(&ca, &Leaf::peer(PEER));
        let verified = answer.verify(IssuerTrust::Pinned(ca.pin()), NOW).unwrap();
        assert_eq!(verified.anchors, ca.anchors());
        assert_eq!(verified.chain.facts().subject_cn.as_deref(), Some(PEER));
        assert!(
            verified.chain.issuers().is_empty(),
            "the other side has its own anchor"
        );
    }

    #[test]
    fn the_pinned_authority_is_found_among_others_and_no_other_counts() {
        let (ca, other) = (TestAuthority::new("ca"), TestAuthority::new("other"));
        let mut answer = Answer::of(&ca, &Leaf::peer(PEER));
        answer.ca_chain_pem = write_pem([&other.certificate, &ca.certificate]);
        let verified = answer.verify(IssuerTrust::Pinned(ca.pin()), NOW).unwrap();
        assert_eq!(verified.anchors, ca.anchors());
        assert!(matches!(
            answer.verify(IssuerTrust::Pinned(other.pin()), NOW),
            Err(IssuedCertificateError::Untrusted(TlsFailure::UnknownIssuer))
        ));
        answer.ca_chain_pem = write_pem([&other.certificate]);
        assert!(matches!(
            answer.verify(IssuerTrust::Pinned(ca.pin()), NOW),
            Err(IssuedCertificateError::PinNotInChain { .. })
        ));
    }

    #[test]
    fn an_intermediate_is_kept_in_the_chain() {
        let root = TestAuthority::new("root");
        let intermediate = root.intermediate("intermediate");
        let mut answer = Answer::of(&intermediate, &Leaf::peer(PEER));
        answer.ca_chain_pem = write_pem([&root.certificate, &intermediate.certificate]);
        for trust in [IssuerTrust::Pinned(root.pin()), IssuerTrust::Delivered] {
            let verified = answer.verify(trust, NOW).unwrap();
            assert_eq!(verified.anchors, root.anchors());
            assert_eq!(
                verified.chain.issuers(),
                std::slice::from_ref(&intermediate.certificate)
            );
        }
    }

    #[test]
    fn without_a_pin_the_delivered_authority_is_the_anchor() {
        let ca = TestAuthority::new("ca");
        let mut answer = Answer::of(&ca, &Leaf::peer(PEER));
        assert_eq!(
            answer.verify(IssuerTrust::Delivered, NOW).unwrap().anchors,
            ca.anchors()
        );
        answer.ca_chain_pem = write_pem([&TestAuthority::new("ca").certificate]);
        assert!(matches!(
            answer.verify(IssuerTrust::Delivered, NOW),
            Err(IssuedCertificateError::Untrusted(_))
        ));
        answer.ca_chain_pem = answer.cert_pem.clone();
        assert!(matches!(
            answer.verify(IssuerTrust::Delivered, NOW),
            Err(IssuedCertificateError::NoAuthority)
        ));
    }

    #[test]
    fn a_refresh_takes_the_known_anchors_alone() {
        let (ca, other) = (TestAuthority::new("ca"), TestAuthority::new("other"));
        let known = ca.anchors();
        let answer = Answer::of(&ca, &Leaf::peer(PEER));
        assert!(answer.verify(IssuerTrust::Known(&known), NOW).is_ok());
        let foreign = Answer::of(&other, &Leaf::peer(PEER));
        assert!(matches!(
            foreign.verify(IssuerTrust::Known(&known), NOW),
            Err(IssuedCertificateError::Untrusted(TlsFailure::UnknownIssuer))
        ));
    }

    #[test]
    fn another_name_another_key_and_another_use_are_told_apart() {
        let ca = TestAuthority::new("ca");
        let trust = IssuerTrust::Pinned(ca.pin());
        let upper_case = PEER.to_uppercase();
        assert!(matches!(
            Answer::of(&ca, &Leaf::peer(&upper_case)).verify(trust, NOW),
            Err(IssuedCertificateError::Subject { .. })
        ));
        let mut foreign = Answer::of(&ca, &Leaf::peer(PEER));
        foreign.key = PrivateKey::generate().unwrap().public_key_digest();
        assert!(matches!(
            foreign.verify(trust, NOW),
            Err(IssuedCertificateError::ForeignKey)
        ));
        let server_only = Leaf {
            usages: &[ExtendedKeyUsagePurpose::ServerAuth],
            ..Leaf::peer(PEER)
        };
        assert!(matches!(
            Answer::of(&ca, &server_only).verify(trust, NOW),
            Err(IssuedCertificateError::Untrusted(TlsFailure::WrongPurpose { .. }))
        ));
    }

    #[test]
    fn a_clock_that_lags_a_little_is_forgiven_and_a_wrong_one_is_told() {
        let ca = TestAuthority::new("ca");
        let leaf = Leaf::peer(PEER);
        let answer = Answer::of(&ca, &leaf);
        let verify = |now| answer.verify(IssuerTrust::Pinned(ca.pin()), now);
        let earliest = leaf.not_before.minus(NOT_BEFORE_SKEW);
        assert!(verify(earliest).is_ok());
        let second = Duration::from_secs(1);
        assert!(matches!(
            verify(earliest.minus(second)),
            Err(IssuedCertificateError::NotYetValid { .. })
        ));
        assert!(matches!(
            verify(UnixTime::from_seconds(-1)),
            Err(IssuedCertificateError::NotYetValid { .. })
        ));
        assert!(verify(leaf.not_after).is_ok());
        assert!(matches!(
            verify(leaf.not_after.plus(second)),
            Err(IssuedCertificateError::Expired { .. })
        ));
    }

    #[test]
    fn unreadable_answers_name_their_part() {
        let ca = TestAuthority::new("ca");
        let mut answer = Answer::of(&ca, &Leaf::peer(PEER));
        answer.ca_chain_pem.clear();
        assert!(matches!(
            answer.verify(IssuerTrust::Delivered, NOW),
            Err(IssuedCertificateError::Chain(PemError::Empty))
        ));
        answer.cert_pem.clear();
        assert!(matches!(
            answer.verify(IssuerTrust::Delivered, NOW),
            Err(IssuedCertificateError::Certificate(PemError::Empty))
        ));
    }
}
