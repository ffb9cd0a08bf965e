//! Shows a table to people: usage in one line, help in as many as it takes.

use super::{Argument, Definition, Need, Shape};

/// The widest first column that the explanations stand beside; wider ones have theirs below.
const COLUMN_MAX: usize = 32;

/// The help of the last of `path`, in lines of at most `width` characters where words allow.
pub fn help(path: &[&'static Definition], width: usize) -> String {
    let [program, ..] = path else {
        return String::new();
    };
    let current = path[path.len() - 1];
    let mut out = wrapped(current.about, 0, width) + "\n";
    if !current.details.is_empty() {
        out += &wrapped(current.details, 0, width);
        out.push('\n');
    }
    out.extend(["Usage: ", &usage(path), "\n"]);
    let commands = current.commands.iter();
    let commands = commands.map(|next| (next.name.to_owned(), next.about.to_owned()));
    out += &section("Commands", &commands.collect::<Vec<_>>(), width);
    let words = current.arguments.iter().filter(|argument| argument.is_word());
    out += &section("Arguments", &words.map(row).collect::<Vec<_>>(), width);
    let of_program: &[Argument] = if path.len() > 1 { program.arguments } else { &[] };
    let options = current.arguments.iter().filter(|argument| !argument.is_word());
    let mut options: Vec<_> = options.chain(of_program).map(row).collect();
    options.push(("-h, --help".to_owned(), "Print help".to_owned()));
    if path.len() == 1 {
        options.push(("-V, --version".to_owned(), "Print version".to_owned()));
    }
    out += &section("Options", &options, width);
    if !current.closing.is_empty() {
        out.push('\n');
        out += &wrapped(current.closing, 0, width);
    }
    out
}

/// How the last of `path` is typed.
pub(super) fn usage(path: &[&'static Definition]) -> String {
    let names: Vec<_> = path.iter().map(|definition| definition.name).collect();
    let mut out = names.join(" ") + " [OPTIONS]";
    let Some(current) = path.last() else {
        return out;
    };
    let needed = current
        .arguments
        .iter()
        .filter(|argument| argument.need == Need::Required && !argument.is_word());
    let words = current.arguments.iter().filter(|argument| argument.is_word());
    for argument in needed.chain(words) {
        out += " ";
        out += &argument.shown();
    }
    if !current.commands.is_empty() {
        out += " <COMMAND>";
    }
    out
}

fn row(argument: &Argument) -> (String, String) {
    let mut help = argument.help.to_owned();
    if let Need::Default(text) = argument.need
        && !text.is_empty()
    {
        help.extend([" [default: ", text, "]"]);
    }
    let indent = if matches!(argument.shape, Shape::Word(_)) {
        ""
    } else {
        "    "
    };
    (format!("{indent}{}", argument.shown()), help)
}

fn section(title: &str, rows: &[(String, String)], width: usize) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let fits = rows
        .iter()
        .map(|(left, _)| left.chars().count())
        .filter(|left| *left <= COLUMN_MAX);
    let column = fits.max().unwrap_or(COLUMN_MAX) + 4;
    let mut out = format!("\n{title}:\n");
    for (left, right) in rows {
        let right = wrapped(right, column, width);
        out.extend(["  ", left]);
        let taken = left.chars().count() + 2;
        if taken + 2 <= column {
            out.extend([&" ".repeat(column - taken), right.trim_start()]);
        } else {
            out.extend(["\n", &right]);
        }
    }
    out
}

/// The words in lines, each after so many spaces; what has line ends keeps them.
fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = " ".repeat(indent);
        let mut length = indent;
        for word in paragraph.split(' ') {
            let letters = word.chars().count();
            if length > indent && length + 1 + letters > width {
                out += &line;
                out.push('\n');
                line = " ".repeat(indent);
                length = indent;
            }
            if length > indent {
                line.push(' ');
                length += 1;
            }
            line += word;
            length += letters;
        }
        out += &line;
        out.push('\n');
    }
    out
}
