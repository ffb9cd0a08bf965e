//! The decision for a stream to a published service: which kinds of grants open one, and for whom.

use std::net::IpAddr;

use super::authorization::{AccessRequest, Denial, NetworkPath, Permit, authorize};
use super::{Grant, MANAGED_CHILD_OPERATOR_KIND, PermissionScope};
use crate::base::id::{InstanceId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;

/// `resource_kind` of a grant to published services: its `resource_id` names the one, or there is
/// none and it opens all.
pub const SERVICE_KIND: &str = "service";

/// The scope that a stream to a service takes: whoever holds it can change what is behind it.
pub const SERVICE_SCOPE: PermissionScope = PermissionScope::Write;

/// What a peer asks for when it opens a stream to a service.
#[derive(Debug, Clone, Copy)]
pub struct ServiceAccess<'a> {
    /// The peer whose certificate the tunnel was opened with.
    pub peer: PeerId,
    /// The service's published name.
    pub service: &'a str,
    /// Who acts, as the peer has authenticated them; absent where the peer presents a grant of its
    /// own and stands for its subject itself.
    pub subject: Option<&'a str>,
    /// The instance that the caller's certificate names.
    pub instance: Option<InstanceId>,
    /// The network through which it comes.
    pub network: Option<NetworkPath>,
    /// The address of their program, as the peer saw it.
    pub source: Option<IpAddr>,
}

/// Decides, in the order of contract section 7. A service is opened by a grant to it, for the
/// grant's own subject, or by the grant under which the parent operates this child, for all whom
/// the parent lets through: that grant's subject stands for all of its operators.
pub fn authorize_service(grant: &Grant, asked: &ServiceAccess<'_>, now: UnixTime) -> Result<Permit, Denial> {
    let operates = grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND;
    let request = AccessRequest {
        peer: asked.peer,
        resource_kind: if operates {
            MANAGED_CHILD_OPERATOR_KIND
        } else {
            SERVICE_KIND
        },
        resource_id: Some(asked.service),
        scope: SERVICE_SCOPE,
        instance: asked.instance,
        network: asked.network,
        source: asked.source,
    };
    let permit = authorize(grant, &request, now)?;
    match asked.subject {
        Some(subject) if !operates && !names_one_subject(&grant.remote_subject, subject) => {
            Err(Denial::Subject {
                granted: grant.remote_subject.clone(),
                asked: foreign_text(subject),
            })
        }
        Some(_) | None => Ok(permit),
    }
}

/// Equal and no pattern: `*` is nobody, so that nobody comes to rely on it as everybody.
fn names_one_subject(granted: &str, asked: &str) -> bool {
    granted == asked && !asked.contains('*')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{NOW, grant_id, issued, peer, request};
    use super::super::{GrantRequest, NewGrant};
    use super::*;

    fn asked() -> ServiceAccess<'static> {
        ServiceAccess {
            peer: peer(),
            service: "ssh",
            subject: Some("technician@example.com"),
            instance: None,
            network: None,
            source: Some(IpAddr::from([203, 0, 113, 9])),
        }
    }

    fn answer(grant: &Grant, asked: &ServiceAccess<'_>) -> (u16, String) {
        let denial = authorize_service(grant, asked, NOW).unwrap_err();
        (denial.http_status(), denial.answer())
    }

    #[test]
    fn the_operator_grant_opens_every_service_for_whomever_the_parent_lets_through() {
        let grant = NewGrant::managed_child_operator(peer()).issue(grant_id(), NOW);
        for (service, subject) in [("ssh", "anna"), ("web", "berta"), ("web", "*")] {
            let asked = ServiceAccess {
                service,
                subject: Some(subject),
                ..asked()
            };
            let permit = authorize_service(&grant, &asked, NOW).unwrap();
            assert_eq!(permit.remote_subject(), format!("parent-operator@{}", peer()));
        }
    }

    #[test]
    fn a_service_grant_is_for_its_subject_and_its_service() {
        let all = issued(request());
        assert!(authorize_service(&all, &asked(), NOW).is_ok());
        let one = issued(GrantRequest {
            resource_id: Some("ssh".into()),
            ..request()
        });
        assert!(authorize_service(&one, &asked(), NOW).is_ok());
        let web = ServiceAccess {
            service: "web",
            ..asked()
        };
        assert_eq!(
            answer(&one, &web),
            (403, "resource_id `ssh` of the grant does not allow `web`".into())
        );
        let other = ServiceAccess {
            subject: Some("somebody"),
            ..asked()
        };
        assert_eq!(
            answer(&all, &other),
            (
                403,
                "remote_subject `technician@example.com` of the grant does not allow `somebody`".into()
            )
        );
    }

    #[test]
    fn an_asterisk_is_nobody() {
        let grant = issued(GrantRequest {
            remote_subject: "*".into(),
            resource_kind: "NodeModule".into(),
            ..request()
        });
        let grant = Grant {
            resource_kind: SERVICE_KIND.into(),
            ..grant
        };
        for subject in ["*", "technician@example.com", ""] {
            let asked = ServiceAccess {
                subject: Some(subject),
                ..asked()
            };
            assert_eq!(answer(&grant, &asked).0, 403, "{subject}");
        }
    }

    #[test]
    fn other_kinds_and_reading_alone_open_no_service() {
        let kind = issued(GrantRequest {
            resource_kind: "NodeModule".into(),
            ..request()
        });
        assert_eq!(
            answer(&kind, &asked()),
            (
                403,
                "resource_kind `NodeModule` of the grant does not allow `service`".into()
            )
        );
        let reader = issued(GrantRequest {
            permission_scopes: vec!["read".into(), "admin".into()],
            ..request()
        });
        assert_eq!(answer(&reader, &asked()).0, 403);
    }

    #[test]
    fn the_subject_is_looked_at_last() {
        let grant = issued(GrantRequest {
            source_cidrs: vec!["198.51.100.0/24".into()],
            ..request()
        });
        let asked = ServiceAccess {
            subject: Some("somebody"),
            ..asked()
        };
        assert_eq!(
            answer(&grant, &asked).1,
            "source_cidrs of the grant do not allow `203.0.113.9`"
        );
    }

    proptest! {
        #[test]
        fn a_service_grant_opens_for_the_very_same_subject_alone(subject in "[a-c*]{0,3}", granted in "[a-c]{1,3}") {
            let grant = issued(GrantRequest { remote_subject: granted.clone(), ..request() });
            let asked = ServiceAccess { subject: Some(&subject), ..asked() };
            prop_assert_eq!(authorize_service(&grant, &asked, NOW).is_ok(), subject == granted);
        }
    }
}
