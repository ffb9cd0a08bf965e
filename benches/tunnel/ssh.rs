//! OpenSSH as a rival: a server at the far end, and a client at the near one that forwards a port (`ssh -N -L`).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{End, Running, Start};

/// It starts itself again for each connection, and wants to be called by its path for that.
const SSHD: &str = "/usr/sbin/sshd";

/// Where it changes its root to before somebody has logged in; the package's unit makes it.
const PRIVILEGE_SEPARATION_DIR: &str = "/run/sshd";

/// A forwarded port. The client ends before the server.
pub struct Forwarded {
    /// Where it listens, at the near end.
    pub address: SocketAddr,
    _client: Running,
    _server: Running,
}

/// Forwards a port of the near end to `target`, which is at the far end.
pub fn forward(directory: &Path, target: SocketAddr, start: Start<'_>) -> Result<Forwarded, String> {
    for key in ["host_key", "user_key"] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(directory.join(key))
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("`ssh-keygen` cannot be run".to_owned());
        }
    }
    std::fs::create_dir_all(PRIVILEGE_SEPARATION_DIR)
        .map_err(|error| format!("{PRIVILEGE_SEPARATION_DIR} cannot be made: {error}"))?;
    std::fs::copy(directory.join("user_key.pub"), directory.join("authorized_keys")).unwrap();
    let (port, shown) = (free_port(), directory.display());
    let config = directory.join("sshd_config");
    let settings = format!(
        "ListenAddress {}:{port}\nHostKey {shown}/host_key\nPidFile none\n\
         AuthorizedKeysFile {shown}/authorized_keys\nPermitRootLogin prohibit-password\n\
         PasswordAuthentication no\nStrictModes no\nUsePAM no\n",
        target.ip()
    );
    std::fs::write(&config, settings).unwrap();
    let server = start(End::Far, SSHD.as_ref())
        .arg("-D")
        .arg("-f")
        .arg(&config)
        .spawn()
        .map_err(|error| format!("{SSHD} cannot be run: {error}"))?;
    let server = Running(server);
    let near = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let client = start(End::Near, "ssh".as_ref())
        .args(["-F", "none", "-N", "-L", &format!("{near}:{target}"), "-i"])
        .arg(directory.join("user_key"))
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
        .args(["-o", "ConnectionAttempts=10", "-o", "ExitOnForwardFailure=yes"])
        .args(["-p", &port.to_string(), &target.ip().to_string()])
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("`ssh` cannot be run: {error}"))?;
    Ok(Forwarded {
        address: near,
        _client: Running(client),
        _server: server,
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
