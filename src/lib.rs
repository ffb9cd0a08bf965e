//! The library behind `powernode-satellite` and `powernode-host-bridge`: a satellite on an edge
//! box behind NAT joins its parent platform, stays connected through a tunnel and exposes local
//! services under grants.
//!
//! Modules stand on floors and import only downward (docs/ARCHITECTURE.md; `tests/architecture.rs`
//! checks it). Floors 0 to 2 are pure: no clock, socket, file, task or randomness in them.

pub mod audit;
pub mod base;
pub mod bridge;
pub mod cli;
pub mod contract;
pub mod grant;
pub mod identity;
pub mod machine;
pub mod process;
pub mod reach;
pub mod satellite;
pub mod store;
pub mod tunnel;
pub mod wire;
