//! The tasks behind the machine's requests: each carries out one exchange with the parent, checks
//! what came back, and reports one outcome. Also the checks that need keys and certificates.

use crate::base::limit::error_chain;
use crate::base::secret::Secret;
use crate::base::time::{TrustedTime, UnixTime};
use crate::contract::delivery::{TrustExchange, shown_warnings};
use crate::contract::invitation::{CaFingerprint, ParentTrust};
use crate::contract::message::{ContractAnswer, ContractFailure, FederationCertificate, HeartbeatRequest};
use crate::identity::anchors::Anchors;
use crate::identity::certificate::{CertificateChain, CertificateFacts, peer_subject};
use crate::identity::issued::{ExpectedCertificate, IssuerTrust, verify_issued};
use crate::identity::key::PrivateKey;
use crate::identity::own_authority::{OwnAuthority, OwnAuthorityError};
use crate::machine::child::ChildEvent;
use crate::machine::join::JoinEvent;
use crate::machine::membership::{
    AcceptedAnswer, KeptAuthority, KeyMaterial, Membership, Parent, StoredIdentity, StoredInvitation,
};
use crate::process::entropy;
use crate::tunnel::Tunnel;
use crate::tunnel::http::HttpOverTunnelError;

use super::driver::{News, Reporter};
use super::parent_client::{self, ExchangeError};

/// The name of a box's own authority; nobody is known by it.
const OWN_AUTHORITY_NAME: &str = "powernode-satellite";

/// Who answers over a tunnel, in messages.
const PARENT: &str = "the parent";

/// A key, or the one that is kept, with its request.
pub(super) fn key_and_request(
    common_name: &str,
    kept: Option<Secret>,
) -> Result<KeyMaterial, Box<dyn std::error::Error + Send + Sync>> {
    let key = match kept.map(PrivateKey::from_pkcs8) {
        Some(Ok(key)) => key,
        Some(Err(error)) => {
            tracing::warn!(%error, "the key of before cannot be used; a new one is made");
            PrivateKey::generate()?
        }
        None => PrivateKey::generate()?,
    };
    Ok(KeyMaterial {
        csr_pem: key.csr_pem(common_name)?,
        pkcs8: key.expose_pkcs8().clone(),
    })
}

/// Sends accept and reports what became of it.
pub(super) async fn accept(
    tunnel: Tunnel,
    reporter: Reporter,
    invitation: StoredInvitation,
    csr_pem: String,
) {
    let news = match parent_client::accept(&tunnel, &invitation, &csr_pem).await {
        Ok(ContractAnswer::Data(response)) => {
            for warning in shown_warnings(response.warnings.iter().chain(&response.delivery.unusable)) {
                tracing::warn!(%warning, "the parent accepted this satellite with a warning");
            }
            News::Event(ChildEvent::Join(JoinEvent::Answered(Box::new(response))))
        }
        Ok(ContractAnswer::Failure(failure)) => {
            let why = failure_text(PARENT, "accept", &failure);
            News::Failed(ChildEvent::Join(JoinEvent::Failed(failure)), why)
        }
        Err(error @ ExchangeError::Lost(HttpOverTunnelError::Open(_) | HttpOverTunnelError::Refused(_))) => {
            News::Failed(ChildEvent::Join(JoinEvent::NotSent), error_chain(&error))
        }
        Err(
            error @ ExchangeError::Lost(
                HttpOverTunnelError::TimedOut { .. }
                | HttpOverTunnelError::Exchange(_)
                | HttpOverTunnelError::Body(_),
            ),
        ) => News::Failed(ChildEvent::Join(JoinEvent::AnswerLost), error_chain(&error)),
        Err(error) => {
            let why = error_chain(&error);
            News::Failed(ChildEvent::Join(JoinEvent::Unusable(why.clone())), why)
        }
    };
    reporter.send(news).await;
}

/// Sends a heartbeat and reports what became of it.
pub(super) async fn heartbeat(tunnel: Tunnel, reporter: Reporter, parent: Parent, request: HeartbeatRequest) {
    let news = match parent_client::heartbeat(&tunnel, &parent, &request).await {
        Ok(ContractAnswer::Data(response)) => News::Acknowledged(Box::new(response)),
        Ok(ContractAnswer::Failure(failure)) => {
            let event = match failure.http_status {
                401 | 403 => ChildEvent::HeartbeatRefused,
                _ => ChildEvent::HeartbeatFailed(failure.retry_after),
            };
            News::Failed(event, failure_text(PARENT, "heartbeat", &failure))
        }
        Err(error) => News::Failed(ChildEvent::HeartbeatFailed(None), error_chain(&error)),
    };
    reporter.send(news).await;
}

