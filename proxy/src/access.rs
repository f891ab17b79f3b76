//! The access log: one line for each request. Decides which requests leave one, and what it says; how lines are written so
//! that nobody waits for it, [`gathered`] does.

mod gathered;

use crate::log::Format;
use gathered::Gathered;
use rand::Rng;
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

/// What a line says.
#[derive(Debug)]
pub struct Line<'a> {
    /// When the request was over.
    pub time: Moment,
    /// As the client was told it.
    pub request_id: &'a str,
    /// Present when the request is kept as a trace.
    pub trace_id: Option<String>,
    /// HTTP method.
    pub method: &'a str,
    /// Route with placeholders.
    pub route: &'a str,
    /// As it was asked for, where that leads to no version.
    pub path: Option<&'a str>,
    /// HTTP status, 0 if none was sent.
    pub status: u16,
    /// Why there was no answer.
    pub reason: Option<&'a str>,
    /// Which model.
    pub model: Option<&'a str>,
    /// Which version.
    pub version: Option<u64>,
    /// Why that version.
    pub pick: Option<&'a str>,
    /// In whose place.
    pub instead_of: Option<u64>,
    /// Why it was asked once more.
    pub retry: Option<&'a str>,
    /// The policy in force.
    pub generation: u64,
    /// From the end of the head to the end of the answer.
    pub duration: Us,
    /// Of it in the engine's queue.
    pub queue: Option<Us>,
    /// Of it in the model.
    pub run: Option<Us>,
    /// Rows that ran together.
    pub batch_rows: Option<u32>,
    /// Of it at another server that was asked.
    pub remote: Option<Us>,
}

/// Microseconds, written as milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Us(pub u64);

/// In RFC 3339, UTC, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub SystemTime);

thread_local! {
    /// The last moment of this thread and how it is written: many requests end within a millisecond, and a calendar costs as
    /// much as the rest of a line.
    static WRITTEN: RefCell<(u128, String)> = const { RefCell::new((0, String::new())) };
}

impl Moment {
    fn written<T>(self, taken: impl FnOnce(&str) -> T) -> T {
        let ms = self.0.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        WRITTEN.with_borrow_mut(|(of, text)| {
            if *of != ms || text.is_empty() {
                let second =
                    OffsetDateTime::from(SystemTime::UNIX_EPOCH) + Duration::from_secs((ms / 1000) as u64);
                let second = second.format(&Rfc3339).unwrap_or_default();
                *text = format!("{}.{:03}Z", second.trim_end_matches('Z'), ms % 1000);
                *of = ms;
            }
            taken(text)
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written(|text| out.write_str(text))
    }
}

impl fmt::Display for Us {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

thread_local! {
    /// A line before it is with the others: made without holding anybody up, in memory that is there already.
    static TEXT: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(512));
}

impl AccessLog {
    /// Lines go to standard output, which is the collector's on every platform that runs containers.
    pub fn new(config: AccessConfig) -> Self {
        Self { config, lines: Gathered::to(io::stdout(), errors_go_there()) }
    }

    /// Lines go elsewhere, where nobody else writes.
    pub fn to(config: AccessConfig, writer: impl Write + Send + 'static) -> Self {
        Self { config, lines: Gathered::to(writer, false) }
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
                Format::Json => line.in_json(text),
                Format::Pretty => line.in_words(text).expect("a Vec takes any bytes"),
            }
            text.push(b'\n');
            self.lines.take(text);
        });
    }
}

/// Whether standard output and standard error are the same, as with `2>&1`: then our own messages stand between lines.
fn errors_go_there() -> bool {
    let file = |stat: rustix::io::Result<rustix::fs::Stat>| stat.ok().map(|stat| (stat.st_dev, stat.st_ino));
    file(rustix::fs::fstat(io::stdout())) == file(rustix::fs::fstat(io::stderr()))
}

