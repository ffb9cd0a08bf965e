//! The proxy listener: one port on which HTTP CONNECT, plain HTTP requests and SOCKS5 lead to services
//! by names like `web.shop-17.satellite`, and to nothing else. The first byte tells which is spoken.
//! Everybody shows an operator's token; the port of a name is not looked at, because a service has
//! none.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;

use super::super::http_listener::serve_http;
use super::super::operator_api::Operator;
use super::super::places::Places;
use super::super::reply::{Reply, ReplyBody};
use super::credentials::Presented;
use super::headers::Outside;
use super::names::Target;
use super::socks::{self, Parsed, Wish};
use super::{Access, AccessError, Ask, Client, Via};
use crate::process::supervisor::TaskScope;

/// Time for the first byte, and for all of SOCKS5's messages.
const OPENING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a client is told that has shown no token, or a wrong one.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"powernode-host-bridge: name and operator token\"");

/// The listener's side of it.
#[derive(Debug)]
pub struct Proxy {
    access: Arc<Access>,
    /// What names end with.
    suffix: String,
    places: Arc<Places>,
}

impl Proxy {
    /// For names with a suffix; so many connections at once.
    pub fn new(access: Arc<Access>, suffix: String, connections_max: usize) -> Self {
        Self {
            access,
            suffix,
            places: Places::new(connections_max),
        }
    }

    /// Takes connections until the scope is cancelled.
    pub async fn run(self: Arc<Self>, listener: TcpListener, intake: TaskScope) {
        let places = Arc::clone(&self.places);
        let take = |stream: TcpStream, address, place| {
            let proxy = Arc::clone(&self);
            self.access.work().spawn("proxy", async move {
                // Whoever sends small pieces wants them to arrive.
                let _ = stream.set_nodelay(true);
                proxy.connection(stream, address).await;
                drop(place);
            });
        };
        places.take_in(&listener, &intake, take).await;
    }

