//! The text in which Prometheus reads metrics (exposition format 0.0.4). Knows no metric of either program.

use std::fmt::Write as _;

/// Content type of the text.
pub const EXPOSITION_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a number moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only up, from 0 at the start of the process. Its name ends with `_total`.
    Counter,
    /// Up and down.
    Gauge,
}

impl MetricKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// The text as it is written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a metric. All samples of a metric stand together, so each is begun once.
    pub fn metric(&mut self, kind: MetricKind, name: &'static str, help: &'static str) -> Samples<'_> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
        Samples {
            text: &mut self.text,
            name,
        }
    }

    /// A metric that only grows, without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.metric(MetricKind::Counter, name, help).sample(&[], value);
    }

    /// A metric that goes up and down, without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.metric(MetricKind::Gauge, name, help).sample(&[], value);
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Takes the samples of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    /// One sample. Label names are the program's own; values may be anything.
    pub fn sample(&mut self, labels: &[(&'static str, &str)], value: u64) {
        self.text.push_str(self.name);
        for (at, (label, content)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            push_escaped(self.text, content);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, " {value}");
    }
}

fn push_escaped(text: &mut String, content: &str) {
    for character in content.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_as_the_format_says() {
        let mut exposition = Exposition::new();
        exposition.gauge("box_temperature_celsius", "How warm it is.", 21);
        let mut doors = exposition.metric(
            MetricKind::Counter,
            "box_openings_total",
            "How often it was opened.",
        );
        doors.sample(&[("door", "front"), ("by", "a\\b\"c\nd")], 3);
        doors.sample(&[("door", "back"), ("by", "")], u64::MAX);
        assert_eq!(
            exposition.into_text(),
            "# HELP box_temperature_celsius How warm it is.\n\
             # TYPE box_temperature_celsius gauge\n\
             box_temperature_celsius 21\n\
             # HELP box_openings_total How often it was opened.\n\
             # TYPE box_openings_total counter\n\
             box_openings_total{door=\"front\",by=\"a\\\\b\\\"c\\nd\"} 3\n\
             box_openings_total{door=\"back\",by=\"\"} 18446744073709551615\n"
        );
    }

    proptest! {
        #[test]
        fn no_label_value_breaks_out_of_its_line(content in any::<String>()) {
            let mut exposition = Exposition::new();
            exposition
                .metric(MetricKind::Gauge, "a", "b")
                .sample(&[("label", &content)], 1);
            let text = exposition.into_text();
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines.len(), 4);
            let inside = lines[2]
                .strip_prefix("a{label=\"")
                .and_then(|rest| rest.strip_suffix("\"} 1"));
            prop_assert!(inside.is_some());
            let unescaped = inside.unwrap_or_default().replace("\\\\", "\0").replace("\\\"", "");
            prop_assert!(!unescaped.contains('"'));
        }
    }
}
