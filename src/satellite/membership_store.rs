//! Where a satellite's membership is kept: the store file, and a second, checksummed copy of what
//! must outlive a broken file. Opens whichever is whole and says so. The facts that change every
//! minute are written rarely: the card of a small box must not wear out.

mod examination;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::status::StoreReport;
use crate::base::limit::error_chain;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::message::{OurEndpoint, SchemaCompatibility};
use crate::machine::join::JoinState;
use crate::store::copy::{self, Copy as SecondCopy, CopyError};
use crate::store::database::{Database, OpenError, Schema, StoreError, Table};
use crate::store::record::{self, Only, Record, RecordError};

pub use examination::{CopyStanding, Examination};

/// The store file in the state directory.
pub const STORE_FILE: &str = "satellite.redb";

/// The second copy in the state directory.
pub const COPY_FILE: &str = "membership.copy";

/// Schema of the store file.
pub static SCHEMA: Schema = Schema {
    name: "powernode-satellite",
    version: 1,
    migrations: &[],
};

const MEMBERSHIP: Table<Only, StoredState> = Table::new("membership");
const FACTS: Table<Only, Facts> = Table::new("facts");

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredState(JoinState);

impl Record for StoredState {
    const VERSION: u8 = 1;
}

/// What is good to know again after a restart, and no loss if it is old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The parent's last acknowledgement, trusted time.
    pub last_acknowledged_at: Option<UnixTime>,
    /// The last time seen from the parent, advanced to when this was written.
    pub seen_from_parent: Option<UnixTime>,
    /// Where the parent says that it can be reached.
    pub our_endpoints: Vec<OurEndpoint>,
    /// How the versions fit, as the parent says.
    pub schema_compatibility: Option<SchemaCompatibility>,
    /// Bridges that answered, the latest first: name and address.
    pub good_addresses: Vec<(String, std::net::SocketAddr)>,
}

impl Record for Facts {
    const VERSION: u8 = 1;
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// `None` when this box was never invited.
    pub state: Option<JoinState>,
    /// The facts, or none.
    pub facts: Facts,
    /// Set when the store was damaged and the second copy was used: what happened, in words.
    pub recovered: Option<String>,
}

