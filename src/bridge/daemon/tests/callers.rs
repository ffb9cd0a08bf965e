//! The parent's programs at a standalone bridge: by their credential, below the peer's path and its host
//! name, beside operators with their tokens.

use super::*;

const CREDENTIAL: &str = "0123456789abcdef0123456789abcdef";

const CATALOG: &str = "/api/v1/system/federation_api/service_catalog";

async fn asked(bridge: &TestBridge, host: &str, path: &str, credential: Option<&str>) -> (u16, String) {
    let mut request = request(Method::GET, path, &Value::Null);
    let headers = request.headers_mut();
    headers.insert("host", host.parse().unwrap());
    headers.insert("authorization", "Bearer fgs.x".parse().unwrap());
    if let Some(credential) = credential {
        let shown = format!("Bearer {credential}");
        headers.insert("x-powernode-credential", shown.parse().unwrap());
    }
    let (status, answer) = bridge.https(None, request).await.unwrap();
    (status, answer["error"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_reaches_peers_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credential");
    std::fs::write(&file, format!("{CREDENTIAL}\n")).unwrap();
    let bridge = TestBridge::start_with(&[
        ("callers.credential_file", file.to_str().unwrap()),
        ("callers.domain", "sat.test"),
    ])
    .await;
    let (peer, _) = bridge.invite("shop-17");
    let by_path = format!("/peers/shop-17{CATALOG}");
    let (status, why) = asked(&bridge, "127.0.0.1", &by_path, Some(CREDENTIAL)).await;
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("it has not joined yet"), "{why}");
    let by_host = format!("{peer}.sat.test:8443");
    let (status, why) = asked(&bridge, &by_host, CATALOG, Some(CREDENTIAL)).await;
    assert_eq!(status, 503, "{why}");

    // Nobody else: a grant alone is no credential, and an operator has no business at a host name.
    for (host, path, credential, words) in [
        (
            "127.0.0.1",
            by_path.as_str(),
            None,
            "X-Powernode-Credential was shown",
        ),
        (
            "127.0.0.1",
            &by_path,
            Some("0123456789abcdef0123456789abcdee"),
            "operator token",
        ),
        (
            &by_host,
            CATALOG,
            None,
            "this host name is for the parent's programs",
        ),
    ] {
        let (status, why) = asked(&bridge, host, path, credential).await;
        assert_eq!(status, 401, "{why}");
        assert!(why.contains(words), "{why}");
    }
    // And nothing else: the credential opens what is a peer's.
    let unknown = format!("/peers/nobody{CATALOG}");
    assert_eq!(
        asked(&bridge, "127.0.0.1", &unknown, Some(CREDENTIAL)).await.0,
        404
    );
    for path in [
        "/api/v1/system/sdwan/federation_peers",
        "/api/v1/system/sdwan/operators",
    ] {
        assert_eq!(
            asked(&bridge, "127.0.0.1", path, Some(CREDENTIAL)).await.0,
            401,
            "{path}"
        );
    }

    // Another one counts as soon as the file has it.
    std::fs::write(&file, CREDENTIAL.to_ascii_uppercase()).unwrap();
    let settings = bridge.running.settings.borrow().clone();
    bridge.running.apply(settings).await;
    assert_eq!(
        asked(&bridge, "127.0.0.1", &by_path, Some(CREDENTIAL)).await.0,
        401
    );
}
