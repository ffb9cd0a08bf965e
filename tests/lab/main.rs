//! The lab: real routers, made of network namespaces. A satellite stands behind a masquerading
//! nftables router, its parent on the far side; nothing is forwarded inward. All of it lives in
//! namespaces that the test makes and removes; the host's own network is never touched. Several labs stand at a
//! time where there are test threads for them (`places`): `--test-threads=10` is enough, and `--show-output` tells
//! what each has measured.
//!
//! Needs root and the Debian packages `iproute2`, `nftables` and `conntrack`, some scenarios others
//! (`scripts/test` has the list). Where they are missing each test says `SKIPPED: … because …` on standard error and passes; with
//! `POWERNODE_LAB=required` it fails instead, so that a build machine cannot skip unnoticed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that it failed"
)]

mod direct;
mod federation;
mod flood;
mod joining;
mod ladder;
mod namespace;
mod places;
mod port_mapping;
mod prerequisites;
mod process;
mod programs;
mod proxy;
mod roaming;
mod secrets;
mod self_test;
mod staying;
mod stream;
mod topology;
mod wait;

/// The edge agent, as built for this test run.
const SATELLITE_BIN: &str = env!("CARGO_BIN_EXE_powernode-satellite");

/// The parent's end, as built for this test run.
const HOST_BRIDGE_BIN: &str = env!("CARGO_BIN_EXE_powernode-host-bridge");
