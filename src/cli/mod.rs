//! Floor 8: what both command lines share: tables, JSON, relative times, the client of the admin
//! sockets and of the operator API.

pub mod audit;
pub mod bridge_client;
pub mod check;
pub mod client;
pub mod command_line;
pub mod failure;
mod from_here;
pub mod output;
pub mod patience;

pub use from_here::from_here;
