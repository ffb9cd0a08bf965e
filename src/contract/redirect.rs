//! Which redirects of a parent are followed: those that keep the request as it is, and lead to another path of the
//! parent's own host over HTTPS. A token is never carried anywhere else.

use thiserror::Error;

use super::invitation::HostPort;
use crate::base::limit::foreign_text;

/// Redirects of one request that are followed.
pub const REDIRECTS_MAX: usize = 3;

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RedirectRefused {
    /// 301, 302 and 303 ask for another request than the one that was made.
    #[error(
        "the parent redirects with HTTP {0}, which would make another request of this one; it must answer there, or redirect with 307 or 308"
    )]
    ChangesRequest(u16),
    /// There is no target, or none that can be read.
    #[error("the parent redirects to nowhere; its administrator must mend that")]
    NoTarget,
    /// Another host, or no HTTPS.
    #[error(
        "the parent redirects to {0}, which is not its own host over HTTPS; join by that URL if you trust it"
    )]
    Elsewhere(String),
    /// More than [`REDIRECTS_MAX`].
    #[error("the parent redirects in a circle; its administrator must mend that")]
    TooMany,
}

/// Where an answer of this host leads, if it is a redirect: path and query to ask for next.
pub fn read(
    host: &HostPort,
    http_status: u16,
    location: Option<&str>,
) -> Option<Result<String, RedirectRefused>> {
    matches!(http_status, 301 | 302 | 303 | 307 | 308).then(|| follow(host, http_status, location))
}

fn follow(host: &HostPort, http_status: u16, location: Option<&str>) -> Result<String, RedirectRefused> {
    if !matches!(http_status, 307 | 308) {
        return Err(RedirectRefused::ChangesRequest(http_status));
    }
    let location = location.ok_or(RedirectRefused::NoTarget)?.trim();
    let elsewhere = || RedirectRefused::Elsewhere(foreign_text(location));
    let uri: http::Uri = location.parse().map_err(|_| RedirectRefused::NoTarget)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match (uri.scheme_str(), uri.authority()) {
        // `//host/path` is one of another host's.
        (None, None) if location.starts_with('/') && !location.starts_with("//") => Ok(path.to_owned()),
        (None, None) => Err(elsewhere()),
        (Some("https"), Some(authority)) => match HostPort::parse(authority.as_str(), 443) {
            Ok(target) if target == *host => Ok(path.to_owned()),
            _ => Err(elsewhere()),
        },
        _ => Err(elsewhere()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn followed(status: u16, location: Option<&str>) -> Result<String, RedirectRefused> {
        let host = HostPort::parse("parent.example.com:8443", 443).unwrap();
        read(&host, status, location).unwrap()
    }

    #[test]
    fn another_path_of_the_same_host_is_followed() {
        for location in [
            "/new/accept?a=b",
            "https://parent.example.com:8443/new/accept?a=b",
            "https://PARENT.example.com:8443/new/accept?a=b",
        ] {
            assert_eq!(
                followed(307, Some(location)),
                Ok("/new/accept?a=b".to_owned()),
                "{location}"
            );
        }
        assert_eq!(
            followed(308, Some("https://parent.example.com:8443")),
            Ok("/".to_owned())
        );
    }

    #[test]
    fn the_token_goes_nowhere_else() {
        for location in [
            "http://parent.example.com:8443/accept",
            "https://parent.example.com/accept",
            "https://parent.example.com.evil.example:8443/accept",
            "https://user@parent.example.com:8443/accept",
            "https://[::1]:8443/accept",
            "//evil.example/accept",
            "accept",
            "ftp://parent.example.com:8443/",
        ] {
            let refused = followed(307, Some(location)).unwrap_err();
            assert!(
                matches!(refused, RedirectRefused::Elsewhere(_) | RedirectRefused::NoTarget),
                "{location}: {refused:?}"
            );
        }
        assert_eq!(followed(307, None), Err(RedirectRefused::NoTarget));
        assert_eq!(followed(307, Some("\u{1}")), Err(RedirectRefused::NoTarget));
    }

    #[test]
    fn a_redirect_that_turns_a_post_into_a_get_is_none() {
        for status in [301, 302, 303] {
            assert_eq!(
                followed(status, Some("/accept")),
                Err(RedirectRefused::ChangesRequest(status))
            );
        }
        let host = HostPort::parse("parent.example.com", 443).unwrap();
        for status in [200, 304, 404] {
            assert_eq!(read(&host, status, Some("/accept")), None);
        }
    }
}
