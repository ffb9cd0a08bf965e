//! The container files: the root file system that each describes is put together as an engine would
//! do it, and the program runs in it as its user, on a read-only root, beside the other one's.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::prerequisites::{is_root, skip};
use crate::support::{free_port, run_with_input, succeed, wait_for};

/// Directory with both programs, linked statically; else those of the musl target, if they are built.
const STATIC_BINARIES: &str = "POWERNODE_STATIC_BINARIES";

/// What a container file says, of the instructions that ours use.
#[derive(Debug, Default)]
struct Recipe {
    arguments: BTreeMap<String, String>,
    copies: Vec<Vec<String>>,
    environment: Vec<(String, String)>,
    volume: String,
    user: String,
    healthcheck: Vec<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

impl Recipe {
    fn read(name: &str) -> Self {
        let path = format!(
            "{}/packaging/container/{name}.Containerfile",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(path).unwrap();
        let mut recipe = Self::default();
        let mut begun = false;
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (instruction, rest) = line.split_once(' ').unwrap();
            let words = || rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let list = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap();
            let pair = |word: &str| {
                let (key, value) = word.split_once('=').unwrap();
                (key.to_owned(), value.to_owned())
            };
            match instruction {
                "FROM" => {
                    assert!(!begun && rest == "scratch", "{line}");
                    begun = true;
                }
                "ARG" => recipe.arguments.extend([pair(rest)]),
                "COPY" => recipe.copies.push(words()),
                "ENV" => recipe.environment.extend(words().iter().map(|word| pair(word))),
                "VOLUME" => recipe.volume = list(rest).remove(0),
                "EXPOSE" => assert!(words().iter().all(|port| port.starts_with("8443/")), "{line}"),
                "USER" => rest.clone_into(&mut recipe.user),
                "HEALTHCHECK" => recipe.healthcheck = list(rest.split_once("CMD ").unwrap().1),
                "ENTRYPOINT" => recipe.entrypoint = list(rest),
                "CMD" => recipe.command = list(rest),
                other => panic!("an instruction that this test does not know: {other}"),
            }
        }
        assert!(begun);
        recipe
    }

