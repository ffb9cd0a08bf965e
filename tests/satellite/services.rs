//! Services through the whole daemon: told in heartbeats, changed through the admin socket and by a
//! reload, asked for through the tunnel.

use http::Method;
use powernode_satellite::base::id::TraceId;
use powernode_satellite::cli::client::AdminClient;
use powernode_satellite::contract::service::{ServiceDefinition, ServiceFields};
use powernode_satellite::process::environment::Environment;
use powernode_satellite::process::service_notify::ServiceManager;
use powernode_satellite::satellite::admin_api::STATUS_PATH;
use powernode_satellite::satellite::daemon;
use powernode_satellite::satellite::services::SERVICES_PATH;
use powernode_satellite::tunnel::stream::refusal_in;
use powernode_satellite::wire::{RefusalCode, ServiceRequest, StreamHeader, StreamKind, StreamRefusal};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::daemon::{ONE_AT_A_TIME, config, invited};
use crate::scripted_parent::{Book, DEADLINE, ScriptedParent};

fn service(name: &str, address: &str) -> ServiceDefinition {
    let fields = ServiceFields::new(
        name.parse().unwrap(),
        "tcp".parse().unwrap(),
        address.parse().unwrap(),
    );
    fields.try_into().unwrap()
}

/// The names in the latest heartbeat.
fn told(book: &Book) -> Vec<String> {
    let latest = book.heartbeats().into_iter().next_back();
    let services = latest.map(|seen| seen.body["capabilities"]["services"].clone());
    let services = services.as_ref().and_then(Value::as_array);
    let names = services.into_iter().flatten();
    names
        .map(|service| service["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn is_told(parent: &ScriptedParent, names: &[&str]) {
    let what = format!("{names:?} in a heartbeat");
    parent
        .wait(&what, |book| (told(book) == names).then_some(()))
        .await;
}

async fn refusal(parent: &ScriptedParent, service: &str) -> StreamRefusal {
    let request = ServiceRequest {
        service: service.to_owned(),
        grant_token: None,
        subject: "anna@example.com".to_owned(),
        source: None,
    };
    let header = StreamHeader {
        kind: StreamKind::Connect(request),
        trace: TraceId(1),
    };
    let mut stream = parent.tunnel().open_stream(header).await.unwrap();
    let error = stream.read(&mut [0]).await.unwrap_err();
    refusal_in(&error).unwrap().clone()
}

#[tokio::test]
async fn services_come_and_go_and_the_parent_is_told() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let (parent, ca) = invited(dir.path());
    let mut config = config(dir.path(), &[("parent.ca_file", &ca)]);
    config.services = vec![service("web", "localhost:80")];
    let mut reloaded = config.clone();
    reloaded.services = vec![service("ssh", "localhost:22")];
    let admin = AdminClient::new(&config.admin_socket);
    let manager = ServiceManager::connect(&Environment::default()).unwrap();
    let running = daemon::run(config, manager, Box::new(move || Some(reloaded.clone())));
    let used = async {
        let call = async |method, path: &str, body: Option<&Value>| {
            let answer = admin.call(method, path, body).await.unwrap();
            answer.read().unwrap()
        };
        is_told(&parent, &["web"]).await;
        let extra = json!({ "name": "extra", "protocol": "tcp", "address": "localhost:9" });
        call(Method::POST, SERVICES_PATH, Some(&extra)).await.unwrap();
        is_told(&parent, &["extra", "web"]).await;
        let refused = refusal(&parent, "nothing").await;
        assert_eq!(refused.code, RefusalCode::UnknownService);
        assert!(refused.message.contains("extra, web"), "{refused:?}");
        assert_eq!(refusal(&parent, "extra").await.code, RefusalCode::Unauthorized);
        let listed = call(Method::GET, SERVICES_PATH, None).await.unwrap();
        assert_eq!(listed[0]["name"], "extra");
        assert_eq!(
            (&listed[0]["configured"], &listed[0]["refused"]),
            (&json!(false), &json!(1))
        );
        let status = call(Method::GET, STATUS_PATH, None).await.unwrap();
        assert_eq!(status["services"].as_array().map(Vec::len), Some(2));
        for (method, path, body, words) in [
            (
                Method::POST,
                SERVICES_PATH,
                Some(json!({ "name": "x" })),
                "missing field",
            ),
            (
                Method::POST,
                SERVICES_PATH,
                Some(json!({ "name": "web", "protocol": "tcp", "address": "localhost:1" })),
                "configuration",
            ),
            (Method::DELETE, "/v1/services/web", None, "configuration"),
            (Method::DELETE, "/v1/services/none", None, "published are"),
            (Method::PUT, SERVICES_PATH, None, "allowed"),
        ] {
            let refused = call(method, path, body.as_ref()).await.unwrap_err();
            assert!(refused.error.contains(words), "{refused:?}");
        }
        kill_process(getpid(), Signal::HUP).unwrap();
        is_told(&parent, &["extra", "ssh"]).await;
        call(Method::DELETE, "/v1/services/extra", None).await.unwrap();
        is_told(&parent, &["ssh"]).await;
        kill_process(getpid(), Signal::TERM).unwrap();
    };
    let both = async { tokio::join!(running, used) };
    let (ended, ()) = tokio::time::timeout(DEADLINE * 3, Box::pin(both)).await.unwrap();
    ended.unwrap();
}
