//! Streams to published services over real QUIC on loopback: a real registry, real grants in a real
//! store, real local programs; the parent's end is a tunnel in the test's hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that it failed"
)]

mod contract;
mod flows;
mod limits;
mod noted;
mod program;
mod reaching;
mod shop;
mod streams;
