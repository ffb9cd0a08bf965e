//! What is published, as far as the federation API tells and subscribes to it.

use std::fmt;

use serde_json::{Value, json};

use crate::contract::service::{Offering, ServiceHealth};
use crate::satellite::services::Services;

/// Who knows what is published. The federation API knows no service itself.
pub trait Catalog: fmt::Debug + Send + Sync + 'static {
    /// All offerings in the form of the contract's `service_catalog`.
    fn offerings(&self) -> Vec<Value>;

    /// The offering of this name.
    fn offered(&self, slug: &str) -> Option<Offered>;
}

/// One offering, as a subscription's answer tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The published name.
    pub slug: String,
    /// What is spoken with it.
    pub protocol: String,
    /// Whether it takes subscribers now.
    pub accepting: bool,
}

impl Catalog for Services {
    fn offerings(&self) -> Vec<Value> {
        let offered = self.offerings();
        let offered = offered.borrow();
        offered.iter().map(|offering| json!(offering)).collect()
    }

    fn offered(&self, slug: &str) -> Option<Offered> {
        let offered = self.offerings();
        let offered = offered.borrow();
        let found = offered.iter().find(|offering| offering.slug.as_str() == slug);
        found.map(|offering: &Offering| Offered {
            slug: offering.slug.to_string(),
            protocol: offering.protocol.to_string(),
            accepting: offering.health != ServiceHealth::Unhealthy,
        })
    }
}

/// Nothing is published.
#[derive(Debug, Clone, Copy)]
pub struct NoOfferings;

impl Catalog for NoOfferings {
    fn offerings(&self) -> Vec<Value> {
        Vec::new()
    }

    fn offered(&self, _slug: &str) -> Option<Offered> {
        None
    }
}
