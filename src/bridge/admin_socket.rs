//! The admin socket: the operator API for the command line on this machine. Who calls is known
//! by the socket's credentials; nobody needs a token here.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::http_listener::serve_http;
use super::operator_api::{Operator, OperatorApi};
use super::reply::Reply;
use crate::process::supervisor::TaskScope;

/// Mode of the socket's file: the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Connections at once; each is one command of somebody on this machine.
const CONNECTIONS_MAX: usize = 32;

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

    /// Takes connections until the scope is cancelled.
    pub async fn run(self, api: Arc<OperatorApi>, intake: TaskScope, work: TaskScope) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((place, self.listener.accept().await))
            };
            let accepted = tokio::select! {
                () = intake.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Some((place, Ok((stream, _)))) => {
                    let admitted = self.admits(&stream);
                    let api = Arc::clone(&api);
                    let scope = work.clone();
                    work.spawn("admin request", async move {
                        serve_http(stream, &scope, |request| answer(&api, request, admitted)).await;
                        drop(place);
                    });
                }
                Some((_, Err(error))) => {
                    warn!(%error, "a connection to the admin socket could not be taken");
                    tokio::task::yield_now().await;
                }
                None => return,
            }
        }
    }

    /// Whether the caller is root or the daemon's own user.
    fn admits(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(caller) => {
                let admitted = caller.uid() == 0 || caller.uid() == self.owner;
                debug!(
                    uid = caller.uid(),
                    pid = caller.pid(),
                    admitted,
                    "a call on the admin socket"
                );
                admitted
            }
            Err(error) => {
                warn!(%error, "a caller on the admin socket could not be told");
                false
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The next start would replace it; gone, it tells scripts that no daemon runs.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(
    api: &Arc<OperatorApi>,
    request: http::Request<hyper::body::Incoming>,
    admitted: bool,
) -> http::Response<super::reply::ReplyBody> {
    if admitted {
        return Arc::clone(api).handle(request, Operator::Local).await;
    }
    Reply::failure(
        StatusCode::FORBIDDEN,
        "only root and the daemon's own user may use this socket; use sudo, or an operator token over HTTPS",
    )
    .into_response()
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
        assert!(matches!(AdminSocket::bind(&path).await, Err(AdminSocketError::InUse { .. })));
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
        assert!(matches!(AdminSocket::bind(&path).await, Err(AdminSocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
