//! The floors of docs/ARCHITECTURE.md, checked: every path of every source file goes down, the
//! floors below the line name nothing of the outside world, and no file grows without bound.
//!
//! The sources are read as tokens, not compiled: comments and strings are skipped, `use` groups are
//! expanded, and `self`, `super` and inline modules are resolved.

#![allow(clippy::unwrap_used, reason = "functions that tests share are tests, too")]

use std::path::{Path, PathBuf};

/// Every top module with its floor. A module imports from itself and from lower floors alone.
const FLOORS: [(&str, u8); 14] = [
    ("base", 0),
    ("audit", 1),
    ("contract", 1),
    ("grant", 1),
    ("wire", 1),
    ("machine", 2),
    ("process", 3),
    ("store", 4),
    ("identity", 4),
    ("tunnel", 5),
    ("reach", 6),
    ("bridge", 7),
    ("satellite", 7),
    ("cli", 8),
];

/// The highest floor that is pure.
const PURE_UP_TO: u8 = 2;

/// What a pure floor must not name outside of its tests: whatever begins with one of these.
const IMPURE: [&str; 18] = [
    "hyper",
    "hyper_util",
    "quinn",
    "rand",
    "redb",
    "rustls",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tokio_util",
];

/// Longest file, in lines: what one can read in a sitting.
const FILE_MAX_LINES: usize = 600;

