//! Streams, sessions, and how they end.

use super::*;

const PROXY: &[(&str, &str)] = &[("proxy.listen", "127.0.0.1:0")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_passes_both_ways_and_half_of_it_may_end() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let mut opened = bridge.connect_local("shop-17", "echo").await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let (mut read, mut write) = tokio::io::split(&mut opened.io);
    let sends = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), sends);
    read.unwrap();
    assert!(got == sent);
    let asked = satellite.last_asked();
    assert_eq!(
        (asked.service.as_str(), asked.subject.as_str(), asked.source),
        ("echo", "local", None)
    );
    wait_until("the session is over", || bridge.running.accesses.is_empty()).await;
    let end = bridge.running.accesses.end_of(&opened.session, "local").unwrap();
    assert_eq!((end.outcome, end.reason), ("done", None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_https_the_operator_and_the_real_source_are_named() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let path = format!("{CONNECT_PATH}/SHOP-17/ECHO");
    let (status, refused) = ask(bridge.tls(&[b"http/1.1"]).await, &path, None)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(status, 401, "{refused}");
    let stream = bridge.tls(&[b"http/1.1"]).await;
    let here = stream.get_ref().0.local_addr().unwrap();
    let mut opened = ask(stream, &path, Some(&bridge.operator_token)).await.unwrap();
    opened.io.write_all(b"ping").await.unwrap();
    opened.io.shutdown().await.unwrap();
    let mut got = Vec::new();
    opened.io.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping");
    let asked = satellite.last_asked();
    assert_eq!((asked.subject.as_str(), asked.source), ("admin", Some(here)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_is_told_why_in_words_that_help() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    bridge.invite("shop-18");
    for (peer, service, status, code, words) in [
        ("shop-71", "echo", 404, "UNKNOWN_PEER", "did you mean shop-17"),
        ("shop-18", "echo", 503, "PEER_OFFLINE", "has not joined yet"),
        (
            "shop-17",
            "nothing",
            404,
            "UNKNOWN_SERVICE",
            "published are echo, web",
        ),
        (
            "shop-17",
            "a_b",
            404,
            "UNKNOWN_SERVICE",
            "not the name of a service",
        ),
        ("shop-17", "expired", 403, "GRANT_REQUIRED", "grant has expired"),
        (
            "shop-17",
            "scope",
            403,
            "GRANT_FORBIDS",
            "source address not in allow-list",
        ),
        (
            "shop-17",
            "down",
            502,
            "SERVICE_UNAVAILABLE",
            "connection refused",
        ),
    ] {
        let (got, answer) = bridge.connect_local(peer, service).await.map(|_| ()).unwrap_err();
        assert_eq!((got, answer["code"].as_str()), (status, Some(code)), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }
    assert!(bridge.running.accesses.is_empty());
    satellite.leave("the box is switched off").await;
    wait_until("the satellite is gone", || bridge.running.links.is_empty()).await;
    let (status, answer) = bridge
        .connect_local("shop-17", "echo")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(status, 503, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_listed_with_its_bytes_and_can_be_cut() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let mut cut = bridge.connect_local("shop-17", "echo").await.unwrap();
    let mut other = bridge.connect_local("shop-17", "echo").await.unwrap();
    cut.io.write_all(b"12345").await.unwrap();
    cut.io.read_exact(&mut [0; 5]).await.unwrap();

    let (_, list) = bridge.operator(Method::GET, SESSIONS_PATH, Value::Null).await;
    let rows = list["data"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let row = rows.iter().find(|row| row["id"] == cut.session.as_str()).unwrap();
    for (field, value) in [
        ("peer", "shop-17"),
        ("service", "echo"),
        ("operator", "local"),
        ("via", "connect"),
    ] {
        assert_eq!(row[field], value, "{row}");
    }
    assert_eq!(
        (&row["bytes_to_service"], &row["bytes_from_service"]),
        (&json!(5), &json!(5))
    );

    let path = format!("{SESSIONS_PATH}/{}/cut", cut.session);
    let (status, answer) = bridge
        .operator(Method::POST, &path, json!({ "reason": "maintenance" }))
        .await;
    assert_eq!(status, 200, "{answer}");
    let ended = tokio::time::timeout(DEADLINE, cut.io.read(&mut [0; 5]))
        .await
        .unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    wait_until("the row is gone", || bridge.running.accesses.len() == 1).await;
    let end = bridge.running.accesses.end_of(&cut.session, "local").unwrap();
    assert_eq!(end.reason.as_deref(), Some("admin cut the session: maintenance"));
    let (status, _) = bridge.operator(Method::POST, &path, json!({})).await;
    assert_eq!(status, 404);
    other.io.write_all(b"x").await.unwrap();
    other.io.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_the_tunnel_and_new_ones_work_with_the_next() {
    let bridge = TestBridge::start().await;
    let (peer, identity) = bridge.joined("shop-17").await;
    let satellite = Satellite::dial(&bridge, peer, Arc::clone(&identity)).await;
    let mut opened = bridge.connect_local("shop-17", "mute").await.unwrap();
    satellite.leave("the box restarts").await;
    let ended = tokio::time::timeout(DEADLINE, opened.io.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    wait_until("the row is gone", || bridge.running.accesses.is_empty()).await;
    let end = bridge.running.accesses.end_of(&opened.session, "local").unwrap();
    let reason = end.reason.unwrap();
    assert!(
        reason.contains("the tunnel of shop-17 has ended") && reason.contains("the box restarts"),
        "{reason}"
    );

    let _next = Satellite::dial(&bridge, peer, identity).await;
    let mut again = bridge.connect_local("shop-17", "echo").await.unwrap();
    again.io.write_all(b"x").await.unwrap();
    again.io.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_sessions_soon() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let mut opened = bridge.connect_local("shop-17", "mute").await.unwrap();
    let accesses = Arc::clone(&bridge.running.accesses);
    let mut byte = [0; 1];
    // The whole grace period is not used up by a session that would go on for ever.
    let stopped = tokio::time::timeout(
        DEADLINE,
        bridge
            .running
            .stop(Duration::from_secs(600), std::future::pending()),
    );
    let (stopped, ended) = tokio::join!(stopped, opened.io.read(&mut byte));
    stopped.unwrap().unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let end = accesses.end_of(&opened.session, "local").unwrap();
    assert_eq!(end.reason.as_deref(), Some("the host-bridge stops or restarts"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_may_no_more_is_cut() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let path = format!("{CONNECT_PATH}/shop-17/mute");
    for (change, words) in [
        (("revoke", json!({})), "was removed or has ended"),
        (
            ("change", json!({ "peers": ["stall-*"] })),
            "is limited to the peers stall-*",
        ),
    ] {
        let new = json!({ "name": "anna", "role": "operator", "ttl_seconds": 3_600 });
        let (status, added) = bridge.operator(Method::POST, OPERATORS_PATH, new).await;
        assert_eq!(status, 201, "{added}");
        let token = added["data"]["operator_token"].as_str().unwrap();
        let mut opened = ask(bridge.tls(&[b"http/1.1"]).await, &path, Some(token))
            .await
            .unwrap();
        let (verb, body) = change;
        let target = format!("{OPERATORS_PATH}/anna/{verb}");
        let (status, answer) = bridge.operator(Method::POST, &target, body).await;
        assert_eq!(status, 200, "{answer}");
        let ended = tokio::time::timeout(DEADLINE, opened.io.read(&mut [0; 1]))
            .await
            .unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        wait_until("the row is gone", || bridge.running.accesses.is_empty()).await;
        let end = bridge.running.accesses.end_of(&opened.session, "anna").unwrap();
        assert!(end.reason.as_deref().unwrap().contains(words), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hangs_up_before_the_satellite_answers_is_noted_as_having_asked() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let mut program = UnixStream::connect(bridge.dir.path().join("admin.sock"))
        .await
        .unwrap();
    let head = format!(
        "GET {CONNECT_PATH}/shop-17/undecided HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
         upgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
    );
    program.write_all(head.as_bytes()).await.unwrap();
    wait_until("the satellite is asked", || {
        satellite
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|asked| asked.service == "undecided")
    })
    .await;
    drop(program);
    wait_until("the row is gone", || bridge.running.accesses.is_empty()).await;

    let path = format!("{AUDIT_PREFIX}entries");
    let about = |entry: &&Value| entry["object"] == "undecided";
    let noted = tokio::time::timeout(DEADLINE, async {
        loop {
            let (status, answer) = bridge.operator(Method::GET, &path, Value::Null).await;
            assert_eq!(status, 200, "{answer}");
            let entries = answer["data"]["entries"].as_array().unwrap();
            let noted: Vec<_> = entries.iter().filter(about).cloned().collect();
            if !noted.is_empty() {
                break noted;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let noted = noted.await.unwrap();
    // Nothing was open that could be closed.
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!(noted[0]["action"], "service_opened", "{noted:?}");
    assert_eq!(noted[0]["actor"], "local", "{noted:?}");
    assert_eq!(noted[0]["outcome"], "failed", "{noted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_revoked_is_not_reached_though_its_tunnel_is_still_there() {
    let bridge = TestBridge::start().await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    bridge.connect_local("shop-17", "echo").await.unwrap();
    // As one does that leaves and is gone before it hears the answer: its tunnel is ended with the answer.
    let registry = bridge.running.registry();
    registry
        .revoke("shop-17", "the satellite has left", bridge.now())
        .unwrap();
    let (status, answer) = bridge
        .connect_local("shop-17", "echo")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("PEER_OFFLINE")),
        "{answer}"
    );
    assert!(
        answer["error"].as_str().unwrap().contains("it is revoked"),
        "{answer}"
    );
    let path = format!("/peers/shop-17{}", crate::contract::SERVICE_CATALOG_PATH);
    let (status, answer) = bridge.operator(Method::GET, &path, Value::Null).await;
    assert_eq!(status, 503, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_sessions_than_the_limit() {
    let bridge = TestBridge::start_with(&[("limits.access_sessions", "1")]).await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let first = bridge.connect_local("shop-17", "echo").await.unwrap();
    let (status, answer) = bridge
        .connect_local("shop-17", "echo")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(status, 503, "{answer}");
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("limits.access_sessions"),
        "{answer}"
    );
    drop(first);
    wait_until("the place is free", || bridge.running.accesses.is_empty()).await;
    assert!(bridge.connect_local("shop-17", "echo").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_curl_reaches_services_by_name_and_nothing_else() {
    let bridge = TestBridge::start_with(PROXY).await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let user = format!("admin:{}", bridge.operator_token);
    let (http, socks) = (format!("http://{}", bridge.proxy()), bridge.proxy().to_string());
    let url = "http://web.shop-17.satellite/head?a=b";
    for way in [
        vec!["--proxy", &http, "--proxy-user", &user],
        vec!["--proxy", &http, "--proxy-user", &user, "--proxytunnel"],
        vec!["--socks5-hostname", &socks, "--proxy-user", &user],
    ] {
        let Some(output) = bridge.curl(&[&way[..], &[url]].concat()).await else {
            return;
        };
        let seen: Value = serde_json::from_str(&printed(&output)).unwrap();
        assert_eq!(seen["target"], "/head?a=b", "{way:?}");
        assert_eq!(seen["headers"]["host"], "web.shop-17.satellite", "{way:?}");
        assert!(
            !seen.to_string().contains(&bridge.operator_token),
            "{way:?}: {seen}"
        );
        let asked = satellite.last_asked();
        assert_eq!(asked.subject, "admin");
        assert_eq!(asked.source.unwrap().ip(), bridge.proxy().ip());
    }
    // Without a token, with a wrong one, under another's name, and to other places.
    let wrong = format!("admin:{}", "x".repeat(43));
    let other = format!("berta:{}", bridge.operator_token);
    let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    let elsewhere = format!("http://{}/", bridge.running.bound.https[0]);
    for (user, url, expected) in [
        (None, url, "407"),
        (Some(&wrong), url, "407"),
        (Some(&other), url, "407"),
        (Some(&user), "http://127.0.0.1/", "404"),
        (Some(&user), elsewhere.as_str(), "404"),
        (Some(&user), "http://web.shop-71.satellite/", "404"),
        (Some(&user), "http://expired.shop-17.satellite/", "403"),
    ] {
        let mut arguments = vec!["--proxy", http.as_str(), url];
        arguments.extend(status);
        if let Some(user) = user {
            arguments.extend(["--proxy-user", user]);
        }
        let output = bridge.curl(&arguments).await.unwrap();
        assert_eq!(printed(&output), expected, "{user:?} {url}");
    }
    let address = format!("http://{}/", bridge.running.bound.https[0]);
    for (host, user) in [
        (url, &wrong),
        ("http://down.shop-17.satellite/", &user),
        (&address, &user),
    ] {
        let arguments = ["--socks5-hostname", &socks, "--proxy-user", user, host];
        let output = bridge.curl(&arguments).await.unwrap();
        assert_eq!(output.status.code(), Some(97), "{host}: {output:?}");
    }
    wait_until("nothing is left", || bridge.running.accesses.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socks_client_may_send_all_at_once() {
    let bridge = TestBridge::start_with(PROXY).await;
    let _satellite = Satellite::join(&bridge, "shop-17").await;
    let mut all = b"\x05\x01\x02\x01\x05admin\x2b".to_vec();
    all.extend_from_slice(bridge.operator_token.as_bytes());
    all.extend_from_slice(b"\x05\x01\x00\x03\x16echo.shop-17.satellite\x00\x16early");
    let mut stream = TcpStream::connect(bridge.proxy()).await.unwrap();
    stream.write_all(&all).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(
        got,
        b"\x05\x02\x01\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00early"
    );
}
