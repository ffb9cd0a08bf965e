//! Values and keys as bytes. A record is one version byte and its postcard encoding; a key is
//! bytes that sort as the keys do. Knows no table and no file.
//!
//! A record type that changes raises [`Record::VERSION`] and says in [`Record::upgrade`] how to
//! read the bytes of earlier versions; rows are rewritten when they are next put. What concerns
//! whole tables is a migration of the schema instead.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use zeroize::Zeroizing;

use super::seal::MARKER;
use crate::base::id::{GrantId, InstanceId, NetworkId, OperatorId, PeerId, SessionId};
use crate::contract::token::TokenDigest;

/// Largest encoded record, in bytes. The largest of ours is a whole JSON answer with a CA bundle
/// ([`JSON_BODY_MAX_BYTES`](crate::base::limit::JSON_BODY_MAX_BYTES)), which this holds four
/// times; what is larger has grown without a bound.
pub const RECORD_MAX_BYTES: usize = 1024 * 1024;

/// A value of a table.
pub trait Record: Serialize + DeserializeOwned {
    /// Version of the encoding that this build writes; the first byte of every stored value, unless
    /// it is sealed: from 1 to 254.
    const VERSION: u8;

    /// Reads the postcard bytes of an earlier version.
    fn upgrade(version: u8, _bytes: &[u8]) -> Result<Self, RecordError> {
        Err(RecordError::UnknownVersion {
            found: version,
            known: Self::VERSION,
        })
    }
}

/// Why bytes are no record, or a record cannot become bytes.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Nothing there, not even a version.
    #[error("the record is empty")]
    Empty,
    /// Written by a newer build.
    #[error("the record has version {found}, and this program knows versions up to {known}")]
    Newer {
        /// In the store.
        found: u8,
        /// [`Record::VERSION`].
        known: u8,
    },
    /// An earlier version without an upgrade.
    #[error("the record has version {found}, which no build has written; this program writes {known}")]
    UnknownVersion {
        /// In the store.
        found: u8,
        /// [`Record::VERSION`].
        known: u8,
    },
    /// The bytes do not decode.
    #[error("the record does not decode")]
    Malformed(#[source] postcard::Error),
    /// The bytes decode, and some are left.
    #[error("the record has {excess} bytes too many")]
    TrailingBytes {
        /// How many.
        excess: usize,
    },
    /// The row's key does not decode.
    #[error("the row's key does not decode")]
    Key,
    /// More than [`RECORD_MAX_BYTES`].
    #[error("the record has {bytes} bytes, and {RECORD_MAX_BYTES} are the most that one may have")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// The value does not encode.
    #[error("the record does not encode")]
    Unencodable(#[source] postcard::Error),
}

/// The stored form of a record. Wiped when dropped: records may hold secrets.
pub fn encode<R: Record>(record: &R) -> Result<Zeroizing<Vec<u8>>, RecordError> {
    const {
        assert!(
            R::VERSION > 0 && R::VERSION < MARKER,
            "sealed values begin with what no record does"
        );
    };
    let size = written(record, &mut [])?;
    if size >= RECORD_MAX_BYTES {
        return Err(RecordError::TooLarge { bytes: size + 1 });
    }
    // Room for all of it at once: a buffer that grows leaves unwiped pieces behind.
    let mut bytes = Zeroizing::new(vec![0; size + 1]);
    if let Some((version, content)) = bytes.split_first_mut() {
        *version = R::VERSION;
        written(record, content)?;
    }
    Ok(bytes)
}

/// Writes the record as far as there is room and gives the length of the whole.
fn written<R: Record>(record: &R, room: &mut [u8]) -> Result<usize, RecordError> {
    postcard::serialize_with_flavor(record, Measured { room, length: 0 }).map_err(RecordError::Unencodable)
}

/// Measures and writes with the same code, which is large for each type of record.
struct Measured<'r> {
    room: &'r mut [u8],
    length: usize,
}

impl Flavor for Measured<'_> {
    type Output = usize;

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let end = self
            .length
            .checked_add(bytes.len())
            .ok_or(postcard::Error::SerializeBufferFull)?;
        if let Some(place) = self.room.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
        }
        self.length = end;
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.length)
    }
}

