//! A UPnP gateway over the network: found by searches to which only the gateway's own answers
//! count, and called over HTTP on the gateway's own address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpSocket, UdpSocket};

use super::upnp_text::{
    Call, Place, SEARCH_TARGETS, Service, Unusable, read_description, read_external_address, read_fault,
    read_search_answer, search,
};
use crate::process::connection::boxed;

/// The group and port of searches.
const SEARCH_GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1_900);

/// How long answers to a search are awaited. Devices answer within the second that they are given,
/// and the searches are sent twice.
const SEARCH_TIME: Duration = Duration::from_millis(2_500);

/// From the first sending of the searches to the second: one lost packet must not hide a router.
const SEARCH_AGAIN: Duration = Duration::from_millis(700);

/// Datagrams that are read in a search, in number: a house full of devices that all answer.
const SEARCH_ANSWERS_MAX: usize = 256;

/// Descriptions that are fetched in a search, in number: a gateway may be several devices.
const DESCRIPTIONS_MAX: usize = 4;

/// Longest answer to a search that is read, in bytes.
const SEARCH_ANSWER_MAX_BYTES: usize = 2_048;

/// Largest description and answer, in bytes. Those of real routers have 4 to 20 KiB.
const TEXT_MAX_BYTES: usize = 64 * 1024;

/// Time for one request, connection included. Small routers think for a second.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Hops that a search may go: this house.
const SEARCH_HOPS: u32 = 2;

/// Why a router gave no usable answer.
#[derive(Debug, Error)]
pub(super) enum UpnpError {
    /// No socket.
    #[error("no search can be sent")]
    Search(#[source] io::Error),
    /// Nobody is there.
    #[error("the gateway has not answered a search")]
    NotFound,
    /// It did not lead to a service.
    #[error("the gateway's description cannot be used: {0}")]
    Description(Unusable),
    /// The connection.
    #[error("the gateway at {address} cannot be reached")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The exchange.
    #[error("the gateway does not speak HTTP as it should")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too slow.
    #[error("the gateway has not answered within {} s", REQUEST_TIME.as_secs())]
    TimedOut,
    /// A status without a fault.
    #[error("the gateway answered with HTTP status {0}")]
    Status(StatusCode),
    /// A fault.
    #[error("the gateway answered with UPnP error {0}")]
    Fault(u16),
}

/// A gateway's service that maps ports.
#[derive(Debug, Clone)]
pub(super) struct UpnpGateway {
    service: Service,
    local: IpAddr,
}

impl UpnpGateway {
    /// Searches, and takes the first service that has an address outside; if none has, the first.
    /// The second value is that address.
    pub(super) async fn find(gateway: IpAddr, local: IpAddr) -> Result<(Self, Option<IpAddr>), UpnpError> {
        let places = search_for(gateway, local).await?;
        let (mut found, mut failed) = (None, UpnpError::NotFound);
        for place in places {
            let services = match describe(&place, local).await {
                Ok(services) => services,
                Err(error) => {
                    failed = error;
                    continue;
                }
            };
            for service in services {
                let this = Self { service, local };
                match this.external_address().await {
                    Ok(Some(external)) if !external.is_unspecified() => return Ok((this, Some(external))),
                    Ok(external) => {
                        found.get_or_insert((this, external));
                    }
                    Err(error) => failed = error,
                }
            }
        }
        found.ok_or(failed)
    }

    /// The address outside, unspecified when it says that it has none.
    pub(super) async fn external_address(&self) -> Result<Option<IpAddr>, UpnpError> {
        let answer = self.call(&Call::external_address()).await?;
        Ok(read_external_address(&answer))
    }

    /// Makes a call; the answer's text.
    pub(super) async fn call(&self, call: &Call) -> Result<String, UpnpError> {
        let kind = self.service.kind;
        let Place { address, path } = &self.service.control;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path.as_str())
            .header(HOST, address.to_string())
            .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .header("SOAPAction", format!("\"{kind}#{}\"", call.action))
            .body(Full::new(Bytes::from(call.body(kind))));
        let (status, text) = exchange(*address, self.local, request).await?;
        if let Some(code) = read_fault(&text) {
            return Err(UpnpError::Fault(code));
        }
        if status.is_success() {
            Ok(text)
        } else {
            Err(UpnpError::Status(status))
        }
    }
}

