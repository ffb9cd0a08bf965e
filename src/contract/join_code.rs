//! The join code: one copyable string that holds everything a box needs to join (ours; the
//! contract knows only its parts). `pnjoin1` and base32 without padding, in groups that survive
//! line wraps and letter case; a checksum tells a mangled copy from a wrong code.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::invitation::{
    BRIDGES_MAX, CaFingerprint, ContractVersion, HostPort, InvalidHostPort, InvalidParentUrl, Invitation,
    ParentTrust, ParentUrl,
};
use super::peer::{SpawnMode, UnknownName};
use super::token::{AcceptanceToken, TOKEN_ENTROPY_BYTES};
use crate::base::radix::{BASE32_NOPAD, BASE64URL_NOPAD};
use crate::base::secret::Secret;
use crate::base::time::UnixTime;

/// What the join code of a managed child begins with.
pub const JOIN_CODE_PREFIX: &str = "pnjoin1";

/// What a join code begins with that names another spawn mode: a program that does not know of it would make
/// its box a managed child.
const MODE_PREFIX: &str = "pnjoin2";

/// What every join code begins with, whatever its version.
const ANY_PREFIX: &str = "pnjoin";

/// Bytes of SHA-256 that follow the content: one mangled copy in four billion passes.
const CHECKSUM_BYTES: usize = 4;

/// Longest join code that is read, in characters.
const CODE_MAX_CHARS: usize = 4_096;

/// What a parent hands to the owner of a box.
#[derive(Debug, Clone)]
pub struct JoinCode {
    /// Whom to join.
    pub parent_url: ParentUrl,
    /// Where the parent's host-bridges listen.
    pub bridges: Vec<HostPort>,
    /// The single-use credential.
    pub token: AcceptanceToken,
    /// The parent's CA.
    pub ca: CaFingerprint,
    /// When the code was made, by the parent's clock: a box without a clock of its own learns from
    /// it that it is not 1970.
    pub minted_at: UnixTime,
    /// How the parent means to treat the child.
    pub spawn_mode: SpawnMode,
}

#[derive(Serialize, Deserialize)]
struct Content {
    parent_url: String,
    bridges: Vec<String>,
    token: [u8; TOKEN_ENTROPY_BYTES],
    ca_sha256: [u8; 32],
    minted_at: i64,
}