#[test]
fn imports_go_down() {
    let faults: Vec<_> = sources().iter().flat_map(Source::upward_paths).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_pure_floors_know_nothing_of_the_world() {
    let faults: Vec<_> = sources().iter().flat_map(Source::impure_paths).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_ends_in_time() {
    let sources = sources();
    assert!(sources.len() > 20, "the sources were not found");
    let faults: Vec<_> = sources.iter().flat_map(Source::unfit_shape).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_test_and_bench_ends_in_time_too() {
    let sources: Vec<_> = ["tests", "benches", "examples"]
        .into_iter()
        .flat_map(sources_in)
        .collect();
    assert!(sources.len() > 50, "the tests were not found");
    let faults: Vec<_> = sources.iter().filter_map(Source::too_long).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_top_module_has_a_floor() {
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        let top = source.module[0].as_str();
        let known = top == "bin" || FLOORS.iter().any(|(name, _)| *name == top);
        assert!(
            known,
            "{}: give `{top}` a floor in tests/architecture.rs",
            source.name
        );
    }
}

#[test]
fn an_upward_path_is_found_wherever_it_hides() {
    let upward = |module: &[&str], text: &str| Source::new(module, text).upward_paths().len();
    assert_eq!(upward(&["machine", "join"], "use crate::store::database;"), 1);
    assert_eq!(
        upward(
            &["machine", "join"],
            "use crate::{base::id, tunnel::{http, quic}};"
        ),
        2
    );
    assert_eq!(
        upward(&["machine", "join"], "use super::super::process::clock;"),
        1
    );
    assert_eq!(
        upward(&["machine", "join"], "fn f() { crate::cli::output::table() }"),
        1
    );
    assert_eq!(
        upward(&["wire"], "mod tests { use super::super::contract; }"),
        1,
        "same floor"
    );
    assert_eq!(
        upward(&["store", "record"], "use crate::identity::key;"),
        1,
        "same floor"
    );
    assert_eq!(upward(&["bridge"], "pub(in crate::satellite) fn f() {}"), 1);
    assert_eq!(
        upward(&["base"], "macro_rules! m { () => { $crate::wire::Hello } }"),
        1
    );
    assert_eq!(
        upward(
            &["bin", "powernode-satellite"],
            "use powernode_satellite::bridge;"
        ),
        1
    );
}

#[test]
fn what_is_no_upward_path_is_left_alone() {
    let upward = |module: &[&str], text: &str| Source::new(module, text).upward_paths().len();
    assert_eq!(
        upward(
            &["machine", "join"],
            "use super::backoff; use crate::contract::{peer, token as t};"
        ),
        0
    );
    assert_eq!(
        upward(
            &["machine", "join"],
            "mod tests { use super::*; use super::super::heartbeat; }"
        ),
        0
    );
    assert_eq!(
        upward(
            &["base"],
            "// use crate::cli;\n/* crate::cli /* nested */ crate::cli */"
        ),
        0
    );
    assert_eq!(
        upward(&["base"], r#"const A: &str = "crate::cli \" crate::cli";"#),
        0
    );
    let raw = ["const A: &str = r#", r#""crate::cli "x" crate::cli""#, "#;"].concat();
    assert_eq!(upward(&["base"], &raw), 0);
    assert_eq!(
        upward(
            &["base"],
            "fn f<'a>(x: &'a str) -> char { '\"' } pub(crate) fn g() {}"
        ),
        0
    );
    assert_eq!(
        upward(
            &["bin", "powernode-satellite"],
            "use powernode_satellite::{cli, satellite};"
        ),
        0
    );
}

#[test]
fn the_outside_world_is_found_in_pure_code_but_not_in_its_tests() {
    let impure = |module: &[&str], text: &str| Source::new(module, text).impure_paths().len();
    assert_eq!(
        impure(&["base", "time"], "use std::time::{Duration, Instant};"),
        1
    );
    assert_eq!(
        impure(
            &["machine", "join"],
            "use std::{fs::File, net::{IpAddr, UdpSocket}};"
        ),
        2
    );
    assert_eq!(
        impure(
            &["contract"],
            "fn f() { tokio::spawn(async {}); std::env::var(\"X\"); }"
        ),
        2
    );
    assert_eq!(
        impure(&["contract"], "use std::net::Ipv6Addr; use tokio_like::x;"),
        0
    );
    assert_eq!(impure(&["machine", "join", "tests"], "use std::fs;"), 0);
    assert_eq!(impure(&["machine"], "mod tests { use std::fs; } use std::fs;"), 1);
    assert_eq!(impure(&["process", "clock"], "use std::time::Instant;"), 0);
}

#[test]
fn an_unfit_file_is_found() {
    let unfit = |text: &str| Source::new(&["base"], text).unfit_shape().len();
    assert_eq!(unfit("//! Says what it is.\n"), 0);
    assert_eq!(unfit("use std::fmt;\n"), 1);
    assert_eq!(unfit(&format!("//! Long.\n{}", "\n".repeat(FILE_MAX_LINES))), 1);
}

struct Source {
    name: String,
    module: Vec<String>,
    text: String,
}

/// A path that the source names, with `crate` and `super` resolved away for its own modules.
#[derive(Debug, PartialEq)]
struct Named {
    /// Whether the path is of this crate.
    own: bool,
    segments: Vec<String>,
    in_tests: bool,
}

impl Source {
    fn new(module: &[&str], text: &str) -> Self {
        Self {
            name: module.join("::"),
            module: module.iter().map(|&name| name.to_owned()).collect(),
            text: text.to_owned(),
        }
    }

    fn upward_paths(&self) -> Vec<String> {
        let Some(from) = self.module.first() else {
            return Vec::new();
        };
        let is_upward = |named: &Named| {
            named.own
                && named
                    .segments
                    .first()
                    .is_some_and(|to| to != from && !self.may_import(from, to))
        };
        let paths = self.paths().into_iter().filter(is_upward);
        paths
            .map(|named| {
                format!(
                    "{}: {from} must not import {}",
                    self.name,
                    named.segments.join("::")
                )
            })
            .collect()
    }

    fn may_import(&self, from: &str, to: &str) -> bool {
        let floor = |name: &str| {
            FLOORS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, floor)| *floor)
        };
        if from == "bin" {
            // Each program has one side of the federation in it.
            let program = self.module.get(1).map_or("", String::as_str);
            return !matches!(
                (program, to),
                ("powernode-satellite", "bridge") | ("powernode-host-bridge", "satellite")
            );
        }
        match (floor(from), floor(to)) {
            (Some(from), Some(to)) => to < from,
            // Not a module: a name at the crate's root.
            (Some(_) | None, None) | (None, Some(_)) => true,
        }
    }

    fn impure_paths(&self) -> Vec<String> {
        let top = self.module.first().map_or("", String::as_str);
        let is_pure = FLOORS
            .iter()
            .any(|(name, floor)| *name == top && *floor <= PURE_UP_TO);
        if !is_pure {
            return Vec::new();
        }
        let is_impure = |path: &str| {
            IMPURE.iter().any(|impure| {
                path.strip_prefix(impure)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        };
        let outside = self
            .paths()
            .into_iter()
            .filter(|named| !named.own && !named.in_tests);
        outside
            .map(|named| named.segments.join("::"))
            .filter(|path| is_impure(path))
            .map(|path| format!("{}: a pure module must not name {path}", self.name))
            .collect()
    }

    fn unfit_shape(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let is_tests = self.module.iter().any(|name| name == "tests");
        if !is_tests && !self.text.starts_with("//!") {
            faults.push(format!(
                "{}: the first line must say what the module is (//!)",
                self.name
            ));
        }
        faults.extend(self.too_long());
        faults
    }

    fn too_long(&self) -> Option<String> {
        let lines = self.text.lines().count();
        (lines > FILE_MAX_LINES).then(|| format!("{}: {lines} lines; split it", self.name))
    }

    fn paths(&self) -> Vec<Named> {
        let tokens = tokens(&self.text);
        let mut found = Vec::new();
        let mut module = self.module.clone();
        // Inline modules with the brace depth at which they end.
        let mut inline: Vec<usize> = Vec::new();
        let mut depth = 0;
        let mut at = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => {
                    module.push(tokens[at + 1].clone());
                    inline.push(depth);
                    depth += 1;
                    at += 3;
                }
                "{" => {
                    depth += 1;
                    at += 1;
                }
                "}" => {
                    depth = depth.saturating_sub(1);
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        module.pop();
                    }
                    at += 1;
                }
                token if is_name(token) && tokens.get(at + 1).is_some_and(|next| next == "::") => {
                    let mut expanded = Vec::new();
                    at = expand(&tokens, at, &mut Vec::new(), &mut expanded);
                    let in_tests = module.iter().any(|name| name == "tests");
                    found.extend(expanded.into_iter().map(|path| resolve(&module, path, in_tests)));
                }
                _ => at += 1,
            }
        }
        found
    }
}

/// Follows a path from `at`, through groups; returns where it ends.
fn expand(tokens: &[String], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let length = prefix.len();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some(token) if is_name(token) => {
                prefix.push(token.to_owned());
                at += 1;
            }
            Some("*") => at += 1,
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = match tokens[at].as_str() {
                        token if is_name(token) || token == "*" => expand(tokens, at, prefix, found),
                        _ => at + 1,
                    };
                }
                prefix.truncate(length);
                return at + 1;
            }
            _ => {}
        }
        if tokens.get(at).is_some_and(|token| token == "::") {
            at += 1;
        } else {
            break;
        }
    }
    if tokens.get(at).is_some_and(|token| token == "as") {
        at += 2;
    }
    found.push(prefix.clone());
    prefix.truncate(length);
    at
}

