//! A command line's table (`cli::command_line`) in the words of clap, whose generators make manual pages and
//! completions.

use clap::{Arg, ArgAction, Command};
use powernode_satellite::cli::command_line::{Argument, Definition, Need, Shape};

/// The program of a table.
pub fn command_of(program: &'static Definition) -> Command {
    let command = subcommand_of(program)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true);
    // The options of a program are options of all its commands, too.
    program.arguments.iter().fold(command, |command, option| {
        command.mut_arg(option.name, |argument| argument.global(true))
    })
}

fn subcommand_of(definition: &'static Definition) -> Command {
    let mut command = Command::new(definition.name)
        .about(definition.about)
        .subcommand_required(!definition.commands.is_empty())
        .arg_required_else_help(!definition.commands.is_empty())
        .args(definition.arguments.iter().map(arg_of))
        .subcommands(definition.commands.iter().map(subcommand_of));
    if !definition.details.is_empty() {
        command = command.long_about(format!("{}\n\n{}", definition.about, definition.details));
    }
    if !definition.closing.is_empty() {
        command = command.after_help(definition.closing);
    }
    command
}

fn arg_of(argument: &'static Argument) -> Arg {
    let arg = Arg::new(argument.name)
        .help(argument.help)
        .conflicts_with_all(argument.not_with);
    let arg = match argument.shape {
        Shape::Flag => arg.long(argument.name).action(ArgAction::SetTrue),
        Shape::Value(value) => arg.long(argument.name).value_name(value),
        Shape::Repeated(value) => arg
            .long(argument.name)
            .value_name(value)
            .action(ArgAction::Append),
        Shape::List(value) => arg
            .long(argument.name)
            .value_name(value)
            .action(ArgAction::Append)
            .value_delimiter(','),
        Shape::Word(value) => arg.value_name(value),
    };
    match argument.need {
        Need::Optional => arg,
        Need::Required => arg.required(true),
        Need::RequiredUnless(other) => arg.required_unless_present(other),
        Need::Default(text) => arg.default_value(text),
    }
}
