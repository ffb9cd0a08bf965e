//! How people and programs reach services: a real bridge, and a satellite that is a tunnel and a few
//! services made up here.

mod packets;
mod sessions;
mod web;

use std::convert::Infallible;
use std::process::Output;

use http::{HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::*;
use crate::bridge::access::{CONNECT_PATH, SESSION_HEADER, UPGRADE_PROTOCOL};
use crate::bridge::operator_api::{AUDIT_PREFIX, OPERATORS_PATH, SESSIONS_PATH};
use crate::process::supervisor::TaskScope;
use crate::tunnel::IncomingStream;
use crate::wire::{Goodbye, GoodbyeReason, RefusalCode, ServiceRequest, StreamKind, StreamRefusal};

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

/// A satellite with the services `echo`, `web`, `mute` and some that refuse.
struct Satellite {
    tunnel: Tunnel,
    asked: Arc<std::sync::Mutex<Vec<ServiceRequest>>>,
    _supervisor: Supervisor,
    _endpoint: Option<QuicEndpoint>,
}

impl Satellite {
    async fn join(bridge: &TestBridge, name: &str) -> Self {
        let (peer, identity) = bridge.joined(name).await;
        Self::dial(bridge, peer, identity).await
    }

    async fn dial(bridge: &TestBridge, peer: PeerId, identity: Arc<TlsIdentity>) -> Self {
        let dialled = bridge.dial(Some(identity)).await.unwrap();
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        let driver = dialled.driver;
        scope.spawn("driver", async move {
            driver.run().await;
        });
        let asked = Arc::<std::sync::Mutex<Vec<ServiceRequest>>>::default();
        scope.spawn("services", {
            let (tunnel, scope, asked) = (dialled.tunnel.clone(), scope.clone(), Arc::clone(&asked));
            async move {
                while let Ok(incoming) = tunnel.accept_stream().await {
                    let request = match incoming.header().kind.clone() {
                        StreamKind::Connect(request) => request,
                        StreamKind::Flow(request) => {
                            asked.lock().unwrap().push(request.clone());
                            scope.spawn("flow", packets::serve(incoming, request.service));
                            continue;
                        }
                        StreamKind::Http => {
                            incoming.refuse_kind().await;
                            continue;
                        }
                    };
                    asked.lock().unwrap().push(request.clone());
                    let below = scope.clone();
                    scope.spawn("service", async move {
                        serve(incoming, &request.service, &below).await;
                    });
                }
            }
        });
        wait_until("the satellite is in", || bridge.running.links.get(peer).is_some()).await;
        Self {
            tunnel: dialled.tunnel,
            asked,
            _supervisor: supervisor,
            _endpoint: dialled.endpoint,
        }
    }

    fn last_asked(&self) -> ServiceRequest {
        self.asked.lock().unwrap().last().unwrap().clone()
    }

    async fn leave(&self, message: &str) {
        let goodbye = Goodbye {
            reason: GoodbyeReason::ShuttingDown,
            message: message.to_owned(),
            retry_after_millis: 0,
        };
        self.tunnel.close(goodbye).await;
    }
}

async fn serve(incoming: IncomingStream, service: &str, scope: &TaskScope) {
    let refusal = |code, message: &str| StreamRefusal {
        code,
        message: message.to_owned(),
    };
    match service {
        "echo" => {
            let stream = incoming.accept().await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = write.shutdown().await;
            }
        }
        "mute" => {
            let mut stream = incoming.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
            std::future::pending::<()>().await;
        }
        "undecided" => {
            let _held = incoming;
            std::future::pending::<()>().await;
        }
        "web" => {
            let stream = incoming.accept().await.unwrap();
            let scope = scope.clone();
            let service = service_fn(move |request| {
                let scope = scope.clone();
                async move { Ok::<_, Infallible>(page(request, &scope)) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
        "expired" => {
            incoming
                .refuse(refusal(RefusalCode::Unauthorized, "grant has expired"))
                .await;
        }
        "scope" => {
            incoming
                .refuse(refusal(
                    RefusalCode::Forbidden,
                    "source address not in allow-list",
                ))
                .await;
        }
        "down" => {
            incoming
                .refuse(refusal(RefusalCode::ServiceUnavailable, "connection refused"))
                .await;
        }
        _ => {
            incoming
                .refuse(refusal(RefusalCode::UnknownService, "published are echo, web"))
                .await;
        }
    }
}

/// The pages of `web`.
fn page(mut request: Request<Incoming>, scope: &TaskScope) -> Response<AnyBody> {
    let whole = |text: String| Full::new(Bytes::from(text)).boxed_unsync();
    match request.uri().path() {
        "/moved" => {
            let mut moved = Response::new(whole(String::new()));
            *moved.status_mut() = StatusCode::FOUND;
            let headers = moved.headers_mut();
            headers.insert(header::LOCATION, HeaderValue::from_static("/there?x=1"));
            headers.insert(header::SET_COOKIE, HeaderValue::from_static("sid=1; Path=/"));
            moved
        }
        "/socket" => {
            let upgrade = hyper::upgrade::on(&mut request);
            scope.spawn("socket", async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut line = [0; 5];
                stream.read_exact(&mut line).await.unwrap();
                stream.write_all(&line).await.unwrap();
                stream.shutdown().await.unwrap();
            });
            let mut switching = Response::new(whole(String::new()));
            *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = switching.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            switching
        }
        // What comes in goes out, piece by piece, with a trailer.
        "/through" => {
            let (send, receive) = tokio::sync::mpsc::channel::<Frame<Bytes>>(1);
            let mut body = request.into_body();
            scope.spawn("through", async move {
                let mut count = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data() {
                        count += data.len();
                        if send.send(Frame::data(data)).await.is_err() {
                            return;
                        }
                    }
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("x-count", HeaderValue::from(count));
                let _ = send.send(Frame::trailers(trailers)).await;
            });
            let mut answer = Response::new(channel_body(receive));
            answer
                .headers_mut()
                .insert(header::TRAILER, HeaderValue::from_static("x-count"));
            answer
        }
        // One event, and then nothing for ever.
        "/events" => {
            let (send, receive) = tokio::sync::mpsc::channel::<Frame<Bytes>>(1);
            scope.spawn("events", async move {
                let _ = send.send(Frame::data(Bytes::from_static(b"data: one\n\n"))).await;
                send.closed().await;
            });
            Response::new(channel_body(receive))
        }
        _ => {
            let headers: serde_json::Map<String, Value> = request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
                .collect();
            let target = request.uri().to_string();
            Response::new(whole(json!({ "target": target, "headers": headers }).to_string()))
        }
    }
}

fn channel_body(receive: tokio::sync::mpsc::Receiver<Frame<Bytes>>) -> AnyBody {
    struct Frames(tokio::sync::mpsc::Receiver<Frame<Bytes>>);
    impl hyper::body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }
    Frames(receive).boxed_unsync()
}

/// A stream that was asked for as `connect` does; its session.
struct Opened {
    io: TokioIo<hyper::upgrade::Upgraded>,
    session: String,
}

/// Asks over a connection for a stream: the stream, or the refusal.
async fn ask<S>(io: S, path: &str, bearer: Option<&str>) -> Result<Opened, (u16, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    ask_as(UPGRADE_PROTOCOL, io, path, bearer).await
}

async fn ask_as<S>(protocol: &str, io: S, path: &str, bearer: Option<&str>) -> Result<Opened, (u16, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    let mut request = Request::builder()
        .uri(path)
        .header("host", "127.0.0.1")
        .header("connection", "upgrade")
        .header("upgrade", protocol);
    if let Some(bearer) = bearer {
        request = request.header("authorization", format!("Bearer {bearer}"));
    }
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let exchange = async {
        let response = sender.send_request(request).await.unwrap();
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            return Err((status, serde_json::from_slice(&body).unwrap()));
        }
        let session = response.headers()[SESSION_HEADER].to_str().unwrap().to_owned();
        let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        Ok(Opened { io, session })
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        _ = connection.with_upgrades() => exchange.await,
    }
}

impl TestBridge {
    /// As `connect` on this machine.
    async fn connect_local(&self, peer: &str, service: &str) -> Result<Opened, (u16, Value)> {
        let socket = UnixStream::connect(self.dir.path().join("admin.sock"))
            .await
            .unwrap();
        ask(socket, &format!("{CONNECT_PATH}/{peer}/{service}"), None).await
    }

    /// A TLS connection to the HTTPS listener.
    async fn tls(&self, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.running.bound.https[0]).await.unwrap();
        let mut config = self.client_tls(None);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let tls = TlsConnector::from(Arc::new(config));
        tls.connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
            .await
            .unwrap()
    }

    fn proxy(&self) -> SocketAddr {
        self.running.bound.proxy[0]
    }

    /// Real curl, unless it is not there.
    async fn curl(&self, arguments: &[&str]) -> Option<Output> {
        let ca = self.dir.path().join("ca.pem");
        std::fs::write(&ca, self.running.registry().authority().certificate_pem()).unwrap();
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--noproxy",
            "",
            "--cacert",
        ])
        .arg(ca)
        .args(arguments)
        .kill_on_drop(true);
        match curl.output().await {
            Ok(output) => Some(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("SKIPPED: curl is not installed");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What curl printed.
fn printed(output: &Output) -> String {
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    String::from_utf8(out.clone()).unwrap()
}
