//! The grants that this satellite has issued: what lets the parent's people and programs act here.
//! The rules are `grant`'s; here grants are kept, changed and asked about while the box runs.
//!
//! [`Gate`] decides on what arrives, from memory, and tells each admitted stream when its grant is
//! over. [`GrantBook`] makes and ends grants: durable first, then in force at once. [`courier`] hands
//! them to the parent.

pub mod admin;
mod book;
pub mod courier;
mod gate;
mod record;
mod report;

pub use book::{GRANTS_MAX, GrantBook, GrantBookError, Issue, Issued, OpenGrantsError};
pub use gate::{AccessEnded, Admission, Asked, Gate};
pub(super) use record::GRANT_KEY;
pub(super) use record::{GRANTS, withhold};
pub use record::{Handover, KeptGrant, add_grants};
pub use report::{GrantsReport, kept_view};

#[cfg(test)]
mod tests;
