//! How operators show who they are to the proxy and to the ingress: `Basic name:token`,
//! `Bearer token`, SOCKS5's user name and password. Pure; whose token it is, the registry knows.

use http::HeaderValue;
use zeroize::Zeroizing;

use crate::base::radix::BASE64;
use crate::base::secret::Secret;

/// Longest credentials that are looked at, in bytes: a token has 43 characters, a name at most 63.
const MAX_BYTES: usize = 512;

/// Length of an operator's token: what is longer or shorter is somebody else's.
const TOKEN_CHARS: usize = 43;

/// What somebody has shown.
#[derive(Debug, Clone)]
pub(super) struct Presented {
    /// The name that goes with the token, where one was given.
    pub(super) name: Option<String>,
    /// The token.
    pub(super) token: Secret,
    /// Whether it came as a browser sends it.
    pub(super) basic: bool,
}

impl Presented {
    /// Reads the value of `Authorization` or `Proxy-Authorization`.
    pub(super) fn from_header(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok().filter(|text| text.len() <= MAX_BYTES)?;
        let (scheme, rest) = text.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::token(rest));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = Zeroizing::new(BASE64.decode(rest.as_bytes()).ok()?);
        let (name, token) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some(Self::named(name, token))
    }

    /// A token alone.
    pub(super) fn token(token: &str) -> Self {
        Self {
            name: None,
            token: Secret::from_text(token.trim().to_owned()),
            basic: false,
        }
    }

    /// A token with the name that it must belong to; no name at all is none.
    pub(super) fn named(name: &str, token: &str) -> Self {
        Self {
            name: (!name.is_empty()).then(|| name.to_owned()),
            basic: true,
            ..Self::token(token)
        }
    }

    /// Whether it can be an operator's at all.
    pub(super) fn looks_like_ours(&self) -> bool {
        self.token.len() == TOKEN_CHARS
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<(Option<String>, String, bool)> {
        let presented = Presented::from_header(&HeaderValue::from_str(text).unwrap())?;
        let token = presented.token.expose_text().unwrap().to_owned();
        Some((presented.name, token, presented.basic))
    }

    #[test]
    fn both_schemes_are_read_and_others_are_not() {
        assert_eq!(read("Bearer abc"), Some((None, "abc".into(), false)));
        assert_eq!(read("bearer  abc "), Some((None, "abc".into(), false)));
        // anna:to:ken
        assert_eq!(
            read("Basic YW5uYTp0bzprZW4="),
            Some((Some("anna".into()), "to:ken".into(), true))
        );
        // :token
        assert_eq!(read("basic OnRva2Vu"), Some((None, "token".into(), true)));
        for other in [
            "",
            "Bearer",
            "Digest x",
            "Basic !",
            "Basic YW5uYQ==",
            "Basic /w==",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = Presented::from_header(&value);
            }
        }

        #[test]
        fn what_a_browser_sends_is_read(name in "[a-z0-9._-]{1,63}", token in "[A-Za-z0-9_-]{43}") {
            let basic = format!("Basic {}", BASE64.encode(format!("{name}:{token}").as_bytes()));
            prop_assert_eq!(read(&basic), Some((Some(name), token, true)));
        }
    }
}
