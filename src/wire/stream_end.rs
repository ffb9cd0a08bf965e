//! Why a stream was given up before its end: a number that goes with the transport's reset or stop.

use thiserror::Error;

/// Why one side gave a stream up. Words for both sides' people; the codes are the protocol's, a new one
/// takes the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamEnd {
    /// Nothing was said: by a build before this one, or by a code of a later one.
    #[error("it gave no reason")]
    Abandoned,
    /// The box's owner has taken the grant back.
    #[error("the grant was revoked")]
    GrantRevoked,
    /// The grant's time is over.
    #[error("the grant has expired")]
    GrantExpired,
    /// The satellite has left its parent, and all grants with it.
    #[error("the satellite has left its parent")]
    GrantGone,
    /// The service is published no more.
    #[error("the service was withdrawn")]
    ServiceWithdrawn,
    /// The service's program.
    #[error("the service's program broke the connection off")]
    ProgramBroke,
    /// The service's program, in one direction.
    #[error("the service's program took no more")]
    ProgramStopped,
    /// The service's program took nothing for long, and there was no room to wait for it.
    #[error("the service's program took nothing for long, as too many others of this tunnel do")]
    HeldUp,
    /// Somebody on the asking side cut the session.
    #[error("an operator cut the session")]
    OperatorCut,
    /// The asking operator may no more.
    #[error("the operator's rights have ended")]
    RightsEnded,
    /// The asking person's own program.
    #[error("the asking program broke the connection off")]
    ClientBroke,
}

/// All of them, at the place of their code.
const BY_CODE: [StreamEnd; 12] = [
    // What builds send that stop a stream without a word.
    StreamEnd::Abandoned,
    StreamEnd::Abandoned,
    StreamEnd::GrantRevoked,
    StreamEnd::GrantExpired,
    StreamEnd::GrantGone,
    StreamEnd::ServiceWithdrawn,
    StreamEnd::ProgramBroke,
    StreamEnd::ProgramStopped,
    StreamEnd::HeldUp,
    StreamEnd::OperatorCut,
    StreamEnd::RightsEnded,
    StreamEnd::ClientBroke,
];

impl StreamEnd {
    /// As it travels.
    pub const fn code(self) -> u32 {
        match self {
            Self::Abandoned => 1,
            Self::GrantRevoked => 2,
            Self::GrantExpired => 3,
            Self::GrantGone => 4,
            Self::ServiceWithdrawn => 5,
            Self::ProgramBroke => 6,
            Self::ProgramStopped => 7,
            Self::HeldUp => 8,
            Self::OperatorCut => 9,
            Self::RightsEnded => 10,
            Self::ClientBroke => 11,
        }
    }

    /// What a code says; one that this build does not know says nothing.
    pub fn from_code(code: u64) -> Self {
        let known = usize::try_from(code).ok().and_then(|code| BY_CODE.get(code));
        known.copied().unwrap_or(Self::Abandoned)
    }

    /// Whether somebody has decided it, rather than that something broke.
    pub const fn is_decided(self) -> bool {
        match self {
            Self::GrantRevoked
            | Self::GrantExpired
            | Self::GrantGone
            | Self::ServiceWithdrawn
            | Self::HeldUp
            | Self::OperatorCut
            | Self::RightsEnded => true,
            Self::Abandoned | Self::ProgramBroke | Self::ProgramStopped | Self::ClientBroke => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_code_of_every_end() {
        let known = [
            (1, StreamEnd::Abandoned),
            (2, StreamEnd::GrantRevoked),
            (3, StreamEnd::GrantExpired),
            (4, StreamEnd::GrantGone),
            (5, StreamEnd::ServiceWithdrawn),
            (6, StreamEnd::ProgramBroke),
            (7, StreamEnd::ProgramStopped),
            (8, StreamEnd::HeldUp),
            (9, StreamEnd::OperatorCut),
            (10, StreamEnd::RightsEnded),
            (11, StreamEnd::ClientBroke),
        ];
        assert_eq!(known.len(), BY_CODE.len() - 1, "every end has a golden code");
        for (code, end) in known {
            assert_eq!((end.code(), StreamEnd::from_code(code.into())), (code, end));
        }
    }

    #[test]
    fn a_code_of_a_later_build_says_nothing() {
        for code in [0, 12, 255, u64::MAX] {
            assert_eq!(StreamEnd::from_code(code), StreamEnd::Abandoned);
        }
    }
}
