//! How the operator API's answers read on a terminal.

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::cli::output::{Cell, Style, Table, Tone, relative_time_of, render_pairs, sealing};
use powernode_satellite::contract::peer::PeerStatus;
use serde_json::Value;

/// What a peer is called: its name, or its id where it has none.
pub fn name_of(peer: &Value) -> &str {
    peer["name"].as_str().or(peer["id"].as_str()).unwrap_or("?")
}

fn text(value: &Value) -> Option<Cell> {
    value.as_str().filter(|text| !text.is_empty()).map(Cell::from)
}

fn time(value: &Value, now: UnixTime) -> Option<Cell> {
    let text = value.as_str()?;
    Some(format!("{} ({text})", relative_time_of(value, now)).into())
}

fn status_cell(status: &Value) -> Cell {
    let status = status.as_str().unwrap_or("?");
    let tone = match status {
        "active" => Tone::Good,
        "degraded" | "suspended" => Tone::Warn,
        "revoked" => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell::toned(status, tone)
}

/// Why a peer is as it is.
fn note(peer: &Value, now: UnixTime) -> String {
    if let Some(why) = turned_away(peer, now) {
        return why;
    }
    let reason = |name: &str| peer["metadata"][name].as_str().unwrap_or_default().to_owned();
    match peer["status"].as_str() {
        Some("degraded") => reason("degraded_reason"),
        Some("suspended") => reason("suspended_reason"),
        Some("revoked") => reason("revocation_reason"),
        Some("proposed") => match peer["acceptance_token_expires_at"].as_str() {
            Some(_) => {
                let expires = &peer["acceptance_token_expires_at"];
                format!("invited; the token expires {}", relative_time_of(expires, now))
            }
            None => "no token; mint one with `token mint`".to_owned(),
        },
        Some("accepted") => "waits for a heartbeat".to_owned(),
        _ => String::new(),
    }
}

/// Why a peer that ought to have a tunnel got none when it came.
fn turned_away(peer: &Value, now: UnixTime) -> Option<String> {
    let status = peer["status"].as_str().and_then(|status| status.parse().ok());
    // A status that a newer host-bridge knows is nothing to be silent about.
    let awaited = status.is_none_or(PeerStatus::is_awaited);
    let why = peer["turned_away"]["why"].as_str().filter(|_| awaited)?;
    let when = relative_time_of(&peer["turned_away"]["at"], now);
    Some(format!("turned away {when}: {why}"))
}

/// `peers readmit`.
pub fn readmitted(peer: &Value) -> String {
    let name = name_of(peer);
    match peer["readmitted_until"].as_str() {
        Some(until) => format!(
            "{name} is let in with that certificate when the box comes with it: until {until}, or until the host-bridge \
             is restarted\n"
        ),
        None => {
            format!("{name} is readmitted: its tunnel is back when the box tries again, within two minutes\n")
        }
    }
}

/// `peers list`.
pub fn peers(peers: &Value, all: bool, style: Style, now: UnixTime) -> String {
    let mut table = Table::new(&["NAME", "STATUS", "TUNNEL", "HEARTBEAT", "VERSION", "ID", "NOTE"]);
    let mut shown = 0;
    for peer in peers.as_array().into_iter().flatten() {
        if !all && peer["status"] == "revoked" {
            continue;
        }
        shown += 1;
        let tunnel = match peer["tunnel"]["address"].as_str() {
            Some(address) => Cell::toned(address, Tone::Good),
            None => Cell::toned("-", Tone::Faint),
        };
        table.row(vec![
            peer["name"].as_str().unwrap_or("-").into(),
            status_cell(&peer["status"]),
            tunnel,
            relative_time_of(&peer["last_heartbeat_at"], now).into(),
            peer["platform_version"].as_str().unwrap_or("-").into(),
            peer["id"].as_str().unwrap_or("?").into(),
            note(peer, now).into(),
        ]);
    }
    let hidden = peers.as_array().map_or(0, Vec::len) - shown;
    match (shown, hidden) {
        (0, 0) => {
            return "no peers yet; a standalone host-bridge invites the first by `powernode-host-bridge invite --name NAME`,\n\
                    beside a platform they are seen when they dial\n"
                .to_owned();
        }
        (0, _) => return format!("no peers but {hidden} revoked, which --all shows\n"),
        _ => {}
    }
    table.render(style)
}

/// `peers show`.
pub fn peer(peer: &Value, style: Style, now: UnixTime) -> String {
    let note = note(peer, now);
    let disclosure = &peer["capabilities"]["disclosure"];
    let tunnel = peer["tunnel"]["address"].as_str().map(|address| {
        let since = relative_time_of(&peer["tunnel"]["since"], now);
        let agent = peer["tunnel"]["agent"].as_str().unwrap_or("?");
        Cell::from(format!("{address}, since {since}, {agent}"))
    });
    let pairs = [
        ("name", text(&peer["name"])),
        ("id", text(&peer["id"])),
        ("status", Some(status_cell(&peer["status"]))),
        ("since", time(&peer["status_since"], now)),
        ("at the platform", platform_standing(peer, now)),
        ("note", (!note.is_empty()).then(|| note.into())),
        ("shown certificate", text(&peer["turned_away"]["certificate"])),
        ("last degraded", text(&peer["metadata"]["degraded_reason"])),
        (
            "tunnel",
            Some(tunnel.unwrap_or_else(|| Cell::toned("not connected", Tone::Faint))),
        ),
        ("last heartbeat", time(&peer["last_heartbeat_at"], now)),
        ("version", text(&peer["platform_version"])),
        ("operator", text(&disclosure["operator_contact"])),
        ("location", text(&disclosure["location"])),
        ("data residency", text(&peer["data_residency"])),
        ("description", text(&peer["description"])),
        ("kind", text(&peer["peer_kind"])),
        ("spawn mode", text(&peer["spawn_mode"])),
        ("accepted", time(&peer["signed_at"], now)),
        ("certificate ends", time(&peer["certificate_not_after"], now)),
        ("token expires", time(&peer["acceptance_token_expires_at"], now)),
    ];
    render_pairs(&pairs, style)
}

/// Beside a platform: what it has last said of the peer.
fn platform_standing(peer: &Value, now: UnixTime) -> Option<Cell> {
    let standing = peer["standing"].as_str()?;
    let (heartbeat, question) = (&peer["heartbeat_answer"], &peer["question_answer"]);
    // Times of one form, so their texts are in the order of the times.
    let (answer, to) = if question["at"].as_str() > heartbeat["at"].as_str() {
        (question, "when it was asked about it")
    } else {
        (heartbeat, "to its heartbeat")
    };
    let heard = match answer["http_status"].as_u64() {
        Some(status) => format!(
            "{standing}: HTTP {status} {to}, {}",
            relative_time_of(&answer["at"], now)
        ),
        None => format!("{standing}: no heartbeat was answered yet"),
    };
    Some(match standing {
        "taken" => Cell::toned(heard, Tone::Good),
        "refused" => Cell::toned(heard, Tone::Warn),
        _ => heard.into(),
    })
}

/// The store's size, or what is wrong with it.
fn store(health: &Value) -> Option<Cell> {
    let kib = health["store_bytes"].as_u64()? / 1024;
    Some(if health["store_failing"] == true {
        let text = format!("{kib} KiB, cannot be written: is the disk full or read-only?");
        Cell::toned(text, Tone::Bad)
    } else {
        format!("{kib} KiB").into()
    })
}

/// `status`: the platform, and how it was found when it was last needed.
fn platform(health: &Value, now: UnixTime) -> Option<Cell> {
    let url = health["platform"]["url"].as_str()?;
    let found = &health["platform"]["found"];
    let when = relative_time_of(&found["at"], now);
    Some(match (found["reachable"].as_bool(), found["error"].as_str()) {
        (Some(true), _) => Cell::toned(format!("{url}, answered {when}"), Tone::Good),
        (Some(false), error) => Cell::toned(
            format!("{url}, did not answer {when}: {}", error.unwrap_or("?")),
            Tone::Warn,
        ),
        (None, _) => format!("{url}, not asked yet").into(),
    })
}

/// `invite` and `token mint`: the one time that a token is shown.
pub fn minted(minted: &Value, style: Style, now: UnixTime) -> String {
    let pairs = [
        ("peer", Some(Cell::from(name_of(&minted["peer"])))),
        ("id", text(&minted["peer"]["id"])),
        ("token", text(&minted["acceptance_token"])),
        ("expires", time(&minted["expires_at"], now)),
        ("CA", text(&minted["ca_fingerprint"])),
        (
            "caution",
            minted["caution"]
                .as_str()
                .map(|caution| Cell::toned(caution, Tone::Warn)),
        ),
    ];
    let mut out = render_pairs(&pairs, style);
    if let Some(code) = minted["join_code"].as_str() {
        out.push_str("\nJoin code, one line, shown this once like the token:\n\n");
        out.push_str(code);
        out.push_str(
            "\n\nOn the box, paste it into:\n\n  powernode-satellite join - --contact you@example.com --location WHERE\n",
        );
    }
    out
}

/// `status`.
pub fn health(health: &Value, style: Style, now: UnixTime) -> String {
    let count = |status: &str| health["peers_by_status"][status].as_u64().unwrap_or(0);
    let counted: Vec<String> = [
        "active",
        "degraded",
        "enrolled",
        "accepted",
        "proposed",
        "suspended",
        "revoked",
    ]
    .iter()
    .filter(|status| count(status) > 0)
    .map(|status| format!("{} {status}", count(status)))
    .collect();
    let running = health["daemon_running"] == true;
    let daemon = if running {
        Cell::toned("running", Tone::Good)
    } else {
        Cell::toned("not running", Tone::Warn)
    };
    let pairs = [
        ("host-bridge", Some(daemon)),
        ("version", text(&health["version"])),
        ("platform", platform(health, now)),
        ("CA", text(&health["ca_fingerprint"])),
        (
            "connected",
            running.then(|| health["connected"].to_string().into()),
        ),
        ("joining", running.then(|| health["joining"].to_string().into())),
        (
            "peers",
            Some(if counted.is_empty() {
                "none".into()
            } else {
                counted.join(", ").into()
            }),
        ),
        (
            if health["platform"].is_null() {
                "registry"
            } else {
                "store"
            },
            store(health),
        ),
        (
            "private keys",
            health["store_sealed"]
                .as_bool()
                .map(|sealed| sealing(sealed).into()),
        ),
    ];
    let mut out = render_pairs(&pairs, style);
    if health["peers"].as_array().is_some_and(|peers| !peers.is_empty()) {
        out.push('\n');
        out.push_str(&freshness(&health["peers"], now).render(style));
    }
    out
}

/// Every peer and how fresh its heartbeat is.
fn freshness(peers: &Value, now: UnixTime) -> Table {
    let mut table = Table::new(&["NAME", "STATUS", "HEARTBEAT", "FRESH"]);
    for peer in peers.as_array().into_iter().flatten() {
        let fresh = if peer["heartbeat_fresh"] == true {
            Cell::toned("yes", Tone::Good)
        } else {
            Cell::toned("no", Tone::Warn)
        };
        table.row(vec![
            name_of(peer).into(),
            status_cell(&peer["status"]),
            relative_time_of(&peer["last_heartbeat_at"], now).into(),
            fresh,
        ]);
    }
    table
}

/// An allow-list of a grant.
fn allowed(list: &Value) -> String {
    match list {
        Value::Array(entries) => entries
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(", "),
        Value::String(any) => any.clone(),
        _ => String::new(),
    }
}

/// `ca show`: nothing but the certificate, so that it can go into a file.
pub fn authority(authority: &Value, _style: Style, _now: UnixTime) -> String {
    authority["certificate_pem"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// `ca rotate`.
pub fn rotated_authority(authority: &Value, style: Style, _now: UnixTime) -> String {
    let text = |value: &Value| value.as_str().map(Cell::from);
    let before = &authority["predecessor"];
    let pairs = [
        ("new authority", text(&authority["fingerprint"])),
        ("old authority", text(&before["fingerprint"])),
        ("counts until", text(&before["overlap_ends"])),
    ];
    let next = "satellites follow by themselves; give the new certificate (ca show) to whoever has the old one as --ca-file\n";
    format!("{}{next}", render_pairs(&pairs, style))
}

/// `ca retire`.
pub fn retired_authority(retired: &Value) -> String {
    let cut = match retired["peers_cut"].as_u64() {
        Some(0) | None => "nobody's tunnel had a certificate of it".to_owned(),
        Some(1) => "the tunnel of 1 peer had a certificate of it and was cut".to_owned(),
        Some(peers) => format!("the tunnels of {peers} peers had a certificate of it and were cut"),
    };
    let next = "join codes of before the rotation lead nowhere now: `invite` or `token mint` gives new ones";
    format!("the old authority counts no more; {cut}\n{next}\n")
}

/// `grants list`.
pub fn grants(grants: &Value, style: Style, now: UnixTime) -> String {
    let rows: Vec<&Value> = grants.as_array().into_iter().flatten().collect();
    if rows.is_empty() {
        return "no grants\n".to_owned();
    }
    let mut table = Table::new(&["ID", "STATE", "SUBJECT", "KIND", "SCOPES", "SOURCES", "EXPIRES"]);
    for grant in rows {
        let state = grant["state"].as_str().unwrap_or("?");
        let tone = if state == "active" {
            Tone::Good
        } else {
            Tone::Faint
        };
        table.row(vec![
            grant["id"].as_str().unwrap_or("?").into(),
            Cell::toned(state, tone),
            grant["remote_subject"].as_str().unwrap_or("?").into(),
            grant["resource_kind"].as_str().unwrap_or("?").into(),
            allowed(&grant["permission_scopes"]).into(),
            allowed(&grant["source_cidrs"]).into(),
            relative_time_of(&grant["expires_at"], now).into(),
        ]);
    }
    table.render(style)
}

/// `grants create`: the one time that a bearer token is shown.
pub fn created_grant(created: &Value, style: Style, now: UnixTime) -> String {
    let grant = &created["grant"];
    let pairs = [
        ("grant", text(&grant["id"])),
        ("subject", text(&grant["remote_subject"])),
        ("kind", text(&grant["resource_kind"])),
        ("scopes", Some(allowed(&grant["permission_scopes"]).into())),
        ("expires", time(&grant["expires_at"], now)),
        ("bearer token", text(&created["bearer_token"])),
    ];
    render_pairs(&pairs, style) + "\nThe bearer token is shown this once; keep it.\n"
}

/// `sessions list`.
pub fn sessions(sessions: &Value, style: Style, now: UnixTime) -> String {
    let rows: Vec<&Value> = sessions.as_array().into_iter().flatten().collect();
    if rows.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut table = Table::new(&[
        "ID", "PEER", "SERVICE", "OPERATOR", "SOURCE", "VIA", "SINCE", "SENT", "RECEIVED",
    ]);
    for session in rows {
        let text = |field: &str| Cell::from(session[field].as_str().unwrap_or("-"));
        table.row(vec![
            text("id"),
            text("peer"),
            text("service"),
            text("operator"),
            text("source"),
            text("via"),
            relative_time_of(&session["since"], now).into(),
            bytes(&session["bytes_to_service"]).into(),
            bytes(&session["bytes_from_service"]).into(),
        ]);
    }
    table.render(style)
}

/// A count of bytes in the unit that reads well.
fn bytes(count: &Value) -> String {
    let count = count.as_u64().unwrap_or(0);
    for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if count >= size {
            let tenths = u128::from(count) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} B")
}

/// `operators list`.
pub fn operators(operators: &Value, style: Style, now: UnixTime) -> String {
    let mut table = Table::new(&["NAME", "ROLE", "PEERS", "SERVICES", "ENDS", "ADDED", "ID"]);
    for operator in operators.as_array().into_iter().flatten() {
        table.row(vec![
            operator["name"].as_str().unwrap_or("?").into(),
            operator["role"].as_str().unwrap_or("?").into(),
            allowed(&operator["peers"]).into(),
            allowed(&operator["services"]).into(),
            ends(operator, now),
            relative_time_of(&operator["created_at"], now).into(),
            operator["id"].as_str().unwrap_or("?").into(),
        ]);
    }
    table.render(style)
}

fn ends(operator: &Value, now: UnixTime) -> Cell {
    let text = relative_time_of(&operator["expires_at"], now);
    let tone = if operator["expired"] == true {
        Tone::Bad
    } else {
        Tone::Plain
    };
    Cell::toned(text, tone)
}

fn operator_pairs(operator: &Value, now: UnixTime) -> Vec<(&'static str, Option<Cell>)> {
    vec![
        ("operator", text(&operator["name"])),
        ("id", text(&operator["id"])),
        ("role", text(&operator["role"])),
        ("peers", Some(allowed(&operator["peers"]).into())),
        ("services", Some(allowed(&operator["services"]).into())),
        ("ends", Some(ends(operator, now))),
        ("token made", time(&operator["token_made_at"], now)),
    ]
}

/// `operators show` and `operators set`.
pub fn operator(operator: &Value, style: Style, now: UnixTime) -> String {
    render_pairs(&operator_pairs(operator, now), style)
}

/// `operators add` and `operators rotate`: the one time that an operator token is shown.
pub fn minted_operator(minted: &Value, style: Style, now: UnixTime) -> String {
    let mut pairs = operator_pairs(&minted["operator"], now);
    pairs.push(("operator token", text(&minted["operator_token"])));
    render_pairs(&pairs, style) + "\nThe operator token is shown this once; keep it.\n"
}
