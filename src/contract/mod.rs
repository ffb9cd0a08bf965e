//! Floor 1: the parent's published federation contract as types and rules. JSON messages,
//! peer states, spawn payloads, join codes, acceptance tokens. No IO: text in, values out.

pub mod compatibility;
pub mod delivery;
pub mod invitation;
pub mod join_code;
pub mod message;
pub mod node;
pub mod peer;
pub mod redirect;
pub mod service;
pub mod token;

/// Base path of every contract resource.
pub const API_BASE: &str = "/api/v1/system";
/// In the capabilities of a heartbeat of who certifies itself: the fingerprints of its authorities, as a hint that its
/// trust bundle is another one. Our own.
pub const OWN_AUTHORITIES_CAPABILITY: &str = "own_authorities";
/// `code` of the 503 by which a host-bridge says that its platform may have done what was asked, though its answer is
/// lost. None of the published contract's.
pub const PLATFORM_ANSWER_LOST: &str = "PLATFORM_ANSWER_LOST";
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
/// Path under which a box becomes a node, below the platform's URL (contract section 4).
pub const NODE_ENROLL_PATH: &str = "/api/v1/system/node_api/enroll";
/// Path under which a node's certificate is renewed.
pub const NODE_REFRESH_PATH: &str = "/api/v1/system/node_api/enroll/refresh";
/// Path of the operator's peers (contract section 9).
pub const FEDERATION_PEERS_PATH: &str = "/api/v1/system/sdwan/federation_peers";
/// Path of one resource, followed by its kind and id (contract section 8).
pub const RESOURCES_PATH: &str = "/api/v1/system/federation_api/resources";
/// Path of the subscriptions (contract section 8).
pub const SUBSCRIPTIONS_PATH: &str = "/api/v1/system/federation_api/subscriptions";

/// Path under which a satellite hands its grants to the host-bridge: over its own tunnel alone. None
/// of the published contract's.
pub const TUNNEL_GRANTS_PATH: &str = "/tunnel/v1/grants";
/// Path of a satellite's last notice, over its own tunnel.
pub const TUNNEL_LEAVE_PATH: &str = "/tunnel/v1/leave";

/// Header in which the host-bridge tells a satellite who of its operators asks, as it has
/// authenticated them.
pub const SUBJECT_HEADER: &str = "x-powernode-subject";
/// Header in which an operator gives the host-bridge a grant's token to be shown to a satellite:
/// `Authorization` holds the operator's own.
pub const GRANT_HEADER: &str = "x-powernode-grant";
/// Header in which the host-bridge says of `X-Sdwan-Network` that its bridge there is down, by the
/// word `inactive`.
pub const NETWORK_STATE_HEADER: &str = "x-sdwan-network-state";

/// Path under which a satellite has an endpoint of its own dialled, over its tunnel. None of the
/// published contract's.
pub const TUNNEL_DIAL_BACK_PATH: &str = "/tunnel/v1/dial_back";
/// Path under which a satellite has its host-bridge dial it for a tunnel, over the present one.
pub const TUNNEL_DIRECT_PATH: &str = "/tunnel/v1/direct";

/// The contract version that this build speaks.
pub const CONTRACT_VERSION: u32 = 1;
