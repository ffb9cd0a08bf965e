//! What a person sees: aligned tables, colours, relative times. What a script sees is `--json`.
//! Knows strings and times alone, nothing of peers or tunnels.

use std::cmp::Ordering;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use serde_json::Value;

use crate::base::time::UnixTime;

/// How a cell is coloured where colours are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As the terminal has it.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Somebody should look.
    Warn,
    /// It does not work.
    Bad,
    /// Of less interest.
    Faint,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\u{1b}[32m",
            Self::Warn => "\u{1b}[33m",
            Self::Bad => "\u{1b}[31m",
            Self::Faint => "\u{1b}[2m",
        }
    }
}

const RESET: &str = "\u{1b}[0m";

/// One cell of a table or value of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub fn toned(text: impl fmt::Display, tone: Tone) -> Self {
        Self {
            text: visible(&text.to_string()),
            tone,
        }
    }
}

impl<T: fmt::Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Names and reasons come from other sides: nothing of them may move the cursor.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Whether to colour what goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// Without colours.
    pub const PLAIN: Self = Self { colours: false };

    /// With colours.
    pub const COLOURED: Self = Self { colours: true };

    /// Colours on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub fn of_stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colours: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    fn paint(self, out: &mut String, cell: &Cell) {
        if self.colours && cell.tone != Tone::Plain {
            out.push_str(cell.tone.code());
            out.push_str(&cell.text);
            out.push_str(RESET);
        } else {
            out.push_str(&cell.text);
        }
    }
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    headings: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            headings: headings
                .iter()
                .map(|heading| Cell::toned(heading, Tone::Faint))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// One more row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The text, one line per row, without trailing blanks.
    pub fn render(&self, style: Style) -> String {
        let lines: Vec<&[Cell]> = std::iter::once(self.headings.as_slice())
            .chain(self.rows.iter().map(Vec::as_slice))
            .collect();
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = lines.iter().filter_map(|line| line.get(column));
                cells.map(|cell| width(&cell.text)).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for line in lines {
            let last = line.iter().rposition(|cell| !cell.text.is_empty());
            for (column, cell) in line.iter().enumerate() {
                style.paint(&mut out, cell);
                match last {
                    Some(last) if column < last => {
                        let wide = widths.get(column).copied().unwrap_or(0);
                        let fill = wide.saturating_sub(width(&cell.text)) + COLUMN_GAP;
                        out.extend(std::iter::repeat_n(' ', fill));
                    }
                    _ => break,
                }
            }
            out.push('\n');
        }
        out
    }
}

/// Blanks between two columns.
const COLUMN_GAP: usize = 2;

/// Names and values, one pair per line, values aligned. Pairs without a value are left out.
pub fn render_pairs(pairs: &[(&str, Option<Cell>)], style: Style) -> String {
    let shown: Vec<_> = pairs
        .iter()
        .filter_map(|(name, cell)| cell.as_ref().map(|cell| (*name, cell)))
        .collect();
    let widest = shown.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let mut out = String::new();
    for (name, cell) in shown {
        style.paint(&mut out, &Cell::toned(name, Tone::Faint));
        out.extend(std::iter::repeat_n(' ', widest - width(name) + COLUMN_GAP));
        style.paint(&mut out, cell);
        out.push('\n');
    }
    out
}

