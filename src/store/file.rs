//! The store's file: made whole or not at all, locked by one process, and the name of that
//! process for the error of the next. Knows bytes and locks, not redb.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt, FileExt as _, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::error::{Holder, Obstacle, OpenError};
use crate::base::limit::foreign_text;

/// Mode of the files: they hold private keys.
pub(super) const FILE_MODE: u32 = 0o600;

/// Mode of a state directory that is made here.
const DIRECTORY_MODE: u32 = 0o700;

/// What a store that is being made is called, after its name.
pub const DRAFT_SUFFIX: &str = ".new";

const ATTEMPT: &str = "make";
const NEEDED: &str = "write access to its directory";

/// Bytes that are overwritten at once when a file is erased: large enough to be quick, small enough
/// for a box of 64 MiB.
const ERASE_STEP_BYTES: usize = 64 * 1024;

/// What a store that was set aside is called, after its name.
const ASIDE_SUFFIX: &str = ".damaged";

/// How often a store is tried again that a mere reader holds: a command that shows something
/// reads for milliseconds, and no daemon should fail to start because of one.
const PASSING_RETRIES: u32 = 40;

/// How long is waited between two tries; two seconds in all.
const PASSING_PAUSE: Duration = Duration::from_millis(50);

/// Whether a lock admits others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Readers, any number.
    Shared,
    /// The one that writes.
    Exclusive,
}

/// Opens the file and locks it; `None` when there is none. The lock lasts as long as the file
/// is open anywhere in this process.
pub(super) fn open_locked(path: &Path, lock: Lock) -> Result<Option<File>, OpenError> {
    let needed = match lock {
        Lock::Shared => "read access",
        Lock::Exclusive => "read and write access",
    };
    let mut waited = 0;
    loop {
        let file = match OpenOptions::new()
            .read(true)
            .write(lock == Lock::Exclusive)
            .open(path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(
                    in_the_way(directory(path)).unwrap_or_else(|| OpenError::io(path, "open", needed, error))
                );
            }
        };
        match try_lock(&file, path, lock) {
            Ok(true) => {
                if lock == Lock::Exclusive {
                    warn_if_open_to_others(&file, path);
                }
                return Ok(Some(file));
            }
            Ok(false) => {}
            Err(Refused::Passing(_)) if waited < PASSING_RETRIES => {
                waited += 1;
                thread::sleep(PASSING_PAUSE);
            }
            Err(refused) => return Err(refused.into_error(path)),
        }
    }
}

/// A copy that was put back may be anybody's to read, and whoever has the keys in it is this side.
fn warn_if_open_to_others(file: &File, path: &Path) {
    let mode = file.metadata().map_or(FILE_MODE, |found| found.mode() & 0o777);
    if mode & !FILE_MODE != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format_args!("{mode:o}"),
            "the store is open to other users of this machine, and private keys are in it: chmod 600"
        );
    }
}

/// A store that is being made: invisible under its name until it is whole. A power cut leaves at
/// most a draft, which the next one replaces.
#[derive(Debug)]
pub(super) struct Draft {
    file: Arc<File>,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Begins a draft that will take the place of the store at `path`, which the caller has locked
    /// and keeps locked; it belongs to whom the old one belongs to.
    pub(super) fn replacing(path: &Path, old: &File) -> Result<Self, OpenError> {
        let begun = Self::locked(path)?;
        give_to_owner(&begun.file, path)
            .and_then(|()| belong_as(&begun.file, old))
            .map_err(|error| OpenError::io(&begun.path, ATTEMPT, NEEDED, error))?;
        Ok(begun)
    }

    /// Begins a draft of the store at `path`; `None` when there is a store by now. The draft is
    /// locked, so that of two processes one makes the store and the other is told who does.
    pub(super) fn begin(path: &Path) -> Result<Option<Self>, OpenError> {
        make_directory(path)?;
        let begun = Self::elsewhere(path)?;
        if let Some(begun) = &begun {
            give_to_owner(&begun.file, path)
                .map_err(|error| OpenError::io(&begun.path, ATTEMPT, NEEDED, error))?;
        }
        Ok(begun)
    }

    /// Begins a draft of a file in a directory that is nobody's state: it stays its maker's. `None` when
    /// there is such a file.
    pub(super) fn elsewhere(path: &Path) -> Result<Option<Self>, OpenError> {
        let begun = Self::locked(path)?;
        Ok((!path.exists()).then_some(begun))
    }

    /// Fills the draft anew with what `source` has.
    pub(super) fn refill(&self, source: &mut File) -> io::Result<()> {
        let mut file = self.file.as_ref();
        file.set_len(0)?;
        file.rewind()?;
        io::copy(source, &mut file)?;
        Ok(())
    }

