//! Floor 2: every decision as a sans-IO state machine of one shape: `handle_event(event, now)`,
//! then `poll_action()` until empty, then `poll_timeout()`. Drivers on the floors above carry the
//! actions out and pass time in; tests run the machines in any order of events without sleeping.
//!
//! | machine | decides |
//! |---|---|
//! | [`join`] | from invitation to a stored certificate, exactly once |
//! | [`ladder`] | which way carries to one host-bridge, when a better one takes over, how long to wait |
//! | [`uplinks`] | how many host-bridges are held at once, and over which the satellite speaks |
//! | [`heartbeat`] | when to send, what an answer or its absence means |
//! | [`renewal`] | when to renew the certificate, and when the new one may replace the old |
//! | [`own_authority`] | how a box that certifies itself goes over to its next authority |
//! | [`node_identity`] | how the box becomes a node of the platform, and stays one |
//! | [`child`] | a whole satellite: those above, and what one tells the other |
//! | [`mapping_lease`] | whether a port on the router leads here, and for how long |
//! | [`liveness`] | when a quiet tunnel is pinged, and when it is given up |
//! | [`network`] | when this box's network counts as changed |
//! | [`overload`] | whether a UDP socket is overrun |
//! | [`service_health`] | whether a published service's program is there |
//! | [`watchdog`] | whether the service manager should still believe in this process |
//!
//! [`bandwidth`] is a limit that relays charge and wait for; [`binding_time`] what [`liveness`] knows of routers.

pub mod backoff;
pub mod bandwidth;
pub mod binding_time;
pub mod child;
pub mod heartbeat;
pub mod join;
pub mod ladder;
pub mod liveness;
pub mod mapping_lease;
pub mod membership;
pub mod network;
pub mod node_identity;
pub mod overload;
pub mod own_authority;
pub mod past;
pub mod renewal;
pub mod service_health;
pub mod source_rate;
pub mod uplinks;
pub mod watchdog;
