//! Seals: what is secret at rest, encrypted with the [`StateKey`], so that a stolen memory card or a
//! copied state directory does not give private keys away. Bytes in, bytes out; no file, no table.
//!
//! Sealed bytes are a marker that no record begins with, the key's id, a random nonce, and the
//! content under AES-256-GCM. The place where they lie is authenticated with them: a row of one key,
//! table or program does not open as another's. Bytes without the marker are what they are, so a
//! state that was made without a key is read under one, and is sealed when it is next opened for
//! writing. Seals protect against reading: who may write to the directory can put a state of their
//! own there, sealed or not.

use std::borrow::Cow;
use std::ops::Deref;

use thiserror::Error;
use zeroize::Zeroizing;

use super::schema::Schema;
use super::state_key::{KeyId, NONCE_BYTES, StateKey, TAG_BYTES};
use crate::base::secret::Secret;
use crate::process::entropy;

/// First byte of all that is sealed. Above every version of a record, so that a program which knows
/// no seals takes the row for a newer one and leaves it alone.
pub(super) const MARKER: u8 = 0xff;

/// Bytes before the content: marker, key id, nonce.
const HEAD_BYTES: usize = 1 + KeyId::BYTES + NONCE_BYTES;

/// Why sealed bytes do not open, or bytes were not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// Nobody gave a key.
    #[error(
        "it is sealed with the state key {sealed_with}, and no state key was given; name its file with state_key_file, or provide the credential `state-key`. Without it, what it seals cannot be had back (docs/OPERATING.md, \"State key\")"
    )]
    NoKey {
        /// The key that it takes.
        sealed_with: KeyId,
    },
    /// Somebody gave another one.
    #[error(
        "it is sealed with the state key {sealed_with}, and the one given is {given}; give the one that it was sealed with"
    )]
    OtherKey {
        /// The key that it takes.
        sealed_with: KeyId,
        /// The key that there is.
        given: KeyId,
    },
    /// Cut, changed, or taken from elsewhere.
    #[error("its seal does not hold: the bytes were changed, or brought here from another place")]
    Broken,
    /// The cipher refuses.
    #[error("the cipher did not seal the bytes; start the program again, and report this if it stays")]
    Cipher,
}

/// Where sealed bytes lie.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// In a row of a table.
    Row { table: &'a str, key: &'a [u8] },
    /// In the second copy.
    Copy,
}

/// Opened bytes: borrowed where they were not sealed, wiped when dropped where they were.
pub(super) enum Opened<'a> {
    Bare(&'a [u8]),
    Unsealed(Zeroizing<Vec<u8>>),
}

/// What one store seals, and with which key.
#[derive(Debug, Clone)]
pub(super) struct Seals {
    schema: &'static Schema,
    key: Option<StateKey>,
}

/// The content of a second copy, sealed where there is a key.
pub fn seal_copy(
    schema: &'static Schema,
    key: Option<&StateKey>,
    content: &Secret,
) -> Result<Secret, SealError> {
    match key {
        None => Ok(content.clone()),
        Some(key) => {
            let binding = Place::Copy.binding(schema.name);
            seal(key, entropy::bytes(), &binding, content.expose()).map(Secret::new)
        }
    }
}

/// The content of a second copy as it was given to [`seal_copy`].
pub fn open_copy(
    schema: &'static Schema,
    key: Option<&StateKey>,
    copied: &Secret,
) -> Result<Secret, SealError> {
    let binding = Place::Copy.binding(schema.name);
    match open(key, &binding, copied.expose())? {
        Opened::Bare(content) => Ok(Secret::new(content.to_vec())),
        Opened::Unsealed(mut content) => Ok(Secret::new(std::mem::take(&mut *content))),
    }
}

/// Whether these bytes are sealed, with whatever key.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARKER)
}

impl Seals {
    pub(super) fn new(schema: &'static Schema, key: Option<&StateKey>) -> Self {
        Self {
            schema,
            key: key.cloned(),
        }
    }

