//! The admin socket: the operator API for the command line on this machine. Nobody needs a token
//! here: the socket's credentials tell who calls.

use std::sync::Arc;

use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;

use super::access::Access;
use super::http_listener::serve_http;
use super::operator_api::{Operator, OperatorApi};
use super::reply::Reply;
use crate::process::admin_socket::{AdminSocket, Caller, STRANGER_REFUSED};
use crate::process::observation::{self, Observed};
use crate::process::supervisor::TaskScope;

/// Connections at once; each is one command of somebody on this machine.
const CONNECTIONS_MAX: usize = 32;

/// Takes connections until the scope is cancelled.
pub(super) async fn serve(
    socket: AdminSocket,
    (api, access, observed): (Arc<OperatorApi>, Arc<Access>, Arc<dyn Observed>),
    intake: TaskScope,
    work: TaskScope,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, socket.accept().await))
        };
        let accepted = tokio::select! {
            () = intake.cancelled() => return,
            accepted = accepted => accepted,
        };
        let Some((place, (stream, caller))) = accepted else {
            return;
        };
        let (api, access, observed) = (Arc::clone(&api), Arc::clone(&access), Arc::clone(&observed));
        let scope = work.clone();
        work.spawn("admin request", async move {
            serve_http(stream, &scope, |request| {
                answer((&api, &access, &observed), request, caller)
            })
            .await;
            drop(place);
        });
    }
}

async fn answer(
    (api, access, observed): (&Arc<OperatorApi>, &Arc<Access>, &Arc<dyn Observed>),
    request: http::Request<hyper::body::Incoming>,
    caller: Caller,
) -> http::Response<super::reply::ReplyBody> {
    if caller == Caller::Admitted
        && let Some(answered) =
            observation::answer(Arc::clone(observed), request.method(), request.uri().path()).await
    {
        return answered.map(|body| body.map_err(|never| match never {}).boxed_unsync());
    }
    match caller {
        Caller::Admitted if Access::is_connect(request.uri().path()) => {
            access.connect(request, Operator::Local, None).await
        }
        Caller::Admitted => Arc::clone(api).handle(request, Operator::Local).await,
        Caller::Stranger => Reply::failure(StatusCode::FORBIDDEN, STRANGER_REFUSED).into_response(),
    }
}
