//! Carries out what the lease machine decides, for one family of addresses: one loop, one question
//! to a router at a time, and what must be durable before it goes on is awaited in the loop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::RouterClients;
use crate::base::time::Moment;
use crate::machine::mapping_lease::{
    Gateway, LeaseView, MappingAction, MappingEvent, MappingLease, MappingRecord, Outcome, ProofOutcome,
    Unmapped,
};
use crate::process::clock::Clock;
use crate::process::supervisor::TaskScope;
use crate::tunnel::transport::BoxFuture;

/// Time for giving back what there is when the process stops: a router that answers needs a tenth
/// of it, and one that does not is given up.
const GIVE_BACK_TIME: Duration = Duration::from_secs(4);

/// What the loop needs of those around it.
pub trait Surroundings: Send + Sync + 'static {
    /// Makes durable what may exist on gateways; whether it is.
    fn save(&self, records: Vec<MappingRecord>) -> BoxFuture<'_, bool>;

    /// Has an endpoint dialled from outside.
    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome>;
}

/// What the loop shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingView {
    /// What leads here from outside, proven.
    pub endpoint: Option<SocketAddr>,
    /// What there is, proven or not.
    pub lease: Option<LeaseView>,
    /// Why there is nothing.
    pub why_not: Option<Unmapped>,
}

/// See the module's text.
pub struct Keeper<S> {
    /// Decides.
    pub machine: MappingLease,
    /// Ask the routers.
    pub clients: RouterClients,
    /// Store and proof.
    pub surroundings: Arc<S>,
    /// For the machine.
    pub clock: Clock,
    /// The gateways as they change.
    pub network: watch::Receiver<Vec<Gateway>>,
    /// Grows with every tunnel that comes up; nought means none so far.
    pub provers: watch::Receiver<u64>,
    /// Told after every step.
    pub view: watch::Sender<MappingView>,
}

type Question = BoxFuture<'static, (u64, Outcome)>;

impl<S: Surroundings> Keeper<S> {
    /// Runs until the scope is cancelled, and gives back what there is.
    pub async fn run(mut self, scope: TaskScope) {
        let mut question: Option<Question> = None;
        let gateways = self.network.borrow_and_update().clone();
        self.tell(MappingEvent::Network(gateways));
        if *self.provers.borrow_and_update() > 0 {
            self.tell(MappingEvent::ProverReady);
        }
        while !self.carry_out(&mut question).await {
            let wake = self
                .machine
                .poll_timeout()
                .unwrap_or(Moment::after_start(Duration::MAX));
            let event = tokio::select! {
                biased;
                () = scope.cancelled() => break,
                (number, outcome) = answered(&mut question) => {
                    question = None;
                    MappingEvent::Done(number, outcome)
                }
                Ok(()) = self.network.changed() => {
                    MappingEvent::Network(self.network.borrow_and_update().clone())
                }
                Ok(()) = self.provers.changed() => MappingEvent::ProverReady,
                () = self.clock.sleep_until(wake) => MappingEvent::Timeout,
            };
            self.tell(event);
        }
        let given_back = tokio::time::timeout(GIVE_BACK_TIME, self.give_back());
        if given_back.await.is_err() {
            tracing::warn!("the router has not taken its port back in time; the next start tries again");
        }
    }

    async fn give_back(mut self) {
        let mut question = None;
        self.tell(MappingEvent::Stop);
        while !self.carry_out(&mut question).await {
            let (number, outcome) = answered(&mut question).await;
            question = None;
            self.tell(MappingEvent::Done(number, outcome));
        }
    }

    fn tell(&mut self, event: MappingEvent) {
        self.machine.handle_event(event, self.clock.now());
    }

    /// Does what the machine wants; whether it has nothing left to do for good.
    async fn carry_out(&mut self, question: &mut Option<Question>) -> bool {
        while let Some(action) = self.machine.poll_action() {
            match action {
                MappingAction::Persist(sequence, records) => {
                    let durable = self.surroundings.save(records).await;
                    self.tell(if durable {
                        MappingEvent::Persisted(sequence)
                    } else {
                        MappingEvent::PersistFailed(sequence)
                    });
                }
                MappingAction::Stopped => {
                    self.show();
                    return true;
                }
                MappingAction::Probe(..)
                | MappingAction::Look(..)
                | MappingAction::Map(..)
                | MappingAction::Unmap(..)
                | MappingAction::Prove(..) => *question = self.ask(action).or(question.take()),
            }
        }
        self.show();
        false
    }

    /// One question: the one before it, if it is still open, is not waited for any more.
    fn ask(&self, action: MappingAction) -> Option<Question> {
        let (clients, surroundings) = (self.clients.clone(), Arc::clone(&self.surroundings));
        Some(match action {
            MappingAction::Probe(number, gateways) => Box::pin(async move {
                let answers = clients.probe(&gateways).await;
                for asked in &answers {
                    if let Err(why) = &asked.answer {
                        tracing::debug!(gateway = %asked.gateway.address, protocol = asked.protocol.name(), why, "a gateway does not answer");
                    }
                }
                let found = answers.into_iter().filter_map(|asked| asked.answer.ok());
                (number, Outcome::Probed(found.collect()))
            }),
            MappingAction::Look(number, record) => {
                Box::pin(async move { (number, Outcome::Looked(clients.look(&record).await)) })
            }
            MappingAction::Map(number, record) => {
                Box::pin(async move { (number, Outcome::Mapped(clients.map(&record).await)) })
            }
            MappingAction::Unmap(number, record) => {
                Box::pin(async move { (number, Outcome::Unmapped(clients.unmap(&record).await)) })
            }
            MappingAction::Prove(number, endpoint) => {
                Box::pin(async move { (number, Outcome::Proved(surroundings.prove(endpoint).await)) })
            }
            MappingAction::Persist(..) | MappingAction::Stopped => return None,
        })
    }

    fn show(&self) {
        let view = MappingView {
            endpoint: self.machine.endpoint(),
            lease: self.machine.view(),
            why_not: self.machine.why_not(),
        };
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            *shown = view;
            changed
        });
    }
}

async fn answered(question: &mut Option<Question>) -> (u64, Outcome) {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}
