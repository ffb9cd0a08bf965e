//! The loop's dials and tunnels: what it does for the ladders, and what becomes of it.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{Instrument as _, Span};

use super::{Driver, EstablishedLink, News, Reporter};
use crate::base::id::SessionId;
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::contract::invitation::{HostPort, ParentUrl};
use crate::machine::binding_time::BindingTime;
use crate::machine::child::{ChildEvent, LinkPurpose};
use crate::machine::join::JoinState;
use crate::machine::ladder::{DialTarget, OVERLAP, Rung, TunnelId};
use crate::machine::membership::{Candidate, StoredIdentity};
use crate::machine::overload::{Overload, UdpArrivals};
use crate::machine::renewal::IdentityChoice;
use crate::machine::uplinks::UplinkDial;
use crate::process::clock::ParentTimeNote;
use crate::process::supervisor::TaskScope;
use crate::reach::connect::{Approach, connect};
use crate::reach::dial::{Credentials, Established, Introduction};
use crate::satellite::called::{self, DirectError, UnaskedCall};
use crate::satellite::federation_api::FederationApi;
use crate::satellite::serve::{self, Served};
use crate::tunnel::{Tunnel, TunnelSettings};
use crate::wire::{
    DIRECT_FEATURE, Goodbye, GoodbyeReason, RENEWAL_ONLY_FEATURE, REPLACES_MAX, SessionClaim, reached_at,
};

/// A dial, or the tunnel that it gave.
pub(super) struct Link {
    bridge: HostPort,
    rung: Rung,
    /// What runs for it; nothing of it is heard once this is cancelled.
    scope: TaskScope,
    up: Option<LiveLink>,
}

/// A tunnel that is up.
pub(super) struct LiveLink {
    tunnel: Tunnel,
    session: SessionId,
    pub(super) address: SocketAddr,
    /// Where the bridge says that this satellite is reached over it, if it says so.
    reached_at: Option<ParentUrl>,
    pub(super) since: UnixTime,
    pub(super) overload: Overload,
    /// Where the bridge has dialled this box, if it has.
    pub(super) endpoint: Option<SocketAddr>,
    /// Whether the bridge does so when asked.
    pub(super) dials_satellites: bool,
    /// Peer and session, on every log line about this tunnel.
    span: Span,
}

impl LiveLink {
    pub(super) fn udp_arrivals(&self) -> Option<UdpArrivals> {
        self.tunnel.udp_arrivals()
    }
}

impl Link {
    pub(super) const fn live_mut(&mut self) -> Option<&mut LiveLink> {
        self.up.as_mut()
    }

    /// Where this satellite is reached over the link.
    pub(super) fn reached_at(&self) -> Option<&ParentUrl> {
        self.up.as_ref()?.reached_at.as_ref()
    }

    pub(super) const fn bridge(&self) -> &HostPort {
        &self.bridge
    }

    pub(super) const fn up(&self) -> Option<&LiveLink> {
        self.up.as_ref()
    }
}

impl LiveLink {
    pub(super) const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }
}

/// How a dial is made.
enum Dial {
    /// By this side.
    Out(Approach),
    /// By the bridge, which is asked, or not even that.
    In(Result<called::Approach, DirectError>),
    /// By the bridge, which was not asked.
    Unasked(Result<UnaskedCall, DirectError>),
}

impl Dial {
    async fn carry_out(self, id: TunnelId) -> News {
        let (failed, refused) = match self {
            Self::Out(approach) => match connect(approach).await {
                Ok((target, established)) => return up(target, None, established),
                Err(failure) => (failure.for_ladder(), failure.refuses_identity()),
            },
            Self::In(approach) => {
                let called = match &approach {
                    Ok(approach) => called::connect(approach).await,
                    Err(_) => Err(DirectError::NoWayIn),
                };
                match called {
                    Ok(called) => return up(called.target, Some(called.endpoint), called.established),
                    Err(error) => (approach.err().unwrap_or(error).for_ladder(), false),
                }
            }
            Self::Unasked(call) => {
                let answered = match call {
                    Ok(call) => called::answer(call).await,
                    Err(error) => Err(error),
                };
                match answered {
                    Ok((target, established)) => return up(target, None, established),
                    Err(error) => (error.for_ladder(), false),
                }
            }
        };
        let why = failed.why.clone();
        let event = if refused {
            ChildEvent::DialRefused(id, failed)
        } else {
            ChildEvent::DialFailed(id, failed)
        };
        News::Failed(event, why)
    }
}

