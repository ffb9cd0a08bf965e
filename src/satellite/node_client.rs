//! The satellite's requests to its platform's node API (contract section 4): enroll once, renew later. Each
//! is one exchange with an outcome; when to send which is the machine's decision.
//!
//! Enrollment goes over the tunnel where the platform is the parent's own host, because that is the way that
//! is known to lead there; with a host-bridge that hands no such requests on (404), and for any other host, it
//! goes directly. A renewal is always direct: it has to show the node's certificate, and a tunnel shows the
//! federation's.

use bytes::Bytes;
use http::header::LOCATION;
use http::{Response, StatusCode, Uri};
use serde::Serialize;

use super::exchange::{failure_text, verify};
use super::parent_client::{ExchangeError, RELEASE, answer_of, post_request};
use crate::base::id::TraceId;
use crate::base::limit::error_chain;
use crate::base::time::TrustedTime;
use crate::contract::delivery::NodeEnrollment;
use crate::contract::invitation::{HostPort, ParentTrust, ParentUrl};
use crate::contract::message::{ContractAnswer, FederationCertificate};
use crate::contract::node::{NodeCertificate, NodeEnrollRequest, NodeRefreshRequest};
use crate::contract::{NODE_ENROLL_PATH, NODE_REFRESH_PATH};
use crate::identity::issued::IssuerTrust;
use crate::machine::membership::{KeyMaterial, StoredIdentity};
use crate::machine::node_identity::{IssuedNode, NodeEvent, NodeMembership, NodeNames};
use crate::process::clock::Clock;
use crate::process::config::proxy::ProxySettings;
use crate::process::entropy;
use crate::reach::https::{self, HttpsTarget};
use crate::tunnel::Tunnel;
use crate::tunnel::http::{self as tunnel_http, HttpLimits, HttpOverTunnelError};

/// Most redirects that are followed: a canonical path, and a slash at its end.
const REDIRECTS_MAX: usize = 2;

/// Where the machine's own id is, for root alone.
const DMI_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// The ways to platforms.
#[derive(Debug, Clone)]
pub(super) struct NodeClient {
    /// By what a platform is known.
    pub(super) trust: ParentTrust,
    /// Anchors that stand beside it.
    pub(super) learned: Option<String>,
    /// Proxies, for hosts that have one.
    pub(super) proxies: ProxySettings,
    /// The time.
    pub(super) clock: Clock,
}

/// An outcome for the machine, and what failed in words.
pub(super) type Outcome = (NodeEvent, Option<String>);

/// Whether enrolling goes over the tunnel to this parent.
pub(super) fn goes_over_tunnel(platform: &ParentUrl, parent: &ParentUrl) -> bool {
    platform.host() == parent.host() && platform.path().is_empty()
}

impl NodeClient {
    /// Asks for the first certificate.
    pub(super) async fn enroll(
        &self,
        tunnel: Option<Tunnel>,
        enrollment: &NodeEnrollment,
        key: &KeyMaterial,
    ) -> Outcome {
        let Some(token) = enrollment.bootstrap_token.expose_text() else {
            let why = "the stored bootstrap token is not text".to_owned();
            return (NodeEvent::Unusable(why.clone()), Some(why));
        };
        let dmi_uuid = tokio::fs::read_to_string(DMI_UUID).await.ok();
        let body = NodeEnrollRequest {
            bootstrap_token: token,
            csr_pem: &key.csr_pem,
            agent_version: RELEASE,
            dmi_uuid: dmi_uuid.as_deref().map(str::trim).filter(|id| !id.is_empty()),
        };
        let platform = &enrollment.platform_url;
        let mut response = None;
        if let Some(tunnel) = tunnel {
            match over_tunnel(&tunnel, platform, &body).await {
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {
                    tracing::debug!("the host-bridge hands no enrollment on; asking the platform directly");
                }
                Ok(answer) => response = Some(answer),
                Err(failed) => return failed,
            }
        }
        let response = match response {
            Some(response) => response,
            None => match self.directly(platform, NODE_ENROLL_PATH, &body, None).await {
                Ok(response) => response,
                Err(failed) => return failed,
            },
        };
        judge(
            &response,
            "enrollment",
            &enrollment.intended_subject,
            key,
            self.clock.trusted(),
        )
    }

