//! The hash chain: every row's hash is over its number, its bytes and the hash of the row before, so
//! that no row can be changed, left out, put in or moved without the next one telling. Where the chain
//! begins and ends is kept beside it, as [`ChainEnds`]: retention moves the begin, and a cut end shows.
//!
//! What it does not do: who can write the whole store can compute a whole new chain. A [`RowPin`] that
//! was noted elsewhere, such as the head that `audit verify` prints, finds that out, too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::base::radix::HEXLOWER_PERMISSIVE;

/// Begins what is hashed, so that a hash of this chain is no hash of anything else.
const ROW_DOMAIN: &[u8] = b"powernode audit row v1\0";

/// Begins what the first row's predecessor is hashed of.
const BEGIN_DOMAIN: &[u8] = b"powernode audit begin v1\0";

/// Number of a log's first row.
pub const FIRST_ROW: u64 = 1;

/// Random bytes that tell one log from all others, so that no row of one fits into another.
pub type LogId = [u8; 16];

/// A row's link in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowHash([u8; 32]);

/// Text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("it is not a row's hash: 64 hex digits")]
pub struct InvalidHash;

impl RowHash {
    /// What the first row of a log follows.
    pub fn begin(log: &LogId) -> Self {
        Self(
            Sha256::new()
                .chain_update(BEGIN_DOMAIN)
                .chain_update(log)
                .finalize()
                .into(),
        )
    }

    /// The hash of a row that follows `previous`.
    pub fn following(previous: &Self, number: u64, entry: &[u8]) -> Self {
        let hash = Sha256::new()
            .chain_update(ROW_DOMAIN)
            .chain_update(number.to_be_bytes())
            .chain_update(previous.0)
            .chain_update(entry);
        Self(hash.finalize().into())
    }

    /// As stored.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for RowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RowHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let bytes = HEXLOWER_PERMISSIVE
            .decode(text.trim().as_bytes())
            .map_err(|_| InvalidHash)?;
        bytes.try_into().map(Self).map_err(|_| InvalidHash)
    }
}

/// A row as it is stored under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its number, once more: a row that was moved says where from.
    pub number: u64,
    /// The bytes of an [`AuditEntry`](super::entry::AuditEntry).
    pub entry: Vec<u8>,
    /// [`RowHash::following`] the row before.
    pub hash: RowHash,
}

/// Where a log begins and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEnds {
    /// Which log.
    pub log: LogId,
    /// Number of the oldest row that is kept.
    pub first: u64,
    /// Hash of the row before it; `None` where that row was damaged when its time was over.
    pub before_first: Option<RowHash>,
    /// Number of the next row.
    pub next: u64,
    /// Hash of the newest row.
    pub head: RowHash,
}

impl ChainEnds {
    /// Of a log without rows.
    pub fn begin(log: LogId) -> Self {
        let begin = RowHash::begin(&log);
        Self {
            log,
            first: FIRST_ROW,
            before_first: Some(begin),
            next: FIRST_ROW,
            head: begin,
        }
    }

    /// The next row, with these bytes; the end moves behind it.
    pub fn append(&mut self, entry: Vec<u8>) -> AuditRow {
        let hash = RowHash::following(&self.head, self.next, &entry);
        let row = AuditRow {
            number: self.next,
            entry,
            hash,
        };
        self.head = hash;
        self.next += 1;
        row
    }

    /// How many rows are kept.
    pub const fn rows(&self) -> u64 {
        self.next.saturating_sub(self.first)
    }
}

/// A row that was noted elsewhere: `1234:<hash>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPin {
    /// Its number.
    pub number: u64,
    /// Its hash then.
    pub hash: RowHash,
}

impl fmt::Display for RowPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

/// Text that is no noted row.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a noted row is written NUMBER:HASH, as `audit verify` prints its newest one")]
pub struct InvalidPin;

impl FromStr for RowPin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let (number, hash) = text.trim().split_once(':').ok_or(InvalidPin)?;
        Ok(Self {
            number: number.parse().map_err(|_| InvalidPin)?,
            hash: hash.parse().map_err(|_| InvalidPin)?,
        })
    }
}

