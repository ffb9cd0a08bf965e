//! Reads reports back from the daemon's JSON, for the commands that show them. What serde derives takes kilobytes for
//! each struct in the program; here a field is one call. Each list names every field, or it does not compile.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    AnchorReport, BetterReport, BridgeReport, CertificateReport, ClockReport, ClusterReport, CountersReport,
    FormerPeerReport, HeartbeatReport, HttpsReport, LinkReport, MappingReport, PeerReport, ReachReport,
    StatusReport, StoreReport,
};
use crate::base::time::UnixTime;
use crate::contract::service::ServiceFields;
use crate::satellite::grants::GrantsReport;
use crate::satellite::node_report::NodeReport;
use crate::satellite::services::ServiceReport;

/// The fields of a JSON object that have not been taken yet. One that is not there is null: daemon and command may
/// be of different builds.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(in crate::satellite) struct Fields(Map<String, Value>);

/// Why a report cannot be shown.
#[derive(Debug, Error)]
#[error("`{field}` cannot be read ({why}); is the daemon of another version? restart it")]
pub(in crate::satellite) struct InvalidField {
    field: &'static str,
    why: serde_json::Error,
}

impl Fields {
    fn raw(&mut self, field: &'static str) -> Value {
        self.0.remove(field).unwrap_or_default()
    }

    fn required<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<T, InvalidField> {
        value(field, self.raw(field))
    }

    /// For what earlier builds did not have.
    fn or_default<T: DeserializeOwned + Default>(&mut self, field: &'static str) -> Result<T, InvalidField> {
        match self.raw(field) {
            Value::Null => Ok(T::default()),
            there => value(field, there),
        }
    }

    fn list<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<Vec<T>, InvalidField> {
        match self.raw(field) {
            Value::Null => Ok(Vec::new()),
            Value::Array(there) => there.into_iter().map(|there| value(field, there)).collect(),
            other => value(field, other),
        }
    }

    fn time_or_none(&mut self, field: &'static str) -> Result<Option<UnixTime>, InvalidField> {
        match self.raw(field) {
            Value::Null => Ok(None),
            there => moment(field, there).map(Some),
        }
    }

    fn time(&mut self, field: &'static str) -> Result<UnixTime, InvalidField> {
        moment(field, self.raw(field))
    }

    /// Those of the names that are there, as one value.
    fn those<T: DeserializeOwned>(&mut self, names: &[&str], field: &'static str) -> Result<T, InvalidField> {
        let there = names.iter().filter_map(|name| self.0.remove_entry(*name));
        value(field, Value::Object(there.collect()))
    }
}

fn value<T: DeserializeOwned>(field: &'static str, there: Value) -> Result<T, InvalidField> {
    serde_json::from_value(there).map_err(|why| InvalidField { field, why })
}

fn moment(field: &'static str, there: Value) -> Result<UnixTime, InvalidField> {
    let text: String = value(field, there)?;
    text.parse().map_err(|error| InvalidField {
        field,
        why: serde::de::Error::custom(error),
    })
}

/// `field` is required (an `Option` may be null), or read by the method that is named after it.
macro_rules! read {
    (@ $fields:ident $field:ident) => {
        $fields.required(stringify!($field))?
    };
    (@ $fields:ident $field:ident $how:ident) => {
        $fields.$how(stringify!($field))?
    };
    ($report:ident { $($field:ident $(: $how:ident)?),* }) => {
        impl TryFrom<Fields> for $report {
            type Error = InvalidField;

            fn try_from(mut fields: Fields) -> Result<Self, InvalidField> {
                Ok(Self { $($field: read!(@ fields $field $($how)?)),* })
            }
        }
    };
}

