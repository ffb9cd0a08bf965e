//! How cases are run: each against a parent, or against a child, of which the environment or a test says where it is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use super::client::Client;
use super::owner::{Owner, Skip, Wish};

/// Whose answers these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The host-bridge with its own registry.
    Standalone,
    /// A platform, behind a host-bridge or another proxy.
    Platform,
}

/// What a case runs against.
pub struct Target {
    pub client: Client,
    pub kind: Kind,
    pub owner: Box<dyn Owner>,
}

impl Target {
    /// What the owner gives, or why the case cannot go on.
    pub fn ask_owner(&self, wish: &Wish<'_>) -> Result<String, Skip> {
        self.owner.fulfil(wish).ok_or_else(|| Skip::missing(wish))
    }

    /// A fresh token: without one there is no suite.
    pub fn mint(&self) -> String {
        self.owner.fulfil(&Wish::Token).expect("the owner mints tokens")
    }

    /// The row that the parent keeps of a peer.
    pub fn peer(&self, peer: &str) -> Result<Value, Skip> {
        Ok(serde_json::from_str(&self.ask_owner(&Wish::Peer(peer))?).unwrap())
    }

    /// Goes on where the parent is of this kind.
    pub fn only(&self, kind: Kind, why: &str) -> Result<(), Skip> {
        if self.kind == kind {
            Ok(())
        } else {
            Err(Skip(why.to_owned()))
        }
    }
}

/// What became of a case that did not fail.
pub type Shown = Result<(), Skip>;

/// A case: the contract's section, what is claimed, and the proof.
pub type Case<T> = (&'static str, &'static str, fn(&T) -> Shown);

/// Runs all cases, says which hold, fails with those that do not, and gives those that could not be shown.
pub fn run_cases<T>(name: &str, cases: &[Case<T>], target: &T) -> Vec<&'static str> {
    let (mut failed, mut skipped) = (Vec::new(), Vec::new());
    for (section, claim, case) in cases {
        let outcome = catch_unwind(AssertUnwindSafe(|| case(target)));
        let words = match outcome {
            Ok(Ok(())) => "ok".to_owned(),
            Ok(Err(Skip(why))) => {
                skipped.push(*claim);
                format!("skipped: {why}")
            }
            Err(_) => {
                failed.push(*claim);
                "FAILED".to_owned()
            }
        };
        println!("{name}: section {section}: {claim}: {words}");
    }
    assert!(failed.is_empty(), "{name}: {failed:?}");
    skipped
}
