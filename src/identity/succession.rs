//! How trust moves from one certificate authority of a parent to its next: by a certificate for the new
//! authority's name and key that the old authority has signed (a *cross certificate*), and by nothing else.
//! The word of the connection, however well it is authenticated, makes no anchor. Pure but for the
//! cryptography; Ed25519 alone, which is what the contract's authorities have.
//!
//! A cross certificate is also what leads a handshake from the new authority to the old anchor, so that
//! whoever has not heard of the new one yet still verifies it.

use rustls::pki_types::CertificateDer;
use thiserror::Error;

use super::anchors::{Anchors, AnchorsError};
use super::certificate::{CHAIN_MAX_CERTIFICATES, CHAIN_PEM_MAX_BYTES, Fields, PemError, read_pem};
use super::issued::NOT_BEFORE_SKEW;
use super::key::has_signed;
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;

/// Most authorities of one parent that are trusted at once: two, and a third while a second rotation begins
/// before the first has ended.
pub const AUTHORITIES_MAX: usize = 4;

/// What a parent serves as its trust.
#[derive(Debug, Clone, Copy)]
pub struct ServedBundle<'a> {
    /// Its authorities.
    pub ca_bundle_pem: &'a str,
    /// The certificates by which an older one vouches for a newer one.
    pub cross_certificates_pem: Option<&'a str>,
}

/// What comes of a served bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The authorities to trust from now on, the oldest first.
    pub anchors: Anchors,
    /// Authorities in the bundle that none of the trusted ones has vouched for. They are not trusted.
    pub unvouched: Vec<CaFingerprint>,
}

/// Why nothing can be taken from a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BundleError {
    /// It is not readable as authorities.
    #[error("the trust bundle that the parent serves cannot be used; report it to the parent's operator")]
    Bundle(#[source] AnchorsError),
    /// Its cross certificates are not readable.
    #[error(
        "the cross certificates beside the parent's trust bundle cannot be read; report it to the parent's operator"
    )]
    Cross(#[source] PemError),
    /// None of the trusted authorities is in it any more, and none has vouched for one that is.
    #[error(
        "the parent serves authorities alone that none of the known ones has vouched for ({}); the known ones stay \
         trusted, and if the parent's operator has replaced the authority without a rotation, join again with a new token",
        shown(.served)
    )]
    Foreign {
        /// What it serves.
        served: Vec<CaFingerprint>,
    },
}

fn shown(fingerprints: &[CaFingerprint]) -> String {
    let texts: Vec<_> = fingerprints.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Follows a bundle from the known authorities, the oldest of which comes first. An authority of the bundle is
/// taken if a trusted one has vouched for it. A known one that the bundle lacks is dropped where the bundle has a
/// later one: it was retired. The latest is never dropped, so that an old bundle leads nobody back.
pub fn follow(known: &Anchors, served: ServedBundle<'_>, now: UnixTime) -> Result<Followed, BundleError> {
    let bundle = Anchors::from_pem(served.ca_bundle_pem).map_err(BundleError::Bundle)?;
    let cross = match served.cross_certificates_pem.filter(|pem| !pem.trim().is_empty()) {
        Some(pem) => {
            read_pem(pem, CHAIN_PEM_MAX_BYTES, CHAIN_MAX_CERTIFICATES).map_err(BundleError::Cross)?
        }
        None => Vec::new(),
    };
    let mut trusted: Vec<CertificateDer<'static>> = known.certificates().to_vec();
    // Through several rotations at once, in whatever order the bundle has them.
    for _ in 0..AUTHORITIES_MAX {
        let next = bundle.certificates().iter().find(|new| {
            !trusted.contains(new)
                && trusted
                    .iter()
                    .any(|old| cross.iter().any(|cross| vouches(old, cross, new, now)))
        });
        match next {
            Some(next) => trusted.push(next.clone()),
            None => break,
        }
    }
    let unvouched: Vec<_> = bundle
        .certificates()
        .iter()
        .filter(|served| !trusted.contains(served))
        .map(|served| CaFingerprint::of_der(served))
        .collect();
    let is_served = |held: &CertificateDer<'static>| bundle.certificates().contains(held);
    let Some(latest_served) = trusted.iter().rposition(is_served) else {
        return Err(BundleError::Foreign { served: unvouched });
    };
    let mut kept: Vec<_> = trusted
        .into_iter()
        .enumerate()
        .filter(|(age, held)| *age >= latest_served || is_served(held))
        .map(|(_, held)| held)
        .collect();
    let beyond = kept.len().saturating_sub(AUTHORITIES_MAX);
    kept.drain(..beyond);
    let anchors = Anchors::from_der(kept).map_err(BundleError::Bundle)?;
    Ok(Followed { anchors, unvouched })
}

/// Whether `old` has vouched for `new` by `cross`: the same name and key as in the new authority's own
/// certificate, under the old one's signature, and all three valid now.
pub fn vouches(old: &[u8], cross: &[u8], new: &[u8], now: UnixTime) -> bool {
    let (Ok(old), Ok(cross), Ok(new)) = (Fields::read(old), Fields::read(cross), Fields::read(new)) else {
        return false;
    };
    let signed_by = |signer: &Fields<'_>, what: &Fields<'_>| {
        has_signed(signer.public_key, what.algorithm, what.signed, what.signature)
    };
    let latest_begin = now.plus(NOT_BEFORE_SKEW).as_seconds();
    let valid = [&old, &cross, &new]
        .iter()
        .all(|read| read.is_ca && read.not_before <= latest_begin && now.as_seconds() <= read.not_after);
    valid
        && cross.issuer == old.subject
        && cross.subject == new.subject
        && cross.public_key == new.public_key
        && new.issuer == new.subject
        && signed_by(&old, &cross)
        && signed_by(&new, &new)
}

/// Whether `authority` has issued `certificate`: its name, under its signature. Says nothing of whether either
/// is valid now.
pub fn has_issued(authority: &[u8], certificate: &[u8]) -> bool {
    let (Ok(authority), Ok(certificate)) = (Fields::read(authority), Fields::read(certificate)) else {
        return false;
    };
    certificate.issuer == authority.subject
        && has_signed(
            authority.public_key,
            certificate.algorithm,
            certificate.signed,
            certificate.signature,
        )
}

/// Another name than an authority's, so that nobody takes its successor for it: `Example CA G2`.
pub fn next_generation(name: &str, max_chars: usize) -> String {
    let (base, generation) = name
        .rsplit_once(" G")
        .and_then(|(base, number)| Some((base, number.parse::<u32>().ok()?)))
        .unwrap_or((name, 1));
    let suffix = format!(" G{}", generation.saturating_add(1));
    let room = max_chars.saturating_sub(suffix.len());
    base.chars().take(room).chain(suffix.chars()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
