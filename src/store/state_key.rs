//! The state key: 32 random bytes from outside of the state directory, which seal what is secret in
//! it. Says how a key file may look and reads it; what is sealed, and how, is [`super::seal`]'s.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::radix::{BASE64, BASE64URL, HEXLOWER, HEXLOWER_PERMISSIVE, Radix};
use crate::process::config::StateKeyFile;

/// Length of a key, in bytes: AES-256's.
pub const KEY_BYTES: usize = 32;

/// Bytes of a nonce: AES-GCM's. Drawn at random, so one key may seal 2^32 times before two are the
/// same with a chance that counts; a satellite seals a few times a day.
pub(super) const NONCE_BYTES: usize = 12;

/// Bytes that sealing adds behind the content.
pub(super) const TAG_BYTES: usize = 16;

/// Most bytes of a key file: the longest form has 64, and some white space around it.
const FILE_MAX_BYTES: usize = 128;

const HEX_CHARS: usize = 2 * KEY_BYTES;
const BASE64_CHARS: usize = 44;

/// What is hashed before the key to make its id, so that the id is no digest that anything else has.
const ID_DOMAIN: &[u8] = b"powernode state key id 1\0";

/// The key. Clones share it; it is wiped with the last one.
#[derive(Clone)]
pub struct StateKey(Arc<Inner>);

struct Inner {
    cipher: LessSafeKey,
    id: KeyId,
}

/// By what two keys are told apart: it tells nothing else of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(super) [u8; Self::BYTES]);

/// Why a key file gives no key.
#[derive(Debug, Error)]
pub enum StateKeyError {
    /// Named, but not there.
    #[error(
        "there is no state key file {}; put the key there, or correct state_key_file. A new key, for a state that is not sealed yet: `(umask 077; head -c 32 /dev/urandom > FILE)`",
        path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot read the state key file {}; make it readable for the user that runs this program, and for nobody else", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content is none.
    #[error("the state key file {} cannot be used", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: InvalidStateKey,
    },
}

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "it {}; a key is 32 random bytes as they are, as 64 hex digits, or as 44 characters of base64. A new one, for a state that is not sealed yet: `(umask 077; head -c 32 /dev/urandom > FILE)`",
    .0.what()
)]
pub struct InvalidStateKey(Fault);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Blank,
    Length,
    Digits,
    Words,
    Monotone,
    Cipher,
}

impl Fault {
    const fn what(self) -> &'static str {
        match self {
            Self::Blank => "is blank",
            Self::Length => "has not the length of a key",
            Self::Digits => "has the length of a written key and characters that none has",
            Self::Words => {
                "is a line of text: 32 characters that somebody may have typed are no random bytes"
            }
            Self::Monotone => "is one byte again and again",
            Self::Cipher => "was not taken by the cipher",
        }
    }
}

impl StateKey {
    /// Reads a key file. `None` when nobody has named it and it is not there, or is blank, as the
    /// service manager's stand-in for a credential is. Blocks on the file.
    pub fn read(file: &StateKeyFile) -> Result<Option<Self>, StateKeyError> {
        let path = &file.path;
        let unreadable = |source| StateKeyError::Unreadable {
            path: path.clone(),
            source,
        };
        let opened = match File::open(path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !file.named => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateKeyError::Missing { path: path.clone() });
            }
            Err(error) => return Err(unreadable(error)),
        };
        // Room for all of it at once: a buffer that grows leaves unwiped pieces behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX_BYTES + 1));
        opened
            .take(FILE_MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        match Self::parse(&bytes) {
            Ok(key) => Ok(Some(key)),
            Err(InvalidStateKey(Fault::Blank)) if !file.named => Ok(None),
            Err(source) => Err(StateKeyError::Unusable {
                path: path.clone(),
                source,
            }),
        }
    }

    /// The key of a file's content.
    pub fn parse(content: &[u8]) -> Result<Self, InvalidStateKey> {
        let text = content.trim_ascii();
        if text.is_empty() {
            return Err(InvalidStateKey(Fault::Blank));
        }
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if content.len() == KEY_BYTES {
            if content
                .iter()
                .all(|byte| byte.is_ascii_graphic() || *byte == b' ')
            {
                return Err(InvalidStateKey(Fault::Words));
            }
            key.copy_from_slice(content);
        } else if text.len() == HEX_CHARS {
            decode_text(&[HEXLOWER_PERMISSIVE], text, &mut key)?;
        } else if text.len() == BASE64_CHARS {
            decode_text(&[BASE64, BASE64URL], text, &mut key)?;
        } else {
            return Err(InvalidStateKey(Fault::Length));
        }
        if key.iter().all(|byte| *byte == key[0]) {
            return Err(InvalidStateKey(Fault::Monotone));
        }
        Self::of_bytes(&key)
    }

    /// What tells this key from others.
    pub fn id(&self) -> KeyId {
        self.0.id
    }

    fn of_bytes(key: &[u8; KEY_BYTES]) -> Result<Self, InvalidStateKey> {
        let cipher = UnboundKey::new(&AES_256_GCM, key).map_err(|_| InvalidStateKey(Fault::Cipher))?;
        let digest = Sha256::new().chain_update(ID_DOMAIN).chain_update(key).finalize();
        let mut id = [0; KeyId::BYTES];
        for (to, from) in id.iter_mut().zip(digest) {
            *to = from;
        }
        Ok(Self(Arc::new(Inner {
            cipher: LessSafeKey::new(cipher),
            id: KeyId(id),
        })))
    }

    /// Encrypts `content` in its place and gives the tag; `None` when the cipher refuses.
    pub(super) fn encrypt(
        &self,
        nonce: [u8; NONCE_BYTES],
        binding: &[u8],
        content: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .cipher
            .seal_in_place_separate_tag(nonce, Aad::from(binding), content)
            .ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts content with its tag behind it, in its place; `None` when a byte of it, of the nonce
    /// or of what it is bound to is not what it was.
    pub(super) fn decrypt(
        &self,
        nonce: [u8; NONCE_BYTES],
        binding: &[u8],
        content_and_tag: &mut [u8],
    ) -> Option<usize> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0
            .cipher
            .open_in_place(nonce, Aad::from(binding), content_and_tag)
            .ok()
            .map(|content| content.len())
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateKey({})", self.0.id)
    }
}

