//! How a dialer that holds several tunnels to one peer says which of them belong together: as
//! features of its [`Hello`](super::Hello), which a host-bridge of an earlier build passes over.
//!
//! Without them the newest session of a peer displaces all others. With them, sessions of the same
//! *run* of a program live beside each other; those that it *replaces*, because it has lost them, and
//! those of any other run are displaced. One that is on *trial* takes the other side's new streams
//! only after that time.

use std::time::Duration;

use crate::base::id::SessionId;

/// In a welcome: the host-bridge keeps sessions of one run beside each other.
pub const SESSIONS_FEATURE: &str = "sessions";

/// In a welcome: the certificate that the dialer has shown is past its end; over this tunnel it may ask
/// for its renewal, soon, and for nothing else.
pub const RENEWAL_ONLY_FEATURE: &str = "renewal-only";

/// Most sessions that one hello names as lost. More than are ever lost between two hellos.
pub const REPLACES_MAX: usize = 8;

const RUN: &str = "run:";
const TRIAL: &str = "trial:";
const REPLACES: &str = "replaces:";

/// What a hello says of the dialer's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionClaim {
    /// A number that the program has drawn at its start; `None` for an earlier build.
    pub run: Option<u64>,
    /// How long this one takes no streams of the other side's where there is another.
    pub trial: Option<Duration>,
    /// Sessions of the same run that the dialer has lost.
    pub replaces: Vec<SessionId>,
}

impl SessionClaim {
    /// As features of a hello.
    pub fn features(&self) -> Vec<String> {
        let run = self.run.map(|run| format!("{RUN}{run:016x}"));
        let trial = self.trial.map(|trial| format!("{TRIAL}{}", trial.as_millis()));
        let replaces = self.replaces.iter().take(REPLACES_MAX);
        run.into_iter()
            .chain(trial)
            .chain(replaces.map(|session| format!("{REPLACES}{session}")))
            .collect()
    }

    /// Reads a hello's features; what is not understood is passed over.
    pub fn read(features: &[String]) -> Self {
        let mut claim = Self::default();
        for feature in features {
            if let Some(run) = feature.strip_prefix(RUN) {
                claim.run = u64::from_str_radix(run, 16).ok();
            } else if let Some(trial) = feature.strip_prefix(TRIAL) {
                claim.trial = trial.parse().ok().map(Duration::from_millis);
            } else if let Some(session) = feature.strip_prefix(REPLACES)
                && claim.replaces.len() < REPLACES_MAX
            {
                claim.replaces.extend(session.parse::<SessionId>());
            }
        }
        claim
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_claim_is_three_sorts_of_words() {
        let session: SessionId = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap();
        let claim = SessionClaim {
            run: Some(0xab),
            trial: Some(Duration::from_secs(10)),
            replaces: vec![session],
        };
        let features = [
            "run:00000000000000ab",
            "trial:10000",
            "replaces:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e",
        ];
        assert_eq!(claim.features(), features);
        assert_eq!(SessionClaim::read(&claim.features()), claim);
        assert_eq!(SessionClaim::read(&["datagrams".into()]), SessionClaim::default());
    }

    proptest! {
        #[test]
        fn no_features_panic(features in proptest::collection::vec("(run:|trial:|replaces:)?.{0,40}", 0..20)) {
            prop_assert!(SessionClaim::read(&features).replaces.len() <= REPLACES_MAX);
        }
    }
}
