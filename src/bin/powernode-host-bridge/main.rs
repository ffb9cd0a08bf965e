//! Entry point of `powernode-host-bridge`: reads the command line, runs one command, ends with its
//! code.

mod arguments;
mod audit;
mod backup;
mod call;
mod commands;
mod complaints;
mod complete;
mod init;
mod packets;
mod reach;
mod run;
mod self_check;
mod show;
mod state_key;

use std::alloc::System;
use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Command, ConfigCommand, StateKeyCommand};
use powernode_satellite::bridge::material;
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::cli::output;
use powernode_satellite::process::config::host_bridge::HostBridgeConfig;
use powernode_satellite::process::config::secret_file::open_to_others;
use powernode_satellite::process::environment::Environment;
use zeroizing_alloc::ZeroAlloc;

/// Wipes every piece of memory as it is freed: tokens pass through buffers of the HTTP and QUIC
/// libraries, which copy them and know nothing of secrets.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

const PROGRAM: &str = "powernode-host-bridge";

fn main() -> ExitCode {
    match dispatch(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(PROGRAM),
    }
}

fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    if let Command::Version = arguments.command {
        return print(concat!("powernode-host-bridge ", env!("CARGO_PKG_VERSION"), "\n"));
    }
    let environment = Environment::of_process();
    let (file, flags) = (arguments.config_file(), arguments.flags());
    if let Command::SelfCheck { json } = arguments.command {
        return self_check::self_check(&file, &flags, &environment, json);
    }
    let (config, settings) = HostBridgeConfig::load(&file, &flags, &environment).map_err(Failure::usage)?;
    match arguments.command {
        Command::Init(init) => init::init(&config, &init),
        Command::Run => run::run(config, &environment, (file, flags)),
        Command::Backup(backup) => backup::back_up(&config, &backup),
        Command::Restore { file } => backup::restore(&config, &file),
        Command::StateKey {
            command: StateKeyCommand::Unseal,
        } => state_key::unseal(&config),
        Command::Config {
            command: ConfigCommand::Check,
        } => {
            material::check(&config).map_err(Failure::usage)?;
            output::warn_of_all(&open_to_others(&config.secret_files));
            print("the configuration is good\n")?;
            match config.parent.platform() {
                Some(platform) if platform.url.is_exposed() => print(&format!(
                    "but tokens and grants go to {} without TLS: use https unless it is on this machine\n",
                    platform.url
                )),
                _ => Ok(()),
            }
        }
        Command::Config {
            command: ConfigCommand::Show,
        } => print(&settings.to_string()),
        Command::SelfCheck { .. } | Command::Version => Ok(()),
        Command::Complete { words } => complete::complete(&config, &words),
        Command::Connect(connect) => reach::connect(&config, &environment, &connect),
        Command::Forward(forward) => reach::forward(&config, &environment, &forward),
        other => commands::execute(&config, other),
    }
}

/// Prints to standard output.
fn print(text: &str) -> Result<(), Failure> {
    output::print(text).map_err(Failure::failed)
}
