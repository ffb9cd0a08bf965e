//! A router that answers as it was told to.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::DESCRIPTION;
use crate::machine::mapping_lease::{Entry, MappingProtocol, MappingRecord};

/// How long a thread waits for a packet before it looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(50);

/// What it does.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    /// Faults for the first mappings asked for.
    pub(super) faults: Vec<u16>,
    /// A fault for every one.
    pub(super) always: Option<u16>,
    /// Says yes to a lease with an end, and forgets it.
    pub(super) drops_leases: bool,
    /// Writes another internal port.
    pub(super) mangles: bool,
    /// Answers searches with a place on this host.
    pub(super) location_host: Option<IpAddr>,
    /// Describes a service on this host.
    pub(super) control_host: Option<IpAddr>,
    /// Speaks this protocol on its UDP port, and no UPnP.
    pub(super) udp: Option<MappingProtocol>,
    /// Sends an answer with another nonce before the right one.
    pub(super) wrong_nonce_first: bool,
}

impl Script {
    pub(super) fn faults(faults: &[u16]) -> Self {
        Self {
            faults: faults.to_vec(),
            ..Self::default()
        }
    }

    pub(super) fn pcp() -> Self {
        Self {
            udp: Some(MappingProtocol::Pcp),
            ..Self::default()
        }
    }

    pub(super) fn nat_pmp() -> Self {
        Self {
            udp: Some(MappingProtocol::NatPmp),
            ..Self::default()
        }
    }
}

/// The mappings that it has.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries(Arc<Mutex<BTreeMap<u16, Entry>>>);

impl Entries {
    pub(super) fn get(&self, port: u16) -> Option<Entry> {
        self.0.lock().unwrap().get(&port).cloned()
    }

    pub(super) fn put(&self, port: u16, record: &MappingRecord) {
        let entry = Entry {
            internal: record.internal,
            description: record.description.clone(),
            enabled: true,
            lease_seconds: record.lease_seconds,
        };
        self.0.lock().unwrap().insert(port, entry);
    }

    pub(super) fn put_foreign(&self, port: u16) {
        let entry = Entry {
            internal: "127.0.0.99:9".parse().unwrap(),
            description: "a game".to_owned(),
            enabled: true,
            lease_seconds: 0,
        };
        self.0.lock().unwrap().insert(port, entry);
    }

    pub(super) fn own(&self) -> Vec<u16> {
        let entries = self.0.lock().unwrap();
        let own = entries
            .iter()
            .filter(|(_, entry)| entry.description == DESCRIPTION);
        own.map(|(port, _)| *port).collect()
    }
}

/// See the module's text.
pub(super) struct ScriptedRouter {
    address: IpAddr,
    entries: Entries,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: IpAddr,
    http: SocketAddr,
    script: Mutex<Script>,
    entries: Entries,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

static NEXT: AtomicU8 = AtomicU8::new(1);

/// An address that no other router of this process has, and hardly one of another process.
fn own_address() -> IpAddr {
    let process = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 64 | (process[2] & 0x3f), process[3], number).into()
}

impl ScriptedRouter {
    pub(super) async fn start(script: Script) -> Self {
        tokio::task::spawn_blocking(move || Self::start_blocking(script))
            .await
            .unwrap()
    }

    fn start_blocking(script: Script) -> Self {
        let address = own_address();
        let listener = TcpListener::bind((address, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let udp = |port| {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let speaks_upnp = script.udp.is_none();
        let shared = Arc::new(Shared {
            address,
            http: listener.local_addr().unwrap(),
            script: Mutex::new(script),
            entries: Entries::default(),
            asked: Arc::default(),
            stop: Arc::default(),
        });
        let mut threads = Vec::new();
        if speaks_upnp {
            let (of_search, search) = (Arc::clone(&shared), udp(1_900));
            threads.push(std::thread::spawn(move || of_search.answer_searches(&search)));
            let of_http = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || of_http.answer_http(&listener)));
        } else {
            let (of_udp, socket) = (Arc::clone(&shared), udp(5_351));
            threads.push(std::thread::spawn(move || of_udp.answer_packets(&socket)));
        }
        Self {
            address,
            entries: shared.entries.clone(),
            asked: Arc::clone(&shared.asked),
            stop: Arc::clone(&shared.stop),
            threads,
        }
    }

    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) fn entries(&self) -> Entries {
        self.entries.clone()
    }

    /// The calls that it was asked for, each with its name first.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for ScriptedRouter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The address that they all say to have outside.
pub(super) fn external() -> IpAddr {
    Ipv4Addr::new(93, 184, 216, 34).into()
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn answer_searches(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2_048];
        while !self.is_stopped() {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.starts_with("M-SEARCH") && text.contains("InternetGatewayDevice:1") {
                let host = self.script.lock().unwrap().location_host.unwrap_or(self.address);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: http://{host}:{}/root.xml\r\n\r\n",
                    self.http.port()
                );
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        }
    }

    fn answer_http(&self, listener: &TcpListener) {
        while !self.is_stopped() {
            match listener.accept() {
                Ok((stream, _)) => drop(self.answer_request(stream)),
                Err(_) => std::thread::park_timeout(PATIENCE / 10),
            }
        }
    }

