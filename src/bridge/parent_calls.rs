//! The parent's own programs as they reach satellites: a platform's client takes a peer's endpoint, appends
//! the path of the federation's interface, and shows a certificate and a grant. This end checks that it is
//! the parent that calls; the grant goes on to the satellite, which decides.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, request};
use http_body_util::Full;
use hyper::body::Body;
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::access::{called, why_offline};
use super::federation_api::internal_error;
use super::links::Links;
use super::material::{CallerTrust, credential_digest};
use super::operator_api::{PASSED_ON, PEER_PREFIX, copy_headers, passed_back};
use super::plain_path::is_plain;
use super::platform::{CALLING_INSTANCE, FORWARDED_FOR, ForwardedIdentity, SDWAN_NETWORK};
use super::registry::record::PeerRecord;
use super::registry::{Ledger, RegistryError};
use super::reply::{BodyError, Reply, ReplyBody};
use super::request_body::read_body;
use super::settings::BridgeSettings;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::{NetworkId, PeerId, TraceId};
use crate::base::limit::{HTTP_HEAD_MAX_BYTES, JSON_BODY_MAX_BYTES, foreign_text};
use crate::base::radix::BASE64;
use crate::contract::API_BASE;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateFacts;
use crate::identity::tls::is_client_of;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::store::audit_log::AuditLog;
use crate::tunnel::http::{HttpLimits, request_streaming};

/// Header with the shared credential: `Authorization` holds the grant.
const CREDENTIAL: HeaderName = HeaderName::from_static("x-powernode-credential");

/// Time from a call to the head of its answer. The satellite's own programs have ten seconds, and what is
/// sent along may take a while over its link.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// When to come back to a satellite without a tunnel: it dials again within about as long.
const OFFLINE_RETRY: Duration = Duration::from_secs(10);

/// What is asked of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCall {
    /// Id or name.
    peer: String,
    /// What the satellite is asked for.
    target: Uri,
    /// Whether the peer was named by its host name, where operators have no business.
    by_host: bool,
}

/// What a connection shows of who calls.
#[derive(Debug, Clone)]
pub struct CallerConnection {
    /// Where from.
    pub source: IpAddr,
    /// On which network the listener stands.
    pub network: Option<NetworkId>,
    /// The chain that the handshake has verified; empty without one.
    pub shown: Arc<[CertificateDer<'static>]>,
}

/// The parent's calls.
#[derive(Debug)]
pub struct ParentCalls {
    /// Whom this host-bridge knows.
    pub ledger: Arc<Ledger>,
    /// Their tunnels.
    pub links: Arc<Links>,
    /// For durations and certificates.
    pub clock: Clock,
    /// Who may.
    pub settings: watch::Receiver<BridgeSettings>,
    /// By what they are known.
    pub trust: watch::Receiver<Arc<CallerTrust>>,
    /// The authorities of the satellites' certificates, which issue callers' too where none else do.
    pub satellites: watch::Receiver<Arc<Anchors>>,
    /// Where each call is noted.
    pub audit: AuditLog,
}

impl ParentCalls {
    /// What a request asks of a peer, if it is about one.
    pub fn call_in<B>(&self, request: &Request<B>) -> Option<Result<PeerCall, Reply>> {
        let domain = self
            .settings
            .borrow()
            .config
            .callers
            .domain
            .as_ref()
            .map(ToString::to_string);
        PeerCall::of(request, domain.as_deref())
    }

