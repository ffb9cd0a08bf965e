//! The durable facts of a node's identity. Plain data, part of the membership's record.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::time::UnixTime;
use crate::contract::delivery::NodeEnrollment;
use crate::contract::invitation::ParentUrl;
use crate::machine::membership::{KeyMaterial, StoredIdentity};

/// How far this box has come in becoming a node of the platform (contract section 4).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NodeStanding {
    /// Told to enroll; nothing done yet.
    Due {
        /// What the parent gave for it.
        enrollment: NodeEnrollment,
        /// When the token ends.
        until: UnixTime,
    },
    /// The key exists, and a request of it may have left the box.
    Asked {
        /// What the parent gave for it.
        enrollment: NodeEnrollment,
        /// When the token ends.
        until: UnixTime,
        /// The key of the request.
        key: KeyMaterial,
    },
    /// A node.
    Enrolled(NodeMembership),
    /// It came to nothing, for good; no token and no key is left.
    Ended {
        /// Which platform.
        platform_url: ParentUrl,
        /// As what the box was to enroll.
        subject: String,
        /// Why.
        refusal: NodeRefusal,
        /// When.
        at: UnixTime,
    },
}

/// A node of a platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeMembership {
    /// Which platform.
    pub platform_url: ParentUrl,
    /// The common name of requests.
    pub subject: String,
    /// What the platform calls this box and its certificate.
    pub names: NodeNames,
    /// The identity in use.
    pub identity: StoredIdentity,
    /// The key of a renewal under way.
    pub renewal: Option<KeyMaterial>,
}

/// What a platform tells beside a node's certificate. All of it is foreign text, short and on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNames {
    /// The node's instance.
    pub instance_id: String,
    /// As whom the certificate lets it call.
    pub mtls_subject: String,
    /// The certificate, in the platform's records.
    pub certificate_id: String,
}

/// A certificate that a platform issued, and that was checked.
#[derive(Debug, Clone)]
pub struct IssuedNode {
    /// What came with it.
    pub names: NodeNames,
    /// Key and certificate.
    pub identity: StoredIdentity,
}

/// Why a box did not become a node. Each needs somebody; none is retried by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRefusal {
    /// 401 or 422 on the first try that reached the platform.
    TokenRejected {
        /// The HTTP status.
        http_status: u16,
        /// The platform's words.
        message: String,
    },
    /// The same after a try whose answer was lost.
    TokenSpent {
        /// The HTTP status.
        http_status: u16,
        /// The platform's words.
        message: String,
    },
    /// The platform says no for another reason.
    Rejected {
        /// The HTTP status.
        http_status: u16,
        /// The platform's words.
        message: String,
    },
    /// The token's time ran out first.
    TimeOver {
        /// Whether a request may have reached the platform.
        answer_lost: bool,
    },
    /// A certificate came that must not be used.
    BadCertificate {
        /// What is wrong with it.
        why: String,
    },
    /// The answer is not the contract's.
    UnusableAnswer {
        /// What is wrong with it.
        why: String,
    },
}

/// What there is to do about all of them.
const WHAT_TO_DO: &str = "The membership is not touched by it. To enroll again, the platform's operator has to mint a \
                          new acceptance token for this box, for `powernode-satellite rejoin`";

impl fmt::Display for NodeRefusal {
    /// What happened and what to do, for the operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |status: &u16, message: &str| {
            if message.is_empty() {
                format!("HTTP {status}")
            } else {
                format!("HTTP {status}: \"{message}\"")
            }
        };
        match self {
            Self::TokenRejected { http_status, message } => write!(
                f,
                "the platform does not take the bootstrap token ({}): it is used or expired, or the request was not to \
                 its liking. {WHAT_TO_DO}",
                said(http_status, message)
            ),
            Self::TokenSpent { http_status, message } => write!(
                f,
                "the platform's answer to an earlier try was lost, and now it does not take the bootstrap token any \
                 more ({}): it has counted it as used, and the certificate went nowhere. {WHAT_TO_DO}",
                said(http_status, message)
            ),
            Self::Rejected { http_status, message } => write!(
                f,
                "the platform refused the enrollment ({}). {WHAT_TO_DO}",
                said(http_status, message)
            ),
            Self::TimeOver { answer_lost: false } => write!(
                f,
                "the platform was not reached while the bootstrap token was good. {WHAT_TO_DO}"
            ),
            Self::TimeOver { answer_lost: true } => write!(
                f,
                "no answer of the platform's arrived while the bootstrap token was good; it may have counted the token \
                 as used. {WHAT_TO_DO}"
            ),
            Self::BadCertificate { why } => write!(
                f,
                "the platform issued a node certificate that must not be used: {why}. {WHAT_TO_DO}"
            ),
            Self::UnusableAnswer { why } => write!(
                f,
                "what answered the enrollment is perhaps no Powernode platform: {why}. {WHAT_TO_DO}"
            ),
        }
    }
}
