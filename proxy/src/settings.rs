//! Triton's trace and log settings: what is configured, in its words. Decides what of it can be changed while the process
//! runs: how many requests are traced, where the configuration allows clients to control anything. What is sent back as it
//! was told changes nothing, and is taken.

use crate::refusal::Refusal;
use crate::trace::Tracer;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;
use utoipa::ToSchema;

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TraceSettings {
    /// `TIMESTAMPS`, or `OFF` where no collector is configured.
    pub trace_level: Vec<&'static str>,
    /// One in so many requests that do not say themselves whether they are traced; 0 for none.
    pub trace_rate: String,
    /// There is no end of it.
    pub trace_count: &'static str,
    /// Spans go to a collector.
    pub trace_mode: &'static str,
}

impl TraceSettings {
    /// As they are at the moment.
    pub fn of(tracer: Option<&Tracer>) -> Self {
        Self {
            trace_level: vec![if tracer.is_some() { "TIMESTAMPS" } else { "OFF" }],
            trace_rate: tracer.map_or(0, |tracer| one_in(tracer.sample())).to_string(),
            trace_count: "-1",
            trace_mode: "opentelemetry",
        }
    }

    /// Does what a body asks for, all of it or nothing.
    pub(crate) fn change(
        asked: &Map<String, Value>,
        tracer: Option<&Tracer>,
        control: bool,
    ) -> Result<(), Refusal> {
        let Some(asked) = changed(asked, &Self::of(tracer))? else { return Ok(()) };
        if let Some((name, _)) = asked.iter().find(|(name, _)| *name != "trace_rate") {
            return Err(fixed(name, "`traces:` in the configuration says it"));
        }
        if !control {
            return Err(Refusal::Forbidden(
                "settings are not changed on request here; `engine: {control: true}` in the configuration allows it"
                    .into(),
            ));
        }
        let Some(tracer) = tracer else {
            return Err(fixed(
                "trace_rate",
                "no collector is configured, see `traces:` in the configuration",
            ));
        };
        for (_, value) in asked {
            let sample = match value {
                Value::Null => None,
                value => Some(share(value).ok_or_else(|| {
                    Refusal::Invalid(format!("trace_rate: {value} is no whole number of at least 0"))
                })?),
            };
            tracer.set_sample(sample);
        }
        Ok(())
    }
}

/// What is logged, to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogSettings {
    /// None.
    pub log_file: &'static str,
    /// Whether what is worth knowing is.
    pub log_info: bool,
    /// Whether what may be wrong is.
    pub log_warning: bool,
    /// Whether what is wrong is.
    pub log_error: bool,
    /// 1 with details for developers, 2 with all of them.
    pub log_verbose_level: u32,
}

impl LogSettings {
    /// As they are, for as long as the process lives.
    pub fn current() -> Self {
        let level = LevelFilter::current();
        Self {
            log_file: "",
            log_info: level >= LevelFilter::INFO,
            log_warning: level >= LevelFilter::WARN,
            log_error: level >= LevelFilter::ERROR,
            log_verbose_level: u32::from(level >= LevelFilter::DEBUG)
                + u32::from(level >= LevelFilter::TRACE),
        }
    }

    /// Does what a body asks for, which is nothing.
    pub(crate) fn change(asked: &Map<String, Value>) -> Result<(), Refusal> {
        match changed(asked, &Self::current())? {
            None => Ok(()),
            Some(asked) => {
                Err(fixed(asked[0].0, "the variable PENSTOCK_LOG says it when the process starts"))
            }
        }
    }
}

/// What is asked to become another value than it has; `None` if that is nothing.
fn changed<'a>(
    asked: &'a Map<String, Value>,
    now: &impl Serialize,
) -> Result<Option<Vec<(&'a str, &'a Value)>>, Refusal> {
    let now = serde_json::to_value(now).expect("our own types serialise");
    let mut changed = Vec::new();
    for (name, value) in asked {
        let Some(now) = now.get(name) else {
            return Err(Refusal::Invalid(format!("there is no setting `{name}` here")));
        };
        // Triton's clients send numbers as texts or as they are, and a list of one, over gRPC, as any other value. Null
        // means the value that is configured.
        let same = value == now
            || now.as_array().is_some_and(|now| *now == [value.clone()])
            || value.as_u64().is_some_and(|value| now.as_str() == Some(&value.to_string()));
        if !same && (!value.is_null() || name == "trace_rate") {
            changed.push((name.as_str(), value));
        }
    }
    Ok((!changed.is_empty()).then_some(changed))
}