/// The first place where a log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChainBreak {
    /// A row's bytes are not those that were written.
    #[error("row {row} was changed: its content does not match its hash, or the row before it was replaced")]
    Changed {
        /// The row.
        row: u64,
    },
    /// A row's bytes are no row.
    #[error("row {row} was changed: it is not readable as a row any more")]
    Unreadable {
        /// The row.
        row: u64,
    },
    /// Rows are gone from the middle, or from the begin without retention having removed them.
    #[error("rows are missing: {first} to {last} were removed")]
    Missing {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// The newest rows are gone.
    #[error("the newest rows are missing: {first} to {last} were removed")]
    CutEnd {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// A row stands in another's place.
    #[error("rows were moved: row {found} stands in the place of row {row}")]
    Moved {
        /// The place.
        row: u64,
        /// What stands there.
        found: u64,
    },
    /// A row that this log did not write, or had removed.
    #[error("row {row} was put in: the log keeps rows {first} to {last} only")]
    PutIn {
        /// The row.
        row: u64,
        /// The oldest row.
        first: u64,
        /// The newest row.
        last: u64,
    },
    /// The record of begin and end is gone.
    #[error("the record of where the log begins and ends is gone, and row {row} is still there")]
    NoEnds {
        /// The first row found.
        row: u64,
    },
    /// All rows fit, but not the record of the end.
    #[error("row {row}, the newest, is not the one that was written last")]
    OtherEnd {
        /// The row.
        row: u64,
    },
    /// A row is not what was noted of it elsewhere: the whole chain was written anew.
    #[error("row {row} is not the one that was noted: the log was written anew")]
    NotAsNoted {
        /// The row.
        row: u64,
    },
    /// A noted row is not there to be compared.
    #[error("row {row} was noted, but the log has rows {first} to {last} only")]
    NotedRowGone {
        /// The row.
        row: u64,
        /// The oldest row.
        first: u64,
        /// The newest row.
        last: u64,
    },
}

/// A log that is as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// How many rows.
    pub rows: u64,
    /// Number of the oldest.
    pub first: u64,
    /// Whether the oldest could be tied to the one that retention removed before it.
    pub first_is_tied: bool,
    /// The newest, to be noted elsewhere; `None` while there is none.
    pub head: Option<String>,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(head) = &self.head else {
            return f.write_str("the audit log is whole: it has no rows yet");
        };
        if self.rows == 0 {
            return write!(
                f,
                "the audit log is whole: retention has removed all rows; the last was {head}"
            );
        }
        let last = self.first + (self.rows - 1);
        write!(
            f,
            "the audit log is whole: rows {} to {last} are as they were written",
            self.first
        )?;
        if self.first > FIRST_ROW {
            f.write_str(", the earlier ones were removed by retention")?;
        }
        if !self.first_is_tied {
            f.write_str(" (the one before the oldest was damaged when its time was over)")?;
        }
        write!(f, "; newest row {head}")
    }
}

/// Goes through a log, row by row, oldest first.
#[derive(Debug)]
pub struct Verifier {
    ends: Option<ChainEnds>,
    pin: Option<RowPin>,
    previous: Option<RowHash>,
    next: u64,
}

impl Verifier {
    /// Of a log with these ends; `pin` is a row that was noted elsewhere.
    pub const fn new(ends: Option<ChainEnds>, pin: Option<RowPin>) -> Self {
        let (previous, next) = match &ends {
            Some(ends) => (ends.before_first, ends.first),
            None => (None, FIRST_ROW),
        };
        Self {
            ends,
            pin,
            previous,
            next,
        }
    }

    /// Takes the row that is stored under `number`; `None` where its bytes are no row.
    pub fn take(&mut self, number: u64, row: Option<&AuditRow>) -> Result<(), ChainBreak> {
        let Some(ends) = &self.ends else {
            return Err(ChainBreak::NoEnds { row: number });
        };
        if number < self.next || number >= ends.next {
            return Err(ChainBreak::PutIn {
                row: number,
                first: ends.first,
                last: ends.next.saturating_sub(1),
            });
        }
        if number > self.next {
            return Err(ChainBreak::Missing {
                first: self.next,
                last: number - 1,
            });
        }
        let row = row.ok_or(ChainBreak::Unreadable { row: number })?;
        if row.number != number {
            return Err(ChainBreak::Moved {
                row: number,
                found: row.number,
            });
        }
        if let Some(previous) = &self.previous
            && RowHash::following(previous, number, &row.entry) != row.hash
        {
            return Err(ChainBreak::Changed { row: number });
        }
        if let Some(pin) = self.pin.take_if(|pin| pin.number == number)
            && pin.hash != row.hash
        {
            return Err(ChainBreak::NotAsNoted { row: number });
        }
        self.previous = Some(row.hash);
        self.next += 1;
        Ok(())
    }

    /// After the last row.
    pub fn finish(self) -> Result<Verified, ChainBreak> {
        let Some(ends) = self.ends else {
            return match self.pin {
                None => Ok(Verified {
                    rows: 0,
                    first: FIRST_ROW,
                    first_is_tied: true,
                    head: None,
                }),
                Some(pin) => Err(ChainBreak::NotedRowGone {
                    row: pin.number,
                    first: FIRST_ROW,
                    last: 0,
                }),
            };
        };
        if self.next < ends.next {
            return Err(ChainBreak::CutEnd {
                first: self.next,
                last: ends.next - 1,
            });
        }
        let last = ends.next.saturating_sub(1);
        if self.previous.is_some_and(|previous| previous != ends.head) {
            return Err(ChainBreak::OtherEnd { row: last });
        }
        if let Some(pin) = self.pin {
            return Err(ChainBreak::NotedRowGone {
                row: pin.number,
                first: ends.first,
                last,
            });
        }
        Ok(Verified {
            rows: ends.rows(),
            first: ends.first,
            first_is_tied: ends.before_first.is_some(),
            head: Some(
                RowPin {
                    number: last,
                    hash: ends.head,
                }
                .to_string(),
            ),
        })
    }
}

/// Verifies rows that are at hand.
pub fn verify<'a>(
    ends: Option<ChainEnds>,
    rows: impl IntoIterator<Item = (u64, Option<&'a AuditRow>)>,
) -> Result<Verified, ChainBreak> {
    let mut verifier = Verifier::new(ends, None);
    for (number, row) in rows {
        verifier.take(number, row)?;
    }
    verifier.finish()
}

#[cfg(test)]
mod tests;
