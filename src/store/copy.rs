//! The second copy: a few bytes in a file of their own, with a checksum, so that what must not be
//! lost with the store is there once more, and a copy that is not whole is never taken for one.
//! What the bytes mean is not known here. All calls block on the disk.
//!
//! The file: 8 bytes of magic number, format version (1 byte), length of the content (4 bytes,
//! big-endian), the content, and the SHA-256 of all that precedes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::error::is_full;
use super::file::{FILE_MODE, belong_as, beside, erase, give_to_owner, sync_directory};
use crate::base::secret::Secret;

/// Most bytes of content. An identity with its key and chain has about 4 KiB; an answer that is not checked
/// yet may be as large as any ([`JSON_BODY_MAX_BYTES`](crate::base::limit::JSON_BODY_MAX_BYTES)), with the
/// membership beside it that it is to replace.
pub const CONTENT_MAX_BYTES: usize = 768 * 1024;

const MAGIC: &[u8; 8] = b"pn-copy\n";
const FORMAT_VERSION: u8 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 1 + 4;
const CHECKSUM_BYTES: usize = 32;

/// What a draft of a copy is called, after the copy's name.
const DRAFT_SUFFIX: &str = ".new";

/// What is in the place of a copy.
#[derive(Debug)]
pub enum Copy {
    /// Nothing.
    Absent,
    /// The content, as it was written.
    Whole(Secret),
    /// Something else.
    Damaged(CopyDamage),
}

/// What is wrong with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CopyDamage {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Not begun as a copy is.
    #[error("the file is not a copy of this program's")]
    NotACopy,
    /// A format of a newer program.
    #[error("the copy has format {found}, and this program knows format {FORMAT_VERSION}")]
    OtherFormat {
        /// In the file.
        found: u8,
    },
    /// Cut or lengthened.
    #[error("the copy has not the length that it says")]
    WrongLength,
    /// Changed.
    #[error("the copy's checksum does not match its content")]
    WrongChecksum,
}

/// Why a copy was not written, read or removed.
#[derive(Debug, Error)]
pub enum CopyError {
    /// More than [`CONTENT_MAX_BYTES`].
    #[error("the copy {} was not written: {bytes} bytes are more than the {CONTENT_MAX_BYTES} that one may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many.
        bytes: usize,
    },
    /// No room.
    #[error("the disk is full: the copy {} was not written, and an earlier one is as it was; free some space", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The rights do not suffice.
    #[error("no permission to {attempt} the copy {}; run as the user that owns the state directory", path.display())]
    PermissionDenied {
        /// The file.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Everything else that the system refuses.
    #[error("could not {attempt} the copy {}; check the disk and its mount", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Puts `content` in the place of an earlier copy, durably. A power cut leaves the earlier one or
/// this one.
pub fn write(path: &Path, content: &Secret) -> Result<(), CopyError> {
    if content.len() > CONTENT_MAX_BYTES {
        return Err(CopyError::TooLarge {
            path: path.to_owned(),
            bytes: content.len(),
        });
    }
    let bytes = encode(content.expose());
    let draft = beside(path, DRAFT_SUFFIX);
    replace(path, &draft, &bytes).map_err(|error| {
        // What stays behind is replaced by the next draft.
        let _ = fs::remove_file(&draft);
        CopyError::io(path, "write", error)
    })
}

/// [`write()`], and overwrites the earlier copy's bytes: for a content that is sealed from now on.
pub fn write_and_erase(path: &Path, content: &Secret) -> Result<(), CopyError> {
    let earlier = OpenOptions::new().read(true).write(true).open(path).ok();
    write(path, content)?;
    if let Some(earlier) = earlier
        && let Err(error) = erase(&earlier)
    {
        tracing::warn!(path = %path.display(), %error, "the earlier copy was replaced, but not overwritten");
    }
    Ok(())
}

/// Reads what is in the place of a copy.
pub fn read(path: &Path) -> Result<Copy, CopyError> {
    let io_error = |error| CopyError::io(path, "read", error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Absent),
        Err(error) => return Err(io_error(error)),
    };
    // One byte more than the longest, so that a longer file is seen to be one.
    let most = HEAD_BYTES + CONTENT_MAX_BYTES + CHECKSUM_BYTES + 1;
    // Room for all of it at once: a buffer that grows leaves unwiped pieces behind.
    let size = file.metadata().map_err(io_error)?.len();
    let room = usize::try_from(size).unwrap_or(most).saturating_add(1).min(most);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(most as u64).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(match decode(&bytes) {
        Ok(content) => Copy::Whole(Secret::new(content.to_vec())),
        Err(damage) => Copy::Damaged(damage),
    })
}

/// Removes the copy, durably; says whether there was one.
pub fn remove(path: &Path) -> Result<bool, CopyError> {
    let io_error = |error| CopyError::io(path, "remove", error);
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path).map(|()| true).map_err(io_error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(error)),
    }
}

