//! A dial-back to a satellite's HTTPS listener: TLS with both certificates, and one request that shows the
//! nonce.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{DialBack, NotReached, unreachable};
use crate::base::limit::{HTTP_HEAD_MAX_BYTES, error_chain};
use crate::bridge::registry::record::PeerRecord;
use crate::contract::TUNNEL_DIAL_BACK_PATH;
use crate::identity::tls_failure::FailureRecord;

/// What is spoken.
const ALPN: &[&[u8]] = &[b"http/1.1"];

impl DialBack {
    /// Calls an endpoint. The caller bounds the time.
    pub(super) async fn call(
        &self,
        peer: &PeerRecord,
        endpoint: SocketAddr,
        nonce: &str,
    ) -> Result<(), NotReached> {
        let config = self.tls(peer, ALPN, &FailureRecord::default())?;
        let connected = async {
            let stream = TcpStream::connect(endpoint).await?;
            let name = ServerName::from(endpoint.ip());
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        let stream = connected.await.map_err(unreachable)?;
        let shown = stream.get_ref().1.peer_certificates();
        self.check_peer(peer, shown.and_then(|chain| chain.first()))?;
        match ask(stream, endpoint, nonce).await {
            Ok(StatusCode::NO_CONTENT) => Ok(()),
            Ok(_) => Err(NotReached::Unreachable(
                "what answered there does not know of this proof".to_owned(),
            )),
            Err(error) => Err(NotReached::Unreachable(error_chain(&*error))),
        }
    }
}

/// One request on the connection. Whether the satellite takes this bridge's certificate shows here.
async fn ask(
    stream: TlsStream<TcpStream>,
    endpoint: SocketAddr,
    nonce: &str,
) -> Result<StatusCode, Box<dyn Error + Send + Sync>> {
    let request = Request::get(format!("{TUNNEL_DIAL_BACK_PATH}/{nonce}"))
        .header(http::header::HOST, endpoint.to_string())
        .body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HTTP_HEAD_MAX_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = sender.send_request(request);
    tokio::select! {
        biased;
        answer = answer => Ok(answer?.status()),
        ended = connection => {
            ended?;
            Err("the connection ended without an answer".into())
        }
    }
}
