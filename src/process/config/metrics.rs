//! The key of the metrics port, the same in both programs.

use std::net::SocketAddr;

use super::key::{Fallback, Key, ListOf, Parsed};

/// What the section is about, for the example files.
pub(super) const SECTION: (&str, &str) = (
    "metrics",
    "Metrics for Prometheus at /metrics, and probes at /healthz and /readyz. The admin socket answers them, too.",
);

/// Most addresses: loopback and a management network, in both families.
const LISTEN_MAX: usize = 4;

pub(super) static METRICS_LISTEN: Key<Vec<SocketAddr>> = Key {
    path: "metrics.listen",
    form: &ListOf {
        item: Parsed::<SocketAddr>::new("address:port"),
        least: 0,
        most: LISTEN_MAX,
    },
    default: Fallback::Value(""),
    doc: "Addresses (TCP), such as 127.0.0.1:9464. Empty: none. Whoever reaches them can read the metrics: keep them on\nloopback or in a network that is trusted.",
    discreet: false,
};
