//! What lies on the disk: store, second copy, membership and certificate, as a start of this
//! program would find them. Shared by `doctor` and `self-check`.

use std::path::Path;

use crate::base::check::Check;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::machine::join::JoinState;
use crate::machine::renewal::CertificateStanding;
use crate::satellite::membership_store::{CopyStanding, Examination, MembershipStore, SCHEMA};
use crate::satellite::node_report::NodeReport;
use crate::satellite::own_authority::AuthorityReport;
use crate::satellite::status::remedy;
use crate::store::state_key::StateKey;

/// Looks at the state; `now` tells the time that certificates are judged by from the latest time
/// that the state knows. Blocking.
pub fn examine(
    directory: &Path,
    key: Option<&StateKey>,
    now: impl FnOnce(Option<UnixTime>) -> UnixTime,
) -> (Vec<Check>, Option<Examination>) {
    let found = match MembershipStore::examine(directory, key) {
        Ok(found) => found,
        Err(error) => {
            let advice = "nothing was changed; the message says what can be done, a backup of the directory is the safest";
            return (vec![Check::fail("store", error_chain(&error), advice)], None);
        }
    };
    let mut checks = vec![store(&found, directory), second_copy(&found)];
    match &found.loaded.state {
        None => checks.push(Check::ok("membership", "not invited yet")),
        Some(state) => {
            checks.push(membership(state));
            let now = now(found.loaded.latest_known_time());
            checks.extend(certificate(state, now));
            checks.extend(own_authority(&found, state, now));
            checks.extend(node(state, now));
        }
    }
    (checks, Some(found))
}

/// What stands in the way of a tunnel is not this box's to mend, but its owner's to know.
fn membership(state: &JoinState) -> Check {
    const NAME: &str = "membership";
    if let JoinState::Refused { refusal, .. } = state {
        return Check::warn(NAME, "refused", refusal.to_string());
    }
    let status = state.membership().map(|membership| membership.status);
    match status.and_then(|status| Some((status, remedy(status)?))) {
        Some((status, remedy)) => Check::warn(NAME, status.to_string(), remedy),
        None => Check::ok(NAME, state.name().replace('_', " ")),
    }
}

fn store(found: &Examination, directory: &Path) -> Check {
    const NAME: &str = "store";
    let directory = directory.display();
    if let Some(recovered) = &found.loaded.recovered {
        return Check::warn(
            NAME,
            recovered.clone(),
            "a start writes the store anew from the second copy",
        );
    }
    let Some(size) = found.size_bytes else {
        return Check::ok(NAME, format!("none in {directory} yet; the first run makes it"));
    };
    let holder = found
        .holder
        .as_ref()
        .map_or_else(String::new, |holder| format!(", in use by {holder}"));
    Check::ok(
        NAME,
        format!(
            "whole, {} KiB in {directory}, readable with schema version {}{holder}",
            size / 1024,
            SCHEMA.version
        ),
    )
}

fn second_copy(found: &Examination) -> Check {
    const NAME: &str = "second copy";
    const ANEW: &str = "a start writes it anew";
    match &found.copy {
        CopyStanding::Absent if found.loaded.state.is_none() => {
            Check::ok(NAME, "none yet; it comes with an invitation")
        }
        CopyStanding::Absent => Check::warn(NAME, "missing", ANEW),
        CopyStanding::Same => Check::ok(NAME, "whole, the same as the store"),
        CopyStanding::Different => Check::warn(NAME, "whole, but not the same as the store", ANEW),
        CopyStanding::Damaged(damage) => Check::warn(NAME, damage.to_string(), ANEW),
        CopyStanding::Used => Check::warn(NAME, "whole, and all that is left of the membership", ANEW),
    }
}

/// The node's identity, where there is to be one. The satellite itself lives without.
fn node(state: &JoinState, now: UnixTime) -> Option<Check> {
    const NAME: &str = "node identity";
    let report = NodeReport::of(state.membership()?.node.as_ref()?, now);
    Some(match (&report.refusal, &report.certificate) {
        (Some(refusal), _) => Check::warn(NAME, "none", refusal.clone()),
        (None, None) => Check::ok(NAME, "asked for, not there yet"),
        (None, Some(certificate)) if certificate.is_worrying() => Check::warn(
            NAME,
            lasting(&certificate.standing, certificate.not_after),
            "it is renewed at the platform's own URL: see in `status` why that has not happened; once it has expired, \
             only a new acceptance token with `powernode-satellite rejoin` brings another",
        ),
        (None, Some(certificate)) => Check::ok(NAME, lasting(&certificate.standing, certificate.not_after)),
    })
}

/// By what a box among equals certifies itself; it goes over to the next one in time by itself.
fn own_authority(found: &Examination, state: &JoinState, now: UnixTime) -> Option<Check> {
    const NAME: &str = "own authority";
    let membership = state.membership()?;
    let report = AuthorityReport::of(Some(membership), found.loaded.succession.as_ref())?;
    let ends = report.issuing.not_after;
    if now > ends {
        return Some(Check::fail(
            NAME,
            lasting("expired", ends),
            "this box can certify itself no more: set its clock if that is ahead, else have this peer suspended, ask for a \
             new token for it and run `powernode-satellite rejoin` with that, which makes a new authority",
        ));
    }
    let change = report
        .succession
        .map_or_else(String::new, |change| format!(", the next one {}", change.stage));
    Some(Check::ok(NAME, lasting("valid", ends) + &change))
}

/// How something stands, and until when it lasts.
fn lasting(standing: &str, not_after: UnixTime) -> String {
    format!("{standing}, ends {not_after}")
}

fn certificate(state: &JoinState, now: UnixTime) -> Option<Check> {
    const NAME: &str = "certificate";
    let identity = &state.membership()?.identity;
    let not_after = identity.certificate.not_after;
    let standing = CertificateStanding::judge(identity.not_before, not_after, now);
    let finding = lasting(&standing.to_string(), not_after);
    Some(match standing {
        CertificateStanding::Valid | CertificateStanding::RenewalDue => Check::ok(NAME, finding),
        CertificateStanding::NotYetValid => {
            Check::warn(NAME, finding, "set the clock of this box or start NTP")
        }
        CertificateStanding::ExpiresSoon => Check::warn(
            NAME,
            finding,
            "it is renewed over the tunnel: see in `status` why that has not happened",
        ),
        CertificateStanding::Expired => Check::fail(
            NAME,
            finding,
            "the parent renews it when it is reached, as long as its operator allows; where `status` says that it \
             refuses, have this peer suspended, ask for a new token for it and run `powernode-satellite rejoin` with that",
        ),
    })
}