    pub(super) const fn schema(&self) -> &'static Schema {
        self.schema
    }

    pub(super) const fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The form of a row's value in the file.
    pub(super) fn stored<'v>(
        &self,
        table: &str,
        key: &[u8],
        value: &'v [u8],
    ) -> Result<Cow<'v, [u8]>, SealError> {
        match &self.key {
            Some(state_key) if self.covers(table) => {
                let binding = Place::Row { table, key }.binding(self.schema.name);
                seal(state_key, entropy::bytes(), &binding, value).map(Cow::Owned)
            }
            _ => Ok(Cow::Borrowed(value)),
        }
    }

    /// The value of a row in the file.
    pub(super) fn opened<'v>(
        &self,
        table: &str,
        key: &[u8],
        stored: &'v [u8],
    ) -> Result<Opened<'v>, SealError> {
        let binding = Place::Row { table, key }.binding(self.schema.name);
        open(self.key.as_ref(), &binding, stored)
    }

    /// Whether this value should be in the file as it is: sealed where it must be.
    pub(super) fn is_in_form(&self, table: &str, stored: &[u8]) -> bool {
        is_sealed(stored) == (self.has_key() && self.covers(table))
    }

    /// Whether sealed bytes are of the key that there is.
    pub(super) fn check_key(&self, stored: &[u8]) -> Result<(), SealError> {
        match read_head(stored)? {
            Some((sealed_with, ..)) => matching(self.key.as_ref(), sealed_with).map(|_| ()),
            None => Ok(()),
        }
    }

    fn covers(&self, table: &str) -> bool {
        self.schema.sealed.contains(&table)
    }
}

impl Place<'_> {
    /// What is authenticated with the content. Every part that varies has its length before it.
    fn binding(&self, schema: &str) -> Vec<u8> {
        let mut binding = b"powernode state 1\0".to_vec();
        let mut add = |part: &[u8]| {
            binding.extend_from_slice(&(part.len() as u64).to_be_bytes());
            binding.extend_from_slice(part);
        };
        add(schema.as_bytes());
        match self {
            Self::Row { table, key } => {
                add(b"row");
                add(table.as_bytes());
                add(key);
            }
            Self::Copy => add(b"copy"),
        }
        binding
    }
}

impl Deref for Opened<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Bare(bytes) => bytes,
            Self::Unsealed(bytes) => bytes,
        }
    }
}

fn seal(
    key: &StateKey,
    nonce: [u8; NONCE_BYTES],
    binding: &[u8],
    content: &[u8],
) -> Result<Vec<u8>, SealError> {
    // Room for all of it at once: a buffer that grows leaves unwiped pieces behind.
    let mut sealed = Vec::with_capacity(HEAD_BYTES + content.len() + TAG_BYTES);
    sealed.push(MARKER);
    sealed.extend_from_slice(&key.id().0);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(content);
    let tag = key
        .encrypt(nonce, binding, &mut sealed[HEAD_BYTES..])
        .ok_or(SealError::Cipher)?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

fn open<'b>(key: Option<&StateKey>, binding: &[u8], bytes: &'b [u8]) -> Result<Opened<'b>, SealError> {
    let Some((sealed_with, nonce, content_and_tag)) = read_head(bytes)? else {
        return Ok(Opened::Bare(bytes));
    };
    let key = matching(key, sealed_with)?;
    let mut content = Zeroizing::new(content_and_tag.to_vec());
    let length = key
        .decrypt(nonce, binding, &mut content)
        .ok_or(SealError::Broken)?;
    content.truncate(length);
    Ok(Opened::Unsealed(content))
}

fn matching(key: Option<&StateKey>, sealed_with: KeyId) -> Result<&StateKey, SealError> {
    match key {
        None => Err(SealError::NoKey { sealed_with }),
        Some(key) if key.id() != sealed_with => Err(SealError::OtherKey {
            sealed_with,
            given: key.id(),
        }),
        Some(key) => Ok(key),
    }
}

type Head<'b> = (KeyId, [u8; NONCE_BYTES], &'b [u8]);

