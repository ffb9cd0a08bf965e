//! Gate and book together, on a real store, in virtual time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test says that it failed")]

use std::time::Duration;

use super::*;
use crate::base::id::{GrantId, PeerId};
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::grant::{Denial, GrantRequest, GrantState, NewGrant, SERVICE_KIND};
use crate::process::clock::{Clock, ManualWallClock};
use crate::satellite::membership_store::SCHEMA;
use crate::store::database::Database;

const NOW: UnixTime = UnixTime::from_seconds(1_779_025_452);
const DAY: Duration = Duration::from_secs(86_400);

struct Desk {
    dir: tempfile::TempDir,
    book: GrantBook,
    clock: Clock,
    wall: ManualWallClock,
}

fn peer() -> PeerId {
    "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
}

impl Desk {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), NOW)
    }

    fn at(dir: tempfile::TempDir, time: UnixTime) -> Self {
        let wall = ManualWallClock::new(UnixTime::EPOCH);
        let clock = Clock::with_wall_clock(UnixTime::EPOCH, wall.clone());
        // The parent's time goes on with tokio's clock, which the tests move.
        clock.restore_parent_time(time);
        let database = Database::open(&dir.path().join("satellite.redb"), &SCHEMA).unwrap();
        Self {
            book: GrantBook::open(database, false, clock.clone()).unwrap(),
            dir,
            clock,
            wall,
        }
    }

    fn restarted(self, time: UnixTime) -> Self {
        let Self { dir, book, .. } = self;
        drop(book);
        Self::at(dir, time)
    }

    async fn issue(&self, subject: &str, service: Option<&str>) -> Issued {
        let request = GrantRequest {
            resource_id: service.map(str::to_owned),
            ..GrantRequest::new(peer(), subject, SERVICE_KIND, &["read", "write"])
        };
        let new = NewGrant::check(request).unwrap();
        self.book.issue(Issue::of(new, Handover::ByHand)).await.unwrap()
    }

    fn admit(&self, token: Option<&Secret>, subject: &str) -> Result<Admission, Denial> {
        let asked = Asked {
            peer: peer(),
            service: "ssh",
            token,
            subject,
            source: None,
        };
        self.book.gate().admit(&asked, self.clock.trusted().now)
    }

    fn state(&self, id: GrantId) -> GrantState {
        self.book.get(id).unwrap().grant.state(self.clock.trusted().now)
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_opens_what_its_grant_says_and_survives_a_restart() {
    let desk = Desk::new();
    let issued = desk.issue("anna", Some("ssh")).await;
    let token = issued.token.to_secret();
    assert!(desk.admit(Some(&token), "anna").is_ok());
    assert_eq!(desk.admit(Some(&token), "berta").unwrap_err().http_status(), 403);
    assert_eq!(desk.admit(None, "anna").unwrap_err(), Denial::TokenMissing);
    let garbage = Secret::from_text("fgs.x".into());
    assert_eq!(
        desk.admit(Some(&garbage), "anna").unwrap_err(),
        Denial::TokenMalformed
    );

    let desk = desk.restarted(NOW);
    assert!(desk.admit(Some(&token), "anna").is_ok(), "the key was kept");
    let other = Desk::new();
    assert!(matches!(
        other.admit(Some(&token), "anna").unwrap_err(),
        Denial::TokenForged { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn unsigned_tokens_are_taken_only_when_configured() {
    let desk = Desk::new();
    let issued = desk.issue("anna", None).await;
    let unsigned = Secret::from_text(format!("fg-{}", issued.grant.id));
    assert!(matches!(
        desk.admit(Some(&unsigned), "anna").unwrap_err(),
        Denial::TokenUnsigned { .. }
    ));
    desk.book.set_accept_unsigned(true);
    assert!(desk.admit(Some(&unsigned), "anna").is_ok());
    let unknown = Secret::from_text("fg-0192f0c1-7c1e-7a53-9d0e-000000000009".into());
    assert!(matches!(
        desk.admit(Some(&unknown), "anna").unwrap_err(),
        Denial::UnknownGrant { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_revocation_cuts_at_once_and_stays_after_a_restart() {
    let desk = Desk::new();
    let issued = desk.issue("anna", None).await;
    let token = issued.token.to_secret();
    let mut first = desk.admit(Some(&token), "anna").unwrap();
    let other = desk.issue("berta", None).await;
    let mut untouched = desk.admit(Some(&other.token.to_secret()), "berta").unwrap();
    let revoking = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        desk.book
            .revoke(issued.grant.id, "left the company")
            .await
            .unwrap();
        desk.clock.now()
    };
    let (ended, revoked_at) = tokio::join!(
        async {
            let ended = first.ended().await;
            (ended, desk.clock.now())
        },
        revoking
    );
    let (ended, at) = ended;
    assert_eq!(
        ended,
        AccessEnded::Revoked {
            grant: issued.grant.id,
            reason: "left the company".into()
        }
    );
    assert!(at.since(revoked_at) < Duration::from_secs(1));
    assert_eq!(first.ended().await, ended, "may be asked again");
    assert!(
        tokio::time::timeout(DAY, untouched.ended()).await.is_err(),
        "another's revocation cuts nobody"
    );
    let desk = desk.restarted(NOW);
    assert_eq!(
        desk.admit(Some(&token), "anna").unwrap_err().answer(),
        "grant is revoked"
    );
    assert!(
        matches!(
            desk.book.revoke(issued.grant.id, "again").await,
            Err(GrantBookError::Revoke(_))
        ),
        "the first reason stays"
    );
}

#[tokio::test(start_paused = true)]
async fn an_expiry_cuts_though_nothing_happens() {
    let desk = Desk::new();
    let issued = desk.issue("anna", None).await;
    let mut admission = desk.admit(Some(&issued.token.to_secret()), "anna").unwrap();
    // Given up and asked again, as a select does.
    for _ in 0..3 {
        assert!(tokio::time::timeout(DAY, admission.ended()).await.is_err());
    }
    let ended = admission.ended().await;
    assert_eq!(
        ended,
        AccessEnded::Expired {
            grant: issued.grant.id
        }
    );
    let over = issued.grant.expires_at;
    assert!(desk.clock.trusted().now.since(over) <= Duration::from_secs(1));
    assert_eq!(
        desk.admit(Some(&issued.token.to_secret()), "anna")
            .unwrap_err()
            .answer(),
        "grant is expired"
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_beyond_the_end_cuts_within_a_second() {
    let desk = Desk::new();
    let issued = desk.issue("anna", None).await;
    let mut admission = desk.admit(Some(&issued.token.to_secret()), "anna").unwrap();
    let jumping = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        desk.wall.set(issued.grant.expires_at);
        desk.clock.now()
    };
    let ended = async {
        let ended = admission.ended().await;
        (ended, desk.clock.now())
    };
    let watched = async {
        tokio::select! {
            () = desk.book.gate().watch_clock() => unreachable!("it runs for ever"),
            both = async { tokio::join!(ended, jumping) } => both,
        }
    };
    let ((ended, at), jumped_at) = watched.await;
    assert_eq!(
        ended,
        AccessEnded::Expired {
            grant: issued.grant.id
        }
    );
    assert!(at.since(jumped_at) <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_mirror_grant_is_made_once_and_an_emancipated_child_stays_so() {
    let desk = Desk::new();
    let mirror = desk.book.mirror(peer()).await.unwrap().unwrap().grant;
    assert_eq!(mirror.remote_subject, format!("parent-operator@{}", peer()));
    let again = desk.book.mirror(peer()).await.unwrap().unwrap();
    assert_eq!((again.grant.id, again.reused), (mirror.id, true));
    assert_eq!(desk.book.all().len(), 1);
    assert_eq!(desk.book.get(mirror.id).unwrap().handover, Handover::Due);

    // A year later it is over, and the next start makes another: nobody has said no.
    let desk = desk.restarted(mirror.expires_at);
    let second = desk.book.mirror(peer()).await.unwrap().unwrap().grant;
    assert_ne!(second.id, mirror.id);
    assert!(!desk.book.is_emancipated(peer()));

    let token = desk.book.token_of(second.id).unwrap().to_secret();
    let mut admission = desk.admit(Some(&token), "anybody").unwrap();
    let ended = desk.book.emancipate(peer(), "on our own").await.unwrap();
    assert_eq!(ended.len(), 1);
    assert!(matches!(admission.ended().await, AccessEnded::Revoked { .. }));
    assert!(desk.book.is_emancipated(peer()));
    assert!(
        desk.book.emancipate(peer(), "again").await.unwrap().is_empty(),
        "twice is once"
    );

    let later = mirror.expires_at.plus(DAY * 91);
    let desk = desk.restarted(later);
    assert_eq!(desk.book.archive().await.unwrap(), 1);
    assert_eq!(desk.state(second.id), GrantState::Archived);
    assert!(desk.book.mirror(peer()).await.unwrap().is_none());
    assert!(desk.book.is_emancipated(peer()));
    // Only the owner gives it back.
    let given = NewGrant::managed_child_operator(peer());
    desk.book.issue(Issue::of(given, Handover::Due)).await.unwrap();
    assert!(!desk.book.is_emancipated(peer()));
}

#[tokio::test(start_paused = true)]
async fn what_was_made_under_a_grant_ends_with_it() {
    let desk = Desk::new();
    let mirror = desk.book.mirror(peer()).await.unwrap().unwrap().grant;
    let under = async |subject: &str, origin: GrantId| {
        let request = GrantRequest::new(peer(), subject, SERVICE_KIND, &["write"]);
        let issue = Issue {
            derived_from: Some(origin),
            ..Issue::of(NewGrant::check(request).unwrap(), Handover::Done)
        };
        desk.book.issue(issue).await.unwrap()
    };
    let first = under("anna", mirror.id).await;
    let second = under("berta", first.grant.id).await;
    let own = desk.issue("carla", None).await;
    let mut admission = desk.admit(Some(&second.token.to_secret()), "berta").unwrap();
    let ended = desk.book.emancipate(peer(), "on our own").await.unwrap();
    assert_eq!(ended.len(), 3);
    assert!(matches!(admission.ended().await, AccessEnded::Revoked { .. }));
    assert_eq!(desk.state(second.grant.id), GrantState::Revoked);
    assert_eq!(
        desk.book.get(second.grant.id).unwrap().handover,
        Handover::RevocationDue
    );
    assert_eq!(desk.state(own.grant.id), GrantState::Active, "the owner's own");
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_store_no_operator_grant_is_made_by_itself() {
    let desk = Desk::new();
    desk.book.database.write(|w| withhold(w, peer())).unwrap();
    let desk = desk.restarted(NOW);
    assert!(desk.book.mirror(peer()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_revoked_while_it_is_handed_over_is_told_as_revoked() {
    let desk = Desk::new();
    let due = desk.book.mirror(peer()).await.unwrap().unwrap().grant.id;
    desk.book.revoke(due, "no").await.unwrap();
    assert_eq!(desk.book.get(due).unwrap().handover, Handover::Due);
    desk.book.acknowledged(due, Handover::Due).await.unwrap();
    assert_eq!(desk.book.get(due).unwrap().handover, Handover::RevocationDue);
    desk.book
        .acknowledged(due, Handover::RevocationDue)
        .await
        .unwrap();
    assert_eq!(desk.book.get(due).unwrap().handover, Handover::RevocationDone);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_left_lets_nobody_in() {
    let desk = Desk::new();
    let issued = desk.issue("anna", None).await;
    let token = issued.token.to_secret();
    let mut admission = desk.admit(Some(&token), "anna").unwrap();
    assert_eq!(desk.book.gate().admitted(), 1);
    desk.book.close();
    assert!(matches!(admission.ended().await, AccessEnded::Gone { .. }));
    assert!(desk.admit(Some(&token), "anna").is_err());
    drop(admission);
    assert_eq!(desk.book.gate().admitted(), 0);
    let new = NewGrant::managed_child_operator(peer());
    assert!(matches!(
        desk.book.issue(Issue::of(new, Handover::Due)).await,
        Err(GrantBookError::Left)
    ));
}

#[tokio::test(start_paused = true)]
async fn the_book_is_bounded_and_what_ended_long_ago_makes_room() {
    let desk = Desk::new();
    desk.book
        .database
        .write(|w| {
            for number in 0..GRANTS_MAX {
                let id = GrantId::new_v7(NOW, number.to_be_bytes()[..].repeat(2)[..10].try_into().unwrap());
                let request = GrantRequest::new(peer(), "s", SERVICE_KIND, &["write"]);
                let grant = NewGrant::check(request).unwrap().issue(id, NOW);
                let kept = KeptGrant {
                    grant,
                    handover: Handover::ByHand,
                    derived_from: None,
                };
                w.put(&record::GRANTS, &id, &kept)?;
            }
            Ok::<_, crate::store::database::StoreError>(())
        })
        .unwrap();
    let desk = desk.restarted(NOW);
    let new = || NewGrant::managed_child_operator(peer());
    assert!(matches!(
        desk.book.issue(Issue::of(new(), Handover::Due)).await,
        Err(GrantBookError::Full)
    ));
    let desk = desk.restarted(NOW.plus(DAY * 121));
    desk.book.issue(Issue::of(new(), Handover::Due)).await.unwrap();
    assert_eq!(desk.book.all().len(), GRANTS_MAX);
}