fn up(target: DialTarget, endpoint: Option<SocketAddr>, established: Established) -> News {
    News::Established(Box::new(EstablishedLink {
        target,
        endpoint,
        established,
    }))
}

impl Driver {
    /// Whether this news of this tunnel is still of interest.
    pub(super) fn awaits(&self, id: TunnelId, news: &News) -> bool {
        let of_link = match news {
            News::Established(_) => true,
            News::Event(event) | News::Failed(event, _) => event.is_of_a_tunnel(),
            News::Acknowledged(_) | News::Bundle(_) => false,
        };
        if of_link {
            self.links.contains_key(&id)
        } else {
            // What was asked over another tunnel counts as lost.
            self.machine.primary().or(self.lost_primary) == Some(id)
        }
    }

    pub(super) fn span_of(&self, id: TunnelId) -> Span {
        self.live(id).map_or_else(Span::none, |live| live.span.clone())
    }

    pub(super) fn live(&self, id: TunnelId) -> Option<&LiveLink> {
        self.links.get(&id)?.up.as_ref()
    }

    /// The tunnel that this side's requests go over, and where they run.
    pub(super) fn primary_tunnel(&self) -> Option<(TunnelId, Tunnel, TaskScope)> {
        let id = self.machine.primary()?;
        let link = self.links.get(&id)?;
        Some((id, link.up.as_ref()?.tunnel.clone(), link.scope.clone()))
    }

    pub(super) fn reporter(&self, link: TunnelId) -> Reporter {
        Reporter {
            link,
            reports: self.reports.0.clone(),
        }
    }

    /// Whether the box's way to its bridges is another one than before, of which the machine is told.
    pub(super) fn look_at_ways(&mut self) -> bool {
        let up = self
            .links
            .values()
            .filter_map(|link| Some(link.up.as_ref()?.address));
        let remembered = self.facts.good_addresses.iter().map(|(_, address)| *address);
        let changed = self.ways.look(up.chain(remembered), self.clock.now());
        if changed {
            tracing::info!("the network of this box has changed; looking at all tunnels");
            self.binding = BindingTime::UNKNOWN;
            for live in self.links.values().filter_map(|link| link.up.as_ref()) {
                live.tunnel.network_changed();
            }
            self.tell(ChildEvent::NetworkChanged);
        }
        changed
    }

    pub(super) fn dial(&mut self, dial: UplinkDial, purpose: LinkPurpose) {
        let Some(credentials) = self.credentials(purpose) else {
            tracing::error!("a dial was wanted for an identity that is not there");
            return;
        };
        let lost = self.lost_sessions.iter().filter(|(of, _)| *of == dial.bridge);
        let claim = SessionClaim {
            run: Some(self.run),
            trial: dial.trial,
            replaces: lost.map(|(_, session)| *session).collect(),
        };
        let way = match (dial.rung, dial.trial) {
            (Rung::Direct, Some(_)) => Dial::In(self.direct_approach(&dial, purpose, claim.features())),
            // Beside no carrier nobody can be asked.
            (Rung::Direct, None) => Dial::Unasked(self.unasked_call(&dial, purpose, claim.features())),
            (Rung::Quic | Rung::Tls | Rung::Proxy, _) => {
                Dial::Out(self.approach(&dial.bridge, dial.rung, credentials, claim.features()))
            }
        };
        let UplinkDial { id, bridge, rung, .. } = dial;
        tracing::debug!(%bridge, %rung, link = %id, "dialling");
        let (scope, reporter) = (self.scope.child(), self.reporter(id));
        scope.spawn_until_cancelled("dial", async move {
            reporter.send(way.carry_out(id).await).await;
        });
        let link = Link {
            bridge,
            rung,
            scope,
            up: None,
        };
        self.links.insert(id, link);
    }

