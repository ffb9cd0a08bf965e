//! The real satellite (driver, store, tunnel, certificates) against a parent whose answers the test
//! scripts: what it does when the parent errs, forgets, lies or goes away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that it failed"
)]

mod anchors;
mod clock;
mod cluster;
mod daemon;
mod grants;
mod https;
mod join;
mod leave;
mod link;
mod membership;
mod node;
mod own_authority;
mod rejoin;
mod renewal;
#[path = "../scripted_parent/mod.rs"]
mod scripted_parent;
mod services;
#[path = "../support/small_disk.rs"]
mod small_disk;
mod state;