fn fixed(name: &str, why: &str) -> Refusal {
    Refusal::Invalid(format!("{name} cannot be changed while the process runs: {why}"))
}

/// The whole number nearest to it.
fn one_in(sample: f64) -> u64 {
    if sample > 0.0 { (1.0 / sample).round() as u64 } else { 0 }
}

/// The inverse.
fn share(rate: &Value) -> Option<f64> {
    let rate = match rate {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    };
    rate.map(|rate| if rate == 0 { 0.0 } else { 1.0 / rate as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Collector, Otlp, SpanCounts};
    use crate::trace::TraceConfig;
    use serde_json::json;

    fn asked(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_rate_changes_where_control_allows_it_and_returns_to_what_is_configured() {
        let config = TraceConfig {
            collector: Collector { endpoint: "http://127.0.0.1:1".into(), protocol: Otlp::Grpc },
            sample: 0.01,
            slow: std::time::Duration::from_secs(1),
        };
        let tracer = Tracer::new(&config, SpanCounts::default()).unwrap();
        let change = |value, control| TraceSettings::change(&asked(value), Some(&tracer), control);
        let rate = || TraceSettings::of(Some(&tracer)).trace_rate;
        assert_eq!(rate(), "100");
        assert_eq!(change(json!({"trace_rate": "100", "trace_level": ["TIMESTAMPS"]}), false), Ok(()));
        assert_eq!(change(json!({"trace_rate": 100, "trace_level": "TIMESTAMPS"}), false), Ok(()));
        assert!(matches!(change(json!({"trace_rate": "5"}), false), Err(Refusal::Forbidden(_))));
        assert_eq!((change(json!({"trace_rate": "5"}), true), rate()), (Ok(()), "5".into()));
        assert_eq!((change(json!({"trace_rate": 1}), true), rate()), (Ok(()), "1".into()));
        assert_eq!((change(json!({"trace_rate": 0}), true), rate()), (Ok(()), "0".into()));
        assert_eq!((change(json!({"trace_rate": null}), true), rate()), (Ok(()), "100".into()));
        for (value, says) in [
            (json!({"trace_rate": "often"}), "trace_rate: \"often\" is no whole number of at least 0"),
            (json!({"trace_rate": -1}), "trace_rate: -1 is no whole number"),
            (json!({"trace_rate": ["5", "6"]}), "trace_rate: [\"5\",\"6\"] is no whole number"),
            (json!({"trace_level": ["OFF"], "trace_rate": "7"}), "trace_level cannot be changed while"),
            (json!({"trace_file": "/tmp/trace"}), "there is no setting `trace_file` here"),
        ] {
            let refusal = change(value, true).unwrap_err();
            assert!(matches!(&refusal, Refusal::Invalid(why) if why.starts_with(says)), "{refusal}");
        }
        assert_eq!(rate(), "100", "a refused change is none");
    }

    #[test]
    fn without_a_collector_nothing_is_traced() {
        let settings = TraceSettings::of(None);
        assert_eq!((&settings.trace_level[..], settings.trace_rate.as_str()), (&["OFF"][..], "0"));
        let refusal = TraceSettings::change(&asked(json!({"trace_rate": "1"})), None, true).unwrap_err();
        assert!(refusal.to_string().contains("no collector is configured"), "{refusal}");
    }

    #[test]
    fn the_log_stays_as_it_is() {
        let now = serde_json::to_value(LogSettings::current()).unwrap();
        assert_eq!(LogSettings::change(&asked(now)), Ok(()));
        let refusal = LogSettings::change(&asked(json!({"log_verbose_level": 9}))).unwrap_err().to_string();
        assert!(refusal.starts_with("log_verbose_level cannot be changed"), "{refusal}");
    }
}
