//! The access log: one line for each request. Decides which requests leave one, and what it says; how lines are written so
//! that nobody waits for it, [`gathered`] does.

mod gathered;

use crate::log::Format;
use gathered::Gathered;
use rand::Rng;
use serde::{Serialize, Serializer};
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Whoever reads the lines has so long to take the last of them.
const LAST_MAX: Duration = Duration::from_secs(1);

/// Which requests leave a line, and in which form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessConfig {
    /// Share of the answered requests, 0 to 1. What was refused or has failed leaves one in any case.
    pub sample: f64,
    /// Of the lines.
    pub format: Format,
}

/// Writes the lines.
#[derive(Debug)]
pub struct AccessLog {
    config: AccessConfig,
    lines: Gathered,
}

/// What a line says. Times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When the request was over.
    pub time: Moment,
    /// As the client was told it.
    pub request_id: &'a str,
    /// Present when the request is kept as a trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// HTTP method.
    pub method: &'a str,
    /// Route with placeholders.
    pub route: &'a str,
    /// HTTP status, 0 if none was sent.
    pub status: u16,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// Which model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// Which version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why that version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pick: Option<&'a str>,
    /// The policy in force.
    pub generation: u64,
    /// From the end of the head to the end of the answer.
    pub duration_ms: f64,
    /// Of it in the engine's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    /// Of it in the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<f64>,
    /// Rows that ran together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_rows: Option<u32>,
}

/// In RFC 3339, UTC, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub SystemTime);

thread_local! {
    /// The last moment of this thread and how it is written: many requests end within a millisecond, and a calendar costs as
    /// much as the rest of a line.
    static WRITTEN: RefCell<(u128, String)> = const { RefCell::new((0, String::new())) };
}

impl fmt::Display for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| fmt::Error)?.as_millis();
        WRITTEN.with_borrow_mut(|(of, text)| {
            if *of != ms || text.is_empty() {
                let time = OffsetDateTime::from(self.0);
                let time = time.replace_millisecond(time.millisecond()).map_err(|_| fmt::Error)?;
                *text = time.format(&Rfc3339).map_err(|_| fmt::Error)?;
                *of = ms;
            }
            out.write_str(text)
        })
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

thread_local! {
    /// A line before it is with the others: made without holding anybody up, in memory that is there already.
    static TEXT: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(512));
}

impl AccessLog {
    /// Lines go to standard output, which is the collector's on every platform that runs containers.
    pub fn new(config: AccessConfig) -> Self {
        Self::to(config, io::stdout())
    }

    /// Lines go elsewhere.
    pub fn to(config: AccessConfig, writer: impl Write + Send + 'static) -> Self {
        Self { config, lines: Gathered::to(writer) }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.lines.dropped()
    }

    /// Writes what waits, unless that is not taken; for the end of the process.
    pub fn close(&self) {
        self.lines.close(LAST_MAX);
    }

    /// Whether a request leaves a line.
    pub fn wants(&self, has_reason: bool) -> bool {
        has_reason || self.config.sample >= 1.0 || rand::rng().random::<f64>() < self.config.sample
    }

    /// Has it written; never waits for that.
    pub fn write(&self, line: &Line<'_>) {
        TEXT.with_borrow_mut(|text| {
            text.clear();
            match self.config.format {
                Format::Json => serde_json::to_writer(&mut *text, line).expect("our own types serialise"),
                Format::Pretty => line.in_words(text).expect("a Vec takes any bytes"),
            }
            text.push(b'\n');
            self.lines.take(text);
        });
    }
}

impl Line<'_> {
    fn in_words(&self, text: &mut Vec<u8>) -> io::Result<()> {
        let Self { time, method, route, status, duration_ms, request_id, .. } = self;
        write!(text, "{time} {status} {method} {route} {duration_ms:.3} ms")?;
        if let (Some(model), Some(version)) = (self.model, self.version) {
            // Whose name may hold anything: as one line, whatever it is.
            write!(text, " {model:?} version {version} ({})", self.pick.unwrap_or("?"))?;
        }
        if let (Some(queue), Some(run), Some(rows)) = (self.queue_ms, self.run_ms, self.batch_rows) {
            write!(text, ", queued {queue:.3} ms, ran {run:.3} ms in a batch of {rows}")?;
        }
        if let Some(reason) = self.reason {
            write!(text, ", refused: {reason}")?;
        }
        write!(text, " [{request_id}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, line: Line<'_>) -> String {
        let written = Written::default();
        let log = AccessLog::to(AccessConfig { sample: 0.0, format }, written.clone());
        log.write(&line);
        log.close();
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    fn line() -> Line<'static> {
        Line {
            time: Moment(SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000_000_123_456)),
            request_id: "r1",
            trace_id: None,
            method: "POST",
            route: "/v2/models/{model}/infer",
            status: 503,
            reason: Some("overloaded"),
            model: Some("a \"b\"\nc"),
            version: Some(2),
            pick: Some("split"),
            generation: 1,
            duration_ms: 1.25,
            queue_ms: None,
            run_ms: None,
            batch_rows: None,
        }
    }

    #[test]
    fn a_line_is_one_line_whatever_names_hold() {
        let json = written(Format::Json, line());
        assert_eq!(json.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (value["model"].as_str(), value["reason"].as_str()),
            (Some("a \"b\"\nc"), Some("overloaded"))
        );
        assert_eq!(value["time"], "2017-07-14T02:40:00.123Z", "{json}");
        let pretty = written(Format::Pretty, line());
        assert_eq!(pretty.lines().count(), 1, "{pretty}");
        assert!(
            pretty.starts_with("2017-07-14T02:40:00.123Z 503 POST")
                && pretty.contains("refused: overloaded [r1]"),
            "{pretty}"
        );
    }

    #[test]
    fn a_moment_is_written_by_its_millisecond_whatever_was_written_before() {
        let at = |us| Moment(SystemTime::UNIX_EPOCH + Duration::from_micros(us)).to_string();
        assert_eq!(
            [at(999), at(1_000), at(1_999), at(0)].map(|text| text[17..].to_owned()),
            ["00Z", "00.001Z", "00.001Z", "00Z"]
        );
    }

    #[test]
    fn what_was_refused_leaves_a_line_in_any_case() {
        let log = AccessLog::to(AccessConfig { sample: 0.0, format: Format::Json }, Written::default());
        assert!(log.wants(true) && !log.wants(false));
    }
}
