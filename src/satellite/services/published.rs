//! The services that were published at run time, in the satellite's store: there again after a restart.

use crate::contract::service::{SERVICES_MAX, ServiceDefinition, ServiceName};
use crate::store::database::{Database, StoreError, Table};
use crate::store::record::Record;

const PUBLISHED: Table<String, ServiceDefinition> = Table::new("published_services");

impl Record for ServiceDefinition {
    const VERSION: u8 = 1;
}

/// Reads and writes them.
#[derive(Debug, Clone)]
pub struct PublishedServices {
    database: Database,
}

impl PublishedServices {
    /// In this store. A store of an earlier build has none.
    pub const fn new(database: Database) -> Self {
        Self { database }
    }

    /// All of them, by name. Blocking.
    pub fn all(&self) -> Result<Vec<ServiceDefinition>, StoreError> {
        let rows = self.database.read(|reader| reader.list(&PUBLISHED))?;
        Ok(rows
            .into_iter()
            .take(SERVICES_MAX)
            .map(|(_, service)| service)
            .collect())
    }

    /// Blocking.
    pub(super) fn put(&self, service: &ServiceDefinition) -> Result<(), StoreError> {
        self.database
            .write(|writer| writer.put(&PUBLISHED, &service.name.to_string(), service))
    }

    /// Blocking.
    pub(super) fn remove(&self, name: &ServiceName) -> Result<(), StoreError> {
        self.database
            .write(|writer| writer.remove(&PUBLISHED, &name.to_string()).map(drop))
    }
}
