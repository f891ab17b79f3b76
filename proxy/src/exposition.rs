//! The two texts in which Prometheus takes metrics: OpenMetrics 1.0, and its own format 0.0.4, which is older and which everything
//! reads. Decides who gets which, and what of the one is not in the other; what the metrics are, `metrics.rs` says.
//!
//! prometheus-client writes OpenMetrics alone. So what it writes is changed line by line as it comes, where it stands: no
//! exemplars, no units and no end, and a counter is declared by the name that its samples have.

use crate::compression::{parameter, weight, words};
use http::{HeaderMap, header};
use memchr::{memchr, memchr2};
use std::fmt::{self, Write};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// With examples of traces.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Exposition {
    /// What an answer to a request with these headers is: OpenMetrics for whoever wants it more than plain text, or names it and wants
    /// it as much, as Prometheus does. Whoever takes anything, such as `curl`, gets what every reader of metrics understands, as from
    /// Prometheus' own libraries; so does who takes neither, which is better than nothing (RFC 9110, 12.5.1).
    pub(crate) fn of_answer(headers: &HeaderMap) -> Self {
        let ranges: Vec<_> = words(headers, &header::ACCEPT).filter_map(Range::parse).collect();
        let (open, plain) = (Wanted::of(&ranges, Self::OpenMetrics), Wanted::of(&ranges, Self::Text));
        let is_preferred = open.weight > plain.weight || open.weight == plain.weight && open.is_named;
        if open.weight > 0 && is_preferred { Self::OpenMetrics } else { Self::Text }
    }

    /// As `Content-Type` has it.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A range of media types that a client takes, and how much it wants them.
struct Range<'h> {
    kind: &'h str,
    name: &'h str,
    version: Option<&'h str>,
    weight: u16,
}

impl<'h> Range<'h> {
    /// `None` of what is no range: nothing is meant by it.
    fn parse(word: &'h str) -> Option<Self> {
        let (types, parameters) = word.split_once(';').unwrap_or((word, ""));
        let (kind, name) = types.trim().split_once('/')?;
        Some(Self { kind, name, version: parameter(parameters, "version"), weight: weight(parameters) })
    }

    /// How closely it describes a form, from `*/*` to one that says its version; `None` if that is not in it. Of parameters only the
    /// version tells two forms apart: others, such as `escaping`, are wishes.
    fn precision(&self, form: Exposition) -> Option<u8> {
        let (kind, name, version) = match form {
            Exposition::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
            Exposition::Text => ("text", "plain", "0.0.4"),
        };
        let is_kind = self.kind.eq_ignore_ascii_case(kind);
        let is_name = is_kind && self.name.eq_ignore_ascii_case(name);
        match (self.kind, self.name, self.version) {
            ("*", "*", _) => Some(0),
            (_, "*", _) if is_kind => Some(1),
            (_, _, None) if is_name => Some(2),
            (_, _, Some(asked)) if is_name && asked == version => Some(3),
            _ => None,
        }
    }
}

/// How much a client wants a form: what the range says that describes it most closely.
#[derive(Default)]
struct Wanted {
    weight: u16,
    /// By more than a wildcard.
    is_named: bool,
}

impl Wanted {
    fn of(ranges: &[Range<'_>], form: Exposition) -> Self {
        let described = ranges.iter().filter_map(|range| Some((range.precision(form)?, range.weight)));
        let closest = described.max(); // of two that are as close, the one that wants it more
        closest.map_or_else(Self::default, |(precision, weight)| Self { weight, is_named: precision >= 2 })
    }
}

/// Takes OpenMetrics in pieces and keeps it as text 0.0.4.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    text: String,
    /// Where the line begins that has not ended yet.
    line: usize,
    /// Where the name ends that was explained last.
    explained: usize,
}

impl Plain {
    /// All lines that have ended.
    pub(crate) fn finish(mut self) -> String {
        self.text.truncate(self.line);
        self.text
    }

    fn end_line(&mut self, end: usize) {
        let start = self.line;
        let line = &self.text[start..end];
        let mut next = end + 1;
        if let Some(said) = line.strip_prefix("# HELP ") {
            self.explained = end - said.len() + word(said).len();
        } else if let Some(said) = line.strip_prefix("# TYPE ") {
            let (declared, kind) = (end - said.len() + word(said).len(), &said[word(said).len()..]);
            if kind == " counter" {
                for at in [declared, self.explained] {
                    self.text.insert_str(at, TOTAL);
                    next += TOTAL.len();
                }
            } else if kind == " unknown" {
                self.text.replace_range(declared..end, " untyped"); // as many letters
            }
        } else if line.starts_with('#') {
            self.text.replace_range(start..next, ""); // a unit, or the end
            next = start;
        } else if memchr(b'#', line.as_bytes()).is_some() {
            let labels = labels(line);
            if let Some(value) = line[labels..].find(" # ") {
                self.text.replace_range(start + labels + value..end, "");
                next = start + labels + value + 1;
            }
        }
        self.line = next;
    }
}