fn resolve(module: &[String], path: Vec<String>, in_tests: bool) -> Named {
    let in_bin = module.first().is_some_and(|top| top == "bin");
    let mut base: Option<Vec<String>> = None;
    let mut rest = path.into_iter().peekable();
    while let Some(segment) = rest.peek() {
        match segment.as_str() {
            // A program is a crate of its own beside the library.
            "crate" => base = Some(module[..if in_bin { 2.min(module.len()) } else { 0 }].to_vec()),
            "powernode_satellite" if in_bin => base = Some(Vec::new()),
            "self" if base.is_none() => base = Some(module.to_vec()),
            "super" => {
                let mut parent = base.unwrap_or_else(|| module.to_vec());
                parent.pop();
                base = Some(parent);
            }
            _ => break,
        }
        rest.next();
    }
    let own = base.is_some();
    Named {
        own,
        segments: base.unwrap_or_default().into_iter().chain(rest).collect(),
        in_tests,
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single characters; comments, strings, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&char) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        at = match char {
            '/' if next == Some('/') => skip_line(&chars, at),
            '/' if next == Some('*') => skip_comment(&chars, at),
            '"' => skip_string(&chars, at),
            '\'' => skip_char_or_lifetime(&chars, at),
            ':' if next == Some(':') => {
                tokens.push("::".to_owned());
                at + 2
            }
            _ if char.is_alphabetic() || char == '_' => {
                let end = name_end(&chars, at);
                raw_string_end(&chars, at, end).unwrap_or_else(|| {
                    tokens.push(chars[at..end].iter().collect());
                    end
                })
            }
            _ => {
                if !char.is_whitespace() {
                    tokens.push(char.to_string());
                }
                at + 1
            }
        };
    }
    tokens
}

fn name_end(chars: &[char], at: usize) -> usize {
    let length = chars[at..]
        .iter()
        .take_while(|char| char.is_alphanumeric() || **char == '_')
        .count();
    at + length
}

fn skip_line(chars: &[char], at: usize) -> usize {
    at + chars[at..].iter().take_while(|char| **char != '\n').count()
}

fn skip_comment(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut at = at;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => {
                depth += 1;
                at += 2;
            }
            ('*', '/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn skip_string(chars: &[char], at: usize) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// `r"…"`, `br#"…"#` and the like: where they end, if the name from `at` to `end` begins one.
fn raw_string_end(chars: &[char], at: usize, end: usize) -> Option<usize> {
    let name: String = chars[at..end].iter().collect();
    if !matches!(name.as_str(), "r" | "br" | "cr") {
        return None;
    }
    let hashes = chars[end..].iter().take_while(|char| **char == '#').count();
    let open = end + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let length = chars[open + 1..]
        .windows(close.len())
        .position(|window| window == close)?;
    Some(open + 1 + length + close.len())
}

fn skip_char_or_lifetime(chars: &[char], at: usize) -> usize {
    match chars.get(at + 1) {
        Some('\\') => {
            at + 3
                + chars[(at + 3).min(chars.len())..]
                    .iter()
                    .take_while(|char| **char != '\'')
                    .count()
                + 1
        }
        Some(_) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => name_end(chars, at + 1),
    }
}

fn sources() -> Vec<Source> {
    sources_in("src")
}

fn sources_in(top: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(top);
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(source(&root, &path));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn source(root: &Path, path: &PathBuf) -> Source {
    let relative = path.strip_prefix(root).unwrap();
    let mut module: Vec<String> = relative
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    Source {
        name: path.display().to_string(),
        module,
        text: std::fs::read_to_string(path).unwrap(),
    }
}
