//! Floor 7: the satellite: joins its parent, keeps the tunnel, sends heartbeats, answers the
//! parent. Never imports `bridge`. The decisions are `machine::child`'s; here they are carried out.

pub mod payload;
pub mod status;