/// Columns that a text takes. Wide scripts take two per character; the rest one.
fn width(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x0300..=0x036f => 0,
            0x1100..=0x115f
            | 0x2e80..=0xa4cf
            | 0xac00..=0xd7a3
            | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f
            | 0xff00..=0xff60
            | 0xffe0..=0xffe6
            | 0x1f300..=0x1faff
            | 0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

/// A span as people say it: `42s`, `3m`, `5h`, `2d`.
pub fn short_duration(span: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match span.as_secs() {
        seconds @ 0..MINUTE => format!("{seconds}s"),
        seconds @ MINUTE..HOUR => format!("{}m", seconds / MINUTE),
        seconds @ HOUR..DAY => format!("{}h", seconds / HOUR),
        seconds => format!("{}d", seconds / DAY),
    }
}

/// `42s ago`, `in 3d`, `now`.
pub fn relative_time(time: UnixTime, now: UnixTime) -> String {
    match time.cmp(&now) {
        Ordering::Greater => format!("in {}", short_duration(time.since(now))),
        Ordering::Equal => "now".to_owned(),
        Ordering::Less => format!("{} ago", short_duration(now.since(time))),
    }
}

/// A time of the contract's JSON, relative; `never` when there is none, the text itself when it
/// is no time.
pub fn relative_time_of(value: &Value, now: UnixTime) -> String {
    match value.as_str() {
        None => "never".to_owned(),
        Some(text) => text
            .parse()
            .map_or_else(|_| text.to_owned(), |time| relative_time(time, now)),
    }
}

/// What a command says that needs the state key and finds none.
pub const NO_STATE_KEY: &str =
    "there is no state key; name its file with --state-key-file, the one that the state is sealed with";

/// What was done to a state whose seals were to be taken off.
pub const fn unsealed(was_sealed: bool) -> &'static str {
    if was_sealed {
        "the state is not sealed any more\nTake the key away before the next start, or put a new one in its place: \
         with a key it is sealed again.\n"
    } else {
        "the state was not sealed; nothing was changed\n"
    }
}

/// Whether private keys are sealed, in words.
pub const fn sealing(sealed: bool) -> &'static str {
    if sealed {
        "sealed with the state key"
    } else {
        "not sealed"
    }
}

/// Indented JSON and a line feed, for `--json`.
pub fn render_json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Characters in a line of help: the terminal's, but no longer than eyes find back from.
pub fn width_of_stdout() -> usize {
    const LONGEST: usize = 100;
    let terminal = rustix::termios::tcgetwinsize(io::stdout());
    match terminal.map(|size| usize::from(size.ws_col)) {
        Ok(columns) if columns > 0 => columns.min(LONGEST),
        _ => LONGEST,
    }
}

/// Says on standard error what is no failure and should be known.
pub fn warn(what: impl fmt::Display) {
    // A closed standard error cannot be told.
    let _ = writeln!(io::stderr(), "warning: {what}");
}

/// The same of each.
pub fn warn_of_all(all: &[impl fmt::Display]) {
    all.iter().for_each(warn);
}

/// Writes to standard output. A reader that has gone away, as `head` does, is no failure.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "STATUS", "SEEN"]);
        table.row(vec![
            "shop-17".into(),
            Cell::toned("active", Tone::Good),
            "42s ago".into(),
        ]);
        table.row(vec![
            "東京".into(),
            Cell::toned("degraded", Tone::Warn),
            "".into(),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(
            table().render(Style::PLAIN),
            "NAME     STATUS    SEEN\nshop-17  active    42s ago\n東京     degraded\n"
        );
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = table().render(Style::COLOURED);
        assert!(coloured.contains("\u{1b}[33mdegraded\u{1b}[0m"));
        let mut stripped = coloured;
        for code in [RESET, "\u{1b}[2m", "\u{1b}[32m", "\u{1b}[33m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, table().render(Style::PLAIN));
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec!["a\u{1b}[2Jb\n".into()]);
        assert_eq!(table.render(Style::PLAIN), "NAME\na [2Jb \n");
    }

    #[test]
    fn times_as_people_say_them() {
        let now = UnixTime::from_seconds(1_000_000);
        let at = |seconds: i64| relative_time(UnixTime::from_seconds(1_000_000 - seconds), now);
        assert_eq!(
            [at(0), at(42), at(60), at(7_199), at(86_400 * 3), at(-90)],
            ["now", "42s ago", "1m ago", "1h ago", "3d ago", "in 1m"]
        );
        assert_eq!(relative_time_of(&json!(null), now), "never");
        assert_eq!(relative_time_of(&json!("soon"), now), "soon");
        assert_eq!(relative_time_of(&json!("1970-01-12T13:46:39Z"), now), "1s ago");
    }

    #[test]
    fn pairs_without_a_value_are_left_out() {
        let pairs = [
            ("status", Some("active".into())),
            ("reason", None),
            ("id", Some("x".into())),
        ];
        assert_eq!(render_pairs(&pairs, Style::PLAIN), "status  active\nid      x\n");
    }
}