/// The parts of sealed bytes; `None` for bytes that are not sealed.
fn read_head(bytes: &[u8]) -> Result<Option<Head<'_>>, SealError> {
    let Some(rest) = bytes.strip_prefix(&[MARKER]) else {
        return Ok(None);
    };
    let (id, rest) = rest.split_first_chunk().ok_or(SealError::Broken)?;
    let (nonce, rest) = rest.split_first_chunk().ok_or(SealError::Broken)?;
    Ok(Some((KeyId(*id), *nonce, rest)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static SCHEMA: Schema = Schema {
        name: "test",
        version: 1,
        migrations: &[],
        sealed: &["secrets"],
    };

    static OTHER: Schema = Schema {
        name: "other",
        version: 1,
        migrations: &[],
        sealed: &["secrets"],
    };

    fn key(first: u8) -> StateKey {
        StateKey::parse(&(first..first + 32).collect::<Vec<u8>>()).unwrap()
    }

    fn seals(key: &StateKey) -> Seals {
        Seals::new(&SCHEMA, Some(key))
    }

    #[test]
    fn a_known_value_has_known_bytes() {
        let binding = Place::Row {
            table: "secrets",
            key: b"k",
        }
        .binding("test");
        let sealed = seal(&key(0), [9; NONCE_BYTES], &binding, b"\x01secret").unwrap();
        assert_eq!(
            crate::base::radix::HEXLOWER.encode(&sealed),
            "fffb994bdd090909090909090909090909b26b6d58f5fa37459627bab155540102fafa38253c8803"
        );
        assert_eq!(&*open(Some(&key(0)), &binding, &sealed).unwrap(), b"\x01secret");
    }

    #[test]
    fn only_what_the_schema_lists_is_sealed_and_never_twice_the_same() {
        let seals = seals(&key(0));
        let first = seals.stored("secrets", b"k", b"\x01secret").unwrap();
        assert!(is_sealed(&first) && seals.is_in_form("secrets", &first));
        assert_ne!(first, seals.stored("secrets", b"k", b"\x01secret").unwrap());
        let open = seals.stored("notes", b"k", b"\x01note").unwrap();
        assert_eq!(&*open, b"\x01note");
        assert!(seals.is_in_form("notes", &open) && !seals.is_in_form("secrets", &open));
        let bare = Seals::new(&SCHEMA, None)
            .stored("secrets", b"k", b"\x01secret")
            .unwrap();
        assert_eq!(&*seals.opened("secrets", b"k", &bare).unwrap(), b"\x01secret");
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_refused() {
        let seals = seals(&key(0));
        let sealed = seals.stored("secrets", b"k", b"\x01secret").unwrap().into_owned();
        for bit in 0..8 {
            // Not sealed any more, but of a version that no record has.
            assert!(sealed[0] ^ 1 << bit > 100);
        }
        for index in 1..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[index] ^= 1 << bit;
                assert!(
                    seals.opened("secrets", b"k", &changed).is_err(),
                    "byte {index}, bit {bit}"
                );
            }
            assert!(
                seals.opened("secrets", b"k", &sealed[..index]).is_err(),
                "cut at {index}"
            );
        }
        let mut longer = sealed;
        longer.push(0);
        assert!(matches!(
            seals.opened("secrets", b"k", &longer),
            Err(SealError::Broken)
        ));
    }

    #[test]
    fn bytes_open_in_their_place_alone() {
        let seals = seals(&key(0));
        let sealed = seals
            .stored("secrets", b"ab", b"\x01secret")
            .unwrap()
            .into_owned();
        for (table, key) in [
            ("secrets", &b"ac"[..]),
            ("secretsa", b"b"),
            ("others", b"ab"),
            ("secrets", b""),
        ] {
            assert!(
                matches!(seals.opened(table, key, &sealed), Err(SealError::Broken)),
                "{table}"
            );
        }
        assert!(open_copy(&SCHEMA, Some(&key(0)), &Secret::new(sealed.clone())).is_err());
        let other = Seals::new(&OTHER, Some(&key(0)));
        assert!(matches!(
            other.opened("secrets", b"ab", &sealed),
            Err(SealError::Broken)
        ));
        let copy = seal_copy(&SCHEMA, Some(&key(0)), &Secret::from_text("x".into())).unwrap();
        assert!(open_copy(&OTHER, Some(&key(0)), &copy).is_err());
        assert!(seals.opened("secrets", b"ab", copy.expose()).is_err());
    }

    #[test]
    fn a_missing_and_a_wrong_key_are_told_with_their_ids() {
        let sealed = seals(&key(0))
            .stored("secrets", b"k", b"\x01secret")
            .unwrap()
            .into_owned();
        let none = Seals::new(&SCHEMA, None)
            .opened("secrets", b"k", &sealed)
            .err()
            .unwrap();
        assert_eq!(
            none,
            SealError::NoKey {
                sealed_with: key(0).id()
            }
        );
        assert!(none.to_string().contains("state_key_file"));
        let wrong = seals(&key(1)).opened("secrets", b"k", &sealed).err().unwrap();
        let said = wrong.to_string();
        assert!(said.contains(&key(0).id().to_string()) && said.contains(&key(1).id().to_string()));
    }

    proptest! {
        #[test]
        fn any_content_comes_back(content: Vec<u8>, row: Vec<u8>) {
            let (key, content) = (key(3), Secret::new(content));
            let seals = seals(&key);
            let sealed = seals.stored("secrets", &row, content.expose()).unwrap();
            prop_assert_eq!(&*seals.opened("secrets", &row, &sealed).unwrap(), content.expose());
            let copy = seal_copy(&SCHEMA, Some(&key), &content).unwrap();
            prop_assert!(open_copy(&SCHEMA, Some(&key), &copy).unwrap().matches(&content));
            // What was never sealed is handed on, unless it looks sealed.
            match open_copy(&SCHEMA, None, &content) {
                Ok(bare) => prop_assert!(bare.matches(&content)),
                Err(_) => prop_assert!(is_sealed(content.expose())),
            }
        }
    }
}