impl CopyError {
    fn io(path: &Path, attempt: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::PermissionDenied {
                path,
                attempt,
                source,
            },
            kind if is_full(kind) => Self::DiskFull { path },
            _ => Self::Io {
                path,
                attempt,
                source,
            },
        }
    }
}

fn replace(path: &Path, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    // A draft that a power cut left may have any mode; this one is made anew.
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(draft)?;
    give_to_owner(&file, path)?;
    if let Ok(earlier) = File::open(path) {
        belong_as(&file, &earlier)?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(draft, path)?;
    sync_directory(path)
}

fn encode(content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_BYTES + content.len() + CHECKSUM_BYTES));
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(MAGIC);
    bytes.push(FORMAT_VERSION);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content);
    let checksum = Sha256::digest(bytes.as_slice());
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(bytes: &[u8]) -> Result<&[u8], CopyDamage> {
    if bytes.is_empty() {
        return Err(CopyDamage::Empty);
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(CopyDamage::NotACopy)?;
    let (&version, rest) = rest.split_first().ok_or(CopyDamage::WrongLength)?;
    if version != FORMAT_VERSION {
        return Err(CopyDamage::OtherFormat { found: version });
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(CopyDamage::WrongLength)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| CopyDamage::WrongLength)?;
    let (content, checksum) = rest.split_at_checked(length).ok_or(CopyDamage::WrongLength)?;
    if checksum.len() != CHECKSUM_BYTES {
        return Err(CopyDamage::WrongLength);
    }
    let sum = Sha256::digest(&bytes[..HEAD_BYTES + length]);
    if sum.as_slice() != checksum {
        return Err(CopyDamage::WrongChecksum);
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn content() -> Secret {
        Secret::from_text("a key and a certificate".into())
    }

    fn whole(copy: Copy) -> Option<Secret> {
        match copy {
            Copy::Whole(content) => Some(content),
            Copy::Absent | Copy::Damaged(_) => None,
        }
    }

    #[test]
    fn a_copy_is_read_as_it_was_written_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.copy");
        assert!(matches!(read(&path).unwrap(), Copy::Absent));
        write(&path, &content()).unwrap();
        assert!(whole(read(&path).unwrap()).unwrap().matches(&content()));
        write(&path, &Secret::new(Vec::new())).unwrap();
        assert!(whole(read(&path).unwrap()).unwrap().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no draft is left behind"
        );
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert!(matches!(read(&path).unwrap(), Copy::Absent));
    }

    #[test]
    fn a_draft_that_a_power_cut_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.copy");
        fs::write(directory.path().join("identity.copy.new"), "half").unwrap();
        write(&path, &content()).unwrap();
        assert!(whole(read(&path).unwrap()).unwrap().matches(&content()));
    }

    #[test]
    fn what_is_no_copy_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.copy");
        let damage = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            match read(&path).unwrap() {
                Copy::Damaged(damage) => damage,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(damage(b""), CopyDamage::Empty);
        assert_eq!(damage(b"-----BEGIN"), CopyDamage::NotACopy);
        assert_eq!(damage(b"pn-copy\n\x02"), CopyDamage::OtherFormat { found: 2 });
        assert_eq!(damage(b"pn-copy\n\x01\xff\xff\xff\xff"), CopyDamage::WrongLength);
        let mut longer = encode(b"x").to_vec();
        longer.push(0);
        assert_eq!(damage(&longer), CopyDamage::WrongLength);
        assert_eq!(damage(&vec![b'x'; 2 * CONTENT_MAX_BYTES]), CopyDamage::NotACopy);
    }

    #[test]
    fn a_content_without_bound_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.copy");
        let most = Secret::new(vec![1; CONTENT_MAX_BYTES]);
        write(&path, &most).unwrap();
        assert!(whole(read(&path).unwrap()).unwrap().matches(&most));
        let more = Secret::new(vec![1; CONTENT_MAX_BYTES + 1]);
        assert!(matches!(write(&path, &more), Err(CopyError::TooLarge { .. })));
        assert!(whole(read(&path).unwrap()).unwrap().matches(&most));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_detected() {
        let bytes = encode(content().expose());
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.to_vec();
                changed[index] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "byte {index}, bit {bit}");
            }
            assert!(decode(&bytes[..index]).is_err(), "cut at {index}");
        }
    }

    proptest! {
        #[test]
        fn any_content_comes_back_and_any_damage_is_detected(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            place: prop::sample::Index,
            other in 1u8..,
        ) {
            let mut bytes = encode(&content).to_vec();
            prop_assert_eq!(decode(&bytes), Ok(content.as_slice()));
            let index = place.index(bytes.len());
            bytes[index] ^= other;
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
