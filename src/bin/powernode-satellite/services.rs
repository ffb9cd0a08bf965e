//! `services`: what this box publishes, and changes at run time. All of it is the running satellite's.

use std::num::NonZeroU64;
use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Cell, Style, Table, Tone};
use powernode_satellite::contract::service::{
    LocalAddress, ServiceDefinition, ServiceFields, ServiceHealth, ServiceName, ServiceProtocol,
};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::satellite::services::{PublishedServices, SERVICES_PATH, ServiceReport};
use powernode_satellite::store::state_key::StateKey;
use serde_json::Value;

use crate::arguments::{PublishArguments, ServicesCommand};
use crate::owner;

/// Runs one of the commands.
pub fn services(config: &SatelliteConfig, command: &ServicesCommand) -> Result<ExitCode, Failure> {
    match command {
        ServicesCommand::List { json } => list(config, *json),
        ServicesCommand::Publish(service) => publish(config, service),
        ServicesCommand::Withdraw { name } => withdraw(config, name),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list(config: &SatelliteConfig, json: bool) -> Result<(), Failure> {
    let data = call(config, &Method::GET, SERVICES_PATH, None)?;
    let shown = if json {
        output::render_json(&data)
    } else {
        let reports: Vec<ServiceReport> = serde_json::from_value(data).map_err(Failure::failed)?;
        render(&reports, Style::of_stdout())
    };
    output::print(&shown).map_err(Failure::failed)
}

/// The names of what is published, or will be when the satellite runs.
pub fn published(config: &SatelliteConfig) -> Result<Vec<ServiceName>, Failure> {
    if let Some(data) = owner::daemon(config, &Method::GET, SERVICES_PATH, None)? {
        let reports: Vec<ServiceReport> = serde_json::from_value(data).map_err(Failure::failed)?;
        return Ok(reports
            .into_iter()
            .map(|report| report.service.name.clone())
            .collect());
    }
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let store = MembershipStore::open_read_only(&config.state_dir, key.as_ref()).map_err(Failure::failed)?;
    let at_run_time = PublishedServices::new(store).all().map_err(Failure::failed)?;
    let all = config.services.iter().chain(&at_run_time);
    Ok(all.map(|service| service.name.clone()).collect())
}

fn publish(config: &SatelliteConfig, arguments: &PublishArguments) -> Result<(), Failure> {
    let protocol = arguments.protocol.unwrap_or(match &arguments.address {
        LocalAddress::Ip(_) | LocalAddress::Localhost(_) => ServiceProtocol::Tcp,
        LocalAddress::Socket(_) => ServiceProtocol::Unix,
    });
    let mut fields = ServiceFields::new(arguments.name.clone(), protocol, arguments.address.clone());
    fields.description.clone_from(&arguments.description);
    fields.health_check.clone_from(&arguments.health_check);
    fields.health_interval_seconds = arguments.health_interval.0.as_secs();
    fields.max_connections = arguments.max_connections;
    fields.bandwidth = arguments.bandwidth.0.map_or(0, NonZeroU64::get);
    fields.proxy_protocol = arguments.proxy_protocol;
    let service = ServiceDefinition::try_from(fields).map_err(Failure::usage)?;
    let body = serde_json::to_value(&service).map_err(Failure::failed)?;
    call(config, &Method::POST, SERVICES_PATH, Some(&body))?;
    let told = format!(
        "`{}` is published; whoever has a grant for it reaches {}\n",
        service.name, service.address
    );
    output::print(&told).map_err(Failure::failed)
}

fn withdraw(config: &SatelliteConfig, name: &ServiceName) -> Result<(), Failure> {
    call(config, &Method::DELETE, &format!("{SERVICES_PATH}/{name}"), None)?;
    output::print(&format!(
        "`{name}` is withdrawn, and its connections have ended\n"
    ))
    .map_err(Failure::failed)
}

fn call(
    config: &SatelliteConfig,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    owner::daemon(config, method, path, body)?.ok_or_else(|| {
        Failure::new(
            Code::Failed,
            "the satellite does not run; start it, or publish services in its configuration: [services.NAME]",
        )
    })
}

fn render(reports: &[ServiceReport], style: Style) -> String {
    if reports.is_empty() {
        return "nothing is published; `powernode-satellite services publish --help` shows how\n".to_owned();
    }
    let mut table = Table::new(&[
        "NAME",
        "PROTOCOL",
        "ADDRESS",
        "HEALTH",
        "OPEN",
        "IN",
        "OUT",
        "SET",
        "DESCRIPTION",
    ]);
    for report in reports {
        let service = &report.service;
        table.row(vec![
            service.name.to_string().into(),
            service.protocol.to_string().into(),
            service.address.to_string().into(),
            health(report),
            format!("{}/{}", report.connections, service.max_connections).into(),
            bytes(report.bytes_in).into(),
            bytes(report.bytes_out).into(),
            if report.configured { "config" } else { "run time" }.into(),
            service.description.as_str().into(),
        ]);
    }
    let reasons = reports.iter().filter_map(|report| {
        let reason = report.health_reason.as_ref()?;
        Some(format!("{}: {reason}\n", report.service.name))
    });
    std::iter::once(table.render(style)).chain(reasons).collect()
}

fn health(report: &ServiceReport) -> Cell {
    let tone = match report.health {
        ServiceHealth::Healthy => Tone::Good,
        ServiceHealth::Unhealthy => Tone::Bad,
        ServiceHealth::Unchecked | ServiceHealth::Unknown => Tone::Plain,
    };
    Cell::toned(report.health, tone)
}

/// In the largest unit that leaves a whole number other than nothing.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    for unit in UNITS {
        if value < 10 * 1_024 || unit == "TiB" {
            return format!("{value} {unit}");
        }
        value /= 1_024;
    }
    value.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_read_and_shown() {
        let report = json!([{
            "name": "web", "protocol": "http", "address": "localhost:80", "description": "the console",
            "health_check": "connect", "health_interval_seconds": 30, "max_connections": 256, "bandwidth": 0,
            "proxy_protocol": false, "configured": false, "health": "unhealthy",
            "health_reason": "its program refused the connection", "connections": 2, "opened": 7, "refused": 1,
            "bytes_in": 1_000, "bytes_out": 200_000_000, "later": "fields are left alone"
        }]);
        let reports: Vec<ServiceReport> = serde_json::from_value(report).unwrap();
        let shown = render(&reports, Style::PLAIN);
        for expected in [
            "web",
            "2/256",
            "1000 B",
            "190 MiB",
            "run time",
            "web: its program refused",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
    }
}
