//! Services that speak UDP: a name server asked by `dig`; and iperf3, which uses both protocols.

use std::net::SocketAddr;
use std::process::Command;

use super::{Forward, Needed, Site};
use crate::process::{Process, succeed};

const DNS: [Needed; 2] = [("dnsmasq", "dnsmasq-base"), ("dig", "bind9-dnsutils")];

const IPERF: [Needed; 1] = [("iperf3", "iperf3")];

const DNS_PORT: u16 = 5353;

/// Questions one after the other: about as many as a page of a browser's asks.
const QUESTIONS: usize = 50;

const IPERF_PORT: u16 = 5201;

/// Seconds of each measurement.
const MEASURED: &str = "3";

/// What iperf3 sends by UDP, in bits a second: well below what a debug build carries.
const UDP_RATE: &str = "5M";

fn name_server(site: &Site) -> Process {
    let mut dnsmasq = site.on_box("dnsmasq");
    dnsmasq
        .args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
        ])
        .args(["--user=root", "--bind-interfaces", "--listen-address=127.0.0.1"])
        .args([&format!("--port={DNS_PORT}"), "--edns-packet-max=4096"])
        .args(["--address=/till.shop/10.77.0.9", "--address=/till.shop/fd77::9"]);
    // More than a packet of the tunnel's takes.
    let long = "x".repeat(250);
    for number in 0..10 {
        dnsmasq.arg(format!("--txt-record=long.shop,{number}{long}"));
    }
    site.serve("dnsmasq", dnsmasq, DNS_PORT)
}

fn dig(site: &Site, server: SocketAddr, question: &[&str]) -> String {
    let mut dig = site.at_parent("dig");
    dig.arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string(), "+tries=5", "+time=2"])
        .args(question);
    succeed(dig).stdout
}

#[test]
fn dig_asks_a_name_server_through_forwarded_packets() {
    let Some(site) = Site::open("dns", &DNS) else {
        return;
    };
    let _server = name_server(&site);
    site.publish("dns", &format!("127.0.0.1:{DNS_PORT}"), &["--protocol", "udp"]);
    site.publish("dns-tcp", &format!("127.0.0.1:{DNS_PORT}"), &[]);
    let packets = site.forward("dns", &["--udp"]);
    for _ in 0..QUESTIONS {
        let said = dig(&site, packets.address, &["+short", "till.shop", "A"]);
        assert_eq!(said, "10.77.0.9\n");
    }
    let said = dig(&site, packets.address, &["+short", "till.shop", "AAAA"]);
    assert_eq!(said, "fd77::9\n");
    assert!(dig(&site, packets.address, &["nobody.shop"]).contains("status: REFUSED"));
    // In one packet of more than 2,500 bytes, and the same over a connection.
    let long = ["+short", "+bufsize=4096", "+ignore", "long.shop", "TXT"];
    assert_eq!(dig(&site, packets.address, &long).lines().count(), 10);
    let connections = site.forward("dns-tcp", &[]);
    let over_tcp = ["+short", "+tcp", "long.shop", "TXT"];
    assert_eq!(dig(&site, connections.address, &over_tcp).lines().count(), 10);

    // Where UDP gets through between bridge and box no more, packets go along.
    site.federation.lab.router.block_udp();
    let over_tls = || (site.federation.status()["link"]["transport"] == "tls").then_some(());
    crate::wait::wait_until("the tunnel goes over TCP", crate::federation::SOON, over_tls);
    site.federation.wait_answered(crate::federation::SOON);
    let said = dig(&site, packets.address, &["+short", "till.shop", "A"]);
    assert_eq!(said, "10.77.0.9\n");
    site.assert_well();
}

/// What a client of iperf3 tells; its figures are printed, and nothing is demanded of them.
fn measure(site: &Site, forward: &Forward, more: &[&str]) -> serde_json::Value {
    let mut client = site.at_parent("iperf3");
    client
        .args([
            "--client",
            "127.0.0.1",
            "--port",
            &forward.address.port().to_string(),
        ])
        .args(["--time", MEASURED, "--json"])
        .args(more);
    let told = succeed(client).json();
    let sum = &told["end"]["sum"];
    let sum = if sum.is_object() {
        sum
    } else {
        &told["end"]["sum_received"]
    };
    let megabits = sum["bits_per_second"].as_f64().unwrap() / 1e6;
    let lost = sum["lost_percent"].as_f64();
    println!("iperf3 {}: {megabits:.1} Mbit/s, lost {lost:?} %", more.join(" "));
    told
}

#[test]
fn iperf3_measures_through_forwarded_ports() {
    let Some(site) = Site::open("iperf3", &IPERF) else {
        return;
    };
    let mut server: Command = site.on_box("iperf3");
    server.args([
        "--server",
        "--bind",
        "127.0.0.1",
        "--port",
        &IPERF_PORT.to_string(),
    ]);
    let _server = site.serve("iperf3", server, IPERF_PORT);
    site.publish("iperf", &format!("127.0.0.1:{IPERF_PORT}"), &[]);
    let udp = format!("127.0.0.1:{IPERF_PORT}");
    site.publish("iperf-udp", &udp, &["--protocol", "udp"]);
    // It uses one port for both.
    let forward = site.forward_at("iperf", &udp, &[]);
    let _packets = site.forward_at("iperf-udp", &udp, &["--udp"]);
    for more in [&["--parallel", "1"] as &[_], &["--parallel", "8"], &["--reverse"]] {
        let told = measure(&site, &forward, more);
        assert!(
            told["end"]["sum_received"]["bytes"].as_u64() > Some(1_000_000),
            "{told}"
        );
    }
    let told = measure(
        &site,
        &forward,
        &["--udp", "--bitrate", UDP_RATE, "--length", "1200"],
    );
    let (sent, lost) = (
        &told["end"]["sum"]["packets"],
        &told["end"]["sum"]["lost_packets"],
    );
    assert!(
        sent.as_u64() > Some(1_000) && lost.as_u64() < sent.as_u64(),
        "{told}"
    );
    site.assert_well();
}