/// What the name of a counter ends in.
const TOTAL: &str = "_total";

impl Write for Plain {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.text.push_str(piece);
        if piece.ends_with('\n') {
            while let Some(length) = memchr(b'\n', &self.text.as_bytes()[self.line..]) {
                self.end_line(self.line + length);
            }
        }
        Ok(())
    }
}

fn word(text: &str) -> &str {
    &text[..memchr(b' ', text.as_bytes()).unwrap_or(text.len())]
}

/// How long name and labels of a sample are. In quotes a label may hold anything.
fn labels(sample: &str) -> usize {
    let bytes = sample.as_bytes();
    let Some(open) = memchr2(b'{', b' ', bytes).filter(|at| bytes[*at] == b'{') else { return 0 };
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'}' if !is_quoted => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &str) -> Exposition {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Exposition::of_answer(&headers)
    }

    #[test]
    fn openmetrics_is_for_whoever_names_it_and_anybody_else_gets_plain_text() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [prometheus, "Application/OpenMetrics-Text", "text/plain, application/openmetrics-text"]
        {
            assert_eq!(of(accept), Exposition::OpenMetrics, "{accept}");
        }
        for accept in [
            "*/*",
            "text/plain;version=0.0.4",
            "application/openmetrics-text;q=0, */*",
            "text/plain, application/openmetrics-text;q=0.5",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "image/png",
            "nonsense, ;;, /",
        ] {
            assert_eq!(of(accept), Exposition::Text, "{accept}");
        }
        assert_eq!(Exposition::of_answer(&HeaderMap::new()), Exposition::Text);
    }

    #[test]
    fn how_much_a_form_is_wanted_says_the_range_that_describes_it_most_closely() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            prometheus_3,
            "application/openmetrics-text ; version=\"1.0.0\" ; q=0.1",
            "*/*, application/openmetrics-text",
            "application/*",
            "application/*;q=0.9, text/*;q=0.5",
            "text/plain;q=0, */*",
            "text/*;q=0.4, */*;q=0.5",
        ] {
            assert_eq!(of(accept), Exposition::OpenMetrics, "{accept}");
        }
        for accept in [
            "text/*",
            "application/*, text/*",
            "application/openmetrics-text;q=0.2, application/*, text/plain;q=0.3",
            "application/openmetrics-text;version=1.0.0;q=0.2, application/openmetrics-text, text/*;q=0.3",
            "application/openmetrics-text;version=0.0.1",
            "*/*;q=0",
        ] {
            assert_eq!(of(accept), Exposition::Text, "{accept}");
        }
    }

    const OPEN: &str = r#"# HELP a_b_seconds How long.
# TYPE a_b_seconds histogram
# UNIT a_b_seconds seconds
a_b_seconds_sum{m="x"} 0.5
a_b_seconds_bucket{le="+Inf",m="x"} 1 # {trace_id="0af7"} 0.5 1.5
# HELP c How # often.
# TYPE c counter
c_total{m="a } # {\" \\"} 2
c_total 3 # {trace_id="1"} 1
# HELP u What.
# TYPE u unknown
u{m="\\"} 1
# HELP g Else.
# TYPE g gauge
g 1
# EOF
"#;

    const TEXT: &str = r#"# HELP a_b_seconds How long.
# TYPE a_b_seconds histogram
a_b_seconds_sum{m="x"} 0.5
a_b_seconds_bucket{le="+Inf",m="x"} 1
# HELP c_total How # often.
# TYPE c_total counter
c_total{m="a } # {\" \\"} 2
c_total 3
# HELP u What.
# TYPE u untyped
u{m="\\"} 1
# HELP g Else.
# TYPE g gauge
g 1
"#;

    #[test]
    fn plain_text_has_no_exemplars_units_or_end_and_declares_counters_by_the_names_of_their_samples() {
        for at_once in [1, 3, 7, OPEN.len()] {
            let mut plain = Plain::default();
            let pieces = OPEN.as_bytes().chunks(at_once).map(|piece| std::str::from_utf8(piece).unwrap());
            pieces.for_each(|piece| plain.write_str(piece).unwrap());
            assert_eq!(plain.finish(), TEXT, "{at_once} bytes at once");
        }
    }
}
