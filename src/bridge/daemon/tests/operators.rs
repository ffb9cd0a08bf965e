//! What operators of each kind meet on every path of the interface: what they see, what they may, and
//! what they are told when they may not.

use super::*;
use crate::bridge::operator_api::{ACCESS_GRANTS_PATH, HEALTH_PATH, OPERATORS_PATH};
use crate::contract::FEDERATION_PEERS_PATH;

const CATALOG: &str = "api/v1/system/federation_api/service_catalog";

/// A bridge with the peers shop-17 and mill-3, and operators: a viewer, one for the shops, an admin of
/// the shops.
struct Staffed {
    bridge: TestBridge,
    shop: PeerId,
    mill: PeerId,
    viewer: String,
    technician: String,
    shops_admin: String,
}

impl Staffed {
    async fn start() -> Self {
        let bridge = TestBridge::start().await;
        let (shop, _) = bridge.invite("shop-17");
        let (mill, _) = bridge.invite("mill-3");
        let add = async |body: Value| {
            let (status, added) = bridge.operator(Method::POST, OPERATORS_PATH, body).await;
            assert_eq!(status, 201, "{added}");
            added["data"]["operator_token"].as_str().unwrap().to_owned()
        };
        Self {
            viewer: add(json!({ "name": "vera", "role": "viewer" })).await,
            technician: add(json!({ "name": "tom", "peers": ["shop-*"], "services": ["ssh"] })).await,
            shops_admin: add(json!({ "name": "ada", "role": "admin", "peers": ["shop-*"] })).await,
            bridge,
            shop,
            mill,
        }
    }

