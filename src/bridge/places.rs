//! Room for connections that anybody can make: so many at once, and of one source at most half of them, so that
//! nobody alone keeps all others out. Knows nothing of what is spoken on them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::machine::source_rate::Source;
use crate::process::supervisor::TaskScope;

/// Pause after the system refused to give a connection, for want of file descriptors: they come
/// back when others end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The room of one listener, or of several that share it.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    /// What one source may hold.
    share: usize,
    /// What each source holds; none that holds nothing.
    held: Mutex<BTreeMap<Source, usize>>,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    /// None of this machine's own: whatever proxy stands there speaks for many.
    source: Option<Source>,
    places: Arc<Places>,
}

impl Places {
    /// For so many connections.
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(count)),
            share: count.div_ceil(2),
            held: Mutex::default(),
        })
    }

    /// Takes a listener's connections, each with its place, until the scope is cancelled.
    pub(super) async fn take_in(
        self: &Arc<Self>,
        listener: &TcpListener,
        intake: &TaskScope,
        mut take: impl FnMut(TcpStream, SocketAddr, Place),
    ) {
        loop {
            let accepted = async {
                // Nobody is taken in for whom there is no place: they wait in the system's queue.
                let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
                Some((permit, listener.accept().await))
            };
            let accepted = tokio::select! {
                () = intake.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Some((permit, Ok((stream, address)))) => match self.place(permit, address.ip()) {
                    Some(place) => take(stream, address, place),
                    None => {
                        debug!(%address, share = self.share, "a source that holds half of all places was hung up on");
                    }
                },
                Some((_, Err(error))) => {
                    warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            }
        }
    }

    /// None where the source has as many as it may.
    fn place(self: &Arc<Self>, permit: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let source = (!address.is_loopback()).then(|| Source::of(address));
        if let Some(source) = source {
            let mut held = self.held();
            let count = held.entry(source).or_default();
            if *count >= self.share {
                return None;
            }
            *count += 1;
        }
        Some(Place {
            _permit: permit,
            source,
            places: Arc::clone(self),
        })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Source, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut held = self.places.held();
        if let Some(count) = held.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                held.remove(&source);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::process::supervisor::{Stage, Supervisor};

    fn ask(places: &Arc<Places>, address: &str) -> Option<Place> {
        let permit = Arc::clone(&places.free).try_acquire_owned().unwrap();
        places.place(permit, address.parse().unwrap())
    }

    #[test]
    fn one_source_holds_half_and_others_find_room() {
        let places = Places::new(8);
        let mut held: Vec<_> = (0..4)
            .map(|last| ask(&places, &format!("2001:db8:7::{last}")).unwrap())
            .collect();
        assert!(
            ask(&places, "2001:db8:7::9").is_none(),
            "one network is one source"
        );
        let other = ask(&places, "192.0.2.7").unwrap();
        held.pop();
        held.push(ask(&places, "2001:db8:7::9").unwrap());
        drop((held, other));
        assert!(places.held().is_empty(), "who holds nothing is forgotten");
        assert_eq!(places.free.available_permits(), 8);
    }

    #[test]
    fn an_ipv4_source_is_one_in_either_form_and_this_machine_is_none() {
        let places = Places::new(4);
        let held = [ask(&places, "192.0.2.7"), ask(&places, "::ffff:192.0.2.7")].map(Option::unwrap);
        assert!(ask(&places, "192.0.2.7").is_none());
        drop(held);
        let own: Vec<_> = ["127.0.0.1", "::ffff:127.0.0.1", "::1", "127.0.0.1"]
            .map(|address| ask(&places, address).unwrap())
            .into();
        assert_eq!((own.len(), places.free.available_permits()), (4, 0));
    }

    #[tokio::test]
    async fn who_finds_no_place_waits_for_one() {
        let supervisor = Supervisor::new();
        let intake = supervisor.scope(Stage::Intake);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (places, (taken, mut arrivals)) = (Places::new(1), tokio::sync::mpsc::channel(4));
        intake.spawn_until_cancelled("intake", {
            let intake = intake.clone();
            async move {
                let take = |stream, _, place| taken.try_send((stream, place)).unwrap();
                places.take_in(&listener, &intake, take).await;
            }
        });
        let mut first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let held = arrivals.recv().await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), arrivals.recv()).await;
        assert!(early.is_err(), "{early:?}");
        drop(held);
        arrivals.recv().await.unwrap();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    }
}
