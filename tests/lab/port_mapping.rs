//! A port on a real router: miniupnpd with nftables, asked for, proven, kept and given back.
//!
//! The lab's usual addresses are documentation addresses, which no satellite takes for public. These
//! scenarios give parent and router addresses that look public; they exist in namespaces alone.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::federation::{Federation, SOON};
use crate::namespace::{Link, Namespace};
use crate::prerequisites;
use crate::process::{Process, finish, succeed};
use crate::topology::{ROUTER_LAN_V4, SATELLITE_V4};
use crate::wait::{wait_for_age, wait_timed, wait_until};

/// The router's address outside.
const ROUTER: Ipv4Addr = Ipv4Addr::new(20, 77, 0, 2);
/// The parent.
const PARENT: Ipv4Addr = Ipv4Addr::new(20, 77, 0, 10);
/// Somebody else on the satellite's network.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);

/// From a tunnel to a proven port: a search for UPnP takes two and a half seconds of it.
pub const MAPPED_WITHIN: Duration = Duration::from_secs(40);

/// From the router's return to the port's: the promise.
pub const REMAPPED_WITHIN: Duration = Duration::from_secs(60);

/// A sixteenth of the time between two looks, and what whole seconds and two clocks may differ by.
const PCP_FORGIVES: Duration = Duration::from_secs(12);

/// For attempts that come to nothing on all ways.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(60);

/// The chains that miniupnpd fills.
const CHAINS: &str = r"
table inet lab {
    chain upnp_forward {
    }
    chain upnp_prerouting {
    }
    chain upnp_postrouting {
    }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        jump upnp_prerouting
    }
}
insert rule inet lab forward jump upnp_forward
insert rule inet lab forward jump scenario
insert rule inet lab postrouting jump upnp_postrouting
";

/// A federation whose router can be asked for ports.
pub struct Home {
    /// Both sides.
    pub federation: Federation,
    options: &'static str,
}

/// What the router speaks.
pub const UPNP_ALONE: &str = "enable_upnp=yes\nenable_natpmp=no\next_ip=20.77.0.2\n";
/// The same.
pub const PCP_AND_NAT_PMP: &str = "enable_upnp=no\nenable_natpmp=yes\next_ip=20.77.0.2\n";

impl Home {
    /// A home with a router that speaks this, unless this machine cannot hold one.
    pub fn open(test: &str, options: &'static str) -> Option<Self> {
        let federation = Federation::open_as(test, &PARENT.to_string())?;
        if !prerequisites::have(test, &[("miniupnpd", "miniupnpd-nftables")]) {
            return None;
        }
        let lab = &federation.lab;
        lab.parent.ip(&format!("address add {PARENT}/24 dev wan0"));
        let router = lab.router.namespace();
        router.ip(&format!("address add {ROUTER}/24 dev wan0"));
        router.nft(CHAINS);
        Some(Self { federation, options })
    }

    fn router(&self) -> &Namespace {
        self.federation.lab.router.namespace()
    }

    /// Starts the router's daemon; returns when it answers.
    pub fn run_router(&self) -> Process {
        let directory = self.federation.lab.directory("router");
        let config = directory.join("miniupnpd.conf");
        let text = format!(
            "ext_ifname=wan0\nlistening_ip=lan0\nhttp_port=5000\nsecure_mode=yes\nsystem_uptime=no\n\
             upnp_table_name=lab\nupnp_nat_table_name=lab\nupnp_forward_chain=upnp_forward\n\
             upnp_nat_chain=upnp_prerouting\nupnp_nat_postrouting_chain=upnp_postrouting\n\
             uuid=5f0a2c1e-0000-4000-8000-000000000001\n{}\
             allow 1024-65535 10.77.0.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            self.options
        );
        std::fs::write(&config, text).unwrap();
        let mut command = self.router().command("miniupnpd");
        command
            .args(["-d", "-f"])
            .arg(&config)
            .arg("-P")
            .arg(directory.join("miniupnpd.pid"));
        let mut running = self.federation.lab.spawn("miniupnpd", command);
        wait_until("the router's daemon listens", SOON, || {
            assert!(running.is_running(), "it ended at once: {}", running.stderr());
            let mut list = self.router().command("ss");
            list.args(["-Hlun"]);
            let listening = finish(list).stdout;
            (listening.contains(":5351") || listening.contains(":1900")).then_some(())
        });
        running
    }

