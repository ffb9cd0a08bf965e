//! The join machine: from an invitation to a membership, exactly once (contract section 3).
//!
//! The idea: what a retry needs is in the store before the first request leaves. The key and its
//! CSR are made once and persisted; the request is a pure function of the stored state; so a crash,
//! a lost answer or a power cut at any point is followed by the same request, which a parent that
//! remembers the key answers with the same certificate. Every state change is a `Persist` action,
//! and nothing that depends on it is done before `Persisted` comes back.

mod state;

use std::collections::VecDeque;

pub use state::{CancelRefused, Farewell, JoinState};

use super::backoff::{Backoff, BackoffPolicy};
use super::membership::{
    AcceptedAnswer, Delivered, JoinRefusal, KeyMaterial, Membership, Parent, StoredIdentity,
    StoredInvitation, issued_by_itself,
};
use super::node_identity::NodeStanding;
use super::past::{FormerPeer, RejoinRefused, with_former};
use crate::base::secret::Secret;
use crate::base::time::{Moment, UnixTime};
use crate::contract::delivery::shown_warnings;
use crate::contract::message::{AcceptResponse, AcceptedTrust, ContractFailure, FederationCertificate};

/// What the machine is told.
#[derive(Debug)]
pub enum JoinEvent {
    /// The last `GenerateKey` is done.
    KeyGenerated(KeyMaterial),
    /// The last `Persist` is durable.
    Persisted,
    /// The last `Persist` failed; nothing changed in the store.
    PersistFailed,
    /// A tunnel on which accept may be sent is up.
    ChannelUp,
    /// It is gone.
    ChannelDown,
    /// The parent answered with success.
    Answered(Box<AcceptResponse>),
    /// The parent answered with a failure.
    Failed(ContractFailure),
    /// The parent answered with something that is not the contract's.
    Unusable(String),
    /// No answer came: the request may or may not have arrived.
    AnswerLost,
    /// The request did not leave the box.
    NotSent,
    /// The certificate of the answer is good.
    CertificateVerified {
        /// Begin of its validity.
        not_before: UnixTime,
        /// The certificate, with the chain reduced to what is trusted.
        certificate: FederationCertificate,
    },
    /// The certificate of the answer must not be used.
    CertificateRejected(String),
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum JoinAction {
    /// Make a key, or take the one that is kept, and its CSR; report `KeyGenerated`.
    GenerateKey {
        /// The key of the membership that a rejoin is to replace.
        kept: Option<Secret>,
    },
    /// Make this state durable; report `Persisted` or `PersistFailed`.
    Persist(Box<JoinState>),
    /// Send accept with this token and CSR; report `Answered`, `Failed`, `Unusable` or `AnswerLost`.
    SendAccept {
        /// The invitation with the token.
        invitation: Box<StoredInvitation>,
        /// The CSR.
        csr_pem: String,
    },
    /// Check the certificate; report `CertificateVerified` or `CertificateRejected`.
    VerifyCertificate {
        /// By what the parent is known.
        parent: Box<Parent>,
        /// The answer.
        answer: Box<AcceptedAnswer>,
        /// The key that it must belong to.
        key: Box<KeyMaterial>,
    },
}

/// What the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// A key's or the store's report.
    Report,
    /// The parent's answer, which a lost channel takes with it.
    Answer,
    /// A channel.
    Channel,
    /// A point in time, and then the channel if it is gone.
    Until(Moment),
    /// Nothing: enrolled, joined or refused.
    Nothing,
}

/// See the module's text.
#[derive(Debug)]
pub struct JoinMachine {
    state: JoinState,
    /// The state that becomes true when `Persisted` arrives.
    next: Option<JoinState>,
    waiting: Waiting,
    channel_up: bool,
    /// An earlier try may have reached the parent without its answer reaching us.
    answer_lost: bool,
    backoff: Backoff,
    actions: VecDeque<JoinAction>,
}

impl JoinMachine {
    /// Goes on from what the store holds.
    pub fn new(state: JoinState, policy: BackoffPolicy, seed: u64) -> Self {
        let answer_lost = matches!(state, JoinState::Sent { .. });
        let mut machine = Self {
            state,
            next: None,
            waiting: Waiting::Nothing,
            channel_up: false,
            answer_lost,
            backoff: Backoff::new(policy, seed),
            actions: VecDeque::new(),
        };
        machine.enter();
        machine
    }

    /// Other delays from the next one on.
    pub const fn set_policy(&mut self, policy: BackoffPolicy) {
        self.backoff.set_policy(policy);
    }

    /// What is durable.
    pub const fn state(&self) -> &JoinState {
        &self.state
    }

    /// Gives the durable state back, for a machine of another kind to go on with.
    pub fn into_state(self) -> JoinState {
        self.state
    }

    /// Whether a tunnel without a certificate would be of use.
    pub const fn wants_channel(&self) -> bool {
        matches!(self.state, JoinState::KeyReady { .. } | JoinState::Sent { .. })
    }

