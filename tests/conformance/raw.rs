//! Requests that no curl sends: in pieces with pauses between them, or cut before their end. openssl's client carries
//! them, one process for each.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::authority::Identity;
use super::client::{Answer, Client, read};

/// Between two pieces: longer than any packet takes, and nowhere near a server's patience.
const PAUSE: Duration = Duration::from_millis(300);

/// The content of a chunked body.
fn joined(body: &str) -> String {
    let (mut content, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        content.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    content
}

impl Client {
    /// Sends a POST in pieces.
    pub fn post_slowly(&self, path: &str, body: &str, identity: Option<&Identity>, more: &str) -> Answer {
        let request = self.head(path, body.len(), more) + body;
        let (mut openssl, mut to) = self.connect(identity);
        let pieces: Vec<_> = request.as_bytes().chunks(request.len() / 4 + 1).collect();
        for piece in pieces {
            to.write_all(piece).unwrap();
            to.flush().unwrap();
            std::thread::sleep(PAUSE);
        }
        let mut output = String::new();
        openssl
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        openssl.wait().unwrap();
        let mut answer = read(&output).unwrap_or_else(|| panic!("no answer to POST {path}: {output}"));
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.text = joined(&answer.text);
            answer.json = serde_json::from_str(&answer.text).unwrap_or_default();
        }
        answer
    }

    /// Sends all of a POST but its last byte, and is gone.
    pub fn post_cut(&self, path: &str, body: &str, identity: Option<&Identity>, more: &str) {
        let mut request = self.head(path, body.len(), more) + body;
        request.pop();
        let (mut openssl, mut to) = self.connect(identity);
        to.write_all(request.as_bytes()).unwrap();
        to.flush().unwrap();
        // It has left this process; now it leaves this machine.
        std::thread::sleep(PAUSE);
        openssl.kill().unwrap();
        openssl.wait().unwrap();
    }

    /// The path below this client's base, and its head.
    fn head(&self, path: &str, length: usize, more: &str) -> String {
        let (host, base) = self.parts();
        format!(
            "POST {base}{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{more}\r\n"
        )
    }

    /// Host with port, and the path of the URL.
    fn parts(&self) -> (String, String) {
        let rest = self.url.strip_prefix("https://").expect("the base URL is https");
        let (host, base) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let host = match host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            _ => format!("{host}:443"),
        };
        (host, base.to_owned())
    }

    fn connect(&self, identity: Option<&Identity>) -> (Child, ChildStdin) {
        let (host, _) = self.parts();
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-quiet",
            "-ign_eof",
            "-verify_return_error",
            "-connect",
            &host,
        ]);
        if let Some(ca) = &self.ca_file {
            command.arg("-CAfile").arg(ca);
        }
        if let Some(identity) = identity {
            let at = |name: &str, content: &str| {
                let path = self.dir.path().join(name);
                std::fs::write(&path, content).unwrap();
                path
            };
            command.arg("-cert").arg(at("raw.pem", &identity.certificate));
            command.arg("-key").arg(at("raw.key", &identity.key));
        }
        let mut openssl = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let to = openssl.stdin.take().expect("it is piped");
        (openssl, to)
    }
}
