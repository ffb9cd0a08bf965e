//! The tunnel's protocol as version 1 speaks it, byte for byte: a recorded dialog is replayed against
//! this build, once in the dialer's place and once in the acceptor's. What a released version says must
//! be understood, and what it is told must be what it was told before.
//!
//! The transcript is never recorded anew. A build that wants to say something else says it only to a
//! side that has asked for it by a feature in its hello.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use powernode_satellite::base::id::{SessionId, TraceId};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::tunnel::http as tunnel_http;
use powernode_satellite::tunnel::transport::{
    BoxFuture, ByteStream, CloseCode, Transport, TransportClosed, TunnelProtocol, Urgency,
};
use powernode_satellite::tunnel::{CloseReason, Farewell, Tunnel, TunnelSettings};
use powernode_satellite::wire::{Goodbye, GoodbyeReason, Hello, Welcome};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

const TRANSCRIPT: &str = include_str!("fixtures/protocol/v1.transcript");

const HEARTBEAT: &str = "/api/v1/system/federation_api/heartbeat";
const HEARTBEAT_BODY: &str = r#"{"platform_version":"0.1.0"}"#;
const HEARTBEAT_ANSWER: &str = r#"{"success":true,"data":{"status":"active"}}"#;
const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";
const CATALOG_ANSWER: &str = r#"{"success":true,"data":{"offerings":[]}}"#;

/// hyper puts the time of day where there is none.
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialer,
    Acceptor,
}

/// One line of the transcript.
#[derive(Debug)]
struct Step {
    stream: &'static str,
    from: Side,
    /// `None` ends the stream in this direction.
    bytes: Option<Vec<u8>>,
}

/// `stream > form content`: `>` is what the dialer says, `<` what the acceptor says; the form is `hex`,
/// `text` (with `\r`, `\n`) or `end`.
fn steps() -> Vec<Step> {
    let lines = TRANSCRIPT
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let stream = words.next().unwrap();
            let from = match words.next().unwrap() {
                ">" => Side::Dialer,
                "<" => Side::Acceptor,
                other => panic!("{other}: {line}"),
            };
            let form = words.next().unwrap();
            let content = words.next().unwrap_or_default();
            let bytes = match form {
                "hex" => Some(HEXLOWER.decode(content.as_bytes()).unwrap()),
                "text" => Some(content.replace("\\r", "\r").replace("\\n", "\n").into_bytes()),
                "end" => None,
                other => panic!("{other}: {line}"),
            };
            Step { stream, from, bytes }
        })
        .collect()
}

/// A connection whose other end is the transcript.
#[derive(Debug)]
struct Scripted {
    opened: mpsc::Sender<DuplexStream>,
    offered: Mutex<mpsc::Receiver<DuplexStream>>,
    closed: watch::Sender<bool>,
}

/// The transcript's end of it.
struct Script {
    opened: mpsc::Receiver<DuplexStream>,
    offered: mpsc::Sender<DuplexStream>,
    streams: BTreeMap<&'static str, DuplexStream>,
}

/// Bytes that a stream holds: more than the transcript has.
const PIPE_BYTES: usize = 64 * 1024;

fn scripted() -> (Arc<Scripted>, Script) {
    let (to_script, opened) = mpsc::channel(4);
    let (offered, from_script) = mpsc::channel(4);
    let transport = Scripted {
        opened: to_script,
        offered: Mutex::new(from_script),
        closed: watch::Sender::new(false),
    };
    let script = Script {
        opened,
        offered,
        streams: BTreeMap::new(),
    };
    (Arc::new(transport), script)
}

fn halves(stream: DuplexStream) -> ByteStream {
    let (read, write) = tokio::io::split(stream);
    ByteStream {
        read: Box::new(read),
        write: Box::new(write),
        farewell: Farewell::default(),
    }
}

impl Transport for Scripted {
    fn open(&self, _: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            match self.opened.send(far).await {
                Ok(()) => Ok(halves(near)),
                Err(_) => Err(TransportClosed::Reset),
            }
        })
    }

    fn accept(&self, _: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async {
            let offered = self.offered.lock().await.recv().await;
            offered.map(halves).ok_or(TransportClosed::Reset)
        })
    }

    fn close(&self, _: CloseCode, _: &str) {
        self.closed.send_replace(true);
    }

    fn closed(&self) -> BoxFuture<'_, TransportClosed> {
        Box::pin(async {
            let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
            TransportClosed::ByUs
        })
    }

    fn close_reason(&self) -> Option<TransportClosed> {
        (*self.closed.borrow()).then_some(TransportClosed::ByUs)
    }

    fn arrivals(&self) -> u64 {
        0
    }

    fn protocol(&self) -> TunnelProtocol {
        TunnelProtocol::Quic
    }

    fn remote_address(&self) -> SocketAddr {
        (Ipv4Addr::new(192, 0, 2, 1), 5).into()
    }

    fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        None
    }
}

impl Script {
    /// Says what `side` said, and expects what the other said.
    async fn play(mut self, side: Side) {
        for step in steps() {
            if !self.streams.contains_key(step.stream) {
                let stream = self.begin(step.from == side).await;
                self.streams.insert(step.stream, stream);
            }
            let stream = self.streams.get_mut(step.stream).unwrap();
            match (step.from == side, &step.bytes) {
                (true, Some(bytes)) => stream.write_all(bytes).await.unwrap(),
                (true, None) => stream.shutdown().await.unwrap(),
                (false, Some(bytes)) => {
                    let mut heard = vec![0; bytes.len()];
                    let read = stream.read_exact(&mut heard);
                    let whole = tokio::time::timeout(Duration::from_secs(60), read).await;
                    assert!(
                        matches!(whole, Ok(Ok(_))) && same(&heard, bytes),
                        "{step:?}\nexpected {}\nheard    {}",
                        bytes.escape_ascii(),
                        heard.escape_ascii()
                    );
                }
                (false, None) => assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{step:?}"),
            }
        }
    }

