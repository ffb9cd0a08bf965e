//! Floor 7: the satellite: joins its parent, keeps the tunnel, sends heartbeats, answers the
//! parent. Never imports `bridge`. The decisions are `machine::child`'s; here they are carried out.

pub mod admin_api;
mod called;
pub mod daemon;
pub mod direct;
pub mod doctor;
pub mod driver;
mod exchange;
pub mod federation_api;
pub mod grants;
pub mod https;
pub mod invite;
pub mod membership_store;
mod metrics;
mod node_client;
pub mod node_files;
pub mod node_report;
pub mod offline;
pub mod own_authority;
pub mod parent_client;
pub mod payload;
mod port_keeper;
mod report;
mod serve;
pub mod services;
pub mod status;