    /// An empty draft, locked. It is always a new file: what is there under its name may be another's, or lead to
    /// another's, where the directory is not ours alone.
    fn locked(path: &Path) -> Result<Self, OpenError> {
        let draft = beside(path, DRAFT_SUFFIX);
        loop {
            let made = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&draft);
            let file = match made {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    remove_leftover(&draft, path)?;
                    continue;
                }
                Err(error) => return Err(OpenError::io(&draft, ATTEMPT, NEEDED, error)),
            };
            match try_lock(&file, &draft, Lock::Exclusive) {
                Ok(true) => {
                    // Whatever the umask has left of it.
                    file.set_permissions(Permissions::from_mode(FILE_MODE))
                        .map_err(|error| OpenError::io(&draft, ATTEMPT, NEEDED, error))?;
                    return Ok(Self {
                        file: Arc::new(file),
                        path: draft,
                        published: false,
                    });
                }
                // Whoever came in between took it for a leftover.
                Ok(false) => {}
                Err(refused) => return Err(refused.into_error(path)),
            }
        }
    }

    /// The file, to fill it.
    pub(super) const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the draft its name, durably. The lock stays.
    pub(super) fn publish(mut self, path: &Path) -> Result<Arc<File>, OpenError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, path))
            .and_then(|()| {
                self.published = true;
                sync_directory(path)
            })
            .map_err(|error| OpenError::io(path, "make", "write access to its directory", error))?;
        Ok(Arc::clone(&self.file))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What stays behind is replaced by the next draft.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what has the name of a draft of the store at `path`, unless somebody is making one.
fn remove_leftover(draft: &Path, path: &Path) -> Result<(), OpenError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let failed = |error| OpenError::io(draft, ATTEMPT, NEEDED, error);
    let is_file = match fs::symlink_metadata(draft) {
        Err(error) if gone(&error) => return Ok(()),
        found => found.map_err(failed)?.is_file(),
    };
    // Its maker has it locked; who has the lock of a leftover is the one to remove it.
    let mut _locked = None;
    if is_file {
        let file = match OpenOptions::new().read(true).write(true).open(draft) {
            Err(error) if gone(&error) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        match try_lock(&file, draft, Lock::Exclusive) {
            Ok(true) => _locked = Some(file),
            Ok(false) => return Ok(()),
            Err(refused) => return Err(refused.into_error(path)),
        }
    }
    match fs::remove_file(draft) {
        Err(error) if gone(&error) => Ok(()),
        removed => removed.map_err(failed),
    }
}

/// Moves a store that cannot be used out of the way and keeps it for examination, in place of
/// an earlier one. Gives the new name.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = aside(path);
    fs::rename(path, &aside)?;
    sync_directory(path)?;
    Ok(aside)
}

/// Where a store is set aside.
pub(super) fn aside(path: &Path) -> PathBuf {
    beside(path, ASIDE_SUFFIX)
}

/// Overwrites and removes the file that was set aside, where there is one.
pub(super) fn remove_aside(path: &Path) -> io::Result<()> {
    let aside = aside(path);
    let file = match File::options().read(true).write(true).open(&aside) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    fs::remove_file(&aside)?;
    if !erase(&file)? {
        tracing::warn!(path = %aside.display(), "the damaged file has another name; it may still hold what was secret");
    }
    Ok(())
}

