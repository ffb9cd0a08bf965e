//! A request's body that comes back when its reader gives it up: a refusal that overtakes the body is a broken stream
//! to some clients of HTTP/2, so what is left of it is read before the refusal is sent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::reply::BodyError;
use super::request_body::pass_over;

/// The body, for its reader.
#[derive(Debug)]
pub struct LentBody<B> {
    body: Option<B>,
    home: Arc<Mutex<Option<B>>>,
}

/// Where it comes back to.
#[derive(Debug)]
pub struct Lender<B>(Arc<Mutex<Option<B>>>);

impl<B> LentBody<B> {
    /// Lends a body out.
    pub fn lend(body: B) -> (Self, Lender<B>) {
        let home = Arc::default();
        let lender = Lender(Arc::clone(&home));
        let body = Some(body);
        (Self { body, home }, lender)
    }
}

impl<B> Lender<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BodyError>,
{
    /// Reads what its reader has left, within bounds.
    pub async fn discard_rest(self) {
        let rest = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(rest) = rest {
            pass_over(rest).await;
        }
    }
}

impl<B> Drop for LentBody<B> {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl<B: Body + Unpin> Body for LentBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
