//! What `forward --udp` says of packets that do not get through: a cause once, and not with every packet; and when
//! they do again. Decides what is news; knows no socket, and does not print.

use std::time::Duration;

use powernode_satellite::base::time::Moment;

/// Time after which a cause is said again that still is one: often enough for whoever looks at the terminal.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Causes that are said within that time. A bridge that goes has two or three, at different clients; more would only
/// hide each other.
const CAUSES_MAX: usize = 8;

/// The causes that were said of late.
#[derive(Debug, Default)]
pub struct Complaints {
    said: Vec<(String, Moment)>,
    is_standing: bool,
}

impl Complaints {
    /// Whether it is to be said that packets are lost by this cause.
    pub fn is_news(&mut self, cause: &str, now: Moment) -> bool {
        self.said.retain(|(_, at)| now.since(*at) < SAID_AGAIN_AFTER);
        if self.said.len() >= CAUSES_MAX || self.said.iter().any(|(said, _)| said == cause) {
            return false;
        }
        self.said.push((cause.to_owned(), now));
        self.is_standing = true;
        true
    }

    /// Packets get through. Whether that is to be said: once after a cause why they did not.
    pub fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.is_standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_cause_is_said_once_a_minute_and_its_end_once() {
        let mut complaints = Complaints::default();
        assert!(!complaints.is_over(), "nothing was wrong");
        assert!(complaints.is_news("gone", at(0)));
        assert!(!complaints.is_news("gone", at(1)));
        assert!(complaints.is_news("not published", at(2)), "another cause");
        assert!(!complaints.is_news("gone", at(59)));
        assert!(complaints.is_over());
        assert!(!complaints.is_over());
        assert!(complaints.is_news("gone", at(60)));
        assert!(complaints.is_over());
    }

    #[test]
    fn clients_that_fail_and_succeed_by_turns_are_no_flood() {
        let mut complaints = Complaints::default();
        let said = (0..600)
            .filter(|tenth| {
                let failed = complaints.is_news("as many as the limit allows", at(tenth / 10));
                complaints.is_over() | failed
            })
            .count();
        assert_eq!(said, 1);
        let causes = (0..100).filter(|number| complaints.is_news(&number.to_string(), at(59)));
        assert_eq!(causes.count(), CAUSES_MAX - 1, "the first is one of them");
        assert!(complaints.is_news("another", at(60)));
    }
}
