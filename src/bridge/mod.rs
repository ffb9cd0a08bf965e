//! Floor 7: the host-bridge: registry, embedded certificate authority, federation API, sessions,
//! operator API. Never imports `satellite`.

pub mod certificate_authority;
