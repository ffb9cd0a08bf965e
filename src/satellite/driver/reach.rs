//! The ways in as the loop knows them: what it shows to the task that keeps them, and what it tells
//! the parent of them.

use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};

use super::{Driver, Member, Standing};
use crate::base::limit::foreign_text;
use crate::contract::message::Endpoint;
use crate::machine::child::{ChildEvent, LinkPurpose};
use crate::machine::ladder::{TunnelId, WayIn};
use crate::machine::membership::Membership;
use crate::machine::renewal::IdentityChoice;
use crate::machine::uplinks::UplinkDial;
use crate::reach::listen::Unasked;
use crate::satellite::called::{self, DirectError, UnaskedCall};
use crate::satellite::status::{HttpsReport, ReachReport};
use crate::wire::{DIRECT_FEATURE, RefusalCode, Refused};

/// Where a host-bridge relays requests to a peer, below its URL.
const RELAY_PATH: &str = "/peers/";

/// Priority of an endpoint at which the satellite itself answers by HTTPS: nobody is between.
const CALLED_PRIORITY: u32 = 10;

/// Priority of the way over the host-bridge: clients that speak HTTP alone try it before the tunnel's.
const RELAYED_PRIORITY: u32 = 50;

/// Priority of an endpoint at which the satellite itself answers, in the tunnel's protocol.
const DIRECT_PRIORITY: u32 = 100;

/// What was last told, and what is shown.
#[derive(Debug)]
pub(super) struct Reach {
    report: Option<ReachReport>,
    proven: Vec<SocketAddr>,
    https: Option<HttpsReport>,
    https_proven: Vec<SocketAddr>,
    pub(super) standing: watch::Sender<Option<Standing>>,
    pub(super) member: watch::Sender<Option<Member>>,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            report: None,
            proven: Vec::new(),
            https: None,
            https_proven: Vec::new(),
            standing: watch::Sender::new(None),
            member: watch::Sender::new(None),
        }
    }
}

impl Reach {
    /// Whether the parent has to be told.
    pub(super) fn take(&mut self, report: ReachReport, proven: Vec<SocketAddr>) -> bool {
        self.report = Some(report);
        let changed = self.proven != proven;
        self.proven = proven;
        changed
    }

    /// The same for the HTTPS listener.
    pub(super) fn take_https(&mut self, report: HttpsReport, proven: Vec<SocketAddr>) -> bool {
        self.https = Some(report);
        let changed = self.https_proven != proven;
        self.https_proven = proven;
        changed
    }

    pub(super) const fn https(&self) -> Option<&HttpsReport> {
        self.https.as_ref()
    }

    /// Where this box can be dialled.
    pub(super) fn proven(&self) -> &[SocketAddr] {
        &self.proven
    }

    pub(super) const fn report(&self) -> Option<&ReachReport> {
        self.report.as_ref()
    }
}

