//! What the audit log keeps of requests to the platform. A heartbeat is a sign of life, and the log would hold little
//! else. Who has no certificate is nobody and could fill the log, unless the platform has taken the token that was shown;
//! who that was, its answer says.

use std::net::SocketAddr;

use http::StatusCode;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::overheard::Overheard;
use super::target::Target;
use super::{ForwardedIdentity, PlatformParent};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::{InstanceId, PeerId};
use crate::base::limit::foreign_text;
use crate::bridge::federation_api::{Caller, CallerCertificate, noted_request, of_peer, outcome_of};
use crate::bridge::parent::Answered;
use crate::contract::NODE_REFRESH_PATH;
use crate::contract::message::{ContractAnswer, read_answer};
use crate::identity::certificate::peer_subject;

#[derive(Deserialize)]
struct AcceptedPeer {
    peer_id: PeerId,
}

#[derive(Deserialize)]
struct EnrolledNode {
    instance_id: InstanceId,
}

impl PlatformParent {
    /// Notes a request and what became of it.
    pub(super) fn note(&self, path: &str, target: Target, caller: &Caller, answered: Answered) -> Answered {
        let status = answered.response.status();
        match (&caller.certificate, target) {
            (_, Target::Heartbeat) => answered,
            (Some(certificate), _) => {
                self.audit
                    .record(&of_certificate(certificate, (path, target), caller, status));
                answered
            }
            (None, Target::Accept) if status.is_success() => {
                let event = of_stranger(AuditAction::Joined, path, caller);
                self.note_when_heard(answered, event, |event, accepted: AcceptedPeer| {
                    event.federation_peer_id = Some(accepted.peer_id);
                    event.remote_subject = Some(peer_subject(accepted.peer_id));
                })
            }
            (None, Target::NodeEnroll) if status.is_success() => {
                let event = of_stranger(AuditAction::NodeEnrolled, path, caller);
                self.note_when_heard(answered, event, |event, enrolled: EnrolledNode| {
                    event.actor = Some(format!("node {}", enrolled.instance_id));
                })
            }
            (None, _) => answered,
        }
    }

    /// Notes it when the answer has passed, with what that says.
    fn note_when_heard<T: DeserializeOwned + 'static>(
        &self,
        answered: Answered,
        mut event: AuditEvent,
        fill: fn(&mut AuditEvent, T),
    ) -> Answered {
        let (audit, status) = (self.audit.clone(), answered.response.status().as_u16());
        let heard = move |heard: &[u8]| {
            if let Ok(ContractAnswer::Data(said)) = read_answer::<T>(status, heard) {
                fill(&mut event, said);
            }
            audit.record(&event);
        };
        Answered {
            response: answered
                .response
                .map(|body| Overheard::new(body, heard).boxed_unsync()),
            ..answered
        }
    }
}

fn of_certificate(
    certificate: &CallerCertificate,
    (path, target): (&str, Target),
    caller: &Caller,
    status: StatusCode,
) -> AuditEvent {
    match (certificate.peer, target) {
        (Some(peer), Target::NodeEnroll) => AuditEvent {
            object: Some(foreign_text(path)),
            outcome: outcome_of(status),
            ..of_peer(AuditAction::NodeEnrolled, peer, caller.source)
        },
        (Some(peer), _) => noted_request(path, peer, caller.source, status),
        (None, _) => AuditEvent {
            actor: ForwardedIdentity::of(&certificate.der).map(|identity| identity.actor()),
            outcome: outcome_of(status),
            ..of_stranger(
                match path.strip_suffix('/').unwrap_or(path) {
                    NODE_REFRESH_PATH => AuditAction::CertificateRenewed,
                    _ => AuditAction::Request,
                },
                path,
                caller,
            )
        },
    }
}

fn of_stranger(action: AuditAction, path: &str, caller: &Caller) -> AuditEvent {
    AuditEvent {
        object: Some(foreign_text(path)),
        source: Some(SocketAddr::new(caller.source, 0)),
        ..AuditEvent::of(action)
    }
}
