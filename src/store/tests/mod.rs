//! The store as its users meet it. The tables here are made up.

#![allow(clippy::unwrap_used)]

mod backup;
pub(super) mod disk;
mod failing_disk;
mod opening;
mod power_cut;
mod refusing;
mod schema;
mod sealing;
mod wear;

use serde::{Deserialize, Serialize};

use super::database::{Schema, StoreError, Table};
use super::record::{Only, Record};
use super::state_key::StateKey;

/// The schema of most tests.
const SCHEMA: Schema = Schema {
    name: "test-store",
    version: 1,
    migrations: &[],
    sealed: &[],
};

const NOTES: Table<u64, Note> = Table::new("notes");
const TITLE: Table<Only, Note> = Table::new("title");

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    text: String,
}

impl Record for Note {
    const VERSION: u8 = 1;
}

fn note(text: impl Into<String>) -> Note {
    Note { text: text.into() }
}

/// A state key; each number is another.
fn state_key(number: u8) -> StateKey {
    let bytes: Vec<u8> = (0..32u8).map(|place| place.wrapping_mul(number)).collect();
    StateKey::parse(&bytes).unwrap()
}

/// What tests that care about neither write.
fn put_two(database: &super::database::Database, text: &str) -> Result<(), StoreError> {
    database.write(|w| {
        w.put(&TITLE, &Only, &note(text))?;
        w.put(&NOTES, &1, &note(text))
    })
}