/// The record of its stored form.
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let (&version, content) = bytes.split_first().ok_or(RecordError::Empty)?;
    if version > R::VERSION {
        return Err(RecordError::Newer {
            found: version,
            known: R::VERSION,
        });
    }
    if version < R::VERSION {
        return R::upgrade(version, content);
    }
    decode_content(content)
}

/// The value of postcard bytes, all of them: what [`Record::upgrade`] reads an earlier type with.
pub fn decode_content<T: DeserializeOwned>(content: &[u8]) -> Result<T, RecordError> {
    match postcard::take_from_bytes(content).map_err(RecordError::Malformed)? {
        (value, []) => Ok(value),
        (_, rest) => Err(RecordError::TrailingBytes { excess: rest.len() }),
    }
}

/// The key of a table. Encodings sort as the keys are to be listed.
pub trait Key: Sized {
    /// The stored form.
    fn encode(&self) -> Vec<u8>;

    /// The key of its stored form.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// What an error calls the row.
    fn shown(&self) -> String;
}

/// The key of tables that have one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Only;

/// The bytes of [`Only`].
const ONLY_BYTES: &[u8] = b"only";

impl Key for Only {
    fn encode(&self) -> Vec<u8> {
        ONLY_BYTES.to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes == ONLY_BYTES).then_some(Self)
    }

    fn shown(&self) -> String {
        "only".to_owned()
    }
}

impl Key for String {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok().map(str::to_owned)
    }

    fn shown(&self) -> String {
        crate::base::limit::foreign_text(self)
    }
}

impl Key for u64 {
    fn encode(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Key for TokenDigest {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }

    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

macro_rules! id_key {
    ($($id:ty),+) => {$(
        impl Key for $id {
            fn encode(&self) -> Vec<u8> {
                self.as_bytes().to_vec()
            }

            fn decode(bytes: &[u8]) -> Option<Self> {
                uuid::Uuid::from_slice(bytes).ok().map(Self::from_uuid)
            }

            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
id_key!(GrantId, InstanceId, NetworkId, OperatorId, PeerId, SessionId);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Address {
        host: String,
        port: u16,
    }

    impl Record for Address {
        const VERSION: u8 = 2;

        fn upgrade(version: u8, bytes: &[u8]) -> Result<Self, RecordError> {
            match version {
                1 => Ok(Self {
                    host: decode_content(bytes)?,
                    port: 443,
                }),
                found => Err(RecordError::UnknownVersion {
                    found,
                    known: Self::VERSION,
                }),
            }
        }
    }

    fn address() -> Address {
        Address {
            host: "a.example".into(),
            port: 8443,
        }
    }

    #[test]
    fn a_record_is_its_version_and_its_content() {
        let bytes = encode(&address()).unwrap();
        assert_eq!(bytes.as_slice(), b"\x02\x09a.example\xfb\x41");
        assert_eq!(decode::<Address>(&bytes).unwrap(), address());
    }

    #[test]
    fn earlier_versions_are_upgraded_and_others_refused() {
        let upgraded: Address = decode(b"\x01\x09a.example").unwrap();
        assert_eq!(upgraded.port, 443);
        assert!(matches!(
            decode::<Address>(&[3, 0]),
            Err(RecordError::Newer { found: 3, known: 2 })
        ));
        assert!(matches!(
            decode::<Address>(&[0, 0]),
            Err(RecordError::UnknownVersion { found: 0, .. })
        ));
        assert!(matches!(decode::<Address>(&[]), Err(RecordError::Empty)));
    }

    #[test]
    fn cut_and_lengthened_records_are_refused() {
        let bytes = encode(&address()).unwrap();
        for end in 1..bytes.len() {
            assert!(matches!(
                decode::<Address>(&bytes[..end]),
                Err(RecordError::Malformed(_))
            ));
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(matches!(
            decode::<Address>(&longer),
            Err(RecordError::TrailingBytes { excess: 1 })
        ));
    }

    #[test]
    fn a_record_without_bound_is_refused() {
        let record = Address {
            host: "x".repeat(RECORD_MAX_BYTES),
            port: 1,
        };
        assert!(matches!(encode(&record), Err(RecordError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn numbers_sort_as_their_bytes(a: u64, b: u64) {
            prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
            prop_assert_eq!(u64::decode(&a.encode()), Some(a));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = decode::<Address>(&bytes);
            let _ = PeerId::decode(&bytes);
            let _ = TokenDigest::decode(&bytes);
            let _ = String::decode(&bytes);
        }
    }
}
