//! Every key of the satellite: its path, form, default and what it is for. What they come to is the
//! module above.

use super::{
    AbsolutePath, AnyKey, BRIDGES_MAX, CaFingerprint, CountBetween, DATA_RESIDENCY_MAX_CHARS,
    DISCLOSURE_MAX_CHARS, Duration, DurationBetween, Fallback, HOOK, HOOK_TIMEOUT, HostPort, Key, Line,
    ListOf, LogFilter, LogFormat, MAX_KEEPALIVE, METRICS_LISTEN, MIN_KEEPALIVE, NodeFilesPlace, ParentUrl,
    Parsed, PathBuf, PlatformCa, ProxyChoice, RETENTION_DAYS, SATELLITE_MAX_ROWS, SocketAddr,
    TunnelTransport, YesNo, services,
};

pub(super) static KEYS: &[&dyn AnyKey] = &[
    &STATE_DIR,
    &STATE_KEY_FILE,
    &ADMIN_SOCKET,
    &PARENT_URL,
    &PARENT_BRIDGES,
    &PARENT_CA_FILE,
    &PARENT_CA_SHA256,
    &PARENT_TOKEN_FILE,
    &OPERATOR_CONTACT,
    &LOCATION,
    &DATA_RESIDENCY,
    &PAYLOAD_FW_CFG_DIR,
    &PAYLOAD_FILE,
    &TUNNEL_KEEPALIVE,
    &TUNNEL_REDUNDANCY,
    &TUNNEL_CLIMB_MAX,
    &TUNNEL_TRANSPORT,
    &TUNNEL_PROXY,
    &TUNNEL_PROXY_CREDENTIALS,
    &RECONNECT_INITIAL,
    &RECONNECT_MAX,
    &services::STREAMS_PER_SESSION,
    &services::STREAM_WINDOW_KIB,
    &services::STREAM_BANDWIDTH,
    &services::SESSION_BANDWIDTH,
    &services::CONNECT_TIMEOUT,
    &services::FLOW_IDLE_TIMEOUT,
    &GRANTS_ACCEPT_UNSIGNED,
    &RETENTION_DAYS,
    &SATELLITE_MAX_ROWS,
    &NODE_WRITE_TO,
    &NODE_PLATFORM_CA,
    &HOOK,
    &HOOK_TIMEOUT,
    &PORT_MAPPING,
    &LISTEN_PORT,
    &HTTPS_LISTEN,
    &REACH_ENDPOINT,
    &ALLOW_PRIVATE,
    &METRICS_LISTEN,
    &LOG_LEVEL,
    &LOG_FORMAT,
];

pub(super) static STATE_DIR: Key<PathBuf> = Key {
    path: "state_dir",
    form: &AbsolutePath,
    default: Fallback::Value("/var/lib/powernode-satellite"),
    doc: "Directory of the store and of the identity's second copy. Under systemd, StateDirectory= sets it.",
    discreet: false,
};

pub(super) static STATE_KEY_FILE: Key<PathBuf> = Key {
    path: "state_key_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/credentials/powernode-satellite-state-key",
    },
    doc: "File with the state key, which seals the private keys in the state directory: 32 random bytes as they are, as\n64 hex digits or in base64. Under systemd, the unit's credential `state-key` takes its place. When neither is\nthere, /etc/powernode-satellite/state-key is looked at; without any, nothing is sealed. Losing the key is losing\nwhat it seals: see docs/OPERATING.md.",
    discreet: true,
};

pub(super) static ADMIN_SOCKET: Key<PathBuf> = Key {
    path: "admin_socket",
    form: &AbsolutePath,
    default: Fallback::Value("/run/powernode-satellite/admin.sock"),
    doc: "Socket on which the running satellite answers `status` and the other commands. Under systemd it lies in\nRuntimeDirectory=.",
    discreet: false,
};

pub(super) static PARENT_URL: Key<ParentUrl> = Key {
    path: "parent.url",
    form: &Parsed::<ParentUrl>::new("a URL such as https://parent.example.com, without user name and query"),
    default: Fallback::Unset {
        example: "https://parent.example.com",
    },
    doc: "The parent's URL.",
    discreet: true,
};

pub(super) static PARENT_BRIDGES: Key<Vec<HostPort>> = Key {
    path: "parent.bridges",
    form: &ListOf {
        item: Parsed::<HostPort>::new("host:port"),
        least: 0,
        most: BRIDGES_MAX,
    },
    default: Fallback::Value(""),
    doc: "Addresses of the parent's host-bridges, tried in this order. Empty: host and port of the parent's URL.",
    discreet: false,
};

pub(super) static PARENT_CA_FILE: Key<PathBuf> = Key {
    path: "parent.ca_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-satellite/parent-ca.pem",
    },
    doc: "PEM file with the certificate authority of the parent. Without it and without ca_sha256, the system's\ncertificate authorities decide.",
    discreet: false,
};

pub(super) static PARENT_CA_SHA256: Key<CaFingerprint> = Key {
    path: "parent.ca_sha256",
    form: &Parsed::<CaFingerprint>::new("the SHA-256 of the CA certificate: 64 hex digits"),
    default: Fallback::Unset {
        example: "0000000000000000000000000000000000000000000000000000000000000000",
    },
    doc: "Fingerprint of the parent's certificate authority, instead of ca_file.",
    discreet: false,
};