    /// Who calls, if it is one of the parent's programs.
    pub fn recognise(&self, headers: &HeaderMap, connection: &CallerConnection) -> Option<String> {
        let trust = Arc::clone(&self.trust.borrow());
        if let Some(expected) = &trust.credential
            && let Some(shown) = headers.get(&CREDENTIAL).and_then(shown_credential)
            && bool::from(credential_digest(&shown).ct_eq(expected))
        {
            return Some("credential".to_owned());
        }
        let leaf = connection.shown.first()?;
        let name = CertificateFacts::of_der(leaf).ok()?.subject_cn?;
        let settings = self.settings.borrow();
        let mut subjects = settings.config.callers.subjects.iter();
        subjects.find(|subject| subject.as_str() == name)?;
        let now = self.clock.trusted().now;
        let issued = match &trust.authorities {
            Some(authorities) => is_client_of(&connection.shown, authorities, now),
            None => is_client_of(&connection.shown, &self.satellites.borrow(), now),
        };
        issued.then_some(name)
    }

    /// Why who calls is none of the parent's programs, where there may be some.
    pub fn why_unrecognised(&self, connection: &CallerConnection) -> Option<String> {
        let settings = self.settings.borrow();
        let callers = &settings.config.callers;
        if callers.subjects.is_empty() && callers.credential_file.is_none() {
            return None;
        }
        let Some(leaf) = connection.shown.first() else {
            return Some(
                "neither a client certificate nor a known X-Powernode-Credential was shown".to_owned(),
            );
        };
        let name = CertificateFacts::of_der(leaf)
            .ok()
            .and_then(|facts| facts.subject_cn)
            .unwrap_or_default();
        let named = callers.subjects.iter().any(|subject| subject.as_str() == name);
        let name = foreign_text(&name);
        Some(if named {
            format!("the client certificate of `{name}` is not of an authority of `callers.ca_file`")
        } else {
            format!("the client certificate's common name `{name}` is not one of `callers.subjects`")
        })
    }

    /// Carries a call of `who` to the peer's satellite and the answer back.
    pub async fn carry<B>(
        &self,
        request: Request<B>,
        call: PeerCall,
        who: &str,
        connection: &CallerConnection,
    ) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        match self.carried(request, call, who, connection).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        }
    }

    async fn carried<B>(
        &self,
        request: Request<B>,
        call: PeerCall,
        who: &str,
        connection: &CallerConnection,
    ) -> Result<Response<ReplyBody>, Reply>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let peer = self.find(call.peer).await?;
        let reachable = self.ledger.may_be_reached(&peer);
        let Some(tunnel) = self.links.get(peer.id).filter(|_| reachable) else {
            return Err(offline(&called(&peer), &why_offline(&peer)));
        };
        let trace = TraceId(u64::from_be_bytes(entropy::bytes()));
        let (head, body) = request.into_parts();
        // No satellite takes more, and it would come over its link in vain.
        let body = Full::new(read_body(body).await?);
        info!(who, peer = %peer.id, method = %head.method, path = call.target.path(), %trace, "a call of the parent's goes to a peer");
        // Also where the caller does not wait for the answer.
        let mut noted = self.audit.begin(AuditEvent {
            federation_peer_id: Some(peer.id),
            actor: Some(format!("parent: {}", foreign_text(who))),
            object: Some(format!("{} {}", head.method, call.target.path())),
            source: Some((connection.source, 0).into()),
            trace: Some(trace),
            ..AuditEvent::of(AuditAction::Request)
        });
        let began = self.clock.now();
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = call.target;
        fill_headers(&head, connection, request.headers_mut());
        let limits = HttpLimits {
            head_bytes: HTTP_HEAD_MAX_BYTES,
            body_bytes: JSON_BODY_MAX_BYTES,
            timeout: ANSWER_TIMEOUT,
        };
        let answer = request_streaming(&tunnel, trace, request, limits).await;
        noted.duration = self.clock.now().since(began);
        if let Err(error) = &answer {
            warn!(peer = %peer.id, %trace, %error, "a call of the parent's failed");
        }
        passed_back(&peer, answer, &mut noted)
    }

    async fn find(&self, asked: String) -> Result<PeerRecord, Reply> {
        let (ledger, beside) = (Arc::clone(&self.ledger), self.ledger.roll().is_some());
        // The ledger blocks on the disk.
        let found = tokio::task::spawn_blocking(move || ledger.peer(&asked).map_err(|error| (asked, error)));
        match found.await {
            Ok(Ok(peer)) => Ok(peer),
            // Beside a platform every peer may exist there.
            Ok(Err((asked, RegistryError::UnknownPeer { .. })))
                if beside && asked.parse::<PeerId>().is_ok() =>
            {
                Err(offline(
                    &foreign_text(&asked),
                    "it has not dialled since this host-bridge started",
                ))
            }
            Ok(Err((_, error @ RegistryError::UnknownPeer { .. }))) => {
                debug!(%error, "the parent asks for a peer that is not known");
                Err(Reply::failure(StatusCode::NOT_FOUND, "there is no such peer"))
            }
            Ok(Err(_)) | Err(_) => Err(internal_error()),
        }
    }
}

