//! A web site on the box, visited through the HTTPS ingress as browsers and programs do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{CURL, LONG, Needed, PYTHON, Site, checksum, random_file, resident_mebibytes};
use crate::process::{Process, finish, succeed};
use crate::wait::wait_timed;

pub(super) const NEEDED: [Needed; 4] = [
    ("nginx", "nginx-light"),
    ("/usr/lib/python3/dist-packages/websockets", "python3-websockets"),
    (PYTHON, "python3-minimal"),
    CURL,
];

const PORT: u16 = 8081;
const WEBSOCKET_PORT: u16 = 8082;
const EVENT_PORT: u16 = 8083;

/// The files that are loaded, with their sizes in MiB. The small one is larger than all buffers of the way.
const FILES: [(&str, u32); 2] = [("large", 1024), ("small", 128)];

/// What is loaded down and what up, by the version of HTTP at the parent's: a GiB each way.
const LOADS: [(&str, &str, &str); 2] = [("http2", "large", "small"), ("http1.1", "small", "large")];

/// What neither daemon may hold while it passes, however fast one side is: a body is not kept.
const RESIDENT_MAX_MEBIBYTES: u64 = 256;

/// Events, and the pause between them in seconds: a minute.
const EVENTS: [&str; 2] = ["30", "2"];

/// nginx, and what is behind it.
pub(super) struct Shop {
    /// What it serves.
    pub(super) files: PathBuf,
    _nginx: Process,
    _live: Process,
}

