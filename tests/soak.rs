//! Thousands of reconnects against one host-bridge, many of them by satellites that vanish without a
//! word: one session per peer stays, and the host-bridge's memory stays flat.

#![allow(clippy::unwrap_used, reason = "a panic is how a test says that it failed")]

mod support;

use std::net::SocketAddr;

use powernode_satellite::machine::reconnect::DialTarget;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::satellite::Ways;
use powernode_satellite::satellite::link::{self, Credentials, Established};
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::tunnel::{CloseReason, Tunnel, TunnelSettings};
use powernode_satellite::wire::{Goodbye, GoodbyeReason};
use support::{BridgeSite, DEADLINE, Running, SatelliteSite, succeed, wait_for};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Satellites that reconnect in turn. The first of them does so as often as all others together.
const PEERS: usize = 4;

/// Reconnects after which memory is measured first: pools and caches have their size by then.
const WARM_UP: usize = 500;

/// Reconnects in all.
const RECONNECTS: usize = 2_000;

/// Reconnects between two looks at the host-bridge's table.
const LOOK_EVERY: usize = 250;

/// What memory may grow by from the first measurement to the second, in KiB: a fifth and this. A
/// session that stayed behind would cost about 200 KiB each time.
const GROWTH_CONSTANT_KIB: u64 = 4 * 1024;

/// How a session ends.
#[derive(Clone, Copy)]
enum End {
    /// With a goodbye.
    Goodbye,
    /// The connection is closed without one.
    Abandoned,
    /// Not at all, as far as the host-bridge can know: power cut.
    PowerCut,
    /// Its own successor takes over.
    Superseded,
}

const ENDS: [End; 8] = [
    End::PowerCut,
    End::Goodbye,
    End::PowerCut,
    End::Superseded,
    End::PowerCut,
    End::Abandoned,
    End::PowerCut,
    End::Superseded,
];

/// One connected satellite: its sockets and tasks live in a runtime of its own, so that all of it
/// can vanish at once.
struct Session {
    tunnel: Tunnel,
    driver: JoinHandle<CloseReason>,
    runtime: Runtime,
}

impl Session {
    fn dial(target: &DialTarget, credentials: &Credentials) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ways = Ways::default();
        let dial = link::dial(
            target,
            credentials.clone(),
            &ways,
            TunnelSettings::default(),
            Clock::start(BUILD_TIME),
        );
        let Established { tunnel, driver, .. } = runtime.block_on(dial).unwrap();
        let driver = runtime.spawn(driver.run());
        Self {
            tunnel,
            driver,
            runtime,
        }
    }

    /// Gone, and nothing was sent.
    fn cut_power(self) {
        // The socket goes with the runtime's tasks, before the connection's last handle does.
        drop(self.runtime);
        drop(self.tunnel);
    }

    /// Its task is dropped: the connection below closes without a goodbye.
    fn abandon(self) {
        self.driver.abort();
        let ended = self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, self.tunnel.closed())
                .await
                .unwrap()
        });
        assert!(matches!(ended, CloseReason::Abandoned), "{ended:?}");
    }

    fn say_goodbye(self) {
        let goodbye = Goodbye {
            reason: GoodbyeReason::Done,
            message: String::new(),
            retry_after_millis: 0,
        };
        self.runtime.block_on(self.tunnel.close(goodbye));
    }

    /// Waits for the word that another session has taken over.
    fn expect_superseded(self) {
        let closed = self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, self.tunnel.closed())
                .await
                .unwrap()
        });
        assert!(
            matches!(&closed, CloseReason::Goodbye(goodbye) if goodbye.reason == GoodbyeReason::Superseded),
            "{closed:?}"
        );
    }
}

/// A satellite that has joined, reduced to what it dials with.
fn member(bridge: &BridgeSite, name: &str) -> Credentials {
    let site = SatelliteSite::new();
    succeed(&site.join(&bridge.join_code(name)));
    let (loaded, _) = MembershipStore::peek(&site.state_dir(), None).unwrap();
    let state = loaded.state.unwrap();
    Credentials {
        trust: state.parent().trust.clone(),
        identity: state.membership().map(|member| member.identity.clone()),
    }
}

fn resident_kib(bridge: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bridge.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn connected(bridge: &BridgeSite) -> u64 {
    bridge.json(&["status"])["connected"].as_u64().unwrap()
}

#[test]
fn thousands_of_reconnects_leave_one_session_per_peer_and_flat_memory() {
    let bridge = BridgeSite::init();
    let daemon = bridge.run();
    let address = SocketAddr::from(([127, 0, 0, 1], bridge.port));
    let target = DialTarget {
        host: address.ip().to_string(),
        address,
    };
    let members: Vec<_> = (0..PEERS)
        .map(|number| member(&bridge, &format!("box-{number}")))
        .collect();

    let mut warm = 0;
    for round in 0..RECONNECTS {
        let credentials = &members[if round % 2 == 0 { 0 } else { round / 2 % PEERS }];
        let session = Session::dial(&target, credentials);
        match ENDS[round % ENDS.len()] {
            End::PowerCut => session.cut_power(),
            End::Abandoned => session.abandon(),
            End::Goodbye => session.say_goodbye(),
            End::Superseded => {
                let successor = Session::dial(&target, credentials);
                session.expect_superseded();
                successor.cut_power();
            }
        }
        if round % LOOK_EVERY == LOOK_EVERY - 1 {
            let sessions = connected(&bridge);
            assert!(sessions <= PEERS as u64, "{sessions} sessions of {PEERS} peers");
        }
        if round + 1 == WARM_UP {
            warm = resident_kib(&daemon);
        }
    }
    let after = resident_kib(&daemon);
    println!("resident after {WARM_UP} reconnects: {warm} KiB, after {RECONNECTS}: {after} KiB");
    assert!(
        after <= warm + warm / 5 + GROWTH_CONSTANT_KIB,
        "resident memory grew from {warm} to {after} KiB"
    );
    wait_for("the half-open sessions are found out", || {
        (connected(&bridge) == 0).then_some(())
    });
    assert!(daemon.stop().success());
}
