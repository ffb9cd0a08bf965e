//! Finds a spawn payload (contract section 2): the hypervisor's fw-cfg files first, then the payload
//! file; the first complete one wins. Reads bounded files, knows nothing of joining.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::contract::invitation::{Invitation, ParentTrust, PayloadError, RawSpawnPayload, TextOrNumber};

/// Largest payload file or fw-cfg value that is read, in bytes; a payload has five short values.
const PAYLOAD_MAX_BYTES: u64 = 64 * 1024;

/// Where payloads are looked for.
#[derive(Debug, Clone)]
pub struct PayloadSources {
    /// The fw-cfg root: holds `<key>/raw` files, which the kernel lets only root read.
    pub fw_cfg_dir: PathBuf,
    /// The service manager's credentials, where it has read those files for a daemon that is not
    /// root: `fw-cfg_<key>_raw`.
    pub credentials_dir: Option<PathBuf>,
    /// The payload file.
    pub file: PathBuf,
}

/// A payload that is there but cannot be used.
#[derive(Debug, Error)]
pub enum PayloadReadError {
    /// It cannot be read.
    #[error("cannot read the spawn payload {path}; make it readable for the daemon's user, or remove it")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("the spawn payload {path} is larger than {PAYLOAD_MAX_BYTES} bytes; it is not a payload")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Its content is wrong.
    #[error("the spawn payload {path} is wrong")]
    Invalid {
        /// Which file or directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: PayloadError,
    },
}

impl PayloadReadError {
    fn is_permission(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Looks through the sources. `Ok(None)`: no payload, nothing to do.
pub fn find_payload(
    sources: &PayloadSources,
    trust: &ParentTrust,
) -> Result<Option<Invitation>, PayloadReadError> {
    let invalid = |path: &Path, source| PayloadReadError::Invalid {
        path: path.to_owned(),
        source,
    };
    let raw = read_fw_cfg(sources)?;
    if let Some(invitation) = raw
        .into_invitation(trust.clone())
        .map_err(|error| invalid(&sources.fw_cfg_dir, error))?
    {
        return Ok(Some(invitation));
    }
    let Some(text) = read_bounded(&sources.file)? else {
        return Ok(None);
    };
    RawSpawnPayload::from_json(&text)
        .and_then(|raw| raw.into_invitation(trust.clone()))
        .map_err(|error| invalid(&sources.file, error))
}

fn read_fw_cfg(sources: &PayloadSources) -> Result<RawSpawnPayload, PayloadReadError> {
    let value = |key: &str| -> Result<Option<Zeroizing<String>>, PayloadReadError> {
        let credential = sources
            .credentials_dir
            .as_ref()
            .map(|dir| dir.join(format!("fw-cfg_{key}_raw")));
        let from_credential = match &credential {
            Some(path) => read_bounded(path)?,
            None => None,
        };
        let bytes = match (
            from_credential,
            read_bounded(&sources.fw_cfg_dir.join(key).join("raw")),
        ) {
            (Some(bytes), _) => Some(bytes),
            (None, Ok(bytes)) => bytes,
            // With credentials the service manager has read what there is to read.
            (None, Err(error)) if error.is_permission() && credential.is_some() => None,
            (None, Err(error)) => return Err(error),
        };
        Ok(bytes.map(|bytes| Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())))
    };
    let plain = |key: &str| Ok(value(key)?.map(|text| text.as_str().to_owned()));
    Ok(RawSpawnPayload {
        parent_url: plain("parent_url")?,
        acceptance_token: value("acceptance_token")?,
        spawn_mode: plain("spawn_mode")?,
        parent_peer_id: plain("parent_peer_id")?,
        contract_version: plain("contract_version")?.map(TextOrNumber::Text),
    })
}

/// The whole file, or `None` when it is not there.
fn read_bounded(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, PayloadReadError> {
    let failed = |source| PayloadReadError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(PAYLOAD_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > PAYLOAD_MAX_BYTES {
        return Err(PayloadReadError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sources(dir: &Path) -> PayloadSources {
        PayloadSources {
            fw_cfg_dir: dir.join("fw"),
            credentials_dir: Some(dir.join("credentials")),
            file: dir.join("payload.json"),
        }
    }

    fn write_fw_cfg(dir: &Path, key: &str, value: &str) {
        let folder = dir.join("fw").join(key);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("raw"), value).unwrap();
    }

    #[test]
    fn nothing_there_is_nothing_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            find_payload(&sources(dir.path()), &ParentTrust::SystemRoots)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_hypervisor_comes_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        write_fw_cfg(dir.path(), "parent_url", " https://fw.example.com\n");
        write_fw_cfg(dir.path(), "acceptance_token", "fwtoken\n");
        let file = r#"{"parent_url":"https://file.example.com","acceptance_token":"filetoken","contract_version":1}"#;
        std::fs::write(dir.path().join("payload.json"), file).unwrap();
        let found = |dir: &Path| {
            find_payload(&sources(dir), &ParentTrust::SystemRoots)
                .unwrap()
                .unwrap()
        };
        assert_eq!(found(dir.path()).parent_url.as_str(), "https://fw.example.com");
        std::fs::remove_dir_all(dir.path().join("fw")).unwrap();
        assert_eq!(found(dir.path()).parent_url.as_str(), "https://file.example.com");
    }

    #[test]
    fn what_the_service_manager_has_read_counts_as_the_hypervisors() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("credentials");
        std::fs::create_dir_all(&credentials).unwrap();
        std::fs::write(
            credentials.join("fw-cfg_parent_url_raw"),
            "https://fw.example.com\n",
        )
        .unwrap();
        std::fs::write(credentials.join("fw-cfg_acceptance_token_raw"), "token").unwrap();
        let found = find_payload(&sources(dir.path()), &ParentTrust::SystemRoots)
            .unwrap()
            .unwrap();
        assert_eq!(found.parent_url.as_str(), "https://fw.example.com");
    }

    #[test]
    fn a_half_payload_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("payload.json"),
            r#"{"parent_url":"https://p.example.com"}"#,
        )
        .unwrap();
        let error = find_payload(&sources(dir.path()), &ParentTrust::SystemRoots).unwrap_err();
        assert!(error.to_string().contains("payload.json"), "{error}");
        std::fs::write(dir.path().join("payload.json"), vec![b' '; 70_000]).unwrap();
        let error = find_payload(&sources(dir.path()), &ParentTrust::SystemRoots).unwrap_err();
        assert!(matches!(error, PayloadReadError::TooLarge { .. }));
    }
}