impl Shop {
    /// Opens it, and publishes it as `web` with these limits.
    pub(super) fn open(site: &Site, limits: &[&str]) -> Self {
        let directory = site.directory("nginx");
        let files = directory.join("files");
        for made in ["files/upload", "temporary"] {
            std::fs::create_dir_all(directory.join(made)).unwrap();
        }
        let config = directory.join("nginx.conf");
        std::fs::write(&config, nginx_conf(&directory)).unwrap();
        let mut live = site.on_box(PYTHON);
        live.arg(script("live.py"))
            .args([WEBSOCKET_PORT, EVENT_PORT].map(|port| port.to_string()));
        let live = site.serve("live", live, WEBSOCKET_PORT);
        let mut nginx = site.on_box("nginx");
        nginx.arg("-c").arg(&config).args(["-e", "stderr"]);
        let nginx = site.serve("nginx", nginx, PORT);
        let address = SocketAddr::from(([127, 0, 0, 1], PORT)).to_string();
        site.publish("web", &address, &[&["--protocol", "http"], limits].concat());
        Self {
            files,
            _nginx: nginx,
            _live: live,
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab/programs")
        .join(name)
}

fn nginx_conf(directory: &Path) -> String {
    let shown = directory.display();
    let kept: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {shown}/temporary/{what};\n"))
        .concat();
    format!(
        "daemon off;\nuser root;\npid {shown}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         types {{ text/html html; }}\naccess_log off;\ngzip on;\n{kept}\
         server {{\nlisten 127.0.0.1:{PORT};\nroot {shown}/files;\nclient_max_body_size 0;\n\
         location /upload/ {{ dav_methods PUT; }}\n\
         location /websocket {{ proxy_pass http://127.0.0.1:{WEBSOCKET_PORT}; proxy_http_version 1.1;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }}\n\
         location /events {{ proxy_pass http://127.0.0.1:{EVENT_PORT}; proxy_buffering off; }}\n\
         location /old {{ return 302 /index.html; }}\n}}\n}}\n"
    )
}

/// `curl` that shows what the last `-w` asks for.
fn told(mut curl: Command, what: &str, arguments: &[&str]) -> String {
    curl.args(["--output", "/dev/null", "--write-out", what])
        .args(arguments);
    succeed(curl).stdout
}

#[test]
fn a_web_site_is_visited_as_browsers_do() {
    let Some(site) = Site::open("web", &NEEDED) else {
        return;
    };
    let shop = Shop::open(&site, &[]);
    let page = "<p>till</p>".repeat(1_000);
    std::fs::write(shop.files.join("index.html"), &page).unwrap();
    let url = site.url("web", "");
    for version in ["--http1.1", "--http2"] {
        let curl = || {
            let mut curl = site.annas_curl();
            curl.arg(version);
            curl
        };
        let spoken = told(curl(), "%{http_version} %{http_code}", &[&url]);
        assert_eq!(
            spoken,
            format!("{} 200", if version == "--http2" { "2" } else { "1.1" })
        );
        let mut get = curl();
        get.args(["--compressed", &url]);
        assert_eq!(succeed(get).stdout, page);
        let mut range = curl();
        range.args(["--range", "3-6", &url]);
        assert_eq!(succeed(range).stdout, "till");
        let mut head = curl();
        head.args(["--head", &url]);
        let head = succeed(head).stdout.to_ascii_lowercase();
        assert!(
            head.contains(&format!("content-length: {}", page.len())),
            "{head}"
        );
        let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
        let unchanged = format!("If-None-Match: {}", etag.trim());
        assert_eq!(told(curl(), "%{http_code}", &["-H", &unchanged, &url]), "304");
        // A page and what belongs to it come over one connection.
        let again = ["-o", "/dev/null", &url, "-o", "/dev/null", &url];
        assert_eq!(
            told(curl(), "%{num_connects}", &[&[url.as_str()], &again[..]].concat()),
            "100"
        );
        let moved = told(
            curl(),
            "%{num_redirects} %{url_effective}",
            &["-L", &site.url("web", "old")],
        );
        assert_eq!(moved, format!("1 {url}index.html"));
        let mut missing = curl();
        missing.arg(site.url("web", "nothing"));
        assert_eq!(finish(missing).code, 22);
    }

    // A browser is asked for name and token once, and shows a cookie from then on.
    let jar = site.directory("browser").join("cookies");
    let kept = [
        "--cookie",
        jar.to_str().unwrap(),
        "--cookie-jar",
        jar.to_str().unwrap(),
    ];
    let status = |more: &[&str]| {
        let mut curl = site.curl();
        curl.args(kept).args(["--no-fail"]).args(more);
        told(curl, "%{http_code}", &[&url])
    };
    assert_eq!(status(&[]), "401");
    assert_eq!(
        status(&["--user", &format!("{}:{}", super::ANNA, site.token)]),
        "200"
    );
    assert_eq!(status(&[]), "200");

    let websocket = visitor(&site, "websocket", &url.replace("https:", "wss:"));
    println!("WebSocket: {}", succeed(websocket).stdout.trim());
    site.assert_well();
}

fn visitor(site: &Site, what: &str, base: &str) -> Command {
    let mut visitor = site.at_parent(PYTHON);
    visitor
        .arg(script("visitor.py"))
        .args([what, &format!("{base}{what}")])
        .env("CA_FILE", &site.federation.ca_file)
        .env("POWERNODE_OPERATOR_TOKEN", &site.token);
    visitor
}

#[test]
fn a_gibibyte_goes_down_and_up_while_events_arrive_one_by_one() {
    let Some(site) = Site::open("gibibyte", &NEEDED) else {
        return;
    };
    let shop = Shop::open(&site, &[]);
    let mut events = visitor(&site, "events", &site.url("web", ""));
    events.args(EVENTS);
    let mut events = site.federation.lab.spawn("events", events);

    let sums = FILES.map(|(name, mebibytes)| random_file(&shop.files.join(name), mebibytes));
    let sum_of = |file: &str| &sums[FILES.iter().position(|(name, _)| *name == file).unwrap()];
    for (version, down, up) in LOADS {
        let curl = || {
            let mut curl = site.annas_curl();
            curl.arg(format!("--{version}"));
            curl
        };
        let download = || {
            let mut curl = curl()
                .arg(site.url("web", down))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut sum = Command::new("sha256sum");
            sum.stdin(curl.stdout.take().unwrap());
            let output = sum.output().unwrap();
            assert!(curl.wait().unwrap().success());
            Some(String::from_utf8(output.stdout).unwrap())
        };
        let (got, _) = wait_timed(&format!("the {down} file is down by {version}"), LONG, download);
        assert!(got.starts_with(sum_of(down)), "{got}");
        let uploaded = shop.files.join("upload").join(version);
        let upload = || {
            let mut curl = curl();
            curl.arg("--upload-file").arg(shop.files.join(up));
            let to = site.url("web", &format!("upload/{version}"));
            assert_eq!(told(curl, "%{http_code}", &[&to]), "201");
            Some(())
        };
        wait_timed(&format!("the {up} file is up by {version}"), LONG, upload);
        assert_eq!(checksum(&uploaded), *sum_of(up));
        std::fs::remove_file(uploaded).unwrap();
    }
    for process in [&site.bridge, &site.satellite] {
        let resident = resident_mebibytes(process);
        println!("{resident} MiB resident");
        assert!(resident < RESIDENT_MAX_MEBIBYTES, "{resident} MiB");
    }
    assert!(
        events.exit_within(Duration::from_secs(120)).success(),
        "{}",
        events.stderr()
    );
    println!("event stream: {}", events.stdout().trim());
    site.assert_well();
}
