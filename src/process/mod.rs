//! Floor 3: what every daemon of ours needs around its work: configuration, logs, the only clock,
//! the supervisor that owns all tasks, and the talk with the service manager. Knows nothing of
//! peers, tunnels or stores.