    /// Asks for the next certificate, as the node that this box is.
    pub(super) async fn refresh(&self, node: &NodeMembership, key: &KeyMaterial) -> Outcome {
        let body = NodeRefreshRequest {
            csr_pem: &key.csr_pem,
            agent_version: RELEASE,
        };
        let shown = Some(node.identity.clone());
        match self
            .directly(&node.platform_url, NODE_REFRESH_PATH, &body, shown)
            .await
        {
            Ok(response) => judge(
                &response,
                "renewal of the node's certificate",
                &node.subject,
                key,
                self.clock.trusted(),
            ),
            Err(failed) => failed,
        }
    }

    async fn directly(
        &self,
        platform: &ParentUrl,
        path: &str,
        body: &impl Serialize,
        identity: Option<StoredIdentity>,
    ) -> Result<Response<Bytes>, Outcome> {
        let host = platform.host().clone();
        let target = HttpsTarget {
            proxy: self.proxies.proxy_for(host.host(), host.port()).cloned(),
            trust: self.trust.clone(),
            learned: self.learned.clone(),
            identity,
            clock: self.clock.clone(),
            host: host.clone(),
        };
        let mut path = format!("{}{path}", platform.path());
        for _ in 0..=REDIRECTS_MAX {
            let request = post_request(&host.to_string(), &path, body).map_err(not_sent)?;
            let response = https::request(target.clone(), request, HttpLimits::default())
                .await
                .map_err(|error| {
                    let event = if error.may_have_arrived() {
                        NodeEvent::AnswerLost
                    } else {
                        NodeEvent::NotSent
                    };
                    (event, Some(error_chain(&error)))
                })?;
            match redirect(&response, &host) {
                Some(to) => path = to,
                None => return Ok(response),
            }
        }
        let why = format!("{host} redirects in circles");
        Err((NodeEvent::Unusable(why.clone()), Some(why)))
    }
}

/// Where the same request is wanted instead, on the same host: a token goes nowhere else.
fn redirect(response: &Response<Bytes>, host: &HostPort) -> Option<String> {
    if !matches!(
        response.status(),
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    ) {
        return None;
    }
    let to: Uri = response.headers().get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if let Some(authority) = to.authority() {
        let same = HostPort::parse(authority.as_str(), 443).is_ok_and(|to| to == *host);
        if !same || to.scheme_str() != Some("https") {
            return None;
        }
    }
    to.path_and_query().map(ToString::to_string)
}

async fn over_tunnel(
    tunnel: &Tunnel,
    platform: &ParentUrl,
    body: &impl Serialize,
) -> Result<Response<Bytes>, Outcome> {
    let request = post_request(&platform.host().to_string(), NODE_ENROLL_PATH, body).map_err(not_sent)?;
    tunnel_http::request(tunnel, TraceId(entropy::seed()), request, HttpLimits::default())
        .await
        .map_err(|error| {
            let event = match error {
                HttpOverTunnelError::Open(_) | HttpOverTunnelError::Refused(_) => NodeEvent::NotSent,
                _ => NodeEvent::AnswerLost,
            };
            (event, Some(error_chain(&error)))
        })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_sent(error: ExchangeError) -> Outcome {
    (NodeEvent::NotSent, Some(error_chain(&error)))
}

/// What an answer comes down to.
fn judge(
    response: &Response<Bytes>,
    what: &str,
    subject: &str,
    key: &KeyMaterial,
    time: TrustedTime,
) -> Outcome {
    let told = match answer_of::<NodeCertificate>(response) {
        Ok(ContractAnswer::Data(told)) => told,
        Ok(ContractAnswer::Failure(failure)) => {
            let why = failure_text("the platform", what, &failure);
            return (NodeEvent::Failed(failure), Some(why));
        }
        Err(error) => return (NodeEvent::Unusable(error.to_string()), Some(error.to_string())),
    };
    let NodeCertificate {
        cert_pem,
        ca_chain_pem,
        instance_id,
        mtls_subject,
        certificate_id,
    } = told;
    let certificate = FederationCertificate {
        cert_pem,
        ca_chain_pem,
        serial: String::new(),
        // The certificate itself says when it ends.
        not_after: time.now,
    };
    // The connection on which it came has verified the platform, which is its own nodes' authority.
    match verify(&certificate, subject, key, IssuerTrust::Delivered, time) {
        Ok(identity) => {
            let names = NodeNames {
                instance_id: instance_id.unwrap_or_else(|| subject.to_owned()),
                mtls_subject: mtls_subject.unwrap_or_else(|| format!("CN={subject}")),
                certificate_id: certificate_id.unwrap_or_else(|| identity.certificate.serial.clone()),
            };
            (NodeEvent::Issued(Box::new(IssuedNode { names, identity })), None)
        }
        Err(why) => (NodeEvent::CertificateRejected(why.clone()), Some(why)),
    }
}
