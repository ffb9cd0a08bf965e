//! Floor 5: one tunnel between two sides: multiplexed byte streams over any transport, with
//! greeting, liveness, limits and a close reason. Knows neither satellites nor host-bridges.

pub mod close;
pub mod connection;
mod driver;
pub mod farewell;
pub mod flow;
pub mod frame;
pub mod greeting;
pub mod http;
#[cfg(test)]
pub mod memory;
pub mod packet;
pub mod quic;
pub mod relay;
pub mod stream;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod transport;
mod turns;
mod udp_socket;

pub use close::{CloseReason, Violation};
pub use connection::{OpenStreamError, Tunnel, TunnelSettings, TunnelStats};
pub use driver::TunnelDriver;
pub use farewell::Farewell;
pub use flow::Flow;
pub use greeting::{Greeted, GreetingError};
pub use stream::{IncomingStream, TunnelStream};