async fn describe(place: &Place, local: IpAddr) -> Result<Vec<Service>, UpnpError> {
    let request = Request::builder()
        .uri(place.path.as_str())
        .header(HOST, place.address.to_string())
        .body(Full::new(Bytes::new()));
    let (status, text) = exchange(place.address, local, request).await?;
    if !status.is_success() {
        return Err(UpnpError::Status(status));
    }
    read_description(&text, place).map_err(UpnpError::Description)
}

/// One request on a connection of its own. Redirects are not followed.
async fn exchange(
    address: SocketAddr,
    local: IpAddr,
    request: Result<Request<Full<Bytes>>, http::Error>,
) -> Result<(StatusCode, String), UpnpError> {
    let request = request.map_err(http_failed)?;
    let whole = async {
        let connect = async {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            socket.bind(SocketAddr::new(local, 0))?;
            socket.connect(address).await
        };
        let stream = connect
            .await
            .map_err(|source| UpnpError::Connect { address, source })?;
        // Some routers look for the headers' names letter by letter.
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .title_case_headers(true)
            .max_header_size(TEXT_MAX_BYTES)
            .handshake(TokioIo::new(boxed(stream)))
            .await
            .map_err(http_failed)?;
        let answer = async {
            let (head, body) = sender
                .send_request(request)
                .await
                .map_err(http_failed)?
                .into_parts();
            let body = Limited::new(body, TEXT_MAX_BYTES).collect().await;
            let body = body.map_err(UpnpError::Http)?.to_bytes();
            Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The connection's work is done; what it brought is waiting.
            _ = connection => answer.await,
        }
    };
    tokio::time::timeout(REQUEST_TIME, whole)
        .await
        .unwrap_or(Err(UpnpError::TimedOut))
}

fn http_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> UpnpError {
    UpnpError::Http(error.into())
}

/// Where the gateway's descriptions are, as it answers itself. Other hosts' answers are dropped, and
/// so are those that lead to another host.
async fn search_for(gateway: IpAddr, local: IpAddr) -> Result<Vec<Place>, UpnpError> {
    let socket = search_socket(local).map_err(UpnpError::Search)?;
    let direct = SocketAddr::new(gateway, SEARCH_GROUP.port());
    let send_all = async || {
        let mut sent = false;
        for to in [SEARCH_GROUP, direct] {
            for target in SEARCH_TARGETS {
                match socket.send_to(search(to, target).as_bytes(), to).await {
                    Ok(_) => sent = true,
                    Err(error) => tracing::trace!(%error, %to, "a search could not be sent"),
                }
            }
        }
        sent
    };
    let mut places: Vec<Place> = Vec::new();
    let searching = async {
        send_all().await;
        let mut again = std::pin::pin!(tokio::time::sleep(SEARCH_AGAIN));
        let mut once_more = true;
        let mut buffer = [0; SEARCH_ANSWER_MAX_BYTES];
        for _ in 0..SEARCH_ANSWERS_MAX {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                () = &mut again, if once_more => {
                    once_more = false;
                    if !places.is_empty() {
                        return;
                    }
                    send_all().await;
                    continue;
                }
            };
            // Also "port unreachable" from whoever was asked directly.
            let Ok((length, from)) = received else {
                continue;
            };
            if from.ip() != gateway {
                tracing::trace!(%from, "an answer to a search came from another host than the gateway; dropped");
                continue;
            }
            match read_search_answer(&String::from_utf8_lossy(&buffer[..length]), gateway) {
                Ok(place) if !places.contains(&place) => places.push(place),
                Ok(_) => {}
                Err(why) => tracing::debug!(%gateway, %why, "the gateway's answer to a search was refused"),
            }
            if places.len() >= DESCRIPTIONS_MAX {
                return;
            }
        }
    };
    // Silence to the end of the time is the usual answer.
    let _ = tokio::time::timeout(SEARCH_TIME, searching).await;
    if places.is_empty() {
        return Err(UpnpError::NotFound);
    }
    Ok(places)
}

fn search_socket(local: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(local, 0).into())?;
    if let IpAddr::V4(local) = local {
        socket.set_multicast_if_v4(&local)?;
    }
    socket.set_multicast_ttl_v4(SEARCH_HOPS)?;
    UdpSocket::from_std(socket.into())
}
