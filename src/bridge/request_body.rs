//! Bodies of requests, of bounded size and in bounded time. Knows nothing of what they say.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Body;

use super::reply::{BodyError, Reply};
use crate::base::limit::{CONTRACT_REQUEST_TIMEOUT, JSON_BODY_MAX_BYTES};

/// Bytes of a body that are read for nothing: more than any client sends by mistake.
const PASSED_OVER_MAX_BYTES: usize = 16 * JSON_BODY_MAX_BYTES;

/// Time for them.
const PASS_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a body was not read to its end.
enum Unread {
    TooLarge,
    BrokeOff,
}

/// Reads a body of bounded size in bounded time, or words the refusal.
pub async fn read_body<B>(body: B) -> Result<Bytes, Reply>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BodyError>,
{
    let mut body = pin!(body);
    match tokio::time::timeout(CONTRACT_REQUEST_TIMEOUT, whole(body.as_mut())).await {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(Unread::TooLarge)) => {
            pass_over(body).await;
            Err(Reply::failure(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the body is larger than {JSON_BODY_MAX_BYTES} bytes"),
            ))
        }
        Ok(Err(Unread::BrokeOff)) => Err(Reply::failure(StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => Err(Reply::failure(
            StatusCode::REQUEST_TIMEOUT,
            &format!(
                "the body did not arrive within {} s",
                CONTRACT_REQUEST_TIMEOUT.as_secs()
            ),
        )),
    }
}

async fn whole<B>(mut body: Pin<&mut B>) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes>,
{
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Unread::BrokeOff)?.into_data() else {
            continue;
        };
        if whole.len() + piece.len() > JSON_BODY_MAX_BYTES {
            return Err(Unread::TooLarge);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// Reads for nothing what comes of the body of a request that is refused, in bounded time and size: an answer that
/// overtakes it is a broken stream to some clients of HTTP/2, and they never learn why. Who goes on beyond that finds the
/// stream closed.
pub async fn pass_over<B>(body: B)
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut passed = 0;
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            passed += frame.data_ref().map_or(0, Bytes::len);
            if passed > PASSED_OVER_MAX_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PASS_OVER_TIMEOUT, passing).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    const PIECE: usize = 64 * 1024;

    /// A body of so many pieces.
    struct Pieces<'a> {
        left: usize,
        taken: &'a mut usize,
    }

    impl Body for Pieces<'_> {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            self.left -= 1;
            *self.taken += 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; PIECE])))))
        }
    }

    /// How a body of so many pieces is read, and how many of them are taken.
    async fn read(left: usize) -> (Result<usize, StatusCode>, usize) {
        let mut taken = 0;
        let read = read_body(Pieces {
            left,
            taken: &mut taken,
        })
        .await;
        (
            read.map(|whole| whole.len()).map_err(|reply| reply.status()),
            taken,
        )
    }

    #[tokio::test]
    async fn what_is_too_large_is_read_on_within_bounds_and_refused() {
        let fits = JSON_BODY_MAX_BYTES / PIECE;
        assert_eq!(read(fits).await, (Ok(JSON_BODY_MAX_BYTES), fits));
        let refused = Err(StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(4 * fits).await, (refused, 4 * fits), "to its end");
        let (answer, taken) = read(1_000 * fits).await;
        assert_eq!(answer, refused);
        assert!(taken <= 18 * fits, "{taken}");
    }
}
