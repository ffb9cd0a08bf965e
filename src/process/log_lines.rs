//! Log lines on standard error: one JSON object each, or text for people. Knows nothing of levels to
//! filter by, and nothing of the journal.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::clock;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One JSON object per line.
    Json,
    /// For people.
    Plain,
    /// The same, coloured.
    Coloured,
}

/// Writes the lines.
pub(super) struct Lines(pub(super) Form);

/// What a span's lines have of its fields, in the form of the lines.
struct SpanFields(String);

const BOLD: &str = "\u{1b}[1m";
const DIM: &str = "\u{1b}[2m";
const ITALIC: &str = "\u{1b}[3m";
const RESET: &str = "\u{1b}[0m";

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut text = String::new();
            attributes.record(&mut Fields::new(self.0, &mut text));
            span.extensions_mut().insert(SpanFields(text));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(SpanFields(text)) = span.extensions_mut().get_mut()
        {
            values.record(&mut Fields::new(self.0, text));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut spans = Vec::new();
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            let text = extensions.get().map_or("", |SpanFields(text)| text.as_str());
            spans.push((span.name(), text.to_owned()));
        }
        spans.reverse();
        let mut fields = String::new();
        event.record(&mut Fields::new(self.0, &mut fields));
        let metadata = event.metadata();
        let line = match self.0 {
            Form::Json => json(*metadata.level(), metadata.target(), &fields, &spans),
            Form::Plain => human(*metadata.level(), &fields, &spans, |_, text| text.to_owned()),
            Form::Coloured => human(*metadata.level(), &fields, &spans, |code, text| {
                format!("{code}{text}{RESET}")
            }),
        };
        // In one write, so that lines of several threads do not mix. A closed standard error must not take
        // the daemon with it: nothing is said about failed writes.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn json(level: Level, target: &str, fields: &str, spans: &[(&'static str, String)]) -> String {
    let mut line = format!("{{\"timestamp\":\"{}\",\"level\":\"{level}\"", clock::log_time());
    if !fields.is_empty() {
        line.extend([",", fields]);
    }
    line += ",\"target\":";
    quote(&mut line, target);
    for (index, (name, text)) in spans.iter().enumerate() {
        line += if index == 0 { ",\"spans\":[{" } else { ",{" };
        line += text;
        line += if text.is_empty() {
            "\"name\":"
        } else {
            ",\"name\":"
        };
        quote(&mut line, name);
        line += if index + 1 == spans.len() { "}]" } else { "}" };
    }
    line + "}\n"
}

fn human(
    level: Level,
    fields: &str,
    spans: &[(&'static str, String)],
    painted: impl Fn(&str, &str) -> String,
) -> String {
    let colour = match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        _ => "\u{1b}[35m",
    };
    let time = painted(DIM, &clock::log_time());
    let mut line = format!("{time} {} ", painted(colour, &format!("{level:>5}")));
    for (name, text) in spans {
        line += &painted(BOLD, name);
        if !text.is_empty() {
            line += &painted(BOLD, "{");
            line += text;
            line += &painted(BOLD, "}");
        }
        line += &painted(DIM, ":");
    }
    if !spans.is_empty() {
        line.push(' ');
    }
    line + fields + "\n"
}

/// Appends fields to a text.
struct Fields<'t> {
    form: Form,
    text: &'t mut String,
}

impl<'t> Fields<'t> {
    const fn new(form: Form, text: &'t mut String) -> Self {
        Self { form, text }
    }

    /// The name of a field, and what stands between it and its value; nothing before a message for people.
    fn begin(&mut self, field: &Field) {
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        let first = self.text.is_empty();
        match self.form {
            Form::Json => {
                if !first {
                    self.text.push(',');
                }
                quote(self.text, name);
                self.text.push(':');
            }
            Form::Plain | Form::Coloured => {
                if !first {
                    self.text.push(' ');
                }
                if name == MESSAGE {
                    return;
                }
                if self.form == Form::Plain {
                    self.text.extend([name, "="]);
                } else {
                    self.text.extend([ITALIC, name, RESET, DIM, "=", RESET]);
                }
            }
        }
    }

    /// A value that JSON knows as it is shown.
    fn bare(&mut self, field: &Field, value: &dyn fmt::Display) {
        self.begin(field);
        // A string takes whatever is written.
        let _ = write!(self.text, "{value}");
    }
}

/// The field with the text of an event.
const MESSAGE: &str = "message";

