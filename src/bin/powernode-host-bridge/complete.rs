//! `complete`: what the shells' completion scripts ask for while a command line is typed: names of
//! peers, of their services, and ids of sessions. Which of them is wanted is read off the program's own
//! definition of its arguments. Whatever goes wrong, nothing is printed: nobody waits for an error
//! behind the Tab key.

use std::time::Duration;

use clap::{Command, CommandFactory as _};
use http::Method;
use powernode_satellite::bridge::operator_api::SESSIONS_PATH;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::contract::FEDERATION_PEERS_PATH;
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use serde_json::Value;

use crate::arguments::Arguments;
use crate::call::call;
use crate::print;

/// Longest that somebody waits behind the Tab key.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the word under the cursor can be.
#[derive(Debug, PartialEq, Eq)]
enum Expected<'a> {
    Peer,
    ServiceOf(&'a str),
    Session,
    Other,
}

/// Prints the candidates for the last of the words, one a line.
pub fn complete(config: &HostBridgeConfig, words: &[String]) -> Result<(), Failure> {
    let Some((last, before)) = words.split_last() else {
        return Ok(());
    };
    let expected = expected(&Arguments::command(), before, last);
    let path = match expected {
        Expected::Peer | Expected::ServiceOf(_) => FEDERATION_PEERS_PATH,
        Expected::Session => SESSIONS_PATH,
        Expected::Other => return Ok(()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let asked = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, call(config, Method::GET, path, None)).await });
    // The registry may still be held by a read that takes long.
    runtime.shutdown_background();
    let Ok(Ok(rows)) = asked else {
        return Ok(());
    };
    let mut names = names(&rows, &expected, last);
    names.retain(|name| name.starts_with(last.as_str()));
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        names.push(String::new());
    }
    print(&names.join("\n"))
}

/// Ids of peers only to who has begun to type one: names are what people look for.
fn names(rows: &Value, expected: &Expected<'_>, typed: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let rows = rows.as_array().into_iter().flatten();
    match expected {
        Expected::Peer => rows
            .filter(|peer| peer["status"] != "revoked")
            .flat_map(|peer| {
                let (name, id) = (text(&peer["name"]), text(&peer["id"]));
                let wants_id = name.is_none() || !typed.is_empty();
                [name, id.filter(|_| wants_id)]
            })
            .flatten()
            .collect(),
        Expected::ServiceOf(asked) => rows
            .filter(|peer| peer["name"] == *asked || peer["id"] == *asked)
            .filter_map(|peer| peer["capabilities"]["services"].as_array())
            .flatten()
            .filter_map(|service| text(service).or_else(|| text(&service["name"])))
            .collect(),
        Expected::Session => rows.filter_map(|session| text(&session["id"])).collect(),
        Expected::Other => Vec::new(),
    }
}

/// What can stand after some words. The last one is looked at for nothing but a dash.
fn expected<'a>(root: &Command, before: &'a [String], last: &str) -> Expected<'a> {
    if last.starts_with('-') {
        return Expected::Other;
    }
    let mut command = root;
    let mut positional = 0;
    let mut peer = "";
    let mut words = before.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if let Some(option) = word.strip_prefix("--").filter(|option| !option.contains('=')) {
            let known = command
                .get_arguments()
                .chain(root.get_arguments())
                .find(|known| known.get_long() == Some(option));
            let takes_value = known.is_some_and(|known| known.get_action().takes_values());
            // Its value is under the cursor, or is passed over.
            if takes_value && words.next().is_none() {
                return Expected::Other;
            }
        } else if word.starts_with('-') {
            // A switch, or an option with its value.
        } else if let Some(below) = command.find_subcommand(word) {
            command = below;
            positional = 0;
        } else {
            if id_of(command, positional) == Some("peer") {
                peer = word;
            }
            positional += 1;
        }
    }
    match id_of(command, positional) {
        Some("peer") => Expected::Peer,
        Some("service") => Expected::ServiceOf(peer),
        Some("id") if command.get_name() == "cut" => Expected::Session,
        _ => Expected::Other,
    }
}

fn id_of(command: &Command, positional: usize) -> Option<&str> {
    let argument = command.get_positionals().nth(positional)?;
    Some(argument.get_id().as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_words_before_say_what_is_wanted() {
        let root = Arguments::command();
        for (line, wanted) in [
            ("connect ", Expected::Peer),
            ("connect sh", Expected::Peer),
            ("connect shop-17 ", Expected::ServiceOf("shop-17")),
            ("connect shop-17 ssh ", Expected::Other),
            (
                "forward --listen 127.0.0.1:8080 shop-17 w",
                Expected::ServiceOf("shop-17"),
            ),
            ("forward --listen=127.0.0.1:8080 ", Expected::Peer),
            ("forward --listen ", Expected::Other),
            ("forward --expose ", Expected::Peer),
            ("--admin-socket /x peers show ", Expected::Peer),
            ("peers show --admin-socket /x ", Expected::Peer),
            ("peers list ", Expected::Other),
            ("token mint ", Expected::Peer),
            ("grants create ", Expected::Peer),
            ("sessions cut ", Expected::Session),
            ("connect -", Expected::Other),
            ("connect --", Expected::Other),
            ("nonsense ", Expected::Other),
            ("", Expected::Other),
        ] {
            let words: Vec<String> = line.split(' ').map(ToOwned::to_owned).collect();
            let (last, before) = words.split_last().unwrap();
            assert_eq!(expected(&root, before, last), wanted, "{line}");
        }
    }

    #[test]
    fn names_are_those_of_living_peers_and_of_what_they_publish() {
        let peers = json!([
            { "id": "1", "name": "shop-17", "status": "active",
              "capabilities": { "services": [{ "name": "ssh" }, { "name": "web" }] } },
            { "id": "2", "name": null, "status": "proposed", "capabilities": {} },
            { "id": "3", "name": "gone", "status": "revoked", "capabilities": {} },
        ]);
        assert_eq!(names(&peers, &Expected::Peer, ""), ["shop-17", "2"]);
        assert_eq!(
            names(&peers, &Expected::Peer, "1"),
            ["shop-17", "1", "2"],
            "an id, too"
        );
        assert_eq!(names(&peers, &Expected::ServiceOf("shop-17"), ""), ["ssh", "web"]);
        assert!(names(&peers, &Expected::ServiceOf("2"), "").is_empty());
    }
}
