//! `subscriptions`: somebody of the parent's side takes a grant to one published service, under the
//! grant that they hold, and gives it back.

use bytes::Bytes;
use http::StatusCode;
use hyper::body::Body;
use serde::Deserialize;
use serde_json::json;

use super::refusal::Refusal;
use super::{Answered, Call, FederationApi, reading};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::GrantId;
use crate::base::limit::foreign_text;
use crate::grant::{
    Denial, GrantRequest, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant, Permit, SERVICE_KIND,
    ServiceAccess,
};
use crate::satellite::grants::{Handover, Issue};

/// Longest local host name that is taken, in characters: that of the DNS.
const HOSTNAME_MAX_CHARS: usize = 253;

const SECONDS_A_DAY: i64 = 86_400;

/// Why a subscription ends when its holder gives it back.
const GIVEN_BACK: &str = "given back by the other side";

#[derive(Deserialize)]
struct Subscribe {
    #[serde(default)]
    slug: String,
    #[serde(default)]
    local_hostname: String,
    #[serde(default)]
    ttl_days: Option<i64>,
}

impl FederationApi {
    pub(super) async fn subscribe<B>(&self, call: &Call<'_>, body: B) -> Result<Answered, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if call.authorization().is_none() {
            return Err(Denial::TokenMissing.into());
        }
        let asked: Subscribe = reading::fields(body).await?;
        let (slug, hostname) = (asked.slug.trim(), asked.local_hostname.trim());
        if slug.is_empty() || hostname.is_empty() {
            return Err(Refusal::BadRequest(
                "slug and local_hostname are required".to_owned(),
            ));
        }
        if hostname.chars().nth(HOSTNAME_MAX_CHARS).is_some() {
            return Err(Refusal::BadRequest("local_hostname is no host name".to_owned()));
        }
        let permit = self.permit_service(call, slug)?;
        let offered = self.surroundings.catalog.offered(slug).ok_or_else(|| {
            Refusal::NotFound(format!("service `{}` is not published here", foreign_text(slug)))
        })?;
        if !offered.accepting {
            return Err(Refusal::Conflict(format!(
                "service `{}` takes no subscribers now",
                offered.slug
            )));
        }
        let subject = call
            .caller
            .subject
            .as_deref()
            .unwrap_or_else(|| permit.remote_subject());
        let request = GrantRequest {
            resource_id: Some(offered.slug.clone()),
            ttl_seconds: asked.ttl_days.map(|days| days.saturating_mul(SECONDS_A_DAY)),
            ..GrantRequest::new(call.caller.peer, subject, SERVICE_KIND, &["read", "write"])
        };
        let origin = self.surroundings.grants.get(permit.grant());
        let origin = origin.ok_or(Denial::UnknownGrant {
            grant: permit.grant(),
        })?;
        let new = NewGrant::check(request)
            .map_err(|error| Refusal::Unprocessable(crate::base::limit::error_chain(&error)))?
            .within(&origin.grant);
        let issued = self
            .surroundings
            .grants
            .issue(Issue {
                new,
                handover: Handover::Due,
                reuse: true,
                derived_from: Some(permit.grant()),
            })
            .await?;
        if !issued.reused {
            self.note_grant(AuditAction::GrantIssued, issued.grant.id, call, &permit);
        }
        let expires_at = issued.grant.expires_at;
        let data = json!({
            "grant_id": issued.grant.id,
            // Through the tunnel a service is reached by its name; the box's own address is not told.
            "backend_host": hostname,
            "backend_port": null,
            "protocol": offered.protocol,
            "expires_at": expires_at.to_string(),
            "ttl_seconds": expires_at.since(call.now).as_secs(),
            "service_offering_id": offered.slug,
            "bearer_token": issued.token.to_secret().expose_text(),
        });
        Ok(Answered {
            status: StatusCode::CREATED,
            data,
            permit: Some(permit),
        })
    }

    pub(super) async fn unsubscribe(&self, grant: &str, call: &Call<'_>) -> Result<Answered, Refusal> {
        if call.authorization().is_none() {
            return Err(Denial::TokenMissing.into());
        }
        let unknown = || Refusal::NotFound(format!("there is no subscription {}", foreign_text(grant)));
        let id = grant.parse::<GrantId>().ok();
        let subscription = id.and_then(|id| self.surroundings.grants.get(id)).filter(|kept| {
            kept.grant.federation_peer_id == call.caller.peer && kept.grant.resource_kind == SERVICE_KIND
        });
        let service = subscription
            .as_ref()
            .and_then(|kept| kept.grant.resource_id.as_deref());
        // Only who may act here at all learns which there are.
        let permit = self.permit_service(call, service.unwrap_or(""))?;
        let subscription = subscription.ok_or_else(unknown)?.grant;
        let operates = self
            .surroundings
            .grants
            .get(permit.grant())
            .is_some_and(|kept| kept.grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND);
        if !operates && permit.remote_subject() != subscription.remote_subject {
            return Err(Denial::Subject {
                granted: permit.remote_subject().to_owned(),
                asked: subscription.remote_subject,
            }
            .into());
        }
        match subscription.state(call.now) {
            GrantState::Revoked | GrantState::Archived => {}
            GrantState::Active | GrantState::Expired => {
                self.surroundings
                    .grants
                    .revoke(subscription.id, GIVEN_BACK)
                    .await?;
                self.note_grant(AuditAction::GrantRevoked, subscription.id, call, &permit);
            }
        }
        let data = json!({ "revoked": true, "grant_id": subscription.id });
        Ok(Answered {
            permit: Some(permit),
            ..Answered::ok(data)
        })
    }

    fn permit_service(&self, call: &Call<'_>, service: &str) -> Result<Permit, Refusal> {
        let access = ServiceAccess {
            peer: call.caller.peer,
            service,
            // Who comes without a bridge is the subject of the grant that they show.
            subject: call.caller.subject.as_deref(),
            instance: call.caller.instance,
            network: call.caller.network,
            source: call.caller.source,
        };
        let gate = self.surroundings.grants.gate();
        Ok(gate.permit_service(call.authorization(), &access, call.now)?)
    }

    fn note_grant(&self, action: AuditAction, grant: GrantId, call: &Call<'_>, permit: &Permit) {
        self.surroundings.audit.record(&AuditEvent {
            federation_peer_id: Some(call.caller.peer),
            remote_subject: Some(permit.remote_subject().to_owned()),
            actor: call.caller.subject.clone(),
            grant: Some(permit.grant()),
            object: Some(grant.to_string()),
            ..AuditEvent::of(action)
        });
    }
}
