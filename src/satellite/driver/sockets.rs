//! The loop's look at what comes to the tunnels' UDP sockets, and is not taken in time.

use super::Driver;
use crate::machine::child::ChildEvent;
use crate::machine::overload::{LOOK_EVERY, Sight};

impl Driver {
    /// Whether the system drops what comes to the tunnels' sockets: said once, and where it does not end, the
    /// machine is told.
    pub(super) fn look_at_sockets(&mut self) {
        let now = self.clock.now();
        if now.since(self.sockets_looked_at) < LOOK_EVERY {
            return;
        }
        self.sockets_looked_at = now;
        let mut overrun = Vec::new();
        for (id, link) in self.links.iter_mut() {
            let Some(live) = link.live_mut() else { continue };
            let Some(arrivals) = live.udp_arrivals() else {
                continue;
            };
            match live.overload.look(arrivals) {
                Sight::Bearable { dropped: 0 } => {}
                Sight::Bearable { dropped } if self.drops_told => {
                    tracing::debug!(dropped, "UDP packets were dropped by this system");
                }
                Sight::Bearable { dropped } => {
                    self.drops_told = true;
                    tracing::warn!(
                        dropped,
                        "UDP packets were dropped by this system, because this program did not take them in time; \
                         raise net.core.rmem_max, or give the box less to do (said once; `status` counts on)"
                    );
                }
                Sight::Overrun { percent } => overrun.push((
                    *id,
                    format!("this system drops {percent} % of its packets: the box does not keep up"),
                )),
            }
        }
        for (id, why) in overrun {
            tracing::warn!(link = %id, reason = %why, "QUIC is overrun; leaving it for another way");
            self.tell(ChildEvent::TunnelOverrun(id, why));
        }
    }
}
