//! `scripts/release` in a repository of its own, with a throw-away key and programs that merely are
//! static: what it refuses, and what it leaves. For all targets, of which this machine's compiler has one.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::documents;
use crate::prerequisites::has;
use crate::processors::smallest_program;
use crate::support::{fail, succeed};

const NATIVE: &str = "x86_64-unknown-linux-musl";

/// The others of a release, with Debian's words for their processors.
const OTHERS: [(&str, &str); 2] = [
    ("aarch64-unknown-linux-musl", "arm64"),
    ("armv7-unknown-linux-musleabihf", "armhf"),
];

struct Repository {
    place: tempfile::TempDir,
    documents: PathBuf,
}

impl Repository {
    /// One commit with the files of this one, as they are now.
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let documents = documents::generate(place.path());
        let repository = Self { place, documents };
        std::fs::create_dir(repository.tree()).unwrap();
        let copy =
            "git ls-files -z --cached --others --exclude-standard | xargs -0 cp -P --parents -t \"$1\"";
        let mut shell = Command::new("sh");
        shell.args(["-ec", copy, "sh"]).arg(repository.tree());
        succeed(&shell.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap());
        repository.git(&["init", "--quiet"]);
        repository.git(&["add", "--all"]);
        repository.git(&["commit", "--quiet", "--message", "all"]);
        succeed(
            &repository
                .command("minisign", &["-G", "-W", "-p", "key.pub", "-s", "key"])
                .current_dir(repository.place.path())
                .output()
                .unwrap(),
        );
        repository
    }

    fn tree(&self) -> PathBuf {
        self.place.path().join("tree")
    }

    fn output(&self) -> PathBuf {
        self.place.path().join("output")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.tree())
            .stdin(Stdio::null());
        command
    }

    fn git(&self, arguments: &[&str]) {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
        let mut command = self.command("git", &identity);
        succeed(&command.args(arguments).output().unwrap());
    }

    fn release(&self, more: &[&str]) -> Output {
        let mut command = self.command("scripts/release", more);
        command.args(["--key", "../key", "--output", "../output", "--built", "../built"]);
        command
            .env("POWERNODE_DOCS", &self.documents)
            .env_remove("DEBEMAIL");
        command.output().unwrap()
    }

    /// Something in the place of both programs, for each target.
    fn build(&self, options: &[&str]) {
        let source = self.place.path().join("program.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        for program in ["powernode-satellite", "powernode-host-bridge"] {
            let mut compiler = self.command("cc", options);
            compiler.arg("-s").arg("-o").arg(self.built(NATIVE).join(program));
            succeed(&compiler.arg(&source).output().unwrap());
            for (target, _) in OTHERS {
                std::fs::write(self.built(target).join(program), smallest_program(target)).unwrap();
            }
        }
    }

    fn built(&self, target: &str) -> PathBuf {
        let built = self.place.path().join("built").join(target);
        std::fs::create_dir_all(&built).unwrap();
        built
    }
}

#[test]
fn a_release_is_whole_and_signed_or_not_made() {
    let test = "a_release_is_whole_and_signed_or_not_made";
    if !has(test, &["cargo-cyclonedx", "cargo-deb", "minisign"]) {
        return;
    }
    let repository = Repository::new();
    repository.build(&["-static"]);

    let (_, said) = fail(&repository.release(&[]));
    assert!(said.contains("tag v"), "{said}");
    repository.git(&["tag", concat!("v", env!("CARGO_PKG_VERSION"))]);
    let (_, said) = fail(&repository.release(&[]));
    assert!(said.contains("DEBEMAIL"), "{said}");
    let stray = repository.tree().join("stray");
    std::fs::write(&stray, "x").unwrap();
    let (_, said) = fail(&repository.release(&["--trial"]));
    assert!(said.contains("changes") && said.contains("stray"), "{said}");
    std::fs::remove_file(stray).unwrap();
    repository.build(&[]);
    let (_, said) = fail(&repository.release(&["--trial"]));
    assert!(said.contains("needs shared libraries"), "{said}");
    assert!(!repository.output().exists(), "nothing is half made");

    repository.build(&["-static"]);
    let said = succeed(&repository.release(&["--trial"]));
    is_whole(&repository, &said);
    // An earlier release is never mixed with a new one.
    let (_, said) = fail(&repository.release(&["--trial"]));
    assert!(said.contains("not empty"), "{said}");
    succeed(
        &repository
            .command("git", &["diff", "--exit-code", "HEAD"])
            .output()
            .unwrap(),
    );
}

fn is_whole(repository: &Repository, said: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let materials = format!("powernode-satellite-{version}.cdx.json");
    let mut names = vec![
        materials.clone(),
        format!("powernode-satellite-{version}-openwrt.init"),
        format!("powernode-satellite-{version}-openwrt.keep"),
        format!("powernode-satellite-{version}.service"),
        format!("powernode-host-bridge-{version}.service"),
        format!("powernode-host-bridge-backup-{version}.service"),
        format!("powernode-host-bridge-backup-{version}.timer"),
        "SHA256SUMS".to_owned(),
        "SHA256SUMS.minisig".to_owned(),
    ];
    for (target, architecture) in [(NATIVE, "amd64")].into_iter().chain(OTHERS) {
        let processor = target.split('-').next().unwrap();
        for program in ["powernode-satellite", "powernode-host-bridge"] {
            names.push(format!("{program}-{version}-linux-{processor}"));
            names.push(format!("{program}_{version}-1_{architecture}.deb"));
        }
    }
    let mut found: Vec<_> = std::fs::read_dir(repository.output())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    names.sort();
    assert_eq!(found, names);
    assert!(names.iter().all(|name| said.contains(name.as_str())), "{said}");

    let in_output = |program: &str, arguments: &[&str]| {
        let mut command = repository.command(program, arguments);
        command.current_dir(repository.output()).output().unwrap()
    };
    succeed(&in_output(
        "minisign",
        &["-V", "-p", "../key.pub", "-m", "SHA256SUMS"],
    ));
    let checked = succeed(&in_output("sha256sum", &["-c", "SHA256SUMS"]));
    assert_eq!(checked.lines().count(), names.len() - 2, "{checked}");

    let materials = std::fs::read(repository.output().join(materials)).unwrap();
    let materials: Value = serde_json::from_slice(&materials).unwrap();
    assert_eq!(materials["bomFormat"], "CycloneDX");
    let components = materials["components"].as_array().unwrap();
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    assert!(
        has("redb") && has("aws-lc-sys") && has("quinn"),
        "what is linked is there"
    );
    assert!(!has("proptest"), "what only tests is not");
    let unlicensed: Vec<_> = components
        .iter()
        .filter(|component| component["licenses"].is_null())
        .collect();
    assert!(unlicensed.is_empty(), "{unlicensed:?}");
}
