//! Floor 5: one tunnel between two sides: multiplexed byte streams over any transport, with
//! greeting, liveness, limits and a close reason. Knows neither satellites nor host-bridges.
