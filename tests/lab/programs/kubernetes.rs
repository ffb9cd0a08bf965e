//! kubectl by a name of the proxy: short questions, and a watch that says nothing for long.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::{OPENSSL, PYTHON, Site};
use crate::federation::{NAME, SOON};
use crate::process::{Process, succeed};
use crate::wait::{wait_for_age, wait_until};

const PORT: u16 = 6443;

/// What the API server wants to be shown.
const CLUSTER_TOKEN: &str = "token-of-the-cluster";

/// Longer than the tunnel's keepalive, and than routers with short memories leave a silent flow alone.
const SILENCE: Duration = Duration::from_secs(35);

struct Cluster {
    directory: PathBuf,
    _server: Process,
}

impl Cluster {
    fn start(site: &Site) -> Self {
        let directory = site.directory("cluster");
        let name = format!("kube.{NAME}.satellite");
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-noenc",
            ])
            .args(["-days", "2", "-subj", &format!("/CN={name}")])
            .args(["-addext", &format!("subjectAltName=DNS:{name}")])
            .arg("-keyout")
            .arg(directory.join("key.pem"))
            .arg("-out")
            .arg(directory.join("certificate.pem"));
        succeed(openssl);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/programs/api_server.py");
        let mut server = site.on_box(PYTHON);
        server
            .arg(script)
            .arg(PORT.to_string())
            .args([directory.join("certificate.pem"), directory.join("key.pem")]);
        let server = site.serve("api-server", server, PORT);
        site.publish("kube", &format!("127.0.0.1:{PORT}"), &[]);
        Self {
            directory,
            _server: server,
        }
    }

    fn kubectl(&self, site: &Site, proxy: &str, arguments: &[&str]) -> Command {
        let mut kubectl = site.at_parent("kubectl");
        kubectl
            .args(["--server", &format!("https://kube.{NAME}.satellite")])
            .args([
                "--token",
                CLUSTER_TOKEN,
                "--namespace",
                "default",
                "--certificate-authority",
            ])
            .arg(self.directory.join("certificate.pem"))
            .arg("--cache-dir")
            .arg(self.directory.join("cache"))
            .args(arguments)
            .env("HOME", &self.directory)
            .env("KUBECONFIG", "/dev/null")
            .env("HTTPS_PROXY", site.proxy(proxy));
        kubectl
    }

    /// A second kubectl makes a pod.
    fn create(&self, site: &Site, proxy: &str, name: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "containers": [{ "name": "till", "image": "till" }] },
        });
        let file = self.directory.join(format!("{name}.json"));
        std::fs::write(&file, pod.to_string()).unwrap();
        let create = ["create", "--validate=false", "-f", file.to_str().unwrap()];
        succeed(self.kubectl(site, proxy, &create));
    }
}

#[test]
fn kubectl_lists_creates_and_watches() {
    // The package's may be older than what somebody has installed; either will do.
    let needed = [
        ("kubectl", "kubernetes-client"),
        OPENSSL,
        (PYTHON, "python3-minimal"),
    ];
    let Some(site) = Site::open("kubectl", &needed) else {
        return;
    };
    let cluster = Cluster::start(&site);
    cluster.create(&site, "http", "first");
    let list = ["get", "pods", "-o", "name"];
    for proxy in ["http", "socks5"] {
        assert_eq!(
            succeed(cluster.kubectl(&site, proxy, &list)).stdout,
            "pod/first\n"
        );
    }
    let watch = ["get", "pods", "-o", "name", "--watch"];
    let mut watch = site
        .federation
        .lab
        .spawn("watch", cluster.kubectl(&site, "http", &watch));
    let mut shown = String::from("pod/first\n");
    let mut wait_for = |watch: &mut Process, more: &str| {
        shown.push_str(more);
        wait_until(&format!("the watch shows {}", more.trim_end()), SOON, || {
            assert!(watch.is_running(), "{}", watch.stderr());
            (watch.stdout() == shown).then_some(())
        });
    };
    wait_for(&mut watch, "");
    cluster.create(&site, "socks5", "second");
    wait_for(&mut watch, "pod/second\n");
    wait_for_age("the watch says nothing", SILENCE);
    cluster.create(&site, "http", "third");
    wait_for(&mut watch, "pod/third\n");
    drop(watch);
    site.assert_well();
}