impl PeerCall {
    /// `/peers/<peer>/…`, or any path of the host `<peer>.<domain>`.
    fn of<B>(request: &Request<B>, domain: Option<&str>) -> Option<Result<Self, Reply>> {
        let uri = request.uri();
        let whole = uri.path_and_query()?.as_str();
        if let Some(peer) = domain.and_then(|domain| peer_in_host(request, domain)) {
            return Some(Self::read(peer, whole, true));
        }
        let rest = whole.strip_prefix(PEER_PREFIX)?;
        let (peer, rest) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        Some(Self::read(peer.to_owned(), rest, false))
    }

    fn read(peer: String, rest: &str, by_host: bool) -> Result<Self, Reply> {
        let allowed = format!("{API_BASE}/federation_api/");
        let target = rest.parse::<PathAndQuery>().ok();
        match target.filter(|target| target.path().starts_with(&allowed) && is_plain(target.path())) {
            Some(target) if !peer.is_empty() => Ok(Self {
                peer,
                target: target.into(),
                by_host,
            }),
            _ => Err(Reply::failure(
                StatusCode::NOT_FOUND,
                &format!("a peer is asked for {allowed}…, nothing else is passed on"),
            )),
        }
    }

    /// Whether the peer was named by its host name.
    pub const fn is_by_host(&self) -> bool {
        self.by_host
    }
}

fn peer_in_host<B>(request: &Request<B>, domain: &str) -> Option<String> {
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST)?.to_str().ok()?,
    };
    let host = host
        .rsplit_once(':')
        .map_or(host, |(name, _)| name)
        .to_ascii_lowercase();
    let peer = host
        .trim_end_matches('.')
        .strip_suffix(domain)?
        .strip_suffix('.')?;
    (!peer.is_empty() && !peer.contains('.')).then(|| peer.to_owned())
}

/// `Bearer <credential>`, or `Basic` with the credential as the password.
fn shown_credential(value: &HeaderValue) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = value.to_str().ok()?.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Zeroizing::new(rest.as_bytes().to_vec()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = Zeroizing::new(BASE64.decode(rest.as_bytes()).ok()?);
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Zeroizing::new(pair.get(colon + 1..)?.to_vec()))
}

/// What goes along: the content's headers and the grant; and from where and through what it is asked, as this
/// end knows it.
fn fill_headers(head: &request::Parts, connection: &CallerConnection, to: &mut HeaderMap) {
    copy_headers(&head.headers, to, PASSED_ON);
    copy_headers(
        &head.headers,
        to,
        &[header::AUTHORIZATION, header::CONTENT_LENGTH],
    );
    if let Ok(source) = HeaderValue::try_from(connection.source.to_canonical().to_string()) {
        to.insert(FORWARDED_FOR, source);
    }
    let identity = connection
        .shown
        .first()
        .and_then(|leaf| ForwardedIdentity::of(leaf));
    if let Some(instance) = identity.as_ref().and_then(ForwardedIdentity::instance) {
        to.insert(CALLING_INSTANCE, instance.clone());
    }
    if let Some(network) = connection.network
        && let Ok(network) = HeaderValue::try_from(network.to_string())
    {
        to.insert(SDWAN_NETWORK, network);
    }
}

