use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::{Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::base::limit::{HTTP_HEAD_MAX_BYTES, JSON_BODY_MAX_BYTES};
use crate::tunnel::OpenStreamError;
use crate::tunnel::http::{
    HttpLimits, HttpOverTunnelError, REQUEST_HEAD_TIMEOUT, request, request_streaming, serve,
};
use crate::tunnel::memory::{Cut, PIPE_BYTES, pair};
use crate::wire::{RefusalCode, StreamRefusal};

const TRACE: TraceId = TraceId(9);

async fn ends() -> (Ends, Cut) {
    let (dialer, acceptor, cut) = pair();
    (greet(dialer, acceptor, 8).await, cut)
}

/// Answers each request on its own task.
pub(super) fn serve_all(tunnel: &Tunnel, tasks: &mut JoinSet<()>) {
    let tunnel = tunnel.clone();
    tasks.spawn(async move {
        let mut served = JoinSet::new();
        while let Ok(incoming) = tunnel.accept_stream().await {
            served.spawn(async move {
                // What goes wrong is the dialling side's to see.
                serve(incoming.accept().await.unwrap(), service_fn(answer))
                    .await
                    .ok();
            });
        }
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let answer = match head.uri.path() {
        "/echo" => Response::new(Full::new(body.collect().await.unwrap().to_bytes())),
        "/host" => Response::new(Full::new(Bytes::copy_from_slice(
            head.headers[header::HOST].as_bytes(),
        ))),
        "/length" => {
            let wanted = head.uri.query().unwrap().parse().unwrap();
            Response::new(Full::new(Bytes::from(vec![b'x'; wanted])))
        }
        "/head" => {
            let wanted = head.uri.query().unwrap().parse().unwrap();
            let mut answer = Response::new(Full::default());
            answer
                .headers_mut()
                .insert("x-long", "x".repeat(wanted).parse().unwrap());
            answer
        }
        "/early" => Response::builder()
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .body(match head.uri.query() {
                Some(length) => Full::from(vec![b'x'; length.parse().unwrap()]),
                None => Full::from("too much"),
            })
            .unwrap(),
        "/never" => std::future::pending().await,
        _ => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Full::default())
            .unwrap(),
    };
    Ok(answer)
}

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_are_answered_in_both_directions() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    serve_all(&ends.dialer, &mut tasks);
    for tunnel in [&ends.dialer, &ends.acceptor] {
        let body = Bytes::from(pattern(3, 100_000));
        let post = Request::builder()
            .method(Method::POST)
            .uri("https://parent.example/echo?a=b")
            .body(Full::new(body.clone()))
            .unwrap();
        let answer = request(tunnel, TRACE, post, HttpLimits::default()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(*answer.body() == body, "the echo differs");
        let answer = request(tunnel, TRACE, get("/nothing"), HttpLimits::default())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    for tunnel in [&ends.dialer, &ends.acceptor] {
        assert_eq!(tunnel.stats().open_streams, 0, "nothing is left behind");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_kept_or_supplied() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let limits = HttpLimits::default();
    let supplied = request(&ends.dialer, TRACE, get("/host"), limits).await.unwrap();
    assert_eq!(supplied.body(), "tunnel.invalid");
    let named = Request::get("/host")
        .header(header::HOST, "shop-17.example")
        .body(Full::default())
        .unwrap();
    let kept = request(&ends.dialer, TRACE, named, limits).await.unwrap();
    assert_eq!(kept.body(), "shop-17.example");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_taken_up_to_its_limits_and_no_further() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let limits = HttpLimits::default();
    let just = format!("/length?{JSON_BODY_MAX_BYTES}");
    let answer = request(&ends.dialer, TRACE, get(&just), limits).await.unwrap();
    assert_eq!(answer.body().len(), JSON_BODY_MAX_BYTES);
    let beyond = format!("/length?{}", JSON_BODY_MAX_BYTES + 1);
    assert!(matches!(
        request(&ends.dialer, TRACE, get(&beyond), limits).await,
        Err(HttpOverTunnelError::BodyTooLarge {
            limit: JSON_BODY_MAX_BYTES
        })
    ));
    let fits = format!("/head?{}", HTTP_HEAD_MAX_BYTES / 2);
    assert!(request(&ends.dialer, TRACE, get(&fits), limits).await.is_ok());
    let beyond = format!("/head?{HTTP_HEAD_MAX_BYTES}");
    assert!(matches!(
        request(&ends.dialer, TRACE, get(&beyond), limits).await,
        Err(HttpOverTunnelError::HeadTooLarge {
            limit: HTTP_HEAD_MAX_BYTES
        })
    ));
    assert_eq!(ends.dialer.stats().open_streams, 0, "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_request_head_beyond_the_limit_is_answered_as_such() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let long = Request::get("/host")
        .header("x-long", "x".repeat(HTTP_HEAD_MAX_BYTES))
        .body(Full::default())
        .unwrap();
    let answer = request(&ends.dialer, TRACE, long, HttpLimits::default())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_given_up() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let within = Duration::from_secs(3);
    let limits = HttpLimits {
        timeout: within,
        ..HttpLimits::default()
    };
    let error = request(&ends.dialer, TRACE, get("/never"), limits)
        .await
        .unwrap_err();
    assert!(matches!(error, HttpOverTunnelError::TimedOut { within: limit } if limit == within));
    assert_eq!(ends.dialer.stats().open_streams, 0, "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_a_refused_request() {
    let (ends, _) = ends().await;
    let refusal = StreamRefusal {
        code: RefusalCode::CertificateRequired,
        message: "accept and enroll alone".into(),
    };
    for body in [0, 200_000] {
        let post = Request::post("/echo").body(Full::from(vec![0_u8; body])).unwrap();
        let (asked, ()) = tokio::join!(request(&ends.dialer, TRACE, post, HttpLimits::default()), async {
            let incoming = ends.acceptor.accept_stream().await.unwrap();
            incoming.refuse(refusal.clone()).await;
        });
        assert!(matches!(asked, Err(HttpOverTunnelError::Refused(said)) if said == refusal));
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_reaches_a_sender_that_is_not_done() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let post = Request::post("/early")
        .body(Full::from(vec![0_u8; 1_000_000]))
        .unwrap();
    let answer = request(&ends.dialer, TRACE, post, HttpLimits::default())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.body(), "too much");
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_not_stopped_before_it_could_read_the_early_answer() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let mut stream = ends.dialer.open_stream(header()).await.unwrap();
    let head = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(&pattern(0, 100_000)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_counts_even_if_its_request_could_not_be_sent() {
    let (ends, _) = ends().await;
    let post = Request::post("/")
        .body(Full::from(vec![0_u8; 1_000_000]))
        .unwrap();
    let (asked, ()) = tokio::join!(
        request(&ends.dialer, TRACE, post, HttpLimits::default()),
        raw_answer(
            &ends.acceptor,
            b"HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 4\r\n\r\nfull"
        ),
    );
    let answer = asked.unwrap();
    assert_eq!(
        (answer.status(), &answer.body()[..]),
        (StatusCode::INSUFFICIENT_STORAGE, &b"full"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn a_streamed_answer_arrives_as_it_is_made() {
    let (ends, _) = ends().await;
    let (pieces, made) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let acceptor = ends.acceptor.clone();
    tasks.spawn(async move {
        let made = std::sync::Mutex::new(Some(made));
        let service = service_fn(|_: Request<Incoming>| {
            let body = Pieces(made.lock().unwrap().take().unwrap());
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        let incoming = acceptor.accept_stream().await.unwrap();
        serve(incoming.accept().await.unwrap(), service).await.unwrap();
    });
    let asked = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let answer = request_streaming(&ends.dialer, TRACE, asked, HttpLimits::default()).await;
    let mut body = answer.unwrap().into_body();
    for piece in ["one", "two", "three"] {
        pieces.send(Bytes::from(piece)).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(pieces);
    assert!(body.frame().await.is_none());
    tasks.join_next().await.unwrap().unwrap();
}

/// A body that is made elsewhere.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Speaks on an accepted stream below HTTP.
async fn raw_answer(tunnel: &Tunnel, bytes: &[u8]) {
    let mut stream = tunnel.accept_stream().await.unwrap().accept().await.unwrap();
    stream.write_all(bytes).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_no_answer() {
    let (ends, _) = ends().await;
    let (asked, ()) = tokio::join!(
        request(&ends.dialer, TRACE, get("/"), HttpLimits::default()),
        raw_answer(
            &ends.acceptor,
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
        ),
    );
    assert!(matches!(asked, Err(HttpOverTunnelError::Body(_))), "{asked:?}");
    let (asked, ()) = tokio::join!(
        request(&ends.dialer, TRACE, get("/"), HttpLimits::default()),
        raw_answer(&ends.acceptor, b"SSH-2.0-OpenSSH\r\n"),
    );
    assert!(
        matches!(asked, Err(HttpOverTunnelError::Exchange(_))),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_on_a_tunnel_that_has_ended_says_why() {
    let (ends, _) = ends().await;
    let (asked, ()) = tokio::join!(
        request(&ends.dialer, TRACE, get("/"), HttpLimits::default()),
        async {
            let _incoming = ends.acceptor.accept_stream().await.unwrap();
            ends.acceptor.close(goodbye()).await;
        },
    );
    assert!(asked.is_err());
    let again = request(&ends.dialer, TRACE, get("/"), HttpLimits::default()).await;
    assert!(matches!(
        again,
        Err(HttpOverTunnelError::Open(OpenStreamError::Closed(
            CloseReason::Goodbye(_)
        )))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_request_head_that_does_not_come_ends_the_stream() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let mut stream = ends.dialer.open_stream(header()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut heard = Vec::new();
    let patience = REQUEST_HEAD_TIMEOUT + Duration::from_secs(1);
    assert!(timeout(patience, stream.read_to_end(&mut heard)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_that_does_not_leave_at_once_arrives_whole() {
    let (ends, _) = ends().await;
    let mut tasks = JoinSet::new();
    serve_all(&ends.acceptor, &mut tasks);
    let long = 3 * PIPE_BYTES;
    let post = Request::post(format!("/early?{long}"))
        .body(Full::from(pattern(5, 200_000)))
        .unwrap();
    let answer = request(&ends.dialer, TRACE, post, HttpLimits::default())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.body().len(), long);
}
