//! Floor 7: the satellite: joins its parent, keeps the tunnel, sends heartbeats, answers the
//! parent. Never imports `bridge`.
