//! Certificates and the authorities behind them, as an operator sees them.

use serde::{Deserialize, Serialize};

use crate::base::id::CertificateDigest;
use crate::base::limit::foreign_text;
use crate::base::time::{UnixTime, rfc3339};
use crate::identity::anchors::Anchors;
use crate::identity::certificate::{CertificateChain, CertificateFacts};
use crate::machine::membership::{Candidate, Membership, StoredIdentity};
use crate::machine::renewal::{CertificateStanding, renewal_due};

/// A certificate: the federation's, or the node's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct CertificateReport {
    /// `valid`, `renewal due`, `expires soon`, `expired`, `not yet valid`.
    pub standing: String,
    /// Serial, upper-case hex.
    pub serial: String,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
    /// Begin of validity.
    #[serde(with = "rfc3339")]
    pub not_before: UnixTime,
    /// End of validity.
    #[serde(with = "rfc3339")]
    pub not_after: UnixTime,
    /// When renewal starts.
    #[serde(with = "rfc3339")]
    pub renew_at: UnixTime,
    /// A renewal under way: `requested` or `proving`.
    pub renewal: Option<String>,
    /// The last failure of the renewal under way, in words.
    pub renewal_error: Option<String>,
    /// Whether it has expired and the parent, when it was reached, did not renew it.
    pub needs_rejoin: bool,
    /// Whether it was issued by this box's own authority, as among equals.
    pub self_issued: bool,
    /// The parent's authorities that are trusted, the oldest first.
    pub anchors: Vec<AnchorReport>,
    /// Why the parent's trust bundle is not followed, in words.
    pub bundle_error: Option<String>,
}

impl CertificateReport {
    /// Whether somebody should look at it.
    pub fn is_worrying(&self) -> bool {
        [
            CertificateStanding::ExpiresSoon,
            CertificateStanding::Expired,
            CertificateStanding::NotYetValid,
        ]
        .iter()
        .any(|standing| self.standing == standing.to_string())
    }

    pub(super) fn of(membership: &Membership, now: UnixTime) -> Self {
        let renewal = membership.candidate.as_ref().map(|candidate| match candidate {
            Candidate::Requested(_) => "requested",
            Candidate::Issued(_) => "proving",
        });
        Self {
            self_issued: membership.own_authority.is_some(),
            ..Self::of_identity(&membership.identity, renewal, now)
        }
    }

    /// How an identity stands, and what is done to renew it.
    pub fn of_identity(identity: &StoredIdentity, renewal: Option<&str>, now: UnixTime) -> Self {
        let (not_before, not_after) = (identity.not_before, identity.certificate.not_after);
        Self {
            standing: CertificateStanding::judge(not_before, not_after, now).to_string(),
            serial: identity.certificate.serial.clone(),
            fingerprint: CertificateChain::from_pem(&identity.certificate.cert_pem)
                .map(|chain| CertificateDigest::of_der(chain.leaf()).to_string())
                .unwrap_or_default(),
            not_before,
            not_after,
            renew_at: renewal_due(not_before, not_after),
            renewal: renewal.map(str::to_owned),
            renewal_error: None,
            needs_rejoin: false,
            self_issued: false,
            anchors: AnchorReport::all_of(identity),
            bundle_error: None,
        }
    }
}

/// An authority that is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::reading::Fields")]
pub struct AnchorReport {
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// Its name.
    pub subject: Option<String>,
    /// End of its validity.
    #[serde(with = "rfc3339")]
    pub not_after: UnixTime,
}

impl AnchorReport {
    fn all_of(identity: &StoredIdentity) -> Vec<Self> {
        let Ok(anchors) = Anchors::from_pem(&identity.certificate.ca_chain_pem) else {
            return Vec::new();
        };
        let facts = anchors
            .certificates()
            .iter()
            .filter_map(|der| CertificateFacts::of_der(der).ok());
        facts.map(|facts| Self::of_facts(&facts)).collect()
    }

    /// As its certificate says.
    pub(in crate::satellite) fn of_facts(facts: &CertificateFacts) -> Self {
        Self {
            fingerprint: facts.fingerprint.to_string(),
            subject: facts.subject_cn.as_deref().map(foreign_text),
            not_after: facts.not_after,
        }
    }
}
