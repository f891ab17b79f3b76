//! The two texts in which Prometheus takes metrics: OpenMetrics 1.0, and its own format 0.0.4, which is older and which everything
//! reads. Decides who gets which, and what of the one is not in the other; what the metrics are, `metrics.rs` says.
//!
//! prometheus-client writes OpenMetrics alone. So what it writes is changed line by line as it comes, where it stands: no
//! exemplars, no units and no end, and a counter is declared by the name that its samples have.

use crate::compression::{weight, words};
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
    /// What an answer to a request with these headers is: OpenMetrics for whoever names it and does not want it less than plain text,
    /// as Prometheus does. Whoever takes anything, such as `curl`, gets what every reader of metrics understands, as from
    /// Prometheus' own libraries.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Self {
        let (mut open, mut plain) = (0, 0);
        for word in words(headers, &header::ACCEPT) {
            let (name, parameters) = word.split_once(';').unwrap_or((word, ""));
            let weight = weight(parameters);
            if name.trim().eq_ignore_ascii_case("application/openmetrics-text") {
                open = weight.max(open);
            } else if name.trim().eq_ignore_ascii_case("text/plain") {
                plain = weight.max(plain);
            }
        }
        if open > 0 && open >= plain { Self::OpenMetrics } else { Self::Text }
    }

    /// As `Content-Type` has it.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
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

    #[test]
    fn openmetrics_is_for_whoever_names_it_and_anybody_else_gets_plain_text() {
        let of = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            Exposition::of_answer(&headers)
        };
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
        ] {
            assert_eq!(of(accept), Exposition::Text, "{accept}");
        }
        assert_eq!(Exposition::of_answer(&HeaderMap::new()), Exposition::Text);
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