read!(StatusReport {
    version,
    generated_at: time,
    daemon_running,
    state,
    refusal,
    parent_url,
    peer,
    replaces,
    joining_as,
    former_peers: list,
    link,
    heartbeat,
    certificate,
    own_authority,
    node,
    cluster,
    clock,
    store,
    services: list,
    grants: or_default,
    reach,
    https,
    counters: or_default
});
read!(CountersReport {
    tunnels_established: or_default,
    tunnels_lost: or_default,
    dials_failed: or_default,
    heartbeats_acknowledged: or_default,
    heartbeats_failed: or_default,
    certificates_renewed: or_default,
    certificate_renewals_failed: or_default,
    streams_refused: or_default,
    audit_events_lost: or_default
});
read!(PeerReport {
    id,
    status,
    spawn_mode,
    contract_version,
    accepted_at: time,
    operator_contact,
    location,
    data_residency,
    warnings: list
});
read!(FormerPeerReport {
    id,
    parent_url,
    accepted_at: time_or_none,
    ended_at: time,
    grants
});
read!(LinkReport {
    state,
    bridge,
    transport,
    since: time_or_none,
    next_attempt_at: time_or_none,
    failures,
    last_error,
    bridges: list
});
read!(BridgeReport {
    bridge,
    state,
    primary,
    address,
    rung,
    since: time_or_none,
    next_attempt_at: time_or_none,
    failures,
    last_error,
    draining,
    better: list,
    udp_dropped: or_default
});
read!(BetterReport {
    rung,
    why,
    next_try_at: time_or_none
});
read!(HeartbeatReport {
    last_acknowledged_at: time_or_none,
    last_error,
    our_endpoints: list,
    schema_compatibility
});
read!(CertificateReport {
    standing,
    serial,
    fingerprint: or_default,
    not_before: time,
    not_after: time,
    renew_at: time,
    renewal,
    renewal_error,
    needs_rejoin: or_default,
    self_issued: or_default,
    anchors: list,
    bundle_error
});
read!(AnchorReport {
    fingerprint,
    subject,
    not_after: time
});
read!(ClusterReport {
    parts,
    hook,
    handed_over_at: time_or_none,
    trouble
});
read!(ClockReport {
    system: time,
    trusted: time,
    doubt
});
read!(StoreReport {
    directory,
    size_bytes,
    sealed: or_default,
    recovered,
    last_error
});
read!(HttpsReport {
    listening,
    error,
    mappings: list
});
read!(ReachReport {
    listening,
    mappings: list
});
read!(MappingReport {
    family,
    protocol,
    gateway,
    internal,
    endpoint,
    lease_seconds,
    proven,
    reason
});
read!(NodeReport {
    state,
    platform_url,
    subject,
    instance_id,
    mtls_subject,
    certificate_id,
    certificate,
    refusal,
    last_error,
    files,
    files_error
});
read!(GrantsReport {
    active,
    of_former_peers: or_default,
    emancipated,
    undelivered,
    trouble,
    parent_heard_at: time_or_none
});

impl TryFrom<Fields> for ServiceReport {
    type Error = InvalidField;

