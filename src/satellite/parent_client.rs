//! The satellite's requests to its parent over a tunnel: accept, heartbeat, certificate refresh.
//! Each is one exchange with a typed outcome; when to send which is the machine's decision.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::id::TraceId;
use crate::base::time::UnixTime;

use crate::contract::invitation::HostPort;
use crate::contract::message::{
    AcceptRequest, AcceptResponse, ContractAnswer, ContractFailure, DialBackAnswer, DialBackRequest,
    DirectRequest, Endpoint, FederationCertificate, HeartbeatRequest, HeartbeatResponse, TrustBundle,
    UnusableAnswer, read_answer,
};
use crate::contract::redirect::{self, REDIRECTS_MAX, RedirectRefused};
use crate::contract::service::Offering;
use crate::contract::{
    ACCEPT_PATH, CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH, OWN_AUTHORITIES_CAPABILITY, TRUST_BUNDLE_PATH,
    TUNNEL_DIAL_BACK_PATH, TUNNEL_DIRECT_PATH,
};
use crate::identity::certificate::CertificateFacts;
use crate::machine::membership::{Membership, Operator, Parent, StoredInvitation};
use crate::process::entropy;
use crate::reach::dial::AGENT;
use crate::tunnel::Tunnel;
use crate::tunnel::http::{self as tunnel_http, HttpLimits, HttpOverTunnelError};

/// The version that heartbeats tell as `platform_version`.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Room for a request's body, in bytes: an accept is below 2 KiB, so the buffer that holds the token
/// is not moved while it is filled.
const BODY_CAPACITY_BYTES: usize = 16 * 1024;