/// The next call that a host-bridge makes by itself; never, where none is taken.
pub(super) async fn unasked(calls: Option<&mut mpsc::Receiver<Unasked>>) -> Unasked {
    let next = match calls {
        Some(calls) => calls.recv().await,
        None => None,
    };
    match next {
        Some(call) => call,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Where the parent is told that this satellite can be reached. Never empty: an empty list
    /// changes nothing at the parent, and what has been withdrawn would stay.
    pub(super) fn endpoints(&self, membership: &Membership) -> Vec<Endpoint> {
        let told = self
            .facts
            .our_endpoints
            .first()
            .map(|endpoint| endpoint.url.as_str());
        let bridge = told.unwrap_or_else(|| membership.parent.url.as_str());
        // A bridge beside a platform is elsewhere than its parent, and says where.
        let reached_at = self
            .primary_tunnel()
            .and_then(|(number, ..)| self.links.get(&number)?.reached_at());
        let relayed = Endpoint {
            url: reached_at.map_or_else(
                || {
                    format!(
                        "{}{RELAY_PATH}{}",
                        bridge.strip_suffix('/').unwrap_or(bridge),
                        membership.peer_id
                    )
                },
                ToString::to_string,
            ),
            scope: "sdwan".to_owned(),
            priority: RELAYED_PRIORITY,
            cidr_hint: None,
        };
        let direct = self.reach.proven.iter().map(|endpoint| Endpoint {
            url: format!("quic://{endpoint}"),
            scope: "wan".to_owned(),
            priority: DIRECT_PRIORITY,
            cidr_hint: None,
        });
        let called = self.reach.https_proven.iter().map(|endpoint| Endpoint {
            url: format!("https://{endpoint}"),
            scope: "wan".to_owned(),
            priority: CALLED_PRIORITY,
            cidr_hint: None,
        });
        called.chain(std::iter::once(relayed)).chain(direct).collect()
    }

    /// Tells the machine which ways in there are, and which of the tunnels that came in have lost theirs.
    pub(super) fn follow_ways_in(&mut self) {
        let proven = self.reach.proven();
        let way_in = if proven.is_empty() {
            WayIn::Closed
        } else {
            WayIn::Open
        };
        let lost = self.links.iter().filter(|(_, link)| {
            let endpoint = link.up().and_then(|live| live.endpoint);
            endpoint.is_some_and(|endpoint| !proven.contains(&endpoint))
        });
        let lost: Vec<TunnelId> = lost.map(|(id, _)| *id).collect();
        self.tell(ChildEvent::WayIn(way_in));
        for id in lost {
            self.tell(ChildEvent::WayInWithdrawn(id));
        }
    }

    /// A host-bridge has called by itself. What the machine does not want is refused.
    pub(super) fn called(&mut self, call: Unasked) {
        let ladders = self.machine.uplinks().ladders();
        let mut bridges = ladders.iter().map(|uplink| &uplink.bridge);
        let Some(bridge) = bridges.find(|bridge| bridge.to_string() == call.bridge).cloned() else {
            tracing::debug!(bridge = %foreign_text(&call.bridge), "called by a host-bridge that is not looked for");
            return;
        };
        self.call = Some((bridge.clone(), call.greeted));
        self.tell(ChildEvent::Called(bridge));
    }

    /// The call that nothing was made of.
    pub(super) fn refuse_call(&mut self) {
        let Some((bridge, greeted)) = self.call.take() else {
            return;
        };
        tracing::debug!(%bridge, "a host-bridge has called by itself, and is not needed");
        let refused = Refused {
            code: RefusalCode::Busy,
            message: "this satellite needs no call: it has a tunnel, or none is wanted".to_owned(),
            retry_after_millis: 0,
        };
        let refusing = greeted.refuse(refused);
        self.scope.spawn_until_cancelled("call refused", refusing);
    }

    /// How a call that a host-bridge has made by itself is answered.
    pub(super) fn unasked_call(
        &mut self,
        dial: &UplinkDial,
        purpose: LinkPurpose,
        mut features: Vec<String>,
    ) -> Result<UnaskedCall, DirectError> {
        if purpose != LinkPurpose::Member(IdentityChoice::Current) {
            return Err(DirectError::Renewing);
        }
        features.push(DIRECT_FEATURE.to_owned());
        let call = self.call.take_if(|(bridge, _)| *bridge == dial.bridge);
        let (bridge, greeted) = call.ok_or(DirectError::NoCarrier)?;
        Ok(UnaskedCall {
            bridge,
            greeted,
            features,
            settings: self.settings.tunnel,
            clock: self.clock.clone(),
        })
    }

    /// How the host-bridge is to be asked for a dial of its own.
    pub(super) fn direct_approach(
        &self,
        dial: &UplinkDial,
        purpose: LinkPurpose,
        mut features: Vec<String>,
    ) -> Result<called::Approach, DirectError> {
        if purpose != LinkPurpose::Member(IdentityChoice::Current) {
            return Err(DirectError::Renewing);
        }
        let listener = self.listener.clone().ok_or(DirectError::NoWayIn)?;
        let ladders = self.machine.uplinks().ladders();
        let ladder = ladders.iter().find(|uplink| uplink.bridge == dial.bridge);
        let carrier = ladder.and_then(|uplink| uplink.ladder.carrier());
        let live = carrier.and_then(|carrier| self.live(carrier.id));
        let (live, membership) = live
            .zip(self.machine.membership())
            .ok_or(DirectError::NoCarrier)?;
        if !live.dials_satellites {
            return Err(DirectError::NotOffered);
        }
        features.push(DIRECT_FEATURE.to_owned());
        Ok(called::Approach {
            bridge: dial.bridge.clone(),
            carrier: live.tunnel().clone(),
            parent: membership.parent.clone(),
            endpoints: self.reach.proven().to_vec(),
            listener,
            features,
            settings: self.settings.tunnel,
            clock: self.clock.clone(),
        })
    }

    pub(super) fn show_standing(&self) {
        let standing = self.standing();
        self.reach.standing.send_if_modified(|shown| {
            let changed = match (&*shown, &standing) {
                (None, None) => false,
                (Some(shown), Some(standing)) => shown.differs(standing),
                (None, Some(_)) | (Some(_), None) => true,
            };
            if changed {
                *shown = standing;
            }
            changed
        });
    }

    pub(super) fn show_member(&self) {
        let member = self.machine.membership();
        self.reach.member.send_if_modified(|shown| {
            let names = member.map(|membership| self.bridge_names(membership));
            let changed = match (&*shown, member) {
                (None, None) => false,
                (Some(shown), Some(membership)) => {
                    let known = (
                        shown.membership.peer_id,
                        &shown.membership.identity.certificate.serial,
                    );
                    let now = (membership.peer_id, &membership.identity.certificate.serial);
                    known != now || Some(&shown.names) != names.as_ref()
                }
                (None, Some(_)) | (Some(_), None) => true,
            };
            if changed {
                *shown = member.zip(names).map(|(membership, names)| Member {
                    names,
                    membership: membership.clone(),
                });
            }
            changed
        });
    }

    /// Hosts under which this satellite looks for bridges, whichever it has found.
    fn bridge_names(&self, membership: &Membership) -> Vec<String> {
        let configured = self.settings.child.bridges.iter();
        let invited = membership.parent.dial_addresses();
        let mut names: Vec<String> = configured
            .chain(&invited)
            .map(|address| address.host().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn standing(&self) -> Option<Standing> {
        let (number, tunnel, _) = self.primary_tunnel()?;
        let link = self.links.get(&number)?;
        let membership = self.machine.membership()?;
        if !matches!(self.machine.purpose(), Some(LinkPurpose::Member(_))) {
            return None;
        }
        let mut names = self.bridge_names(membership);
        names.push(link.bridge().host().to_owned());
        names.sort();
        names.dedup();
        Some(Standing {
            number,
            bridge: tunnel.remote_address(),
            tunnel,
            names,
            membership: membership.clone(),
        })
    }
}
