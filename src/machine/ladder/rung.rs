//! The rungs themselves, and what is remembered of each: when it is tried again, how often it came
//! up and collapsed, and why it does not carry. Knows no tunnel and no other rung.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::base::time::Moment;
use crate::machine::backoff::{Backoff, BackoffPolicy};

/// A tunnel that is lost sooner than this after it came up has collapsed. Longer, and the loss is
/// ordinary life: a router that was restarted, a line that was moved.
pub const COLLAPSED_WITHIN: Duration = Duration::from_secs(600);

/// So many collapses within [`COLLAPSED_WITHIN`] of each other bar a rung: one or two are chance.
pub const COLLAPSES_MAX: usize = 3;

/// First time of a bar; it doubles with each further collapse.
pub const BAR_INITIAL: Duration = Duration::from_secs(600);

/// Longest time of a bar: the network of the evening is not that of the morning.
pub const BAR_MAX: Duration = Duration::from_secs(3_600);

/// A rung that has carried for so long is trusted as if it had never collapsed.
pub const TRUSTED_AFTER: Duration = Duration::from_secs(1_800);

/// A way to the parent, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// The parent dials this box.
    Direct,
    /// QUIC over UDP to the host-bridge.
    Quic,
    /// TLS over TCP to the host-bridge.
    Tls,
    /// The same through an HTTP CONNECT proxy.
    Proxy,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Quic, Self::Tls, Self::Proxy];

    /// Its name in reports and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a rung that is better than the one in use does not carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyNot {
    /// It has not been tried yet.
    NotTried,
    /// No endpoint of this box is proven at which the parent could dial it.
    NoWayIn,
    /// A dial is under way.
    Trying,
    /// A tunnel is up and is being proven.
    Proving {
        /// It carries from then on.
        until: Moment,
    },
    /// The last try failed.
    Failed {
        /// In words.
        why: String,
    },
    /// It came up and collapsed so often that it is left alone for a while.
    Barred {
        /// Until then.
        until: Moment,
        /// The last collapse, in words.
        why: String,
    },
}

/// What is remembered of one rung.
#[derive(Debug)]
pub(super) struct RungRecord {
    /// When it is tried again while a worse one carries.
    next_try: Option<Moment>,
    climb: Backoff,
    collapses: VecDeque<Moment>,
    bars: u32,
    barred_until: Option<Moment>,
    why: Option<String>,
}

impl RungRecord {
    pub(super) const fn new(policy: BackoffPolicy, seed: u64) -> Self {
        Self {
            next_try: None,
            climb: Backoff::new(policy, seed),
            collapses: VecDeque::new(),
            bars: 0,
            barred_until: None,
            why: None,
        }
    }

    pub(super) const fn set_policy(&mut self, policy: BackoffPolicy) {
        self.climb.set_policy(policy);
    }

    pub(super) fn is_barred(&self, now: Moment) -> bool {
        self.barred_until.is_some_and(|until| now < until)
    }

    /// When it may be tried while a worse rung carries; `None` until that is decided.
    pub(super) fn next_try(&self) -> Option<Moment> {
        let at = self.next_try?;
        Some(self.barred_until.map_or(at, |until| at.max(until)))
    }

    /// A worse rung carries: this one is tried again, whether it has failed or was not needed.
    pub(super) fn plan(&mut self, now: Moment) {
        if self.next_try.is_none() {
            self.next_try = Some(now.plus(self.climb.next_delay()));
        }
    }

    /// Something that it takes is there: it is tried at once, whatever came of it before.
    pub(super) const fn opened(&mut self, now: Moment) {
        self.climb.reset();
        self.next_try = Some(now);
    }

    /// A dial begins, or none is to be made.
    pub(super) const fn tried(&mut self) {
        self.next_try = None;
    }

    /// A dial failed.
    pub(super) fn failed(&mut self, why: String) {
        self.why = Some(why);
        self.next_try = None;
    }

    /// A tunnel that came up at `since` was lost to the network.
    pub(super) fn collapsed(&mut self, since: Moment, why: String, now: Moment) {
        self.failed(why);
        if now.since(since) >= COLLAPSED_WITHIN {
            self.collapses.clear();
            return;
        }
        self.collapses
            .retain(|collapse| now.since(*collapse) < COLLAPSED_WITHIN);
        self.collapses.push_back(now);
        // One that was barred before is not given as many chances again.
        if self.bars == 0 && self.collapses.len() < COLLAPSES_MAX {
            return;
        }
        self.bar(now);
    }

    /// It is up and carries next to nothing: there is nothing to wait for.
    pub(super) fn overrun(&mut self, why: String, now: Moment) {
        self.failed(why);
        self.bar(now);
    }

    fn bar(&mut self, now: Moment) {
        self.collapses.clear();
        let factor = 1u32.checked_shl(self.bars).unwrap_or(u32::MAX);
        self.bars = self.bars.saturating_add(1);
        self.barred_until = Some(now.plus(BAR_INITIAL.saturating_mul(factor).min(BAR_MAX)));
    }

    /// It has carried for [`TRUSTED_AFTER`].
    pub(super) fn trusted(&mut self) {
        self.collapses.clear();
        self.bars = 0;
        self.barred_until = None;
        self.climb.reset();
        self.why = None;
    }

    /// Another network, or an operator's wish: failures of before say nothing about it. Collapses do:
    /// an interface that comes and goes is a network that flaps.
    pub(super) fn network_changed(&mut self, now: Moment) {
        self.climb.reset();
        if self.next_try.is_some() {
            self.next_try = Some(now);
        }
    }

    pub(super) fn why_not(&self, now: Moment) -> WhyNot {
        match (self.barred_until, &self.why) {
            (Some(until), why) if now < until => WhyNot::Barred {
                until,
                why: why.clone().unwrap_or_default(),
            },
            (_, Some(why)) => WhyNot::Failed { why: why.clone() },
            (_, None) => WhyNot::NotTried,
        }
    }
}
