//! The rows of the store: what is in each, and how it was written before.

use serde::{Deserialize, Serialize};

use super::version_1;
use crate::base::time::UnixTime;
use crate::contract::message::{OurEndpoint, SchemaCompatibility};
use crate::machine::join::JoinState;
use crate::machine::mapping_lease::MappingRecord;
use crate::machine::own_authority::Succession;
use crate::store::database::Table;
use crate::store::record::{Only, Record, RecordError};

pub(super) const MEMBERSHIP: Table<Only, StoredState> = Table::new("membership");
pub(super) const FACTS: Table<Only, Facts> = Table::new("facts");
pub(super) const HANDED_OVER: Table<Only, HandedOver> = Table::new("cluster_handed_over");
pub(super) const MAPPINGS_V4: Table<Only, StoredMappings> = Table::new("mappings_v4");
pub(super) const MAPPINGS_V6: Table<Only, StoredMappings> = Table::new("mappings_v6");
pub(super) const HTTPS_MAPPINGS_V4: Table<Only, StoredMappings> = Table::new("https_mappings_v4");
pub(super) const HTTPS_MAPPINGS_V6: Table<Only, StoredMappings> = Table::new("https_mappings_v6");

pub(super) const SUCCESSION: Table<Only, StoredSuccession> = Table::new("own_authority_succession");

/// Which addresses a mapping is for, and what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4, for HTTPS.
    HttpsV4,
    /// IPv6, for HTTPS.
    HttpsV6,
}

impl MappingFamily {
    pub(super) const fn table(self) -> &'static Table<Only, StoredMappings> {
        match self {
            Self::V4 => &MAPPINGS_V4,
            Self::V6 => &MAPPINGS_V6,
            Self::HttpsV4 => &HTTPS_MAPPINGS_V4,
            Self::HttpsV6 => &HTTPS_MAPPINGS_V6,
        }
    }
}

/// What may exist on routers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredMappings(pub(super) Vec<MappingRecord>);

impl Record for StoredMappings {
    const VERSION: u8 = 1;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredState(pub(super) JoinState);

impl Record for StoredState {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Result<Self, RecordError> {
        match version {
            1 => version_1::read(bytes).map(Self),
            found => Err(RecordError::UnknownVersion {
                found,
                known: Self::VERSION,
            }),
        }
    }
}

/// A change of the box's own authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredSuccession(pub(super) Succession);

impl Record for StoredSuccession {
    const VERSION: u8 = 1;
}

/// What is good to know again after a restart, and no loss if it is old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The parent's last acknowledgement, trusted time.
    pub last_acknowledged_at: Option<UnixTime>,
    /// The last time seen from the parent, advanced to when this was written.
    pub seen_from_parent: Option<UnixTime>,
    /// Where the parent says that it can be reached.
    pub our_endpoints: Vec<OurEndpoint>,
    /// How the versions fit, as the parent says.
    pub schema_compatibility: Option<SchemaCompatibility>,
    /// Bridges that answered, the latest first: name and address.
    pub good_addresses: Vec<(String, std::net::SocketAddr)>,
}

impl Record for Facts {
    const VERSION: u8 = 1;
}

/// The cluster's part of an accept that the hook has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// By what the hook knows it again.
    pub key: String,
    /// When.
    pub at: UnixTime,
}

impl Record for HandedOver {
    const VERSION: u8 = 1;
}
