//! The body of an answer that is looked at while it passes: the platform's word to a stranger names the peer or the node
//! that it has become. Bounded, and nothing is held back or changed.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

use super::super::reply::{BodyError, ReplyBody};

/// Bytes that are looked at; an accept's answer has a few thousand.
const HEARD_MAX_BYTES: usize = 64 * 1024;

/// What is done with what was heard.
type Then = Box<dyn FnOnce(&[u8]) + Send>;

/// See the module's text.
pub struct Overheard {
    body: ReplyBody,
    heard: BytesMut,
    then: Option<Then>,
}

impl Overheard {
    /// Tells `then` the body's first bytes, when it has passed or was given up.
    pub fn new(body: ReplyBody, then: impl FnOnce(&[u8]) + Send + 'static) -> Self {
        Self {
            body,
            heard: BytesMut::new(),
            then: Some(Box::new(then)),
        }
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        if let Some(then) = self.then.take() {
            then(&self.heard);
        }
    }
}

impl Body for Overheard {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(piece) = frame.data_ref()
        {
            let room = HEARD_MAX_BYTES.saturating_sub(self.heard.len());
            let piece = piece.slice(..piece.len().min(room));
            self.heard.extend_from_slice(&piece);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use http_body_util::BodyExt as _;

    use super::super::whole;
    use super::*;

    fn overheard(content: &[u8]) -> (Overheard, mpsc::Receiver<usize>) {
        let (tell, told) = mpsc::channel();
        let body = whole(Bytes::copy_from_slice(content));
        let then = move |heard: &[u8]| tell.send(heard.len()).unwrap();
        (Overheard::new(body, then), told)
    }

    #[tokio::test]
    async fn what_passes_is_heard_within_a_bound_and_passes_whole() {
        for length in [10, HEARD_MAX_BYTES + 1] {
            let (body, told) = overheard(&vec![b'x'; length]);
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), length);
            assert_eq!(told.recv().unwrap(), length.min(HEARD_MAX_BYTES));
        }
        let (given_up, told) = overheard(b"{}");
        drop(given_up);
        assert_eq!(told.recv().unwrap(), 0);
    }
}
