//! `init`: the registry, its certificate authority, the server's certificate, the first operator; beside a
//! platform the first operator alone.

use powernode_satellite::base::secret::Secret;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::bridge::registry::record::PublicRecord;
use powernode_satellite::bridge::registry::{Books, Ledger, NewOperator, Opening, Registry};
use powernode_satellite::bridge::server_identity;
use powernode_satellite::bridge::settings::BridgeSettings;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::cli::output::{self, Style, render_pairs};
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::process::entropy;
use powernode_satellite::store::state_key::StateKey;
use serde_json::json;

use crate::arguments::InitArguments;
use crate::print;
use crate::run::not_opened;

/// Common name of the certificate authority.
const AUTHORITY_NAME: &str = "Powernode host-bridge CA";

/// Name of the first operator.
const FIRST_OPERATOR: &str = "admin";

/// Makes everything, or nothing where there is a registry already.
pub fn init(config: &HostBridgeConfig, arguments: &InitArguments) -> Result<(), Failure> {
    entropy::check().map_err(Failure::failed)?;
    let now = Clock::start(BUILD_TIME).trusted().now;
    let public = PublicRecord {
        url: arguments.public_url.clone(),
        bridges: arguments.bridges.clone(),
        names: arguments.public_names.iter().map(ToString::to_string).collect(),
    };
    let path = Books::path(config);
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    if config.parent.platform().is_some() {
        let books =
            Books::open(config, key.as_ref(), Opening::ReadWrite).map_err(|error| not_opened(&error))?;
        return init_beside(books.ledger(), &public, arguments, now);
    }
    let registry = Registry::create(&path, key.as_ref(), AUTHORITY_NAME, now).map_err(Failure::failed)?;
    let settings = BridgeSettings::new(config.clone(), public.clone());
    let names = settings.server_names();
    let token = match furnish(&registry, &public, &names, now) {
        Ok(token) => token,
        Err(failure) => {
            drop(registry);
            // What is half made must not stand in the way of the next try.
            std::fs::remove_file(&path).map_err(Failure::failed)?;
            return Err(failure);
        }
    };
    let token = token.expose_text().unwrap_or_default();
    let fingerprint = registry.authority().fingerprint().to_string();
    let url = settings.public.url.as_ref().map(ToString::to_string);
    if arguments.json {
        return print(&output::render_json(&json!({
            "registry": path,
            "ca_fingerprint": fingerprint,
            "ca_certificate_pem": registry.authority().certificate_pem(),
            "server_names": names,
            "public_url": url,
            "operator": FIRST_OPERATOR,
            "operator_token": token,
        })));
    }
    let pairs = [
        ("registry", Some(path.display().into())),
        ("CA fingerprint", Some(fingerprint.into())),
        ("server names", Some(names.join(", ").into())),
        ("public URL", url.map(Into::into)),
        ("operator", Some(FIRST_OPERATOR.into())),
        ("operator token", Some(token.into())),
    ];
    print(&render_pairs(&pairs, Style::of_stdout()))?;
    let next = if settings.public.url.is_some() {
        "powernode-host-bridge run, then powernode-host-bridge invite --name NAME"
    } else {
        "set public.url in the configuration, then powernode-host-bridge run"
    };
    print(&format!(
        "\nThe operator token is shown this once; keep it. The registry holds the CA's key: back it up.\nNext: {next}\n"
    ))
}

/// Beside a platform there is no registry to make: the platform has the peers and their authority.
fn init_beside(
    ledger: &Ledger,
    public: &PublicRecord,
    arguments: &InitArguments,
    now: UnixTime,
) -> Result<(), Failure> {
    let token = first_operator(ledger, public, now)?;
    let token = token.expose_text().unwrap_or_default();
    if arguments.json {
        return print(&output::render_json(&json!({
            "operator": FIRST_OPERATOR,
            "operator_token": token,
        })));
    }
    let pairs = [
        ("operator", Some(FIRST_OPERATOR.into())),
        ("operator token", Some(token.into())),
    ];
    print(&render_pairs(&pairs, Style::of_stdout()))?;
    print("\nThe operator token is shown this once; keep it.\nNext: powernode-host-bridge run\n")
}

/// Puts into the new registry what `run` needs; gives the first operator's token.
fn furnish(
    registry: &Registry,
    public: &PublicRecord,
    names: &[String],
    now: UnixTime,
) -> Result<Secret, Failure> {
    server_identity::current(registry, names, now).map_err(Failure::failed)?;
    first_operator(registry, public, now)
}

/// Notes how this bridge is found, and makes the first operator.
fn first_operator(ledger: &Ledger, public: &PublicRecord, now: UnixTime) -> Result<Secret, Failure> {
    ledger.set_public(public).map_err(Failure::failed)?;
    let operator = ledger
        .add_operator(&NewOperator::admin(FIRST_OPERATOR), now)
        .map_err(Failure::failed)?;
    Ok(operator.token)
}
