//! Finds the invitation that a configuration or a payload holds, and puts the box's own facts to it:
//! who runs it and by what the parent is known. Reads files; knows nothing of the network.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::payload::{PayloadReadError, PayloadSources, find_payload};
use crate::contract::invitation::{ContractVersion, Invitation, ParentTrust};
use crate::contract::peer::SpawnMode;
use crate::contract::token::{AcceptanceToken, InvalidToken, TOKEN_MAX_BYTES};
use crate::machine::membership::{Operator, StoredInvitation};
use crate::process::config::satellite::{DisclosureConfig, ParentConfig, SatelliteConfig};

/// Largest CA file that is read, in bytes: a system's whole bundle is about 250 KiB.
const CA_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Why an invitation cannot be put together.
#[derive(Debug, Error)]
pub enum InviteError {
    /// The payload.
    #[error(transparent)]
    Payload(#[from] PayloadReadError),
    /// The CA file.
    #[error("cannot read the CA file {}; check the path and its permissions", path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token file.
    #[error("cannot read the token file {}; check the path and its permissions", path.display())]
    TokenFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("the token file {} cannot be used", path.display())]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: InvalidToken,
    },
    /// A token but no parent.
    #[error(
        "there is an acceptance token, and nothing says of which parent: give --parent-url or set parent.url in the \
         configuration, and the parent's CA with it; or take a join code, which says all of it"
    )]
    UrlMissing,
    /// Social contract 1.
    #[error(
        "joining needs {missing}: the federation's rules have every member say who answers for it and where it stands. \
         Give --contact and --location, or set disclosure.operator_contact and disclosure.location in the configuration"
    )]
    Disclosure {
        /// Which of them.
        missing: &'static str,
    },
}

/// The invitation that waits for this box: a payload first, then token and URL of the configuration.
/// `Ok(None)`: nothing to do. Blocking.
pub fn waiting_invitation(config: &SatelliteConfig) -> Result<Option<StoredInvitation>, InviteError> {
    let trust = configured_trust(&config.parent)?;
    let sources = PayloadSources {
        fw_cfg_dir: config.payload.fw_cfg_dir.clone(),
        credentials_dir: config.payload.credentials_dir.clone(),
        file: config.payload.file.clone(),
    };
    let mut found = find_payload(&sources, &trust)?;
    if found.is_none() {
        let token_file = config
            .parent
            .token_file
            .as_ref()
            .or(config.parent.token_credential.as_ref());
        found = match token_file {
            None => None,
            Some(path) => {
                let token = read_token(path)?;
                Some(of_token(&config.parent, token, trust)?)
            }
        };
    }
    let Some(mut invitation) = found else {
        return Ok(None);
    };
    if !config.parent.bridges.is_empty() {
        invitation.bridges.clone_from(&config.parent.bridges);
    }
    Ok(Some(StoredInvitation::new(
        invitation,
        operator(&config.disclosure)?,
    )))
}

/// An invitation of the configured parent with this token.
pub fn of_token(
    parent: &ParentConfig,
    token: AcceptanceToken,
    trust: ParentTrust,
) -> Result<Invitation, InviteError> {
    Ok(Invitation {
        parent_url: parent.url.clone().ok_or(InviteError::UrlMissing)?,
        bridges: parent.bridges.clone(),
        token,
        trust,
        spawn_mode: SpawnMode::ManagedChild,
        parent_peer_id: None,
        contract_version: ContractVersion::CURRENT,
        minted_at: None,
    })
}

/// By what the configuration says that the parent is known. Blocking.
pub fn configured_trust(parent: &ParentConfig) -> Result<ParentTrust, InviteError> {
    if let Some(fingerprint) = parent.ca_sha256 {
        return Ok(ParentTrust::Pinned(fingerprint));
    }
    let Some(path) = &parent.ca_file else {
        return Ok(ParentTrust::SystemRoots);
    };
    let failed = |source| InviteError::CaFile {
        path: path.clone(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(CA_FILE_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(ParentTrust::Bundle(text))
}

/// Who runs the box: both of the social contract's facts, or a refusal.
pub fn operator(disclosure: &DisclosureConfig) -> Result<Operator, InviteError> {
    match (&disclosure.operator_contact, &disclosure.location) {
        (Some(contact), Some(location)) => Ok(Operator {
            contact: contact.clone(),
            location: location.clone(),
            data_residency: disclosure.data_residency.clone(),
        }),
        (None, None) => Err(InviteError::Disclosure {
            missing: "a contact and a location",
        }),
        (None, Some(_)) => Err(InviteError::Disclosure { missing: "a contact" }),
        (Some(_), None) => Err(InviteError::Disclosure {
            missing: "a location",
        }),
    }
}

/// A token file. Blocking.
pub fn read_token(path: &Path) -> Result<AcceptanceToken, InviteError> {
    let failed = |source| InviteError::TokenFile {
        path: path.to_owned(),
        source,
    };
    // One buffer of the final size: a growing one would leave copies of the token behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_MAX_BYTES * 2));
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(TOKEN_MAX_BYTES as u64 * 2 - 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| failed(io::ErrorKind::InvalidData.into()))?;
    AcceptanceToken::parse(text.to_owned()).map_err(|source| InviteError::Token {
        path: path.to_owned(),
        source,
    })
}