/// Why the state cannot be opened.
#[derive(Debug, Error)]
pub enum OpenStateError {
    /// The store cannot be opened, and no second copy helps.
    #[error("cannot open the satellite's state in {directory}")]
    Open {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The store opens but its rows cannot be read.
    #[error("cannot read the satellite's state in {directory}")]
    Read {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The second copy cannot be read.
    #[error("cannot read the second copy of the satellite's state in {directory}")]
    Copy {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: CopyError,
    },
    /// The second copy is whole but was written by another version.
    #[error("the second copy of the satellite's state in {directory} cannot be used")]
    CopyRecord {
        /// The state directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: RecordError,
    },
}

/// Why a state was not made durable. The state in the store is the one before.
#[derive(Debug, Error)]
pub enum SaveStateError {
    /// The store.
    #[error("the membership could not be written to the store")]
    Store(#[source] StoreError),
    /// It cannot be encoded.
    #[error("the membership cannot be encoded")]
    Encode(#[source] RecordError),
    /// The second copy: the store has the new state, the copy the one before.
    #[error("the second copy of the membership could not be written")]
    Copy(#[source] CopyError),
}

/// The open state of one satellite. One process at a time.
#[derive(Debug, Clone)]
pub struct MembershipStore {
    database: Database,
    directory: PathBuf,
}

impl MembershipStore {
    /// Opens or creates the state. When the store is damaged or gone and the second copy is whole, a
    /// damaged store is set aside and a new one is written from the copy. Blocking.
    pub fn open(directory: &Path) -> Result<(Self, Loaded), OpenStateError> {
        let path = directory.join(STORE_FILE);
        let gone = !path.exists();
        match Database::open(&path, &SCHEMA) {
            Ok(database) => {
                let loaded = read(&database, directory)?;
                let store = Self {
                    database,
                    directory: directory.to_owned(),
                };
                if gone && loaded.state.is_none() {
                    return store.recover(loaded, "the store was gone");
                }
                store.mend_copy(loaded.state.as_ref());
                Ok((store, loaded))
            }
            Err(source) if source.is_damaged() && matches!(read_copy(directory)?, Copied::State(_)) => {
                let open_failed = |source| OpenStateError::Open {
                    directory: directory.to_owned(),
                    source,
                };
                let what = error_chain(&source);
                let aside = Database::set_aside(&path).map_err(open_failed)?;
                tracing::error!(reason = %what, aside = %aside.display(), "the store is damaged; using the second copy");
                let database = Database::open(&path, &SCHEMA).map_err(open_failed)?;
                let store = Self {
                    database,
                    directory: directory.to_owned(),
                };
                let empty = Loaded {
                    state: None,
                    facts: Facts::default(),
                    recovered: None,
                };
                store.recover(
                    empty,
                    &format!("the store was damaged and is kept as {}", aside.display()),
                )
            }
            Err(source) => Err(OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }),
        }
    }

    /// Reads the state without writing, for commands while no daemon runs. Blocking.
    pub fn peek(directory: &Path) -> Result<(Loaded, u64), OpenStateError> {
        let path = directory.join(STORE_FILE);
        let empty = Loaded {
            state: None,
            facts: Facts::default(),
            recovered: None,
        };
        match Database::open_read_only(&path, &SCHEMA) {
            Ok(database) => Ok((read(&database, directory)?, database.size_bytes())),
            Err(OpenError::Missing { .. }) => Ok((empty, 0)),
            Err(source) if source.is_damaged() => match read_copy(directory)? {
                Copied::State(state) => {
                    let recovered = Some("the store is damaged; this is from the second copy".to_owned());
                    Ok((
                        Loaded {
                            state: Some(*state),
                            recovered,
                            ..empty
                        },
                        0,
                    ))
                }
                Copied::Nothing | Copied::Damaged => Err(OpenStateError::Open {
                    directory: directory.to_owned(),
                    source,
                }),
            },
            Err(source) => Err(OpenStateError::Open {
                directory: directory.to_owned(),
                source,
            }),
        }
    }

    /// Makes a state durable: first the store, then the second copy.
    pub async fn save_state(&self, state: &JoinState) -> Result<(), SaveStateError> {
        let (store, state) = (self.clone(), state.clone());
        run_blocking(move || store.save_state_blocking(&state)).await
    }

    /// The same, for where blocking is allowed.
    pub fn save_state_blocking(&self, state: &JoinState) -> Result<(), SaveStateError> {
        let stored = StoredState(state.clone());
        self.database
            .write(|writer| writer.put(&MEMBERSHIP, &Only, &stored))
            .map_err(SaveStateError::Store)?;
        self.write_copy(&stored)
    }

    /// Makes the facts durable.
    pub async fn save_facts(&self, facts: &Facts) -> Result<(), StoreError> {
        let facts = facts.clone();
        self.database
            .write_async(move |writer| writer.put(&FACTS, &Only, &facts))
            .await
    }

    /// Bytes written to the store's file since it was opened.
    pub fn written_bytes(&self) -> u64 {
        self.database.written_bytes()
    }

    /// Where the state is, for the status.
    pub fn report(&self, recovered: Option<String>) -> StoreReport {
        StoreReport {
            directory: self.directory.display().to_string(),
            size_bytes: self.database.size_bytes(),
            recovered,
        }
    }

    /// Fills an empty store from the second copy, where there is one.
    fn recover(self, mut loaded: Loaded, what: &str) -> Result<(Self, Loaded), OpenStateError> {
        if let Copied::State(state) = read_copy(&self.directory)? {
            let stored = StoredState((*state).clone());
            self.database
                .write(|writer| writer.put(&MEMBERSHIP, &Only, &stored))
                .map_err(|source| OpenStateError::Read {
                    directory: self.directory.clone(),
                    source,
                })?;
            tracing::warn!("{what}; the membership was restored from the second copy");
            loaded.state = Some(*state);
            loaded.recovered = Some(format!(
                "{what}; the membership was restored from the second copy"
            ));
        }
        Ok((self, loaded))
    }

    /// The store is whole: a second copy that is missing, damaged or older is written anew.
    fn mend_copy(&self, state: Option<&JoinState>) {
        let Some(state) = state else { return };
        let stored = StoredState(state.clone());
        let same = match (
            copy::read(&self.directory.join(COPY_FILE)),
            record::encode(&stored),
        ) {
            (Ok(SecondCopy::Whole(copied)), Ok(mine)) => copied.matches(&Secret::new(mine.to_vec())),
            _ => false,
        };
        if !same && let Err(error) = self.write_copy(&stored) {
            tracing::warn!(error = %error_chain(&error), "the second copy could not be mended");
        }
    }

    fn write_copy(&self, stored: &StoredState) -> Result<(), SaveStateError> {
        let bytes = record::encode(stored).map_err(SaveStateError::Encode)?;
        copy::write(&self.directory.join(COPY_FILE), &Secret::new(bytes.to_vec()))
            .map_err(SaveStateError::Copy)
    }
}

/// What the second copy holds.
enum Copied {
    State(Box<JoinState>),
    Nothing,
    Damaged,
}

fn read_copy(directory: &Path) -> Result<Copied, OpenStateError> {
    match copy::read(&directory.join(COPY_FILE)) {
        Ok(SecondCopy::Absent) => Ok(Copied::Nothing),
        Ok(SecondCopy::Damaged(why)) => {
            tracing::warn!(reason = %why, "the second copy of the membership is damaged");
            Ok(Copied::Damaged)
        }
        Ok(SecondCopy::Whole(bytes)) => record::decode::<StoredState>(bytes.expose())
            .map(|StoredState(state)| Copied::State(Box::new(state)))
            .map_err(|source| OpenStateError::CopyRecord {
                directory: directory.to_owned(),
                source,
            }),
        Err(source) => Err(OpenStateError::Copy {
            directory: directory.to_owned(),
            source,
        }),
    }
}

fn read(database: &Database, directory: &Path) -> Result<Loaded, OpenStateError> {
    let failed = |source| OpenStateError::Read {
        directory: directory.to_owned(),
        source,
    };
    let (state, facts) = database
        .read(|reader| -> Result<_, StoreError> {
            Ok((reader.get(&MEMBERSHIP, &Only)?, reader.get(&FACTS, &Only)?))
        })
        .map_err(failed)?;
    Ok(Loaded {
        state: state.map(|StoredState(state)| state),
        facts: facts.unwrap_or_default(),
        recovered: None,
    })
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::id::PeerId;
    use crate::contract::invitation::{ContractVersion, ParentTrust};
    use crate::contract::message::FederationCertificate;
    use crate::contract::peer::{PeerStatus, SpawnMode};
    use crate::contract::token::TokenDigest;
    use crate::machine::membership::{
        AcceptedAnswer, Candidate, JoinRefusal, KeyMaterial, Membership, Operator, Parent, StoredIdentity,
        StoredInvitation,
    };

    const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

    /// One state of each kind, with every optional field once present and once absent.
    fn states() -> Vec<JoinState> {
        let parent = Parent {
            url: "https://parent.example.com".parse().unwrap(),
            bridges: vec!["192.0.2.1:8443".parse().unwrap()],
            trust: ParentTrust::Bundle("PEM".into()),
        };
        let operator = Operator {
            contact: "ops".into(),
            location: "DE".into(),
            data_residency: Some("EU".into()),
        };
        let invitation = StoredInvitation {
            parent: parent.clone(),
            operator: operator.clone(),
            token: Secret::from_text("token".into()),
            token_digest: TokenDigest::of(b"token"),
            spawn_mode: SpawnMode::ManagedChild,
            parent_peer_id: Some(PeerId::new_v7(NOW, [1; 10])),
            contract_version: ContractVersion::CURRENT,
            minted_at: Some(NOW),
        };
        let key = KeyMaterial {
            pkcs8: Secret::new(vec![1, 2, 3]),
            csr_pem: "CSR".into(),
        };
        let certificate = FederationCertificate {
            cert_pem: "CERT".into(),
            ca_chain_pem: "CA".into(),
            serial: "AB".into(),
            not_after: NOW,
        };
        let answer = AcceptedAnswer {
            peer_id: PeerId::new_v7(NOW, [2; 10]),
            status: PeerStatus::Enrolled,
            contract_version: 1,
            certificate: certificate.clone(),
            accepted_at: NOW,
        };
        let identity = StoredIdentity {
            pkcs8: Secret::new(vec![4]),
            certificate: certificate.clone(),
            not_before: NOW,
        };
        let member = |candidate| Membership {
            parent: parent.clone(),
            operator: operator.clone(),
            peer_id: PeerId::new_v7(NOW, [3; 10]),
            spawn_mode: SpawnMode::ManagedChild,
            contract_version: 1,
            identity: identity.clone(),
            candidate,
            accepted_at: NOW,
            status: PeerStatus::Active,
        };
        let refused = |key| JoinState::Refused {
            parent: parent.clone(),
            key,
            refusal: JoinRefusal::NoCertificate {
                warnings: vec!["why".into()],
            },
            at: NOW,
            token: TokenDigest::of(b"token"),
        };
        vec![
            JoinState::Invited(StoredInvitation {
                parent_peer_id: None,
                minted_at: None,
                ..invitation.clone()
            }),
            JoinState::KeyReady {
                invitation: invitation.clone(),
                key: key.clone(),
            },
            JoinState::Sent {
                invitation: invitation.clone(),
                key: key.clone(),
                first_sent_at: NOW,
            },
            JoinState::Accepted {
                invitation: invitation.used_up(),
                key: key.clone(),
                answer,
            },
            JoinState::Enrolled(member(None)),
            JoinState::Joined(member(Some(Candidate::Requested(key.clone())))),
            JoinState::Joined(member(Some(Candidate::Issued(identity.clone())))),
            refused(None),
            refused(Some(key.clone())),
        ]
    }

    #[test]
    fn every_state_comes_back_from_the_store_and_from_the_copy() {
        for state in states() {
            let directory = tempfile::tempdir().unwrap();
            let said = format!("{state:?}");
            let (store, _) = MembershipStore::open(directory.path()).unwrap();
            store.save_state_blocking(&state).unwrap();
            drop(store);
            let (_, loaded) = MembershipStore::open(directory.path()).unwrap();
            assert_eq!(format!("{:?}", loaded.state.unwrap()), said);
            match read_copy(directory.path()).unwrap() {
                Copied::State(copied) => assert_eq!(format!("{copied:?}"), said),
                Copied::Nothing | Copied::Damaged => panic!("no copy of {said}"),
            }
        }
    }
}
