//! The grants that this satellite has issued: what lets the parent's people and programs act here.
//! The rules are `grant`'s; here grants are kept, changed and asked about while the box runs.
//!
//! [`Gate`] decides on what arrives, from memory, and tells each admitted stream when its grant is
//! over. [`GrantBook`] makes and ends grants: durable first, then in force at once.

mod book;
mod gate;
mod record;

pub use book::{GRANTS_MAX, GrantBook, GrantBookError, Issued, OpenGrantsError};
pub use gate::{AccessEnded, Admission, Asked, Gate};
pub(super) use record::GRANT_KEY;
pub use record::{Handover, KeptGrant, add_grants};

#[cfg(test)]
mod tests;
