//! Commands that ask a daemon and, while none runs, work on its store: they are tried again for a while where another
//! process has that, a command that is soon done or a daemon that does not answer yet. How long is
//! [`store::patience`](crate::store::patience)'s to say.

use super::failure::Failure;
use crate::store::patience::Patience;

/// What `attempt` gives, tried again as long as somebody else has the store and there is patience.
pub async fn once_free<T>(mut attempt: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut patience = Patience::begin();
    loop {
        let attempted = attempt().await;
        let holder = attempted.as_ref().err().and_then(Failure::holder);
        match holder.and_then(|holder| patience.pause(holder)) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return attempted,
        }
    }
}
