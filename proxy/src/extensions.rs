//! Triton's extensions that only tell something, or set it: where they are asked for over HTTP, and what answers, over
//! HTTP and gRPC alike. Decides nothing about inference; what is told stands in [`crate::statistics`],
//! [`crate::model_config`] and [`crate::settings`].

use crate::directory::Models;
use crate::metrics::Metrics;
use crate::model_config::{Device, ModelConfig};
use crate::refusal::Refusal;
use crate::repository::parse;
use crate::route::Target;
use crate::service::{Answer, Service};
use crate::settings::{LogSettings, TraceSettings};
use crate::statistics::{AllStatistics, Statistics};
use crate::trace::Tracer;
use http::{Method, StatusCode};
use pingora::protocols::http::ServerSession;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::{ModelEntry, ModelState};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension<'a> {
    /// `GET /v2/models`: their names, as KServe has it.
    Models,
    /// `GET /v2/models/stats`, `GET /v2/models/{m}[/versions/{v}]/stats`.
    Statistics(Option<Target<'a>>),
    /// `GET /v2/models/{m}[/versions/{v}]/config`.
    Config(Target<'a>),
    /// `GET` or `POST /v2/trace/setting`, `/v2/models/{m}/trace/setting`.
    Trace(Option<&'a str>),
    /// `GET` or `POST /v2/logging`.
    Logging,
}

impl<'a> Extension<'a> {
    /// What a path asks that goes on like this after `/v2`, and its methods.
    pub(crate) fn of_path(rest: &str) -> Option<(Self, &'static str)> {
        match rest {
            "/models" => Some((Self::Models, "GET")),
            "/models/stats" => Some((Self::Statistics(None), "GET")),
            "/trace/setting" => Some((Self::Trace(None), "GET, POST")),
            "/logging" => Some((Self::Logging, "GET, POST")),
            _ => None,
        }
    }

    /// What a path asks that goes on like this after a model and its version, and its methods.
    pub(crate) fn of_model(target: Target<'a>, rest: &str) -> Option<(Self, &'static str)> {
        match (rest, target.pinned) {
            ("stats", _) => Some((Self::Statistics(Some(target)), "GET")),
            ("config", _) => Some((Self::Config(target), "GET")),
            ("trace/setting", None) => Some((Self::Trace(Some(target.model)), "GET, POST")),
            _ => None,
        }
    }

    /// The path with placeholders, for spans and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Models => "/v2/models",
            Self::Statistics(None) => "/v2/models/stats",
            Self::Statistics(Some(Target { pinned: None, .. })) => "/v2/models/{model}/stats",
            Self::Statistics(Some(_)) => "/v2/models/{model}/versions/{version}/stats",
            Self::Config(Target { pinned: None, .. }) => "/v2/models/{model}/config",
            Self::Config(_) => "/v2/models/{model}/versions/{version}/config",
            Self::Trace(None) => "/v2/trace/setting",
            Self::Trace(Some(_)) => "/v2/models/{model}/trace/setting",
            Self::Logging => "/v2/logging",
        }
    }
}

impl Service {
    pub(crate) async fn extension(
        &self,
        session: &mut ServerSession,
        extension: Extension<'_>,
    ) -> Result<Answer, Refusal> {
        let models = self.path.directory.load();
        Ok(match extension {
            Extension::Models => {
                let mut names: Vec<_> = models.entries().map(|entry| entry.name.as_str()).collect();
                names.dedup();
                Answer::json(StatusCode::OK, &json!({"models": names}))
            }
            Extension::Statistics(target) => {
                Answer::json(StatusCode::OK, &statistics(&self.watchers.metrics, &models, target)?)
            }
            Extension::Config(target) => Answer::json(
                StatusCode::OK,
                &config(&self.path.links.device(), &models, self.path.typical(&models, target))?,
            ),
            Extension::Trace(model) => {
                let asked = self.asked_settings(session).await?;
                let (tracer, control) = (self.watchers.tracer.as_deref(), self.repository.control);
                Answer::json(StatusCode::OK, &trace_settings(&models, model, &asked, tracer, control)?)
            }
            Extension::Logging => {
                Answer::json(StatusCode::OK, &log_settings(&self.asked_settings(session).await?)?)
            }
        })
    }

    /// What is to be changed; nothing if it is only asked for.
    async fn asked_settings(&self, session: &mut ServerSession) -> Result<Map<String, Value>, Refusal> {
        if session.req_header().method != Method::POST {
            return Ok(Map::new());
        }
        parse(&self.repository.body(session).await?)
    }
}

/// Of all versions that are ready or have been asked something, or of those of one model, or of one of them.
pub(crate) fn statistics(
    metrics: &Metrics,
    models: &Models,
    target: Option<Target<'_>>,
) -> Result<AllStatistics, Refusal> {
    let ready = models.entries().filter(|entry| entry.state() == ModelState::Ready);
    let mut all: BTreeMap<(String, u64), Arc<Statistics>> =
        ready.map(|entry| ((entry.name.clone(), entry.version), Arc::default())).collect();
    all.extend(metrics.statistics());
    if let Some(target) = target {
        all.retain(|(model, version), _| {
            model == target.model && target.pinned.is_none_or(|pinned| pinned == *version)
        });
        if all.is_empty() {
            models.find(target)?;
        }
    }
    let of_model =
        |((model, version), counters): ((String, u64), Arc<Statistics>)| counters.of_model(&model, version);
    Ok(AllStatistics { model_stats: all.into_iter().map(of_model).collect() })
}

/// Of the pinned version, else of the highest that is ready, on what the engine calls its device.
pub(crate) fn config(device: &str, models: &Models, target: Target<'_>) -> Result<ModelConfig, Refusal> {
    let model = target.model;
    let pinned = target.pinned.or_else(|| models.highest_ready(model));
    let entry: &ModelEntry = models.find(Target { model, pinned })?;
    if entry.state() != ModelState::Ready {
        let (version, state) = (entry.version, entry.state().as_word());
        return Err(Refusal::NotReady(format!(
            "version {version} of model `{model}` is {state}, how it is served is not known"
        )));
    }
    Ok(ModelConfig::new(entry, Device::called(device)))
}

/// Those of all models, which those of a model are too, after the change that is `asked` for.
pub(crate) fn trace_settings(
    models: &Models,
    model: Option<&str>,
    asked: &Map<String, Value>,
    tracer: Option<&Tracer>,
    control: bool,
) -> Result<TraceSettings, Refusal> {
    if let Some(model) = model {
        models.find(Target { model, pinned: None })?;
        if !asked.is_empty() {
            return Err(Refusal::Invalid("trace settings are those of all models".into()));
        }
    }
    TraceSettings::change(asked, tracer, control)?;
    Ok(TraceSettings::of(tracer))
}

/// As they are, if what is `asked` for is no change.
pub(crate) fn log_settings(asked: &Map<String, Value>) -> Result<LogSettings, Refusal> {
    LogSettings::change(asked)?;
    Ok(LogSettings::current())
}
