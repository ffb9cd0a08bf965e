//! The acceptance token (contract section 3): 32 random bytes as 43 characters of urlsafe
//! base64. Only its SHA-256 digest is ever stored by the parent.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::radix::{BASE64URL_NOPAD, HEXLOWER};
use crate::base::secret::Secret;

/// Random bytes in a token that we mint.
pub const TOKEN_ENTROPY_BYTES: usize = 32;

/// Longest token that is taken, in bytes. Ours have 43; another parent's may be longer, but
/// what is longer than this is a file that was given by mistake.
pub const TOKEN_MAX_BYTES: usize = 512;

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidToken {
    /// Nothing but white space.
    #[error("the acceptance token is empty")]
    Empty,
    /// More than [`TOKEN_MAX_BYTES`].
    #[error("the acceptance token is longer than {TOKEN_MAX_BYTES} bytes; is this the right file?")]
    TooLong,
    /// A character that is neither a letter, a digit, `-`, `_`, `.` nor `=`.
    #[error("the acceptance token has a character that no token has, at position {position}")]
    BadCharacter {
        /// Counted in characters from 1, after surrounding white space.
        position: usize,
    },
}

/// A single-use acceptance token in clear. Redacted, wiped on drop.
#[derive(Debug, Clone)]
pub struct AcceptanceToken(Secret);

impl AcceptanceToken {
    /// A token of ours from random bytes.
    pub fn mint(entropy: &Zeroizing<[u8; TOKEN_ENTROPY_BYTES]>) -> Self {
        Self(Secret::from_text(BASE64URL_NOPAD.encode(entropy.as_slice())))
    }

    /// Takes a text that an operator or a payload gives. Surrounding white space is dropped;
    /// the given buffer is wiped.
    pub fn parse(text: String) -> Result<Self, InvalidToken> {
        let text = Zeroizing::new(text);
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(InvalidToken::Empty);
        }
        if trimmed.len() > TOKEN_MAX_BYTES {
            return Err(InvalidToken::TooLong);
        }
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
        if let Some(index) = trimmed.chars().position(|c| !known(c)) {
            return Err(InvalidToken::BadCharacter { position: index + 1 });
        }
        Ok(Self(Secret::from_text(trimmed.to_owned())))
    }

    /// From a stored record of ours.
    pub const fn from_secret(secret: Secret) -> Self {
        Self(secret)
    }

    /// The text, for the one request that carries it.
    pub fn expose(&self) -> &Secret {
        &self.0
    }

    /// What the parent stores of it.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.expose())
    }
}

/// SHA-256 of a token's text: of an acceptance token or an operator token. Compared in
/// constant time; shown only as the first eight hex digits.
#[derive(Clone, Copy, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token's text.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// The bytes: the key under which a store finds the row.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a store's key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// All 64 hex digits.
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}…", HEXLOWER.encode(&self.0[..4]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_token_has_43_urlsafe_characters() {
        let token = AcceptanceToken::mint(&Zeroizing::new([0xfb; 32]));
        assert_eq!(token.expose().len(), 43);
        assert!(AcceptanceToken::parse(token.expose().expose_text().unwrap().to_owned()).is_ok());
    }

    #[test]
    fn bad_tokens_say_why_without_repeating_them() {
        assert_eq!(
            AcceptanceToken::parse(" \n".into()).unwrap_err(),
            InvalidToken::Empty
        );
        assert_eq!(
            AcceptanceToken::parse("x".repeat(513)).unwrap_err(),
            InvalidToken::TooLong
        );
        let error = AcceptanceToken::parse("abc def".into()).unwrap_err();
        assert_eq!(error, InvalidToken::BadCharacter { position: 4 });
    }
}
