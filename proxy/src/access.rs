//! The access log: one line for each request. Decides what a line says and that nobody waits for it: lines go to a thread
//! of their own, and when it does not keep up they are dropped and counted.

use crate::log::Format;
use rand::Rng;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::sync::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait to be written, at most.
const WAITING_MAX: usize = 4 << 10;

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
    lines: NonBlocking,
    /// Taken at the end.
    worker: Mutex<Option<WorkerGuard>>,
}

/// What a line says. Times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When the request was over (RFC 3339, UTC); filled in when it is written.
    pub time: String,
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

impl AccessLog {
    /// Lines go to standard output, which is the collector's on every platform that runs containers.
    pub fn new(config: AccessConfig) -> Self {
        Self::to(config, BufWriter::new(io::stdout()))
    }

    fn to(config: AccessConfig, writer: impl Write + Send + 'static) -> Self {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_MAX);
        let (lines, worker) = builder.thread_name("access-log").finish(writer);
        Self { config, lines, worker: Mutex::new(Some(worker)) }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.lines.error_counter().dropped_lines() as u64
    }

    /// Writes what waits, for as long as the library gives it; for the end of the process.
    pub fn close(&self) {
        self.worker.lock().expect("no panic while held").take();
    }

    /// Whether a request leaves a line.
    pub fn wants(&self, has_reason: bool) -> bool {
        has_reason || self.config.sample >= 1.0 || rand::rng().random::<f64>() < self.config.sample
    }

    /// Writes it; never waits.
    pub fn write(&self, mut line: Line<'_>) {
        let now = OffsetDateTime::now_utc();
        let now = now.replace_millisecond(now.millisecond()).expect("it is its own");
        line.time = now.format(&Rfc3339).expect("a year of four digits");
        let mut text = Vec::with_capacity(384);
        match self.config.format {
            Format::Json => serde_json::to_writer(&mut text, &line).expect("our own types serialise"),
            Format::Pretty => line.in_words(&mut text).expect("a Vec takes any bytes"),
        }
        text.push(b'\n');
        // Dropped lines are counted there.
        let _ = self.lines.clone().write_all(&text);
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
    use std::sync::Arc;

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
        log.write(line);
        drop(log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    fn line() -> Line<'static> {
        Line {
            time: String::new(),
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
        assert!(value["time"].as_str().unwrap().ends_with('Z'), "{json}");
        let pretty = written(Format::Pretty, line());
        assert_eq!(pretty.lines().count(), 1, "{pretty}");
        assert!(pretty.contains("503 POST") && pretty.contains("refused: overloaded [r1]"), "{pretty}");
    }

    #[test]
    fn what_was_refused_leaves_a_line_in_any_case() {
        let log = AccessLog::to(AccessConfig { sample: 0.0, format: Format::Json }, Written::default());
        assert!(log.wants(true) && !log.wants(false));
    }
}
