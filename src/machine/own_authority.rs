//! How a box that certifies itself goes over from one authority of its own to the next without losing a
//! heartbeat. The new one is announced beside the old one, which vouches for it; once the parent has fetched that,
//! or has had a day for it, the certificate is issued anew under the new one, with the old one's word in its chain;
//! what proves it is a heartbeat, as with every renewal. Both stay in the trust bundle for a time. A parent that
//! does not take the new certificate is asked again later, and the old authority goes on.
//!
//! A function of what is durable, of a few facts and of the time: whoever carries a step out makes its outcome
//! durable first.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::membership::KeptAuthority;
use super::renewal::renewal_due;
use crate::base::secret::{self, Secret};
use crate::base::time::UnixTime;

/// How long the parent has for fetching the new authority before the certificate is issued under it all the
/// same: our host-bridge looks at once, others perhaps daily. A parent that never looks still finds the old
/// authority's word in the chain.
pub const ANNOUNCED_FOR: Duration = Duration::from_secs(24 * 3_600);

/// From a certificate of the new authority that the parent did not take to the next one.
pub const TRY_AGAIN: Duration = Duration::from_secs(24 * 3_600);

/// How long both are served after the new one has taken over, by a parent that has fetched it: for what else
/// there verifies this box and looks more seldom.
pub const OVERLAP: Duration = Duration::from_secs(30 * 24 * 3_600);

/// A change of the authority that is under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Succession {
    /// The certificate of the old one.
    pub previous_pem: String,
    /// The certificate of the new one.
    pub next_pem: String,
    /// The old one's word for the new one.
    pub cross_pem: String,
    /// Since when.
    pub begun_at: UnixTime,
    /// When the parent fetched both first.
    pub fetched_at: Option<UnixTime>,
    /// How far it is.
    pub stage: SuccessionStage,
}

/// How far a change of the authority is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SuccessionStage {
    /// The old one issues.
    Announced {
        /// PKCS#8 DER of the new one.
        #[serde(with = "secret::stored")]
        key: Secret,
        /// When the certificate is issued under the new one, fetched or not.
        try_at: UnixTime,
    },
    /// A certificate of the new one is being proven.
    Proving {
        /// PKCS#8 DER of the new one.
        #[serde(with = "secret::stored")]
        key: Secret,
    },
    /// The new one issues, and the old one is still served.
    Overlap {
        /// Since when.
        since: UnixTime,
    },
}

/// What there is to know beside the succession itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// Begin of the validity of the authority that issues.
    pub not_before: UnixTime,
    /// Its end.
    pub not_after: UnixTime,
    /// End of the old one's validity, while there are two.
    pub previous_ends: Option<UnixTime>,
    /// Whether the certificate in use is the new one's.
    pub is_next_in_use: bool,
    /// Whether a certificate is being renewed.
    pub renewal: bool,
    /// Whether this run of the program has asked for the renewal under the new authority.
    pub asked: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityStep {
    /// Make the next authority and announce it.
    Announce,
    /// From now on the new one issues; have the certificate renewed.
    Prove,
    /// Have the certificate renewed.
    Renew,
    /// The new one is proven: it takes the old one's place.
    Adopt,
    /// The parent did not take its certificate: the old one goes on until then.
    Postpone {
        /// Until when.
        try_at: UnixTime,
    },
    /// Serve the old one no more.
    Retire,
}

/// Why an owner's wish is not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionRefused {
    /// Two changes at once would leave the parent behind.
    #[error(
        "a change of this box's authority is under way since {begun_at}; `powernode-satellite status` shows how far it \
         is, and `powernode-satellite authority retire` ends one whose new authority is in use"
    )]
    UnderWay {
        /// Since when.
        begun_at: UnixTime,
    },
    /// There is nothing to retire.
    #[error("there is one authority of this box alone, so there is none to retire")]
    NothingToRetire,
    /// The old one still issues.
    #[error(
        "the parent has not taken a certificate of the new authority yet, so the old one is still needed; \
         `powernode-satellite status` shows how far the change is"
    )]
    NotProven,
    /// The parent would be left without an anchor.
    #[error(
        "the parent has not fetched the new authority yet and would know this box no more once its certificate is \
         renewed; wait, or say --force if the parent's operator has installed the new one"
    )]
    NotFetched,
}