impl KeyId {
    pub(super) const BYTES: usize = 4;
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Decodes into the key, by the first encoding that takes the text; nothing of it stays elsewhere.
fn decode_text(encodings: &[Radix], text: &[u8], key: &mut [u8; KEY_BYTES]) -> Result<(), InvalidStateKey> {
    for encoding in encodings {
        if let Ok(decoded) = encoding.decode(text).map(Zeroizing::new)
            && let Ok(decoded) = <&[u8; KEY_BYTES]>::try_from(decoded.as_slice())
        {
            key.copy_from_slice(decoded);
            return Ok(());
        }
    }
    Err(InvalidStateKey(Fault::Digits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(content: &[u8]) -> Fault {
        StateKey::parse(content).unwrap_err().0
    }

    fn file(path: PathBuf, named: bool) -> StateKeyFile {
        StateKeyFile { path, named }
    }

    #[test]
    fn what_is_no_key_is_refused_with_advice() {
        assert_eq!(refused(b""), Fault::Blank);
        assert_eq!(refused(b" \n"), Fault::Blank);
        assert_eq!(refused(b"hunter2"), Fault::Length);
        assert_eq!(refused(&[7; 129]), Fault::Length);
        assert_eq!(refused(b"correct horse battery staple 123"), Fault::Words);
        assert_eq!(refused(&[0; KEY_BYTES]), Fault::Monotone);
        assert_eq!(refused("00".repeat(KEY_BYTES).as_bytes()), Fault::Monotone);
        assert_eq!(refused("zz".repeat(KEY_BYTES).as_bytes()), Fault::Digits);
        assert_eq!(refused("=".repeat(BASE64_CHARS).as_bytes()), Fault::Digits);
        // 33 bytes make 44 characters, too.
        assert_eq!(refused(BASE64.encode(&[1; 33]).as_bytes()), Fault::Digits);
        let said = StateKey::parse(b"hunter2").unwrap_err().to_string();
        assert!(
            said.contains("head -c 32 /dev/urandom") && !said.contains("hunter2"),
            "{said}"
        );
    }

    #[test]
    fn a_file_that_nobody_named_need_not_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state-key");
        assert!(StateKey::read(&file(path.clone(), false)).unwrap().is_none());
        let missing = StateKey::read(&file(path.clone(), true));
        assert!(matches!(missing, Err(StateKeyError::Missing { .. })));
        std::fs::write(&path, "\n").unwrap();
        assert!(StateKey::read(&file(path.clone(), false)).unwrap().is_none());
        let blank = StateKey::read(&file(path.clone(), true));
        assert!(matches!(blank, Err(StateKeyError::Unusable { .. })));
        std::fs::write(&path, "short\n").unwrap();
        let short = StateKey::read(&file(path.clone(), false));
        assert!(matches!(short, Err(StateKeyError::Unusable { .. })));
        std::fs::write(&path, vec![b'a'; 5000]).unwrap();
        assert!(StateKey::read(&file(path.clone(), true)).is_err());
        let directory = StateKey::read(&file(directory.path().to_owned(), true));
        assert!(matches!(directory, Err(StateKeyError::Unreadable { .. })));
        std::fs::write(&path, (0..32).collect::<Vec<u8>>()).unwrap();
        assert!(StateKey::read(&file(path, false)).unwrap().is_some());
    }

    #[test]
    fn debug_shows_the_id_alone() {
        let key = StateKey::parse(&(0..32).collect::<Vec<u8>>()).unwrap();
        assert_eq!(format!("{key:?}"), "StateKey(fb994bdd)");
    }

    proptest! {
        #[test]
        fn all_forms_are_the_same_key(bytes: [u8; KEY_BYTES]) {
            prop_assume!(StateKey::parse(&bytes).is_ok());
            let id = StateKey::parse(&bytes).unwrap().id();
            for text in [
                HEXLOWER.encode(&bytes),
                crate::base::radix::HEXUPPER.encode(&bytes),
                BASE64.encode(&bytes),
                BASE64URL.encode(&bytes),
            ] {
                prop_assert_eq!(StateKey::parse(text.as_bytes()).unwrap().id(), id);
                prop_assert_eq!(StateKey::parse(format!(" {text}\r\n").as_bytes()).unwrap().id(), id);
            }
            let mut other = bytes;
            other[31] ^= 1;
            if let Ok(other) = StateKey::parse(&other) {
                prop_assert_ne!(other.id(), id);
            }
        }

        #[test]
        fn any_bytes_are_a_key_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            let _ = StateKey::parse(&bytes);
        }
    }
}
