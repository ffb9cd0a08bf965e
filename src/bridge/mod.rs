//! Floor 7: the host-bridge: registry, embedded certificate authority, federation API, sessions,
//! operator API. Never imports `satellite`.

pub mod acceptance;
pub mod access;
pub mod admin_socket;
pub mod authorities;
pub mod certificate_authority;
pub mod daemon;
pub mod dial_back;
mod direct;
pub mod federation_api;
pub mod forwarded;
pub mod heartbeat;
pub mod held_grants;
pub mod http_listener;
pub mod ingress;
mod lent_body;
pub mod links;
pub mod material;
mod mcp;
mod metrics;
pub mod operator_api;
pub mod parent;
pub mod parent_calls;
pub mod peer_anchors;
pub mod peer_trust;
pub mod peer_view;
pub mod permission;
pub mod places;
mod plain_path;
pub mod platform;
pub mod registry;
pub mod reply;
mod request_body;
pub mod server_identity;
pub mod session;
pub mod settings;
mod upkeep;
