//! `grants`: by what the parent's people and programs may act on this box.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::cli::output::{self, Cell, Style, Table, Tone, relative_time_of, render_pairs};
use powernode_satellite::grant::{MANAGED_CHILD_OPERATOR_KIND, MANAGED_CHILD_OPERATOR_TTL, SERVICE_KIND};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::grants::admin::{GRANTS_PATH, GrantFields};
use powernode_satellite::satellite::services::NotPublished;
use serde_json::{Value, json};

use crate::arguments::{GrantsCommand, IssueArguments};
use crate::owner::ask;
use crate::services::published;

/// Runs one of the commands.
pub fn grants(config: &SatelliteConfig, command: &GrantsCommand) -> Result<ExitCode, Failure> {
    match command {
        GrantsCommand::List { all, json } => list(config, *all, *json),
        GrantsCommand::Issue(asked) => issue(config, asked),
        GrantsCommand::Show { id, json } => {
            let (grant, _) = ask(config, &Method::GET, &format!("{GRANTS_PATH}/{id}"), None)?;
            print(*json, &grant, || render_one(&grant, Style::of_stdout()))
        }
        GrantsCommand::Revoke { id, reason, json } => revoke(config, id, reason, *json),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list(config: &SatelliteConfig, all: bool, json: bool) -> Result<(), Failure> {
    let (mut data, _) = ask(config, &Method::GET, GRANTS_PATH, None)?;
    if let Value::Array(grants) = &mut data {
        grants.retain(|grant| all || grant["state"] != "archived");
    }
    print(json, &data, || {
        render(data.as_array().map_or(&[], Vec::as_slice), Style::of_stdout())
    })
}

fn issue(config: &SatelliteConfig, asked: &IssueArguments) -> Result<(), Failure> {
    let mut fields = GrantFields {
        remote_subject: asked.subject.clone().unwrap_or_default(),
        permission_scopes: asked.scopes.clone(),
        node_instance_ids: asked.instances.clone(),
        sdwan_network_ids: asked.networks.clone(),
        source_cidrs: asked.sources.clone(),
        ttl_seconds: asked.ttl.and_then(|ttl| i64::try_from(ttl.0.as_secs()).ok()),
        by_hand: asked.no_deliver,
        ..GrantFields::default()
    };
    if asked.operator {
        fields.resource_kind = Some(MANAGED_CHILD_OPERATOR_KIND.to_owned());
        if fields.permission_scopes.is_empty() {
            fields.permission_scopes = ["read", "write", "admin"].map(str::to_owned).to_vec();
        }
        let year = i64::try_from(MANAGED_CHILD_OPERATOR_TTL.as_secs()).ok();
        fields.ttl_seconds = fields.ttl_seconds.or(year);
    } else {
        let kind = asked.kind.clone().unwrap_or_else(|| SERVICE_KIND.to_owned());
        fields.resource_kind = Some(kind);
        fields.resource_id.clone_from(&asked.service);
    }
    let body = serde_json::to_value(&fields).map_err(Failure::failed)?;
    let (data, running) = ask(config, &Method::POST, GRANTS_PATH, Some(&body))?;
    print(asked.json, &data, || {
        let next = match (asked.no_deliver, running) {
            (true, _) => "hand the token over yourself; it is shown this once:",
            (false, true) => "the parent gets it through the tunnel; the token, shown this once:",
            (false, false) => "the parent gets it when the satellite runs; the token, shown this once:",
        };
        let grant = render_one(&data["grant"], Style::of_stdout());
        let token = data["bearer_token"].as_str().unwrap_or_default();
        format!("{grant}\n{next}\n{token}\n")
    })?;
    warn_of_nothing(config, &data["grant"]);
    Ok(())
}

/// A grant may come before its service, but more often the name is mistyped.
fn warn_of_nothing(config: &SatelliteConfig, grant: &Value) {
    let service = grant["resource_id"].as_str();
    let Some(service) = service.filter(|_| grant["resource_kind"] == SERVICE_KIND) else {
        return;
    };
    // The grant is there, and its token was shown: not to know better is no failure.
    if let Ok(published) = published(config)
        && let Some(not_published) = NotPublished::unless_among(service, published)
    {
        output::warn(format_args!(
            "{not_published}. The grant opens nothing until there is such a service"
        ));
    }
}

fn revoke(config: &SatelliteConfig, id: &str, reason: &str, json: bool) -> Result<(), Failure> {
    let body = json!({ "reason": reason });
    let path = format!("{GRANTS_PATH}/{id}/revoke");
    let (grant, running) = ask(config, &Method::POST, &path, Some(&body))?;
    print(json, &grant, || {
        let cut = if running {
            "is revoked; connections under it are cut"
        } else {
            "is revoked"
        };
        format!("grant {} {cut}\n", shown(&grant["id"]))
    })
}

fn print(json: bool, data: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let shown = if json { output::render_json(data) } else { text() };
    output::print(&shown).map_err(Failure::failed)
}

fn render(grants: &[Value], style: Style) -> String {
    if grants.is_empty() {
        return "there are no grants; nobody of the parent's can act on this box\n".to_owned();
    }
    let now = Clock::start(BUILD_TIME).trusted().now;
    let mut table = Table::new(&[
        "ID", "STATE", "SUBJECT", "OPENS", "SCOPES", "FROM", "EXPIRES", "PARENT",
    ]);
    for grant in grants {
        table.row(vec![
            shown(&grant["id"]).into(),
            state(grant),
            shown(&grant["remote_subject"]).into(),
            opens(grant).into(),
            shown(&grant["permission_scopes"]).into(),
            shown(&grant["source_cidrs"]).into(),
            relative_time_of(&grant["expires_at"], now).into(),
            handover(grant).into(),
        ]);
    }
    table.render(style)
}

fn render_one(grant: &Value, style: Style) -> String {
    let text = |name: &str| (!grant[name].is_null()).then(|| Cell::from(shown(&grant[name])));
    render_pairs(
        &[
            ("id", text("id")),
            ("state", Some(state(grant))),
            ("subject", text("remote_subject")),
            ("opens", Some(opens(grant).into())),
            ("scopes", text("permission_scopes")),
            ("from addresses", text("source_cidrs")),
            ("from instances", text("node_instance_ids")),
            ("through networks", text("sdwan_network_ids")),
            ("issued", text("issued_at")),
            ("expires", text("expires_at")),
            ("revoked", text("revoked_at")),
            ("reason", text("revocation_reason")),
            ("archived", text("archived_at")),
            ("made under", text("derived_from")),
            ("parent", Some(handover(grant).into())),
        ],
        style,
    )
}

fn state(grant: &Value) -> Cell {
    let state = shown(&grant["state"]);
    let tone = match state.as_str() {
        "active" => Tone::Good,
        "revoked" => Tone::Bad,
        _ => Tone::Faint,
    };
    Cell::toned(state, tone)
}

fn opens(grant: &Value) -> String {
    let id = grant["resource_id"].as_str();
    match (grant["resource_kind"].as_str(), id) {
        (Some(MANAGED_CHILD_OPERATOR_KIND), None) => "everything (operator)".to_owned(),
        (Some(SERVICE_KIND), None) => "all services".to_owned(),
        (Some(SERVICE_KIND), Some(service)) => format!("service {service}"),
        (kind, id) => format!("{} {}", kind.unwrap_or_default(), id.unwrap_or("(all)")),
    }
}

fn handover(grant: &Value) -> &'static str {
    match grant["handover"].as_str() {
        Some("by_hand") => "by hand",
        Some("due") => "to be told",
        Some("done") => "has it",
        Some("revocation_due") => "end to be told",
        Some("revocation_done") => "knows its end",
        _ => "",
    }
}

/// A text as it is, a list with commas.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shown_with_what_each_grant_opens() {
        let grant = |kind: &str, id: Value, handover: &str| {
            json!({
                "id": "0192f0c1-7c1e-7a53-9d0e-000000000001", "state": "active", "remote_subject": "anna",
                "resource_kind": kind, "resource_id": id, "permission_scopes": ["read", "write"],
                "source_cidrs": "any", "expires_at": "2999-01-01T00:00:00Z", "handover": handover,
            })
        };
        let grants = [
            grant(MANAGED_CHILD_OPERATOR_KIND, Value::Null, "done"),
            grant(SERVICE_KIND, json!("ssh"), "by_hand"),
            grant(SERVICE_KIND, Value::Null, "due"),
        ];
        let list = render(&grants, Style::PLAIN);
        for expected in [
            "everything (operator)",
            "service ssh",
            "all services",
            "read, write",
            "has it",
            "to be told",
        ] {
            assert!(list.contains(expected), "{expected}: {list}");
        }
        assert!(render(&[], Style::PLAIN).contains("no grants"));
        let one = render_one(&grants[1], Style::PLAIN);
        assert!(one.contains("by hand") && !one.contains("reason"), "{one}");
    }
}
