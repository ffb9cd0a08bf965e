//! The renewal machine: at 75 % of the certificate's lifetime a new key is made, stored, and sent
//! for a certificate over the tunnel that the old one authenticates. The old identity stays the
//! membership's until a heartbeat over a tunnel of the new one has been acknowledged; if the new one
//! does not work, the old one goes on and the renewal starts over later with yet another key.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::backoff::{Backoff, BackoffPolicy};
use super::membership::{Candidate, KeyMaterial, StoredIdentity};
use crate::base::time::{Moment, UnixTime};

/// Share of the lifetime after which renewal is due, in percent (contract section 4).
pub const RENEW_AT_PERCENT: u32 = 75;
/// Remaining lifetime below which status and log warn.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The wall clock may jump (time arrives from the network after boot), so it is looked at this often.
pub const CLOCK_CHECK: Duration = Duration::from_secs(3_600);
/// A new certificate that the parent has refused so often, without a heartbeat between, is given up.
/// More than one, because a parent may be slow to learn of what it has just issued.
pub const CANDIDATE_REFUSALS_MAX: u32 = 3;

/// Delays between tries: minutes, because weeks of lifetime remain when renewal starts.
const RETRY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(60),
    max: Duration::from_secs(3_600),
};

/// How a certificate stands at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateStanding {
    /// Its validity begins later: the box's clock is wrong, or the parent's.
    NotYetValid,
    /// Good, and not due for renewal.
    Valid,
    /// Good, and due for renewal.
    RenewalDue,
    /// Good for less than [`EXPIRY_WARNING`] (or a tenth of its lifetime, if that is less).
    ExpiresSoon,
    /// Of no use any more.
    Expired,
}

impl CertificateStanding {
    /// Judges a validity at a time.
    pub fn judge(not_before: UnixTime, not_after: UnixTime, wall: UnixTime) -> Self {
        let warn_before = EXPIRY_WARNING.min(not_after.since(not_before) / 10);
        if wall < not_before {
            Self::NotYetValid
        } else if wall > not_after {
            Self::Expired
        } else if not_after.since(wall) <= warn_before {
            Self::ExpiresSoon
        } else if wall >= renewal_due(not_before, not_after) {
            Self::RenewalDue
        } else {
            Self::Valid
        }
    }
}

impl fmt::Display for CertificateStanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYetValid => "not yet valid",
            Self::Valid => "valid",
            Self::RenewalDue => "renewal due",
            Self::ExpiresSoon => "expires soon",
            Self::Expired => "expired",
        })
    }
}

/// When renewal of a certificate is due.
pub fn renewal_due(not_before: UnixTime, not_after: UnixTime) -> UnixTime {
    not_before.plus(not_after.since(not_before) / 100 * RENEW_AT_PERCENT)
}

/// Which identity a tunnel presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityChoice {
    /// The membership's.
    Current,
    /// The renewal's new one.
    Candidate,
}

