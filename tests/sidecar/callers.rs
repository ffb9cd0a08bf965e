//! The platform's own programs, as they reach a satellite.

use serde_json::Value;

use super::platform::PEER;
use super::support::{succeed, wait_for};
use super::{API, CALLER, CREDENTIAL, NETWORK, Sidecar, get};

#[test]
fn the_platform_reaches_the_satellite_with_its_grant_alone() {
    let side = Sidecar::start();
    let (satellite, running) = side.satellite();
    let issued = succeed(&satellite.output(&["grants", "issue", "--operator", "--no-deliver", "--json"]));
    let issued: Value = serde_json::from_str(&issued).unwrap();
    let token = issued["bearer_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{issued}"));
    let bearer = format!("Bearer {token}");
    let base = format!("/peers/{PEER}{API}");
    let resource = format!("{base}/resources/managed_child_operator/{PEER}");
    let grant = [("authorization", bearer.as_str())];

    let caller = side.callers.client(CALLER);
    let catalog = side.asked(Some(&caller), get(&format!("{base}/service_catalog"), &grant));
    assert_eq!(catalog.status, 200, "{}", catalog.text());
    let answer = side.asked(Some(&caller), get(&resource, &grant));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains(r#""exists":true"#), "{}", answer.text());
    // The satellite decides.
    let answer = side.asked(Some(&caller), get(&resource, &[]));
    assert_eq!(answer.status, 401);
    assert!(
        answer.text().contains("grant token required"),
        "{}",
        answer.text()
    );

    // By the shared credential, too, and by nothing less.
    let credential = format!("Bearer {CREDENTIAL}");
    let with = [
        ("authorization", bearer.as_str()),
        ("x-powernode-credential", credential.as_str()),
    ];
    assert_eq!(side.asked(None, get(&resource, &with)).status, 200);
    let wrong = [
        ("authorization", bearer.as_str()),
        (
            "x-powernode-credential",
            "Bearer 0123456789abcdef0123456789abcdee",
        ),
    ];
    assert_eq!(side.asked(None, get(&resource, &wrong)).status, 401);
    assert_eq!(side.asked(None, get(&resource, &grant)).status, 401);
    let namesake = side.platform.authority().client(CALLER);
    assert_eq!(
        side.asked(Some(&namesake), get(&resource, &grant)).status,
        401,
        "callers have an authority of their own"
    );
    let stranger = side.callers.client("somebody.example.com");
    let answer = side.asked(Some(&stranger), get(&resource, &grant));
    assert_eq!(answer.status, 401);
    assert!(
        answer.text().contains("not one of `callers.subjects`"),
        "{}",
        answer.text()
    );

    let nobody = format!("/peers/{NETWORK}{API}/service_catalog");
    let answer = side.asked(Some(&caller), get(&nobody, &grant));
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(
        side.asked(
            Some(&caller),
            get(&format!("/peers/shop{API}/service_catalog"), &grant)
        )
        .status,
        404
    );
    let elsewhere = format!("/peers/{PEER}/api/v1/system/sdwan/federation_peers");
    assert_eq!(side.asked(Some(&caller), get(&elsewhere, &grant)).status, 404);

    assert!(running.stop().success());
    wait_for("the satellite is gone", || {
        (side.asked(Some(&caller), get(&resource, &grant)).status == 503).then_some(())
    });
}
