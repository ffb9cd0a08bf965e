//! HTTP to a daemon on this machine through its admin Unix socket: one connection and one
//! request per call. Knows nothing of what is asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::contract::message::{ContractAnswer, ContractFailure, UnusableAnswer, read_answer};
use crate::process::connection::boxed;

/// Largest answer that is read, in bytes. A listing of ten thousand peers has about 10 MiB.
pub const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Time in which the daemon must answer. A request that is passed on through a tunnel may take
/// its 30 s there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);

/// Why the daemon could not be asked.
#[derive(Debug, Error)]
pub enum AdminError {
    /// There is no socket, or nobody listens on it.
    #[error("no daemon answers at {}; start it, or name its socket with --admin-socket", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is somebody else's.
    #[error("the daemon's socket {} does not let this user in; use sudo", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// Anything else about the socket.
    #[error("the daemon's socket {} cannot be used", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The path cannot be asked for.
    #[error("`{0}` is not a path that can be requested; write it as /api/…")]
    Path(String),
    /// The connection broke.
    #[error("the daemon hung up before it answered; look into its log")]
    Broken(#[source] hyper::Error),
    /// The answer did not come, or not all of it.
    #[error("the daemon's answer broke off or is larger than {ANSWER_MAX_BYTES} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// [`ANSWER_TIMEOUT`] is over.
    #[error("the daemon did not answer within {} s; look into its log", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

impl AdminError {
    /// Why a socket could not be connected to.
    pub fn of_connect(socket: &Path, source: io::Error) -> Self {
        let path = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NotRunning { path },
            io::ErrorKind::PermissionDenied => Self::Denied { path },
            _ => Self::Socket { path, source },
        }
    }
}

/// What the daemon answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body, as it came.
    pub body: Bytes,
}

impl Answer {
    /// The data of a success, or the refusal.
    pub fn read(&self) -> Result<Result<Value, ContractFailure>, UnusableAnswer> {
        Ok(match read_answer(self.status.as_u16(), &self.body)? {
            ContractAnswer::Data(data) => Ok(data),
            ContractAnswer::Failure(failure) => Err(failure),
        })
    }
}

/// A way to one daemon.
#[derive(Debug, Clone)]
pub struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// Through this socket. Nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// One request.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, AdminError> {
        let content = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(content)))
            .ok()
            .filter(|_| path.starts_with('/'))
            .ok_or_else(|| AdminError::Path(path.to_owned()))?;
        tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| AdminError::Timeout)?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, AdminError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| AdminError::of_connect(&self.socket, source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(boxed(stream)))
            .await
            .map_err(AdminError::Broken)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(AdminError::Broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
                .collect()
                .await
                .map_err(AdminError::Body)?
                .to_bytes();
            Ok(Answer { status, body })
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        // The connection has to be driven for the answer to arrive; when it ends first, the
        // answer's own error says why.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    async fn call_against(answer: &'static [u8]) -> Result<Answer, AdminError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
        };
        let client = AdminClient::new(&socket);
        let (answer, ()) = tokio::join!(client.call(Method::GET, "/health", None), daemon);
        answer
    }

    #[tokio::test]
    async fn data_and_refusals_come_through() {
        let answer = call_against(b"HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n{\"data\":{\"peers\":  3}}")
            .await
            .unwrap();
        assert_eq!(answer.read().unwrap().unwrap()["peers"], 3);
        let answer = call_against(b"HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\n{\"error\":\"no\"}")
            .await
            .unwrap();
        assert_eq!(answer.read().unwrap().unwrap_err().error, "no");
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_up_is_an_error_with_advice() {
        let error = call_against(b"").await.unwrap_err();
        assert!(matches!(error, AdminError::Broken(_)), "{error:?}");
    }

    #[tokio::test]
    async fn no_daemon_and_no_socket_are_the_same_to_a_person() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let client = AdminClient::new(&socket);
        let absent = client.call(Method::GET, "/", None).await.unwrap_err();
        assert!(matches!(absent, AdminError::NotRunning { .. }));
        drop(UnixListener::bind(&socket).unwrap());
        let stale = client.call(Method::GET, "/", None).await.unwrap_err();
        assert!(matches!(stale, AdminError::NotRunning { .. }));
        let bad = client.call(Method::GET, "no slash", None).await.unwrap_err();
        assert!(matches!(bad, AdminError::Path(_)));
    }
}