    /// What the router forwards, one a line.
    fn forwarded(&self) -> Vec<String> {
        let mut list = self.router().command("nft");
        list.args(["list", "chain", "inet", "lab", "upnp_prerouting"]);
        let rules = succeed(list).stdout;
        rules
            .lines()
            .filter(|line| line.contains("dnat"))
            .map(|line| line.trim().to_owned())
            .collect()
    }

    /// Forgets everything, as a router does that is switched off.
    pub fn forget(&self) {
        for chain in ["upnp_forward", "upnp_prerouting", "upnp_postrouting"] {
            self.router().nft(&format!("flush chain inet lab {chain}"));
        }
        self.federation.lab.router.forget_flows();
    }

    /// The port on the satellite to which IPv4's way in leads.
    pub fn internal_port(&self) -> u16 {
        let internal = self.way_in()["internal"].as_str().unwrap().to_owned();
        internal.parse::<SocketAddr>().unwrap().port()
    }

    /// How IPv4's way in stands.
    fn way_in(&self) -> Value {
        self.federation.status()["reach"]["mappings"][0].clone()
    }

    /// Waits until a way in is proven, by this protocol, and the parent has been told.
    pub fn wait_proven(&self, protocol: &str, at_most: Duration) -> (SocketAddr, Duration) {
        let (endpoint, took) = wait_timed(&format!("{protocol} has given a port, proven"), at_most, || {
            let way_in = self.way_in();
            let endpoint = way_in["endpoint"].as_str()?.parse::<SocketAddr>().ok()?;
            (way_in["proven"] == true && way_in["protocol"] == protocol).then_some(endpoint)
        });
        assert_eq!(endpoint.ip(), ROUTER);
        wait_until("the parent knows the endpoint", SOON, || {
            self.told_wan()
                .contains(&format!("quic://{endpoint}"))
                .then_some(())
        });
        (endpoint, took)
    }

    /// Waits until the satellite has given up, and says why.
    fn wait_given_up(&self) -> String {
        wait_until("the satellite has given the router up", GIVEN_UP_WITHIN, || {
            let reason = self.way_in()["reason"].as_str()?.to_owned();
            let under_way = [
                "asking the router",
                "no tunnel yet",
                "no default route",
                "not proven",
            ];
            let settled = !under_way.iter().any(|words| reason.contains(words));
            settled.then_some(reason)
        })
    }

