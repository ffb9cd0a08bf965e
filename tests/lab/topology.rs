//! The lab's network:
//!
//! ```text
//! satellite                     router (NAT)                        parent
//!    up0 ────────────────────── lan0   wan0 ──────────────────────── wan0
//!  10.77.0.2                10.77.0.1   198.51.100.2            198.51.100.10
//!  fd77::2                    fd77::1   2001:db8:51::2       2001:db8:51::10
//! ```
//!
//! The router masquerades what leaves and drops what comes in unasked. The parent knows no way
//! to the satellite's network.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::namespace::{Link, Namespace};
use crate::places::Place;
use crate::prerequisites;
use crate::process::{Process, succeed};

/// The satellite, in private address space.
pub const SATELLITE_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The router's side towards the satellite.
pub const ROUTER_LAN_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The router's side towards the parent: what the parent sees of the satellite.
pub const ROUTER_WAN_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The parent, in documentation address space.
pub const PARENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// The satellite's IPv6 address.
pub const SATELLITE_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The router's IPv6 address towards the satellite.
pub const ROUTER_LAN_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The router's IPv6 address towards the parent.
pub const ROUTER_WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// The parent's IPv6 address.
pub const PARENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10);

/// What the router does with packets. Scenarios add their rules to a chain that comes first, so
/// that they stop established flows too.
const ROUTER_RULES: &str = r#"
table inet lab {
    chain scenario {
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        jump scenario
        ct state established,related accept
        iifname "lan0" oifname "wan0" accept
    }
    chain input {
        type filter hook input priority filter; policy drop;
        iifname { "lo", "lan0" } accept
        ct state established,related accept
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" masquerade
    }
}
"#;

/// A satellite behind a router, and its parent.
pub struct Lab {
    /// The edge box.
    pub satellite: Namespace,
    /// What stands between.
    pub router: Router,
    /// The parent's site.
    pub parent: Namespace,
    directory: TempDir,
    /// The last to go: what stood there is gone by then.
    _place: Place,
}

impl Lab {
    /// Builds it; `None` when this machine cannot hold one, which has been said then.
    pub fn open(test: &str) -> Option<Self> {
        if !prerequisites::met(test) {
            return None;
        }
        let place = Place::take(test);
        let create = |role| Namespace::create(role).unwrap();
        let (satellite, router, parent) = (create("satellite"), create("router"), create("parent"));
        for namespace in [&satellite, &router, &parent] {
            // Otherwise an unplugged interface forgets its address for good.
            namespace.set_parameter("ipv6/conf/all/keep_addr_on_down", "1");
        }
        connect(
            (
                &satellite,
                "up0",
                &[SATELLITE_V4.to_string(), SATELLITE_V6.to_string()],
            ),
            (
                &router,
                "lan0",
                &[ROUTER_LAN_V4.to_string(), ROUTER_LAN_V6.to_string()],
            ),
        );
        connect(
            (
                &router,
                "wan0",
                &[ROUTER_WAN_V4.to_string(), ROUTER_WAN_V6.to_string()],
            ),
            (&parent, "wan0", &[PARENT_V4.to_string(), PARENT_V6.to_string()]),
        );
        satellite.ip(&format!("route add default via {ROUTER_LAN_V4}"));
        satellite.ip(&format!("-6 route add default via {ROUTER_LAN_V6}"));
        router.set_parameter("ipv4/ip_forward", "1");
        router.set_parameter("ipv6/conf/all/forwarding", "1");
        router.nft(ROUTER_RULES);
        let directory = tempfile::Builder::new()
            .prefix(&format!("lab-{test}-"))
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        Some(Self {
            satellite,
            router: Router { namespace: router },
            parent,
            directory,
            _place: place,
        })
    }

    /// Takes the box's own interface down, or brings it up as a DHCP client does: with its way out.
    pub fn set_uplink(&self, link: Link) {
        self.satellite.set_link("up0", link);
        if matches!(link, Link::Up) {
            self.satellite
                .ip(&format!("route replace default via {ROUTER_LAN_V4}"));
            self.satellite
                .ip(&format!("-6 route replace default via {ROUTER_LAN_V6}"));
        }
    }

    /// Makes the parent's line slow: so many kilobits a second towards the satellite.
    pub fn slow_parent_down(&self, kilobits_per_second: u32) {
        let mut tc = self.parent.command("tc");
        tc.args(["qdisc", "replace", "dev", "wan0", "root", "tbf"])
            .args(["rate", &format!("{kilobits_per_second}kbit")])
            .args(["burst", "1600", "latency", "10s"]);
        succeed(tc);
    }

    /// Gives the parent's line its speed back.
    pub fn speed_parent_up(&self) {
        let mut tc = self.parent.command("tc");
        tc.args(["qdisc", "delete", "dev", "wan0", "root"]);
        succeed(tc);
    }

    /// A directory of this lab's, for state and configuration; made when it is asked for.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Starts a program with its logs in this lab's directory.
    pub fn spawn(&self, name: &str, command: Command) -> Process {
        Process::spawn(name, &self.directory("logs"), command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!(
                "state and logs of the failed lab: {}",
                self.directory.path().display()
            );
        }
    }
}

