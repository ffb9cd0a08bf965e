//! The node's identity machine (contract section 4): with what an accept delivered, a second key is made,
//! stored, and sent to the platform for a certificate, within the hour for which the token is good; later
//! the certificate is renewed at 75 % of its lifetime with a new key each time.
//!
//! The token is single-use and the platform does not repeat an answer. So the key is durable before a request
//! may leave, each retry is the same request, and the machine knows whether an answer may have been lost: a
//! refusal after that says so. Which way a request goes is not known here. Nothing here touches the membership.

mod standing;

use std::collections::VecDeque;
use std::time::Duration;

pub use standing::{IssuedNode, NodeMembership, NodeNames, NodeRefusal, NodeStanding};

use super::backoff::{Backoff, BackoffPolicy};
use super::membership::KeyMaterial;
use super::renewal::{CLOCK_CHECK, renewal_due};
use crate::base::limit::CONTRACT_REQUEST_TIMEOUT;
use crate::base::time::{Moment, UnixTime};
use crate::contract::delivery::NodeEnrollment;
use crate::contract::message::ContractFailure;

/// How long a bootstrap token is good where the parent does not say (contract section 4).
pub const BOOTSTRAP_TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);

/// How long before the token's end the last try is made at the latest: time for one exchange.
const LAST_TRY: Duration = CONTRACT_REQUEST_TIMEOUT;

/// Delays between tries to enroll: the token lives for an hour.
const ENROLL_RETRY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(60),
};

/// Delays between tries to renew: weeks of lifetime remain when renewal starts.
const RENEW_RETRY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(60),
    max: Duration::from_secs(3_600),
};

impl NodeStanding {
    /// What an accept that is answered now begins. The token's time is counted from now on: the clocks of the
    /// two sides may differ by more than an hour.
    pub fn due(enrollment: NodeEnrollment, accepted_at: Option<UnixTime>, wall: UnixTime) -> Self {
        let lifetime = enrollment.expires_at.map_or(BOOTSTRAP_TOKEN_LIFETIME, |end| {
            end.since(accepted_at.unwrap_or(wall))
        });
        Self::Due {
            enrollment,
            until: wall.plus(lifetime),
        }
    }

    /// The node, once the box is one.
    pub const fn membership(&self) -> Option<&NodeMembership> {
        match self {
            Self::Enrolled(node) => Some(node),
            Self::Due { .. } | Self::Asked { .. } | Self::Ended { .. } => None,
        }
    }
}

/// What the machine is told.
#[derive(Debug)]
pub enum NodeEvent {
    /// The last `GenerateKey` is done.
    KeyGenerated(KeyMaterial),
    /// The last `Store` is durable.
    Stored,
    /// The platform issued a certificate, and it was checked.
    Issued(Box<IssuedNode>),
    /// The platform answered with a failure.
    Failed(ContractFailure),
    /// The platform answered with something that is not the contract's.
    Unusable(String),
    /// The certificate of the answer must not be used.
    CertificateRejected(String),
    /// No answer came: the request may or may not have arrived.
    AnswerLost,
    /// The request did not leave the box.
    NotSent,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum NodeAction {
    /// Make a key and its CSR for this common name; report `KeyGenerated`.
    GenerateKey {
        /// The CN of the request.
        common_name: String,
    },
    /// Make this durable; report `Stored`.
    Store(Box<NodeStanding>),
    /// Ask the platform for the first certificate; report what became of it.
    Enroll {
        /// Where, with what.
        enrollment: Box<NodeEnrollment>,
        /// The key of the request.
        key: Box<KeyMaterial>,
    },
    /// Ask the platform for the next certificate, as the present one; report what became of it.
    Refresh {
        /// Where, as whom.
        node: Box<NodeMembership>,
        /// The key of the request.
        key: Box<KeyMaterial>,
    },
}

/// What the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// Nothing will happen any more.
    Nothing,
    /// A point in time.
    Until(Moment),
    /// A key.
    Key,
    /// The store.
    Store,
    /// The platform.
    Answer,
}

/// See the module's text.
#[derive(Debug)]
pub struct NodeIdentityMachine {
    /// As it is in the store; `None` when the accept brought nothing for it.
    standing: Option<NodeStanding>,
    /// The standing that becomes true when `Stored` arrives.
    next: Option<NodeStanding>,
    waiting: Waiting,
    /// An earlier try may have reached the platform without its answer reaching us.
    answer_lost: bool,
    backoff: Backoff,
    actions: VecDeque<NodeAction>,
}

