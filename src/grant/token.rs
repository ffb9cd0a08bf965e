//! Bearer tokens of grants: `fgs.<grant_id>.<hex>`, where hex is the HMAC-SHA256 of
//! `federation-grant:<grant_id>` under the server's key, and the runbook's older
//! `fg-<grant_id>`, which proves nothing. A signature is verified before any look-up, so a
//! stranger learns nothing about which grants there are, not even from the time it takes.

use std::fmt;

use hmac::digest::array::Array;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::Denial;
use crate::base::id::GrantId;
use crate::base::radix::HEXLOWER;
use crate::base::secret::Secret;

/// Length of the server's key, in bytes: as long as the signature, for full strength.
pub const GRANT_KEY_BYTES: usize = 32;

const SIGNED_PREFIX: &str = "fgs.";
const LEGACY_PREFIX: &str = "fg-";
const MESSAGE_PREFIX: &str = "federation-grant:";
const SIGNATURE_BYTES: usize = 32;

/// Block of SHA-256 in bytes, to which HMAC pads a shorter key with zeros.
const KEY_BLOCK_BYTES: usize = 64;

/// The server's secret under which grant tokens are signed.
#[derive(Clone)]
pub struct GrantKey(Zeroizing<[u8; GRANT_KEY_BYTES]>);

/// A stored key of the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the key of the grant tokens has {length} bytes instead of {GRANT_KEY_BYTES}; the store is damaged")]
pub struct WrongKeyLength {
    length: usize,
}

impl GrantKey {
    /// A new key from random bytes.
    pub const fn new(entropy: Zeroizing<[u8; GRANT_KEY_BYTES]>) -> Self {
        Self(entropy)
    }

    /// From a stored record of ours.
    pub fn from_secret(secret: &Secret) -> Result<Self, WrongKeyLength> {
        let bytes: &[u8; GRANT_KEY_BYTES] = secret
            .expose()
            .try_into()
            .map_err(|_| WrongKeyLength { length: secret.len() })?;
        Ok(Self(Zeroizing::new(*bytes)))
    }

    /// For the record that keeps it.
    pub fn to_secret(&self) -> Secret {
        Secret::new(self.0.to_vec())
    }

    fn mac(&self, grant: GrantId) -> Hmac<Sha256> {
        let mut block = [0; KEY_BLOCK_BYTES];
        block[..GRANT_KEY_BYTES].copy_from_slice(self.0.as_slice());
        let mut key = Array::from(block);
        let mac = Hmac::<Sha256>::new(&key)
            .chain_update(MESSAGE_PREFIX)
            .chain_update(grant.to_string());
        block.zeroize();
        key.as_mut_slice().zeroize();
        mac
    }
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrantKey(…)")
    }
}

/// Whether the runbook's unsigned `fg-<grant_id>` is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyTokens {
    /// Only signed tokens are: whoever reads a grant's id in a log cannot use it.
    Refuse,
    /// They are, for grants whose tokens were handed out in that form.
    Accept,
}

/// A grant's bearer token. Redacted but for the grant's id, wiped on drop.
#[derive(Clone)]
pub struct BearerToken {
    grant: GrantId,
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    Signature(Zeroizing<[u8; SIGNATURE_BYTES]>),
    None,
}

/// A text that is no grant token. It is not repeated: it may be another secret, pasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this is not a grant token; one looks like fgs.<grant id>.<64 hex digits>")]
pub struct MalformedToken;

impl BearerToken {
    /// The token of a grant, in the signed form.
    pub fn mint(grant: GrantId, key: &GrantKey) -> Self {
        let signature = key.mac(grant).finalize().into_bytes();
        Self {
            grant,
            proof: Proof::Signature(Zeroizing::new(signature.into())),
        }
    }

    /// Reads a token of either form. Only the form that we write is taken: lower case, no
    /// white space, nothing behind it.
    pub fn parse(text: &str) -> Result<Self, MalformedToken> {
        if let Some(rest) = text.strip_prefix(SIGNED_PREFIX) {
            let (grant, hex) = rest.split_once('.').ok_or(MalformedToken)?;
            let decoded = HEXLOWER.decode(hex.as_bytes()).map(Zeroizing::new);
            let decoded = decoded.map_err(|_| MalformedToken)?;
            let mut signature = Zeroizing::new([0; SIGNATURE_BYTES]);
            if decoded.len() != SIGNATURE_BYTES {
                return Err(MalformedToken);
            }
            signature.copy_from_slice(&decoded);
            return Ok(Self {
                grant: canonical_id(grant)?,
                proof: Proof::Signature(signature),
            });
        }
        let grant = text.strip_prefix(LEGACY_PREFIX).ok_or(MalformedToken)?;
        Ok(Self {
            grant: canonical_id(grant)?,
            proof: Proof::None,
        })
    }

    /// The grant that it names. Whether it may be looked up is [`BearerToken::verify`]'s to say.
    pub const fn grant(&self) -> GrantId {
        self.grant
    }

