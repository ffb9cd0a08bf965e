//! Headers by which the platform's reverse proxy tells who calls (contract section 8). Whoever
//! may set them may be anybody, so what comes from outside loses them before anything is read.

use http::{HeaderMap, HeaderName};

/// What is taken away: exact names, and names that begin with those ending in `*`. `_` counts as
/// `-`: there are servers that do not tell them apart.
const STRIPPED: &[&str] = &[
    "x-forwarded-tls-client-cert*",
    "x-calling-instance",
    "x-sdwan-network*",
    "x-powernode-subject",
];

fn is_stripped(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    STRIPPED.iter().any(|stripped| match stripped.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *stripped,
    })
}

/// Takes every claim of identity away. How many there were.
pub fn strip_forwarded_identity(headers: &mut HeaderMap) -> usize {
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_stripped(name)).cloned().collect();
    for claim in &claims {
        headers.remove(claim);
    }
    claims.len()
}

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