    async fn begin(&mut self, ours: bool) -> DuplexStream {
        if !ours {
            return self.opened.recv().await.unwrap();
        }
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        self.offered.send(far).await.unwrap();
        near
    }
}

/// The same bytes, or the same HTTP: order and case of its header fields say nothing.
fn same(heard: &[u8], recorded: &[u8]) -> bool {
    fn http(bytes: &[u8]) -> Option<(Vec<String>, &str)> {
        let (head, body) = std::str::from_utf8(bytes).ok()?.split_once("\r\n\r\n")?;
        let mut fields: Vec<_> = head.split("\r\n").map(str::to_ascii_lowercase).collect();
        fields[1..].sort();
        Some((fields, body))
    }
    heard == recorded || (http(heard).is_some() && http(heard) == http(recorded))
}

fn goodbye() -> Goodbye {
    Goodbye {
        reason: GoodbyeReason::ShuttingDown,
        message: "the box restarts".into(),
        retry_after_millis: 0,
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = match head.uri.path() {
        HEARTBEAT if body == HEARTBEAT_BODY => HEARTBEAT_ANSWER,
        CATALOG => CATALOG_ANSWER,
        other => panic!("{other}: {body:?}"),
    };
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("date", DATE);
    Ok(response.body(Full::from(answer)).unwrap())
}

/// Sends a request, whose answer must be as it was.
async fn ask(
    tunnel: &Tunnel,
    trace: u64,
    request: http::request::Builder,
    body: &'static str,
    expected: &str,
) {
    let request = request
        .header("host", "parent.example.com")
        .body(Full::from(body))
        .unwrap();
    let answer = tunnel_http::request(
        tunnel,
        TraceId(trace),
        request,
        tunnel_http::HttpLimits::default(),
    );
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.body(), expected);
}

async fn serve_one(tunnel: &Tunnel) {
    let stream = tunnel.accept_stream().await.unwrap().accept().await.unwrap();
    tunnel_http::serve(stream, service_fn(answer)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dialer_of_version_1_is_served_as_before() {
    let (transport, script) = scripted();
    let mut tasks = JoinSet::new();
    tasks.spawn(script.play(Side::Dialer));
    let clock = Clock::start(BUILD_TIME);
    let accepted = Tunnel::accept(transport, TunnelSettings::default(), clock, |hello| {
        assert_eq!(
            (hello.version, hello.agent.as_str()),
            (1, "powernode-satellite/0.1.0")
        );
        assert!(hello.features.is_empty());
        Ok(Welcome {
            session: SessionId::from_uuid(uuid::Uuid::from_u128(7)),
            agent: "powernode-host-bridge/0.1.0".into(),
            keepalive_millis: 20_000,
            max_streams: 64,
            observed_address: "192.0.2.1:5".into(),
            unix_seconds: 1_700_000_000,
            features: Vec::new(),
        })
    });
    let (tunnel, _, driver) = accepted.await.unwrap();
    let mut driver_task = JoinSet::new();
    driver_task.spawn(driver.run());
    serve_one(&tunnel).await;
    ask(&tunnel, 2, Request::get(CATALOG), "", CATALOG_ANSWER).await;
    let reason = driver_task.join_next().await.unwrap().unwrap();
    assert!(
        matches!(&reason, CloseReason::Goodbye(said) if *said == goodbye()),
        "{reason:?}"
    );
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_acceptor_of_version_1_is_spoken_to_as_before() {
    let (transport, script) = scripted();
    let mut tasks = JoinSet::new();
    tasks.spawn(script.play(Side::Acceptor));
    let hello = Hello {
        version: 1,
        agent: "powernode-satellite/0.1.0".into(),
        features: Vec::new(),
    };
    let settings = TunnelSettings::default();
    let dialled = Tunnel::dial(transport, hello, settings, Clock::start(BUILD_TIME));
    let (tunnel, welcome, driver) = dialled.await.unwrap();
    assert_eq!(welcome.observed_address, "192.0.2.1:5");
    let mut driver_task = JoinSet::new();
    driver_task.spawn(driver.run());
    let post = Request::post(HEARTBEAT).header("content-type", "application/json");
    ask(&tunnel, 1, post, HEARTBEAT_BODY, HEARTBEAT_ANSWER).await;
    serve_one(&tunnel).await;
    // Idle: the ping comes by itself, and its answer keeps the tunnel alive for one more.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!tunnel.is_closed(), "{:?}", tunnel.close_reason());
    tunnel.close(goodbye()).await;
    let reason = driver_task.join_next().await.unwrap().unwrap();
    assert!(matches!(reason, CloseReason::Local(_)), "{reason:?}");
    tasks.join_next().await.unwrap().unwrap();
}

#[test]
fn the_transcript_is_a_whole_dialog() {
    let steps = steps();
    let names: Vec<_> = steps.iter().map(|step| step.stream).collect();
    for stream in ["control", "heartbeat", "catalog"] {
        assert!(names.contains(&stream), "{stream}");
    }
    assert!(steps.iter().any(|step| step.from == Side::Acceptor));
}
