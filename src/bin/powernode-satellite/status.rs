//! `status`: from the running daemon, or from the store when none runs.

use std::process::ExitCode;

use http::Method;
use powernode_satellite::cli::client::{AdminClient, AdminError};
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output::{self, Cell, Style, Tone, relative_time};
use powernode_satellite::contract::peer::PeerStatus;
use powernode_satellite::contract::service::ServiceHealth;
use powernode_satellite::machine::join::JoinState;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::satellite::admin_api::STATUS_PATH;
use powernode_satellite::satellite::driver::handover_key;
use powernode_satellite::satellite::grants::GrantsReport;
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::satellite::own_authority::{AuthorityReport, SuccessionReport};
use powernode_satellite::satellite::parent_client::RELEASE;
use powernode_satellite::satellite::status::{
    AnchorReport, BetterReport, BridgeReport, CertificateReport, ClockReport, ClusterReport, HeartbeatReport,
    LinkReport, NEEDS_REJOIN, StatusReport, StoreReport, remedy,
};
use powernode_satellite::store::state_key::StateKey;

use crate::run::block_on;

/// Shows the status. 3 when this box has not joined.
pub fn status(config: &SatelliteConfig, json: bool) -> Result<ExitCode, Failure> {
    let report = block_on(report(config))??;
    if json {
        let value = serde_json::to_value(&report).map_err(Failure::failed)?;
        output::print(&output::render_json(&value)).map_err(Failure::failed)?;
    } else {
        output::print(&render(&report, Style::of_stdout())).map_err(Failure::failed)?;
    }
    if report.peer.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(not_joined(&report))
}

/// What to do on a box that has no membership.
fn not_joined(report: &StatusReport) -> Failure {
    let what = match &report.refusal {
        Some(refusal) => refusal,
        None if report.state == "left" => {
            "this box has left its parent; run `powernode-satellite join -` with a join code to join another"
        }
        None if report.state == "not_invited" => {
            "this box has not joined a parent; run `powernode-satellite join -` with a join code"
        }
        None if report.replaces.is_some() => {
            "a rejoin is under way, and the parent has not answered; `powernode-satellite rejoin --cancel` goes back to \
             the membership of before"
        }
        None if report.daemon_running => {
            "this box has not joined yet: the join is under way, and the parent has not answered"
        }
        None => "this box has not joined yet: the join goes on when `powernode-satellite run` is started",
    };
    Failure::new(Code::NotJoined, what)
}

/// What the daemon tells, or the store where none runs.
pub async fn report(config: &SatelliteConfig) -> Result<StatusReport, Failure> {
    match of_daemon(config).await? {
        Some(report) => Ok(report),
        None => from_store(config),
    }
}