/// How an authority is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retirement {
    /// Where the parent knows the new one.
    InTime,
    /// The owner insists.
    Forced,
}

impl Succession {
    /// One that begins.
    pub fn announced(next: KeptAuthority, previous_pem: String, cross_pem: String, now: UnixTime) -> Self {
        Self {
            previous_pem,
            next_pem: next.certificate_pem,
            cross_pem,
            begun_at: now,
            fetched_at: None,
            stage: SuccessionStage::Announced {
                key: next.pkcs8,
                try_at: now.plus(ANNOUNCED_FOR),
            },
        }
    }

    /// Whether this is about the authority that a membership has.
    pub fn concerns(&self, own: &KeptAuthority) -> bool {
        let is_next = self.next_pem == own.certificate_pem;
        match self.stage {
            SuccessionStage::Announced { .. } => self.previous_pem == own.certificate_pem,
            // A crash may have come between the membership's change and this one's.
            SuccessionStage::Proving { .. } => is_next || self.previous_pem == own.certificate_pem,
            SuccessionStage::Overlap { .. } => is_next,
        }
    }

    /// The new authority, until it has taken over.
    pub fn next(&self) -> Option<KeptAuthority> {
        match &self.stage {
            SuccessionStage::Announced { key, .. } | SuccessionStage::Proving { key } => {
                Some(KeptAuthority {
                    pkcs8: key.clone(),
                    certificate_pem: self.next_pem.clone(),
                })
            }
            SuccessionStage::Overlap { .. } => None,
        }
    }

    /// What issues certificates now, and the word that goes with them. `own` is the membership's.
    pub fn issuer(&self, own: &KeptAuthority) -> (KeptAuthority, Option<&str>) {
        match &self.stage {
            SuccessionStage::Announced { .. } => (own.clone(), None),
            SuccessionStage::Proving { .. } => {
                (self.next().unwrap_or_else(|| own.clone()), Some(&self.cross_pem))
            }
            SuccessionStage::Overlap { .. } => (own.clone(), Some(&self.cross_pem)),
        }
    }

    /// Both, the old one first.
    pub fn bundle_pem(&self) -> String {
        format!("{}{}", self.previous_pem, self.next_pem)
    }

    /// The same after a step, as it is to be kept; `None` where nothing is.
    #[must_use]
    pub fn after(self, step: AuthorityStep, now: UnixTime) -> Option<Self> {
        let next = self.next();
        let stage = match (step, self.stage) {
            (AuthorityStep::Retire, _) => return None,
            (AuthorityStep::Prove, SuccessionStage::Announced { key, .. }) => {
                SuccessionStage::Proving { key }
            }
            (AuthorityStep::Postpone { try_at }, SuccessionStage::Proving { key }) => {
                SuccessionStage::Announced { key, try_at }
            }
            (AuthorityStep::Adopt, _) if next.is_some() => SuccessionStage::Overlap { since: now },
            (_, stage) => stage,
        };
        Some(Self { stage, ..self })
    }

    /// The parent has fetched a bundle with both. Whether that is news: then the new one is tried at once.
    pub fn fetched(&mut self, now: UnixTime) -> bool {
        if self.fetched_at.is_some() {
            return false;
        }
        self.fetched_at = Some(now);
        if let SuccessionStage::Announced { try_at, .. } = &mut self.stage {
            *try_at = now.min(*try_at);
        }
        true
    }