impl Visit for Fields<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.begin(field);
        match self.form {
            Form::Json => quote(self.text, value),
            _ if field.name() == MESSAGE => visible(self.text, value),
            _ => visible(self.text, &format!("{value:?}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let shown = format!("{value:?}");
        match self.form {
            Form::Json => quote(self.text, &shown),
            Form::Plain | Form::Coloured if field.name() == MESSAGE => visible(self.text, &shown),
            // A message is this program's own; what else is told may be another's, and is one line.
            Form::Plain | Form::Coloured => visible(self.text, &shown.replace('\n', "\\n")),
        }
    }
}

/// As a JSON string.
fn quote(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            ..' ' => {
                let _ = write!(text, "\\u{:04x}", u32::from(letter));
            }
            _ => text.push(letter),
        }
    }
    text.push('"');
}

/// What other sides have sent may not move the cursor or colour the terminal of who reads it.
fn visible(text: &mut String, value: &str) {
    for letter in value.chars() {
        if letter.is_control() && !matches!(letter, '\n' | '\t') {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn any_text_is_a_json_string() {
        for text in [
            "",
            "plain",
            "\"quoted\\\" \n\r\t\u{0}\u{1f}\u{7f}",
            "ä\u{2028}\u{1f600}",
        ] {
            let mut quoted = String::new();
            quote(&mut quoted, text);
            assert_eq!(serde_json::from_str::<Value>(&quoted).unwrap(), text);
        }
    }

    #[test]
    fn a_line_is_a_json_object_with_its_spans_from_the_outermost() {
        let spans = [
            ("task", r#""task":"tunnel""#.to_owned()),
            ("stream", String::new()),
        ];
        let line = json(Level::WARN, "a::b", r#""message":"over","count":3"#, &spans);
        let told: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(told["level"], "WARN");
        assert_eq!(told["message"], "over");
        assert_eq!(told["count"], 3);
        assert_eq!(told["target"], "a::b");
        assert_eq!(
            told["spans"],
            serde_json::json!([{"task": "tunnel", "name": "task"}, {"name": "stream"}])
        );
        assert!(line.ends_with("}\n") && line.lines().count() == 1);
        let bare: Value = serde_json::from_str(&json(Level::INFO, "a", "", &[])).unwrap();
        assert!(bare.get("spans").is_none());
    }

    #[test]
    fn a_line_for_people_says_where_and_what() {
        let spans = [("task", "task=\"tunnel\"".to_owned()), ("stream", String::new())];
        let plain = human(Level::INFO, "over count=3", &spans, |_, text| text.to_owned());
        let (time, rest) = plain.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('.'), "{time}");
        assert_eq!(rest, " INFO task{task=\"tunnel\"}:stream: over count=3\n");
        let coloured = human(Level::ERROR, "over", &[], |code, text| {
            format!("{code}{text}{RESET}")
        });
        assert!(
            coloured.ends_with("\u{1b}[31mERROR\u{1b}[0m over\n"),
            "{coloured:?}"
        );
    }

    #[test]
    fn nothing_that_was_sent_moves_the_cursor() {
        let mut text = String::new();
        visible(&mut text, "a\u{1b}[2Jb\u{9b}\u{7}c\nd");
        assert_eq!(text, "a\\u{1b}[2Jb\\u{9b}\\u{7}c\nd");
    }

    #[test]
    fn fields_are_told_by_name_in_their_kinds() {
        use tracing_subscriber::layer::SubscriberExt as _;

        /// Keeps what [`Fields`] makes of each event.
        #[derive(Clone, Default)]
        struct Kept(std::sync::Arc<std::sync::Mutex<Vec<[String; 3]>>>);
        impl<S: Subscriber> Layer<S> for Kept {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let texts = [Form::Json, Form::Plain, Form::Coloured].map(|form| {
                    let mut text = String::new();
                    event.record(&mut Fields::new(form, &mut text));
                    text
                });
                self.0.lock().unwrap().push(texts);
            }
        }
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(kept.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(name = "x", number = -3, yes = true, shown = %"a b", r#type = ?Some(1), "over");
            tracing::info!(why = %"gone\n2026-11-30T00:00:00Z  INFO all is well", "two\nlines");
        });
        let all = kept.0.lock().unwrap();
        let [json, plain, coloured] = &all[0];
        let told: Value = serde_json::from_str(&format!("{{{json}}}")).unwrap();
        assert_eq!(
            told,
            serde_json::json!({
                "message": "over", "name": "x", "number": -3, "yes": true, "shown": "a b", "type": "Some(1)"
            })
        );
        for part in [
            "over",
            "name=\"x\"",
            "number=-3",
            "yes=true",
            "shown=a b",
            "type=Some(1)",
        ] {
            assert!(plain.contains(part), "{part}: {plain}");
        }
        assert!(
            !plain.contains("message") && coloured.contains("\u{1b}[3mname\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"x\"")
        );
        let [_, plain, _] = &all[1];
        assert_eq!(
            plain, "two\nlines why=gone\\n2026-11-30T00:00:00Z  INFO all is well",
            "what another has said begins no line"
        );
    }
}
