//! Entry point of `powernode-satellite`: reads the command line, runs one command, ends with its code.

mod arguments;
mod audit;
mod doctor;
mod emancipate;
mod grants;
mod join;
mod leave;
mod owner;
mod run;
mod self_check;
mod services;
mod state_key;
mod status;

use std::alloc::System;
use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Command, ConfigCommand, StateKeyCommand};
use powernode_satellite::cli::failure::Failure;
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::environment::Environment;
use zeroizing_alloc::ZeroAlloc;

/// Wipes every piece of memory as it is freed. An acceptance token passes through buffers of the HTTP
/// and QUIC libraries, which copy it and know nothing of secrets: without this it would be read in a
/// core file long after it is used up.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(failure) => failure.report("powernode-satellite"),
    }
}

fn dispatch(arguments: Arguments) -> Result<ExitCode, Failure> {
    let environment = Environment::of_process();
    if let Command::Version = arguments.command {
        output::print(concat!("powernode-satellite ", env!("CARGO_PKG_VERSION"), "\n"))
            .map_err(Failure::failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let flags = arguments.flags();
    let file = arguments.config_file();
    if let Command::SelfCheck { json } = arguments.command {
        return self_check::self_check(&file, &flags, &environment, json);
    }
    let (config, settings) = SatelliteConfig::load(&file, &flags, &environment).map_err(Failure::usage)?;
    match arguments.command {
        Command::Run => run::run(config, &environment, (file, flags)),
        Command::Join(join) => join::join(&config, &join),
        Command::Rejoin(rejoin) => join::rejoin(&config, &rejoin),
        Command::Status { json } => status::status(&config, json),
        Command::Doctor { json } => doctor::doctor(&config, json),
        Command::Leave(leaving) => leave::leave(&config, &leaving),
        Command::Grants { command } => grants::grants(&config, &command),
        Command::Emancipate(asked) => emancipate::emancipate(&config, &asked),
        Command::Services { command } => services::services(&config, &command),
        Command::Audit { command } => audit::audit(&config, &command),
        Command::StateKey {
            command: StateKeyCommand::Unseal,
        } => state_key::unseal(&config),
        Command::Config {
            command: ConfigCommand::Check,
        } => {
            output::print("the configuration is good\n").map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config {
            command: ConfigCommand::Show,
        } => {
            output::print(&settings.to_string()).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::SelfCheck { .. } | Command::Version => Ok(ExitCode::SUCCESS),
    }
}
