//! The talk with the service manager (systemd's notification protocol): that the daemon runs, what
//! it is doing, that it is alive. Without a service manager every call does nothing.
//!
//! The protocol is one datagram of `NAME=value` lines; the socket never blocks, so that a service
//! manager that hangs cannot hang the daemon.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::environment::Environment;
use crate::base::limit::foreign_text;

/// The service manager's end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    link: Option<Arc<Link>>,
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    status: Mutex<String>,
}

/// The environment names a notification socket that cannot be used.
#[derive(Debug, Error)]
#[error(
    "cannot reach the service manager at NOTIFY_SOCKET={address}; in a unit use Type=notify and NotifyAccess=main, elsewhere unset the variable"
)]
pub struct NotifyError {
    address: String,
    #[source]
    source: io::Error,
}

impl ServiceManager {
    /// Connects to the socket that the environment names, if it names one.
    pub fn connect(environment: &Environment) -> Result<Self, NotifyError> {
        let Some(address) = environment.text("NOTIFY_SOCKET") else {
            return Ok(Self::default());
        };
        let socket = connect(address).map_err(|source| NotifyError {
            address: foreign_text(address),
            source,
        })?;
        Ok(Self {
            link: Some(Arc::new(Link {
                socket,
                status: Mutex::default(),
            })),
            watchdog: watchdog_period(environment, std::process::id()),
        })
    }

    /// The daemon runs. Sent before there is any connection: a box that boots offline is healthy.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// What the daemon is doing, for `systemctl status`. The same text twice is sent once.
    pub fn status(&self, text: &str) {
        let Some(link) = &self.link else { return };
        let text = foreign_text(text);
        {
            let mut last = link.status.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == text {
                return;
            }
            last.clone_from(&text);
        }
        self.send(&format!("STATUS={text}"));
    }

    /// The configuration is being read again; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        self.send("RELOADING=1");
    }

    /// The shutdown has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// How often [`Self::alive`] must be called: half of the time after which the service manager
    /// gives the daemon up. `None` when it does not watch.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Feeds the watchdog.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.socket.send(message.as_bytes()) {
            tracing::debug!(%error, "the service manager did not take a message");
        }
    }
}

/// An `@` begins a name in Linux's abstract namespace.
fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}

/// `WATCHDOG_PID`, where set, says whose watchdog it is: the variables may be inherited.
fn watchdog_period(environment: &Environment, own: u32) -> Option<Duration> {
    let microseconds: u64 = environment.text("WATCHDOG_USEC")?.parse().ok()?;
    let meant = match environment.text("WATCHDOG_PID") {
        Some(pid) => pid.parse() == Ok(own),
        None => true,
    };
    (meant && microseconds > 0).then(|| Duration::from_micros(microseconds) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn messages_arrive_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let environment = Environment::from_iter([("NOTIFY_SOCKET", path.as_path())]);
        let service = ServiceManager::connect(&environment).unwrap();
        service.ready();
        service.status("joined\nWATCHDOG=trigger");
        service.status("joined\nWATCHDOG=trigger");
        service.stopping();
        assert_eq!(received(&manager), "READY=1");
        assert_eq!(
            received(&manager),
            "STATUS=joined WATCHDOG=trigger",
            "one line only"
        );
        assert_eq!(
            received(&manager),
            "STOPPING=1",
            "an unchanged status is not repeated"
        );
    }

    #[test]
    fn abstract_sockets_are_known() {
        let name = format!("powernode-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let environment = Environment::from_iter([("NOTIFY_SOCKET", format!("@{name}"))]);
        ServiceManager::connect(&environment).unwrap().alive();
        assert_eq!(received(&manager), "WATCHDOG=1");
    }

    #[test]
    fn a_full_socket_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _never_read = UnixDatagram::bind(&path).unwrap();
        let environment = Environment::from_iter([("NOTIFY_SOCKET", path.as_path())]);
        let service = ServiceManager::connect(&environment).unwrap();
        for _ in 0..10_000 {
            service.alive();
        }
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let service = ServiceManager::connect(&Environment::default()).unwrap();
        service.ready();
        assert_eq!(service.watchdog_period(), None);
        let gone = Environment::from_iter([("NOTIFY_SOCKET", "/nonexistent/notify")]);
        assert!(ServiceManager::connect(&gone).is_err());
    }

    #[test]
    fn the_watchdog_is_fed_twice_per_period_and_only_ours() {
        let period = |usec: &str, pid: &str| {
            watchdog_period(
                &Environment::from_iter([("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)]),
                7,
            )
        };
        assert_eq!(period("60000000", "7"), Some(Duration::from_secs(30)));
        assert_eq!(period("60000000", ""), Some(Duration::from_secs(30)));
        assert_eq!(period("60000000", "8"), None);
        assert_eq!(period("0", "7"), None);
        assert_eq!(period("soon", "7"), None);
    }
}