/// What the daemon tells; `None` where none runs.
pub async fn of_daemon(config: &SatelliteConfig) -> Result<Option<StatusReport>, Failure> {
    let client = AdminClient::new(&config.admin_socket);
    match client.call(Method::GET, STATUS_PATH, None).await {
        Ok(answer) => match answer.read() {
            Ok(Ok(data)) => serde_json::from_value(data).map(Some).map_err(Failure::failed),
            Ok(Err(refused)) => Err(Failure::new(Code::Failed, refused.error)),
            Err(error) => Err(Failure::failed(error)),
        },
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn from_store(config: &SatelliteConfig) -> Result<StatusReport, Failure> {
    let key = StateKey::read(&config.state_key).map_err(Failure::usage)?;
    let (loaded, size_bytes) =
        MembershipStore::peek(&config.state_dir, key.as_ref()).map_err(Failure::failed)?;
    let clock = Clock::start(BUILD_TIME);
    if let Some(seen) = loaded.facts.seen_from_parent {
        clock.restore_parent_time(seen);
    }
    let trusted = clock.trusted();
    let clock = ClockReport {
        system: clock.system(),
        trusted: trusted.now,
        doubt: trusted.doubt.map(|doubt| doubt.to_string()),
    };
    let heartbeat = HeartbeatReport {
        last_acknowledged_at: loaded.facts.last_acknowledged_at,
        last_error: None,
        our_endpoints: loaded.facts.our_endpoints,
        schema_compatibility: loaded.facts.schema_compatibility,
    };
    let link = LinkReport {
        state: "unknown".to_owned(),
        ..LinkReport::default()
    };
    let store = StoreReport {
        directory: config.state_dir.display().to_string(),
        size_bytes,
        sealed: loaded.sealed,
        recovered: loaded.recovered,
        last_error: None,
    };
    let mut report = StatusReport::of_state(loaded.state.as_ref(), RELEASE, clock, link, heartbeat, store);
    let peer = report.peer.as_ref().map(|peer| peer.id);
    report.grants = GrantsReport::of(&loaded.grants, peer, trusted.now);
    let membership = loaded.state.as_ref().and_then(JoinState::membership);
    if let (Some(cluster), Some(handed)) = (&mut report.cluster, &loaded.handed_over)
        && membership.and_then(handover_key).as_ref() == Some(&handed.key)
    {
        cluster.handed_over_at = Some(handed.at);
    }
    report.own_authority = AuthorityReport::of(membership, loaded.succession.as_ref());
    Ok(report)
}

/// A line of the report: what it is about, and what is to be said, if anything.
type Line = (&'static str, Option<Cell>);

/// The report for a person.
fn render(report: &StatusReport, style: Style) -> String {
    let mut lines = vec![
        ("satellite", Some(state(report))),
        ("parent", report.parent_url.as_ref().map(Cell::from)),
        (
            "replaces",
            report.replaces.map(|peer| {
                format!("peer {peer}, which goes on if the parent refuses, or with `rejoin --cancel`").into()
            }),
        ),
    ];
    lines.extend(membership(report));
    lines.extend(connection(report));
    lines.push(("services", services(report)));
    lines.extend(node(report));
    if let Some(cluster) = &report.cluster {
        lines.push(("cluster", Some(handed_over(cluster, report))));
        lines.push(("cluster's hook", toned(cluster.trouble.as_ref(), Tone::Warn)));
    }
    lines.extend(upkeep(report));
    output::render_pairs(&lines, style)
}

fn membership(report: &StatusReport) -> Vec<Line> {
    let Some(peer) = &report.peer else {
        return Vec::new();
    };
    let now = report.clock.trusted;
    let mode = if report.grants.emancipated {
        format!("emancipated {}", peer.spawn_mode)
    } else {
        peer.spawn_mode.to_string()
    };
    let mode = format!("{mode}, contract version {}", peer.contract_version);
    let operator = format!("{}, {}", peer.operator_contact, peer.location);
    let mut lines: Vec<Line> = vec![
        (
            "what to do",
            remedy(peer.status).map(|text| Cell::toned(text, Tone::Bad)),
        ),
        ("peer", Some(peer.id.into())),
        ("mode", Some(mode.into())),
        ("joined", Some(relative_time(peer.accepted_at, now).into())),
        ("operator", Some(operator.into())),
        ("data residency", peer.data_residency.as_ref().map(Cell::from)),
        ("grants", Some(grants(report))),
        (
            "grants to tell",
            toned(report.grants.trouble.as_ref(), Tone::Warn),
        ),
    ];
    for former in &report.former_peers {
        let ended = relative_time(former.ended_at, now);
        lines.push((
            "formerly",
            Some(format!("peer {}, until {ended}", former.id).into()),
        ));
    }
    lines.push(("rejoin refused", toned(report.refusal.as_ref(), Tone::Bad)));
    for warning in &peer.warnings {
        lines.push(("accept warning", toned(Some(warning), Tone::Warn)));
    }
    lines
}

fn grants(report: &StatusReport) -> Cell {
    let grants = &report.grants;
    let active = match grants.active {
        0 => "none: nobody of the parent's can act here".to_owned(),
        active => format!("{active} active"),
    };
    let former = match grants.of_former_peers {
        0 => String::new(),
        former => {
            format!("; {former} of an earlier peering, of no use: `grants issue` makes new ones")
        }
    };
    match grants.undelivered {
        0 => format!("{active}{former}").into(),
        waiting => format!("{active}, {waiting} to be told to the parent{former}").into(),
    }
}

fn connection(report: &StatusReport) -> Vec<Line> {
    let heartbeat = &report.heartbeat;
    let acknowledged = heartbeat.last_acknowledged_at.map_or_else(
        || "never acknowledged".into(),
        |at| format!("acknowledged {}", relative_time(at, report.clock.trusted)).into(),
    );
    let mut lines = vec![
        ("tunnel", Some(tunnel(report))),
        ("last failure", toned(report.link.last_error.as_ref(), Tone::Warn)),
    ];
    for bridge in &report.link.bridges {
        // One that is alone is shown above.
        let alone = report.link.bridges.len() == 1 && bridge.draining == 0 && bridge.udp_dropped == 0;
        lines.push(("host-bridge", (!alone).then(|| bridge_line(bridge, report))));
        for better in &bridge.better {
            lines.push(("better way", Some(better_line(better, report))));
        }
    }
    lines.push(("heartbeat", Some(acknowledged)));
    lines.push((
        "heartbeat failure",
        toned(heartbeat.last_error.as_ref(), Tone::Warn),
    ));
    lines.extend(ways_in(report));
    lines.push(https(report));
    for endpoint in &heartbeat.our_endpoints {
        let shown = format!("{} ({})", endpoint.url, endpoint.scope);
        lines.push(("parent endpoint", Some(shown.into())));
    }
    if let Some(schema) = &heartbeat.schema_compatibility {
        let notes = schema
            .notes
            .as_deref()
            .map_or_else(String::new, |notes| format!(": {notes}"));
        lines.push(("versions", Some(format!("{}{notes}", schema.status).into())));
    }
    lines
}

fn bridge_line(bridge: &BridgeReport, report: &StatusReport) -> Cell {
    let now = report.clock.trusted;
    let mut text = match (&bridge.rung, bridge.since, bridge.next_attempt_at) {
        (Some(rung), Some(since), _) => {
            format!(
                "{}: {rung}, connected {}",
                bridge.bridge,
                relative_time(since, now)
            )
        }
        (_, _, Some(at)) => format!("{}: down, next try {}", bridge.bridge, relative_time(at, now)),
        _ => format!("{}: {}", bridge.bridge, bridge.state),
    };
    if let Some(error) = &bridge.last_error {
        text = format!("{text}; {error}");
    }
    if bridge.draining > 0 {
        text = format!(
            "{text}; {} older tunnel(s) end with their streams",
            bridge.draining
        );
    }
    if bridge.udp_dropped > 0 {
        text = format!(
            "{text}; this system has dropped {} UDP packets that came too fast",
            bridge.udp_dropped
        );
    }
    let up = bridge.state == "connected";
    Cell::toned(text, if up { Tone::Good } else { Tone::Warn })
}

fn better_line(better: &BetterReport, report: &StatusReport) -> Cell {
    let next = better.next_try_at.map_or_else(String::new, |at| {
        format!("; next try {}", relative_time(at, report.clock.trusted))
    });
    Cell::toned(format!("{}: {}{next}", better.rung, better.why), Tone::Warn)
}

/// What is published, and what of it does not answer.
fn services(report: &StatusReport) -> Option<Cell> {
    if report.services.is_empty() {
        return None;
    }
    let unhealthy: Vec<_> = report
        .services
        .iter()
        .filter(|service| service.health == ServiceHealth::Unhealthy)
        .map(|service| service.service.name.as_str())
        .collect();
    let open: u32 = report.services.iter().map(|service| service.connections).sum();
    let published = format!("{} published, {open} connections open", report.services.len());
    Some(if unhealthy.is_empty() {
        published.into()
    } else {
        let names = unhealthy.join(", ");
        Cell::toned(format!("{published}; no answer from {names}"), Tone::Warn)
    })
}

fn https(report: &StatusReport) -> Line {
    let shown = report
        .https
        .as_ref()
        .map(|https| match (&https.listening, &https.error) {
            (Some(address), _) => Cell::from(format!("for the parent's calls on {address}")),
            (None, error) => Cell::toned(error.clone().unwrap_or_default(), Tone::Warn),
        });
    ("https", shown)
}

/// What there is, or else why IPv4 has nothing: a box without a pinhole for IPv6 is the usual case.
fn ways_in(report: &StatusReport) -> Vec<Line> {
    let Some(reach) = &report.reach else {
        return Vec::new();
    };
    let mut lines: Vec<Line> = Vec::new();
    for mapping in &reach.mappings {
        let Some(endpoint) = mapping.endpoint else {
            continue;
        };
        let protocol = mapping.protocol.as_deref().unwrap_or("");
        let from = mapping
            .gateway
            .map_or_else(String::new, |gateway| format!(" from {gateway}"));
        let lease = match (mapping.gateway, mapping.lease_seconds) {
            (None, _) => String::new(),
            (Some(_), None) => ", for ever".to_owned(),
            (Some(_), Some(seconds)) => format!(", for {} min", seconds / 60),
        };
        let (proof, tone) = if mapping.proven {
            ("proven", Tone::Good)
        } else {
            ("not proven", Tone::Warn)
        };
        let text = format!("{endpoint} ({protocol}{from}{lease}), {proof}");
        lines.push(("way in", Some(Cell::toned(text, tone))));
    }
    if lines.is_empty() {
        let why = reach.mappings.first().and_then(|mapping| mapping.reason.as_ref());
        lines.push(("way in", why.map(|why| Cell::from(format!("none: {why}")))));
    }
    lines
}

/// The second identity, where there is to be one.
fn node(report: &StatusReport) -> Vec<Line> {
    let Some(node) = &report.node else {
        return Vec::new();
    };
    let state = match (&node.refusal, &node.certificate) {
        (Some(refusal), _) => Cell::toned(format!("none: {refusal}"), Tone::Bad),
        (None, Some(shown)) => {
            let id = node.instance_id.as_deref().unwrap_or(&node.subject);
            let (text, tone) = certificate(shown, report);
            Cell::toned(format!("{id} at {}; {text}", node.platform_url), tone)
        }
        (None, None) => Cell::toned(
            format!(
                "{} at {}: asked for, not there yet",
                node.subject, node.platform_url
            ),
            Tone::Warn,
        ),
    };
    vec![
        ("node", Some(state)),
        ("node failure", toned(node.last_error.as_ref(), Tone::Warn)),
        ("node files", node.files.as_ref().map(Cell::from)),
        ("node files failure", toned(node.files_error.as_ref(), Tone::Bad)),
    ]
}

fn upkeep(report: &StatusReport) -> Vec<Line> {
    let (shown, store) = (report.certificate.as_ref(), &report.store);
    let kept = format!("{} ({} KiB)", store.directory, store.size_bytes / 1024);
    vec![
        (
            "certificate",
            shown.map(|shown| {
                let (text, tone) = certificate(shown, report);
                Cell::toned(text, tone)
            }),
        ),
        // For the parent's operator, where the box is not let in.
        (
            "fingerprint",
            shown
                .filter(|shown| report.link.state != "connected" && !shown.fingerprint.is_empty())
                .map(|shown| shown.fingerprint.as_str().into()),
        ),
        (
            "own authority",
            report
                .own_authority
                .as_ref()
                .map(|own| own_authority(own, report)),
        ),
        (
            "new authority",
            report
                .own_authority
                .as_ref()
                .and_then(|own| own.succession.as_ref())
                .map(|succession| change_of_authority(succession, report)),
        ),
        ("authorities", shown.and_then(|shown| authorities(shown, report))),
        (
            "trust bundle",
            toned(shown.and_then(|shown| shown.bundle_error.as_ref()), Tone::Warn),
        ),
        (
            "to be done",
            shown
                .filter(|shown| shown.needs_rejoin)
                .map(|_| Cell::toned(NEEDS_REJOIN, Tone::Bad)),
        ),
        (
            "renewal failure",
            toned(shown.and_then(|shown| shown.renewal_error.as_ref()), Tone::Warn),
        ),
        ("clock", toned(report.clock.doubt.as_ref(), Tone::Warn)),
        ("state", Some(kept.into())),
        (
            "private keys",
            (store.size_bytes > 0).then(|| output::sealing(store.sealed).into()),
        ),
        ("recovered", toned(store.recovered.as_ref(), Tone::Warn)),
        ("write failure", toned(store.last_error.as_ref(), Tone::Bad)),
    ]
}

fn toned(text: Option<&String>, tone: Tone) -> Option<Cell> {
    text.map(|text| Cell::toned(text, tone))
}

fn state(report: &StatusReport) -> Cell {
    let running = match (report.daemon_running, report.link.state.as_str()) {
        (false, _) => " (not running)",
        (true, "connected" | "off") => "",
        (true, _) => " (not connected)",
    };
    match &report.peer {
        Some(peer) => {
            let tone = match peer.status {
                PeerStatus::Active if report.daemon_running && report.is_active() => Tone::Good,
                PeerStatus::Revoked | PeerStatus::Suspended => Tone::Bad,
                _ => Tone::Warn,
            };
            Cell::toned(format!("{}{running}", peer.status), tone)
        }
        None => Cell::toned(format!("{}{running}", on_the_way(&report.state)), Tone::Warn),
    }
}

/// How far a join has come is for those who look into it.
fn on_the_way(state: &str) -> &str {
    match state {
        "invited" | "key_ready" | "sent" | "accepted" | "enrolled" => "joining",
        "not_invited" => "not invited",
        state => state,
    }
}

fn tunnel(report: &StatusReport) -> Cell {
    let link = &report.link;
    let now = report.clock.trusted;
    match (
        link.state.as_str(),
        &link.bridge,
        link.since,
        link.next_attempt_at,
    ) {
        ("connected", Some(bridge), Some(since), _) => {
            let transport = link.transport.as_deref().unwrap_or("");
            Cell::toned(
                format!("{transport} to {bridge}, connected {}", relative_time(since, now)),
                Tone::Good,
            )
        }
        ("waiting", _, _, Some(at)) => Cell::toned(
            format!(
                "down, next try {} ({} failed)",
                relative_time(at, now),
                link.failures
            ),
            Tone::Warn,
        ),
        (state, Some(bridge), _, _) => format!("{state} {bridge}").into(),
        ("unknown", ..) => "unknown (the satellite does not run)".into(),
        (state, ..) => state.into(),
    }
}

/// What the parent delivered for its cluster, masked, and whether it has been taken.
fn handed_over(cluster: &ClusterReport, report: &StatusReport) -> Cell {
    let parts: Vec<_> = cluster
        .parts
        .iter()
        .map(|(name, size)| format!("{name} (*** {size} bytes)"))
        .collect();
    let parts = parts.join(", ");
    match (cluster.handed_over_at, &cluster.hook) {
        (Some(at), _) => {
            let when = relative_time(at, report.clock.trusted);
            format!("{parts}; handed over {when}").into()
        }
        (None, Some(hook)) => Cell::toned(format!("{parts}; {hook} has not taken it yet"), Tone::Warn),
        (None, None) if report.daemon_running => Cell::toned(
            format!("{parts}; cluster.hook is not set, so it is kept"),
            Tone::Warn,
        ),
        (None, None) => parts.into(),
    }
}

/// By what this box certifies itself.
fn own_authority(own: &AuthorityReport, report: &StatusReport) -> Cell {
    let due = relative_time(own.rotation_due, report.clock.trusted);
    format!("{}, followed by the next {due}", anchor(&own.issuing, report)).into()
}

fn change_of_authority(change: &SuccessionReport, report: &StatusReport) -> Cell {
    let when = |at| relative_time(at, report.clock.trusted);
    let other = anchor(&change.other, report);
    let fetched = match change.fetched_at {
        Some(at) => format!("the parent has fetched it {}", when(at)),
        None => "the parent has not fetched it yet".to_owned(),
    };
    match (change.stage.as_str(), change.try_at) {
        ("announced", Some(at)) => format!(
            "{other} announced {}; {fetched}; tried {}",
            when(change.begun_at),
            when(at)
        )
        .into(),
        ("overlap", _) => format!("in use; {fetched}; the one before is still served: {other}").into(),
        (stage, _) => format!("{other} {stage}; {fetched}").into(),
    }
}

fn anchor(anchor: &AnchorReport, report: &StatusReport) -> String {
    let name = anchor.subject.as_deref().unwrap_or("without a name");
    let ends = relative_time(anchor.not_after, report.clock.trusted);
    format!("{name} ({}, ends {ends})", anchor.fingerprint)
}

/// The parent's, where there are several: a rotation is under way.
fn authorities(certificate: &CertificateReport, report: &StatusReport) -> Option<Cell> {
    let [_, _, ..] = certificate.anchors.as_slice() else {
        return None;
    };
    let shown = certificate.anchors.iter().map(|held| anchor(held, report));
    Some(shown.collect::<Vec<_>>().join("; ").into())
}

fn certificate(certificate: &CertificateReport, report: &StatusReport) -> (String, Tone) {
    let now = report.clock.trusted;
    let renewal = certificate.renewal.as_ref().map_or_else(
        || format!("renewal {}", relative_time(certificate.renew_at, now)),
        |renewal| format!("renewal {renewal}"),
    );
    let issuer = if certificate.self_issued {
        ", issued by this box itself"
    } else {
        ""
    };
    let text = format!(
        "{}, ends {}, {renewal}{issuer}",
        certificate.standing,
        relative_time(certificate.not_after, now)
    );
    let tone = match certificate.standing.as_str() {
        "valid" | "renewal due" => Tone::Plain,
        _ => Tone::Bad,
    };
    (text, tone)
}