/// Asks for a renewed certificate, checks it and reports.
pub(super) async fn refresh(
    tunnel: Tunnel,
    reporter: Reporter,
    membership: Membership,
    key: KeyMaterial,
    time: TrustedTime,
) {
    let news = match parent_client::refresh(&tunnel, &membership.parent, &key.csr_pem).await {
        Ok(ContractAnswer::Data(certificate)) => {
            match verify_refresh(&membership, &certificate, &key, time) {
                Ok(identity) => News::Event(ChildEvent::RefreshIssued(identity)),
                Err(why) => News::Failed(ChildEvent::RefreshFailed, why),
            }
        }
        Ok(ContractAnswer::Failure(failure)) => {
            let event = match failure.http_status {
                401 | 403 => ChildEvent::RefreshRefused,
                _ => ChildEvent::RefreshFailed,
            };
            News::Failed(event, failure_text(PARENT, "certificate renewal", &failure))
        }
        Err(error) => News::Failed(ChildEvent::RefreshFailed, error_chain(&error)),
    };
    reporter.send(news).await;
}

/// Asks for the parent's trust bundle. A parent that serves none is asked again another day.
pub(super) async fn trust_bundle(tunnel: Tunnel, reporter: Reporter, parent: Parent) {
    match parent_client::trust_bundle(&tunnel, &parent).await {
        Ok(ContractAnswer::Data(bundle)) => reporter.send(News::Bundle(Box::new(bundle))).await,
        Ok(ContractAnswer::Failure(failure)) => {
            tracing::debug!(reason = %failure_text(PARENT, "trust bundle", &failure), "no trust bundle");
        }
        Err(error) => tracing::debug!(reason = %error_chain(&error), "no trust bundle"),
    }
}

/// A new authority for a box among equals.
pub(super) fn make_own_authority(now: UnixTime) -> Result<KeptAuthority, OwnAuthorityError> {
    let authority = OwnAuthority::create(OWN_AUTHORITY_NAME, now, entropy::bytes())?;
    Ok(KeptAuthority {
        pkcs8: authority.expose_key().clone(),
        certificate_pem: authority.certificate_pem(),
    })
}

/// Whether an authority can still issue.
pub(super) fn is_good(own: &KeptAuthority, now: UnixTime) -> bool {
    CertificateFacts::of_pem(&own.certificate_pem).is_ok_and(|facts| now < facts.not_after)
}

/// The next authority, and the word of the present one for it.
pub(super) fn make_next_authority(
    own: &KeptAuthority,
    now: UnixTime,
) -> Result<(KeptAuthority, String), OwnAuthorityError> {
    let authority = OwnAuthority::restore(own.pkcs8.clone(), &own.certificate_pem)?;
    let succession = authority.succeed(now, [entropy::bytes(), entropy::bytes()])?;
    let next = KeptAuthority {
        pkcs8: succession.next.expose_key().clone(),
        certificate_pem: succession.next.certificate_pem(),
    };
    Ok((next, succession.cross_pem()))
}

/// A certificate of the box's own authority for its key, under the name that the other side has assigned, and
/// with that side's authorities to know it by. `word` is an older authority's for this one, for whoever knows that alone.
pub(super) fn issue_own(
    (own, word): (&KeptAuthority, Option<&str>),
    exchange: &TrustExchange,
    anchors: &Anchors,
    key: &KeyMaterial,
    now: UnixTime,
) -> Result<StoredIdentity, String> {
    let issued = || {
        let authority = OwnAuthority::restore(own.pkcs8.clone(), &own.certificate_pem)?;
        let private = PrivateKey::from_pkcs8(key.pkcs8.clone())?;
        authority.issue(
            &exchange.assigned_inbound_subject,
            &private,
            now,
            entropy::bytes(),
        )
    };
    let mut chain = issued().map_err(|error| error_chain(&error))?;
    if let Some(word) = word {
        let word = CertificateChain::from_pem(word).map_err(|error| error_chain(&error))?;
        chain = chain.with_issuers(vec![word.leaf().clone()]);
    }
    let facts = chain.facts();
    Ok(StoredIdentity {
        pkcs8: key.pkcs8.clone(),
        not_before: facts.not_before,
        certificate: FederationCertificate {
            cert_pem: chain.to_pem(),
            ca_chain_pem: anchors.to_pem(),
            serial: facts.serial_hex.clone(),
            not_after: facts.not_after,
        },
    })
}