    async fn get(&self, token: &str, path: &str) -> (u16, Value) {
        self.bridge
            .with_token(token, Method::GET, path, Value::Null)
            .await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> (u16, Value) {
        self.bridge.with_token(token, Method::POST, path, body).await
    }

    /// Of one call that is refused: the sentence.
    async fn refused(&self, token: &str, path: &str, body: Value) -> String {
        let (status, answer) = self.post(token, path, body).await;
        assert_eq!(
            (status, &answer["code"]),
            (403, &json!("FORBIDDEN")),
            "{path}: {answer}"
        );
        answer["error"].as_str().unwrap().to_owned()
    }
}

fn names(list: &Value) -> Vec<&str> {
    let rows = list.as_array().unwrap();
    let mut names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

fn grant_for(peer: PeerId) -> Value {
    json!({
        "federation_peer_id": peer.to_string(), "remote_subject": "ops@example.com",
        "resource_kind": "node_instance", "permission_scopes": ["read"],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_show_what_is_within_the_limit() {
    let staffed = Staffed::start().await;
    let (status, peers) = staffed.get(&staffed.viewer, FEDERATION_PEERS_PATH).await;
    assert_eq!((status, names(&peers["data"])), (200, vec!["mill-3", "shop-17"]));
    for (peer, expected) in [(staffed.shop, 201), (staffed.mill, 201)] {
        let created = staffed
            .bridge
            .operator(Method::POST, ACCESS_GRANTS_PATH, grant_for(peer))
            .await;
        assert_eq!(created.0, expected, "{}", created.1);
    }
    for token in [&staffed.technician, &staffed.shops_admin] {
        let (_, peers) = staffed.get(token, FEDERATION_PEERS_PATH).await;
        assert_eq!(names(&peers["data"]), ["shop-17"]);
        let (status, health) = staffed.get(token, HEALTH_PATH).await;
        assert_eq!((status, names(&health["data"]["peers"])), (200, vec!["shop-17"]));
        assert_eq!(health["data"]["peer_count"], 1);
        let (_, grants) = staffed.get(token, ACCESS_GRANTS_PATH).await;
        let grants = grants["data"].as_array().unwrap();
        assert_eq!(grants.len(), 1);
        assert_eq!(grants[0]["federation_peer_id"], staffed.shop.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_beyond_the_limit_is_refused_whether_it_exists_or_not() {
    let staffed = Staffed::start().await;
    let show = async |peer: &str| {
        let path = format!("{FEDERATION_PEERS_PATH}/{peer}");
        staffed.get(&staffed.technician, &path).await
    };
    let (status, there) = show("mill-3").await;
    assert_eq!(status, 403);
    let (status, not_there) = show("mill-4").await;
    assert_eq!(status, 403);
    assert_eq!(
        there["error"].as_str().unwrap().replace("mill-3", "mill-4"),
        not_there["error"].as_str().unwrap()
    );
    assert_eq!(show(&staffed.mill.to_string()).await.0, 403);
    assert_eq!(show("shop-17").await.0, 200);
    assert_eq!(show(&staffed.shop.to_string()).await.0, 200);
    let (status, near) = show("shop-71").await;
    assert_eq!(status, 404);
    assert!(
        near["error"].as_str().unwrap().contains("did you mean shop-17?"),
        "{near}"
    );
}

/// Calls that are refused: by whom, to what, and a word of the sentence.
fn refusals(staffed: &Staffed) -> Vec<(&str, String, Value, &'static str)> {
    const OPERATOR: &str = "takes the role operator";
    const ADMIN: &str = "takes the role admin";
    const PEERS: &str = "limited to the peers shop-*";
    const LIMITED: &str = "without such a limit";
    let of = |peer: &str, verb: &str| format!("{FEDERATION_PEERS_PATH}/{peer}/{verb}");
    let catalog = |peer: &str| format!("/peers/{peer}/{CATALOG}");
    let peers = || FEDERATION_PEERS_PATH.to_owned();
    let grants = || ACCESS_GRANTS_PATH.to_owned();
    let (viewer, tom, ada) = (
        staffed.viewer.as_str(),
        staffed.technician.as_str(),
        staffed.shops_admin.as_str(),
    );
    let eve = json!({ "name": "eve", "role": "admin" });
    let any = json!({ "peers": ["*"] });
    vec![
        (viewer, of("shop-17", "suspend"), reason(), OPERATOR),
        (viewer, of("shop-17", "resume"), json!({}), OPERATOR),
        (viewer, catalog("shop-17"), Value::Null, OPERATOR),
        (tom, of("mill-3", "suspend"), reason(), PEERS),
        (tom, of("shop-17", "revoke"), reason(), ADMIN),
        (tom, of("shop-17", "acceptance_token"), json!({}), ADMIN),
        (tom, peers(), json!({ "name": "shop-18" }), ADMIN),
        (tom, grants(), grant_for(staffed.shop), ADMIN),
        (tom, catalog("mill-3"), Value::Null, PEERS),
        (tom, catalog("shop-17"), Value::Null, "limited to some services"),
        (ada, of("mill-3", "revoke"), reason(), PEERS),
        (ada, of("mill-3", "acceptance_token"), json!({}), PEERS),
        (ada, peers() + "/invite", json!({ "name": "mill-4" }), PEERS),
        (ada, peers(), json!({}), "a peer without a name"),
        (ada, grants(), grant_for(staffed.mill), PEERS),
        (ada, OPERATORS_PATH.to_owned(), eve, LIMITED),
        (ada, format!("{OPERATORS_PATH}/ada/change"), any, LIMITED),
    ]
}

fn reason() -> Value {
    json!({ "reason": "maintenance" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_takes_its_role_and_its_peers() {
    let staffed = Staffed::start().await;
    for (token, path, body, word) in refusals(&staffed) {
        let why = staffed.refused(token, &path, body).await;
        assert!(why.contains(word), "{path}: {why}");
    }
    let (technician, ada) = (&staffed.technician, &staffed.shops_admin);
    let of = |peer: &str, verb: &str| format!("{FEDERATION_PEERS_PATH}/{peer}/{verb}");
    assert_eq!(staffed.get(ada, OPERATORS_PATH).await.0, 403);
    // What they may.
    let invite = format!("{FEDERATION_PEERS_PATH}/invite");
    let (status, invited) = staffed.post(ada, &invite, json!({ "name": "shop-18" })).await;
    assert_eq!(status, 201, "{invited}");
    assert_eq!(
        staffed
            .post(ada, ACCESS_GRANTS_PATH, grant_for(staffed.shop))
            .await
            .0,
        201
    );
    let (status, asked) = staffed
        .get(technician, &("/peers/shop-17/".to_owned() + CATALOG))
        .await;
    assert_eq!(status, 503, "permitted, but not connected: {asked}");
    // The registry's own refusal shows that the request came through.
    let (status, paused) = staffed
        .post(technician, &of("shop-17", "suspend"), reason())
        .await;
    assert_eq!(status, 422, "{paused}");
    assert_eq!(staffed.post(ada, &of("shop-18", "revoke"), reason()).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_of_another_peer_cannot_be_ended() {
    let staffed = Staffed::start().await;
    let (_, created) = staffed
        .bridge
        .operator(Method::POST, ACCESS_GRANTS_PATH, grant_for(staffed.mill))
        .await;
    let id = created["data"]["grant"]["id"].as_str().unwrap();
    let path = format!("{ACCESS_GRANTS_PATH}/{id}/revoke");
    let reason = json!({ "reason": "done" });
    staffed.refused(&staffed.shops_admin, &path, reason.clone()).await;
    assert_eq!(staffed.bridge.operator(Method::POST, &path, reason).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_ask_for_the_same_rights() {
    let staffed = Staffed::start().await;
    let call = async |token: &str, name: &str, arguments: Value| {
        let body = json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": { "name": name, "arguments": arguments },
        });
        let (_, answer) = staffed.post(token, "/mcp", body).await;
        let text = answer["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned();
        (answer["result"]["isError"].as_bool().unwrap(), text)
    };
    let propose = "system_sdwan_propose_federation_peer";
    let grant = "system_sdwan_create_access_grant";
    let accept = "system_sdwan_accept_federation_peer";
    for (token, tool, arguments) in [
        (&staffed.viewer, propose, json!({ "name": "x" })),
        (&staffed.technician, grant, grant_for(staffed.shop)),
        (
            &staffed.technician,
            accept,
            json!({ "acceptance_token": "x", "contract_version": 1 }),
        ),
        (&staffed.shops_admin, propose, json!({ "name": "mill-5" })),
        (&staffed.shops_admin, grant, grant_for(staffed.mill)),
        (
            &staffed.shops_admin,
            accept,
            json!({ "acceptance_token": "x", "contract_version": 1 }),
        ),
    ] {
        let (failed, why) = call(token, tool, arguments).await;
        assert!(
            failed && (why.contains("takes the role") || why.contains("limited to")),
            "{tool}: {why}"
        );
    }
    let (failed, said) = call(&staffed.shops_admin, propose, json!({ "name": "shop-19" })).await;
    assert!(!failed, "{said}");
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let (_, tools) = staffed.post(&staffed.technician, "/mcp", list).await;
    assert_eq!(tools["result"]["tools"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_do_and_may_not_is_in_the_audit_log_as_far_as_they_see() {
    let staffed = Staffed::start().await;
    staffed
        .refused(
            &staffed.viewer,
            &format!("{FEDERATION_PEERS_PATH}/mill-3/resume"),
            json!({}),
        )
        .await;
    let (status, _) = staffed
        .post(&staffed.shops_admin, ACCESS_GRANTS_PATH, grant_for(staffed.shop))
        .await;
    assert_eq!(status, 201);
    let entries = "/api/v1/system/sdwan/audit/entries";
    let seen = async |token: &str| {
        let (status, page) = staffed.get(token, entries).await;
        assert_eq!(status, 200, "{page}");
        page["data"]["entries"].as_array().unwrap().clone()
    };
    let all = tokio::time::timeout(DEADLINE, async {
        loop {
            let all = seen(&staffed.viewer).await;
            if all.iter().any(|entry| entry["action"] == "grant_issued") {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let of = |action: &str| {
        all.iter()
            .filter(|entry| entry["action"] == action)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("operator_added").len(), 3);
    assert!(
        of("operator_added")[1]["object"]
            .as_str()
            .unwrap()
            .contains("peers shop-*, services ssh")
    );
    let refused = of("operator_refused");
    assert_eq!(
        (refused[0]["actor"].as_str(), refused[0]["outcome"].as_str()),
        (Some("vera"), Some("refused"))
    );
    assert_eq!(refused[0]["federation_peer_id"], staffed.mill.to_string());
    assert_eq!(of("grant_issued")[0]["actor"], "ada");
    let within = seen(&staffed.technician).await;
    assert!(!within.is_empty());
    for entry in within {
        assert_eq!(entry["federation_peer_id"], staffed.shop.to_string(), "{entry}");
    }
    let (status, verified) = staffed
        .get(&staffed.viewer, "/api/v1/system/sdwan/audit/verification")
        .await;
    assert_eq!((status, &verified["data"]["whole"]), (200, &json!(true)));
    for (path, expected) in [
        ("entries?nonsense=1", 400),
        ("verification?noted=x", 400),
        ("nothing", 404),
    ] {
        let path = format!("/api/v1/system/sdwan/audit/{path}");
        assert_eq!(staffed.get(&staffed.viewer, &path).await.0, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_until_it_is_rotated_removed_or_over() {
    let staffed = Staffed::start().await;
    let sees = async |token: &str| staffed.get(token, FEDERATION_PEERS_PATH).await;
    let admin = async |path: &str, body: Value| {
        let path = format!("{OPERATORS_PATH}/{path}");
        staffed.bridge.operator(Method::POST, &path, body).await
    };
    let (status, rotated) = admin("tom/rotate", json!({})).await;
    assert_eq!(status, 201);
    assert_eq!(sees(&staffed.technician).await.0, 401);
    assert_eq!(
        sees(rotated["data"]["operator_token"].as_str().unwrap()).await.0,
        200
    );
    let (status, changed) = admin("vera/change", json!({ "peers": ["mill-?"], "role": "operator" })).await;
    assert_eq!((status, &changed["data"]["peers"]), (200, &json!(["mill-?"])));
    assert_eq!(names(&sees(&staffed.viewer).await.1["data"]), ["mill-3"]);
    assert_eq!(
        admin("vera/change", json!({ "peer": ["*"] })).await.0,
        400,
        "a typing error"
    );
    assert_eq!(admin("vera/change", json!({ "role": "boss" })).await.0, 422);
    assert_eq!(admin("vera/change", json!({ "ttl_seconds": 1 })).await.0, 422);
    assert_eq!(
        admin("admin/change", json!({ "role": "viewer" })).await.0,
        409,
        "the last one"
    );
    assert_eq!(admin("vera/revoke", json!({})).await.0, 200);
    assert_eq!(sees(&staffed.viewer).await.0, 401);
}