    /// A dial by this side.
    pub(super) fn approach(
        &self,
        bridge: &HostPort,
        rung: Rung,
        credentials: Credentials,
        mut features: Vec<String>,
    ) -> Approach {
        if self.listener.is_some() {
            features.push(DIRECT_FEATURE.to_owned());
        }
        let remembered = self
            .facts
            .good_addresses
            .iter()
            .map(|(host, address)| DialTarget {
                host: host.clone(),
                address: *address,
            });
        let (host, port) = (bridge.host(), bridge.port());
        Approach {
            bridge: bridge.clone(),
            rung,
            proxy: self.settings.ways.proxy.proxy_for(host, port).cloned(),
            remembered: remembered.collect(),
            introduction: Introduction {
                credentials,
                features,
                settings: TunnelSettings {
                    // Routers remember TCP connections for minutes, and what they forget cannot be mended.
                    binding: (rung == Rung::Quic).then_some(self.binding),
                    ..self.settings.tunnel
                },
                clock: self.clock.clone(),
            },
        }
    }

    /// What a tunnel for this presents, and whom it trusts.
    pub(super) fn credentials(&self, purpose: LinkPurpose) -> Option<Credentials> {
        let state = self.machine.state()?;
        let identity = match purpose {
            LinkPurpose::Bootstrap => None,
            LinkPurpose::Member(choice) => Some(identity_of(state, choice)?),
        };
        Some(Credentials {
            trust: state.parent().trust.clone(),
            identity,
        })
    }

    pub(super) fn established(&mut self, id: TunnelId, link: EstablishedLink) {
        let EstablishedLink {
            target,
            endpoint,
            established:
                Established {
                    tunnel,
                    driver,
                    welcome,
                },
        } = link;
        self.counters.tunnels_established += 1;
        let renewal_only = welcome.features.iter().any(|named| named == RENEWAL_ONLY_FEATURE);
        let told = UnixTime::from_seconds(welcome.unix_seconds);
        if self.clock.note_parent_time(told) == ParentTimeNote::TooFarAhead {
            tracing::warn!(parent = %told, "the parent's clock is too far ahead to be believed");
        }
        let served = Served {
            api: self.surroundings.as_ref().map(|surroundings| FederationApi {
                surroundings: Arc::clone(surroundings),
            }),
            peer: self.machine.membership().map(|membership| membership.peer_id),
            services: self.services.as_ref().and_then(|services| {
                let membership = self.machine.membership()?;
                Some(services.session(membership.peer_id))
            }),
        };
        let (since, reporter) = (self.clock.trusted().now, self.reporter(id));
        let peer = self
            .machine
            .membership()
            .map(|membership| tracing::field::display(membership.peer_id));
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let span = tracing::info_span!("tunnel", peer, session = %welcome.session);
        span.in_scope(|| {
            tracing::info!(bridge = %target.address, host = %target.host, rung = %link.rung, endpoint = endpoint.map(tracing::field::display), agent = %foreign_text(&welcome.agent), "tunnel up");
        });
        let running = async move {
            driver.run().await;
        };
        self.scope.spawn("tunnel", running.instrument(span.clone()));
        serve::spawn(&link.scope, tunnel.clone(), served, reporter, &span);
        link.up = Some(LiveLink {
            tunnel,
            session: welcome.session,
            address: target.address,
            reached_at: reached_at(&welcome.features).and_then(|url| url.parse().ok()),
            since,
            overload: Overload::default(),
            endpoint,
            dials_satellites: welcome.features.iter().any(|feature| feature == DIRECT_FEATURE),
            span,
        });
        let (bridge, rung) = (link.bridge.clone(), link.rung);
        self.lost_sessions.retain(|(of, _)| *of != bridge);
        if rung != Rung::Direct {
            self.remember(&target);
        }
        self.failures.link_is_up();
        if renewal_only {
            tracing::info!("the parent counts the certificate as expired, and takes its renewal");
            self.tell(ChildEvent::RenewalOnly(id));
        }
        self.tell(ChildEvent::Connected(id));
        if endpoint.is_some_and(|endpoint| !self.reach.proven().contains(&endpoint)) {
            self.tell(ChildEvent::WayInWithdrawn(id));
        }
        // A change is one against what was true when the tunnel came up.
        self.look_at_ways();
    }

