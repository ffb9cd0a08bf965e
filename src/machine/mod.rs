//! Floor 2: every decision as a sans-IO state machine of one shape: `handle_event(event, now)`,
//! then `poll_action()` until empty, then `poll_timeout()`. Drivers on the floors above carry the
//! actions out and pass time in; tests run the machines in any order of events without sleeping.

pub mod liveness;