    /// Whether the owner may end it.
    pub const fn may_retire(&self, how: Retirement) -> Result<(), SuccessionRefused> {
        match (&self.stage, how) {
            (SuccessionStage::Announced { .. } | SuccessionStage::Proving { .. }, _) => {
                Err(SuccessionRefused::NotProven)
            }
            (SuccessionStage::Overlap { .. }, Retirement::InTime) if self.fetched_at.is_none() => {
                Err(SuccessionRefused::NotFetched)
            }
            (SuccessionStage::Overlap { .. }, _) => Ok(()),
        }
    }
}

/// What is to be done now, if anything.
pub fn next_step(
    succession: Option<&Succession>,
    facts: &AuthorityFacts,
    now: UnixTime,
) -> Option<AuthorityStep> {
    let Some(succession) = succession else {
        // One that has ended can vouch for nobody any more.
        let due = now >= rotation_due(facts.not_before, facts.not_after) && now < facts.not_after;
        return due.then_some(AuthorityStep::Announce);
    };
    match &succession.stage {
        SuccessionStage::Announced { try_at, .. } => {
            (now >= *try_at && !facts.renewal).then_some(AuthorityStep::Prove)
        }
        SuccessionStage::Proving { .. } => {
            if facts.is_next_in_use {
                Some(AuthorityStep::Adopt)
            } else if facts.renewal {
                None
            } else if facts.asked {
                Some(AuthorityStep::Postpone {
                    try_at: now.plus(TRY_AGAIN),
                })
            } else {
                Some(AuthorityStep::Renew)
            }
        }
        SuccessionStage::Overlap { since } => {
            let known = succession.fetched_at.is_some() && now >= since.plus(OVERLAP);
            let ended = facts.previous_ends.is_none_or(|ends| now > ends);
            (known || ended).then_some(AuthorityStep::Retire)
        }
    }
}

