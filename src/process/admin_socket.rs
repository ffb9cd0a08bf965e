//! The Unix socket on which a running daemon answers the command line of its machine. Who calls is
//! known by the socket's credentials. What is said over it is not known here.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

/// Pause after the system refused to give a connection, for want of file descriptors: they come
/// back when others end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Mode of the socket's file: the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Why there is no admin socket.
#[derive(Debug, Error)]
pub enum AdminSocketError {
    /// Another daemon answers there.
    #[error("another daemon listens on {} already; stop it, or set another admin_socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is not a socket; move it away, or set another admin_socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("the admin socket {} could not be made; does its directory exist, and may this user write there?", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// The socket. Its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Of the socket's file, which is this process's.
    owner: u32,
}

impl AdminSocket {
    /// Makes the socket. A file that a daemon left behind is replaced if nobody listens on it.
    pub async fn bind(path: &Path) -> Result<Self, AdminSocketError> {
        let failed = |source| AdminSocketError::Bind {
            path: path.to_owned(),
            source,
        };
        match tokio::fs::symlink_metadata(path).await {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(AdminSocketError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) => match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tokio::fs::remove_file(path).await.map_err(failed)?;
                }
                Ok(_) | Err(_) => {
                    return Err(AdminSocketError::InUse {
                        path: path.to_owned(),
                    });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(directory) = path.parent() {
                    tokio::fs::create_dir_all(directory).await.map_err(failed)?;
                }
            }
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
        tokio::fs::set_permissions(path, mode).await.map_err(failed)?;
        let owner = tokio::fs::metadata(path).await.map_err(failed)?.uid();
        Ok(Self {
            listener,
            path: path.to_owned(),
            owner,
        })
    }

    /// The next connection, and whether its caller is root or the daemon's own user. Cancel safe.
    pub async fn accept(&self) -> (UnixStream, Caller) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let caller = self.caller(&stream);
                    return (stream, caller);
                }
                Err(error) => {
                    warn!(%error, "a connection to the admin socket could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn caller(&self, stream: &UnixStream) -> Caller {
        match stream.peer_cred() {
            Ok(caller) if caller.uid() == 0 || caller.uid() == self.owner => Caller::Admitted,
            Ok(caller) => {
                debug!(
                    uid = caller.uid(),
                    pid = caller.pid(),
                    "another user on the admin socket"
                );
                Caller::Stranger
            }
            Err(error) => {
                warn!(%error, "a caller on the admin socket could not be told");
                Caller::Stranger
            }
        }
    }
}

/// Who calls on an admin socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Root, or the daemon's own user.
    Admitted,
    /// Another user of this machine.
    Stranger,
}

/// What a stranger is told.
pub const STRANGER_REFUSED: &str = "only root and the daemon's own user may use this socket; use sudo";

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The next start would replace it; gone, it tells scripts that no daemon runs.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_a_daemon_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = AdminSocket::bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert!(matches!(
            AdminSocket::bind(&path).await,
            Err(AdminSocketError::InUse { .. })
        ));
        drop(first);
        assert!(!path.exists());
        // As after a kill: the file is there, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(AdminSocket::bind(&path).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            AdminSocket::bind(&path).await,
            Err(AdminSocketError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
