//! The node's identity as files, for the platform's other programs on this box (contract section 4):
//! `node.key`, `node.crt`, `ca-chain.crt`, `ca-bundle.crt`, `meta.json`. Each is replaced atomically; all of
//! them are on the disk before the first takes its place, so that key and certificate of two identities stand
//! beside each other for the time of a few renames alone. Knows nothing of how an identity is had. Blocking.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::limit::error_chain;
use crate::base::secret::Secret;
use crate::identity::key::pkcs8_pem;
use crate::machine::node_identity::NodeMembership;
use crate::process::config::node::NodeFilesPlace;

/// Where the platform's programs look when this directory's parent is there.
const PERSISTENT: &str = "/persist/var/lib/powernode";
/// Where they look else.
const USUAL: &str = "/var/lib/powernode";
/// The directory in either.
const PKI: &str = "pki";

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";

/// Why the files are not what they should be.
#[derive(Debug, Error)]
#[error(
    "cannot {attempt} {}; check that the daemon may write there (under systemd, ReadWritePaths= in a drop-in)",
    path.display()
)]
pub struct NodeFilesError {
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The directory, if the identity is to be written at all.
pub fn directory(place: &NodeFilesPlace) -> Option<PathBuf> {
    match place {
        NodeFilesPlace::Off => None,
        NodeFilesPlace::At(path) => Some(path.clone()),
        NodeFilesPlace::Auto => {
            let persistent = Path::new(PERSISTENT);
            let above = if persistent.is_dir() {
                persistent
            } else {
                Path::new(USUAL)
            };
            Some(above.join(PKI))
        }
    }
}

/// Writes what differs from what is there. Whether anything did.
pub fn write(directory: &Path, node: &NodeMembership) -> Result<bool, NodeFilesError> {
    let failed = |attempt, path: &Path| {
        let path = path.to_owned();
        move |source| NodeFilesError {
            attempt,
            path,
            source,
        }
    };
    make_directory(directory).map_err(failed("make the directory", directory))?;
    let mut drafts = Vec::new();
    for (name, mode, content) in contents(node) {
        let path = directory.join(name);
        if holds(&path, content.expose()) {
            continue;
        }
        let draft = directory.join(format!(".{name}.new"));
        write_draft(&draft, mode, content.expose()).map_err(failed("write", &draft))?;
        drafts.push((draft, path));
    }
    if drafts.is_empty() {
        return Ok(false);
    }
    for (draft, path) in drafts {
        fs::rename(&draft, &path).map_err(failed("replace", &path))?;
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("make durable", directory))?;
    Ok(true)
}

/// Removes the files, if they are of this node: another program may have written its own since.
pub fn remove(directory: &Path, node: &NodeMembership) -> Result<bool, NodeFilesError> {
    if !holds(
        &directory.join(CERTIFICATE),
        node.identity.certificate.cert_pem.as_bytes(),
    ) {
        return Ok(false);
    }
    for (name, _, _) in contents(node) {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(NodeFilesError {
                    attempt: "remove",
                    path,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(true)
}

/// Takes the files of a node whose peering has ended away, where they were written. What fails is logged: the
/// peering is over all the same.
pub fn leave(place: &NodeFilesPlace, node: &NodeMembership) {
    let Some(directory) = directory(place) else {
        return;
    };
    match remove(&directory, node) {
        Ok(true) => tracing::info!(directory = %directory.display(), "the node's identity is removed"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(reason = %error_chain(&error), "the node's key is still there; remove it yourself");
        }
    }
}

/// Name, mode and content of each, in the order in which they take their places: whoever waits for the
/// certificate or the description finds the rest there.
fn contents(node: &NodeMembership) -> [(&'static str, u32, Secret); 5] {
    let certificate = &node.identity.certificate;
    let text = |text: &str| Secret::from_text(text.to_owned());
    let meta = json!({
        "instance_id": node.names.instance_id,
        "mtls_subject": node.names.mtls_subject,
        "certificate_id": node.names.certificate_id,
        "not_after": certificate.not_after.to_string(),
    });
    [
        ("ca-bundle.crt", 0o644, text(&certificate.ca_chain_pem)),
        ("ca-chain.crt", 0o644, text(&certificate.ca_chain_pem)),
        (KEY, 0o600, pkcs8_pem(&node.identity.pkcs8)),
        (CERTIFICATE, 0o644, text(&certificate.cert_pem)),
        ("meta.json", 0o644, text(&format!("{meta}\n"))),
    ]
}

fn holds(path: &Path, content: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| Zeroizing::new(found).as_slice() == content)
}

/// Only the last one is for the key's owner alone: those above are other programs', too.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = directory.parent() {
        make_above(above)?;
    }
    DirBuilder::new().mode(0o700).create(directory)
}

/// The daemon's own umask leaves others nothing, and would take these from the programs that they are for.
fn make_above(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = directory.parent() {
        make_above(above)?;
    }
    fs::create_dir(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))
}

/// A draft that a power cut left may have any mode, and might be a link: it is made anew.
fn write_draft(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // Whatever the umask has left of it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::Mode;
    use rustix::process::umask;

    use super::*;
    use crate::base::time::UnixTime;
    use crate::contract::message::FederationCertificate;
    use crate::identity::key::PrivateKey;
    use crate::machine::membership::StoredIdentity;
    use crate::machine::node_identity::NodeNames;

    fn node(certificate: &str) -> NodeMembership {
        NodeMembership {
            platform_url: "https://platform.example.com".parse().unwrap(),
            subject: "instance".into(),
            names: NodeNames {
                instance_id: "instance".into(),
                mtls_subject: "CN=instance".into(),
                certificate_id: "7".into(),
            },
            identity: StoredIdentity {
                pkcs8: PrivateKey::generate().unwrap().expose_pkcs8().clone(),
                certificate: FederationCertificate {
                    cert_pem: certificate.into(),
                    ca_chain_pem: "CA".into(),
                    serial: "AB".into(),
                    not_after: UnixTime::from_seconds(1_800_000_000),
                },
                not_before: UnixTime::EPOCH,
            },
            renewal: None,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_layout_is_what_other_programs_expect() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("powernode/pki");
        // As in the unit.
        let before = umask(Mode::from_raw_mode(0o077));
        assert!(write(&pki, &node("first")).unwrap());
        umask(before);
        assert_eq!(mode(&pki), 0o700);
        assert_eq!(mode(&dir.path().join("powernode")), 0o755);
        for name in ["ca-bundle.crt", "ca-chain.crt", "node.crt", "meta.json"] {
            assert_eq!(mode(&pki.join(name)), 0o644, "{name}");
        }
        assert_eq!(
            names(&pki),
            [
                "ca-bundle.crt",
                "ca-chain.crt",
                "meta.json",
                "node.crt",
                "node.key"
            ]
        );
        assert_eq!(mode(&pki.join(KEY)), 0o600);
        assert!(
            fs::read_to_string(pki.join(KEY))
                .unwrap()
                .starts_with("-----BEGIN PRIVATE KEY-----\n")
        );
        let meta: serde_json::Value =
            serde_json::from_slice(&fs::read(pki.join("meta.json")).unwrap()).unwrap();
        assert_eq!(
            meta,
            json!({
                "instance_id": "instance", "mtls_subject": "CN=instance", "certificate_id": "7",
                "not_after": "2027-01-15T08:00:00Z",
            })
        );
    }

    #[test]
    fn what_is_there_already_is_left_and_what_a_power_cut_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = node("first");
        write(dir.path(), &first).unwrap();
        assert!(!write(dir.path(), &first).unwrap());
        fs::write(dir.path().join(".node.key.new"), "half").unwrap();
        let second = node("second");
        assert!(write(dir.path(), &second).unwrap());
        assert_eq!(names(dir.path()).len(), 5);
        let key = fs::read(dir.path().join(KEY)).unwrap();
        assert_eq!(key, pkcs8_pem(&second.identity.pkcs8).expose());
        assert_eq!(mode(&dir.path().join(KEY)), 0o600);
    }

    #[test]
    fn only_the_files_of_this_node_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mine = node("mine");
        write(dir.path(), &mine).unwrap();
        assert!(!remove(dir.path(), &node("another's")).unwrap());
        assert!(remove(dir.path(), &mine).unwrap());
        assert!(names(dir.path()).is_empty());
        assert!(!remove(dir.path(), &mine).unwrap());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = write(&file.join("pki"), &node("x")).unwrap_err();
        assert!(error.to_string().contains("ReadWritePaths="), "{error}");
    }
}