impl NodeIdentityMachine {
    /// Goes on from what the store holds.
    pub fn new(standing: Option<NodeStanding>, seed: u64) -> Self {
        let (waiting, retry) = match &standing {
            None | Some(NodeStanding::Ended { .. }) => (Waiting::Nothing, ENROLL_RETRY),
            Some(NodeStanding::Due { .. } | NodeStanding::Asked { .. }) => {
                (Waiting::Until(Moment::START), ENROLL_RETRY)
            }
            Some(NodeStanding::Enrolled(_)) => (Waiting::Until(Moment::START), RENEW_RETRY),
        };
        Self {
            answer_lost: matches!(standing, Some(NodeStanding::Asked { .. })),
            standing,
            next: None,
            waiting,
            backoff: Backoff::new(retry, seed),
            actions: VecDeque::new(),
        }
    }

    /// One event. Reports that do not fit the state change nothing.
    pub fn handle_event(&mut self, event: NodeEvent, now: Moment, wall: UnixTime) {
        match event {
            NodeEvent::KeyGenerated(key) => self.key_generated(key),
            NodeEvent::Stored => self.stored(now),
            NodeEvent::Issued(issued) => self.issued(*issued, now, wall),
            NodeEvent::Failed(failure) => self.failed(failure, now, wall),
            NodeEvent::Unusable(why) => self.unusable(NodeRefusal::UnusableAnswer { why }, now, wall),
            NodeEvent::CertificateRejected(why) => {
                self.unusable(NodeRefusal::BadCertificate { why }, now, wall);
            }
            NodeEvent::AnswerLost => {
                if self.waiting == Waiting::Answer {
                    self.answer_lost = true;
                    self.again(None, now, wall);
                }
            }
            NodeEvent::NotSent => {
                if self.waiting == Waiting::Answer {
                    self.again(None, now, wall);
                }
            }
            NodeEvent::Timeout => {}
        }
        if let Waiting::Until(at) = self.waiting
            && at <= now
        {
            self.proceed(now, wall);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<NodeAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub const fn poll_timeout(&self) -> Option<Moment> {
        match self.waiting {
            Waiting::Until(at) => Some(at),
            Waiting::Nothing | Waiting::Key | Waiting::Store | Waiting::Answer => None,
        }
    }

    /// Whether a generated key is for this machine.
    pub fn wants_key(&self) -> bool {
        self.waiting == Waiting::Key
    }

    fn store(&mut self, next: NodeStanding) {
        self.actions.push_back(NodeAction::Store(Box::new(next.clone())));
        self.next = Some(next);
        self.waiting = Waiting::Store;
    }

    /// The next step that is due.
    fn proceed(&mut self, now: Moment, wall: UnixTime) {
        match &self.standing {
            Some(NodeStanding::Due { until, .. } | NodeStanding::Asked { until, .. }) if wall >= *until => {
                let answer_lost = self.answer_lost;
                self.end(NodeRefusal::TimeOver { answer_lost }, wall);
            }
            Some(NodeStanding::Due { enrollment, .. }) => {
                let common_name = enrollment.intended_subject.clone();
                self.want_key(common_name);
            }
            Some(NodeStanding::Asked { enrollment, key, .. }) => {
                self.actions.push_back(NodeAction::Enroll {
                    enrollment: Box::new(enrollment.clone()),
                    key: Box::new(key.clone()),
                });
                self.waiting = Waiting::Answer;
            }
            Some(NodeStanding::Enrolled(node)) => {
                let identity = &node.identity;
                let due = renewal_due(identity.not_before, identity.certificate.not_after);
                // With an expired certificate nobody is asked; a clock that was ahead may be set back.
                if wall < due || wall > identity.certificate.not_after {
                    let remaining = due.since(wall);
                    let look = if remaining.is_zero() {
                        CLOCK_CHECK
                    } else {
                        remaining
                    };
                    let look = look.clamp(Duration::from_secs(1), CLOCK_CHECK);
                    self.waiting = Waiting::Until(now.plus(look));
                } else if let Some(key) = &node.renewal {
                    self.actions.push_back(NodeAction::Refresh {
                        node: Box::new(node.clone()),
                        key: Box::new(key.clone()),
                    });
                    self.waiting = Waiting::Answer;
                } else {
                    let common_name = node.subject.clone();
                    self.want_key(common_name);
                }
            }
            None | Some(NodeStanding::Ended { .. }) => self.waiting = Waiting::Nothing,
        }
    }

    fn want_key(&mut self, common_name: String) {
        self.actions.push_back(NodeAction::GenerateKey { common_name });
        self.waiting = Waiting::Key;
    }

    fn key_generated(&mut self, key: KeyMaterial) {
        if self.waiting != Waiting::Key {
            return;
        }
        match &self.standing {
            Some(NodeStanding::Due { enrollment, until }) => {
                let next = NodeStanding::Asked {
                    enrollment: enrollment.clone(),
                    until: *until,
                    key,
                };
                self.store(next);
            }
            Some(NodeStanding::Enrolled(node)) => {
                let next = NodeMembership {
                    renewal: Some(key),
                    ..node.clone()
                };
                self.store(NodeStanding::Enrolled(next));
            }
            None | Some(NodeStanding::Asked { .. } | NodeStanding::Ended { .. }) => {}
        }
    }

    fn stored(&mut self, now: Moment) {
        let Some(next) = self.next.take() else {
            return;
        };
        if matches!(next, NodeStanding::Enrolled(NodeMembership { renewal: None, .. })) {
            self.backoff.set_policy(RENEW_RETRY);
            self.backoff.reset();
        }
        self.waiting = match next {
            NodeStanding::Ended { .. } => Waiting::Nothing,
            NodeStanding::Due { .. } | NodeStanding::Asked { .. } | NodeStanding::Enrolled(_) => {
                Waiting::Until(now)
            }
        };
        self.standing = Some(next);
    }

    fn issued(&mut self, issued: IssuedNode, now: Moment, wall: UnixTime) {
        if self.waiting != Waiting::Answer {
            return;
        }
        let (platform_url, subject, key) = match &self.standing {
            Some(NodeStanding::Asked { enrollment, key, .. }) => {
                (&enrollment.platform_url, &enrollment.intended_subject, key)
            }
            Some(NodeStanding::Enrolled(NodeMembership {
                platform_url,
                subject,
                renewal: Some(key),
                ..
            })) => (platform_url, subject, key),
            _ => return,
        };
        // The answer to a request of before, after which this box has joined anew.
        if !key.pkcs8.matches(&issued.identity.pkcs8) {
            self.again(None, now, wall);
            return;
        }
        let node = NodeMembership {
            platform_url: platform_url.clone(),
            subject: subject.clone(),
            names: issued.names,
            identity: issued.identity,
            renewal: None,
        };
        self.store(NodeStanding::Enrolled(node));
    }

    fn failed(&mut self, failure: ContractFailure, now: Moment, wall: UnixTime) {
        if self.waiting != Waiting::Answer {
            return;
        }
        let ContractFailure {
            http_status,
            error: message,
            retry_after,
            ..
        } = failure;
        // A gateway that gave up, or a platform that broke, may have used the token first.
        self.answer_lost |= matches!(http_status, 500 | 502 | 504);
        if self.is_member() || matches!(http_status, 408 | 425 | 429 | 500..=599) {
            self.again(retry_after, now, wall);
            return;
        }
        let refusal = match http_status {
            401 | 422 if self.answer_lost => NodeRefusal::TokenSpent { http_status, message },
            401 | 422 => NodeRefusal::TokenRejected { http_status, message },
            _ => NodeRefusal::Rejected { http_status, message },
        };
        self.end(refusal, wall);
    }

    /// A first certificate that cannot be used has cost the token; a renewal is asked for again.
    fn unusable(&mut self, refusal: NodeRefusal, now: Moment, wall: UnixTime) {
        if self.waiting != Waiting::Answer {
            return;
        }
        if self.is_member() {
            self.again(None, now, wall);
        } else {
            self.end(refusal, wall);
        }
    }

    const fn is_member(&self) -> bool {
        matches!(self.standing, Some(NodeStanding::Enrolled(_)))
    }

    /// The same request, later, but once more before the token ends.
    fn again(&mut self, told: Option<Duration>, now: Moment, wall: UnixTime) {
        let mut delay = match told {
            Some(told) => self.backoff.delay_after(told),
            None => self.backoff.next_delay(),
        };
        if let Some(NodeStanding::Asked { until, .. }) = &self.standing {
            let remaining = until.since(wall);
            if delay >= remaining && remaining > LAST_TRY {
                delay = remaining.saturating_sub(LAST_TRY);
            }
        }
        self.waiting = Waiting::Until(now.plus(delay));
    }

    fn end(&mut self, refusal: NodeRefusal, wall: UnixTime) {
        if let Some(NodeStanding::Due { enrollment, .. } | NodeStanding::Asked { enrollment, .. }) =
            &self.standing
        {
            let ended = NodeStanding::Ended {
                platform_url: enrollment.platform_url.clone(),
                subject: enrollment.intended_subject.clone(),
                refusal,
                at: wall,
            };
            self.store(ended);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