/// The router between satellite and parent.
pub struct Router {
    namespace: Namespace,
}

impl Router {
    /// The namespace, for what is not said here.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Drops every UDP packet that would pass, of flows that are under way too.
    pub fn block_udp(&self) {
        self.add_rule("meta l4proto udp counter drop");
    }

    /// Adds a rule ahead of all others that decide on passing packets.
    pub fn add_rule(&self, rule: &str) {
        self.namespace.nft(&format!("add rule inet lab scenario {rule}"));
    }

    /// Drops what comes from the parent, and lets out what goes there.
    pub fn block_from_parent(&self) {
        self.add_rule("iifname \"wan0\" counter drop");
    }

    /// Lets flows that begin from now on leave from other ports than those of before, as a router
    /// does that has restarted or has moved to another line.
    pub fn move_ports(&self) {
        self.namespace.nft(
            "insert rule inet lab postrouting oifname \"wan0\" meta l4proto udp masquerade to :61000-61999",
        );
        self.forget_flows();
    }

    /// Removes what [`Router::add_rule`] has added.
    pub fn clear_rules(&self) {
        self.namespace.nft("flush chain inet lab scenario");
    }

    /// How many packets the added rules with a `counter` have met.
    pub fn counted_packets(&self) -> u64 {
        self.counted_in("scenario", "packets")
    }

    /// How many bytes they have met, IP headers included.
    pub fn counted_bytes(&self) -> u64 {
        self.counted_in("scenario", "bytes")
    }

    /// The `packets` or `bytes` that a chain's counters have met.
    pub fn counted_in(&self, chain: &str, what: &str) -> u64 {
        let mut list = self.namespace.command("nft");
        list.args(["--json", "list", "chain", "inet", "lab", chain]);
        let listed = succeed(list).json();
        let rules = listed["nftables"].as_array().unwrap();
        rules
            .iter()
            .filter_map(|entry| entry["rule"]["expr"].as_array())
            .flatten()
            .filter_map(|expression| expression["counter"][what].as_u64())
            .sum()
    }

    /// Forgets all flows, as a router does that restarts: what comes back from outside no
    /// longer finds its way until the inside speaks again.
    pub fn forget_flows(&self) {
        let mut flush = self.namespace.command("conntrack");
        flush.arg("-F");
        succeed(flush);
    }

    /// The flows that it knows, one a line.
    pub fn flows(&self) -> String {
        let mut list = self.namespace.command("conntrack");
        list.arg("-L");
        succeed(list).stdout
    }

    /// How many flows it knows.
    pub fn flow_count(&self) -> usize {
        self.flows().lines().count()
    }

    /// Plugs or unplugs the satellite's cable.
    pub fn set_satellite_link(&self, link: Link) {
        self.namespace.set_link("lan0", link);
    }

    /// Plugs or unplugs the way to the parent.
    pub fn set_parent_link(&self, link: Link) {
        self.namespace.set_link("wan0", link);
    }
}

/// Another router beside the first, which leads the satellite to the same parent over another line:
/// `up1` of the box, and a line of its own into the parent's site.
pub struct SecondRouter {
    namespace: Namespace,
}

impl SecondRouter {
    /// Its side towards the satellite.
    pub const LAN_V4: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    /// The satellite's side.
    pub const SATELLITE_V4: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
    /// What the parent sees of who comes through it.
    pub const WAN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    /// Lays its cables. The satellite goes on using the first router.
    pub fn attach(lab: &Lab) -> Self {
        let namespace = Namespace::create("second").unwrap();
        let pair = |v4: &str, v6: &str| [v4.to_owned(), v6.to_owned()];
        connect(
            (&lab.satellite, "up1", &pair("10.78.0.2", "fd78::2")),
            (&namespace, "lan0", &pair("10.78.0.1", "fd78::1")),
        );
        connect(
            (&namespace, "wan0", &pair("203.0.113.2", "2001:db8:71::2")),
            (&lab.parent, "wan1", &pair("203.0.113.10", "2001:db8:71::10")),
        );
        namespace.ip(&format!("route add {PARENT_V4}/32 via 203.0.113.10"));
        namespace.ip(&format!("route add {SATELLITE_V4}/32 via {}", Self::SATELLITE_V4));
        namespace.set_parameter("ipv4/ip_forward", "1");
        namespace.nft(ROUTER_RULES);
        Self { namespace }
    }

    /// The namespace, for what is not said here.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// A JSON file, such as a program under test has written.
pub fn json_file(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

type End<'a> = (&'a Namespace, &'a str, &'a [String; 2]);

/// Lays a cable between two namespaces. It is made inside of the first, never on the host.
fn connect(near: End<'_>, far: End<'_>) {
    let (near_namespace, near_interface, _) = near;
    let (far_namespace, far_interface, _) = far;
    near_namespace.ip(&format!(
        "link add {near_interface} type veth peer name {far_interface} netns {}",
        far_namespace.name()
    ));
    for (namespace, interface, [v4, v6]) in [near, far] {
        namespace.ip(&format!("address add {v4}/24 dev {interface}"));
        namespace.ip(&format!("address add {v6}/64 dev {interface} nodad"));
        namespace.set_link(interface, Link::Up);
    }
}
