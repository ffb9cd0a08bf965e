//! One entry of the log: an event and its time, as the bytes that the chain seals, and as the JSON that
//! an excerpt shows. Knows no row, no chain and no store.
//!
//! The bytes are a version byte and postcard. They are hashed as they stand and never written again, so
//! a later version is read beside the earlier ones, not in their place.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{GrantId, PeerId, TraceId};
use crate::base::limit::foreign_text;
use crate::base::time::{TrustedTime, UnixTime, rfc3339};

/// Version byte of the entries that this build writes.
const ENTRY_VERSION: u8 = 1;

/// An event with its time, texts bounded. The fields, in this order, are version 1 of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When it was noted.
    pub at: UnixTime,
    /// Whether the clock was in doubt then.
    pub clock_in_doubt: bool,
    /// [`AuditAction::word`]; a later program may have more of them.
    pub action: String,
    /// See [`AuditEvent`].
    pub federation_peer_id: Option<PeerId>,
    /// See [`AuditEvent`].
    pub remote_subject: Option<String>,
    /// See [`AuditEvent`].
    pub actor: Option<String>,
    /// See [`AuditEvent`].
    pub grant: Option<GrantId>,
    /// See [`AuditEvent`].
    pub object: Option<String>,
    /// See [`AuditEvent`].
    pub source: Option<SocketAddr>,
    /// See [`AuditEvent`].
    pub trace: Option<u64>,
    /// See [`AuditEvent`].
    pub bytes_in: u64,
    /// See [`AuditEvent`].
    pub bytes_out: u64,
    /// Milliseconds that it lasted.
    pub duration_ms: u64,
    /// [`AuditOutcome::word`].
    pub outcome: String,
    /// Why, where it was not done.
    pub reason: Option<String>,
}

/// Why an entry's bytes do not read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnreadableEntry {
    /// Of a later program.
    #[error("it was written by a newer program (version {0}); update this one to read it")]
    Newer(u8),
    /// Not an entry.
    #[error("its bytes are damaged")]
    Damaged,
}

impl AuditEntry {
    /// The event, noted at this time. Texts of other sides are cut to a bound and put on one line.
    pub fn new(event: &AuditEvent, time: TrustedTime) -> Self {
        let text = |text: &Option<String>| text.as_deref().map(foreign_text);
        Self {
            at: time.now,
            clock_in_doubt: time.doubt.is_some(),
            action: event.action.word().to_owned(),
            federation_peer_id: event.federation_peer_id,
            remote_subject: text(&event.remote_subject),
            actor: text(&event.actor),
            grant: event.grant,
            object: text(&event.object),
            source: event.source,
            trace: event.trace.map(|TraceId(number)| number),
            bytes_in: event.bytes_in,
            bytes_out: event.bytes_out,
            duration_ms: millis(event.duration),
            outcome: event.outcome.word().to_owned(),
            reason: event.outcome.reason().map(foreign_text),
        }
    }

    /// The entry that says how many others are not there.
    pub fn of_loss(lost: u64, time: TrustedTime) -> Self {
        let reason = format!("{lost} events came faster than they could be written and are not in this log");
        let event = AuditEvent {
            outcome: AuditOutcome::Failed(reason),
            ..AuditEvent::of(AuditAction::EventsLost)
        };
        Self::new(&event, time)
    }

