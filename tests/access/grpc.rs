//! gRPC through the HTTPS ingress: HTTP/2 from the client to the bridge, and in the clear (h2c) from the
//! satellite to the service, with streams both ways and trailers.

#![allow(clippy::disallowed_methods, reason = "tests have no supervisor")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use powernode_satellite::contract::invitation::ParentTrust;
use powernode_satellite::identity::tls::{ClientTls, client_config};
use powernode_satellite::identity::tls_failure::FailureRecord;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use rustls::pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::*;

const METHOD: &str = "/shop.Stock/Watch";

/// A body whose frames come from the test, one by one.
struct Frames(mpsc::Receiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// Runs hyper's tasks on the test's runtime.
#[derive(Clone)]
struct OnRuntime(tokio::runtime::Handle);

impl<F> hyper::rt::Executor<F> for OnRuntime
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Answers each message with the same in capital letters, and at the end with trailers.
async fn watch(request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
    let (send, receive) = mpsc::channel(1);
    let mut response = Response::new(Frames(receive));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let (head, mut body) = request.into_parts();
    let as_grpc_asks = head.uri.path() == METHOD
        && head.headers.get("te").is_some_and(|te| te == "trailers")
        && !head.headers.contains_key("x-powernode-token");
    if !as_grpc_asks {
        // What gRPC calls a trailers-only answer.
        headers.insert("grpc-status", HeaderValue::from_static("12"));
        return Ok(response);
    }
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(Ok(frame)) = body.frame().await {
            // HTTP/2 may end a stream by a frame without content.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                count += 1;
                let capitals = Bytes::from(data.to_ascii_uppercase());
                if send.send(Frame::data(capitals)).await.is_err() {
                    return;
                }
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.insert("x-count", HeaderValue::from(count));
        let _ = send.send(Frame::trailers(trailers)).await;
    });
    Ok(response)
}

/// The service on loopback; its address.
fn service(runtime: &Runtime) -> String {
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let executor = OnRuntime(runtime.handle().clone());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = hyper::server::conn::http2::Builder::new(executor.clone())
                .serve_connection(TokioIo::new(stream), service_fn(watch));
            tokio::spawn(async move {
                let _ = serving.await;
            });
        }
    });
    address
}

type Sender = hyper::client::conn::http2::SendRequest<Frames>;

/// An HTTP/2 connection to the bridge.
async fn connect(site: &Site) -> Sender {
    let trust = ParentTrust::Bundle(std::fs::read_to_string(&site.bridge.ca_file).unwrap());
    let clock = Clock::start(BUILD_TIME);
    let config = client_config(ClientTls {
        trust: &trust,
        learned: None,
        identity: None,
        alpn: &[b"h2"],
        time: Arc::new(move || clock.trusted().now),
        failures: FailureRecord::default(),
    });
    let url: http::Uri = site.bridge.url().parse().unwrap();
    let (host, port) = (url.host().unwrap().to_owned(), url.port_u16().unwrap());
    let stream = tokio::net::TcpStream::connect((host.as_str(), port))
        .await
        .unwrap();
    let tls = TlsConnector::from(Arc::new(config.unwrap()));
    let stream = tls
        .connect(ServerName::try_from(host).unwrap(), stream)
        .await
        .unwrap();
    let executor = OnRuntime(tokio::runtime::Handle::current());
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn call(site: &Site, method: &str, frames: mpsc::Receiver<Frame<Bytes>>) -> Request<Frames> {
    Request::post(format!("{}/satellites/shop-17/stock{method}", site.bridge.url()))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("x-powernode-token", site.bridge.operator_token.trim())
        .body(Frames(frames))
        .unwrap()
}

#[test]
fn messages_stream_both_ways_and_the_trailers_arrive() {
    let site = Site::start();
    let runtime = Runtime::new().unwrap();
    site.publish("stock", &service(&runtime), &["--protocol", "http"]);
    let exchange = async {
        let mut sender = connect(&site).await;
        let (messages, frames) = mpsc::channel(1);
        let answer = sender.send_request(call(&site, METHOD, frames)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        let mut body = answer.into_body();
        // Each message is answered before the next is sent: nothing waits for the end.
        for message in ["one", "two", "three"] {
            messages.send(Frame::data(Bytes::from(message))).await.unwrap();
            let mut got = Vec::new();
            while got.len() < message.len() {
                got.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(got, message.to_ascii_uppercase().as_bytes());
        }
        drop(messages);
        let last = body.frame().await.unwrap().unwrap();
        let trailers = last.into_trailers().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-count"]),
            (&"0".parse().unwrap(), &3.into())
        );
        assert!(body.frame().await.is_none());

        // Another call on the same connection, whose answer is its trailers alone.
        let (_, frames) = mpsc::channel(1);
        let answer = sender
            .send_request(call(&site, "/shop.Stock/Nothing", frames))
            .await
            .unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    };
    runtime.block_on(async { timeout(support::DEADLINE, exchange).await.unwrap() });
    wait_for("both calls are over, and well", || {
        let log = succeed(&site.bridge.output(&["audit", "export"]));
        let rows = audit(&log);
        let closed = rows
            .iter()
            .filter(|row| row["action"] == "service_closed" && row["object"] == "stock");
        let outcomes: Vec<_> = closed.map(|row| row["outcome"].as_str().unwrap()).collect();
        (outcomes == ["done", "done"]).then_some(())
    });
}
