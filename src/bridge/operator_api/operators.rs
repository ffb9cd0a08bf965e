//! Operator accounts: list, show, add, change, rotate the token, remove. Tokens are shown by the answer
//! that makes them and never again.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::permission::{Action, NameLimit};
use super::super::registry::record::OperatorRecord;
use super::super::registry::{MintedOperator, NewOperator, OperatorChange};
use super::super::reply::Reply;
use super::peers::unprocessable;
use super::{Call, OperatorApi, fields, refused, stored_badly};
use crate::audit::AuditAction;
use crate::base::id::OperatorId;
use crate::base::time::UnixTime;

/// The role of who was added without one: the least that makes an account useful.
const DEFAULT_ROLE: &str = "operator";

/// An account to add. A name that is not known here is refused: a limit with a typing error in its name
/// would be no limit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddFields {
    name: String,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    peers: Vec<String>,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// What is to be different.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeFields {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    peers: Option<Vec<String>>,
    #[serde(default)]
    services: Option<Vec<String>>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
    #[serde(default)]
    never_expires: bool,
}

impl OperatorApi {
    pub(super) fn operators(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        self.permit(call.operator, &Action::ManageOperators)?;
        match (call.rest.as_slice(), call.method) {
            ([], &Method::GET) => {
                let operators = self
                    .ledger()
                    .operators()
                    .map_err(|error| stored_badly("the operators", &error))?;
                let views: Vec<_> = operators
                    .iter()
                    .map(|(id, operator)| view(*id, operator, self.now()))
                    .collect();
                Ok(Reply::data(&views))
            }
            ([], &Method::POST) => self.add_operator(call),
            ([], _) => Ok(Reply::wrong_method("GET, POST")),
            ([asked], &Method::GET) => {
                let (id, operator) = self.ledger().operator(asked).map_err(|error| refused(&error))?;
                Ok(Reply::data(&view(id, &operator, self.now())))
            }
            ([_], _) => Ok(Reply::wrong_method("GET")),
            ([asked, "change"], &Method::POST) => self.change_operator(call, asked),
            ([asked, "rotate"], &Method::POST) => {
                let minted = self
                    .ledger()
                    .rotate_operator(asked, self.now())
                    .map_err(|error| refused(&error))?;
                self.note(
                    call.operator,
                    AuditAction::OperatorTokenRotated,
                    None,
                    &minted.operator.name,
                );
                Ok(Reply::created(&self.minted_operator(&minted)))
            }
            ([asked, "revoke"], &Method::POST) => {
                let (id, operator) = self
                    .ledger()
                    .remove_operator(asked)
                    .map_err(|error| refused(&error))?;
                self.note(call.operator, AuditAction::OperatorRemoved, None, &operator.name);
                Ok(Reply::data(&view(id, &operator, self.now())))
            }
            ([_, "change" | "rotate" | "revoke"], _) => Ok(Reply::wrong_method("POST")),
            (rest, _) => Ok(Reply::unknown_path(&rest.join("/"))),
        }
    }

    fn add_operator(&self, call: &Call<'_>) -> Result<Reply, Reply> {
        let asked: AddFields = fields(call.body)?;
        let role = asked.role.as_deref().unwrap_or(DEFAULT_ROLE);
        let new = NewOperator {
            name: asked.name,
            role: role.parse().map_err(|error| unprocessable(&error))?,
            peers: limit(&asked.peers)?,
            services: limit(&asked.services)?,
            life: asked.ttl_seconds.map(Duration::from_secs),
        };
        let minted = self
            .ledger()
            .add_operator(&new, self.now())
            .map_err(|error| refused(&error))?;
        let what = described(&minted.operator);
        self.note(call.operator, AuditAction::OperatorAdded, None, &what);
        Ok(Reply::created(&self.minted_operator(&minted)))
    }

    fn change_operator(&self, call: &Call<'_>, asked: &str) -> Result<Reply, Reply> {
        let wanted: ChangeFields = fields(call.body)?;
        let role = wanted.role.as_deref().map(str::parse).transpose();
        let change = OperatorChange {
            role: role.map_err(|error| unprocessable(&error))?,
            peers: wanted.peers.as_deref().map(limit).transpose()?,
            services: wanted.services.as_deref().map(limit).transpose()?,
            life: match (wanted.ttl_seconds, wanted.never_expires) {
                (Some(seconds), _) => Some(Some(Duration::from_secs(seconds))),
                (None, true) => Some(None),
                (None, false) => None,
            },
        };
        let (id, operator) = self
            .ledger()
            .change_operator(asked, &change, self.now())
            .map_err(|error| refused(&error))?;
        let what = described(&operator);
        self.note(call.operator, AuditAction::OperatorChanged, None, &what);
        Ok(Reply::data(&view(id, &operator, self.now())))
    }

    /// The one time that a token is shown.
    fn minted_operator(&self, minted: &MintedOperator) -> Value {
        json!({
            "operator": view(minted.id, &minted.operator, self.now()),
            "operator_token": minted.token.expose_text(),
        })
    }
}

fn limit(patterns: &[String]) -> Result<NameLimit, Reply> {
    NameLimit::parse(patterns).map_err(|error| unprocessable(&error))
}

/// An account in one line, for the audit log.
fn described(operator: &OperatorRecord) -> String {
    let end = operator
        .expires_at
        .map_or_else(|| "never".to_owned(), |at| at.to_string());
    format!(
        "{} (role {}, peers {}, services {}, ends {end})",
        operator.name, operator.role, operator.peers, operator.services
    )
}

/// Everything but the token's digest.
fn view(id: OperatorId, operator: &OperatorRecord, now: UnixTime) -> Value {
    json!({
        "id": id,
        "name": operator.name,
        "role": operator.role,
        "peers": operator.peers.view(),
        "services": operator.services.view(),
        "created_at": operator.created_at.to_string(),
        "expires_at": operator.expires_at.map(|at| at.to_string()),
        "expired": operator.has_ended(now),
        "token_made_at": operator.token_made_at.to_string(),
    })
}
