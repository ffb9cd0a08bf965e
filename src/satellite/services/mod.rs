//! The services that this box publishes, and the parent's streams to them. Nothing else on the box or in
//! its network can be reached: a stream names a service, never an address.
//!
//! ```text
//! Services (registry)     what is published now, by configuration or at run time; health; counters
//! ServiceServer           one stream: known? granted? room? local program there? then relayed and noted
//! relay                   the bytes, both ways, with back-pressure and half-closes kept
//! ```
//!
//! Whether somebody may reach a service is decided by `grants`; here it is asked and obeyed.

use crate::contract::service;
use crate::wire;

// What can be published can be asked for.
const _: () = assert!(service::SERVICE_NAME_MAX_BYTES == wire::SERVICE_NAME_MAX_BYTES);

pub mod admin;
mod buffer;
mod flow;
mod health;
mod live;
mod local;
mod meter;
mod note;
mod published;
mod registry;
mod relay;
mod server;

pub use admin::SERVICES_PATH;
pub use live::ServiceReport;
pub use meter::Meter;
pub use published::PublishedServices;
pub use registry::{NotPublished, PublishError, ServiceLimits, Services, WithdrawError};
pub use server::{ServiceServer, SessionServices};
