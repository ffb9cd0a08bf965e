//! Certificates that operators have said are a peer's, before the box has come with them: an operator reads the
//! fingerprint off the box itself. In memory alone and for a time. Nothing of the peer changes before the certificate
//! has been shown in a handshake, so that a wrong fingerprint lets nobody in and keeps nobody out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::federation_api::CallerCertificate;
use crate::base::id::{CertificateDigest, PeerId};
use crate::base::time::UnixTime;

/// How long a box is waited for: one that is on its way comes back within minutes, one in a drawer is
/// somebody's task of this week.
pub const WAITED_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Most peers that are waited for, which only operators can bring about.
const WAITED_FOR_MAX: usize = 1_024;

/// Of each peer the certificate that it may come with, and until when.
#[derive(Debug, Default)]
pub struct Readmissions(BTreeMap<PeerId, (CertificateDigest, UnixTime)>);

impl Readmissions {
    /// The peer may come with this certificate, in the place of one named before; gives until when. `None` where
    /// too many are waited for.
    pub fn expect(
        &mut self,
        peer: PeerId,
        certificate: CertificateDigest,
        now: UnixTime,
    ) -> Option<UnixTime> {
        self.0.retain(|_, (_, until)| *until > now);
        if self.0.len() >= WAITED_FOR_MAX && !self.0.contains_key(&peer) {
            return None;
        }
        let until = now.plus(WAITED_FOR);
        self.0.insert(peer, (certificate, until));
        Some(until)
    }

    /// Whether the peer has come with what was named. It is not waited for any more, then.
    pub fn take(&mut self, peer: PeerId, shown: &CallerCertificate, now: UnixTime) -> bool {
        let named = self.0.get(&peer);
        let comes = named.is_some_and(|(certificate, until)| *certificate == shown.digest() && *until > now);
        if comes {
            self.0.remove(&peer);
        }
        comes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::CertificateDer;

    use super::*;
    use crate::base::id::PublicKeyDigest;
    use crate::bridge::federation_api::Standing;

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    fn peer(n: u8) -> PeerId {
        PeerId::new_v7(UnixTime::EPOCH, [n; 10])
    }

    fn shown(n: u8) -> CallerCertificate {
        CallerCertificate {
            peer: None,
            key: PublicKeyDigest::from_bytes([n; 32]),
            der: Arc::new(CertificateDer::from(vec![n])),
            standing: Standing::Valid,
        }
    }

    #[test]
    fn the_named_certificate_is_taken_once_and_of_its_peer_alone() {
        let mut readmissions = Readmissions::default();
        assert_eq!(
            readmissions.expect(peer(1), shown(1).digest(), at(0)),
            Some(at(0).plus(WAITED_FOR))
        );
        assert!(
            !readmissions.take(peer(1), &shown(2), at(1)),
            "another certificate"
        );
        assert!(!readmissions.take(peer(2), &shown(1), at(1)), "another peer");
        assert!(readmissions.take(peer(1), &shown(1), at(1)));
        assert!(!readmissions.take(peer(1), &shown(1), at(1)), "once");
    }

    #[test]
    fn the_last_word_counts_and_not_for_ever() {
        let mut readmissions = Readmissions::default();
        readmissions.expect(peer(1), shown(1).digest(), at(0)).unwrap();
        readmissions.expect(peer(1), shown(2).digest(), at(0)).unwrap();
        assert!(!readmissions.take(peer(1), &shown(1), at(1)));
        assert!(!readmissions.take(peer(1), &shown(2), at(0).plus(WAITED_FOR)));
    }

    #[test]
    fn so_many_are_waited_for_until_their_time_is_over() {
        let mut readmissions = Readmissions::default();
        let numbered = |n: usize| {
            let mut entropy = [0; 10];
            entropy[..8].copy_from_slice(&n.to_be_bytes());
            PeerId::new_v7(UnixTime::EPOCH, entropy)
        };
        for n in 0..WAITED_FOR_MAX {
            readmissions
                .expect(numbered(n), shown(1).digest(), at(0))
                .unwrap();
        }
        let one_more = numbered(WAITED_FOR_MAX);
        assert_eq!(readmissions.expect(one_more, shown(1).digest(), at(1)), None);
        assert!(
            readmissions
                .expect(numbered(0), shown(2).digest(), at(1))
                .is_some()
        );
        let later = at(2).plus(WAITED_FOR);
        assert!(readmissions.expect(one_more, shown(1).digest(), later).is_some());
    }
}