    fn try_from(mut fields: Fields) -> Result<Self, InvalidField> {
        Ok(Self {
            configured: fields.required("configured")?,
            health: fields.required("health")?,
            health_reason: fields.required("health_reason")?,
            connections: fields.required("connections")?,
            opened: fields.required("opened")?,
            refused: fields.required("refused")?,
            bytes_in: fields.required("bytes_in")?,
            bytes_out: fields.required("bytes_out")?,
            service: fields.those(&ServiceFields::NAMES, "service")?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const PEER: &str = "0197e7a0-0000-7000-8000-000000000001";

    fn certificate() -> Value {
        json!({
            "standing": "valid", "serial": "0A", "fingerprint": "sha256:ab", "not_before": "2026-05-17T13:44:12Z",
            "not_after": "2026-08-17T13:44:12Z", "renew_at": "2026-07-17T13:44:12Z", "renewal": "requested",
            "renewal_error": "no answer", "needs_rejoin": true, "self_issued": true,
            "anchors": [{ "fingerprint": "ab", "subject": "CA", "not_after": "2030-05-17T13:44:12Z" }],
            "bundle_error": "unreadable",
        })
    }

    fn mapping() -> Value {
        json!({
            "family": "ipv4", "protocol": "PCP", "gateway": "192.168.1.1", "internal": "192.168.1.2:7000",
            "endpoint": "203.0.113.7:7000", "lease_seconds": 3600, "proven": true, "reason": "none",
        })
    }

    /// Every field differs from what it is where nothing is told.
    fn full() -> Value {
        json!({
            "version": "1.2.3", "generated_at": "2026-05-17T13:44:12Z", "daemon_running": true, "state": "joined",
            "refusal": "no", "parent_url": "https://parent.example",
            "peer": {
                "id": PEER, "status": "active", "spawn_mode": "managed_child", "contract_version": 1,
                "accepted_at": "2026-05-17T13:44:12Z", "operator_contact": "ops", "location": "lab",
                "data_residency": "EU", "warnings": ["odd"],
            },
            "replaces": PEER,
            "joining_as": { "contact": "ops", "location": "lab", "data_residency": null },
            "former_peers": [{
                "id": PEER, "parent_url": "https://parent.example", "accepted_at": "2026-05-17T13:44:12Z",
                "ended_at": "2026-05-18T13:44:12Z", "grants": "rebound",
            }],
            "link": {
                "state": "connected", "bridge": "b:1", "transport": "quic", "since": "2026-05-17T13:44:12Z",
                "next_attempt_at": "2026-05-17T13:44:13Z", "failures": 2, "last_error": "silent",
                "bridges": [{
                    "bridge": "b:1", "state": "connected", "primary": true, "address": "192.0.2.1:1", "rung": "quic",
                    "since": "2026-05-17T13:44:12Z", "next_attempt_at": "2026-05-17T13:44:13Z", "failures": 3,
                    "last_error": "reset", "draining": 1, "udp_dropped": 9,
                    "better": [{ "rung": "direct", "why": "closed", "next_try_at": "2026-05-17T13:44:12Z" }],
                }],
            },
            "heartbeat": {
                "last_acknowledged_at": "2026-05-17T13:44:12Z", "last_error": "late",
                "our_endpoints": [{ "url": "https://e.example", "scope": "public" }],
                "schema_compatibility": {
                    "status": "compatible", "source": "default", "local_version": "1", "remote_version": "2",
                    "notes": "fine",
                },
            },
            "certificate": certificate(),
            "own_authority": {
                "issuing": { "fingerprint": "cd", "subject": "box", "not_after": "2030-05-17T13:44:12Z" },
                "rotation_due": "2029-05-17T13:44:12Z", "succession": null,
            },
            "node": {
                "state": "enrolled", "platform_url": "https://platform.example", "subject": "node",
                "instance_id": "i", "mtls_subject": "CN=node", "certificate_id": "c", "certificate": certificate(),
                "refusal": "no", "last_error": "slow", "files": "/run/pki", "files_error": "full",
            },
            "cluster": {
                "parts": { "k3s": 12 }, "hook": "/bin/hook", "handed_over_at": "2026-05-17T13:44:12Z",
                "trouble": "failed",
            },
            "clock": { "system": "2026-05-17T13:44:12Z", "trusted": "2026-05-17T13:44:13Z", "doubt": "behind" },
            "store": {
                "directory": "/var/lib", "size_bytes": 7, "sealed": true, "recovered": "copy", "last_error": "full",
            },
            "services": [service()],
            "grants": {
                "active": 1, "of_former_peers": 2, "emancipated": true, "undelivered": 3, "trouble": "404",
                "parent_heard_at": "2026-05-17T13:44:12Z",
            },
            "reach": { "listening": 7000, "mappings": [mapping()] },
            "https": { "listening": "[::]:8443", "error": "taken", "mappings": [mapping()] },
            "counters": {
                "tunnels_established": 1, "tunnels_lost": 2, "dials_failed": 3, "heartbeats_acknowledged": 4,
                "heartbeats_failed": 5, "certificates_renewed": 6, "certificate_renewals_failed": 7,
                "streams_refused": { "grant": 8 }, "audit_events_lost": 9,
            },
        })
    }

    fn service() -> Value {
        let definition = json!({ "name": "web", "protocol": "tcp", "address": "127.0.0.1:80" });
        let mut service = serde_json::to_value(
            serde_json::from_value::<crate::contract::service::ServiceDefinition>(definition).unwrap(),
        )
        .unwrap();
        let told = json!({
            "configured": true, "health": "unhealthy", "health_reason": "refused", "connections": 1, "opened": 2,
            "refused": 3, "bytes_in": 4, "bytes_out": 5,
        });
        let fields = service.as_object_mut().unwrap();
        fields.extend(told.as_object().unwrap().clone());
        service
    }

    #[test]
    fn a_whole_report_is_read_as_it_was_written() {
        let read: StatusReport = serde_json::from_value(full()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), full());
    }

    #[test]
    fn what_an_earlier_build_did_not_tell_is_left_out() {
        let mut early = full();
        let report = early.as_object_mut().unwrap();
        for field in [
            "replaces",
            "joining_as",
            "former_peers",
            "node",
            "services",
            "grants",
            "reach",
            "counters",
        ] {
            report.remove(field);
        }
        let read: StatusReport = serde_json::from_value(early).unwrap();
        assert!(read.former_peers.is_empty() && read.node.is_none() && read.services.is_empty());
        assert_eq!(read.counters, CountersReport::default());
        assert_eq!(read.grants, GrantsReport::default());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let mut wrong = full();
        wrong["clock"]["trusted"] = json!("yesterday");
        let error = serde_json::from_value::<StatusReport>(wrong).unwrap_err();
        assert!(error.to_string().contains("`trusted` cannot be read"), "{error}");
        let mut missing = full();
        missing.as_object_mut().unwrap().remove("link");
        let error = serde_json::from_value::<StatusReport>(missing).unwrap_err();
        assert!(error.to_string().contains("`link`"), "{error}");
    }
}
