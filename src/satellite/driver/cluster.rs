//! A cluster member hands what its parent delivered for the cluster to the configured hook, until that has
//! said once that it is done. The mark of it is durable; a crash between the hook's end and the mark calls it
//! again with the same `idempotency_key`, because a member that was never told is worse than one told twice.

use std::io::Write as _;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::Driver;
use crate::base::limit::error_chain;
use crate::base::radix::HEXLOWER;
use crate::base::secret::Secret;
use crate::base::time::Moment;
use crate::machine::backoff::{Backoff, BackoffPolicy};
use crate::machine::membership::Membership;
use crate::process::entropy;
use crate::satellite::membership_store::HandedOver;
use crate::satellite::status::ClusterReport;

/// Delays after a hook that failed: what it lacks is for a person to mend.
const RETRY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(30),
    max: Duration::from_secs(3_600),
};

/// Bytes of the key that a hook knows a handover again by: never the same twice by chance.
const KEY_BYTES: usize = 16;

/// Room for what stands around the delivered part.
const FRAME_BYTES: usize = 1_024;

/// A hook has ended: for which handover, and how.
pub(super) type HookEnded = (String, Result<(), String>);

/// How far the handover is.
#[derive(Debug)]
pub(super) struct ClusterCare {
    handed_over: Option<HandedOver>,
    running: bool,
    /// Not before then.
    due: Moment,
    backoff: Backoff,
    trouble: Option<String>,
    pub(super) ended: (mpsc::Sender<HookEnded>, mpsc::Receiver<HookEnded>),
}

impl ClusterCare {
    pub(super) fn new(handed_over: Option<HandedOver>) -> Self {
        Self {
            handed_over,
            running: false,
            due: Moment::START,
            backoff: Backoff::new(RETRY, entropy::seed()),
            trouble: None,
            // One hook at a time.
            ended: mpsc::channel(1),
        }
    }
}

/// What the hook gets, and by what it knows that it had it before.
struct Handover {
    key: String,
    input: Secret,
}

impl Handover {
    /// `None` where nothing was delivered for a cluster.
    fn of(membership: &Membership) -> Option<Self> {
        let delivered = membership.cluster_delivery()?;
        let key = handover_key(membership)?;
        // A buffer that grows would leave unwiped pieces behind. The delivered part is JSON as it is.
        let mut input = Vec::with_capacity(FRAME_BYTES + delivered.len());
        write!(
            input,
            r#"{{"idempotency_key":"{key}","peer_id":"{}","parent_url":{},"accepted_at":"{}","delivered":"#,
            membership.peer_id,
            serde_json::Value::from(membership.parent.url.to_string()),
            membership.accepted_at,
        )
        .ok()?;
        input.extend_from_slice(delivered.expose());
        input.push(b'}');
        Some(Self {
            key,
            input: Secret::new(input),
        })
    }
}

/// By what a hook knows what was delivered to this member again; `None` where nothing was.
pub fn handover_key(membership: &Membership) -> Option<String> {
    let mut digest = Sha256::new();
    digest.update(membership.peer_id.to_string());
    digest.update(membership.accepted_at.as_seconds().to_be_bytes());
    digest.update(membership.cluster_delivery()?.expose());
    let digest = digest.finalize();
    Some(HEXLOWER.encode(digest.get(..KEY_BYTES)?))
}

impl Driver {
    /// Calls the hook where there is something that it has not taken yet.
    pub(super) fn serve_cluster(&mut self) {
        if self.cluster.running || self.cluster.due > self.clock.now() {
            return;
        }
        let (Some(hook), Some(membership)) = (&self.settings.cluster_hook, self.machine.membership()) else {
            return;
        };
        let Some(handover) = Handover::of(membership) else {
            return;
        };
        let taken = |handed: &HandedOver| handed.key == handover.key;
        if self.cluster.handed_over.as_ref().is_some_and(taken) {
            return;
        }
        let (hook, ended) = (hook.clone(), self.cluster.ended.0.clone());
        tracing::info!(hook = %hook.program.display(), key = %handover.key, "handing what the parent delivered for the cluster to the hook");
        self.cluster.running = true;
        self.scope.spawn_until_cancelled("cluster hook", async move {
            let outcome = hook.run(handover.input).await;
            let outcome = outcome.map_err(|error| error_chain(&error));
            // A loop that is gone calls it again at the next start.
            let _ = ended.send((handover.key, outcome)).await;
        });
    }

    /// The hook has ended.
    pub(super) async fn hook_ended(&mut self, (key, outcome): HookEnded) {
        self.cluster.running = false;
        let marked = match outcome {
            Ok(()) => {
                let handed = HandedOver {
                    key,
                    at: self.clock.trusted().now,
                };
                let saved = self.store.save_handed_over(&handed).await;
                saved.map(|()| handed).map_err(|error| {
                    format!(
                        "the hook is done, but that could not be noted: {}",
                        error_chain(&error)
                    )
                })
            }
            Err(why) => Err(why),
        };
        match marked {
            Ok(handed) => {
                tracing::info!(key = %handed.key, "the cluster's hook is done");
                self.cluster.handed_over = Some(handed);
                self.cluster.trouble = None;
                self.cluster.backoff.reset();
            }
            Err(why) => {
                let delay = self.cluster.backoff.next_delay();
                tracing::warn!(reason = %why, again_in = ?delay, "the cluster's hook failed; it is called again");
                self.cluster.due = self.clock.now().plus(delay);
                self.cluster.trouble = Some(why);
            }
        }
    }

    /// How that stands, for the status.
    pub(super) fn tell_cluster(&self, report: &mut ClusterReport) {
        let key = self.machine.membership().and_then(handover_key);
        let handed = self.cluster.handed_over.as_ref();
        report.handed_over_at = handed
            .filter(|handed| key.as_ref() == Some(&handed.key))
            .map(|handed| handed.at);
        report.trouble.clone_from(&self.cluster.trouble);
        report.hook = self
            .settings
            .cluster_hook
            .as_ref()
            .map(|hook| hook.program.display().to_string());
    }
}