/// Renews the certificate of a box that certifies itself.
pub(super) fn renew_own(
    membership: &Membership,
    own: (&KeptAuthority, Option<&str>),
    key: &KeyMaterial,
    now: UnixTime,
) -> Result<StoredIdentity, String> {
    let exchange = membership.delivered.trust_exchange.as_ref();
    let exchange = exchange.ok_or("the name that the parent has assigned is not stored; join again")?;
    let known =
        Anchors::from_pem(&membership.identity.certificate.ca_chain_pem).map_err(|e| error_chain(&e))?;
    issue_own(own, exchange, &known, key, now)
}

/// The other side's authorities, as far as the way to it vouches for them: the pinned one alone, or all that a
/// verified connection has delivered.
fn exchanged_anchors(parent: &Parent, bundle_pem: &str) -> Result<Anchors, String> {
    let bundle = Anchors::from_pem(bundle_pem).map_err(|error| error_chain(&error))?;
    let ParentTrust::Pinned(pin) = &parent.trust else {
        return Ok(bundle);
    };
    let pinned = bundle
        .certificates()
        .iter()
        .find(|der| CaFingerprint::of_der(der) == *pin);
    let pinned =
        pinned.ok_or_else(|| format!("the authorities that the parent sent lack the expected CA {pin}"))?;
    Anchors::from_der(vec![pinned.clone()]).map_err(|error| error_chain(&error))
}

/// Checks the certificate of an accept, or issues it where the parent has left that to this box.
pub(super) fn verify_accept(
    parent: &Parent,
    answer: &AcceptedAnswer,
    key: &KeyMaterial,
    own: Option<&KeptAuthority>,
    time: TrustedTime,
) -> JoinEvent {
    let subject_cn = peer_subject(answer.peer_id);
    let outcome = match (own, &answer.delivered.trust_exchange) {
        (Some(own), Some(exchange)) if answer.certifies_itself() => {
            exchanged_anchors(parent, &answer.certificate.ca_chain_pem)
                .and_then(|anchors| issue_own((own, None), exchange, &anchors, key, time.now))
        }
        _ => verify(
            &answer.certificate,
            &subject_cn,
            key,
            IssuerTrust::from(&parent.trust),
            time,
        ),
    };
    match outcome {
        Ok(StoredIdentity {
            certificate,
            not_before,
            ..
        }) => JoinEvent::CertificateVerified {
            not_before,
            certificate,
        },
        Err(why) => JoinEvent::CertificateRejected(why),
    }
}

fn verify_refresh(
    membership: &Membership,
    certificate: &FederationCertificate,
    key: &KeyMaterial,
    time: TrustedTime,
) -> Result<StoredIdentity, String> {
    let known =
        Anchors::from_pem(&membership.identity.certificate.ca_chain_pem).map_err(|e| error_chain(&e))?;
    verify(
        certificate,
        &peer_subject(membership.peer_id),
        key,
        IssuerTrust::Known(&known),
        time,
    )
}

/// Checks a certificate that was issued for a key, whoever issued it.
pub(super) fn verify(
    certificate: &FederationCertificate,
    subject_cn: &str,
    key: &KeyMaterial,
    trust: IssuerTrust<'_>,
    time: TrustedTime,
) -> Result<StoredIdentity, String> {
    let private = PrivateKey::from_pkcs8(key.pkcs8.clone()).map_err(|error| error_chain(&error))?;
    let expected = ExpectedCertificate {
        subject_cn,
        key: private.public_key_digest(),
        trust,
        now: time_for(certificate, time),
    };
    let verified = verify_issued(&certificate.cert_pem, &certificate.ca_chain_pem, &expected)
        .map_err(|error| error_chain(&error))?;
    let facts = verified.chain.facts();
    Ok(StoredIdentity {
        pkcs8: key.pkcs8.clone(),
        not_before: facts.not_before,
        certificate: FederationCertificate {
            cert_pem: verified.chain.to_pem(),
            ca_chain_pem: verified.anchors.to_pem(),
            serial: facts.serial_hex.clone(),
            not_after: facts.not_after,
        },
    })
}

/// As in a handshake: while the clock is in doubt, the begin of a certificate proves no less about
/// the time than the clock does; its end is checked as ever.
fn time_for(certificate: &FederationCertificate, time: TrustedTime) -> UnixTime {
    match (time.doubt, CertificateFacts::of_pem(&certificate.cert_pem)) {
        (Some(_), Ok(facts)) => time.now.max(facts.not_before),
        _ => time.now,
    }
}

pub(super) fn failure_text(who: &str, what: &str, failure: &ContractFailure) -> String {
    if failure.error.is_empty() {
        format!("{who} answered the {what} with HTTP {}", failure.http_status)
    } else {
        format!(
            "{who} answered the {what} with HTTP {}: {}",
            failure.http_status, failure.error
        )
    }
}