    /// Reads the value of an `Authorization` header.
    pub fn from_authorization(header: Option<&str>) -> Result<Self, Denial> {
        let header = header.map(str::trim).filter(|value| !value.is_empty());
        let (scheme, token) = match header.ok_or(Denial::TokenMissing)?.split_once(' ') {
            Some((scheme, token)) => (scheme, token.trim_start()),
            None => return Err(Denial::TokenMalformed),
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denial::TokenMalformed);
        }
        Self::parse(token).map_err(|_| Denial::TokenMalformed)
    }

    /// The grant that may now be looked up: the signature is ours, compared in constant time.
    pub fn verify(&self, key: &GrantKey, legacy: LegacyTokens) -> Result<GrantId, Denial> {
        match (&self.proof, legacy) {
            (Proof::Signature(signature), _) => key
                .mac(self.grant)
                .verify_slice(signature.as_slice())
                .map(|()| self.grant)
                .map_err(|_| Denial::TokenForged { grant: self.grant }),
            (Proof::None, LegacyTokens::Accept) => Ok(self.grant),
            (Proof::None, LegacyTokens::Refuse) => Err(Denial::TokenUnsigned { grant: self.grant }),
        }
    }

    /// The text, to be shown once or sent.
    pub fn to_secret(&self) -> Secret {
        Secret::from_text(match &self.proof {
            Proof::Signature(signature) => {
                let hex = Zeroizing::new(HEXLOWER.encode(signature.as_slice()));
                format!("{SIGNED_PREFIX}{}.{}", self.grant, hex.as_str())
            }
            Proof::None => format!("{LEGACY_PREFIX}{}", self.grant),
        })
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken(grant {}, …)", self.grant)
    }
}

fn canonical_id(text: &str) -> Result<GrantId, MalformedToken> {
    let id: GrantId = text.parse().map_err(|_| MalformedToken)?;
    if id.to_string() == text {
        Ok(id)
    } else {
        Err(MalformedToken)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::grant_id;
    use super::*;

    fn key(byte: u8) -> GrantKey {
        GrantKey::new(Zeroizing::new([byte; GRANT_KEY_BYTES]))
    }

    fn text(token: &BearerToken) -> String {
        token.to_secret().expose_text().unwrap().to_owned()
    }

    #[test]
    fn a_token_of_another_key_or_for_another_grant_is_forged() {
        let token = BearerToken::mint(grant_id(), &key(1));
        assert_eq!(token.verify(&key(1), LegacyTokens::Refuse), Ok(grant_id()));
        assert!(matches!(
            token.verify(&key(2), LegacyTokens::Accept),
            Err(Denial::TokenForged { .. })
        ));
        let moved = text(&token).replace("000000000001", "000000000002");
        assert!(matches!(
            BearerToken::parse(&moved)
                .unwrap()
                .verify(&key(1), LegacyTokens::Accept),
            Err(Denial::TokenForged { .. })
        ));
    }

    #[test]
    fn an_unsigned_token_is_taken_only_where_that_is_wished() {
        let token = BearerToken::parse(&format!("fg-{}", grant_id())).unwrap();
        assert_eq!(token.verify(&key(1), LegacyTokens::Accept), Ok(grant_id()));
        assert!(matches!(
            token.verify(&key(1), LegacyTokens::Refuse),
            Err(Denial::TokenUnsigned { .. })
        ));
    }

    #[test]
    fn only_the_form_that_we_write_is_taken() {
        let token = text(&BearerToken::mint(grant_id(), &key(1)));
        for bad in [
            token.to_uppercase(),
            format!(" {token}"),
            format!("{token}0"),
            token.replacen("0192f0c1", "0192F0C1", 1),
            format!("fg-{{{}}}", grant_id()),
            format!("fg-{}", grant_id().to_string().replace('-', "")),
        ] {
            assert_eq!(BearerToken::parse(&bad).err(), Some(MalformedToken), "{bad}");
        }
    }

    #[test]
    fn an_authorization_header_is_read_in_any_case_of_its_scheme() {
        let token = text(&BearerToken::mint(grant_id(), &key(1)));
        for good in [format!("Bearer {token}"), format!(" bearer  {token} ")] {
            let read = BearerToken::from_authorization(Some(&good)).unwrap();
            assert_eq!(read.verify(&key(1), LegacyTokens::Refuse), Ok(grant_id()));
        }
        for (header, denial) in [
            (None, Denial::TokenMissing),
            (Some("  "), Denial::TokenMissing),
            (Some("Bearer"), Denial::TokenMalformed),
            (Some("Basic dXNlcjpwYXNz"), Denial::TokenMalformed),
            (Some("Bearer Bearer x"), Denial::TokenMalformed),
        ] {
            assert_eq!(BearerToken::from_authorization(header).err(), Some(denial));
        }
    }

    #[test]
    fn debug_shows_neither_key_nor_signature() {
        let token = BearerToken::mint(grant_id(), &key(1));
        assert_eq!(
            format!("{token:?} {:?}", key(1)),
            format!("BearerToken(grant {}, …) GrantKey(…)", grant_id())
        );
    }

    #[test]
    fn a_key_survives_its_record_and_a_cut_one_is_refused() {
        let kept = GrantKey::from_secret(&key(7).to_secret()).unwrap();
        let token = BearerToken::mint(grant_id(), &key(7));
        assert!(token.verify(&kept, LegacyTokens::Refuse).is_ok());
        assert!(GrantKey::from_secret(&Secret::new(vec![7; 31])).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(fgs\\.|fg-)?\\PC{0,110}") {
            let _ = BearerToken::parse(&text);
            let _ = BearerToken::from_authorization(Some(&text));
        }

        #[test]
        fn what_is_read_is_written_the_same(id: u128, seed: u8, signed: bool) {
            let grant = GrantId::from_uuid(uuid::Uuid::from_u128(id));
            let written = if signed {
                text(&BearerToken::mint(grant, &key(seed)))
            } else {
                format!("fg-{grant}")
            };
            prop_assert_eq!(text(&BearerToken::parse(&written).unwrap()), written);
        }
    }
}
