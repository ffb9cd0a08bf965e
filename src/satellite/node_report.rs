//! What a satellite tells about its identity as a node of its platform. Part of the status; holds no secret.

use serde::{Deserialize, Serialize};

use super::status::CertificateReport;
use crate::base::time::UnixTime;
use crate::machine::node_identity::NodeStanding;

/// The node's identity. Field names are the `--json` output: additions only.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "super::status::reading::Fields")]
pub struct NodeReport {
    /// `due`, `asked`, `enrolled` or `ended`.
    pub state: String,
    /// The platform.
    pub platform_url: String,
    /// The common name of requests.
    pub subject: String,
    /// The node's instance, as the platform calls it.
    pub instance_id: Option<String>,
    /// As whom the certificate lets its holder call.
    pub mtls_subject: Option<String>,
    /// The certificate, in the platform's records.
    pub certificate_id: Option<String>,
    /// The certificate.
    pub certificate: Option<CertificateReport>,
    /// Why there will be none, and what to do.
    pub refusal: Option<String>,
    /// The last failure, in words, until a request succeeds.
    pub last_error: Option<String>,
    /// Where it is written for other programs.
    pub files: Option<String>,
    /// Why it could not be written there.
    pub files_error: Option<String>,
}

impl NodeReport {
    /// What the stored standing tells.
    pub fn of(standing: &NodeStanding, now: UnixTime) -> Self {
        let (state, platform_url, subject) = match standing {
            NodeStanding::Due { enrollment, .. } => {
                ("due", &enrollment.platform_url, &enrollment.intended_subject)
            }
            NodeStanding::Asked { enrollment, .. } => {
                ("asked", &enrollment.platform_url, &enrollment.intended_subject)
            }
            NodeStanding::Enrolled(node) => ("enrolled", &node.platform_url, &node.subject),
            NodeStanding::Ended {
                platform_url,
                subject,
                ..
            } => ("ended", platform_url, subject),
        };
        let node = standing.membership();
        Self {
            state: state.to_owned(),
            platform_url: platform_url.to_string(),
            subject: subject.clone(),
            instance_id: node.map(|node| node.names.instance_id.clone()),
            mtls_subject: node.map(|node| node.names.mtls_subject.clone()),
            certificate_id: node.map(|node| node.names.certificate_id.clone()),
            certificate: node.map(|node| {
                let renewal = node.renewal.as_ref().map(|_| "requested");
                CertificateReport::of_identity(&node.identity, renewal, now)
            }),
            refusal: match standing {
                NodeStanding::Ended { refusal, .. } => Some(refusal.to_string()),
                _ => None,
            },
            last_error: None,
            files: None,
            files_error: None,
        }
    }

    /// What somebody should look at, in a few words.
    pub fn worry(&self) -> Option<String> {
        if self.refusal.is_some() {
            return Some("no node identity".to_owned());
        }
        let certificate = self
            .certificate
            .as_ref()
            .filter(|certificate| certificate.is_worrying())?;
        Some(format!("node certificate {}", certificate.standing))
    }
}
