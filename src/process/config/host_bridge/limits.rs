//! The keys of the host-bridge's limits.

use super::{CountBetween, Fallback, Key};

pub(super) static HTTPS_CONNECTIONS: Key<u32> = Key {
    path: "limits.https_connections",
    form: &CountBetween {
        least: 8,
        most: 65_536,
        unit: "connections",
    },
    default: Fallback::Value("256"),
    doc: "HTTPS connections at the same time, of which one source address holds at most half. Tunnels over TCP do not count, only their handshakes.",
    discreet: false,
};

pub(super) static BOOTSTRAP_CONNECTIONS: Key<u32> = Key {
    path: "limits.bootstrap_connections",
    form: &CountBetween {
        least: 1,
        most: 4_096,
        unit: "connections",
    },
    default: Fallback::Value("64"),
    doc: "Tunnels at the same time whose satellite has no certificate yet.",
    discreet: false,
};

pub(super) static BOOTSTRAP_PER_SOURCE: Key<u32> = Key {
    path: "limits.bootstrap_connections_per_source",
    form: &CountBetween {
        least: 1,
        most: 4_096,
        unit: "connections",
    },
    default: Fallback::Value("8"),
    doc: "The same from one source address. Several satellites of one site come from the address of its router.",
    discreet: false,
};

pub(super) static SESSIONS: Key<u32> = Key {
    path: "limits.sessions",
    form: &CountBetween {
        least: 1,
        most: 100_000,
        unit: "tunnels",
    },
    default: Fallback::Value("1000"),
    doc: "Tunnels of satellites at the same time. An idle one takes some 200 KB of memory.",
    discreet: false,
};

pub(super) static STREAMS_PER_SESSION: Key<u32> = Key {
    path: "limits.streams_per_session",
    form: &CountBetween {
        least: 8,
        most: 1_024,
        unit: "streams",
    },
    default: Fallback::Value("128"),
    doc: "Streams that a satellite may hold open in its tunnel at the same time; further ones wait.",
    discreet: false,
};

pub(super) static STREAMS_TO_SATELLITE: Key<u32> = Key {
    path: "limits.streams_to_satellite",
    form: &CountBetween {
        least: 8,
        most: 4_096,
        unit: "streams",
    },
    default: Fallback::Value("1024"),
    doc: "Streams that are opened in one tunnel at the same time: each is a connection to a service of the satellite's,\nor a request. Further ones wait. The satellite's own limit holds, too.",
    discreet: false,
};

pub(super) static STREAM_WINDOW_KIB: Key<u32> = Key {
    path: "limits.stream_window_kib",
    form: &CountBetween {
        least: 256,
        most: 65_536,
        unit: "KiB",
    },
    default: Fallback::Value("8192"),
    doc: "What of one stream over QUIC may be on the way from a satellite or not yet read by who asked for it. It bounds\nhow fast a stream is over a long way: 8192 are 1.3 Gbit/s at 50 ms, and a third of that where packets are lost.\nA tunnel takes in 32 of them at most, for readers that stand still.",
    discreet: false,
};

pub(super) static ACCESS_SESSIONS: Key<u32> = Key {
    path: "limits.access_sessions",
    form: &CountBetween {
        least: 1,
        most: 65_536,
        unit: "sessions",
    },
    default: Fallback::Value("4096"),
    doc: "Sessions of people and programs to services of satellites at the same time. Each takes a file descriptor and\nsome 20 KB of memory, up to 150 KB while it is busy.",
    discreet: false,
};

pub(super) static ACCEPTS_PER_SOURCE: Key<u32> = Key {
    path: "limits.accepts_per_source_per_minute",
    form: &CountBetween {
        least: 1,
        most: 10_000,
        unit: "requests",
    },
    default: Fallback::Value("30"),
    doc: "Accept requests of one source address in a minute: what guessing tokens is slowed down to.",
    discreet: false,
};

pub(super) static UNKNOWN_TOKENS_PER_SOURCE: Key<u32> = Key {
    path: "limits.unknown_tokens_per_source_per_minute",
    form: &CountBetween {
        least: 1,
        most: 10_000,
        unit: "requests",
    },
    default: Fallback::Value("30"),
    doc: "Requests of one source address in a minute whose operator token is not known; further ones are told when to\ncome back (429). Known tokens pass.",
    discreet: false,
};
