//! Floor 0: ids, secrets, time, bounds, verdicts and an ordered map. Knows nothing of the rest of the crate, and no
//! clock, socket, file, task or source of randomness: what varies arrives as an argument.

pub mod address;
pub mod check;
pub mod counter;
pub mod exposition;
pub mod id;
pub mod limit;
pub mod ordered_map;
pub mod radix;
pub mod secret;
pub mod time;
