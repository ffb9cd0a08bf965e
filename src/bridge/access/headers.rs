//! What changes in the heads of requests and answers between a browser and a service: hop-by-hop
//! fields go, the bridge's credentials go, the real source and the prefix are told, and what an answer
//! says of paths is put below the prefix. Pure.

use std::net::IpAddr;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Uri, Version};

use super::super::forwarded::{is_claim, listed, strip_forwarded_identity, strip_hop_by_hop, strip_named};

/// What a service must not say to a browser that takes it for a part of this bridge: where else the
/// bridge is, and that its scripts may watch other services' pages.
const NOT_PASSED_BACK: &[&str] = &["alt-svc", "service-worker-allowed"];

/// Header with an operator's token.
pub(super) const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-powernode-token");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// How a service looks from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outside {
    /// The asking program's address.
    pub(super) source: IpAddr,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// Path below which the service lies, `/satellites/shop-17/web`; none where it has a name of its own.
    pub(super) prefix: Option<String>,
}

/// What was asked for beside the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Another protocol after this answer.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Makes a request's head one that the service may see. `version` is the client's.
pub(super) fn to_service(
    headers: &mut HeaderMap,
    uri: &Uri,
    version: Version,
    outside: &Outside,
    login_cookie: &str,
) -> Wishes {
    let upgrade = headers
        .get(header::UPGRADE)
        .filter(|_| version == Version::HTTP_11)
        .cloned();
    let trailers = listed(headers, &header::TE).any(|te| te.eq_ignore_ascii_case("trailers"));
    strip_forwarded_identity(headers);
    strip_hop_by_hop(headers);
    strip_named(headers, is_claim);
    headers.remove(TOKEN_HEADER);
    // The server answers this itself when the body is first read.
    headers.remove(header::EXPECT);
    rewrite_cookies(headers, login_cookie);
    if let Some(authority) = uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        // HTTP/2's own form of it, or a proxy's.
        headers.insert(header::HOST, host);
    }
    tell_outside(headers, outside);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    match &upgrade {
        Some(upgrade) => {
            headers.insert(header::UPGRADE, upgrade.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        // A stream carries one request.
        None => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Wishes { upgrade }
}

/// Makes an answer's head one that the client may see.
pub(super) fn to_client(
    headers: &mut HeaderMap,
    host: Option<&HeaderValue>,
    outside: &Outside,
    login_cookie: &str,
) {
    strip_hop_by_hop(headers);
    for name in NOT_PASSED_BACK {
        headers.remove(*name);
    }
    let prefix = outside.prefix.as_deref();
    if let Some(prefix) = prefix {
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let moved = headers
                .get(&name)
                .and_then(|location| below_prefix(location.to_str().ok()?, host, prefix));
            if let Some(moved) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
                headers.insert(name, moved);
            }
        }
    }
    let cookies: Vec<HeaderValue> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|cookie| set_cookie(cookie, prefix, login_cookie))
        .collect();
    if headers.remove(header::SET_COOKIE).is_some() {
        for cookie in cookies {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
}

/// The value of one cookie of a request.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(header::COOKIE).iter();
    pairs
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(known, value)| (known == name).then_some(value))
}

fn rewrite_cookies(headers: &mut HeaderMap, login_cookie: &str) {
    let ours = |pair: &str| pair.split('=').next() == Some(login_cookie);
    let kept: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !std::str::from_utf8(pair).is_ok_and(ours))
        .collect();
    let line = HeaderValue::from_bytes(&kept.join(&b"; "[..]));
    headers.remove(header::COOKIE);
    if let Ok(line) = line
        && !line.is_empty()
    {
        headers.insert(header::COOKIE, line);
    }
}

fn tell_outside(headers: &mut HeaderMap, outside: &Outside) {
    let host = headers.get(header::HOST).cloned();
    let source = outside.source.to_string();
    let mut forwarded = match outside.source {
        IpAddr::V4(_) => format!("for={source}"),
        IpAddr::V6(_) => format!("for=\"[{source}]\""),
    };
    forwarded.push_str(";proto=");
    forwarded.push_str(outside.scheme);
    let mut insert = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    insert(X_FORWARDED_FOR, &source);
    insert(X_FORWARDED_PROTO, outside.scheme);
    if let Some(prefix) = &outside.prefix {
        insert(X_FORWARDED_PREFIX, prefix);
    }
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        insert(X_FORWARDED_HOST, host);
        if !host.contains(['"', '\\']) {
            forwarded = format!("{forwarded};host=\"{host}\"");
        }
    }
    insert(header::FORWARDED, &forwarded);
}

