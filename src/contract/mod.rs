//! Floor 1: the parent's published federation contract as types and rules. JSON messages,
//! peer states, spawn payloads, join codes, acceptance tokens. No IO: text in, values out.

pub mod invitation;
pub mod join_code;
pub mod message;
pub mod peer;
pub mod token;

/// Base path of every contract resource.
pub const API_BASE: &str = "/api/v1/system";
/// Path of accept (contract section 3).
pub const ACCEPT_PATH: &str = "/api/v1/system/federation_api/accept";
/// Path of the heartbeat (contract section 5).
pub const HEARTBEAT_PATH: &str = "/api/v1/system/federation_api/heartbeat";
/// Path of the service catalog (contract section 8).
pub const SERVICE_CATALOG_PATH: &str = "/api/v1/system/federation_api/service_catalog";
/// Path of the trust bundle (contract section 8).
pub const TRUST_BUNDLE_PATH: &str = "/api/v1/system/federation_api/trust_bundle";
/// Path under which a federation certificate is renewed over mTLS. The published contract has
/// none for peers; this one mirrors `node_api/enroll/refresh` (contract section 4).
pub const CERTIFICATE_REFRESH_PATH: &str = "/api/v1/system/federation_api/certificate/refresh";
/// Path of the operator's peers (contract section 9).
pub const FEDERATION_PEERS_PATH: &str = "/api/v1/system/sdwan/federation_peers";

/// Path under which a satellite has an endpoint of its own dialled, over its tunnel. None of the
/// published contract's.
pub const TUNNEL_DIAL_BACK_PATH: &str = "/tunnel/v1/dial_back";

/// The contract version that this build speaks.
pub const CONTRACT_VERSION: u32 = 1;