/// What the machine is told.
#[derive(Debug)]
pub enum RenewalEvent {
    /// A tunnel is up that presents this identity.
    LinkUp(IdentityChoice),
    /// No tunnel is up.
    LinkDown,
    /// The parent counts the certificate that the tunnel presents as expired, and takes its renewal and
    /// nothing else, now.
    Demanded,
    /// A new certificate is to take the place of one that is not due yet: it will have another issuer.
    Wanted,
    /// The parent did not take the candidate: it refused a dial or a heartbeat with it.
    CandidateRefused,
    /// A heartbeat was acknowledged over a tunnel of this identity.
    HeartbeatAcknowledged(IdentityChoice),
    /// The last `GenerateKey` is done.
    KeyGenerated(KeyMaterial),
    /// The last `Store` or `Commit` is durable.
    Stored,
    /// The parent issued a certificate and it was checked.
    Issued(StoredIdentity),
    /// It did not, or what came must not be used.
    RefreshFailed,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum RenewalAction {
    /// Make a key and its CSR; report `KeyGenerated`.
    GenerateKey,
    /// Make the membership's candidate durable; report `Stored`.
    Store(Option<Candidate>),
    /// Make this the membership's identity, durably, without candidate; report `Stored`.
    Commit(StoredIdentity),
    /// Ask the parent over the current tunnel; report `Issued` or `RefreshFailed`.
    SendRefresh {
        /// The CSR of the new key.
        csr_pem: String,
    },
}

#[derive(Debug)]
enum State {
    /// Nothing to do until it is due.
    Idle,
    /// A key was ordered.
    WantKey,
    /// The candidate with its key is being stored.
    StoringKey(KeyMaterial),
    /// Waiting for a tunnel, or for the delay after a failure.
    Ready(KeyMaterial),
    /// The parent was asked.
    Requesting(KeyMaterial),
    /// The new certificate is being stored.
    StoringIssued(StoredIdentity),
    /// Tunnels present the new certificate until a heartbeat proves it.
    Proving { identity: StoredIdentity, refusals: u32 },
    /// The new identity is becoming the membership's.
    Committing(StoredIdentity),
    /// The candidate is being dropped.
    Dropping,
}

/// Whether to renew what is not due by this box's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Early {
    No,
    /// Try once: what is in use is as good as ever.
    Once,
    /// The parent waits for the renewal, whatever this box's clock says.
    UntilRenewed,
}

/// See the module's text.
#[derive(Debug)]
pub struct RenewalMachine {
    state: State,
    not_before: UnixTime,
    not_after: UnixTime,
    link: Option<IdentityChoice>,
    /// The delay of the last failure is over; only a tunnel is missing.
    waits_for_link: bool,
    early: Early,
    /// The box certifies itself: no tunnel is needed.
    unaided: bool,
    wake: Option<Moment>,
    backoff: Backoff,
    actions: VecDeque<RenewalAction>,
}

impl RenewalMachine {
    /// Goes on from what the store holds: the identity's validity and a renewal under way.
    pub fn new(identity: &StoredIdentity, candidate: Option<Candidate>, seed: u64) -> Self {
        let state = match candidate {
            None => State::Idle,
            Some(Candidate::Requested(key)) => State::Ready(key),
            Some(Candidate::Issued(identity)) => State::Proving {
                identity,
                refusals: 0,
            },
        };
        Self {
            state,
            not_before: identity.not_before,
            not_after: identity.certificate.not_after,
            link: None,
            waits_for_link: false,
            early: Early::No,
            unaided: false,
            wake: Some(Moment::START),
            backoff: Backoff::new(RETRY, seed),
            actions: VecDeque::new(),
        }
    }

    /// The same for a box that certifies itself.
    #[must_use]
    pub fn unaided(self, unaided: bool) -> Self {
        Self { unaided, ..self }
    }

    /// Which identity the next tunnel should present.
    pub const fn identity_choice(&self) -> IdentityChoice {
        match self.state {
            State::Proving { .. } | State::Committing(_) => IdentityChoice::Candidate,
            State::Idle
            | State::WantKey
            | State::StoringKey(_)
            | State::Ready(_)
            | State::Requesting(_)
            | State::StoringIssued(_)
            | State::Dropping => IdentityChoice::Current,
        }
    }