impl Line<'_> {
    /// As an object of JSON, with the fields that have a value. By hand: a serialiser writes each quote and colon by itself, and a
    /// line would take three times as long.
    fn in_json(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"{\"timestamp\":\"");
        self.time.written(|time| text.extend_from_slice(time.as_bytes()));
        text.push(b'"');
        let mut fields = Fields(text);
        fields.text(",\"request_id\":", Some(self.request_id));
        fields.text(",\"trace_id\":", self.trace_id.as_deref());
        fields.text(",\"method\":", Some(self.method));
        fields.text(",\"route\":", Some(self.route));
        fields.text(",\"path\":", self.path);
        fields.number(",\"status\":", Some(self.status.into()));
        fields.text(",\"reason\":", self.reason);
        fields.text(",\"model\":", self.model);
        fields.number(",\"version\":", self.version);
        fields.text(",\"pick\":", self.pick);
        fields.number(",\"instead_of\":", self.instead_of);
        fields.text(",\"retry\":", self.retry);
        fields.number(",\"generation\":", Some(self.generation));
        fields.ms(",\"duration_ms\":", Some(self.duration));
        fields.ms(",\"queue_ms\":", self.queue);
        fields.ms(",\"run_ms\":", self.run);
        fields.number(",\"batch_rows\":", self.batch_rows.map(u64::from));
        fields.ms(",\"remote_ms\":", self.remote);
        text.push(b'}');
    }

    fn in_words(&self, text: &mut Vec<u8>) -> io::Result<()> {
        let Self { time, method, status, duration, request_id, .. } = self;
        let asked = self.path.unwrap_or(self.route);
        write!(text, "{time} {status} {method} {} {duration} ms", asked.escape_debug())?;
        if let (Some(model), Some(version)) = (self.model, self.version) {
            // Whose name may hold anything: as one line, whatever it is.
            write!(text, " {model:?} version {version} ({}", self.pick.unwrap_or("?"))?;
            if let Some(other) = self.instead_of {
                write!(text, " for {other}")?;
            }
            write!(text, ")")?;
        }
        if let Some(why) = self.retry {
            write!(text, ", asked again: {why}")?;
        }
        if let (Some(queue), Some(run), Some(rows)) = (self.queue, self.run, self.batch_rows) {
            write!(text, ", queued {queue} ms, ran {run} ms in a batch of {rows}")?;
        }
        if let Some(remote) = self.remote {
            write!(text, ", {remote} ms at another server")?;
        }
        if let Some(reason) = self.reason {
            write!(text, ", refused: {reason}")?;
        }
        write!(text, " [{request_id}]")
    }
}

/// Fields of an object, each with what stands before its value.
struct Fields<'t>(&'t mut Vec<u8>);

impl Fields<'_> {
    fn text(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.0.extend_from_slice(name.as_bytes());
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if value.bytes().all(is_plain) {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        } else {
            serde_json::to_writer(&mut *self.0, value).expect("a Vec takes any bytes");
        }
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn ms(&mut self, name: &str, value: Option<Us>) {
        let Some(Us(us)) = value else { return };
        self.number(name, Some(us / 1000));
        let digit = |place: u64| b'0' + (us / place % 10) as u8;
        self.0.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
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
            path: Some("/v2/models/a \"b\"\nc/infer"),
            status: 503,
            reason: Some("overloaded"),
            model: Some("a \"b\"\nc"),
            version: Some(2),
            pick: Some("split"),
            instead_of: None,
            retry: None,
            generation: 1,
            duration: Us(1250),
            queue: None,
            run: None,
            batch_rows: None,
            remote: None,
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
        assert_eq!(value["timestamp"], "2017-07-14T02:40:00.123Z", "{json}");
        assert_eq!(value["duration_ms"], 1.25, "{json}");
        assert!(value.get("queue_ms").is_none(), "{json}");
        let pretty = written(Format::Pretty, line());
        assert_eq!(pretty.lines().count(), 1, "{pretty}");
        assert!(
            pretty.starts_with("2017-07-14T02:40:00.123Z 503 POST")
                && pretty.contains("refused: overloaded [r1]"),
            "{pretty}"
        );
    }

    #[test]
    fn all_that_is_known_is_said() {
        let trace_id = Some("0af7651916cd43dd8448eb211c80319c".to_owned());
        let ran =
            Line { trace_id, queue: Some(Us(83)), run: Some(Us(1_000_041)), batch_rows: Some(4), ..line() };
        let value: serde_json::Value = serde_json::from_str(&written(Format::Json, ran)).unwrap();
        assert_eq!((&value["queue_ms"], &value["run_ms"]), (&0.083.into(), &1000.041.into()));
        assert_eq!((&value["batch_rows"], &value["status"]), (&4.into(), &503.into()));
        assert_eq!(value.as_object().unwrap().len(), 16, "{value}");
    }

    #[test]
    fn who_was_answered_by_another_version_than_the_chosen_one_is_told_in_whose_place() {
        let line = || Line {
            pick: Some("fallback"),
            instead_of: Some(7),
            retry: Some("unreachable"),
            reason: None,
            ..line()
        };
        let value: serde_json::Value = serde_json::from_str(&written(Format::Json, line())).unwrap();
        assert_eq!((&value["version"], &value["instead_of"]), (&2.into(), &7.into()));
        assert_eq!(value["retry"], "unreachable");
        let pretty = written(Format::Pretty, line());
        assert!(pretty.contains(" version 2 (fallback for 7), asked again: unreachable ["), "{pretty}");
    }

    #[test]
    fn a_moment_is_written_by_its_millisecond_whatever_was_written_before() {
        let at = |us| Moment(SystemTime::UNIX_EPOCH + Duration::from_micros(us)).to_string();
        assert_eq!(
            [at(999), at(1_000), at(1_999), at(0)].map(|text| text[17..].to_owned()),
            ["00.000Z", "00.001Z", "00.001Z", "00.000Z"]
        );
    }

    #[test]
    fn what_was_refused_leaves_a_line_in_any_case() {
        let log = AccessLog::to(AccessConfig { sample: 0.0, format: Format::Json }, Written::default());
        assert!(log.wants(true) && !log.wants(false));
    }
}
