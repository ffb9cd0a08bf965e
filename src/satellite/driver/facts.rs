//! What the loop keeps for the next run besides the membership: the parent's word of the last
//! heartbeat, the time, the addresses that worked. None of it is a loss when it is old, so it is
//! written rarely, whatever the parent sends.

use std::time::Duration;

use super::Driver;
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::message::{HeartbeatResponse, OurEndpoint, SchemaCompatibility};
use crate::machine::child::ChildEvent;
use crate::machine::ladder::DialTarget;

/// How often the facts of the minute are written while nothing else changes. Each write costs
/// tens of KiB of flash; four a day keep an idle box far below its budget of 1 MiB a day.
pub const FACTS_INTERVAL: Duration = Duration::from_secs(6 * 3_600);

/// Least distance of two writes because the parent's word has changed: one that says something new
/// in each answer must not wear the card out. Also the delay after a write that failed.
const FACTS_DISTANCE: Duration = Duration::from_secs(600);

/// Most addresses that are remembered for a start without DNS.
const GOOD_ADDRESSES_MAX: usize = 4;

/// Most endpoints of the parent's that are kept: a platform has a handful.
const OUR_ENDPOINTS_MAX: usize = 16;

impl Driver {
    /// A bridge answered there.
    pub(super) fn remember(&mut self, target: &DialTarget) {
        let entry = (target.host.clone(), target.address);
        if self.facts.good_addresses.first() == Some(&entry) {
            return;
        }
        let known = self.facts.good_addresses.contains(&entry);
        self.facts.good_addresses.retain(|known| *known != entry);
        self.facts.good_addresses.insert(0, entry);
        self.facts.good_addresses.truncate(GOOD_ADDRESSES_MAX);
        self.facts_dirty = true;
        if !known {
            // A new address is worth a write: without it a boot without DNS finds nobody.
            self.facts_due = self.clock.now();
        }
    }

    pub(super) fn acknowledged(&mut self, response: &HeartbeatResponse) {
        if let Some(told) = response.last_heartbeat_at {
            self.clock.note_parent_time(told);
        }
        self.facts.last_acknowledged_at = Some(self.clock.trusted().now);
        let endpoints = response.our_endpoints.iter().take(OUR_ENDPOINTS_MAX);
        let endpoints: Vec<_> = endpoints.map(shown_endpoint).collect();
        let schema = response.schema_compatibility.as_ref().map(shown_schema);
        let changed = self.facts.our_endpoints != endpoints || self.facts.schema_compatibility != schema;
        self.facts.our_endpoints = endpoints;
        self.facts.schema_compatibility = schema;
        self.facts_dirty = true;
        if changed {
            let now = self.clock.now();
            let earliest = self
                .facts_written
                .map_or(now, |written| written.plus(FACTS_DISTANCE));
            self.facts_due = self.facts_due.min(earliest.max(now));
        }
        if self.store.is_failing() {
            // Nothing else may be written for hours, and whoever asks is to hear soon that the disk takes writes again.
            self.facts_due = self.clock.now();
        }
        self.failures.heartbeat_acknowledged();
        self.counters.heartbeats_acknowledged += 1;
        let before = self.machine.membership().map(|m| m.status);
        if before != Some(response.status) {
            tracing::info!(status = %response.status, "the parent counts this satellite as {}", response.status);
        }
        self.tell(ChildEvent::HeartbeatAcknowledged(response.status));
        self.look_at_bundle(&response.trust_anchors);
    }

    pub(super) async fn write_due_facts(&mut self) {
        if self.facts_dirty && self.facts_due <= self.clock.now() {
            self.write_facts().await;
        }
    }

    pub(super) async fn write_facts(&mut self) {
        self.facts.seen_from_parent = self.clock.seen_from_parent();
        let written = self.store.save_facts(&self.facts).await;
        let now = self.clock.now();
        match written {
            Ok(()) => {
                self.store_error = None;
                self.facts_dirty = false;
                self.facts_written = Some(now);
                self.facts_due = now.plus(FACTS_INTERVAL);
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(%error, "facts not written; trying again later");
                self.store_error = Some(error);
                self.facts_due = now.plus(FACTS_DISTANCE);
            }
        }
    }
}

/// Short and on one line: it is stored, logged and shown.
fn shown_endpoint(endpoint: &OurEndpoint) -> OurEndpoint {
    OurEndpoint {
        url: foreign_text(&endpoint.url),
        scope: foreign_text(&endpoint.scope),
    }
}

fn shown_schema(schema: &SchemaCompatibility) -> SchemaCompatibility {
    let shown = |text: &Option<String>| text.as_deref().map(foreign_text);
    SchemaCompatibility {
        status: foreign_text(&schema.status),
        source: shown(&schema.source),
        local_version: shown(&schema.local_version),
        remote_version: shown(&schema.remote_version),
        notes: shown(&schema.notes),
    }
}
