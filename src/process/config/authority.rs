//! The keys of the host-bridge's certificate authority.

use std::time::Duration;

use super::key::{DurationBetween, Fallback, Key};

/// Longest age past its end at which a certificate may be renewed: two years.
const RENEW_EXPIRED_FOR_MAX: Duration = Duration::from_secs(730 * 86_400);

/// Longest overlap of two authorities: three years.
const ROTATION_OVERLAP_MAX: Duration = Duration::from_secs(1_095 * 86_400);

pub(super) const SECTION: (&str, &str) = (
    "authority",
    "The certificate authority, which issues the satellites' certificates.",
);

pub(super) static RENEW_EXPIRED_FOR: Key<Duration> = Key {
    path: "authority.renew_expired_for",
    form: &DurationBetween(Duration::ZERO, RENEW_EXPIRED_FOR_MAX),
    default: Fallback::Value("180d"),
    doc: "How long after its end a satellite's certificate is still renewed, if its peer is neither suspended nor revoked\nand it holds the key: for boxes that lay in a drawer. 0s: never; such a box needs a new token.",
    discreet: false,
};

pub(super) static ROTATION_OVERLAP: Key<Duration> = Key {
    path: "authority.rotation_overlap",
    form: &DurationBetween(Duration::ZERO, ROTATION_OVERLAP_MAX),
    default: Fallback::Value("100d"),
    doc: "How long the old authority is served and taken beside the new one after `ca rotate`. A satellite moves at its\nnext renewal, at the latest 68 days later; one that was away for all of the overlap has to rejoin.",
    discreet: false,
};