    /// The endpoints of scope `wan` that the parent has been told.
    fn told_wan(&self) -> Vec<String> {
        let peer = self.federation.peer();
        let endpoints = peer["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints
            .iter()
            .filter(|endpoint| endpoint["scope"] == "wan")
            .map(|endpoint| endpoint["url"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn a_upnp_router_gives_a_port_that_is_proven_told_and_given_back() {
    let Some(home) = Home::open("upnp_router", UPNP_ALONE) else {
        return;
    };
    let _router = home.run_router();
    let (_bridge, satellite) = home.federation.run_joined();
    let (endpoint, _) = home.wait_proven("UPnP", MAPPED_WITHIN);
    let forwarded = home.forwarded();
    assert_eq!(forwarded.len(), 1, "{forwarded:?}");
    assert!(forwarded[0].contains(&SATELLITE_V4.to_string()), "{forwarded:?}");
    assert!(
        forwarded[0].contains(&endpoint.port().to_string()),
        "{forwarded:?}"
    );
    let table = succeed(home.federation.satellite(&["status"])).stdout;
    assert!(table.contains("way in") && table.contains("proven"), "{table}");

    let mut satellite = satellite;
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    assert_eq!(home.forwarded(), Vec::<String>::new(), "given back");
}

#[test]
fn a_port_for_https_is_proven_told_first_and_given_back() {
    let Some(mut home) = Home::open("https_way_in", UPNP_ALONE) else {
        return;
    };
    home.federation
        .set_satellite("REACH_HTTPS_LISTEN", "0.0.0.0:8443");
    let _router = home.run_router();
    let (_bridge, mut satellite) = home.federation.run_joined();
    let endpoint = wait_until("a port for HTTPS is proven", MAPPED_WITHIN, || {
        let way_in = home.federation.status()["https"]["mappings"][0].clone();
        let endpoint = way_in["endpoint"].as_str()?.parse::<SocketAddr>().ok()?;
        (way_in["proven"] == true && way_in["protocol"] == "UPnP").then_some(endpoint)
    });
    assert_eq!(endpoint.ip(), ROUTER);
    home.wait_proven("UPnP", MAPPED_WITHIN);
    wait_until("the parent knows the endpoint", SOON, || {
        (home.federation.peer()["endpoints"][0]["url"] == format!("https://{endpoint}")).then_some(())
    });
    let forwarded = home.forwarded();
    // The other one is for tunnels.
    let https = forwarded.iter().filter(|rule| rule.ends_with(":8443"));
    assert_eq!((https.count(), forwarded.len()), (1, 2), "{forwarded:?}");
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    assert_eq!(home.forwarded(), Vec::<String>::new(), "both are given back");
}

#[test]
fn a_router_with_pcp_alone_gives_a_port() {
    let Some(home) = Home::open("pcp_router", PCP_AND_NAT_PMP) else {
        return;
    };
    let _router = home.run_router();
    let (_bridge, mut satellite) = home.federation.run_joined();
    home.wait_proven("PCP", MAPPED_WITHIN);
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    assert_eq!(home.forwarded(), Vec::<String>::new());
}

#[test]
fn a_router_with_nat_pmp_alone_gives_a_port() {
    let Some(home) = Home::open("nat_pmp_router", PCP_AND_NAT_PMP) else {
        return;
    };
    // PCP's packets begin with its version, 2; NAT-PMP's with nought.
    home.router()
        .nft("insert rule inet lab input udp dport 5351 @th,64,8 2 drop");
    let _router = home.run_router();
    let (_bridge, mut satellite) = home.federation.run_joined();
    home.wait_proven("NAT-PMP", MAPPED_WITHIN);
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    assert_eq!(home.forwarded(), Vec::<String>::new());
}

#[test]
fn a_firewall_opens_a_pinhole_for_ipv6() {
    let Some(home) = Home::open("pinhole", PCP_AND_NAT_PMP) else {
        return;
    };
    let lab = &home.federation.lab;
    let inside: Ipv6Addr = "2a0f:77::2".parse().unwrap();
    lab.satellite
        .ip(&format!("address add {inside}/64 dev up0 nodad"));
    home.router().ip("address add 2a0f:77::1/64 dev lan0 nodad");
    home.router().ip("address add 2a0f:99::2/64 dev wan0 nodad");
    lab.parent.ip("address add 2a0f:99::10/64 dev wan0 nodad");
    lab.parent.ip("-6 route add 2a0f:77::/64 via 2a0f:99::2");
    let _router = home.run_router();
    let (_bridge, mut satellite) = home.federation.run_joined();
    let endpoint = wait_timed("a pinhole is proven", MAPPED_WITHIN, || {
        let way_in = home.federation.status()["reach"]["mappings"][1].clone();
        let endpoint = way_in["endpoint"].as_str()?.parse::<SocketAddr>().ok()?;
        (way_in["proven"] == true && way_in["protocol"] == "PCP").then_some(endpoint)
    })
    .0;
    assert_eq!(endpoint.ip(), inside, "nothing is translated");
    wait_until("the parent knows the endpoint", SOON, || {
        home.told_wan()
            .contains(&format!("quic://{endpoint}"))
            .then_some(())
    });
    let pinholes = || {
        let mut list = home.router().command("nft");
        list.args(["list", "chain", "inet", "lab", "upnp_forward"]);
        // The address as raw packet data, which is how the daemon writes the rule.
        succeed(list).stdout.matches("0x2a0f0077").count()
    };
    assert_eq!(pinholes(), 1);
    satellite.terminate();
    assert!(satellite.exit_within(SOON).success());
    assert_eq!(pinholes(), 0, "closed again");
}

#[test]
fn after_a_crash_no_port_is_left_open() {
    let Some(mut home) = Home::open("crashed_with_a_port", UPNP_ALONE) else {
        return;
    };
    let _router = home.run_router();
    let (_bridge, mut satellite) = home.federation.run_joined();
    let (before, _) = home.wait_proven("UPnP", MAPPED_WITHIN);
    satellite.kill_and_wait();
    assert_eq!(home.forwarded().len(), 1, "left behind");
    let mut satellite = home.federation.run_satellite();
    let after = wait_until("another port is proven", MAPPED_WITHIN, || {
        let way_in = home.way_in();
        let endpoint = way_in["endpoint"].as_str()?.parse::<SocketAddr>().ok()?;
        (way_in["proven"] == true).then_some(endpoint)
    });
    let forwarded = home.forwarded();
    assert_eq!(
        forwarded.len(),
        1,
        "{forwarded:?}, before {before}, after {after}"
    );
    assert!(forwarded[0].contains(&after.port().to_string()), "{forwarded:?}");

    // Switched off, what is left of the run before still goes.
    satellite.kill_and_wait();
    home.federation.set_satellite("REACH_PORT_MAPPING", "false");
    let _satellite = home.federation.run_satellite();
    wait_until("the port is given back", MAPPED_WITHIN, || {
        home.forwarded().is_empty().then_some(())
    });
}

#[test]
fn a_router_that_restarts_has_the_mapping_again_within_a_minute() {
    for (test, options, protocol) in [
        ("restarted_upnp", UPNP_ALONE, "UPnP"),
        ("restarted_pcp", PCP_AND_NAT_PMP, "PCP"),
    ] {
        let Some(home) = Home::open(test, options) else {
            return;
        };
        let mut router = home.run_router();
        // PCP tells a restart by the router's age alone, and forgives some seconds (RFC 6887, section 8.5): one
        // that was younger than that when the mapping was made cannot be told from one that was not restarted.
        wait_for_age("the router is old enough", PCP_FORGIVES);
        let (_bridge, _satellite) = home.federation.run_joined();
        home.wait_proven(protocol, MAPPED_WITHIN);
        router.kill_and_wait();
        home.forget();
        drop(router);
        let _router = home.run_router();
        assert_eq!(home.forwarded(), Vec::<String>::new());
        wait_timed("the router forwards again", REMAPPED_WITHIN, || {
            (home.forwarded().len() == 1).then_some(())
        });
        home.wait_proven(protocol, SOON);
    }
}

#[test]
fn a_port_that_leads_nowhere_is_withdrawn_and_removed() {
    let Some(home) = Home::open("deaf_port", UPNP_ALONE) else {
        return;
    };
    let _router = home.run_router();
    let (mut bridge, _satellite) = home.federation.run_joined();
    home.wait_proven("UPnP", MAPPED_WITHIN);
    // Listed and renewed as ever, and yet nothing comes through any more.
    home.federation
        .lab
        .router
        .add_rule("iifname \"wan0\" udp dport 1024-65535 ct state new counter drop");
    bridge.terminate();
    assert!(bridge.exit_within(SOON).success());
    let _bridge = home.federation.run_bridge();
    home.federation.wait_active(SOON);
    wait_until("the parent knows of no endpoint any more", MAPPED_WITHIN, || {
        home.told_wan().is_empty().then_some(())
    });
    let reason = home.wait_given_up();
    assert!(reason.contains("did not reach this satellite"), "{reason}");
    assert_eq!(
        home.forwarded(),
        Vec::<String>::new(),
        "removed, and its successor too"
    );
    // The way over the bridge stays told.
    let peer = home.federation.peer();
    let endpoints = peer["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 1, "{endpoints:?}");
    assert!(
        endpoints[0]["url"].as_str().unwrap().contains("/peers/"),
        "{endpoints:?}"
    );
    assert!(home.federation.is_active());
}

#[test]
fn behind_two_nats_the_satellite_says_so_and_stays_on_the_tunnel() {
    let Some(home) = Home::open("double_nat", "enable_upnp=yes\nenable_natpmp=yes\n") else {
        return;
    };
    let (inner, parent) = (home.router(), &home.federation.lab.parent);
    let outer = Namespace::create("outer").unwrap();
    inner.ip("link delete wan0");
    outer.ip(&format!(
        "link add in0 type veth peer name wan0 netns {}",
        inner.name()
    ));
    outer.ip(&format!(
        "link add out0 type veth peer name wan0 netns {}",
        parent.name()
    ));
    outer.ip("address add 192.168.99.1/24 dev in0");
    outer.ip(&format!("address add {ROUTER}/24 dev out0"));
    inner.ip("address add 192.168.99.2/24 dev wan0");
    parent.ip(&format!("address add {PARENT}/24 dev wan0"));
    for (namespace, interface) in [
        (&outer, "in0"),
        (&outer, "out0"),
        (inner, "wan0"),
        (parent, "wan0"),
    ] {
        namespace.set_link(interface, Link::Up);
    }
    inner.ip("route add default via 192.168.99.1");
    outer.set_parameter("ipv4/ip_forward", "1");
    outer.nft("table inet outer { chain nat { type nat hook postrouting priority srcnat; oifname \"out0\" masquerade; }; }");

    let _router = home.run_router();
    let (_bridge, _satellite) = home.federation.run_joined();
    let reason = home.wait_given_up();
    // This router tells nobody a private address, and so says that it has none.
    assert!(reason.contains("second NAT"), "{reason}");
    assert_eq!(home.forwarded(), Vec::<String>::new());
    assert_eq!(home.told_wan(), Vec::<String>::new());
    assert!(home.federation.is_active());
}

/// Answers every search of the network with a device of its own: once from its own address, and
/// once from the router's, which anybody on the network can forge.
struct Spoofer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    believed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Spoofer {
    fn start(router: &Namespace) -> Self {
        router.ip(&format!("address add {NEIGHBOUR}/24 dev lan0"));
        let (heard, own, forged, device) = router.enter(|| {
            let heard = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 1_900)).unwrap();
            heard
                .join_multicast_v4(&Ipv4Addr::new(239, 255, 255, 250), &ROUTER_LAN_V4)
                .unwrap();
            (
                heard,
                UdpSocket::bind((NEIGHBOUR, 0)).unwrap(),
                UdpSocket::bind((ROUTER_LAN_V4, 0)).unwrap(),
                TcpListener::bind((NEIGHBOUR, 0)).unwrap(),
            )
        });
        heard.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        device.set_nonblocking(true).unwrap();
        let spoofer = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            believed: Arc::default(),
            thread: None,
        };
        let (stop, answered, believed) = (
            Arc::clone(&spoofer.stop),
            Arc::clone(&spoofer.answered),
            Arc::clone(&spoofer.believed),
        );
        let location = device.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while !stop.load(Ordering::Relaxed) {
                match device.accept() {
                    Ok(_) => drop(believed.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                let Ok((_, from)) = heard.recv_from(&mut buffer) else {
                    continue;
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                     LOCATION: http://{location}/root.xml\r\n\r\n"
                );
                for socket in [&own, &forged] {
                    socket.send_to(answer.as_bytes(), from).unwrap();
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            thread: Some(thread),
            ..spoofer
        }
    }

    /// How many searches it has answered, and how often somebody came.
    fn stop(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        (
            self.answered.load(Ordering::Relaxed),
            self.believed.load(Ordering::Relaxed),
        )
    }
}

#[test]
fn somebody_else_on_the_network_is_not_taken_for_the_router() {
    let Some(home) = Home::open("ssdp_spoofer", UPNP_ALONE) else {
        return;
    };
    let spoofer = Spoofer::start(home.router());
    let (_bridge, satellite) = home.federation.run_joined();
    let reason = home.wait_given_up();
    assert!(reason.contains("answers neither"), "{reason}");
    let (answered, believed) = spoofer.stop();
    assert!(answered > 0, "the searches were heard");
    assert_eq!(believed, 0, "and nobody came");
    assert!(home.federation.is_active());
    satellite.signal(Signal::TERM);
}
