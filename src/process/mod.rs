//! Floor 3: what every daemon of ours needs around its work: configuration, logs, the only clock,
//! the only randomness, the supervisor that owns all tasks, the way to threads that may block,
//! connections of any kind, signals, the limit of open files, the talk with the service manager, and what the machine offers. Knows nothing of peers, tunnels or stores.

pub mod admin_socket;
pub mod blocking;
pub mod clock;
pub mod config;
pub mod connection;
pub mod entropy;
pub mod environment;
pub mod fresh_start;
pub mod hook;
pub mod http_server;
mod log_lines;
pub mod observation;
pub mod open_files;
pub mod service_notify;
pub mod signals;
pub mod supervisor;
pub mod surroundings;
pub mod telemetry;
