//! Floor 6: ways through the network between satellite and host-bridge: proxies, port mappings,
//! dials. Knows tunnels and sockets; must not know the daemons, their stores or the federation.

pub mod connect;
pub mod default_route;
pub mod dial;
pub mod https;
pub mod interfaces;
pub mod listen;
mod netlink;
pub mod port_mapping;
pub mod presented;
pub mod proxy;
pub mod tcp;
pub mod trial;