pub(super) static PARENT_TOKEN_FILE: Key<PathBuf> = Key {
    path: "parent.token_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-satellite/acceptance-token",
    },
    doc: "File with the acceptance token, readable for the satellite alone. Under systemd, better leave this unset\nand put the token where LoadCredential= of the unit looks for it.",
    discreet: true,
};

pub(super) static OPERATOR_CONTACT: Key<String> = Key {
    path: "disclosure.operator_contact",
    form: &Line {
        max_chars: DISCLOSURE_MAX_CHARS,
    },
    default: Fallback::Unset {
        example: "ops@example.com",
    },
    doc: "Who answers for this box: a mail address or a telephone number.",
    discreet: false,
};

pub(super) static LOCATION: Key<String> = Key {
    path: "disclosure.location",
    form: &Line {
        max_chars: DISCLOSURE_MAX_CHARS,
    },
    default: Fallback::Unset {
        example: "Shop 17, Hamburg, DE",
    },
    doc: "Where this box stands.",
    discreet: false,
};

pub(super) static DATA_RESIDENCY: Key<String> = Key {
    path: "disclosure.data_residency",
    form: &Line {
        max_chars: DATA_RESIDENCY_MAX_CHARS,
    },
    default: Fallback::Unset { example: "EU" },
    doc: "Under which jurisdiction the data on this box is kept.",
    discreet: false,
};

pub(super) static PAYLOAD_FW_CFG_DIR: Key<PathBuf> = Key {
    path: "payload.fw_cfg_dir",
    form: &AbsolutePath,
    default: Fallback::Value("/sys/firmware/qemu_fw_cfg/by_name/opt/com.powernode"),
    doc: "The hypervisor's payload: one directory per value, with a file `raw` in it. It is looked at first.",
    discreet: false,
};

pub(super) static PAYLOAD_FILE: Key<PathBuf> = Key {
    path: "payload.file",
    form: &AbsolutePath,
    default: Fallback::Value("/etc/powernode/federation-payload.json"),
    doc: "The payload file, a JSON object. Under systemd, the unit's credential takes its place.",
    discreet: false,
};

pub(super) static TUNNEL_KEEPALIVE: Key<Duration> = Key {
    path: "tunnel.keepalive",
    form: &DurationBetween(MIN_KEEPALIVE, MAX_KEEPALIVE),
    default: Fallback::Value("45s"),
    doc: "Longest silence on an idle tunnel; the smaller of this and the host-bridge's wish holds. QUIC begins with 20 s\nand finds out how long the routers on the way remember it; TLS over TCP stays at 20 s.",
    discreet: false,
};

pub(super) static TUNNEL_REDUNDANCY: Key<u32> = Key {
    path: "tunnel.redundancy",
    form: &CountBetween {
        least: 1,
        most: 8,
        unit: "host-bridges",
    },
    default: Fallback::Value("2"),
    doc: "Host-bridges of which a tunnel is held at once, where parent.bridges names so many. The first that is up\ncarries heartbeats and renewals; what the parent opens is served on all.",
    discreet: false,
};

pub(super) static TUNNEL_CLIMB_MAX: Key<Duration> = Key {
    path: "tunnel.climb_max",
    form: &DurationBetween(Duration::from_secs(1), Duration::from_secs(86_400)),
    default: Fallback::Value("30m"),
    doc: "Longest wait between two tries of a better way (QUIC, where TLS over TCP is in use). Each costs some\nkilobytes where the network swallows UDP. A changed network is looked at at once.",
    discreet: false,
};

pub(super) static TUNNEL_TRANSPORT: Key<TunnelTransport> = Key {
    path: "tunnel.transport",
    form: &Parsed::<TunnelTransport>::new("auto, quic or tls"),
    default: Fallback::Value("auto"),
    doc: "Over what the tunnel runs. auto: QUIC (UDP), or TLS over TCP where the network swallows UDP. quic or tls: that\nalone.",
    discreet: false,
};

pub(super) static TUNNEL_PROXY: Key<ProxyChoice> = Key {
    path: "tunnel.proxy",
    form: &Parsed::<ProxyChoice>::new(
        "a URL such as http://proxy.example.com:3128, without user and password, or none",
    ),
    default: Fallback::Unset {
        example: "http://proxy.example.com:3128",
    },
    doc: "HTTP CONNECT proxy for TLS over TCP; it resolves the host-bridge's name. TCP goes to host-bridges by no other way\nthen; QUIC (UDP) is still tried unless tunnel.transport says tls. Unset: what HTTPS_PROXY says in the\nenvironment. none: no proxy, whatever the environment says. NO_PROXY names hosts that are reached without it:\nnames with all below them, addresses, networks, each with or without a port.",
    discreet: true,
};

