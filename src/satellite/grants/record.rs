//! How grants lie in the satellite's store, and the step that brought them there.

use serde::{Deserialize, Serialize};

use crate::base::id::{GrantId, PeerId};
use crate::base::secret::{Secret, stored};
use crate::grant::Grant;
use crate::store::database::{StoreError, Table, Writer};
use crate::store::record::{Only, Record};

/// The grants.
pub(in crate::satellite) const GRANTS: Table<GrantId, KeptGrant> = Table::new("grants");

/// Under what their tokens are signed. Sealed where there is a state key.
pub(in crate::satellite) const GRANT_KEY: Table<Only, GrantKeyRecord> = Table::new("grant_key");

/// What is known of the book as a whole.
pub(super) const BOOK: Table<Only, BookRecord> = Table::new("grant_book");

/// A grant and what became of it on the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptGrant {
    /// As it was issued, and how it ended.
    pub grant: Grant,
    /// Whether the parent has it.
    pub handover: Handover,
    /// The grant under which it was asked for; it ends with that one.
    pub derived_from: Option<GrantId>,
}

/// What the parent is to be told of a grant, and whether it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// Nothing: the owner hands the token over.
    ByHand,
    /// The grant and its token.
    Due,
    /// The parent has acknowledged them.
    Done,
    /// The parent has them, and that they are revoked is to be told.
    RevocationDue,
    /// The parent has acknowledged the end.
    RevocationDone,
}

/// The key of the tokens' signatures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::satellite) struct GrantKeyRecord {
    #[serde(with = "stored")]
    pub(super) secret: Secret,
}

/// See [`BOOK`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BookRecord {
    /// The peering whose operator grant must not be made by itself: the store that would say whether
    /// it was revoked was lost.
    pub(super) withheld_from: Option<PeerId>,
}

impl Record for KeptGrant {
    const VERSION: u8 = 1;
}

impl Record for GrantKeyRecord {
    const VERSION: u8 = 1;
}

impl Record for BookRecord {
    const VERSION: u8 = 1;
}

/// The schema's step to grants. The tables come with their first rows; the new version keeps a
/// program away that would write the key unsealed when it makes the file anew.
pub fn add_grants(_writer: &mut Writer<'_>) -> Result<(), StoreError> {
    Ok(())
}

/// Keeps the operator grant of a peering from being made by itself: the store was lost, and nobody can
/// tell whether the owner had revoked it.
pub(in crate::satellite) fn withhold(writer: &mut Writer<'_>, peer: PeerId) -> Result<(), StoreError> {
    let book = BookRecord {
        withheld_from: Some(peer),
    };
    writer.put(&BOOK, &Only, &book)
}
