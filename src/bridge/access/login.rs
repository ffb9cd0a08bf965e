//! The cookie of an operator who has logged in with a browser: the token, sealed with a key that lives
//! as long as the daemon, for one service of one peer and for a time. Nothing is stored, and a token
//! that is revoked is gone at once, because it is looked up with every request.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::base::radix::BASE64URL_NOPAD;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::process::entropy;

/// Name of the cookie. Browsers set cookies of this prefix over HTTPS alone.
pub(super) const COOKIE: &str = "__Secure-powernode-login";

/// How long a login is good for, in seconds: a working day.
pub(super) const LIFETIME_SECONDS: u32 = 12 * 3_600;

/// Longest cookie that is looked at, in characters: a token's is about 110.
const COOKIE_MAX_CHARS: usize = 256;

const TIME_BYTES: usize = 8;

/// Seals and opens logins.
pub(super) struct Logins {
    key: Option<LessSafeKey>,
}

impl Logins {
    /// With a key that nobody else has. Cookies of an earlier start do not open.
    pub(super) fn new() -> Self {
        let key = entropy::secret_bytes::<32>();
        Self {
            key: UnboundKey::new(&AES_256_GCM, &*key).ok().map(LessSafeKey::new),
        }
    }

    /// The cookie's value for a token, or nothing where the cipher refuses.
    pub(super) fn seal(&self, token: &Secret, path: &str, now: UnixTime) -> Option<String> {
        let until = now.as_seconds().saturating_add(i64::from(LIFETIME_SECONDS));
        let nonce: [u8; NONCE_LEN] = entropy::bytes();
        let mut content = until.to_be_bytes().to_vec();
        content.extend_from_slice(token.expose());
        let sealing = Nonce::assume_unique_for_key(nonce);
        self.key
            .as_ref()?
            .seal_in_place_append_tag(sealing, Aad::from(path.as_bytes()), &mut content)
            .ok()?;
        let mut sealed = nonce.to_vec();
        sealed.append(&mut content);
        Some(BASE64URL_NOPAD.encode(&sealed))
    }

    /// The token of a cookie that this daemon has made for this path and that is still good.
    pub(super) fn open(&self, cookie: &str, path: &str, now: UnixTime) -> Option<Secret> {
        if cookie.len() > COOKIE_MAX_CHARS {
            return None;
        }
        let sealed = BASE64URL_NOPAD.decode(cookie.as_bytes()).ok()?;
        let (nonce, content) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut content = content.to_vec();
        let opening = Nonce::assume_unique_for_key(*nonce);
        let opened = self
            .key
            .as_ref()?
            .open_in_place(opening, Aad::from(path.as_bytes()), &mut content)
            .ok()?;
        let (until, token) = opened.split_first_chunk::<TIME_BYTES>()?;
        (now.as_seconds() < i64::from_be_bytes(*until)).then(|| Secret::new(token.to_vec()))
    }
}

impl std::fmt::Debug for Logins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logins(…)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_login_opens_where_it_was_made_and_for_its_time() {
        let logins = Logins::new();
        let now = UnixTime::from_seconds(1_800_000_000);
        let token = Secret::from_text("t".repeat(43));
        let cookie = logins.seal(&token, "/satellites/shop-17/web/", now).unwrap();
        assert!(cookie.len() <= COOKIE_MAX_CHARS);
        let open = |cookie: &str, path: &str, after: i64| {
            let then = UnixTime::from_seconds(1_800_000_000 + after);
            logins
                .open(cookie, path, then)
                .is_some_and(|opened| opened.matches(&token))
        };
        assert!(open(&cookie, "/satellites/shop-17/web/", 0));
        assert!(open(&cookie, "/satellites/shop-17/web/", 43_199));
        assert!(!open(&cookie, "/satellites/shop-17/web/", 43_200));
        assert!(!open(&cookie, "/satellites/shop-18/web/", 0));
        assert!(!open(&cookie[1..], "/satellites/shop-17/web/", 0));
        assert!(!open("", "/satellites/shop-17/web/", 0));
        let other = Logins::new();
        assert!(other.open(&cookie, "/satellites/shop-17/web/", now).is_none());
    }
}
