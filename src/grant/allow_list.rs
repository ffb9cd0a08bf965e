//! Allow-lists: any, or only those named. The published platforms read an empty list in two
//! opposite ways (contract section 7); here nothing stored is ambiguous.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use crate::base::limit::foreign_text;

/// Most entries of one allow-list. A site's networks or a team's addresses are a few dozen;
/// what is longer is better said by a CIDR or by `any`.
pub const ALLOW_LIST_MAX_ENTRIES: usize = 256;

/// Entry that stands for everything in input.
const WILDCARD: &str = "*";

/// What an allow-list lets through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowList<T: Ord> {
    /// Everything, also a call that does not say what it comes from.
    Any,
    /// What is named, and no call that does not say what it comes from.
    Only(BTreeSet<T>),
}

/// Why a list in input is no allow-list.
#[derive(Debug, Error)]
pub enum InvalidAllowList {
    /// It could be meant either way, so it is not guessed.
    #[error("`*` stands beside other entries; write `*` alone to allow any, or leave it out")]
    WildcardMixed,
    /// More than [`ALLOW_LIST_MAX_ENTRIES`].
    #[error("it has {count} entries, at most {ALLOW_LIST_MAX_ENTRIES} are kept; name wider networks")]
    TooLong {
        /// As many as were given.
        count: usize,
    },
    /// One entry is not what the list holds.
    #[error("entry `{entry}` cannot be used")]
    Entry {
        /// The entry, shortened.
        entry: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl<T: Ord> AllowList<T> {
    /// Reads input: `[]` and `["*"]` are [`AllowList::Any`].
    pub(super) fn read<E>(
        entries: &[String],
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Self, InvalidAllowList>
    where
        E: Error + Send + Sync + 'static,
    {
        if entries.len() > ALLOW_LIST_MAX_ENTRIES {
            return Err(InvalidAllowList::TooLong { count: entries.len() });
        }
        let wildcards = entries.iter().filter(|entry| entry.trim() == WILDCARD).count();
        if wildcards == entries.len() {
            return Ok(Self::Any);
        }
        if wildcards > 0 {
            return Err(InvalidAllowList::WildcardMixed);
        }
        let named = entries.iter().map(|entry| {
            parse(entry.trim()).map_err(|error| InvalidAllowList::Entry {
                entry: foreign_text(entry),
                source: Box::new(error),
            })
        });
        Ok(Self::Only(named.collect::<Result<_, _>>()?))
    }

    /// Whether a call from `value` is let through by equality.
    pub fn allows(&self, value: Option<&T>) -> bool {
        match self {
            Self::Any => true,
            Self::Only(named) => value.is_some_and(|value| named.contains(value)),
        }
    }

    pub(super) const fn view(&self) -> AllowListView<'_, T> {
        AllowListView(self)
    }
}

impl AllowList<IpNet> {
    /// Whether a call from this address is let through. An IPv4-mapped IPv6 address is the
    /// IPv4 address that it maps.
    pub fn allows_source(&self, source: Option<IpAddr>) -> bool {
        match self {
            Self::Any => true,
            Self::Only(named) => source.is_some_and(|source| {
                let source = source.to_canonical();
                named.iter().any(|network| network.contains(&source))
            }),
        }
    }
}

/// A text that is neither a CIDR nor an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a network such as 203.0.113.0/24 or 2001:db8::/32, or one address, is needed")]
pub(super) struct InvalidNetwork;

/// Reads a CIDR or a bare address. Host bits are cleared; IPv4-mapped networks become IPv4, so
/// that they match what [`AllowList::allows_source`] compares.
pub(super) fn read_network(text: &str) -> Result<IpNet, InvalidNetwork> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| InvalidNetwork)?.trunc(),
    };
    let IpNet::V6(v6) = network else {
        return Ok(network);
    };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    match mapped.map(|(address, prefix)| Ipv4Net::new(address, prefix)) {
        Some(Ok(v4)) => Ok(IpNet::V4(v4)),
        Some(Err(_)) | None => Ok(network),
    }
}

/// An allow-list in JSON output: a list, or the word `any`.
#[derive(Debug)]
pub(super) struct AllowListView<'a, T: Ord>(&'a AllowList<T>);

impl<T: Ord + fmt::Display> Serialize for AllowListView<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            AllowList::Any => serializer.serialize_str("any"),
            AllowList::Only(named) => serializer.collect_seq(named.iter().map(ToString::to_string)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn networks(entries: &[&str]) -> Result<AllowList<IpNet>, InvalidAllowList> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        AllowList::read(&entries, read_network)
    }

    fn allows(entries: &[&str], source: &str) -> bool {
        networks(entries)
            .unwrap()
            .allows_source(Some(source.parse().unwrap()))
    }

    #[test]
    fn empty_and_wildcard_are_any_and_a_mixture_is_refused() {
        assert_eq!(networks(&[]).unwrap(), AllowList::Any);
        assert_eq!(networks(&[" * "]).unwrap(), AllowList::Any);
        assert!(matches!(
            networks(&["203.0.113.9", "*"]),
            Err(InvalidAllowList::WildcardMixed)
        ));
    }

    #[test]
    fn a_list_that_names_nothing_lets_nothing_through() {
        let none = AllowList::<IpNet>::Only(BTreeSet::new());
        assert!(!none.allows_source(Some(IpAddr::from([203, 0, 113, 9]))));
        assert!(!none.allows_source(None));
    }

    #[test]
    fn host_bits_are_cleared_and_the_whole_network_matches() {
        assert_eq!(
            networks(&["203.0.113.9/24"]).unwrap(),
            networks(&["203.0.113.0/24"]).unwrap()
        );
        assert!(allows(&["203.0.113.9/24"], "203.0.113.200"));
    }

    #[test]
    fn mapped_sources_and_mapped_networks_are_ipv4() {
        assert!(allows(&["203.0.113.0/24"], "::ffff:203.0.113.7"));
        assert!(allows(&["::ffff:203.0.113.0/120"], "203.0.113.7"));
        assert!(allows(&["::ffff:203.0.113.7"], "203.0.113.7"));
        assert!(!allows(&["::ffff:203.0.113.0/120"], "203.0.112.7"));
        assert!(
            !allows(&["::/0"], "::ffff:203.0.113.7"),
            "all of IPv6 holds no IPv4"
        );
        assert!(allows(&["::/0"], "2001:db8::1"));
    }

    #[test]
    fn an_error_names_the_entry_and_the_length_is_bounded() {
        let error = networks(&["203.0.113.0/24", "203.0.113.0/33"]).unwrap_err();
        assert!(error.to_string().contains("`203.0.113.0/33`"));
        let many = vec!["203.0.113.9"; ALLOW_LIST_MAX_ENTRIES + 1];
        assert!(matches!(
            networks(&many),
            Err(InvalidAllowList::TooLong { count: 257 })
        ));
    }
}
