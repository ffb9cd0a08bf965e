//! What every parent answers: contract sections 3 to 9 and 11. What the published platform answers otherwise than the
//! standalone host-bridge is written out in the case.

use serde_json::{Value, json};

use super::authority::{Identity, Request};
use super::client::{API, Answer, Ask};
use super::suite::{Case, Target};
use super::{
    accept_cases as accepts, grant_cases as grants, node_cases as nodes, operator_cases as operators,
    peer_cases as peers,
};

pub const CASES: &[Case<Target>] = &[
    (
        "3",
        "an accept gives a certificate for the peer",
        accepts::accept_gives_a_certificate,
    ),
    (
        "3",
        "the certificate is an Ed25519 authority's and lives 90 days",
        accepts::certificates_live_90_days,
    ),
    ("3", "a token works once", accepts::a_token_works_once),
    (
        "3",
        "four at once share no token",
        accepts::four_at_once_share_no_token,
    ),
    (
        "3",
        "blank, missing and unknown tokens are told apart",
        accepts::tokens_are_told_apart,
    ),
    (
        "3",
        "an expired token is an unknown one",
        accepts::expired_tokens_are_unknown,
    ),
    (
        "3",
        "another contract version is refused by name",
        accepts::versions_are_refused_by_name,
    ),
    (
        "3",
        "equals exchange their authorities",
        accepts::equals_exchange_authorities,
    ),
    (
        "11",
        "a request wins over a bundle",
        accepts::a_request_wins_over_a_bundle,
    ),
    (
        "11",
        "an sdwan_only peer stays accepted",
        accepts::network_peers_stay_accepted,
    ),
    (
        "11",
        "contract_version is read leniently",
        accepts::versions_are_read_leniently,
    ),
    (
        "11",
        "keys of RSA, P-256 and Ed25519 are signed",
        accepts::kinds_of_keys,
    ),
    (
        "11",
        "what the published agent sends is accepted",
        accepts::the_published_agent_is_accepted,
    ),
    (
        "11",
        "unknown fields are passed over",
        accepts::unknown_fields_are_passed_over,
    ),
    (
        "11",
        "a request that cannot be signed is told",
        accepts::unsignable_requests_are_told,
    ),
    (
        "11",
        "what is no accept is refused",
        accepts::what_is_no_accept_is_refused,
    ),
    (
        "11",
        "a cut request costs no token",
        accepts::cut_requests_cost_no_token,
    ),
    (
        "11",
        "a slow request is waited for",
        accepts::slow_requests_are_waited_for,
    ),
    (
        "4",
        "a node enrolls with its bootstrap token only",
        nodes::node_enrollment_wants_its_token,
    ),
    (
        "4",
        "a node enrolls once and renews by its certificate",
        nodes::nodes_enroll_and_renew,
    ),
    (
        "5",
        "a heartbeat makes an enrolled peer active",
        peers::heartbeats_make_active,
    ),
    (
        "5",
        "every field of a heartbeat may be missing",
        peers::heartbeats_may_be_empty,
    ),
    (
        "5",
        "versions are compared by the N-1 rule",
        peers::versions_are_compared,
    ),
    (
        "5",
        "how versions agree is told in full",
        peers::compatibility_is_told,
    ),
    (
        "11",
        "a heartbeat replaces, and what is empty changes nothing",
        peers::heartbeats_replace,
    ),
    (
        "11",
        "a data residency has a bound",
        peers::data_residency_has_a_bound,
    ),
    (
        "11",
        "without a certificate there is no heartbeat",
        peers::no_heartbeat_without_a_certificate,
    ),
    (
        "11",
        "another authority's certificate is refused",
        peers::foreign_certificates_are_refused,
    ),
    (
        "11",
        "what is no heartbeat is refused",
        peers::what_is_no_heartbeat_is_refused,
    ),
    (
        "11",
        "a huge body is answered, and the next request too",
        peers::huge_bodies_are_answered,
    ),
    (
        "8",
        "headers of a caller prove nothing",
        peers::headers_prove_nothing,
    ),
    (
        "6",
        "a suspended peer is not heard",
        peers::suspended_peers_are_not_heard,
    ),
    (
        "6",
        "a resumed peer goes on with its heartbeat",
        peers::resumed_peers_go_on,
    ),
    ("6", "a revoked peer is gone", peers::revoked_peers_are_gone),
    (
        "11",
        "a peer accepts again while it is suspended alone",
        peers::a_suspended_peer_may_accept_again,
    ),
    (
        "9",
        "a newer token replaces the earlier",
        peers::a_newer_token_replaces_the_earlier,
    ),
    (
        "8",
        "the trust bundle has the certificate's authority",
        grants::the_trust_bundle_fits,
    ),
    (
        "8",
        "the service catalog is a list with a time",
        grants::the_service_catalog,
    ),
    (
        "8",
        "resources want a certificate and a grant",
        grants::resources_want_a_grant,
    ),
    (
        "7",
        "a grant opens its resources to its peer",
        grants::a_grant_opens_its_resources,
    ),
    ("7", "a revoked grant opens nothing", grants::a_grant_ends),
    (
        "7",
        "a grant reaches as far as it says",
        grants::a_grant_reaches_as_far_as_it_says,
    ),
    ("8", "subscriptions are made and ended", grants::subscriptions),
    (
        "8",
        "an offering at capacity is told",
        grants::full_offerings_are_told,
    ),
    ("8", "a path that is not there is 404", grants::unknown_paths),
    (
        "9",
        "operators see the peers by their token alone",
        operators::the_list_of_peers,
    ),
    (
        "9",
        "health tells of every peer at a glance",
        operators::health_at_a_glance,
    ),
    (
        "9",
        "a proposed peer contacts nobody and its token is shown once",
        operators::proposals,
    ),
    (
        "9",
        "suspend, resume and revoke have reasons",
        operators::reasons_are_kept,
    ),
    (
        "9",
        "access grants are made with their restrictions",
        operators::access_grants,
    ),
    ("9", "the same three verbs are tools", operators::tools),
];

/// A peer that has accepted.
pub(super) struct Joined {
    pub(super) id: String,
    pub(super) identity: Identity,
}

pub(super) fn accept(target: &Target, body: &Value) -> Answer {
    target
        .client
        .ask(Ask::post(&format!("{API}/accept"), &body.to_string()))
}

pub(super) fn join(target: &Target) -> Joined {
    join_by(target, &target.mint())
}

pub(super) fn join_by(target: &Target, token: &str) -> Joined {
    let request = Request::new("anything");
    let body = json!({
        "acceptance_token": token, "contract_version": 1, "extension_slugs": [], "capabilities": {},
        "endpoints": [], "csr_pem": request.csr,
    });
    let answer = accept(target, &body);
    let data = answer.data();
    let certificate = data["federation_certificate"]["cert_pem"].as_str().unwrap();
    Joined {
        id: data["peer_id"].as_str().unwrap().to_owned(),
        identity: request.issued(certificate),
    }
}

pub(super) fn heartbeat(target: &Target, joined: &Joined, body: &Value) -> Answer {
    let (path, body) = (format!("{API}/heartbeat"), body.to_string());
    target.client.ask(Ask::post(&path, &body).by(&joined.identity))
}

/// Whole seconds, UTC, `Z`.
pub(super) fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    let format = &time::format_description::well_known::Rfc3339;
    let parsed = time::OffsetDateTime::parse(text, format);
    assert!(
        parsed.is_ok() && text.ends_with('Z') && !text.contains('.'),
        "{text}"
    );
}
