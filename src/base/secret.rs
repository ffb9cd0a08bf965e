//! What must not be seen: secrets that redact themselves, compare in constant time and are
//! wiped when dropped. No `Serialize`, no `Deref`, no derived `Debug` or `PartialEq`: the only
//! way to the content is [`Secret::expose`], which is easy to find in a review.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret bytes: a private key, a token's text.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over the bytes; the caller's buffer becomes the secret's, nothing is copied.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Takes over a text without copying it.
    pub fn from_text(text: String) -> Self {
        Self::new(text.into_bytes())
    }

    /// The bytes, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, where they are UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Equality in time that depends on the lengths alone.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// For fields of stored records only: the store is where secrets live. Named in
/// `#[serde(with = "…")]`, so that a secret is never serialised by accident.
pub mod stored {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Secret;

    /// Writes the bytes into the record.
    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(secret.expose())
    }

    /// Reads the bytes from the record.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_content() {
        let secret = Secret::from_text("61qtu9mI5goi86W0l4Nd7cFGfENZhwk0O8sFnmGfkMk".into());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn comparison_is_by_content() {
        assert!(Secret::new(vec![1, 2]).matches(&Secret::new(vec![1, 2])));
        assert!(!Secret::new(vec![1, 2]).matches(&Secret::new(vec![1, 3])));
        assert!(!Secret::new(vec![1, 2]).matches(&Secret::new(vec![1, 2, 3])));
    }
}
