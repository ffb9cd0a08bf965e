//! A client of the contract that shares no code with the library: curl, one process for each request.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::authority::Identity;

/// The interface for children.
pub const API: &str = "/api/v1/system/federation_api";

/// Where requests go, and by what the server is known.
pub struct Client {
    pub url: String,
    pub ca_file: Option<PathBuf>,
    /// For certificates and keys, which curl reads from files.
    pub dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub text: String,
    /// Null where the body is no JSON.
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What a success is about: wrapped or bare.
    pub fn data(&self) -> &Value {
        assert!((200..300).contains(&self.status), "{self:?}");
        assert_ne!(self.json["success"], Value::Bool(false), "{self:?}");
        &self.json["data"]
    }

    /// The words of a failure with this status.
    pub fn failure(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        assert_ne!(self.json["success"], Value::Bool(true), "{self:?}");
        self.json["error"].as_str().unwrap_or_default()
    }
}

/// One request.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: Option<&'a str>,
    pub identity: Option<&'a Identity>,
    pub headers: &'a [&'a str],
}

impl<'a> Ask<'a> {
    pub const fn get(path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            body: None,
            identity: None,
            headers: &[],
        }
    }

    pub const fn post(path: &'a str, body: &'a str) -> Self {
        Self {
            method: "POST",
            body: Some(body),
            ..Self::get(path)
        }
    }

    pub const fn by(self, identity: &'a Identity) -> Self {
        Self {
            identity: Some(identity),
            ..self
        }
    }

    pub const fn with(self, headers: &'a [&'a str]) -> Self {
        Self { headers, ..self }
    }
}

impl Client {
    /// Asks, and gives the answer, or curl's words where there is none.
    pub fn try_ask(&self, ask: Ask<'_>) -> Result<Answer, String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "60"]);
        // What comes is read as it is: no proxy, no redirect, no file with somebody's settings.
        command.args(["--disable", "--noproxy", "*", "--request", ask.method]);
        if let Some(ca) = &self.ca_file {
            command.arg("--cacert").arg(ca);
        }
        // Of this request alone, so that cases may run beside each other.
        let files = tempfile::tempdir_in(self.dir.path()).map_err(|error| error.to_string())?;
        if let Some(identity) = ask.identity {
            let at = |name: &str, content: &str| written(files.path(), name, content);
            command.arg("--cert").arg(at("client.pem", &identity.certificate));
            command.arg("--key").arg(at("client.key", &identity.key));
        }
        for header in ask.headers {
            command.args(["--header", header]);
        }
        if ask.body.is_some() {
            command.args([
                "--header",
                "content-type: application/json",
                "--data-binary",
                "@-",
            ]);
        }
        command.arg(format!("{}{}", self.url, ask.path));
        let mut curl = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("curl is installed");
        // A server that refuses early does not read on.
        let _ = curl
            .stdin
            .take()
            .expect("it is piped")
            .write_all(ask.body.unwrap_or_default().as_bytes());
        let output = curl.wait_with_output().expect("it ends within its time");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        read(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| "curl gave no answer".to_owned())
    }

    /// The same where there must be an answer.
    pub fn ask(&self, ask: Ask<'_>) -> Answer {
        self.try_ask(ask)
            .unwrap_or_else(|why| panic!("{} {}: {why}", ask.method, ask.path))
    }
}

fn written(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// An answer as it came.
pub fn read(output: &str) -> Option<Answer> {
    let mut rest = output;
    loop {
        let (head, body) = rest.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if status < 200 {
            rest = body;
            continue;
        }
        let headers = lines.filter_map(|line| line.split_once(':'));
        return Some(Answer {
            status,
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            text: body.to_owned(),
            json: serde_json::from_str(body).unwrap_or_default(),
        });
    }
}
