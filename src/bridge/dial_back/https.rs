//! A dial-back to a satellite's HTTPS listener: TLS with both certificates, and one request that shows the
//! nonce.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Found, is_this_peer};
use crate::base::limit::{HTTP_HEAD_MAX_BYTES, error_chain};
use crate::base::time::UnixTime;
use crate::bridge::registry::record::PeerRecord;
use crate::contract::TUNNEL_DIAL_BACK_PATH;

/// What is spoken.
pub(super) const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Calls an endpoint. The caller bounds the time.
pub(super) async fn call(
    (peer, now): (&PeerRecord, UnixTime),
    endpoint: SocketAddr,
    config: ClientConfig,
    nonce: &str,
) -> Found {
    let connected = async {
        let stream = TcpStream::connect(endpoint).await?;
        let name = ServerName::from(endpoint.ip());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let stream = match connected.await {
        Ok(stream) => stream,
        Err(error) => return Found::Unreachable(error_chain(&error)),
    };
    let shown = stream.get_ref().1.peer_certificates();
    if !is_this_peer(peer, shown.and_then(|chain| chain.first()), now) {
        return Found::Unreachable("another satellite answered there".to_owned());
    }
    match ask(stream, endpoint, nonce).await {
        Ok(StatusCode::NO_CONTENT) => Found::Reached,
        Ok(_) => Found::Unreachable("what answered there does not know of this proof".to_owned()),
        Err(error) => Found::Unreachable(error_chain(&*error)),
    }
}

/// One request on the connection. Whether the satellite takes this bridge's certificate shows here.
async fn ask(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    endpoint: SocketAddr,
    nonce: &str,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
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
