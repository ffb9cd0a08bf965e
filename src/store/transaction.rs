//! Typed access inside one transaction. A [`Reader`] sees one state of the whole store; a
//! [`Writer`] is a reader that also sees and makes its own changes. Neither opens, commits or
//! repairs anything.

use std::marker::PhantomData;
use std::ops::{Bound, ControlFlow, Deref};

use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, TableError, WriteTransaction,
};

use super::error::StoreError;
use super::record::{self, Key, Record, RecordError};
use super::seal::{Opened, SealError, Seals};

/// Every table as redb sees it: the types are ours, so that redb never refuses a file because of
/// the name of a Rust type.
pub(super) type Raw<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// A named table. Exists from the first row on; before, it reads as empty.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Record> Table<K, V> {
    /// A table of that name. The name is part of the file: changing it takes a migration.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            types: PhantomData,
        }
    }

    /// The name in the file.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The table without its types.
    const fn plain(&self) -> Plain {
        Plain {
            name: self.name,
            shown: shown::<K>,
        }
    }

    fn value(&self, seals: &Seals, key: &[u8], stored: &[u8]) -> Result<V, StoreError> {
        let value = self.plain().opened(seals, key, stored)?;
        record::decode(&value).map_err(|source| self.plain().damaged(key, source))
    }

    fn key(&self, key: &[u8]) -> Result<K, StoreError> {
        K::decode(key).ok_or_else(|| self.plain().damaged(key, RecordError::Key))
    }
}

/// A table of bytes. What is done with those is in the program once, not once for each table.
#[derive(Clone, Copy)]
struct Plain {
    name: &'static str,
    shown: fn(&[u8]) -> String,
}

impl Plain {
    const fn raw(self) -> Raw<'static> {
        TableDefinition::new(self.name)
    }

    fn damaged(self, key: &[u8], source: RecordError) -> StoreError {
        StoreError::record(self.name, (self.shown)(key), source)
    }

    fn opened<'v>(self, seals: &Seals, key: &[u8], stored: &'v [u8]) -> Result<Opened<'v>, StoreError> {
        seals
            .opened(self.name, key, stored)
            .map_err(|source| self.sealed(key, source))
    }

    fn sealed(self, key: &[u8], source: SealError) -> StoreError {
        StoreError::sealed(self.name, (self.shown)(key), source)
    }
}

/// Bytes of an undecodable key that an error shows.
const KEY_EXCERPT_BYTES: usize = 32;

fn shown<K: Key>(key: &[u8]) -> String {
    K::decode(key).map_or_else(|| excerpt(key), |key| key.shown())
}

/// The beginning of a key's bytes.
pub(super) fn excerpt(key: &[u8]) -> String {
    crate::base::radix::HEXLOWER.encode(&key[..key.len().min(KEY_EXCERPT_BYTES)])
}

/// In which direction rows are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a key on, to the last.
    Forward,
    /// From a key on, to the first.
    Backward,
}

/// Reads one state of the store.
pub struct Reader<'t> {
    transaction: Transaction<'t>,
    seals: &'t Seals,
}

