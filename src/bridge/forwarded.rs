//! Headers that do not travel on: those by which the platform's reverse proxy tells who calls
//! (contract section 8), and those that are about one connection. Whoever may set the former may be
//! anybody, so what comes from outside loses them before anything is read.

use http::{HeaderMap, HeaderName, header};

/// Fields that are for one connection (RFC 9110, 7.6.1), and those that proxies have added to them.
/// `Te` and `Upgrade` are taken care of by name.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What is taken away: exact names, and names that begin with those ending in `*`. `_` counts as
/// `-`: there are servers that do not tell them apart.
const STRIPPED: &[&str] = &[
    "x-forwarded-tls-client-cert*",
    "x-calling-instance",
    "x-sdwan-network*",
    "x-powernode-subject",
];

/// By which a client could claim to be somebody else, somewhere else, to whatever server reads them; beside all that
/// begin with [`CLAIM_PREFIX`].
const CLAIMS: &[&str] = &[
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "client-ip",
    "x-cluster-client-ip",
];

const CLAIM_PREFIX: &str = "x-forwarded-";

fn is_stripped(name: &HeaderName) -> bool {
    let name = dashed(name);
    STRIPPED.iter().any(|stripped| match stripped.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *stripped,
    })
}

/// A header's name as servers read it that do not tell `_` from `-`.
pub(super) fn dashed(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

/// Takes every claim of identity away. How many there were.
pub fn strip_forwarded_identity(headers: &mut HeaderMap) -> usize {
    strip_named(headers, is_stripped)
}

/// Whether a header claims where its sender is, in either way of writing it.
pub(super) fn is_claim(name: &HeaderName) -> bool {
    let name = dashed(name);
    name.starts_with(CLAIM_PREFIX) || CLAIMS.contains(&name.as_str())
}

/// Takes the headers away whose names are such.
pub(super) fn strip_named(headers: &mut HeaderMap, such: impl Fn(&HeaderName) -> bool) -> usize {
    let names: Vec<HeaderName> = headers.keys().filter(|name| such(name)).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
    names.len()
}

/// The parts of a list-valued header.
pub(super) fn listed<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Takes away what is about one connection alone.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = listed(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

/// One `Cookie` line, as HTTP/1.1 has it, without the bridge's own.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn claims_go_in_any_letter_case_and_number() {
        let mut headers = HeaderMap::new();
        for name in [
            "X-Forwarded-Tls-Client-Cert-Info",
            "x-forwarded-tls-client-cert",
            "X-FORWARDED-TLS-CLIENT-CERT-NEXT",
            "X_Forwarded_Tls_Client_Cert_Info",
            "X-Calling-Instance",
            "x-sdwan-NETWORK",
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name.clone(), HeaderValue::from_static("CN=fed:x"));
            headers.append(name, HeaderValue::from_static("again"));
        }
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        assert_eq!(strip_forwarded_identity(&mut headers), 6);
        assert_eq!(headers.len(), 2);
    }
}
