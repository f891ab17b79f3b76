//! What the process says to whoever looks after it. Decides which events that is; how they are written, [`event_log`] does.

use anyhow::Context;
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

/// Level from `PENSTOCK_LOG`, such as `debug` or `info,proxy=debug`; the engine inherits it.
pub fn start(format: Format) -> anyhow::Result<()> {
    // Pingora logs a line per start of each service, and an error for every client that leaves.
    // Who names it hears it.
    let quiet = "pingora=warn,pingora_core=warn,pingora_core::apps=off";
    let asked = std::env::var("PENSTOCK_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(format!("{quiet},{asked}"));
    let filter = filter.with_context(|| format!("PENSTOCK_LOG=`{asked}`"))?;
    event_log::start(filter, format == Format::Json);
    Ok(())
}