/// When an authority is followed by the next by itself.
pub fn rotation_due(not_before: UnixTime, not_after: UnixTime) -> UnixTime {
    renewal_due(not_before, not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn at(days: u64) -> UnixTime {
        UnixTime::EPOCH.plus(Duration::from_secs(days * DAY))
    }

    fn authority(name: &str) -> KeptAuthority {
        KeptAuthority {
            pkcs8: Secret::from_text(name.to_owned()),
            certificate_pem: name.to_owned(),
        }
    }

    fn announced() -> Succession {
        Succession::announced(authority("new"), "old".to_owned(), "cross".to_owned(), at(10))
    }

    const FACTS: AuthorityFacts = AuthorityFacts {
        not_before: UnixTime::EPOCH,
        not_after: UnixTime::from_seconds(1_000 * 86_400),
        previous_ends: Some(UnixTime::from_seconds(1_000 * 86_400)),
        is_next_in_use: false,
        renewal: false,
        asked: false,
    };

    /// After a step that must be due.
    fn stepped(
        succession: Succession,
        facts: &AuthorityFacts,
        now: UnixTime,
    ) -> (AuthorityStep, Option<Succession>) {
        let Some(step) = next_step(Some(&succession), facts, now) else {
            panic!("nothing is due at {now}: {succession:?}");
        };
        (step, succession.after(step, now))
    }

    #[test]
    fn it_begins_by_itself_at_three_quarters_of_the_authoritys_life() {
        assert_eq!(next_step(None, &FACTS, at(749)), None);
        assert_eq!(next_step(None, &FACTS, at(750)), Some(AuthorityStep::Announce));
        assert_eq!(next_step(None, &FACTS, at(1_000)), None, "it has ended");
    }

    #[test]
    fn what_the_parent_has_fetched_is_used_at_once_and_both_are_served_for_a_month() {
        let (old, new) = (authority("old"), authority("new"));
        let mut succession = announced();
        assert!(succession.concerns(&old) && !succession.concerns(&authority("other")));
        assert_eq!(next_step(Some(&succession), &FACTS, at(10)), None);
        assert_eq!(succession.issuer(&old).0.certificate_pem, "old");
        assert!(succession.fetched(at(10)) && !succession.fetched(at(11)));
        let busy = AuthorityFacts {
            renewal: true,
            ..FACTS
        };
        assert_eq!(
            next_step(Some(&succession), &busy, at(10)),
            None,
            "one renewal at a time"
        );
        let (step, succession) = stepped(succession, &FACTS, at(10));
        assert_eq!(step, AuthorityStep::Prove);
        let succession = succession.unwrap_or_else(announced);
        let (issuer, word) = succession.issuer(&old);
        assert_eq!((issuer.certificate_pem.as_str(), word), ("new", Some("cross")));
        assert_eq!(
            next_step(Some(&succession), &FACTS, at(10)),
            Some(AuthorityStep::Renew)
        );
        assert_eq!(next_step(Some(&succession), &busy, at(10)), None);
        assert_eq!(
            succession.may_retire(Retirement::Forced),
            Err(SuccessionRefused::NotProven)
        );
        let proven = AuthorityFacts {
            is_next_in_use: true,
            asked: true,
            ..FACTS
        };
        let (step, succession) = stepped(succession, &proven, at(11));
        assert_eq!(step, AuthorityStep::Adopt);
        let succession = succession.unwrap_or_else(announced);
        assert!(succession.concerns(&new) && !succession.concerns(&old));
        assert!(
            succession.next().is_none(),
            "its key is the membership's alone now"
        );
        assert_eq!(succession.issuer(&new).1, Some("cross"));
        assert_eq!(succession.bundle_pem(), "oldnew");
        assert_eq!(next_step(Some(&succession), &proven, at(40)), None);
        let (step, after) = stepped(succession, &proven, at(41));
        assert_eq!(step, AuthorityStep::Retire);
        assert!(after.is_none());
    }

    #[test]
    fn a_parent_that_never_fetches_is_tried_after_a_day_and_again_each_day() {
        let succession = announced();
        assert_eq!(next_step(Some(&succession), &FACTS, at(10)), None);
        let (step, succession) = stepped(succession, &FACTS, at(11));
        assert_eq!(step, AuthorityStep::Prove);
        let succession = succession.unwrap_or_else(announced);
        let refused = AuthorityFacts { asked: true, ..FACTS };
        let (step, succession) = stepped(succession, &refused, at(11));
        assert_eq!(step, AuthorityStep::Postpone { try_at: at(12) });
        let succession = succession.unwrap_or_else(announced);
        assert_eq!(
            succession.issuer(&authority("old")).0.certificate_pem,
            "old",
            "what renews meanwhile is the authority that the parent knows"
        );
        assert_eq!(next_step(Some(&succession), &refused, at(11)), None);
        assert_eq!(
            next_step(Some(&succession), &refused, at(12)),
            Some(AuthorityStep::Prove)
        );
    }

    #[test]
    fn the_old_one_stays_served_until_the_parent_has_the_new_one_or_its_life_ends() {
        let overlap = Succession {
            stage: SuccessionStage::Overlap { since: at(11) },
            ..announced()
        };
        assert_eq!(next_step(Some(&overlap), &FACTS, at(900)), None);
        assert_eq!(
            overlap.may_retire(Retirement::InTime),
            Err(SuccessionRefused::NotFetched)
        );
        assert_eq!(overlap.may_retire(Retirement::Forced), Ok(()));
        let late = next_step(Some(&overlap), &FACTS, at(1_001));
        assert_eq!(late, Some(AuthorityStep::Retire));
        let fetched = Succession {
            fetched_at: Some(at(12)),
            ..overlap
        };
        assert_eq!(fetched.may_retire(Retirement::InTime), Ok(()));
    }

    #[test]
    fn a_crash_between_the_membership_and_the_succession_is_made_up_for() {
        let proving = Succession {
            stage: SuccessionStage::Proving {
                key: Secret::from_text("new".to_owned()),
            },
            ..announced()
        };
        assert!(proving.concerns(&authority("old")) && proving.concerns(&authority("new")));
        let facts = AuthorityFacts {
            is_next_in_use: true,
            ..FACTS
        };
        assert_eq!(
            next_step(Some(&proving), &facts, at(11)),
            Some(AuthorityStep::Adopt)
        );
    }
}