pub(super) static TUNNEL_PROXY_CREDENTIALS: Key<PathBuf> = Key {
    path: "tunnel.proxy_credentials_file",
    form: &AbsolutePath,
    default: Fallback::Unset {
        example: "/etc/powernode-satellite/proxy-credentials",
    },
    doc: "File with one line `user:password` for the proxy, readable for the satellite alone. It is read for each dial.",
    discreet: true,
};

pub(super) static RECONNECT_INITIAL: Key<Duration> = Key {
    path: "reconnect.initial",
    form: &DurationBetween(Duration::from_millis(100), Duration::from_secs(60)),
    default: Fallback::Value("250ms"),
    doc: "Longest wait before the first new attempt; it doubles with each one that fails. Waits are drawn at random\nbelow it, so that a thousand satellites do not come back in one second.",
    discreet: false,
};

pub(super) static RECONNECT_MAX: Key<Duration> = Key {
    path: "reconnect.max",
    form: &DurationBetween(Duration::from_secs(1), Duration::from_secs(3_600)),
    default: Fallback::Value("60s"),
    doc: "Longest wait between attempts, however many have failed.",
    discreet: false,
};

pub(super) static GRANTS_ACCEPT_UNSIGNED: Key<bool> = Key {
    path: "grants.accept_unsigned",
    form: &YesNo,
    default: Fallback::Value("false"),
    doc: "Whether grant tokens of the older form `fg-<grant id>` are taken, too. They prove nothing: whoever reads a\ngrant's id in a log can use it. For parents that know no other form.",
    discreet: false,
};

pub(super) static NODE_WRITE_TO: Key<NodeFilesPlace> = Key {
    path: "node_identity.write_to",
    form: &Parsed::<NodeFilesPlace>::new("off, auto or an absolute path"),
    default: Fallback::Value("off"),
    doc: "Directory into which the node's key and certificate are also written, for the platform's other programs on this\nbox. auto: /persist/var/lib/powernode/pki where /persist/var/lib/powernode is there, else\n/var/lib/powernode/pki. off: they stay in the satellite's own state.",
    discreet: false,
};

pub(super) static NODE_PLATFORM_CA: Key<PlatformCa> = Key {
    path: "node_identity.platform_ca",
    form: &Parsed::<PlatformCa>::new("system, or the absolute path of a PEM file"),
    default: Fallback::Unset { example: "system" },
    doc: "By what the platform is known when the satellite asks it directly for the node's certificate: a PEM file with its\ncertificate authorities, or system for those of this box. Unset: by what the parent is known.",
    discreet: false,
};

pub(super) static PORT_MAPPING: Key<bool> = Key {
    path: "reach.port_mapping",
    form: &YesNo,
    default: Fallback::Value("true"),
    doc: "Whether the routers of the default routes are asked for a port by PCP, NAT-PMP and UPnP. If not, what an earlier\nrun has left on them is still removed.",
    discreet: false,
};

pub(super) static LISTEN_PORT: Key<u32> = Key {
    path: "reach.listen_port",
    form: &CountBetween {
        least: 0,
        most: 65_535,
        unit: "UDP ports",
    },
    default: Fallback::Value("0"),
    doc: "UDP port on which the satellite listens for its host-bridge. 0: the system chooses one at each start. Set it\nwhere a firewall must let it in.",
    discreet: false,
};

pub(super) static HTTPS_LISTEN: Key<SocketAddr> = Key {
    path: "reach.https_listen",
    form: &Parsed::<SocketAddr>::new("an address and a port, such as [::]:8443"),
    default: Fallback::Unset { example: "[::]:8443" },
    doc: "Where the satellite listens for its parent's HTTPS calls, by the parent's certificate alone: for parents that\ncall the box itself. Unset: it does not, and the parent calls through its host-bridge.",
    discreet: false,
};

pub(super) static REACH_ENDPOINT: Key<SocketAddr> = Key {
    path: "reach.endpoint",
    form: &Parsed::<SocketAddr>::new("address:port, as it is seen from outside"),
    default: Fallback::Unset {
        example: "203.0.113.7:41234",
    },
    doc: "What leads to `listen_port` from outside because the router's owner has set it up by hand, or because it is this\nbox's own. It is proven like any other; routers are not asked for a port of its family.",
    discreet: false,
};

pub(super) static ALLOW_PRIVATE: Key<bool> = Key {
    path: "reach.allow_private",
    form: &YesNo,
    default: Fallback::Value("false"),
    doc: "Whether addresses count as reachable that are so within a site alone. For labs, together with the same key of\nthe host-bridge.",
    discreet: false,
};

pub(super) static LOG_LEVEL: Key<LogFilter> = Key {
    path: "log.level",
    form: &Parsed::<LogFilter>::new(
        "error, warn, info, debug, trace or off, and `target=level` pairs after a comma",
    ),
    default: Fallback::Value("info"),
    doc: "From which level on. A reload (SIGHUP) changes it without a restart.",
    discreet: false,
};

pub(super) static LOG_FORMAT: Key<LogFormat> = Key {
    path: "log.format",
    form: &Parsed::<LogFormat>::new("auto, human, json or journald"),
    default: Fallback::Value("auto"),
    doc: "Form of the lines. auto: human on a terminal, journald where standard error is the journal's, else JSON.",
    discreet: false,
};
