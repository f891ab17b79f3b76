//! What the process says to whoever looks after it. Decides the form of the lines; never which events there are.

use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Pretty,
    /// For programs: an object.
    Json,
}

impl Format {
    /// As configurations and command lines have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        }
    }
}

/// One line for each event, on standard error; without times where it is for people, since whoever collects the lines adds
/// them. Level from `PENSTOCK_LOG`, such as `debug` or `info,proxy=debug`; the engine inherits it.
pub fn start(format: Format) -> anyhow::Result<()> {
    // Pingora logs a line per start of each service, and an error for every client that leaves.
    let default = "info,pingora=warn,pingora_core=warn";
    let filter = std::env::var("PENSTOCK_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("PENSTOCK_LOG=`{filter}`"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Pretty => lines.without_time().init(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init()
        }
    }
    Ok(())
}