/// A path of the service's own as the client must ask for it; nothing where it is relative, lies
/// elsewhere, or is below the prefix already, as that of a service which knows `X-Forwarded-Prefix`.
fn below_prefix(location: &str, host: Option<&HeaderValue>, prefix: &str) -> Option<String> {
    let path = match location.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => {
            let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(at);
            let ours = host?.to_str().ok()?;
            // Many servers put their own port behind the name by which they were asked; nothing of this
            // bridge's speaks HTTP without TLS.
            let own_port =
                scheme == "http" && without_port(authority).eq_ignore_ascii_case(without_port(ours));
            if !(own_port || authority.eq_ignore_ascii_case(ours)) {
                return None;
            }
            path
        }
        _ if location.starts_with("//") => return None,
        _ if location.starts_with('/') => location,
        _ => return None,
    };
    let below = path
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    if below {
        // Without the authority: what the service takes for its scheme may be wrong.
        return (path != location).then(|| path.to_owned());
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some(format!("{prefix}{slash}{path}"))
}

/// The host of an authority; an IPv6 address keeps its brackets.
fn without_port(authority: &str) -> &str {
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rsplit_once(':') {
        Some((host, port)) if digits(port) => host,
        _ => authority,
    }
}

/// A cookie of the service's, for its own paths alone; none of the bridge's name.
fn set_cookie(cookie: &HeaderValue, prefix: Option<&str>, login_cookie: &str) -> Option<HeaderValue> {
    let Ok(text) = cookie.to_str() else {
        return prefix.is_none().then(|| cookie.clone());
    };
    let name = text.split(['=', ';']).next().unwrap_or_default().trim();
    if name == login_cookie {
        return None;
    }
    let Some(prefix) = prefix else {
        return Some(cookie.clone());
    };
    let parts = text.split(';').enumerate().filter_map(|(index, part)| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key.trim() {
            _ if index == 0 => Some(part.to_owned()),
            key if key.eq_ignore_ascii_case("domain") => None,
            key if key.eq_ignore_ascii_case("path") => {
                let path = below_prefix(value.trim(), None, prefix);
                Some(format!(" Path={}", path.as_deref().unwrap_or(value.trim())))
            }
            _ => Some(part.to_owned()),
        }
    });
    HeaderValue::from_str(&parts.collect::<Vec<_>>().join(";")).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "/satellites/shop-17/web";

    fn outside(prefix: Option<&str>) -> Outside {
        Outside {
            source: "192.0.2.7".parse().unwrap(),
            scheme: "https",
            prefix: prefix.map(ToOwned::to_owned),
        }
    }

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    fn sent(lines: &[(&str, &str)], uri: &str, version: Version) -> (HeaderMap, Wishes) {
        let mut headers = map(lines);
        let wishes = to_service(
            &mut headers,
            &uri.parse().unwrap(),
            version,
            &outside(Some(PREFIX)),
            "login",
        );
        (headers, wishes)
    }

    #[test]
    fn a_service_sees_the_real_source_and_no_claim_of_another() {
        let (headers, _) = sent(
            &[
                ("host", "bridge.example.com:8443"),
                ("x-forwarded-for", "203.0.113.1"),
                ("forwarded", "for=203.0.113.1"),
                ("x-real-ip", "203.0.113.1"),
                // Servers that hand headers on as variables read them like those with dashes.
                ("x_forwarded_for", "203.0.113.1"),
                ("X_Real-IP", "203.0.113.1"),
                ("true-client-ip", "203.0.113.1"),
                ("x-forwarded-user", "forged"),
                ("x-forwarded-prefix", "/evil"),
                ("x-forwarded-tls-client-cert", "forged"),
                ("x-calling-instance", "forged"),
                ("accept", "*/*"),
            ],
            "/",
            Version::HTTP_11,
        );
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-prefix"], PREFIX);
        assert_eq!(headers["x-forwarded-host"], "bridge.example.com:8443");
        assert_eq!(
            headers["forwarded"],
            "for=192.0.2.7;proto=https;host=\"bridge.example.com:8443\""
        );
        assert_eq!(headers["accept"], "*/*");
        let all = format!("{headers:?}");
        assert!(
            !all.contains("203.0.113.1") && !all.contains("forged") && !all.contains("evil"),
            "{all}"
        );
    }

    #[test]
    fn the_bridges_credentials_stay_here_and_the_services_go_through() {
        let (headers, _) = sent(
            &[
                ("x-powernode-token", "secret"),
                ("proxy-authorization", "Basic secret"),
                ("cookie", "a=1; login=secret"),
                ("cookie", "b=2"),
                ("authorization", "Bearer theirs"),
            ],
            "https://bridge.example.com/x",
            Version::HTTP_2,
        );
        assert_eq!(headers["cookie"], "a=1; b=2");
        assert_eq!(headers["authorization"], "Bearer theirs");
        assert_eq!(headers["host"], "bridge.example.com");
        assert!(!format!("{headers:?}").contains("secret"));
        let (headers, _) = sent(&[("cookie", "login=secret")], "/", Version::HTTP_11);
        assert!(!headers.contains_key("cookie"));
    }

    #[test]
    fn an_upgrade_and_trailers_are_asked_for_again_and_the_rest_of_the_hop_is_not() {
        let (headers, wishes) = sent(
            &[
                ("connection", "Upgrade, X-Private"),
                ("upgrade", "websocket"),
                ("x-private", "1"),
                ("te", "gzip, Trailers"),
                ("transfer-encoding", "chunked"),
                ("keep-alive", "5"),
            ],
            "/",
            Version::HTTP_11,
        );
        assert_eq!(wishes.upgrade.unwrap(), "websocket");
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        assert_eq!(headers["te"], "trailers");
        assert!(!headers.contains_key("x-private") && !headers.contains_key("transfer-encoding"));
        let (headers, wishes) = sent(&[("upgrade", "websocket")], "/", Version::HTTP_2);
        assert_eq!(wishes.upgrade, None);
        assert_eq!(headers["connection"], "close");
    }

    #[test]
    fn paths_of_an_answer_are_put_below_the_prefix() {
        let host: HeaderValue = "bridge:8443".parse().unwrap();
        let moved = |location: &str| below_prefix(location, Some(&host), PREFIX);
        assert_eq!(
            moved("/login?a=b").as_deref(),
            Some("/satellites/shop-17/web/login?a=b")
        );
        assert_eq!(moved("/").as_deref(), Some("/satellites/shop-17/web/"));
        assert_eq!(
            moved("http://bridge:8443/x").as_deref(),
            Some("/satellites/shop-17/web/x")
        );
        assert_eq!(
            moved("https://bridge:8443").as_deref(),
            Some("/satellites/shop-17/web/")
        );
        assert_eq!(
            moved("/satellites/shop-17/web2").as_deref(),
            Some("/satellites/shop-17/web/satellites/shop-17/web2")
        );
        // As nginx has it, which knows its own port alone.
        for own in ["http://bridge:8081/x", "http://BRIDGE/x"] {
            assert_eq!(moved(own).as_deref(), Some("/satellites/shop-17/web/x"), "{own}");
        }
        let host: HeaderValue = "[2001:db8::1]:8443".parse().unwrap();
        assert_eq!(
            below_prefix("http://[2001:db8::1]:80/x", Some(&host), PREFIX).as_deref(),
            Some("/satellites/shop-17/web/x")
        );
        for as_it_is in [
            "https://bridge:9443/x",
            "http://bridge.example.com/x",
            "http://bridge:8443@example.com/x",
            "relative",
            "",
            "//else/x",
            "https://example.com/x",
            PREFIX,
            "/satellites/shop-17/web/x",
        ] {
            assert_eq!(moved(as_it_is), None, "{as_it_is}");
        }
    }

    #[test]
    fn cookies_stay_with_their_service() {
        let mut headers = map(&[
            ("set-cookie", "sid=1; Path=/; HttpOnly; Domain=bridge.example.com"),
            ("set-cookie", "plain=2"),
            ("set-cookie", "login=forged; Path=/"),
            ("alt-svc", "h3=\"evil:443\""),
            ("service-worker-allowed", "/"),
        ]);
        to_client(&mut headers, None, &outside(Some(PREFIX)), "login");
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().collect();
        assert_eq!(
            cookies,
            ["sid=1; Path=/satellites/shop-17/web/; HttpOnly", "plain=2"]
        );
        assert_eq!(headers.len(), 2);
        let mut named = map(&[("set-cookie", "sid=1; Path=/"), ("location", "/x")]);
        to_client(&mut named, None, &outside(None), "login");
        assert_eq!(
            (&named["set-cookie"], &named["location"]),
            (&"sid=1; Path=/".parse().unwrap(), &"/x".parse().unwrap())
        );
    }

    proptest! {
        #[test]
        fn a_moved_location_is_below_the_prefix_and_stays_there(location in "\\PC{0,60}") {
            let host = HeaderValue::from_static("bridge");
            if let Some(moved) = below_prefix(&location, Some(&host), PREFIX) {
                prop_assert!(moved.starts_with(PREFIX), "{}", moved);
                prop_assert_eq!(below_prefix(&moved, Some(&host), PREFIX), None);
            }
        }

        #[test]
        fn no_cookie_panics_or_gets_a_path_outside(value in "[ -~]{0,80}") {
            let cookie = HeaderValue::from_str(&value).unwrap();
            if let Some(kept) = set_cookie(&cookie, Some(PREFIX), "login") {
                for part in kept.to_str().unwrap().split(';').skip(1) {
                    if let Some((key, path)) = part.split_once('=')
                        && key.trim().eq_ignore_ascii_case("path")
                        && path.trim().starts_with('/') && !path.trim().starts_with("//")
                    {
                        prop_assert!(path.starts_with(PREFIX), "{}", part);
                    }
                }
            }
        }
    }
}
