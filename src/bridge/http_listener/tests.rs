use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::*;
use crate::bridge::attended::UNTAKEN_MAX;
use crate::process::supervisor::{Stage, Supervisor};

/// Far more than any connection gets that says nothing.
const AGES: Duration = Duration::from_secs(3_600);

/// Time that an answer under way takes in these tests: several times what a quiet connection is kept.
const SLOW_ANSWER: Duration = Duration::from_secs(300);

/// More than lies between the two sides.
const LARGE_ANSWER: usize = 512 * 1024;

/// What every request is answered with.
async fn answer(request: Request<Incoming>) -> Response<ReplyBody> {
    if request.uri().path() == "/slow" {
        sleep(SLOW_ANSWER).await;
    }
    let words = match request.uri().path() {
        "/large" => Bytes::from(vec![b'.'; LARGE_ANSWER]),
        _ => Bytes::from_static(b"here"),
    };
    let body = Full::new(words).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}

/// How long a connection is kept whose client does this.
async fn kept<C>(h2: bool, client: impl FnOnce(DuplexStream) -> C) -> Duration
where
    C: Future<Output = ()>,
{
    let (near, far) = duplex(64 * 1024);
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    let begun = paused_now();
    let served = async {
        if h2 {
            serve_h2(far, &scope, answer).await;
        } else {
            serve_http(far, &scope, answer).await;
        }
        begun.elapsed()
    };
    let both = async { tokio::join!(timeout(AGES, served), client(near)) };
    let (kept, ()) = both.await;
    kept.expect("it is kept for ages")
}

/// The paused clock.
#[allow(clippy::disallowed_methods, reason = "the clock is paused")]
fn paused_now() -> Instant {
    Instant::now()
}

/// Says a text byte by byte, one each twenty seconds, and waits for the end.
async fn dribble(mut io: DuplexStream, text: &[u8]) {
    for byte in text {
        if io.write_all(&[*byte]).await.is_err() {
            return;
        }
        sleep(HEAD_TIMEOUT * 2 / 3).await;
    }
    let _ = io.read_to_end(&mut Vec::new()).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_too_slowly_is_hung_up() {
    const SLOW_HEAD: &[u8] =
        b"GET / HTTP/1.1\r\nhost: bridge\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const SLOW_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n";
    for (h2, text) in [
        (false, &b""[..]),
        (false, SLOW_HEAD),
        (true, b""),
        (true, SLOW_PREFACE),
    ] {
        let kept = kept(h2, |io| dribble(io, text)).await;
        assert!(
            kept < HEAD_TIMEOUT * 2,
            "HTTP/2: {h2}, {} bytes: {kept:?}",
            text.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_no_more_is_let_go_over_either_version() {
    let once = async |mut io: DuplexStream| {
        io.write_all(b"GET / HTTP/1.1\r\nhost: bridge\r\n\r\n")
            .await
            .unwrap();
        let mut heard = Vec::new();
        io.read_to_end(&mut heard).await.unwrap();
        assert!(heard.ends_with(b"here"));
    };
    assert!(kept(false, once).await < HEAD_TIMEOUT * 2);

    let supervisor = Supervisor::new();
    let clients = supervisor.scope(Stage::Base);
    let ask = async |io: DuplexStream, paths: &[&'static str]| {
        let (mut sender, connection) = http2::handshake(InScope(clients.clone()), TokioIo::new(io))
            .await
            .unwrap();
        clients.spawn("client", async move {
            let _ = connection.await;
        });
        for path in paths {
            let request = Request::get(format!("https://bridge{path}"))
                .body(Empty::<Bytes>::new())
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "here");
        }
        // Stays, and answers every ping.
        let _ = timeout(AGES, sender.ready()).await;
        std::future::pending::<()>().await;
    };
    for (paths, least) in [
        (&[][..], Duration::ZERO),
        (&["/", "/"][..], Duration::ZERO),
        (&["/slow"][..], SLOW_ANSWER),
    ] {
        let (near, far) = duplex(64 * 1024);
        let scope = supervisor.scope(Stage::Work);
        let begun = paused_now();
        tokio::select! {
            served = timeout(AGES, serve_h2(far, &scope, answer)) => served.expect("it is kept for ages"),
            () = ask(near, paths) => {}
        }
        let kept = begun.elapsed();
        assert!(
            (least..least + HEAD_TIMEOUT * 2).contains(&kept),
            "{paths:?}: {kept:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_its_answers_is_hung_up_and_who_takes_little_is_not() {
    const ASKED: &[u8] = b"GET /large HTTP/1.1\r\nhost: bridge\r\n\r\n";
    let never_reads = async |mut io: DuplexStream| {
        // In advance, and as many as are taken.
        while io.write_all(ASKED).await.is_ok() {}
    };
    let ended = kept(false, never_reads).await;
    assert!((UNTAKEN_MAX..UNTAKEN_MAX * 2).contains(&ended), "{ended:?}");

    let reads_slowly = async |mut io: DuplexStream| {
        io.write_all(ASKED).await.unwrap();
        let (mut taken, mut buffer) = (0, vec![0; 64 * 1024]);
        while taken < LARGE_ANSWER {
            sleep(UNTAKEN_MAX * 2 / 3).await;
            let count = io.read(&mut buffer).await.unwrap();
            assert!(count > 0, "after {taken} bytes");
            taken += count;
        }
    };
    assert!(kept(false, reads_slowly).await > UNTAKEN_MAX * 2);
}
