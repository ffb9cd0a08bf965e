//! Floor 4: the embedded store. One redb file, typed tables of versioned records, migrations, and
//! the checksummed second copy for what must outlive a broken file, and the seals on what is secret.
//! Knows no record of the floors above.
//!
//! [`record`] says how a value and a key become bytes, [`database`] is the file with its reads,
//! writes and schema, [`backup`] copies it for keeping, [`patience`] waits for whoever has it, [`copy`] is the second copy, [`seal`] encrypts what is secret with a [`state_key`]. redb is seen by this module alone.

pub mod audit_log;
mod backend;
pub mod backup;
pub mod copy;
pub mod database;
mod error;
mod file;
mod generation;
pub mod patience;
pub mod record;
mod rewrite;
mod schema;
pub mod seal;
pub mod state_key;
mod transaction;

#[cfg(test)]
mod tests;