    /// Its tasks end by themselves, and first say what became of what they asked.
    pub(super) fn lose_link(&mut self, id: TunnelId) {
        if self.machine.primary() == Some(id) {
            self.lost_primary = Some(id);
        }
        self.remove_link(id);
    }

    /// Whatever still runs for it ends.
    pub(super) fn forget_link(&mut self, id: TunnelId) -> Option<Tunnel> {
        let (scope, tunnel) = self.remove_link(id)?;
        scope.cancel();
        tunnel
    }

    /// Its session, if it had one, is named to the bridge as gone.
    fn remove_link(&mut self, id: TunnelId) -> Option<(TaskScope, Option<Tunnel>)> {
        let link = self.links.remove(&id)?;
        let Some(live) = link.up else {
            return Some((link.scope, None));
        };
        if let Some(binding) = live.tunnel.binding() {
            self.binding = binding;
        }
        self.lost_sessions.push((link.bridge, live.session));
        if self.lost_sessions.len() > REPLACES_MAX {
            self.lost_sessions.remove(0);
        }
        Some((link.scope, Some(live.tunnel)))
    }

    pub(super) fn hang_up(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.forget_link(id) {
            let goodbye = goodbye(GoodbyeReason::Done, "");
            // The tunnel's own task outlives the link's scope by this goodbye.
            self.scope
                .spawn("goodbye", async move { tunnel.close(goodbye).await });
        }
    }

    /// New streams go elsewhere; those that are open may end.
    pub(super) fn retire(&self, id: TunnelId) {
        let Some(link) = self.links.get(&id) else { return };
        let Some(live) = &link.up else { return };
        live.span.in_scope(
            || tracing::info!(rung = %link.rung, "another tunnel takes over; this one ends with its streams"),
        );
        let (tunnel, clock, reporter) = (live.tunnel.clone(), self.clock.clone(), self.reporter(id));
        link.scope.spawn_until_cancelled("drain", async move {
            // What the other side opens meanwhile counts, too.
            clock.sleep_until(clock.now().plus(OVERLAP)).await;
            tunnel.idle().await;
            reporter.send(News::Event(ChildEvent::TunnelDrained(id))).await;
        });
    }

    pub(super) fn probe(&self, id: TunnelId) {
        if let Some(live) = self.live(id) {
            live.tunnel.probe();
        }
    }

    /// Of all tunnels at once; the supervisor waits for them.
    pub(super) fn say_goodbyes(&mut self) {
        for (_, link) in std::mem::take(&mut self.links) {
            link.scope.cancel();
            if let Some(live) = link.up {
                let goodbye = goodbye(GoodbyeReason::ShuttingDown, "the satellite stops");
                self.scope
                    .spawn("goodbye", async move { live.tunnel.close(goodbye).await });
            }
        }
    }
}

pub(super) fn goodbye(reason: GoodbyeReason, message: &str) -> Goodbye {
    Goodbye {
        reason,
        message: message.to_owned(),
        retry_after_millis: 0,
    }
}

/// The identity that a tunnel presents.
fn identity_of(state: &JoinState, choice: IdentityChoice) -> Option<StoredIdentity> {
    let membership = state.membership()?;
    match (choice, &membership.candidate) {
        (IdentityChoice::Candidate, Some(Candidate::Issued(identity))) => Some(identity.clone()),
        (IdentityChoice::Candidate | IdentityChoice::Current, _) => Some(membership.identity.clone()),
    }
}