    fn answer_request(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut request = Vec::new();
        let mut buffer = [0; 2_048];
        let text = loop {
            let length = stream.read(&mut buffer)?;
            request.extend(&buffer[..length]);
            let text = String::from_utf8_lossy(&request).into_owned();
            if length == 0 {
                return Ok(());
            }
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let wanted = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "))
                    .map_or(0, |length| length.trim().parse().unwrap());
                if body.len() >= wanted {
                    break text;
                }
            }
        };
        let (status, body) = if text.starts_with("GET /root.xml") {
            ("200 OK", self.description())
        } else {
            self.call(&text)
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn description(&self) -> String {
        let host = self.script.lock().unwrap().control_host;
        let base = host.map_or(String::new(), |host| {
            format!("http://{host}:{}", self.http.port())
        });
        format!(
            "<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
             </serviceType><controlURL>{base}/ctl</controlURL></service></serviceList></device></root>"
        )
    }

    fn call(&self, text: &str) -> (&'static str, String) {
        let name = text
            .split("Soapaction: ")
            .nth(1)
            .and_then(|rest| rest.split(['#', '"']).nth(2))
            .unwrap_or_default();
        self.asked.lock().unwrap().push(format!("{name} {text}"));
        let value = |name: &str| {
            let after = text.split(&format!("<{name}>")).nth(1).unwrap_or_default();
            after.split('<').next().unwrap_or_default().to_owned()
        };
        let fault = |code: u16| {
            (
                "500 Internal Server Error",
                format!("<s:Fault><errorCode>{code}</errorCode></s:Fault>"),
            )
        };
        let mut entries = self.entries.0.lock().unwrap();
        let port: u16 = value("NewExternalPort").parse().unwrap_or(0);
        match name {
            "GetExternalIPAddress" => (
                "200 OK",
                format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", external()),
            ),
            "GetSpecificPortMappingEntry" => match entries.get(&port) {
                None => fault(714),
                Some(entry) => (
                    "200 OK",
                    format!(
                        "<NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient>\
                         <NewEnabled>1</NewEnabled><NewPortMappingDescription>{}</NewPortMappingDescription>\
                         <NewLeaseDuration>{}</NewLeaseDuration>",
                        entry.internal.port(),
                        entry.internal.ip(),
                        entry.description,
                        entry.lease_seconds
                    ),
                ),
            },
            "DeletePortMapping" => match entries.remove(&port) {
                None => fault(714),
                Some(_) => ("200 OK", "<ok/>".to_owned()),
            },
            "AddPortMapping" => {
                let mut script = self.script.lock().unwrap();
                if let Some(code) = script.always {
                    return fault(code);
                }
                if !script.faults.is_empty() {
                    return fault(script.faults.remove(0));
                }
                let lease: u32 = value("NewLeaseDuration").parse().unwrap();
                let mut internal = SocketAddr::new(
                    value("NewInternalClient").parse().unwrap(),
                    value("NewInternalPort").parse().unwrap(),
                );
                if script.mangles {
                    internal.set_port(9);
                }
                if lease == 0 || !script.drops_leases {
                    let entry = Entry {
                        internal,
                        description: value("NewPortMappingDescription"),
                        enabled: true,
                        lease_seconds: lease,
                    };
                    entries.insert(port, entry);
                }
                ("200 OK", "<ok/>".to_owned())
            }
            _ => fault(401),
        }
    }

    fn answer_packets(&self, socket: &UdpSocket) {
        let mut buffer = [0; 1_100];
        let pcp = self.script.lock().unwrap().udp == Some(MappingProtocol::Pcp);
        while !self.is_stopped() {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let packet = &buffer[..length];
            let answer = if pcp {
                self.answer_pcp(packet, from)
            } else {
                self.answer_nat_pmp(packet, from)
            };
            let Some(answer) = answer else {
                continue;
            };
            if self.script.lock().unwrap().wrong_nonce_first && answer.len() > 24 {
                let mut wrong = answer.clone();
                wrong[24] ^= 1;
                let _ = socket.send_to(&wrong, from);
            }
            let _ = socket.send_to(&answer, from);
        }
    }

    fn map(&self, from: SocketAddr, internal: u16, external: u16, lease: u32) {
        let mut entries = self.entries.0.lock().unwrap();
        let internal = SocketAddr::new(from.ip(), internal);
        entries.retain(|_, entry| entry.internal != internal);
        if lease != 0 {
            let entry = Entry {
                internal,
                description: DESCRIPTION.to_owned(),
                enabled: true,
                lease_seconds: lease,
            };
            entries.insert(external, entry);
        }
    }

    fn answer_pcp(&self, packet: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        if packet.first() != Some(&2) {
            return None;
        }
        let mut answer = vec![2, 0x80 | packet[1], 0, 0];
        answer.extend(&packet[4..8]);
        answer.extend(77_u32.to_be_bytes());
        answer.extend([0; 12]);
        if packet[1] == 1 {
            let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
            let lease = u32::from_be_bytes(packet[4..8].try_into().unwrap());
            self.map(from, number(40), number(42), lease);
            answer.extend(&packet[24..44]);
            answer.extend(Ipv4Addr::new(93, 184, 216, 34).to_ipv6_mapped().octets());
        }
        Some(answer)
    }

    fn answer_nat_pmp(&self, packet: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let mut answer = vec![0, 0x80 | packet.get(1)?, 0, 0, 0, 0, 0, 77];
        match packet {
            [2, ..] => answer = vec![0, 0x80 | packet[1], 0, 1, 0, 0, 0, 77],
            [0, 0] => answer.extend([93, 184, 216, 34]),
            [0, 1, _, _, i0, i1, e0, e1, lease @ ..] => {
                let lease_seconds = u32::from_be_bytes(lease.try_into().ok()?);
                self.map(
                    from,
                    u16::from_be_bytes([*i0, *i1]),
                    u16::from_be_bytes([*e0, *e1]),
                    lease_seconds,
                );
                answer.extend([*i0, *i1, *e0, *e1]);
                answer.extend(lease);
            }
            _ => return None,
        }
        Some(answer)
    }
}
