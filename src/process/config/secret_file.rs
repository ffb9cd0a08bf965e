//! The files with secrets that a configuration names, and whether others of this machine get at them. Owns what
//! counts as that, and must not know what is in the files. Refuses nothing: that one is open to others is a mistake,
//! but no reason to stay away.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::key::Key;
use crate::base::check::Check;

/// Rights by which others read.
const OTHERS_READ: u32 = 0o004;

/// Rights by which others write. A group that may read is often how a daemon that is not root has its key.
const OTHERS_WRITE: u32 = 0o022;

/// What to do.
const ADVICE: &str = "chmod g-w,o-rwx it";

/// A file with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The configuration's key that names it.
    pub key: &'static str,
    /// Which file.
    pub path: PathBuf,
}

/// A file with a secret that is not its owner's alone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}; {ADVICE}", self.finding())]
pub struct OpenToOthers {
    file: SecretFile,
    what: &'static str,
    mode: u32,
}

impl SecretFile {
    pub(super) fn named<T>(key: &Key<T>, path: Option<&Path>) -> Option<Self> {
        path.map(|path| Self {
            key: key.path,
            path: path.to_owned(),
        })
    }

    /// Why it should not stay as it is. What is no file, or cannot be looked at, is for its reader to tell.
    fn exposure(&self) -> Option<OpenToOthers> {
        let found = fs::metadata(&self.path).ok().filter(fs::Metadata::is_file)?;
        let mode = found.permissions().mode() & 0o777;
        let what = match (mode & OTHERS_READ != 0, mode & OTHERS_WRITE != 0) {
            (false, false) => return None,
            (true, false) => "read",
            (false, true) => "change",
            (true, true) => "read and change",
        };
        Some(OpenToOthers {
            file: self.clone(),
            what,
            mode,
        })
    }
}

impl OpenToOthers {
    fn finding(&self) -> String {
        let SecretFile { key, path } = &self.file;
        let (what, mode) = (self.what, self.mode);
        let path = path.display();
        format!(
            "`{key}`: other users of this machine can {what} {path}, in which there is a secret (mode {mode:o})"
        )
    }
}

/// Those that are open to others. Blocks on the disk.
pub fn open_to_others(files: &[SecretFile]) -> Vec<OpenToOthers> {
    files.iter().filter_map(SecretFile::exposure).collect()
}

/// The same for a list of checks.
pub fn checks(files: &[SecretFile]) -> Vec<Check> {
    let open = open_to_others(files).into_iter();
    open.map(|open| Check::warn("secret file", open.finding(), ADVICE))
        .collect()
}

/// Tells the log of them. Blocks on the disk.
pub fn warn_of_open(files: &[SecretFile]) {
    for open in open_to_others(files) {
        tracing::warn!("{open}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_read_or_change_is_named_with_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        fs::write(&path, "secret").unwrap();
        let file = |path: &Path| SecretFile {
            key: "server.key_file",
            path: path.to_owned(),
        };
        for (mode, expected) in [
            (0o600, None),
            (0o400, None),
            (0o640, None),
            (0o644, Some("can read /")),
            (0o660, Some("can change /")),
            (0o666, Some("can read and change /")),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let open = open_to_others(&[file(&path)]);
            let said = open.first().map(ToString::to_string);
            match expected {
                None => assert_eq!(said, None, "{mode:o}"),
                Some(words) => {
                    let said = said.unwrap();
                    assert!(
                        said.starts_with("`server.key_file`: ") && said.contains(words),
                        "{said}"
                    );
                }
            }
        }
        let (missing, no_file) = (directory.path().join("missing"), directory.path());
        assert!(open_to_others(&[file(&missing), file(no_file)]).is_empty());
    }
}
