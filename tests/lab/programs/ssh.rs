//! OpenSSH as the documents tell it: `connect` as its `ProxyCommand`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LONG, Needed, Site, checksum, random_file};
use crate::federation::NAME;
use crate::process::{Process, finish, succeed};
use crate::topology::SATELLITE_V4;
use crate::wait::wait_timed;

pub(super) const NEEDED: [Needed; 3] = [
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("scp", "openssh-client"),
];

/// It starts itself again for each connection, and wants to be called by its path for that.
const SSHD: &str = "/usr/sbin/sshd";

/// Where it changes its root to before somebody has logged in; the package's unit makes it.
const PRIVILEGE_SEPARATION_DIR: &str = "/run/sshd";

const PORT: u16 = 2222;

/// A shell server on the box, and who may log in there.
pub(super) struct Shell {
    directory: PathBuf,
    _server: Process,
}

impl Shell {
    /// Starts it, and publishes it as `ssh`.
    pub(super) fn start(site: &Site) -> Self {
        let directory = site.directory("ssh");
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(directory.join(key));
            succeed(keygen);
        }
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        // The box is known by its name at the parent's, whatever the way to it.
        std::fs::write(
            directory.join("known_hosts"),
            format!("{NAME} {}", read("host_key.pub")),
        )
        .unwrap();
        std::fs::write(directory.join("authorized_keys"), read("user_key.pub")).unwrap();
        let config = directory.join("sshd_config");
        let shown = directory.display();
        std::fs::write(
            &config,
            format!(
                "ListenAddress 127.0.0.1:{PORT}\nHostKey {shown}/host_key\nPidFile none\n\
                 AuthorizedKeysFile {shown}/authorized_keys\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n"
            ),
        )
        .unwrap();
        std::fs::create_dir_all(PRIVILEGE_SEPARATION_DIR).unwrap();
        let mut sshd = site.on_box(SSHD);
        sshd.args(["-D", "-e", "-f"]).arg(&config);
        let server = site.serve("sshd", sshd, PORT);
        site.publish("ssh", &format!("127.0.0.1:{PORT}"), &[]);
        Self {
            directory,
            _server: server,
        }
    }

    /// `ssh` or `scp` with the documented option.
    pub(super) fn client(&self, site: &Site, program: &str) -> Command {
        let mut client = site.at_parent(program);
        client
            .args([
                "-F",
                "none",
                "-o",
                "ProxyCommand=powernode-host-bridge connect %h ssh",
            ])
            .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-i"])
            .arg(self.directory.join("user_key"))
            .arg("-o")
            .arg(format!(
                "UserKnownHostsFile={}",
                self.directory.join("known_hosts").display()
            ));
        client
    }
}

#[test]
fn ssh_logs_in_and_scp_copies_both_ways() {
    const MEBIBYTES: u32 = 200;
    let Some(site) = Site::open("ssh", &NEEDED) else {
        return;
    };
    let shell = Shell::start(&site);
    let run = |command: &str| {
        let mut ssh = shell.client(&site, "ssh");
        ssh.args([NAME, command]);
        finish(ssh)
    };
    let shown = run("ip -4 -brief address show up0");
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(
        shown.stdout.contains(&SATELLITE_V4.to_string()),
        "{}",
        shown.stdout
    );
    assert_eq!(run("exit 7").code, 7);

    let directory = site.directory("copies");
    let [here, there, back] = ["here", "there", "back"].map(|name| directory.join(name));
    let sum = random_file(&here, MEBIBYTES);
    let copy = |from: &str, to: &str| {
        let copied = || {
            let mut scp = shell.client(&site, "scp");
            scp.args(["-q", from, to]);
            succeed(scp);
            Some(())
        };
        wait_timed(&format!("{MEBIBYTES} MiB are copied to {to}"), LONG, copied);
    };
    let of_box = |path: &Path| format!("{NAME}:{}", path.display());
    copy(here.to_str().unwrap(), &of_box(&there));
    assert_eq!(checksum(&there), sum);
    copy(&of_box(&there), back.to_str().unwrap());
    assert_eq!(checksum(&back), sum);
    site.assert_well();
}
