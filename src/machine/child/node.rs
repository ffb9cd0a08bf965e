//! The node's identity within a satellite's machine: its machine's actions, and what it keeps in the membership.

use super::{ChildAction, ChildMachine, KeyUse, Phase};
use crate::base::time::{Moment, UnixTime};
use crate::machine::node_identity::{NodeAction, NodeEvent, NodeStanding};

impl ChildMachine {
    pub(super) fn node_event(&mut self, event: NodeEvent, now: Moment, wall: UnixTime) {
        if let Phase::Member(member) = &mut self.phase {
            member.node.handle_event(event, now, wall);
        }
    }

    pub(super) fn drain_node(&mut self) {
        loop {
            let Phase::Member(member) = &mut self.phase else {
                return;
            };
            let Some(action) = member.node.poll_action() else {
                return;
            };
            match action {
                NodeAction::GenerateKey { common_name } => {
                    self.actions.push_back(ChildAction::GenerateKey {
                        purpose: KeyUse::Node,
                        common_name,
                        kept: None,
                    });
                }
                NodeAction::Store(standing) => self.store_node(*standing),
                NodeAction::Enroll { enrollment, key } => {
                    self.actions
                        .push_back(ChildAction::EnrollNode { enrollment, key });
                }
                NodeAction::Refresh { node, key } => {
                    self.actions.push_back(ChildAction::RefreshNode { node, key });
                }
            }
        }
    }

    fn store_node(&mut self, standing: NodeStanding) {
        let sequence = self.update_member(|state| {
            if let Some(membership) = state.membership_mut() {
                membership.node = Some(standing);
            }
            true
        });
        if let Phase::Member(member) = &mut self.phase {
            member.node_waits_for = sequence;
        }
    }
}