    async fn connection(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let source = SocketAddr::new(address.ip().to_canonical(), address.port());
        let mut first = [0];
        let spoken = tokio::select! {
            () = self.access.work().cancelled() => return,
            peeked = timeout(OPENING_TIMEOUT, stream.peek(&mut first)) => peeked,
        };
        match spoken {
            Ok(Ok(1)) if first == [socks::VERSION] => {
                if let Err(error) = self.socks(stream, source).await {
                    debug!(%source, %error, "a SOCKS client went away");
                }
            }
            Ok(Ok(1)) => {
                let scope = self.access.work();
                serve_http(stream, scope, |request| self.answer(request, source)).await;
            }
            Ok(Ok(_) | Err(_)) | Err(_) => debug!(%source, "a proxy client said nothing"),
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, source: SocketAddr) -> Response<ReplyBody> {
        let presented = request
            .headers_mut()
            .remove(PROXY_AUTHORIZATION)
            .and_then(|value| Presented::from_header(&value));
        let known = match presented {
            Some(presented) => self.access.authenticate(&presented).await,
            None => Ok(None),
        };
        let operator = match known {
            Ok(Some(operator)) => operator,
            Ok(None) => return challenge(),
            Err(refusal) => return refusal.into_response(),
        };
        let uri = request.uri().clone();
        let Some(host) = uri.host() else {
            return Reply::failure(
                StatusCode::BAD_REQUEST,
                "this is a proxy: it is asked with CONNECT, with a whole http:// URL, or in SOCKS5",
            )
            .into_response();
        };
        let via = if request.method() == Method::CONNECT {
            Via::HttpConnect
        } else {
            Via::HttpProxy
        };
        let ask = match self.ask(host, operator, source, via) {
            Ok(ask) => ask,
            Err(error) => return error.reply().into_response(),
        };
        if request.method() == Method::CONNECT {
            return self.connect(request, ask).await;
        }
        if uri.scheme_str() != Some("http") {
            return Reply::failure(
                StatusCode::BAD_REQUEST,
                "a plain request through this proxy has an http:// URL; for https the client uses CONNECT",
            )
            .into_response();
        }
        let target = uri
            .path_and_query()
            .cloned()
            .map_or_else(|| Uri::from_static("/"), Uri::from);
        let outside = Outside {
            source: source.ip(),
            scheme: "http",
            prefix: None,
        };
        self.access.exchange(request, target, ask, outside).await
    }

    async fn connect(&self, mut request: Request<Incoming>, ask: Ask) -> Response<ReplyBody> {
        match self.access.open(ask).await {
            Ok(stream) => {
                self.access
                    .carry_upgraded(hyper::upgrade::on(&mut request), stream);
                let empty = http_body_util::Empty::new().map_err(|never| match never {});
                Response::new(empty.boxed_unsync())
            }
            Err(error) => error.reply().into_response(),
        }
    }

    fn ask(&self, host: &str, operator: Operator, source: SocketAddr, via: Via) -> Result<Ask, AccessError> {
        let Target { peer, service } =
            Target::parse(host, &self.suffix).ok_or_else(|| AccessError::NoTarget {
                asked: crate::base::limit::foreign_text(host),
                suffix: self.suffix.clone(),
            })?;
        Ok(Ask {
            peer,
            service,
            operator,
            source: Some(source),
            via,
        })
    }

    async fn socks(&self, mut stream: TcpStream, source: SocketAddr) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(socks::MESSAGE_MAX_BYTES);
        let opened = timeout(OPENING_TIMEOUT, self.socks_wish(&mut stream, &mut buffer));
        let Some((operator, wish)) = opened.await.map_err(|_| io::ErrorKind::TimedOut)?? else {
            return stream.shutdown().await;
        };
        let opened = match wish {
            Wish::Refused(code) => Err(code),
            Wish::Connect(name) => match self.ask(&name, operator, source, Via::Socks) {
                Ok(ask) => self.access.open(ask).await.map_err(|error| error.socks_reply()),
                Err(error) => Err(error.socks_reply()),
            },
        };
        match opened {
            Err(code) => {
                stream.write_all(&socks::reply(code)).await?;
                stream.shutdown().await
            }
            Ok(service) => {
                stream
                    .write_all(&socks::reply(super::error::socks::SUCCEEDED))
                    .await?;
                // What the client has sent before it had its answer is content.
                service.carry(Client::of_tcp(stream, buffer.into())).await;
                Ok(())
            }
        }
    }

    /// Greeting, password and request. What is left in the buffer is content. Nothing where the client
    /// has been told that it may not.
    async fn socks_wish(
        &self,
        stream: &mut TcpStream,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Option<(Operator, Wish)>> {
        let password = read_message(stream, buffer, socks::greeting).await?;
        stream.write_all(&socks::method(password)).await?;
        if !password {
            return Ok(None);
        }
        let (name, token) = read_message(stream, buffer, socks::password).await?;
        let presented = Presented::named(&name, token.expose_text().unwrap_or_default());
        let operator = self.access.authenticate(&presented).await.ok().flatten();
        stream
            .write_all(&socks::password_answer(operator.is_some()))
            .await?;
        let Some(operator) = operator else {
            return Ok(None);
        };
        let wish = read_message(stream, buffer, socks::request).await?;
        Ok(Some((operator, wish)))
    }
}

async fn read_message<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> io::Result<T> {
    loop {
        match parse(buffer) {
            Parsed::Done(message, length) => {
                buffer.drain(..length);
                return Ok(message);
            }
            Parsed::More if buffer.len() < socks::MESSAGE_MAX_BYTES => {}
            Parsed::More | Parsed::Broken => return Err(io::ErrorKind::InvalidData.into()),
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn challenge() -> Response<ReplyBody> {
    let mut response = Reply::failure(
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "the proxy needs your operator name and token (Proxy-Authorization: Basic or Bearer)",
    )
    .into_response();
    response.headers_mut().insert(PROXY_AUTHENTICATE, CHALLENGE);
    response
}
