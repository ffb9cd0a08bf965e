//! What an operator installs, tried as an operator meets it: the packages and the hardened units
//! under a real systemd, the container images' file systems, the OpenWrt script, the release.
//!
//! systemd runs as the first process of a throw-away container whose root is an overlay of this
//! machine's: nothing outside of it is touched. What a machine cannot do is skipped, and said.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod container;
mod cross;
mod debian;
mod documents;
mod drop_ins;
mod image;
mod openwrt;
mod prerequisites;
mod processors;
mod release;
#[path = "../support/mod.rs"]
mod support;
mod units;
