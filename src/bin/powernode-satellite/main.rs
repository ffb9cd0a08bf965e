//! Entry point of `powernode-satellite`: reads the command line, runs one command, ends with its code.

mod arguments;
mod audit;
mod authority;
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

use arguments::{Arguments, Asked, Command, ConfigCommand, StateKeyCommand};
use powernode_satellite::cli::command_line::help;
use powernode_satellite::cli::failure::{Code, Failure};
use powernode_satellite::cli::output;
use powernode_satellite::process::config::satellite::SatelliteConfig;
use powernode_satellite::process::config::secret_file::open_to_others;
use powernode_satellite::process::environment::Environment;
use zeroizing_alloc::ZeroAlloc;

/// Wipes every piece of memory as it is freed. An acceptance token passes through buffers of the HTTP
/// and QUIC libraries, which copy it and know nothing of secrets: without this it would be read in a
/// core file long after it is used up.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

const VERSION: &str = concat!("powernode-satellite ", env!("CARGO_PKG_VERSION"), "\n");

fn main() -> ExitCode {
    let done = match Asked::of(std::env::args_os().skip(1)) {
        Ok(Asked::Command(arguments)) => dispatch(*arguments),
        Ok(Asked::Version) => print(VERSION),
        Ok(Asked::Help(path)) => print(&help(&path, output::width_of_stdout())),
        Err(error) => Err(Failure::new(Code::Usage, error.to_string())),
    };
    done.unwrap_or_else(|failure| failure.report("powernode-satellite"))
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    output::print(text).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn dispatch(arguments: Arguments) -> Result<ExitCode, Failure> {
    let environment = Environment::of_process();
    if let Command::Version = arguments.command {
        return print(VERSION);
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
        Command::Grants(command) => grants::grants(&config, &command),
        Command::Authority(command) => authority::authority(&config, command),
        Command::Emancipate(asked) => emancipate::emancipate(&config, &asked),
        Command::Services(command) => services::services(&config, &command),
        Command::Audit(command) => audit::audit(&config, &command),
        Command::StateKey(StateKeyCommand::Unseal) => state_key::unseal(&config),
        Command::Config(ConfigCommand::Check) => {
            output::warn_of_all(&open_to_others(&config.secret_files));
            print("the configuration is good\n")
        }
        Command::Config(ConfigCommand::Show) => print(&settings.to_string()),
        Command::SelfCheck { .. } | Command::Version => Ok(ExitCode::SUCCESS),
    }
}
