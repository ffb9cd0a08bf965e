//! The packages for other processors than this machine's: each says for whom it is, holds that processor's
//! programs and all else that the native one holds. dpkg of that processor installs none of them here.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::documents;
use crate::prerequisites::{has, is_installed, skip};
use crate::support::succeed;
use crate::units::{BRIDGE, SATELLITE};

const VERSION: &str = "0.1.0-1";

/// A processor: its target, Debian's word for it, readelf's, and qemu's program.
struct Processor {
    target: &'static str,
    architecture: &'static str,
    machine: &'static str,
    emulator: &'static str,
}

const PROCESSORS: [Processor; 2] = [
    Processor {
        target: "aarch64-unknown-linux-musl",
        architecture: "arm64",
        machine: "AArch64",
        emulator: "qemu-aarch64-static",
    },
    Processor {
        target: "armv7-unknown-linux-musleabihf",
        architecture: "armhf",
        machine: "ARM",
        emulator: "qemu-arm-static",
    },
];

/// The smallest static programs of these processors: they end with 0.
pub fn smallest_program(target: &str) -> Vec<u8> {
    // exit(0), by the number that the kernel has for it.
    let (is_wide, machine, flags, code): (bool, u16, u32, [u32; 3]) = match target.split('-').next().unwrap()
    {
        "aarch64" => (true, 183, 0, [0xd280_0ba8, 0xd280_0000, 0xd400_0001]),
        // Version 5 of the ABI, floating point in registers.
        "armv7" => (false, 40, 0x0500_0400, [0xe3a0_7001, 0xe3a0_0000, 0xef00_0000]),
        other => panic!("{other}"),
    };
    let base: u64 = 0x1_0000;
    let (header, program_header) = if is_wide { (64_u16, 56_u16) } else { (52, 32) };
    let begin = base + u64::from(header) + u64::from(program_header);
    let size = u64::from(header) + u64::from(program_header) + 12;
    let mut elf = vec![
        0x7f,
        b'E',
        b'L',
        b'F',
        if is_wide { 2 } else { 1 },
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let word = |elf: &mut Vec<u8>, value: u64| {
        let bytes = value.to_le_bytes();
        elf.extend_from_slice(if is_wide { &bytes } else { &bytes[..4] });
    };
    let short = |elf: &mut Vec<u8>, values: &[u16]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, values: &[u32]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    short(&mut elf, &[2, machine]);
    long(&mut elf, &[1]);
    word(&mut elf, begin);
    word(&mut elf, u64::from(header));
    word(&mut elf, 0);
    long(&mut elf, &[flags]);
    short(&mut elf, &[header, program_header, 1, 0, 0, 0]);
    // One segment, to be read and executed.
    long(&mut elf, &[1]);
    if is_wide {
        long(&mut elf, &[5]);
    }
    for value in [0, base, base, size, size] {
        word(&mut elf, value);
    }
    if !is_wide {
        long(&mut elf, &[5]);
    }
    word(&mut elf, 0x1000);
    long(&mut elf, &code);
    elf
}

/// Where this target's programs are: those that were built, else the smallest ones.
fn programs(test: &str, processor: &Processor, place: &Path) -> (PathBuf, bool) {
    let debug = Path::new(env!("CARGO_BIN_EXE_powernode-satellite"))
        .parent()
        .unwrap();
    let built = debug.join("..").join(processor.target).join("release");
    if [SATELLITE, BRIDGE].iter().all(|name| built.join(name).is_file()) {
        return (built.canonicalize().unwrap(), true);
    }
    skip(
        &format!("{test} with real programs"),
        &format!("{} has none; it goes on with the smallest", processor.target),
    );
    let stand_in = place.join(processor.target);
    std::fs::create_dir(&stand_in).unwrap();
    for name in [SATELLITE, BRIDGE] {
        let program = stand_in.join(name);
        std::fs::write(&program, smallest_program(processor.target)).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    (stand_in, false)
}

fn run(program: &str, arguments: &[&str]) -> String {
    succeed(&Command::new(program).args(arguments).output().unwrap())
}

#[test]
fn each_processors_packages_are_whole() {
    let test = "each_processors_packages_are_whole";
    if !has(test, &["cargo-deb", "lintian", "readelf"]) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let documents = documents::generate(place.path());
    for processor in &PROCESSORS {
        let (programs, are_real) = programs(test, processor, place.path());
        let output = place.path().join(processor.architecture);
        let made = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/package"))
            .args(["--fast", "--version", VERSION, "--target", processor.target])
            .arg("--binaries")
            .arg(&programs)
            .arg("--output")
            .arg(&output)
            .env("POWERNODE_DOCS", &documents)
            .output();
        succeed(&made.unwrap());
        for package in [SATELLITE, BRIDGE] {
            let file = output.join(format!("{package}_{VERSION}_{}.deb", processor.architecture));
            let unpacked = place.path().join(format!("{package}-{}", processor.architecture));
            is_for(processor, &file);
            holds_all(package, &file);
            run(
                "dpkg-deb",
                &["--extract", file.to_str().unwrap(), unpacked.to_str().unwrap()],
            );
            let program = unpacked.join("usr/bin").join(package);
            is_static(processor, &program, &programs.join(package));
            if is_installed(processor.emulator) {
                let arguments = [program.to_str().unwrap(), "version"];
                let said = run(processor.emulator, &arguments);
                assert!(!are_real || said.starts_with(package), "{said}");
            }
            let mut lintian = vec!["--fail-on=error,warning", "--allow-root"];
            if !are_real {
                // Not position-independent, for which the packages have no word.
                lintian.push("--suppress-tags=statically-linked-binary");
            }
            lintian.push(file.to_str().unwrap());
            run("lintian", &lintian);
        }
    }
}

fn is_for(processor: &Processor, package: &Path) {
    let file = package.to_str().unwrap();
    let told = run("dpkg-deb", &["--field", file, "Architecture", "Depends"]);
    let fields: BTreeMap<_, _> = told.lines().filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(fields["Architecture"], processor.architecture);
    // No C library, whatever this machine has.
    assert_eq!(fields["Depends"], "init-system-helpers (>= 1.52)");
}

fn holds_all(package: &str, file: &Path) {
    let listed = run("dpkg-deb", &["--contents", file.to_str().unwrap()]);
    let files: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .collect();
    let settings = package.trim_start_matches("powernode-");
    for expected in [
        format!("./usr/bin/{package}"),
        format!("./usr/lib/systemd/system/{package}.service"),
        format!("./etc/{package}/{settings}.toml"),
        format!("./usr/lib/sysctl.d/60-{package}.conf"),
        format!("./usr/share/man/man1/{package}.1.gz"),
        format!("./usr/share/bash-completion/completions/{package}"),
        format!("./usr/share/zsh/vendor-completions/_{package}"),
        format!("./usr/share/fish/vendor_completions.d/{package}.fish"),
        format!("./usr/share/doc/{package}/copyright"),
        format!("./usr/share/lintian/overrides/{package}"),
    ] {
        assert!(files.contains(&expected.as_str()), "{expected} of {listed}");
    }
}

/// As it was built, byte for byte, and nothing else is needed to run it.
fn is_static(processor: &Processor, program: &Path, built: &Path) {
    let file = program.to_str().unwrap();
    let header = run("readelf", &["--file-header", file]);
    let machine = header
        .lines()
        .find_map(|line| line.trim().strip_prefix("Machine:"));
    assert_eq!(machine.map(str::trim), Some(processor.machine));
    let parts = run("readelf", &["--program-headers", "--dynamic", "--wide", file]);
    assert!(
        !parts.contains("INTERP") && !parts.contains("(NEEDED)"),
        "{parts}"
    );
    assert_eq!(std::fs::read(program).unwrap(), std::fs::read(built).unwrap());
}