/// What went wrong with one exchange.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// No answer came.
    #[error("no answer from the parent")]
    Lost(#[source] HttpOverTunnelError),
    /// An answer came that is not the contract's.
    #[error(transparent)]
    Unusable(#[from] UnusableAnswer),
    /// Another place is asked to be asked.
    #[error(transparent)]
    Redirected(#[from] RedirectRefused),
    /// The request could not be made.
    #[error("the request could not be made: {0}")]
    Request(&'static str),
}

/// Sends accept. The body is a pure function of what is stored: a retry is the same request.
pub async fn accept(
    tunnel: &Tunnel,
    invitation: &StoredInvitation,
    csr_pem: &str,
) -> Result<ContractAnswer<AcceptResponse>, ExchangeError> {
    let token = invitation
        .token
        .expose_text()
        .ok_or(ExchangeError::Request("the stored token is not text"))?;
    let own = invitation.own_authority.as_ref();
    // A function of what is stored, as all of it.
    let caller = own
        .and_then(|own| CertificateFacts::of_pem(&own.certificate_pem).ok())
        .map(|facts| format!("parent-for:{}", facts.serial_hex));
    let body = AcceptRequest {
        acceptance_token: token,
        contract_version: invitation.contract_version.number(),
        extension_slugs: &[],
        capabilities: &Value::Object(capabilities(&invitation.operator)),
        endpoints: &[],
        csr_pem: own.is_none().then_some(csr_pem),
        peer_ca_bundle_pem: own.map(|own| own.certificate_pem.as_str()),
        caller_inbound_subject: caller.as_deref(),
    };
    post(tunnel, &invitation.parent, ACCEPT_PATH, &body).await
}

/// Sends a heartbeat with what is true now.
pub async fn heartbeat(
    tunnel: &Tunnel,
    parent: &Parent,
    request: &HeartbeatRequest,
) -> Result<ContractAnswer<HeartbeatResponse>, ExchangeError> {
    post(tunnel, parent, HEARTBEAT_PATH, request).await
}

/// Asks for a certificate for a new key.
pub async fn refresh(
    tunnel: &Tunnel,
    parent: &Parent,
    csr_pem: &str,
) -> Result<ContractAnswer<FederationCertificate>, ExchangeError> {
    post(
        tunnel,
        parent,
        CERTIFICATE_REFRESH_PATH,
        &json!({ "csr_pem": csr_pem }),
    )
    .await
}

/// Asks the bridge to dial an endpoint of this satellite's.
pub async fn dial_back(
    tunnel: &Tunnel,
    parent: &Parent,
    request: &DialBackRequest,
) -> Result<ContractAnswer<DialBackAnswer>, ExchangeError> {
    post(tunnel, parent, TUNNEL_DIAL_BACK_PATH, request).await
}

/// Asks for the authorities that the parent is known by.
pub async fn trust_bundle(
    tunnel: &Tunnel,
    parent: &Parent,
) -> Result<ContractAnswer<TrustBundle>, ExchangeError> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(TRUST_BUNDLE_PATH)
        .header(HOST, parent.url.host().to_string())
        .header(USER_AGENT, AGENT)
        .body(Full::new(Bytes::new()))
        .map_err(|_| ExchangeError::Request("the path is not a path"))?;
    Ok(answer_of(&exchange(tunnel, parent, request).await?)?)
}

/// Asks the bridge to dial an endpoint of this satellite's for a tunnel.
pub async fn direct(
    tunnel: &Tunnel,
    parent: &Parent,
    request: &DirectRequest,
) -> Result<ContractAnswer<DialBackAnswer>, ExchangeError> {
    post(tunnel, parent, TUNNEL_DIRECT_PATH, request).await
}

/// The heartbeat's body (contract section 5).
pub fn heartbeat_request(
    membership: &Membership,
    services: &[Offering],
    endpoints: Vec<Endpoint>,
    own_authorities: &[String],
) -> HeartbeatRequest {
    let mut capabilities = capabilities(&membership.operator);
    let declared: Vec<_> = services.iter().map(Offering::capability).collect();
    capabilities.insert("services".to_owned(), json!(declared));
    if !own_authorities.is_empty() {
        capabilities.insert(OWN_AUTHORITIES_CAPABILITY.to_owned(), json!(own_authorities));
    }
    HeartbeatRequest {
        capabilities,
        endpoints,
        sync_cursor: Map::new(),
        extension_slugs: Vec::new(),
        platform_version: Some(RELEASE.to_owned()),
        data_residency: membership.operator.data_residency.clone(),
    }
}

/// The last one of a satellite that leaves: nothing is offered any more, and the parent's row says why. An empty list of
/// endpoints would change nothing there, so they stay.
pub fn farewell_request(membership: &Membership, reason: &str, at: UnixTime) -> HeartbeatRequest {
    let mut request = heartbeat_request(membership, &[], Vec::new(), &[]);
    request.capabilities.remove("tunnel");
    request.capabilities.insert(
        "left".to_owned(),
        json!({ "at": at.to_string(), "reason": reason }),
    );
    request
}

/// Only what is true of this build (social contract 3), and who runs the box (social contract 1).
fn capabilities(operator: &Operator) -> Map<String, Value> {
    let mut capabilities = Map::new();
    capabilities.insert(
        "disclosure".to_owned(),
        json!(operator.disclosure(&format!("v{RELEASE}"))),
    );
    capabilities.insert("tunnel".to_owned(), json!({ "protocol": "powernode-bridge/1" }));
    capabilities
}

/// Posts to the parent.
pub(super) async fn post<T: DeserializeOwned>(
    tunnel: &Tunnel,
    parent: &Parent,
    path: &str,
    body: &impl Serialize,
) -> Result<ContractAnswer<T>, ExchangeError> {
    let request = post_request(&parent.url.host().to_string(), path, body)?;
    Ok(answer_of(&exchange(tunnel, parent, request).await?)?)
}

/// Asks, and follows redirects on the parent's own host.
async fn exchange(
    tunnel: &Tunnel,
    parent: &Parent,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, ExchangeError> {
    let mut redirects = 0;
    loop {
        let trace = TraceId(entropy::seed());
        let response = tunnel_http::request(tunnel, trace, request.clone(), HttpLimits::default())
            .await
            .map_err(ExchangeError::Lost)?;
        match redirect_of(parent.url.host(), &response) {
            None => return Ok(response),
            Some(Ok(next)) if redirects < REDIRECTS_MAX => *request.uri_mut() = next,
            Some(next) => return Err(next.err().unwrap_or(RedirectRefused::TooMany).into()),
        }
        redirects += 1;
    }
}

/// Where an answer of this host leads, if it is a redirect.
pub(super) fn redirect_of(
    host: &HostPort,
    response: &Response<Bytes>,
) -> Option<Result<Uri, RedirectRefused>> {
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let path = redirect::read(host, response.status().as_u16(), location)?;
    Some(path.and_then(|path| path.parse().map_err(|_| RedirectRefused::NoTarget)))
}

/// The request for it, on whatever way it goes.
pub(super) fn post_request(
    host: &str,
    path: &str,
    body: &impl Serialize,
) -> Result<Request<Full<Bytes>>, ExchangeError> {
    // The body may hold a token: one buffer from the start, wiped when the request is done with it.
    let mut json = Zeroizing::new(Vec::with_capacity(BODY_CAPACITY_BYTES));
    serde_json::to_writer(&mut *json, body).map_err(|_| ExchangeError::Request("its body is not JSON"))?;
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .body(Full::new(Bytes::from_owner(json)))
        .map_err(|_| ExchangeError::Request("the path is not a path"))
}

/// What a whole answer says, and when to come back.
pub(super) fn answer_of<T: DeserializeOwned>(
    response: &Response<Bytes>,
) -> Result<ContractAnswer<T>, UnusableAnswer> {
    let retry_after = retry_after(response);
    let mut answer = read_answer(response.status().as_u16(), response.body())?;
    if let ContractAnswer::Failure(ContractFailure {
        retry_after: told, ..
    }) = &mut answer
    {
        *told = retry_after;
    }
    Ok(answer)
}

/// `Retry-After` in seconds; the date form is not used by parents.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}
