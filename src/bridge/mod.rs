//! Floor 7: the host-bridge: registry, embedded certificate authority, federation API, sessions,
//! operator API. Never imports `satellite`.

pub mod acceptance;
pub mod certificate_authority;
pub mod heartbeat;
pub mod rate;
pub mod registry;
pub mod reply;
pub mod session;