    /// Failed tries since the last good sign.
    pub const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// One event. Events that do not fit the state (a late answer, a doubled report) change nothing.
    pub fn handle_event(&mut self, event: JoinEvent, now: Moment, wall: UnixTime) {
        match event {
            JoinEvent::KeyGenerated(key) => {
                if let JoinState::Invited(invitation) = &self.state {
                    let next = JoinState::KeyReady {
                        invitation: invitation.clone(),
                        key,
                    };
                    self.persist(next);
                }
            }
            JoinEvent::Persisted => {
                if let Some(next) = self.next.take() {
                    self.state = next;
                    self.enter();
                    if self.waiting == Waiting::Channel && self.channel_up {
                        self.proceed(wall);
                    }
                }
            }
            JoinEvent::PersistFailed => {
                if self.next.is_some() {
                    self.waiting = Waiting::Until(now.plus(self.backoff.next_delay()));
                }
            }
            JoinEvent::ChannelUp => {
                self.channel_up = true;
                if self.waiting == Waiting::Channel {
                    self.proceed(wall);
                }
            }
            JoinEvent::ChannelDown => {
                self.channel_up = false;
                if self.waiting == Waiting::Answer {
                    self.lost(now);
                }
            }
            JoinEvent::Answered(response) => self.answered(*response, wall),
            JoinEvent::Failed(failure) => self.failed(failure, now, wall),
            JoinEvent::Unusable(why) => {
                if matches!(self.state, JoinState::Sent { .. }) && self.next.is_none() {
                    self.refuse(JoinRefusal::UnusableAnswer { why }, wall);
                }
            }
            JoinEvent::AnswerLost => {
                if self.waiting == Waiting::Answer {
                    self.lost(now);
                }
            }
            JoinEvent::NotSent => {
                if self.waiting == Waiting::Answer {
                    self.waiting = Waiting::Until(now.plus(self.backoff.next_delay()));
                }
            }
            JoinEvent::CertificateVerified {
                not_before,
                certificate,
            } => self.verified(certificate, not_before, wall),
            JoinEvent::CertificateRejected(why) => {
                if matches!(self.state, JoinState::Accepted { .. }) {
                    self.refuse(JoinRefusal::BadCertificate { why }, wall);
                }
            }
            JoinEvent::Timeout => {
                if let Waiting::Until(at) = self.waiting
                    && at <= now
                {
                    match self.next.take() {
                        Some(next) => self.persist(next),
                        None => self.proceed(wall),
                    }
                }
            }
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<JoinAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub const fn poll_timeout(&self) -> Option<Moment> {
        match self.waiting {
            Waiting::Until(at) => Some(at),
            Waiting::Report | Waiting::Answer | Waiting::Channel | Waiting::Nothing => None,
        }
    }

    fn persist(&mut self, next: JoinState) {
        self.actions
            .push_back(JoinAction::Persist(Box::new(next.clone())));
        self.next = Some(next);
        self.waiting = Waiting::Report;
    }

    /// Begins what the state calls for.
    fn enter(&mut self) {
        self.waiting = match &self.state {
            JoinState::Invited(invitation) => {
                let replaced = invitation.past.membership.as_ref();
                let kept = replaced.map(|membership| membership.identity.pkcs8.clone());
                self.actions.push_back(JoinAction::GenerateKey { kept });
                Waiting::Report
            }
            JoinState::KeyReady { .. } | JoinState::Sent { .. } => Waiting::Channel,
            JoinState::Accepted {
                invitation,
                key,
                answer,
            } => {
                self.actions.push_back(JoinAction::VerifyCertificate {
                    parent: Box::new(invitation.parent.clone()),
                    answer: Box::new(answer.clone()),
                    key: Box::new(key.clone()),
                });
                Waiting::Report
            }
            JoinState::Enrolled(_)
            | JoinState::Joined(_)
            | JoinState::Refused { .. }
            | JoinState::Left(_) => Waiting::Nothing,
        };
    }

    /// A channel is up or a delay is over: the next step towards the parent.
    fn proceed(&mut self, wall: UnixTime) {
        if !self.channel_up {
            self.waiting = Waiting::Channel;
            return;
        }
        match &self.state {
            JoinState::KeyReady { invitation, key } => {
                let next = JoinState::Sent {
                    invitation: invitation.clone(),
                    key: key.clone(),
                    first_sent_at: wall,
                };
                self.persist(next);
            }
            JoinState::Sent { .. } => {
                self.send();
                self.waiting = Waiting::Answer;
            }
            JoinState::Invited(_)
            | JoinState::Accepted { .. }
            | JoinState::Enrolled(_)
            | JoinState::Joined(_)
            | JoinState::Refused { .. }
            | JoinState::Left(_) => self.waiting = Waiting::Nothing,
        }
    }

    fn send(&mut self) {
        if let JoinState::Sent { invitation, key, .. } = &self.state {
            self.actions.push_back(JoinAction::SendAccept {
                invitation: Box::new(invitation.clone()),
                csr_pem: key.csr_pem.clone(),
            });
        }
    }

    /// The request may have arrived, its answer did not.
    fn lost(&mut self, now: Moment) {
        self.answer_lost = true;
        self.waiting = Waiting::Until(now.plus(self.backoff.next_delay()));
    }

    fn answered(&mut self, response: AcceptResponse, wall: UnixTime) {
        let JoinState::Sent { invitation, key, .. } = &self.state else {
            return;
        };
        if self.next.is_some() {
            return;
        }
        let trust = response.trust();
        let delivery = response.delivery;
        let warnings = shown_warnings(response.warnings.iter().chain(&delivery.unusable));
        let certificate = match trust {
            Some(AcceptedTrust::Hierarchical(certificate)) => certificate,
            Some(AcceptedTrust::Symmetric(exchange)) if invitation.own_authority.is_some() => {
                issued_by_itself(exchange.ca_bundle_pem, wall)
            }
            // An exchange of CAs that was not asked for: without a certificate this side cannot show itself.
            Some(AcceptedTrust::Symmetric(_)) | None => {
                self.refuse(JoinRefusal::NoCertificate { warnings }, wall);
                return;
            }
        };
        let answer = AcceptedAnswer {
            peer_id: response.peer_id,
            status: response.status,
            contract_version: response.contract_version_agreed,
            certificate,
            accepted_at: response.accepted_at.unwrap_or(wall),
            node: delivery
                .node_enrollment
                .map(|enrollment| NodeStanding::due(enrollment, response.accepted_at, wall)),
            delivered: Delivered {
                trust_exchange: delivery.trust_exchange,
                rest: delivery.rest,
                warnings,
            },
        };
        let next = JoinState::Accepted {
            invitation: invitation.used_up(),
            key: key.clone(),
            answer,
        };
        self.persist(next);
    }

    fn failed(&mut self, failure: ContractFailure, now: Moment, wall: UnixTime) {
        if !matches!(self.state, JoinState::Sent { .. }) || self.next.is_some() {
            return;
        }
        let may_be_done = failure.may_be_done();
        let ContractFailure {
            http_status,
            error: message,
            retry_after,
            ..
        } = failure;
        match http_status {
            401 if self.answer_lost => self.refuse(JoinRefusal::TokenSpent { message }, wall),
            401 => self.refuse(JoinRefusal::TokenRejected { message }, wall),
            408 | 425 | 429 | 500..=599 => {
                self.answer_lost |= may_be_done;
                let delay = match retry_after {
                    Some(told) => self.backoff.delay_after(told),
                    None => self.backoff.next_delay(),
                };
                self.waiting = Waiting::Until(now.plus(delay));
            }
            _ => self.refuse(JoinRefusal::Rejected { http_status, message }, wall),
        }
    }

    fn verified(&mut self, certificate: FederationCertificate, not_before: UnixTime, wall: UnixTime) {
        let JoinState::Accepted {
            invitation,
            key,
            answer,
        } = &self.state
        else {
            return;
        };
        let past = &invitation.past;
        let replaced = past.membership.as_deref();
        let former = match replaced.filter(|replaced| replaced.peer_id != answer.peer_id) {
            Some(replaced) => with_former(FormerPeer::of(replaced, past.grants, wall), &past.former),
            None => past.former.clone(),
        };
        // A node stays one, unless it was told to enroll anew.
        let node = answer.node.clone();
        let node = node.or_else(|| replaced.and_then(|replaced| replaced.node.clone()));
        let membership = Membership {
            parent: invitation.parent.clone(),
            operator: invitation.operator.clone(),
            peer_id: answer.peer_id,
            spawn_mode: invitation.spawn_mode,
            contract_version: answer.contract_version,
            identity: StoredIdentity {
                pkcs8: key.pkcs8.clone(),
                certificate,
                not_before,
            },
            candidate: None,
            accepted_at: answer.accepted_at,
            status: answer.status,
            node,
            delivered: answer.delivered.clone(),
            own_authority: answer.own_authority_of(invitation),
            former,
            rejoin_refused: None,
        };
        self.persist(JoinState::Enrolled(membership));
    }

    fn refuse(&mut self, refusal: JoinRefusal, wall: UnixTime) {
        let key = match &self.state {
            JoinState::KeyReady { key, .. }
            | JoinState::Sent { key, .. }
            | JoinState::Accepted { key, .. } => Some(key.clone()),
            JoinState::Invited(_)
            | JoinState::Enrolled(_)
            | JoinState::Joined(_)
            | JoinState::Refused { .. }
            | JoinState::Left(_) => None,
        };
        let Some(invitation) = self.state.invitation() else {
            return;
        };
        let (parent, token) = (invitation.parent.clone(), invitation.token_digest);
        let next = match &invitation.past.membership {
            Some(membership) => JoinState::Joined(Membership {
                rejoin_refused: Some(RejoinRefused {
                    refusal,
                    at: wall,
                    token,
                }),
                ..Membership::clone(membership)
            }),
            None => JoinState::Refused {
                parent,
                key,
                refusal,
                at: wall,
                token,
                former: invitation.past.former.clone(),
            },
        };
        self.persist(next);
    }
}
