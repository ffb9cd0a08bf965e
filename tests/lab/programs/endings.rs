//! What ends under way: a grant that is taken back in the middle of a download, a host-bridge that
//! restarts under a shell and a port that are in use.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::ssh::{self, Shell};
use super::web::Shop;
use super::{ANNA, Site};
use crate::federation::{NAME, SOON};
use crate::process::{finish, succeed};
use crate::wait::{wait_timed, wait_until};

/// From the end of the command that takes a grant back to the end of what went on under it.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// From a host-bridge's start to a shell on the box: the satellite's wait before it dials again, a handshake,
/// a log-in.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// Half of `shutdown.drain`, in which open sessions may end by themselves, and room.
const ENDED_WITHIN: Duration = Duration::from_secs(15);

/// What the box sends at most, so that no buffer on the way is full when it is cut.
const BANDWIDTH: &str = "4MiB";

#[test]
fn a_grant_taken_back_cuts_the_downloads_under_it_within_a_second() {
    let Some(site) = Site::open("revoked", &super::web::NEEDED) else {
        return;
    };
    let shop = Shop::open(&site, &["--bandwidth", BANDWIDTH]);
    let large = std::fs::File::create(shop.files.join("large")).unwrap();
    large.set_len(1 << 30).unwrap();
    let satellite = |arguments: &[&str]| succeed(site.federation.satellite(arguments));
    let issued = satellite(&["grants", "issue", "--subject", ANNA, "--service", "web", "--json"]).json();
    let annas = issued["grant"]["id"].as_str().unwrap().to_owned();
    wait_until("anna's grant is handed over", SOON, || {
        let shown = satellite(&["grants", "show", &annas, "--json"]).json();
        (shown["handover"] == "done").then_some(())
    });

    let directory = site.directory("downloads");
    let download = |name: &str, mut curl: Command, url: &str| {
        let file = directory.join(name);
        curl.arg("--output").arg(&file).arg(url);
        let running = site.federation.lab.spawn(name, curl);
        wait_until(&format!("{name} is under way"), SOON, || {
            (file.metadata().ok()?.len() > 1_000_000).then_some(())
        });
        running
    };
    let forward = site.forward("web", &[]);
    let mut under_hers: Vec<_> = ["--http1.1", "--http2"]
        .map(|version| {
            let mut curl = site.annas_curl();
            curl.arg(version);
            download(&version[2..], curl, &site.url("web", "large"))
        })
        .into();
    let mut under_the_parents = download(
        "forwarded",
        site.curl(),
        &format!("http://{}/large", forward.address),
    );

    satellite(&["grants", "revoke", &annas, "--reason", "laptop stolen"]);
    for cut in &mut under_hers {
        assert!(!cut.exit_within(CUT_WITHIN).success());
        assert!(cut.stderr().starts_with("curl: "), "{}", cut.stderr());
    }
    assert!(
        under_the_parents.is_running(),
        "another grant's session was cut, too"
    );
    satellite(&["emancipate", "--yes", "--reason", "on our own"]);
    assert!(!under_the_parents.exit_within(CUT_WITHIN).success());
    wait_until("forward has said why", SOON, || {
        forward.program.stderr().contains("revoked").then_some(())
    });

    let noted = wait_until("all ends are noted", SOON, || {
        let noted = site.noted();
        let closed: Vec<_> = noted
            .into_iter()
            .filter(|row| row["action"] == "service_closed")
            .collect();
        (closed.len() == 3).then_some(closed)
    });
    for (reason, count) in [("laptop stolen", 2), ("on our own", 1)] {
        let rows = noted.iter().filter(|row| {
            row["outcome"] == "cut"
                && row.to_string().contains(reason)
                && row["bytes_out"].as_u64() > Some(1_000_000)
        });
        assert_eq!(rows.count(), count, "{noted:#?}");
    }
    let mut again = site.annas_curl();
    again.args(["--no-fail", &site.url("web", "large")]);
    let refused = finish(again);
    assert!(
        refused.stdout.contains("grant"),
        "{}{}",
        refused.stdout,
        refused.stderr
    );
    site.assert_well();
}

#[test]
fn a_host_bridge_that_restarts_under_sessions_says_so_and_has_new_ones_within_seconds() {
    let Some(mut site) = Site::open("restarted", &ssh::NEEDED) else {
        return;
    };
    let shell = Shell::start(&site);
    let forward = site.forward("ssh", &[]);
    for clean in [true, false] {
        let mut session = shell
            .client(&site, "ssh")
            .args([NAME, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = session.stdin.take().unwrap();
        input.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        session.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        let connect = || TcpStream::connect_timeout(&forward.address, SOON);
        let mut open = site.federation.lab.parent.enter(connect).unwrap();
        open.set_read_timeout(Some(ENDED_WITHIN)).unwrap();
        open.read_exact(&mut said[..4]).unwrap();
        assert_eq!(&said[..4], b"SSH-");

        if clean {
            site.bridge.terminate();
        } else {
            site.bridge.kill_and_wait();
        }
        let ended = wait_until("the shell has ended", ENDED_WITHIN, || {
            session.try_wait().unwrap()
        });
        assert_eq!(ended.code(), Some(255));
        let mut why = String::new();
        session.stderr.take().unwrap().read_to_string(&mut why).unwrap();
        assert!(
            why.contains("stopped or restarted") || why.contains("stops or restarts"),
            "{why}"
        );
        let mut rest = Vec::new();
        // Its end or its break: the connection must not stay.
        let over = open.read_to_end(&mut rest).err().map(|error| error.kind());
        assert_ne!(over, Some(std::io::ErrorKind::WouldBlock));
        if clean {
            assert!(site.bridge.exit_within(ENDED_WITHIN).success());
        }
        site.bridge = site.federation.run_bridge();
        wait_timed("a new shell", BACK_WITHIN, || {
            let mut ssh = shell.client(&site, "ssh");
            ssh.args([NAME, "true"]);
            (finish(ssh).code == 0).then_some(())
        });
        let mut again = site.federation.lab.parent.enter(connect).unwrap();
        again.set_read_timeout(Some(SOON)).unwrap();
        again.read_exact(&mut said[..4]).unwrap();
        assert_eq!(&said[..4], b"SSH-");
    }
    assert_eq!(
        forward.program.stderr().lines().count(),
        2,
        "{}",
        forward.program.stderr()
    );
    site.assert_well();
}