/// Why a text is not a join code. None of these repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidJoinCode {
    /// It does not begin like one.
    #[error(
        "this is not a join code: those begin with `{JOIN_CODE_PREFIX}`. Copy the whole line that `powernode-host-bridge invite` printed"
    )]
    NotAJoinCode,
    /// A join code of a later version.
    #[error("this join code was made by a newer host-bridge; update powernode-satellite on this box")]
    NewerVersion,
    /// The checksum or the alphabet says that it was changed on the way.
    #[error("the join code was changed or cut on the way ({0}); copy it again, all of it")]
    Mangled(&'static str),
    /// Whole, but its content is not usable.
    #[error("the join code arrived whole but names a parent URL that cannot be used")]
    ParentUrl(#[from] InvalidParentUrl),
    /// Whole, but its content is not usable.
    #[error("the join code arrived whole but names a bridge address that cannot be used")]
    Bridge(#[from] InvalidHostPort),
    /// Whole, but its content is not usable.
    #[error("the join code arrived whole but names a spawn mode that this program does not know; update it")]
    SpawnMode(#[from] UnknownName),
}

impl JoinCode {
    /// The string to print, once.
    ///
    /// # Panics
    /// Never: the content is a handful of bounded fields, which postcard always encodes.
    pub fn encode(&self) -> Zeroizing<String> {
        let mut token = [0; TOKEN_ENTROPY_BYTES];
        // Only codes for tokens of ours are made, and those are 32 bytes in base64url.
        let decoded = BASE64URL_NOPAD
            .decode(self.token.expose().expose())
            .map(Zeroizing::new);
        if let Ok(bytes) = decoded
            && bytes.len() == TOKEN_ENTROPY_BYTES
        {
            token.copy_from_slice(&bytes);
        }
        let mut content = Content {
            parent_url: self.parent_url.to_string(),
            bridges: self.bridges.iter().map(ToString::to_string).collect(),
            token,
            ca_sha256: *self.ca.as_bytes(),
            minted_at: self.minted_at.as_seconds(),
        };
        let mut bytes = Zeroizing::new(postcard::to_allocvec(&content).unwrap_or_default());
        let prefix = match self.spawn_mode {
            SpawnMode::ManagedChild => JOIN_CODE_PREFIX,
            other => {
                bytes.extend(postcard::to_allocvec(other.as_str()).unwrap_or_default());
                MODE_PREFIX
            }
        };
        content.token.zeroize();
        token.zeroize();
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let encoded = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        Zeroizing::new(format!("{prefix}{}", encoded.to_ascii_lowercase()))
    }

    /// Reads a code as a person pasted it: white space anywhere and any letter case. The given
    /// buffer is wiped.
    pub fn parse(text: String) -> Result<Self, InvalidJoinCode> {
        let text = Zeroizing::new(text);
        let compact: Zeroizing<String> = Zeroizing::new(
            text.chars()
                .filter(|c| !c.is_whitespace())
                .map(|c| c.to_ascii_lowercase())
                .take(CODE_MAX_CHARS + 1)
                .collect(),
        );
        let managed = compact.strip_prefix(JOIN_CODE_PREFIX);
        let Some(body) = managed.or_else(|| compact.strip_prefix(MODE_PREFIX)) else {
            let newer = compact
                .strip_prefix(ANY_PREFIX)
                .is_some_and(|rest| rest.starts_with(|c: char| ('3'..='9').contains(&c)));
            return Err(if newer {
                InvalidJoinCode::NewerVersion
            } else {
                InvalidJoinCode::NotAJoinCode
            });
        };
        if compact.len() > CODE_MAX_CHARS {
            return Err(InvalidJoinCode::Mangled("it is far too long"));
        }
        let upper = Zeroizing::new(body.to_ascii_uppercase());
        let bytes = BASE32_NOPAD
            .decode(upper.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| {
                InvalidJoinCode::Mangled("it has a character that no join code has, or its end is missing")
            })?;
        let Some((content, sum)) = bytes
            .len()
            .checked_sub(CHECKSUM_BYTES)
            .map(|at| bytes.split_at(at))
        else {
            return Err(InvalidJoinCode::Mangled("it is too short"));
        };
        if checksum(content) != sum {
            return Err(InvalidJoinCode::Mangled("its checksum does not match"));
        }
        let unusable = |_| InvalidJoinCode::Mangled("its checksum matches but its content does not");
        let (mut content, rest) = postcard::take_from_bytes::<Content>(content).map_err(unusable)?;
        let token = AcceptanceToken::from_secret(Secret::from_text(BASE64URL_NOPAD.encode(&content.token)));
        content.token.zeroize();
        let spawn_mode = match managed {
            Some(_) => SpawnMode::ManagedChild,
            None => postcard::from_bytes::<&str>(rest).map_err(unusable)?.parse()?,
        };
        let bridges = content
            .bridges
            .iter()
            .take(BRIDGES_MAX)
            .map(|b| b.parse())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            parent_url: content.parent_url.parse()?,
            bridges,
            token,
            ca: CaFingerprint::from_bytes(content.ca_sha256),
            minted_at: UnixTime::from_seconds(content.minted_at),
            spawn_mode,
        })
    }

    /// The invitation that this code stands for.
    pub fn into_invitation(self) -> Invitation {
        Invitation {
            parent_url: self.parent_url,
            bridges: self.bridges,
            token: self.token,
            trust: ParentTrust::Pinned(self.ca),
            spawn_mode: self.spawn_mode,
            parent_peer_id: None,
            contract_version: ContractVersion::CURRENT,
            minted_at: Some(self.minted_at),
        }
    }
}

impl fmt::Display for JoinCode {
    /// Without the token: for logs and errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "join code for {} ({})", self.parent_url, self.ca)
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(content);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code() -> JoinCode {
        JoinCode {
            parent_url: "https://bridge.example.com:8443".parse().unwrap(),
            bridges: vec![
                "bridge.example.com:8443".parse().unwrap(),
                "192.0.2.7:8443".parse().unwrap(),
            ],
            token: AcceptanceToken::mint(&Zeroizing::new([7; 32])),
            ca: CaFingerprint::from_bytes([9; 32]),
            minted_at: UnixTime::from_seconds(1_800_000_000),
            spawn_mode: SpawnMode::ManagedChild,
        }
    }

    #[test]
    fn every_mode_arrives_and_a_managed_childs_code_is_what_it_always_was() {
        for &spawn_mode in SpawnMode::ALL {
            let text = JoinCode { spawn_mode, ..code() }.encode();
            let managed = spawn_mode == SpawnMode::ManagedChild;
            assert_eq!(text.starts_with(JOIN_CODE_PREFIX), managed, "{spawn_mode}");
            let read = JoinCode::parse(text.to_string()).unwrap();
            assert_eq!(read.spawn_mode, spawn_mode);
            assert_eq!(read.into_invitation().spawn_mode, spawn_mode);
            // Under the other prefix it is not a code that says something else.
            let digit = if managed { "2" } else { "1" };
            let other = format!("pnjoin{digit}{}", &text[JOIN_CODE_PREFIX.len()..]);
            match JoinCode::parse(other) {
                Ok(read) => assert_eq!(read.spawn_mode, SpawnMode::ManagedChild),
                Err(error) => assert!(matches!(error, InvalidJoinCode::Mangled(_)), "{error}"),
            }
        }
    }

    #[test]
    fn a_code_survives_line_wraps_and_letter_case() {
        let text = code().encode();
        let mut wrapped = String::new();
        for (index, character) in text.to_ascii_uppercase().chars().enumerate() {
            wrapped.push(character);
            if index % 40 == 39 {
                wrapped.push_str("\n  ");
            }
        }
        let read = JoinCode::parse(wrapped).unwrap();
        assert_eq!(read.parent_url, code().parent_url);
        assert_eq!(read.bridges, code().bridges);
        assert_eq!((read.ca, read.minted_at), (code().ca, code().minted_at));
        assert!(read.token.expose().matches(code().token.expose()));
    }

    #[test]
    fn mangled_wrong_and_newer_are_told_apart() {
        let text = code().encode();
        let cut = text[..text.len() - 9].to_owned();
        assert!(matches!(
            JoinCode::parse(cut).unwrap_err(),
            InvalidJoinCode::Mangled(_)
        ));
        assert_eq!(
            JoinCode::parse("61qtu9mI5goi86W0l4Nd".into()).unwrap_err(),
            InvalidJoinCode::NotAJoinCode
        );
        assert_eq!(
            JoinCode::parse("pnjoin3abc".into()).unwrap_err(),
            InvalidJoinCode::NewerVersion
        );
        assert!(matches!(
            JoinCode::parse("pnjoin1".into()).unwrap_err(),
            InvalidJoinCode::Mangled(_)
        ));
    }

    proptest! {
        #[test]
        fn any_single_changed_character_is_noticed(at in 0usize..200, to in "[a-z2-7]") {
            let text = code().encode().to_string();
            let at = JOIN_CODE_PREFIX.len() + at % (text.len() - JOIN_CODE_PREFIX.len());
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text);
            prop_assert!(matches!(JoinCode::parse(changed), Err(InvalidJoinCode::Mangled(_))));
        }

        #[test]
        fn no_input_panics(text in ".{0,300}") {
            let _ = JoinCode::parse(text.clone());
            let _ = JoinCode::parse(format!("{JOIN_CODE_PREFIX}{text}"));
        }
    }
}