    /// The bytes that the chain seals.
    pub fn to_bytes(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![ENTRY_VERSION])
    }

    /// Reads the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UnreadableEntry> {
        let (&version, content) = bytes.split_first().ok_or(UnreadableEntry::Damaged)?;
        match version {
            ENTRY_VERSION => match postcard::take_from_bytes(content) {
                Ok((entry, [])) => Ok(entry),
                _ => Err(UnreadableEntry::Damaged),
            },
            0 => Err(UnreadableEntry::Damaged),
            newer => Err(UnreadableEntry::Newer(newer)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An entry as excerpts show it: one JSON object a line, with the contract's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedEntry {
    /// The row's number.
    pub row: u64,
    /// The row's link in the chain, in hex: what two excerpts can be compared by.
    pub hash: String,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: UnixTime,
    /// What was done.
    pub action: String,
    /// On whose behalf.
    pub federation_peer_id: Option<PeerId>,
    /// The grant's subject.
    pub remote_subject: Option<String>,
    /// The person or program.
    pub actor: Option<String>,
    /// The grant.
    pub grant_id: Option<GrantId>,
    /// The service, resource or grant.
    pub object: Option<String>,
    /// Where from: address and port, or the address where the port is not known.
    pub source: Option<String>,
    /// As in both sides' logs.
    pub trace_id: Option<String>,
    /// Bytes from the peer.
    pub bytes_in: u64,
    /// Bytes to the peer.
    pub bytes_out: u64,
    /// Milliseconds.
    pub duration_ms: u64,
    /// `done`, `refused`, `cut` or `failed`; `unreadable` where the row is.
    pub outcome: String,
    /// Why, where it was not done.
    pub reason: Option<String>,
    /// Whether the clock was in doubt.
    pub clock_in_doubt: bool,
}

impl ExportedEntry {
    /// Of a row.
    pub fn new(row: u64, hash: &super::chain::RowHash, entry: AuditEntry) -> Self {
        Self {
            row,
            hash: hash.to_string(),
            at: entry.at,
            action: entry.action,
            federation_peer_id: entry.federation_peer_id,
            remote_subject: entry.remote_subject,
            actor: entry.actor,
            grant_id: entry.grant,
            object: entry.object,
            source: entry.source.map(|source| match source.port() {
                0 => source.ip().to_string(),
                _ => source.to_string(),
            }),
            trace_id: entry.trace.map(|number| TraceId(number).to_string()),
            bytes_in: entry.bytes_in,
            bytes_out: entry.bytes_out,
            duration_ms: entry.duration_ms,
            outcome: entry.outcome,
            reason: entry.reason,
            clock_in_doubt: entry.clock_in_doubt,
        }
    }

    /// In the place of a row that cannot be read: an excerpt leaves nothing out in silence.
    pub fn unreadable(row: u64, why: &str) -> Self {
        Self {
            row,
            hash: String::new(),
            at: UnixTime::EPOCH,
            action: "unreadable".to_owned(),
            federation_peer_id: None,
            remote_subject: None,
            actor: None,
            grant_id: None,
            object: None,
            source: None,
            trace_id: None,
            bytes_in: 0,
            bytes_out: 0,
            duration_ms: 0,
            outcome: "unreadable".to_owned(),
            reason: Some(why.to_owned()),
            clock_in_doubt: true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use crate::base::radix::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::base::time::ClockDoubt;

    pub(crate) fn at(seconds: i64) -> TrustedTime {
        TrustedTime {
            now: UnixTime::from_seconds(seconds),
            doubt: None,
        }
    }

    fn full_event() -> AuditEvent {
        AuditEvent {
            federation_peer_id: "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().ok(),
            remote_subject: Some("parent-operator@x".into()),
            actor: Some("alice".into()),
            grant: "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8f".parse().ok(),
            object: Some("ssh".into()),
            source: "192.0.2.7:50000".parse().ok(),
            trace: Some(TraceId(0xabc)),
            bytes_in: 300,
            bytes_out: 70_000,
            duration: Duration::from_millis(1_500),
            outcome: AuditOutcome::Cut("the grant was revoked".into()),
            ..AuditEvent::of(AuditAction::ServiceClosed)
        }
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let entry = AuditEntry::new(&full_event(), at(1_800_000_000));
        let bytes = entry.to_bytes().unwrap();
        assert_eq!(
            HEXLOWER.encode(&bytes),
            "0180c8ceb40d000e736572766963655f636c6f736564\
             01100192f0c17c1e7a539d0e3f2b5a6c7d8e0111706172656e742d6f70657261746f72407801\
             05616c69636501100192f0c17c1e7a539d0e3f2b5a6c7d8f01037373680100c0000207d08603\
             01bc15ac02f0a204dc0b036375740115746865206772616e7420776173207265766f6b6564"
        );
        assert_eq!(AuditEntry::from_bytes(&bytes).unwrap(), entry);
    }

    #[test]
    fn other_bytes_are_refused_and_newer_ones_named() {
        let bytes = AuditEntry::new(&full_event(), at(1)).to_bytes().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(
                AuditEntry::from_bytes(&bytes[..end]),
                Err(UnreadableEntry::Damaged)
            );
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(AuditEntry::from_bytes(&longer), Err(UnreadableEntry::Damaged));
        assert_eq!(AuditEntry::from_bytes(&[2, 1]), Err(UnreadableEntry::Newer(2)));
    }

    #[test]
    fn an_export_has_the_contracts_names() {
        let hash = super::super::chain::RowHash::from_bytes([0xab; 32]);
        let entry = AuditEntry::new(&full_event(), at(1_800_000_000));
        let json = serde_json::to_value(ExportedEntry::new(7, &hash, entry)).unwrap();
        assert_eq!(json["federation_peer_id"], "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e");
        assert_eq!(json["remote_subject"], "parent-operator@x");
        assert_eq!(json["at"], "2027-01-15T08:00:00Z");
        assert_eq!(json["source"], "192.0.2.7:50000");
        assert_eq!(json["trace_id"], "0000000000000abc");
        assert_eq!(json["reason"], "the grant was revoked");
    }

    #[test]
    fn a_clock_in_doubt_is_noted() {
        let time = TrustedTime {
            doubt: Some(ClockDoubt::BehindBuild),
            ..at(5)
        };
        assert!(AuditEntry::new(&full_event(), time).clock_in_doubt);
    }

    proptest! {
        #[test]
        fn any_event_comes_back_bounded_and_on_one_line(
            subject: Option<String>, actor: Option<String>, why: String, seconds: i64, bytes: u64
        ) {
            let event = AuditEvent {
                remote_subject: subject,
                actor,
                bytes_out: bytes,
                outcome: AuditOutcome::Refused(why),
                ..AuditEvent::of(AuditAction::Request)
            };
            let entry = AuditEntry::new(&event, at(seconds));
            let stored = entry.to_bytes().unwrap();
            prop_assert!(stored.len() < 8 * 1024);
            let texts = [&entry.remote_subject, &entry.actor, &entry.reason];
            prop_assert!(texts.into_iter().flatten().all(|text| !text.contains('\n')));
            prop_assert_eq!(AuditEntry::from_bytes(&stored).unwrap(), entry);
        }

        #[test]
        fn any_bytes_are_an_entry_or_refused(bytes: Vec<u8>) {
            let _ = AuditEntry::from_bytes(&bytes);
        }
    }
}
