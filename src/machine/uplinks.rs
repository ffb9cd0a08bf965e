//! Several host-bridges, a ladder to each: how many are held at once, which ones, and which tunnel is
//! the *primary*, over which this side's own requests go. What the parent opens is served on all.
//!
//! Bridges are preferred in the order of the configuration. As many as the redundancy asks for are
//! kept; where one of them does not come up, the next in order is taken in its place at once, and is let
//! go when it is not needed any more. The primary stays the primary as long as its bridge has a tunnel.

use std::collections::VecDeque;
use std::time::Duration;

use super::ladder::{
    Carrier, LadderAction, LadderEvent, LadderMachine, LadderPolicy, LadderState, Rung, TunnelId, WayIn,
};
use crate::base::time::Moment;
use crate::contract::invitation::HostPort;

/// Tunnels to different host-bridges at once, where so many are named.
pub const DEFAULT_REDUNDANCY: u32 = 2;

/// Time that a bridge has before the next in order is dialled beside it: a slow handshake, and far less
/// than a person waits.
pub const BRIDGE_HEAD_START: Duration = Duration::from_secs(2);

/// A preferred bridge that has had a tunnel for so long is back for good, and its substitute goes.
pub const SUBSTITUTE_GOES_AFTER: Duration = Duration::from_secs(60);

/// Tunnels of one ladder have the same upper half of their numbers.
const LADDER_SHIFT: u32 = 32;

/// How many bridges, and how each is climbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinksPolicy {
    /// Of each ladder.
    pub ladder: LadderPolicy,
    /// How many bridges have a tunnel at once; at least one.
    pub redundancy: u32,
}

impl Default for UplinksPolicy {
    fn default() -> Self {
        Self {
            ladder: LadderPolicy::default(),
            redundancy: DEFAULT_REDUNDANCY,
        }
    }
}

/// What the machine wants done; see [`LadderAction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkAction {
    /// Dial this bridge.
    Dial(UplinkDial),
    /// Give up a dial, or end a tunnel.
    Hangup(TunnelId),
    /// Open nothing more on it; report when it has no open stream.
    Retire(TunnelId),
    /// Ask for a sign of life.
    Probe(TunnelId),
}

/// One dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkDial {
    /// The number of what comes of it.
    pub id: TunnelId,
    /// Whom.
    pub bridge: HostPort,
    /// Which way.
    pub rung: Rung,
    /// How long it will be on trial, if it will.
    pub trial: Option<Duration>,
}

/// All ladders together, for status and watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No tunnel is wanted.
    Off,
    /// Dials are under way.
    Dialing,
    /// At least one tunnel is up, since then without a gap.
    Connected(Moment),
    /// The next dial starts then.
    Waiting(Moment),
}

/// One bridge's ladder.
#[derive(Debug)]
pub struct Uplink {
    /// Whom.
    pub bridge: HostPort,
    /// How far.
    pub ladder: LadderMachine,
    /// The upper half of its tunnels' numbers.
    number: u64,
    /// Since when it is wanted, or without a tunnel.
    since: Moment,
}

impl Uplink {
    fn is_on(&self) -> bool {
        self.ladder.state() != LadderState::Off
    }

    /// It has a tunnel, or is about to.
    fn is_hopeful(&self, now: Moment) -> bool {
        let fresh = self.ladder.failures() == 0 && now.since(self.since) < BRIDGE_HEAD_START;
        self.ladder.carrier().is_some() || (self.is_on() && fresh)
    }