fn offline(peer: &str, why: &str) -> Reply {
    Reply::failure(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!("{peer} is not connected: {why}"),
    )
    .retry_after(OFFLINE_RETRY)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CATALOG: &str = "/api/v1/system/federation_api/service_catalog?a=b";

    fn call(uri: &str, host: &str) -> Option<Result<(String, String, bool), u16>> {
        let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
        let called = PeerCall::of(&request, Some("sat.example.com"))?;
        Some(match called {
            Ok(call) => Ok((call.peer, call.target.to_string(), call.by_host)),
            Err(refusal) => Err(refusal.status().as_u16()),
        })
    }

    #[test]
    fn a_peer_has_a_path_and_a_host_name() {
        let by_path = Some(Ok(("shop-17".to_owned(), CATALOG.to_owned(), false)));
        assert_eq!(
            call(&format!("/peers/shop-17{CATALOG}"), "bridge.example.com"),
            by_path
        );
        let by_host = Some(Ok(("abc".to_owned(), CATALOG.to_owned(), true)));
        for host in [
            "abc.sat.example.com",
            "ABC.Sat.Example.com:8443",
            "abc.sat.example.com.",
        ] {
            assert_eq!(call(CATALOG, host), by_host, "{host}");
        }
        for host in [
            "sat.example.com",
            ".sat.example.com",
            "a.b.sat.example.com",
            "abcsat.example.com",
            "other",
        ] {
            assert_eq!(call(CATALOG, host), None, "{host}");
        }
    }

    #[test]
    fn nothing_but_the_federations_interface_is_asked_for() {
        for path in [
            "",
            "/",
            "/api/v1/system/sdwan/federation_peers",
            "/api/v1/system/federation_api/../sdwan",
            "/api/v1/system/federation_api/%2e%2e/sdwan",
            "/api/v1/system/federation_api/a%2fb",
            "/api/v1/system/federation_api//a",
        ] {
            assert_eq!(
                call(&format!("/peers/shop-17{path}"), "bridge"),
                Some(Err(404)),
                "{path}"
            );
        }
        assert_eq!(call("/", "abc.sat.example.com"), Some(Err(404)));
        assert_eq!(call(&format!("/peers/{CATALOG}"), "bridge"), Some(Err(404)));
    }

    #[test]
    fn the_credential_comes_as_bearer_or_as_password() {
        let shown = |text: &str| {
            let value = HeaderValue::try_from(text).unwrap();
            shown_credential(&value).map(|shown| String::from_utf8(shown.to_vec()).unwrap())
        };
        assert_eq!(shown("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(shown("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(
            shown(&format!("Basic {}", BASE64.encode(b"platform:a:c"))).as_deref(),
            Some("a:c")
        );
        for none in ["abc", "Basic !", "Digest abc", "Basic YWJj"] {
            assert_eq!(shown(none), None, "{none}");
        }
    }

    #[test]
    fn the_grant_goes_along_and_claims_stay_here() {
        let mut request = Request::builder();
        for (name, value) in [
            ("authorization", "Bearer fgs.x"),
            ("content-type", "application/json"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-powernode-credential", "Bearer secret"),
            ("x-powernode-subject", "anna"),
            ("x-calling-instance", "x"),
            ("x-sdwan-network", "x"),
            ("cookie", "secret"),
        ] {
            request = request.header(name, value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let connection = CallerConnection {
            source: "::ffff:192.0.2.1".parse().unwrap(),
            network: None,
            shown: Arc::default(),
        };
        let mut to = HeaderMap::new();
        fill_headers(&head, &connection, &mut to);
        let mut names: Vec<_> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "x-forwarded-for"]);
        assert_eq!(to["x-forwarded-for"], "192.0.2.1");
    }
}