/// Gives the file to the owner of another: root may work on the state of a daemon that is not root.
/// Who may not give files away keeps it, and root's own file says nothing of whose it should be.
pub(super) fn belong_as(file: &File, other: &File) -> io::Result<()> {
    let (mine, theirs) = (file.metadata()?, other.metadata()?);
    if theirs.uid() == 0 || (mine.uid(), mine.gid()) == (theirs.uid(), theirs.gid()) {
        return Ok(());
    }
    match fchown(file, Some(theirs.uid()), Some(theirs.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// Overwrites a file that has no name any more with zeros. `false` when it still has one: what
/// somebody has linked elsewhere is theirs. On media that move what is written, such as memory
/// cards, the old bytes may survive all the same, out of a program's reach.
pub(super) fn erase(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if metadata.nlink() > 0 {
        return Ok(false);
    }
    let zeros = vec![0; ERASE_STEP_BYTES];
    let mut offset = 0;
    while offset < metadata.len() {
        let step = usize::try_from(metadata.len() - offset)
            .map_or(ERASE_STEP_BYTES, |left| left.min(ERASE_STEP_BYTES));
        file.write_all_at(&zeros[..step], offset)?;
        offset += step as u64;
    }
    file.sync_all()?;
    Ok(true)
}

/// The path with something appended to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Gives a new file to the owner of its directory. An administrator's command may make or replace
/// a file while the daemon, which runs as a user of its own, is stopped: the daemon must be able to
/// open it. Only root can give files away, and only root need.
pub(super) fn give_to_owner(file: &File, path: &Path) -> io::Result<()> {
    let (mine, owner) = (file.metadata()?, fs::metadata(directory(path))?);
    if mine.uid() != 0 || owner.uid() == 0 {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn make_directory(path: &Path) -> Result<(), OpenError> {
    let parent = directory(path);
    if parent.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(parent)
        .and_then(|()| sync_directory(parent))
        .map_err(|error| {
            in_the_way(parent).unwrap_or_else(|| {
                OpenError::io(parent, "make the directory", "write access above it", error)
            })
        })
}

/// What stands where a directory should be, on the way to this one.
fn in_the_way(directory: &Path) -> Option<OpenError> {
    let (path, found) = directory
        .ancestors()
        .find_map(|path| Some((path, fs::symlink_metadata(path).ok()?)))?;
    if path.is_dir() {
        return None;
    }
    let obstacle = match fs::read_link(path) {
        Ok(target) if found.is_symlink() => Obstacle::LinkToNowhere(target),
        _ => Obstacle::File,
    };
    Some(OpenError::NotADirectory {
        path: path.to_owned(),
        obstacle,
    })
}

/// Why a lock was not had.
enum Refused {
    /// By a process that merely reads, or one that has gone when it is looked for.
    Passing(Holder),
    /// By a process that writes.
    Writing(Holder),
    System(io::Error),
}

impl Refused {
    fn into_error(self, path: &Path) -> OpenError {
        match self {
            Self::Passing(holder) | Self::Writing(holder) => OpenError::Held {
                path: path.to_owned(),
                holder,
            },
            Self::System(error) => OpenError::io(path, "lock", "read and write access", error),
        }
    }
}

/// Locks the file; `false` when the name has become another file's since it was opened.
fn try_lock(file: &File, path: &Path, lock: Lock) -> Result<bool, Refused> {
    let locked = match lock {
        Lock::Shared => file.try_lock_shared(),
        Lock::Exclusive => file.try_lock(),
    };
    match locked {
        Ok(()) => is_at(file, path).map_err(Refused::System),
        Err(TryLockError::Error(error)) => Err(Refused::System(error)),
        Err(TryLockError::WouldBlock) => Err(holder(file)),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Who holds the file's lock, as far as `/proc` tells.
fn holder(file: &File) -> Refused {
    let mut found = None;
    if let (Ok(metadata), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) {
        found = holder_in(&locks, metadata.dev(), metadata.ino());
    }
    // Process 0 is one outside of this container.
    let pid = found.map(|(pid, _)| pid).filter(|pid| *pid != 0);
    let command = pid.and_then(program_of);
    let holder = Holder { pid, command };
    match found {
        Some((_, false)) => Refused::Writing(holder),
        Some((_, true)) | None => Refused::Passing(holder),
    }
}

/// What a process runs. `comm` is the last resort: it ends after 15 characters.
fn program_of(pid: u32) -> Option<String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // Who may not look at the program may still read what it was called by.
    let program = fs::read_link(process.join("exe")).ok().or_else(|| {
        let words = fs::read(process.join("cmdline")).ok()?;
        let first = words.split(|byte| *byte == 0).next()?;
        Some(PathBuf::from(OsStr::from_bytes(first)))
    });
    let name = program.as_deref().and_then(Path::file_name).map(|name| {
        let name = name.to_string_lossy();
        // Of a program that was updated since.
        foreign_text(name.strip_suffix(" (deleted)").unwrap_or(&name))
    });
    name.or_else(|| {
        let command = fs::read_to_string(process.join("comm")).ok()?;
        Some(foreign_text(command.trim_end()))
    })
}

/// The process that holds a whole-file lock according to the lines of `/proc/locks`, such as
/// `3: FLOCK  ADVISORY  WRITE 812 fe:00:1835031 0 EOF`, and whether it merely reads.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<(u32, bool)> {
    // The encoding of device numbers that stat uses, taken apart as glibc's major() and minor() do.
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000);
    let minor = (device & 0xff) | ((device >> 12) & 0xffff_ff00);
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, mode, pid, place, ..] if *place == wanted => {
                Some((pid.parse().ok()?, *mode == "READ"))
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 fe:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 6 fe:01:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fe:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 7 fe:01:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 8 103:00:77 0 EOF\n";
        assert_eq!(holder_in(locks, 0xfe01, 77), Some((7, true)));
        assert_eq!(holder_in(locks, 0xfe01, 78), Some((6, false)));
        assert_eq!(holder_in(locks, 0x1_0300, 77), Some((8, false)));
        assert_eq!(holder_in(locks, 0xfe02, 77), None);
        assert_eq!(holder_in("nonsense\n", 0xfe01, 77), None);
    }
}
