//! The HTTP ingress.

use hyper::client::conn::http2;

use super::*;
use crate::bridge::access::InScope;

const BASE: &str = "/satellites/shop-17/web";

/// One request over HTTP/1.1 or HTTP/2; status, headers, body, trailers.
async fn get(
    bridge: &TestBridge,
    h2: bool,
    request: Request<AnyBody>,
) -> (u16, http::HeaderMap, String, http::HeaderMap) {
    let supervisor = Supervisor::new();
    let scope = supervisor.scope(Stage::Work);
    let alpn: &[&[u8]] = if h2 { &[b"h2"] } else { &[b"http/1.1"] };
    let io = TokioIo::new(bridge.tls(alpn).await);
    let response = if h2 {
        let (mut sender, connection) = http2::handshake(InScope(scope.clone()), io).await.unwrap();
        scope.spawn("client", async move {
            let _ = connection.await;
        });
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        scope.spawn("client", async move {
            let _ = connection.await;
        });
        sender.send_request(request).await.unwrap()
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    (head.status.as_u16(), head.headers, text, trailers)
}

fn visit(bridge: &TestBridge, path: &str, h2: bool) -> http::request::Builder {
    let base = if h2 { "https://127.0.0.1" } else { "" };
    let _ = bridge;
    let request = Request::builder().uri(format!("{base}{path}"));
    if h2 {
        request
    } else {
        request.header("host", "127.0.0.1")
    }
}

fn empty() -> AnyBody {
    Full::new(Bytes::new()).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_sees_the_visitor_and_never_the_token() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    for h2 in [false, true] {
        let request = visit(&bridge, &format!("{BASE}/head?a=b"), h2)
            .header("x-powernode-token", &bridge.operator_token)
            .header("authorization", "Bearer theirs")
            .header("x-forwarded-for", "203.0.113.9")
            .header("cookie", "sid=1")
            .body(empty())
            .unwrap();
        let (status, _, body, _) = get(&bridge, h2, request).await;
        assert_eq!(status, 200, "{body}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(seen["target"], "/head?a=b");
        let headers = &seen["headers"];
        assert_eq!(headers["authorization"], "Bearer theirs");
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["x-forwarded-prefix"], BASE);
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(
            (&headers["host"], &headers["cookie"]),
            (&json!("127.0.0.1"), &json!("sid=1"))
        );
        assert!(!body.contains(&bridge.operator_token));
        assert_eq!(satellite.last_asked().subject, "admin");
        assert_eq!(
            satellite.last_asked().source.unwrap().ip().to_string(),
            "127.0.0.1"
        );
    }
    wait_until("nothing is left", || bridge.running.accesses.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_logs_in_once_and_the_services_own_login_goes_through() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let ask = |path: &str, lines: &[(&str, &str)]| {
        let mut request = visit(&bridge, path, false);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(empty()).unwrap()
    };
    let head = format!("{BASE}/head");
    let (status, headers, body, _) = get(&bridge, false, ask(&head, &[])).await;
    assert_eq!(status, 401, "{body}");
    assert!(
        headers["www-authenticate"]
            .to_str()
            .unwrap()
            .starts_with("Basic ")
    );

    let pair = data_encoding::BASE64.encode(format!("admin:{}", bridge.operator_token).as_bytes());
    let basic = format!("Basic {pair}");
    let (status, headers, body, _) = get(&bridge, false, ask(&head, &[("authorization", &basic)])).await;
    assert_eq!(status, 200, "{body}");
    assert!(!body.contains(&pair), "the login reached the service");
    let set = headers["set-cookie"].to_str().unwrap();
    for attribute in [
        "; HttpOnly",
        "; Secure",
        "; SameSite=Lax",
        "; Path=/satellites/shop-17/web/",
    ] {
        assert!(set.contains(attribute), "{set}");
    }
    assert!(!set.contains(&bridge.operator_token));
    let cookie = set.split(';').next().unwrap();
    let with_cookie = [("cookie", cookie), ("authorization", "Basic dGhlaXJzOm93bg==")];
    let (status, headers, body, _) = get(&bridge, false, ask(&head, &with_cookie)).await;
    let seen: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &seen["headers"]["authorization"]),
        (200, &json!("Basic dGhlaXJzOm93bg=="))
    );
    assert!(seen["headers"].get("cookie").is_none() && !headers.contains_key("set-cookie"));
    // A browser goes on sending what it has logged in with.
    let (status, _, body, _) = get(
        &bridge,
        false,
        ask(&head, &[("cookie", cookie), ("authorization", &basic)]),
    )
    .await;
    assert_eq!(status, 200);
    assert!(!body.contains(&pair), "the login reached the service");
    // The cookie is for this service alone, and is no token for the operator API.
    let elsewhere = ask("/satellites/shop-17/echo/", &[("cookie", cookie)]);
    assert_eq!(get(&bridge, false, elsewhere).await.0, 401);
    let api = ask(SESSIONS_PATH, &[("cookie", cookie)]);
    assert_eq!(get(&bridge, false, api).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_pass_as_they_come_over_both_versions() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    for h2 in [false, true] {
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let mut request = visit(&bridge, &format!("{BASE}/through"), h2)
            .method(Method::POST)
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", bridge.operator_token));
        if !h2 {
            request = request.header("connection", "te");
        }
        let request = request.body(channel_body(receive)).unwrap();
        let sends = async {
            for _ in 0..20 {
                let piece = Bytes::from(vec![b'x'; 50_000]);
                send.send(Frame::data(piece)).await.unwrap();
            }
            drop(send);
        };
        let ((status, _, body, trailers), ()) = tokio::join!(get(&bridge, h2, request), sends);
        assert_eq!((status, body.len()), (200, 1_000_000), "h2: {h2}");
        assert_eq!(trailers["x-count"], "1000000", "h2: {h2}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_cookies_of_a_service_stay_below_its_path() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let ask = |path: &str| {
        visit(&bridge, path, false)
            .header("x-powernode-token", &bridge.operator_token)
            .body(empty())
            .unwrap()
    };
    let (status, headers, ..) = get(&bridge, false, ask(&format!("{BASE}/moved"))).await;
    assert_eq!(
        (status, &headers["location"]),
        (
            302,
            &HeaderValue::from_static("/satellites/shop-17/web/there?x=1")
        )
    );
    assert_eq!(headers["set-cookie"], "sid=1; Path=/satellites/shop-17/web/");
    let (status, headers, ..) = get(&bridge, false, ask("/satellites/shop-17/web?a=b")).await;
    assert_eq!(
        (status, &headers["location"]),
        (308, &HeaderValue::from_static("/satellites/shop-17/web/?a=b"))
    );
    for (path, expected) in [
        ("/satellites/shop-17/nothing/", 404),
        ("/satellites/shop-71/web/", 404),
        ("/satellites/shop-17/expired/", 403),
        ("/satellites/shop-17/down/", 502),
        ("/satellites/shop-17/echo/", 502),
        ("/satellites/..%2f/web/", 404),
    ] {
        let (status, _, body, _) = get(&bridge, false, ask(path)).await;
        assert_eq!(status, expected, "{path}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_becomes_a_stream() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let mut stream = bridge.tls(&[b"http/1.1"]).await;
    let request = format!(
        "GET {BASE}/socket HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Powernode-Token: {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\n\r\nhello",
        bridge.operator_token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    assert!(got.starts_with("HTTP/1.1 101"), "{got}");
    assert!(got.to_ascii_lowercase().contains("upgrade: websocket"), "{got}");
    assert!(got.ends_with("\r\n\r\nhello"), "{got}");
    drop(stream);
    wait_until("nothing is left", || bridge.running.accesses.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_at_once_and_a_visitor_who_goes_ends_the_session() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        let io = TokioIo::new(bridge.tls(&[alpn]).await);
        let h2 = alpn == b"h2";
        let request = visit(&bridge, &format!("{BASE}/events"), h2)
            .header("x-powernode-token", &bridge.operator_token)
            .body(empty())
            .unwrap();
        let mut body = if h2 {
            let (mut sender, connection) = http2::handshake(InScope(scope.clone()), io).await.unwrap();
            scope.spawn_until_cancelled("client", async move {
                let _ = connection.await;
            });
            sender.send_request(request).await.unwrap().into_body()
        } else {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            scope.spawn_until_cancelled("client", async move {
                let _ = connection.await;
            });
            sender.send_request(request).await.unwrap().into_body()
        };
        let event = tokio::time::timeout(DEADLINE, body.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(event.into_data().unwrap(), "data: one\n\n");
        assert_eq!(bridge.running.accesses.len(), 1);
        drop(body);
        scope.cancel();
        wait_until("the session is over", || bridge.running.accesses.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_ends_a_download() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let request = visit(&bridge, &format!("{BASE}/events"), false)
        .header("x-powernode-token", &bridge.operator_token)
        .body(empty())
        .unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(bridge.tls(&[b"http/1.1"]).await))
        .await
        .unwrap();
    let download = async {
        let mut body = sender.send_request(request).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        let session = bridge.running.accesses.list(|_| true).remove(0);
        assert!(bridge.running.accesses.cut(&session.id, "bert", None));
        let rest = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap();
        assert!(matches!(rest, Some(Err(_))), "{rest:?}");
    };
    let mut download = std::pin::pin!(download);
    tokio::select! {
        () = &mut download => {}
        _ = connection => download.await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_curl_visits_over_http_2() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let url = format!("https://{}{BASE}/head", bridge.running.bound.https[0]);
    let bearer = format!("Authorization: Bearer {}", bridge.operator_token);
    for version in ["--http1.1", "--http2"] {
        let out = ["--write-out", "\n%{http_version} %{http_code}"];
        let Some(output) = bridge
            .curl(&[&[version, "--header", &bearer, &url][..], &out].concat())
            .await
        else {
            return;
        };
        let text = printed(&output);
        let (body, end) = text.rsplit_once('\n').unwrap();
        let expected = if version == "--http2" { "2 200" } else { "1.1 200" };
        assert_eq!(end, expected);
        assert!(!body.contains(&bridge.operator_token), "{body}");
    }
}