    fn is_settled(&self, now: Moment) -> bool {
        self.ladder
            .carrier()
            .is_some_and(|carrier| now.since(carrier.up_since) >= SUBSTITUTE_GOES_AFTER)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Uplinks {
    policy: UplinksPolicy,
    seed: u64,
    on: bool,
    /// One tunnel alone, whatever the policy says: a join is made once.
    single: bool,
    made: u64,
    ladders: Vec<Uplink>,
    /// Bridges that are not named any more, while streams to them are open.
    leaving: Vec<Uplink>,
    way_in: WayIn,
    primary: Option<TunnelId>,
    connected_since: Option<Moment>,
    /// The last event's time.
    now: Moment,
    actions: VecDeque<UplinkAction>,
}

impl Uplinks {
    /// Off, to nobody.
    pub const fn new(policy: UplinksPolicy, seed: u64) -> Self {
        Self {
            policy,
            seed,
            on: false,
            single: false,
            made: 0,
            ladders: Vec::new(),
            leaving: Vec::new(),
            way_in: WayIn::Closed,
            primary: None,
            connected_since: None,
            now: Moment::START,
            actions: VecDeque::new(),
        }
    }

    /// Other numbers from now on.
    pub fn set_policy(&mut self, policy: UplinksPolicy, now: Moment) {
        self.policy = policy;
        for uplink in &mut self.ladders {
            uplink.ladder.set_policy(self.policy.ladder.clone(), now);
        }
        self.settle(now);
    }

    /// The bridges, best first. Those that stay keep their tunnels; those that go are let go.
    pub fn set_bridges(&mut self, bridges: &[HostPort], now: Moment) {
        if self.ladders.iter().map(|uplink| &uplink.bridge).eq(bridges) {
            return;
        }
        let mut before = std::mem::take(&mut self.ladders);
        for bridge in bridges {
            let uplink = match before.iter().position(|uplink| uplink.bridge == *bridge) {
                Some(at) => before.remove(at),
                None => self.uplink(bridge.clone(), now),
            };
            self.ladders.push(uplink);
        }
        for mut gone in before {
            gone.ladder.handle_event(LadderEvent::Dismiss, now);
            self.leaving.push(gone);
        }
        self.settle(now);
    }

    /// Tunnels are wanted: a single one, or as many as the policy says.
    pub fn enable(&mut self, single: bool, now: Moment) {
        self.on = true;
        self.single = single;
        self.settle(now);
    }

    /// None is wanted, at once.
    pub fn disable(&mut self, now: Moment) {
        self.on = false;
        self.tell_all(&LadderEvent::Disable, now);
    }

    /// What dials present has changed: new tunnels are wanted, and the streams of the old ones may end.
    pub fn renew(&mut self, now: Moment) {
        for uplink in &mut self.ladders {
            uplink.since = now;
        }
        self.tell_all(&LadderEvent::Renew, now);
    }

    /// One event of one tunnel.
    pub fn handle_event(&mut self, id: TunnelId, event: LadderEvent, now: Moment) {
        let number = id.0 >> LADDER_SHIFT;
        let mut all = self.ladders.iter_mut().chain(&mut self.leaving);
        if let Some(uplink) = all.find(|uplink| uplink.number == number) {
            let carried = uplink.ladder.carrier().is_some();
            uplink.ladder.handle_event(event, now);
            if carried && uplink.ladder.carrier().is_none() {
                uplink.since = now;
            }
        }
        self.settle(now);
    }

    /// One event for all ladders: a changed network, a reload, time.
    pub fn tell_all(&mut self, event: &LadderEvent, now: Moment) {
        for uplink in self.ladders.iter_mut().chain(&mut self.leaving) {
            uplink.ladder.handle_event(event.clone(), now);
        }
        self.settle(now);
    }

    /// Whether host-bridges could dial this box, from now on.
    pub fn set_way_in(&mut self, way_in: WayIn, now: Moment) {
        self.way_in = way_in;
        self.tell_all(&LadderEvent::WayIn(way_in), now);
    }

    /// A host-bridge has dialled by itself, and waits to be greeted.
    pub fn called(&mut self, bridge: &HostPort, now: Moment) {
        if let Some(uplink) = self.ladders.iter_mut().find(|uplink| uplink.bridge == *bridge) {
            uplink.ladder.handle_event(LadderEvent::Called, now);
        }
        self.settle(now);
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<UplinkAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let of_ladders = self
            .ladders
            .iter()
            .filter_map(|uplink| uplink.ladder.poll_timeout());
        let head_starts = self
            .ladders
            .iter()
            .map(|uplink| uplink.since.plus(BRIDGE_HEAD_START));
        let settling = self.ladders.iter().filter_map(|uplink| {
            let carrier = uplink.ladder.carrier()?;
            Some(carrier.up_since.plus(SUBSTITUTE_GOES_AFTER))
        });
        let of_bridges = head_starts.chain(settling).filter(|at| self.on && *at > self.now);
        of_ladders.chain(of_bridges).min()
    }

    /// The tunnel over which this side's requests go.
    pub const fn primary(&self) -> Option<TunnelId> {
        self.primary
    }

    /// Every bridge's ladder, best first.
    pub fn ladders(&self) -> &[Uplink] {
        &self.ladders
    }

    /// Whether this tunnel is one that new streams may use.
    pub fn is_carrier(&self, id: TunnelId) -> bool {
        self.carriers().any(|carrier| carrier.id == id)
    }

    /// All ladders together.
    pub fn state(&self) -> LinkState {
        if let Some(since) = self.connected_since {
            return LinkState::Connected(since);
        }
        let mut waiting = None;
        for uplink in &self.ladders {
            match uplink.ladder.state() {
                LadderState::Racing | LadderState::Carried(_) => return LinkState::Dialing,
                LadderState::Waiting(until) => {
                    waiting = Some(waiting.map_or(until, |at: Moment| at.min(until)));
                }
                LadderState::Off => {}
            }
        }
        waiting.map_or(LinkState::Off, LinkState::Waiting)
    }

    /// Failed races of the bridge that does best.
    pub fn failures(&self) -> u32 {
        let on = self.ladders.iter().filter(|uplink| uplink.is_on());
        on.map(|uplink| uplink.ladder.failures()).min().unwrap_or(0)
    }

    fn carriers(&self) -> impl Iterator<Item = Carrier> {
        self.ladders.iter().filter_map(|uplink| uplink.ladder.carrier())
    }

    fn uplink(&mut self, bridge: HostPort, now: Moment) -> Uplink {
        self.made += 1;
        let seed = self.seed.wrapping_mul(self.made | 1).rotate_left(24);
        let first_id = self.made << LADDER_SHIFT;
        let mut ladder = LadderMachine::new(self.policy.ladder.clone(), first_id, seed);
        ladder.handle_event(LadderEvent::WayIn(self.way_in), now);
        Uplink {
            bridge,
            ladder,
            number: self.made,
            since: now,
        }
    }

    /// Enables and lets go, takes the ladders' actions over, and names the primary.
    fn settle(&mut self, now: Moment) {
        self.now = now;
        if self.on {
            let wanted = if self.single {
                1
            } else {
                self.policy.redundancy.max(1)
            };
            let (mut hopeful, mut settled) = (0, 0);
            for uplink in &mut self.ladders {
                if settled >= wanted {
                    uplink.ladder.handle_event(LadderEvent::Dismiss, now);
                } else if hopeful < wanted && !uplink.is_on() {
                    uplink.since = now;
                    uplink.ladder.handle_event(LadderEvent::Enable, now);
                }
                hopeful += u32::from(uplink.is_hopeful(now));
                settled += u32::from(uplink.is_settled(now));
            }
        }
        for uplink in self.ladders.iter_mut().chain(&mut self.leaving) {
            collect(uplink, &mut self.actions);
        }
        self.leaving.retain(|uplink| uplink.ladder.draining() > 0);
        self.choose_primary(now);
    }

    fn choose_primary(&mut self, now: Moment) {
        let same_bridge = |id: TunnelId, other: TunnelId| id.0 >> LADDER_SHIFT == other.0 >> LADDER_SHIFT;
        let carriers: Vec<TunnelId> = self.carriers().map(|carrier| carrier.id).collect();
        let stays = self
            .primary
            .and_then(|primary| carriers.iter().find(|id| same_bridge(primary, **id)));
        self.primary = stays.or(carriers.first()).copied();
        self.connected_since = self.primary.and(self.connected_since.or(Some(now)));
    }
}

fn collect(uplink: &mut Uplink, actions: &mut VecDeque<UplinkAction>) {
    while let Some(action) = uplink.ladder.poll_action() {
        actions.push_back(match action {
            LadderAction::Dial { id, rung, trial } => UplinkAction::Dial(UplinkDial {
                id,
                bridge: uplink.bridge.clone(),
                rung,
                trial,
            }),
            LadderAction::Hangup(id) => UplinkAction::Hangup(id),
            LadderAction::Retire(id) => UplinkAction::Retire(id),
            LadderAction::Probe(id) => UplinkAction::Probe(id),
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::ladder::{DialFailure, Loss, Setback};

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn bridge(n: usize) -> HostPort {
        HostPort::parse(&format!("bridge{n}.example.com"), 8443).unwrap()
    }

    fn uplinks(bridges: usize) -> Uplinks {
        let policy = UplinksPolicy {
            ladder: LadderPolicy {
                rungs: vec![Rung::Quic],
                ..LadderPolicy::default()
            },
            ..UplinksPolicy::default()
        };
        let mut uplinks = Uplinks::new(policy, 3);
        let bridges: Vec<_> = (0..bridges).map(bridge).collect();
        uplinks.set_bridges(&bridges, at(0));
        uplinks
    }

    fn dials(uplinks: &mut Uplinks) -> Vec<UplinkDial> {
        let actions = std::iter::from_fn(|| uplinks.poll_action());
        let dials = actions.filter_map(|action| match action {
            UplinkAction::Dial(dial) => Some(dial),
            UplinkAction::Hangup(_) | UplinkAction::Retire(_) | UplinkAction::Probe(_) => None,
        });
        dials.collect()
    }

    fn connect(uplinks: &mut Uplinks, id: TunnelId, now: Moment) {
        uplinks.handle_event(id, LadderEvent::Connected(id), now);
    }

    fn lose(uplinks: &mut Uplinks, id: TunnelId, now: Moment) {
        let loss = Loss {
            setback: Setback::Transient,
            told: false,
            why: "silent".into(),
        };
        uplinks.handle_event(id, LadderEvent::Lost(id, loss), now);
    }

    fn fail(uplinks: &mut Uplinks, id: TunnelId, now: Moment) {
        let failure = DialFailure {
            setback: Setback::Persistent,
            answered: true,
            why: "not known here".into(),
        };
        uplinks.handle_event(id, LadderEvent::DialFailed(id, failure), now);
    }

    #[test]
    fn two_of_three_bridges_are_held_and_the_third_is_a_substitute() {
        let mut uplinks = uplinks(3);
        uplinks.enable(false, at(0));
        let first = dials(&mut uplinks);
        assert_eq!(first.len(), 2);
        connect(&mut uplinks, first[1].id, at(50));
        assert_eq!(uplinks.primary(), Some(first[1].id), "the first that is up");
        connect(&mut uplinks, first[0].id, at(60));
        assert_eq!(uplinks.primary(), Some(first[1].id), "and it stays");

        lose(&mut uplinks, first[1].id, at(10_000));
        assert_eq!(uplinks.primary(), Some(first[0].id), "at once");
        assert_eq!(uplinks.state(), LinkState::Connected(at(50)), "nobody notices");
        let substitute = dials(&mut uplinks);
        assert_eq!(substitute.len(), 1);
        assert_eq!(substitute[0].bridge, bridge(2));
        connect(&mut uplinks, substitute[0].id, at(10_050));

        uplinks.tell_all(&LadderEvent::Timeout, at(10_500));
        let again = dials(&mut uplinks);
        assert_eq!(again[0].bridge, bridge(1));
        connect(&mut uplinks, again[0].id, at(10_600));
        let goes = at(10_600).plus(SUBSTITUTE_GOES_AFTER);
        assert!(uplinks.poll_timeout().unwrap() <= goes);
        uplinks.tell_all(&LadderEvent::Timeout, goes);
        let actions: Vec<_> = std::iter::from_fn(|| uplinks.poll_action()).collect();
        assert_eq!(
            actions,
            [UplinkAction::Retire(substitute[0].id)],
            "its streams may end"
        );
    }

    #[test]
    fn a_bridge_that_does_not_know_the_peer_is_a_matter_of_its_own() {
        let mut uplinks = uplinks(2);
        uplinks.enable(false, at(0));
        let first = dials(&mut uplinks);
        connect(&mut uplinks, first[0].id, at(50));
        fail(&mut uplinks, first[1].id, at(60));
        assert_eq!(uplinks.primary(), Some(first[0].id));
        assert_eq!(uplinks.failures(), 0);
        assert!(matches!(
            uplinks.ladders()[1].ladder.state(),
            LadderState::Waiting(_)
        ));
    }

    #[test]
    fn a_join_goes_over_one_bridge_and_a_silent_one_costs_two_seconds() {
        let mut uplinks = uplinks(2);
        uplinks.enable(true, at(0));
        assert_eq!(dials(&mut uplinks).len(), 1);
        let next = uplinks.poll_timeout().unwrap();
        assert_eq!(next, at(0).plus(BRIDGE_HEAD_START));
        uplinks.tell_all(&LadderEvent::Timeout, next);
        let second = dials(&mut uplinks);
        assert_eq!(second[0].bridge, bridge(1));
        connect(&mut uplinks, second[0].id, at(2_100));
        assert_eq!(uplinks.primary(), Some(second[0].id));
    }

    #[test]
    fn bridges_that_stay_keep_their_tunnels() {
        let mut uplinks = uplinks(2);
        uplinks.enable(false, at(0));
        let first = dials(&mut uplinks);
        for dial in &first {
            connect(&mut uplinks, dial.id, at(50));
        }
        uplinks.set_bridges(&[bridge(1), bridge(7)], at(100));
        let actions: Vec<_> = std::iter::from_fn(|| uplinks.poll_action()).collect();
        assert!(
            actions.contains(&UplinkAction::Retire(first[0].id)),
            "{actions:?}"
        );
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, UplinkAction::Dial(dial) if dial.bridge == bridge(7))),
            "{actions:?}"
        );
        assert_eq!(uplinks.primary(), Some(first[1].id));
    }

    proptest! {
        /// Whatever fails in whatever order: numbers are never used twice, the primary is a carrier,
        /// and there is always a primary, a dial under way, or a time.
        #[test]
        fn it_neither_hangs_nor_spins(
            events in proptest::collection::vec((0u8..6, any::<prop::sample::Index>(), 0u64..30_000), 1..60),
        ) {
            let mut uplinks = uplinks(3);
            uplinks.enable(false, at(0));
            let (mut now, mut issued, mut open, mut up) = (at(0), Vec::new(), Vec::new(), Vec::new());
            for (kind, pick, millis) in events {
                while let Some(action) = uplinks.poll_action() {
                    match action {
                        UplinkAction::Dial(dial) => {
                            prop_assert!(!issued.contains(&dial.id));
                            issued.push(dial.id);
                            open.push(dial.id);
                        }
                        UplinkAction::Hangup(id) => {
                            open.retain(|open| *open != id);
                            up.retain(|up| *up != id);
                        }
                        UplinkAction::Retire(_) | UplinkAction::Probe(_) => {}
                    }
                }
                if let Some(primary) = uplinks.primary() {
                    prop_assert!(up.contains(&primary) && uplinks.is_carrier(primary));
                }
                prop_assert!(uplinks.primary().is_some() || !open.is_empty() || uplinks.poll_timeout().is_some());
                now = now.plus(Duration::from_millis(millis));
                match kind {
                    0 | 1 if !open.is_empty() => {
                        let id = open.remove(pick.index(open.len()));
                        up.push(id);
                        connect(&mut uplinks, id, now);
                    }
                    2 if !open.is_empty() => {
                        let id = open.remove(pick.index(open.len()));
                        fail(&mut uplinks, id, now);
                    }
                    3 if !up.is_empty() => {
                        let id = up.remove(pick.index(up.len()));
                        lose(&mut uplinks, id, now);
                    }
                    4 => uplinks.renew(now),
                    _ => {
                        let due = uplinks.poll_timeout().unwrap_or(now).max(now);
                        now = due;
                        uplinks.tell_all(&LadderEvent::Timeout, now);
                        let next = uplinks.poll_timeout();
                        prop_assert!(next.is_none_or(|next| next > now), "the same timeout twice");
                    }
                }
            }
        }
    }
}