enum Transaction<'t> {
    Read(&'t ReadTransaction),
    Write(&'t WriteTransaction),
}

impl<'t> Reader<'t> {
    pub(super) const fn new(transaction: &'t ReadTransaction, seals: &'t Seals) -> Self {
        Self {
            transaction: Transaction::Read(transaction),
            seals,
        }
    }

    /// The row under `key`.
    pub fn get<K: Key, V: Record>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>, StoreError> {
        let key = key.encode();
        let mut found = None;
        self.row(table.plain(), &key, &mut |stored| {
            found = Some(table.value(self.seals, &key, stored)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// All rows in the order of their keys. The table's writers bound how many there are.
    pub fn list<K: Key, V: Record>(&self, table: &Table<K, V>) -> Result<Vec<(K, V)>, StoreError> {
        let mut listed = Vec::new();
        self.rows(table.plain(), None, Direction::Forward, &mut |key, stored| {
            listed.push((table.key(key)?, table.value(self.seals, key, stored)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(listed)
    }

    /// Goes through the rows from a key on (with it), or all, one at a time, until `each` breaks. A
    /// row whose value cannot be read is given with the error and does not end the walk.
    pub fn walk<K: Key, V: Record>(
        &self,
        table: &Table<K, V>,
        from: Option<&K>,
        direction: Direction,
        mut each: impl FnMut(K, Result<V, StoreError>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let from = from.map(Key::encode);
        self.rows(table.plain(), from.as_deref(), direction, &mut |key, stored| {
            Ok(each(table.key(key)?, table.value(self.seals, key, stored)))
        })
    }

    /// How many rows there are.
    pub fn count<K: Key, V: Record>(&self, table: &Table<K, V>) -> Result<usize, StoreError> {
        let mut number = 0;
        self.with(table.plain(), &mut |rows| {
            number = usize::try_from(rows.number()?).unwrap_or(usize::MAX);
            Ok(())
        })?;
        Ok(number)
    }

    fn row(
        &self,
        table: Plain,
        key: &[u8],
        found: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.with(table, &mut |rows| match rows.at(key)? {
            Some(value) => found(value.value()),
            None => Ok(()),
        })
    }

    fn rows(
        &self,
        table: Plain,
        from: Option<&[u8]>,
        direction: Direction,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError> {
        let bound = from.map_or(Bound::Unbounded, Bound::Included);
        self.with(table, &mut |rows| {
            let mut range = match direction {
                Direction::Forward => rows.between(bound, Bound::Unbounded)?,
                Direction::Backward => rows.between(Bound::Unbounded, bound)?,
            };
            while let Some(row) = match direction {
                Direction::Forward => range.next(),
                Direction::Backward => range.next_back(),
            } {
                let (key, value) = row?;
                if each(key.value(), value.value())?.is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Whether the file has any table.
    pub(super) fn has_tables(&self) -> Result<bool, StoreError> {
        Ok(match &self.transaction {
            Transaction::Read(transaction) => transaction.list_tables()?.next().is_some(),
            Transaction::Write(transaction) => transaction.list_tables()?.next().is_some(),
        })
    }

    /// Calls `read` with the open table, unless there is none.
    fn with(
        &self,
        table: Plain,
        read: &mut dyn FnMut(&dyn Rows) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match &self.transaction {
            Transaction::Read(transaction) => match transaction.open_table(table.raw()) {
                Ok(rows) => read(&rows),
                Err(TableError::TableDoesNotExist(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            // Makes the table where there is none: harmless, and gone unless something is put.
            Transaction::Write(transaction) => read(&transaction.open_table(table.raw())?),
        }
    }
}

/// What is done with a row's key and value, until it breaks.
type EachRow<'e> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'e;

/// What the two kinds of open tables have in common.
trait Rows {
    fn at(&self, key: &[u8]) -> redb::Result<Option<redb::AccessGuard<'_, &'static [u8]>>>;
    fn between<'k>(
        &self,
        from: Bound<&'k [u8]>,
        to: Bound<&'k [u8]>,
    ) -> redb::Result<redb::Range<'_, &'static [u8], &'static [u8]>>;
    fn number(&self) -> redb::Result<u64>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Rows for T {
    fn at(&self, key: &[u8]) -> redb::Result<Option<redb::AccessGuard<'_, &'static [u8]>>> {
        ReadableTable::get(self, key)
    }

    fn between<'k>(
        &self,
        from: Bound<&'k [u8]>,
        to: Bound<&'k [u8]>,
    ) -> redb::Result<redb::Range<'_, &'static [u8], &'static [u8]>> {
        ReadableTable::range::<&[u8]>(self, (from, to))
    }

    fn number(&self) -> redb::Result<u64> {
        ReadableTableMetadata::len(self)
    }
}

/// What becomes of a row that is there already as it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Present {
    Kept,
    WrittenAgain,
}

/// Changes the store. Reads through it see its own changes.
pub struct Writer<'t> {
    transaction: &'t WriteTransaction,
    reader: Reader<'t>,
    changed: bool,
}

impl<'t> Writer<'t> {
    pub(super) const fn new(transaction: &'t WriteTransaction, seals: &'t Seals) -> Self {
        Self {
            transaction,
            reader: Reader {
                transaction: Transaction::Write(transaction),
                seals,
            },
            changed: false,
        }
    }

    /// Writes the row under `key`, in place of an earlier one. A row that is there already, byte
    /// for byte and sealed as it must be, is not written again.
    pub fn put<K: Key, V: Record>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), StoreError> {
        self.put_record(table, key, value, Present::Kept)
    }

    /// [`Writer::put`] that writes also what is there already: only a write shows whether the disk takes any.
    pub fn put_again<K: Key, V: Record>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), StoreError> {
        self.put_record(table, key, value, Present::WrittenAgain)
    }

    fn put_record<K: Key, V: Record>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
        present: Present,
    ) -> Result<(), StoreError> {
        let key = key.encode();
        let table = table.plain();
        let value = record::encode(value).map_err(|source| table.damaged(&key, source))?;
        self.put_bytes(table, &key, &value, present)
    }

    fn put_bytes(
        &mut self,
        table: Plain,
        key: &[u8],
        value: &[u8],
        present: Present,
    ) -> Result<(), StoreError> {
        let seals = self.reader.seals;
        let mut rows = self.transaction.open_table(table.raw())?;
        let same = match rows.at(key)? {
            _ if present == Present::WrittenAgain => false,
            Some(stored) if seals.is_in_form(table.name, stored.value()) => {
                *table.opened(seals, key, stored.value())? == *value
            }
            _ => false,
        };
        if !same {
            let stored = seals
                .stored(table.name, key, value)
                .map_err(|source| table.sealed(key, source))?;
            rows.insert(key, &*stored)?;
        }
        drop(rows);
        self.changed |= !same;
        Ok(())
    }

    /// Removes the row under `key`; says whether there was one.
    pub fn remove<K: Key, V: Record>(&mut self, table: &Table<K, V>, key: &K) -> Result<bool, StoreError> {
        self.remove_bytes(table.plain(), &key.encode())
    }

    fn remove_bytes(&mut self, table: Plain, key: &[u8]) -> Result<bool, StoreError> {
        let removed = self.transaction.open_table(table.raw())?.remove(key)?.is_some();
        self.changed |= removed;
        Ok(removed)
    }

    /// Removes a whole table: for migrations that have moved its rows.
    pub fn delete_table<K: Key, V: Record>(&mut self, table: &Table<K, V>) -> Result<(), StoreError> {
        let deleted = self.transaction.delete_table(table.plain().raw())?;
        self.changed |= deleted;
        Ok(())
    }

    /// Whether anything differs from what was there.
    pub(super) const fn changed(&self) -> bool {
        self.changed
    }
}

impl<'t> Deref for Writer<'t> {
    type Target = Reader<'t>;

    fn deref(&self) -> &Reader<'t> {
        &self.reader
    }
}