    /// Puts the root file system together.
    fn build(&self, root: &Path, binaries: &Path) {
        for copy in &self.copies {
            let (options, places): (Vec<_>, Vec<_>) = copy.iter().partition(|word| word.starts_with("--"));
            let [source, target] = places.as_slice() else {
                panic!("{copy:?}")
            };
            let source = source.replace("${BINARIES}", binaries.to_str().unwrap());
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            let target = root.join(target.trim_start_matches('/'));
            copy_into(&source, &target);
            for option in options {
                match option.split_once('=').unwrap() {
                    ("--chown", owner) => {
                        let (user, group) = owner.split_once(':').unwrap();
                        let (user, group) = (user.parse().unwrap(), group.parse().unwrap());
                        own(&target, &source, user, group);
                    }
                    ("--chmod", mode) => {
                        let mode = u32::from_str_radix(mode, 8).unwrap();
                        std::fs::set_permissions(&target, PermissionsExt::from_mode(mode)).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// A file to its name, or what is in a directory into a directory.
fn copy_into(source: &Path, target: &Path) {
    if source.is_dir() {
        std::fs::create_dir_all(target).unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            copy_into(&entry.path(), &target.join(entry.file_name()));
        }
    } else {
        std::fs::copy(source, target).unwrap();
    }
}

/// Gives away what was copied from `source`, not what was there before.
fn own(target: &Path, source: &Path, user: u32, group: u32) {
    for entry in std::fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name();
        let (target, source) = (target.join(&name), source.join(&name));
        chown(&target, Some(user), Some(group)).unwrap();
        if source.is_dir() {
            own(&target, &source, user, group);
        }
    }
}

/// A container of one image: a root of its own, seen read-only but for the volume.
struct Site {
    recipe: Recipe,
    root: tempfile::TempDir,
    more: Vec<(&'static str, String)>,
}

impl Site {
    fn new(name: &str, binaries: &Path, more: Vec<(&'static str, String)>) -> Self {
        let recipe = Recipe::read(name);
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        recipe.build(root.path(), binaries);
        let program = root.path().join(recipe.entrypoint[0].trim_start_matches('/'));
        bring_libraries(&program, root.path());
        let volume = std::fs::metadata(root.path().join(&recipe.volume[1..])).unwrap();
        assert_eq!(
            format!("{}:{}", volume.uid(), volume.gid()),
            recipe.user,
            "its user owns the volume"
        );
        assert_eq!(
            std::fs::metadata(&program).unwrap().uid(),
            0,
            "and not the program"
        );
        Self { recipe, root, more }
    }

    fn command(&self, arguments: &[String]) -> Command {
        // Read-only for all but the volume, in a mount namespace that ends with the program.
        let script = r#"mount --bind "$1" "$1"
mount --bind "$1$2" "$1$2"
mount -o remount,bind,ro "$1"
user=$3 root=$1
shift 3
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@""#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"])
            .arg(self.root.path())
            .args([&self.recipe.volume, &self.recipe.user])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.recipe.environment.iter().cloned())
            .envs(self.more.iter().cloned());
        command
    }

    /// The image's program with other arguments than the image's.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut all = self.recipe.entrypoint.clone();
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self.command(&all)
    }

    /// Runs what the image runs.
    fn run(&self) -> Ended {
        let all = [self.recipe.entrypoint.clone(), self.recipe.command.clone()].concat();
        let child = self
            .command(&all)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ended(child.unwrap())
    }

    fn health(&self) -> Output {
        self.command(&self.recipe.healthcheck).output().unwrap()
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The shared libraries of a program that is not static: in place of the release's, the layout can be
/// tried with what this machine has built.
fn bring_libraries(program: &Path, root: &Path) {
    let output = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        if let Some(inside) = word.strip_prefix('/') {
            let inside = root.join(inside);
            std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
            std::fs::copy(word, inside).unwrap();
        }
    }
}

fn binaries(test: &str) -> PathBuf {
    if let Some(named) = std::env::var_os(STATIC_BINARIES) {
        return named.into();
    }
    let debug = Path::new(env!("CARGO_BIN_EXE_powernode-satellite"))
        .parent()
        .unwrap();
    let built = debug.join("../x86_64-unknown-linux-musl/release");
    if ["powernode-satellite", "powernode-host-bridge"]
        .iter()
        .all(|name| built.join(name).is_file())
    {
        return built.canonicalize().unwrap();
    }
    skip(
        &format!("{test} with static programs"),
        &format!(
            "neither {STATIC_BINARIES} nor the x86_64 musl target has them; it goes on with shared libraries"
        ),
    );
    debug.to_owned()
}

#[test]
fn the_images_programs_run_as_nobody_on_a_read_only_root() {
    let test = "the_images_programs_run_as_nobody_on_a_read_only_root";
    if !is_root(test) {
        return;
    }
    let binaries = binaries(test);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let bridge = Site::new(
        "host-bridge",
        &binaries,
        vec![
            ("POWERNODE_HOST_BRIDGE_LISTEN_HTTPS", listen.clone()),
            ("POWERNODE_HOST_BRIDGE_LISTEN_QUIC", listen.clone()),
        ],
    );
    let satellite = Site::new("satellite", &binaries, Vec::new());

    succeed(
        &bridge
            .program(&["init", "--public-url", &format!("https://{listen}")])
            .output()
            .unwrap(),
    );
    let _bridge = bridge.run();
    wait_for("the bridge is healthy", || {
        bridge.health().status.success().then_some(())
    });
    let _satellite = satellite.run();
    // Not joined is what `status` says before the daemon answers, too.
    wait_for("the satellite answers, and is not healthy", || {
        std::os::unix::net::UnixStream::connect(satellite.root.path().join("state/admin.sock")).ok()?;
        (satellite.health().status.code() == Some(3)).then_some(())
    });
    let invitation = bridge
        .program(&["invite", "--name", "shop-17", "--json"])
        .output()
        .unwrap();
    let invitation: Value = serde_json::from_str(&succeed(&invitation)).unwrap();
    let join = satellite.program(&["join", "-", "--contact", "ops@example.com", "--location", "DE"]);
    succeed(&run_with_input(join, invitation["join_code"].as_str().unwrap()));
    wait_for("the satellite is healthy", || {
        satellite.health().status.success().then_some(())
    });
    let volume = satellite.root.path().join("state");
    assert_eq!(
        std::fs::metadata(volume.join("satellite.redb")).unwrap().uid(),
        65_532
    );
}