    /// One event. Reports that do not fit the state change nothing.
    pub fn handle_event(&mut self, event: RenewalEvent, now: Moment, wall: UnixTime) {
        match event {
            RenewalEvent::LinkUp(choice) => {
                self.link = Some(choice);
                // A parent that is reached has told the time: an idle machine looks again, too.
                let idle = matches!(self.state, State::Idle) && self.backoff.failures() == 0;
                if std::mem::take(&mut self.waits_for_link) || idle {
                    self.wake = Some(now);
                }
            }
            RenewalEvent::LinkDown => {
                self.link = None;
                if let State::Requesting(key) = &self.state {
                    self.state = State::Ready(key.clone());
                    self.wake = Some(now.plus(self.backoff.next_delay()));
                }
            }
            RenewalEvent::Demanded => {
                self.early = Early::UntilRenewed;
                match self.state {
                    // It has expired before it was ever of use.
                    State::Proving { .. } => self.drop_candidate(),
                    State::Idle | State::Ready(_) => self.wake = Some(now),
                    _ => {}
                }
            }
            RenewalEvent::Wanted => {
                if self.early == Early::No {
                    self.early = Early::Once;
                }
                if matches!(self.state, State::Idle) {
                    self.wake = Some(now);
                }
            }
            RenewalEvent::CandidateRefused => {
                if let State::Proving { refusals, .. } = &mut self.state {
                    *refusals += 1;
                    if *refusals >= CANDIDATE_REFUSALS_MAX {
                        self.drop_candidate();
                    }
                }
            }
            RenewalEvent::HeartbeatAcknowledged(IdentityChoice::Candidate) => {
                if let State::Proving { identity, .. } = &self.state {
                    let identity = identity.clone();
                    self.actions.push_back(RenewalAction::Commit(identity.clone()));
                    self.state = State::Committing(identity);
                }
            }
            RenewalEvent::HeartbeatAcknowledged(IdentityChoice::Current) => {}
            RenewalEvent::KeyGenerated(key) => {
                if matches!(self.state, State::WantKey) {
                    self.actions
                        .push_back(RenewalAction::Store(Some(Candidate::Requested(key.clone()))));
                    self.state = State::StoringKey(key);
                }
            }
            RenewalEvent::Stored => self.stored(now),
            RenewalEvent::Issued(identity) => {
                if matches!(self.state, State::Requesting(_)) {
                    self.actions
                        .push_back(RenewalAction::Store(Some(Candidate::Issued(identity.clone()))));
                    self.state = State::StoringIssued(identity);
                }
            }
            RenewalEvent::RefreshFailed => {
                if let State::Requesting(key) = &self.state {
                    self.state = State::Ready(key.clone());
                    self.wake = Some(now.plus(self.backoff.next_delay()));
                }
            }
            RenewalEvent::Timeout => {}
        }
        self.advance(now, wall);
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<RenewalAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub const fn poll_timeout(&self) -> Option<Moment> {
        self.wake
    }

    fn stored(&mut self, now: Moment) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::StoringKey(key) => {
                self.state = State::Ready(key);
                self.wake = Some(now);
            }
            State::StoringIssued(identity) => {
                self.state = State::Proving {
                    identity,
                    refusals: 0,
                }
            }
            State::Committing(identity) => {
                self.not_before = identity.not_before;
                self.not_after = identity.certificate.not_after;
                self.backoff.reset();
                self.early = Early::No;
                self.wake = Some(now);
            }
            State::Dropping if self.early == Early::UntilRenewed => self.wake = Some(now),
            // Another key and certificate will fare no better in a minute.
            State::Dropping => self.wake = Some(now.plus(self.backoff.patient_delay())),
            other @ (State::Idle
            | State::WantKey
            | State::Ready(_)
            | State::Requesting(_)
            | State::Proving { .. }) => self.state = other,
        }
    }

    fn drop_candidate(&mut self) {
        self.actions.push_back(RenewalAction::Store(None));
        self.state = State::Dropping;
    }

    /// Starts what is due.
    fn advance(&mut self, now: Moment, wall: UnixTime) {
        if self.wake.is_none_or(|wake| wake > now) {
            return;
        }
        match &self.state {
            State::Idle => {
                let due = renewal_due(self.not_before, self.not_after);
                if wall >= due || self.early != Early::No {
                    if self.early == Early::Once {
                        self.early = Early::No;
                    }
                    self.wake = None;
                    self.state = State::WantKey;
                    self.actions.push_back(RenewalAction::GenerateKey);
                } else {
                    // At least a second on, so that a due time within this second is no spin.
                    let remaining = due.since(wall).clamp(Duration::from_secs(1), CLOCK_CHECK);
                    self.wake = Some(now.plus(remaining));
                }
            }
            State::Ready(key) => {
                if self.unaided || self.link == Some(IdentityChoice::Current) {
                    self.wake = None;
                    let csr_pem = key.csr_pem.clone();
                    self.state = State::Requesting(key.clone());
                    self.actions.push_back(RenewalAction::SendRefresh { csr_pem });
                } else {
                    // A tunnel's own event brings us back sooner.
                    self.wake = Some(now.plus(CLOCK_CHECK));
                    self.waits_for_link = true;
                }
            }
            State::WantKey
            | State::StoringKey(_)
            | State::Requesting(_)
            | State::StoringIssued(_)
            | State::Proving { .. }
            | State::Committing(_)
            | State::Dropping => self.wake = None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::contract::message::FederationCertificate;

    const DAY: u64 = 86_400;

    fn wall(days: u64) -> UnixTime {
        UnixTime::EPOCH.plus(Duration::from_secs(days * DAY))
    }

    fn identity(name: &str, from: u64, to: u64) -> StoredIdentity {
        StoredIdentity {
            pkcs8: Secret::from_text(name.into()),
            certificate: FederationCertificate {
                cert_pem: name.into(),
                ca_chain_pem: String::new(),
                serial: String::new(),
                not_after: wall(to),
            },
            not_before: wall(from),
        }
    }

    fn key() -> KeyMaterial {
        KeyMaterial {
            pkcs8: Secret::from_text("new".into()),
            csr_pem: "csr".into(),
        }
    }

    fn at(hours: u64) -> Moment {
        Moment::after_start(Duration::from_secs(hours * 3_600))
    }

    #[test]
    fn standing_over_a_lifetime() {
        let judge = |day| CertificateStanding::judge(wall(10), wall(100), wall(day));
        assert_eq!(judge(9), CertificateStanding::NotYetValid);
        assert_eq!(judge(77), CertificateStanding::Valid);
        assert_eq!(judge(78), CertificateStanding::RenewalDue);
        assert_eq!(judge(94), CertificateStanding::ExpiresSoon);
        assert_eq!(judge(101), CertificateStanding::Expired);
    }

    #[test]
    fn the_old_identity_stays_until_the_new_one_has_worked() {
        let mut machine = RenewalMachine::new(&identity("old", 0, 100), None, 1);
        machine.handle_event(RenewalEvent::LinkUp(IdentityChoice::Current), at(0), wall(74));
        assert!(machine.poll_action().is_none());
        machine.handle_event(RenewalEvent::Timeout, at(24), wall(75));
        assert!(matches!(machine.poll_action(), Some(RenewalAction::GenerateKey)));
        machine.handle_event(RenewalEvent::KeyGenerated(key()), at(24), wall(75));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::Store(Some(Candidate::Requested(_))))
        ));
        assert!(
            machine.poll_action().is_none(),
            "nothing leaves before the key is stored"
        );
        machine.handle_event(RenewalEvent::Stored, at(24), wall(75));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::SendRefresh { .. })
        ));
        machine.handle_event(RenewalEvent::Issued(identity("new", 75, 165)), at(24), wall(75));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::Store(Some(Candidate::Issued(_))))
        ));
        assert_eq!(machine.identity_choice(), IdentityChoice::Current);
        machine.handle_event(RenewalEvent::Stored, at(24), wall(75));
        assert_eq!(machine.identity_choice(), IdentityChoice::Candidate);
        machine.handle_event(
            RenewalEvent::HeartbeatAcknowledged(IdentityChoice::Current),
            at(24),
            wall(75),
        );
        assert!(
            machine.poll_action().is_none(),
            "a heartbeat over the old one proves nothing"
        );
        machine.handle_event(
            RenewalEvent::HeartbeatAcknowledged(IdentityChoice::Candidate),
            at(24),
            wall(75),
        );
        assert!(matches!(machine.poll_action(), Some(RenewalAction::Commit(_))));
        machine.handle_event(RenewalEvent::Stored, at(24), wall(75));
        assert_eq!(machine.identity_choice(), IdentityChoice::Current);
        assert!(machine.poll_timeout().unwrap() > at(24), "idle again");
    }

    #[test]
    fn a_candidate_that_does_not_work_is_dropped_and_made_anew_later() {
        let candidate = Candidate::Issued(identity("new", 75, 165));
        let mut machine = RenewalMachine::new(&identity("old", 0, 100), Some(candidate), 1);
        assert_eq!(machine.identity_choice(), IdentityChoice::Candidate);
        for _ in 0..CANDIDATE_REFUSALS_MAX {
            machine.handle_event(RenewalEvent::CandidateRefused, at(1), wall(76));
        }
        assert!(matches!(machine.poll_action(), Some(RenewalAction::Store(None))));
        assert_eq!(machine.identity_choice(), IdentityChoice::Current);
        machine.handle_event(RenewalEvent::Stored, at(1), wall(76));
        let again = machine.poll_timeout().unwrap();
        assert!(again > at(1));
        machine.handle_event(RenewalEvent::Timeout, again, wall(76));
        assert!(matches!(machine.poll_action(), Some(RenewalAction::GenerateKey)));
    }

    #[test]
    fn a_box_that_certifies_itself_needs_no_tunnel_however_late_it_is() {
        let mut machine = RenewalMachine::new(&identity("old", 0, 100), None, 1).unaided(true);
        machine.handle_event(RenewalEvent::Timeout, at(0), wall(400));
        assert!(matches!(machine.poll_action(), Some(RenewalAction::GenerateKey)));
        machine.handle_event(RenewalEvent::KeyGenerated(key()), at(0), wall(400));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::Store(Some(_)))
        ));
        machine.handle_event(RenewalEvent::Stored, at(0), wall(400));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::SendRefresh { .. })
        ));
        machine.handle_event(RenewalEvent::Issued(identity("new", 400, 490)), at(0), wall(400));
        machine.poll_action();
        machine.handle_event(RenewalEvent::Stored, at(0), wall(400));
        assert_eq!(machine.identity_choice(), IdentityChoice::Candidate);
    }

    #[test]
    fn what_is_wanted_early_is_renewed_once() {
        let mut machine = RenewalMachine::new(&identity("old", 0, 100), None, 1).unaided(true);
        machine.handle_event(RenewalEvent::Timeout, at(0), wall(1));
        assert!(machine.poll_action().is_none());
        machine.handle_event(RenewalEvent::Wanted, at(1), wall(1));
        assert!(matches!(machine.poll_action(), Some(RenewalAction::GenerateKey)));
        machine.handle_event(RenewalEvent::KeyGenerated(key()), at(1), wall(1));
        machine.handle_event(RenewalEvent::Stored, at(1), wall(1));
        machine.handle_event(RenewalEvent::Issued(identity("new", 1, 91)), at(1), wall(1));
        machine.handle_event(RenewalEvent::Stored, at(1), wall(1));
        for _ in 0..CANDIDATE_REFUSALS_MAX {
            assert_eq!(machine.identity_choice(), IdentityChoice::Candidate);
            machine.handle_event(RenewalEvent::CandidateRefused, at(2), wall(1));
        }
        machine.handle_event(RenewalEvent::Stored, at(2), wall(1));
        while machine.poll_action().is_some() {}
        machine.handle_event(RenewalEvent::Timeout, at(100), wall(5));
        assert!(
            machine.poll_action().is_none(),
            "the old one is good, and nothing else is wanted"
        );
    }

    #[test]
    fn a_restart_asks_again_with_the_stored_key() {
        let mut machine = RenewalMachine::new(&identity("old", 0, 100), Some(Candidate::Requested(key())), 1);
        machine.handle_event(RenewalEvent::Timeout, at(0), wall(80));
        assert!(machine.poll_action().is_none(), "no tunnel yet");
        machine.handle_event(RenewalEvent::LinkUp(IdentityChoice::Current), at(1), wall(80));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::SendRefresh { .. })
        ));
        machine.handle_event(RenewalEvent::RefreshFailed, at(1), wall(80));
        let again = machine.poll_timeout().unwrap();
        machine.handle_event(RenewalEvent::Timeout, again, wall(80));
        assert!(matches!(
            machine.poll_action(),
            Some(RenewalAction::SendRefresh { .. })
        ));
    }
}
