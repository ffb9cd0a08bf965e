//! Which rows somebody asks for, as a value and as the query of a URL. Knows no store and no HTTP.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::entry::{AuditEntry, ExportedEntry};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;

/// Most entries of one page: a few hundred KiB of JSON, well below what a client reads at once.
pub const PAGE_MAX_ENTRIES: usize = 500;

/// Most rows that are looked at for one page: some milliseconds of reading. A page may be empty and
/// still have a next one.
pub const PAGE_MAX_ROWS: usize = 5_000;

/// From which end rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// For exports.
    #[default]
    OldestFirst,
    /// For the last few.
    NewestFirst,
}

/// Rows that are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditQuery {
    /// Of this peer.
    pub peer: Option<PeerId>,
    /// Under this grant.
    pub grant: Option<GrantId>,
    /// Of this subject.
    pub subject: Option<String>,
    /// From then on.
    pub since: Option<UnixTime>,
    /// Before then.
    pub until: Option<UnixTime>,
    /// From which end.
    pub order: Order,
    /// Where the page begins: what the page before gave as its next one.
    pub from: Option<u64>,
    /// How many at most; no more than [`PAGE_MAX_ENTRIES`].
    pub limit: Option<usize>,
}

/// One page of rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuditPage {
    /// In the order that was asked for.
    pub entries: Vec<ExportedEntry>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<u64>,
}

/// Why a URL's query is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidQuery {
    /// No such name.
    #[error("`{0}` cannot be asked for; known are peer, grant, subject, since, until, order, from and limit")]
    Unknown(String),
    /// A value that is none.
    #[error("`{name}` cannot be `{value}`")]
    Value {
        /// The name.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// Bad escapes.
    #[error("the query has a `%` that is no escape, or is not UTF-8")]
    Escape,
}

impl AuditQuery {
    /// Whether an entry is asked for.
    pub fn matches(&self, entry: &AuditEntry) -> bool {
        self.peer
            .is_none_or(|peer| entry.federation_peer_id == Some(peer))
            && self.grant.is_none_or(|grant| entry.grant == Some(grant))
            && self
                .subject
                .as_ref()
                .is_none_or(|subject| entry.remote_subject.as_ref() == Some(subject))
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }

    /// How many entries a page has at most.
    pub fn page_limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_MAX_ENTRIES).clamp(1, PAGE_MAX_ENTRIES)
    }

    /// As the query of a URL, without the `?`.
    pub fn to_url(&self) -> String {
        let mut url = String::new();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let separator = if url.is_empty() { "" } else { "&" };
                let _ = write!(url, "{separator}{name}={}", escaped(&value));
            }
        };
        add("peer", self.peer.map(|id| id.to_string()));
        add("grant", self.grant.map(|id| id.to_string()));
        add("subject", self.subject.clone());
        add("since", self.since.map(|time| time.to_string()));
        add("until", self.until.map(|time| time.to_string()));
        let newest = (self.order == Order::NewestFirst).then(|| "newest".to_owned());
        add("order", newest);
        add("from", self.from.map(|row| row.to_string()));
        add("limit", self.limit.map(|limit| limit.to_string()));
        url
    }

    /// Of the query of a URL, without the `?`.
    pub fn of_url(url: &str) -> Result<Self, InvalidQuery> {
        let mut query = Self::default();
        for pair in url.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescaped(value)?;
            match name {
                "peer" => query.peer = Some(parsed("peer", &value)?),
                "grant" => query.grant = Some(parsed("grant", &value)?),
                "subject" => query.subject = Some(value),
                "since" => query.since = Some(parsed("since", &value)?),
                "until" => query.until = Some(parsed("until", &value)?),
                "order" => {
                    query.order = match value.as_str() {
                        "oldest" => Order::OldestFirst,
                        "newest" => Order::NewestFirst,
                        _ => return Err(bad("order", &value)),
                    }
                }
                "from" => query.from = Some(parsed("from", &value)?),
                "limit" => query.limit = Some(parsed("limit", &value)?),
                other => return Err(InvalidQuery::Unknown(foreign_text(other))),
            }
        }
        Ok(query)
    }
}

fn bad(name: &'static str, value: &str) -> InvalidQuery {
    InvalidQuery::Value {
        name,
        value: foreign_text(value),
    }
}

fn parsed<T: std::str::FromStr>(name: &'static str, value: &str) -> Result<T, InvalidQuery> {
    value.parse().map_err(|_| bad(name, value))
}

/// Everything but what no URL needs to escape.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unescaped(text: &str) -> Result<String, InvalidQuery> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or(InvalidQuery::Escape)?;
        let decoded = crate::base::radix::HEXLOWER_PERMISSIVE
            .decode(digits)
            .map_err(|_| InvalidQuery::Escape)?;
        bytes.extend(decoded);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| InvalidQuery::Escape)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::tests::at;
    use super::super::{AuditAction, AuditEvent};
    use super::*;

    fn id(number: u128) -> PeerId {
        PeerId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn every_condition_counts() {
        let event = AuditEvent {
            federation_peer_id: Some(id(1)),
            remote_subject: Some("a".into()),
            ..AuditEvent::of(AuditAction::Request)
        };
        let entry = AuditEntry::new(&event, at(100));
        let asks = |url: &str| AuditQuery::of_url(url).unwrap().matches(&entry);
        assert!(asks("") && asks(&format!("peer={}", id(1))) && asks("subject=a"));
        assert!(asks("since=1970-01-01T00:01:40Z") && asks("until=1970-01-01T00:01:41Z"));
        for url in [
            &format!("peer={}", id(2)),
            &format!("grant={}", id(2)),
            "subject=b",
            "since=1970-01-01T00:01:41Z",
            "until=1970-01-01T00:01:40Z",
        ] {
            assert!(!asks(url), "{url}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for url in [
            "peer=x",
            "since=yesterday",
            "order=up",
            "limit=-1",
            "nonsense=1",
            "subject=%4",
        ] {
            let error = AuditQuery::of_url(url).unwrap_err().to_string();
            assert!(!error.is_empty(), "{url}");
        }
        assert_eq!(
            AuditQuery::of_url("limit=999999").unwrap().page_limit(),
            PAGE_MAX_ENTRIES
        );
        assert_eq!(AuditQuery::of_url("limit=0").unwrap().page_limit(), 1);
    }

    proptest! {
        #[test]
        fn a_query_survives_its_url(
            peer: Option<u128>, subject: Option<String>, since in proptest::option::of(0i64..4_000_000_000),
            from: Option<u64>, limit: Option<usize>, newest: bool,
        ) {
            let query = AuditQuery {
                peer: peer.map(id),
                subject,
                since: since.map(UnixTime::from_seconds),
                from,
                limit,
                order: if newest { Order::NewestFirst } else { Order::OldestFirst },
                ..AuditQuery::default()
            };
            prop_assert_eq!(AuditQuery::of_url(&query.to_url()).unwrap(), query);
        }

        #[test]
        fn any_url_is_a_query_or_refused(url: String) {
            let _ = AuditQuery::of_url(&url);
        }
    }
}
