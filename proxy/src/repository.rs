//! Triton's model repository extension: what is there, load, unload. Decides who may order the engine about: nobody,
//! unless the configuration says so, because whoever can load a model can run code. Paths are the engine's own; a
//! request names a model, never a file.

use crate::body::{self, BodyLimits};
use crate::directory::Directory;
use crate::links::Links;
use crate::object::Object;
use crate::refusal::Refusal;
use crate::route::Target;
use crate::slots::Slots;
use bytes::Bytes;
use pingora::protocols::http::ServerSession;
use policies::Room;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use utoipa::ToSchema;
use wire::{Action, Control, Reply, Status};

/// What it takes to answer.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Whether orders are taken.
    pub control: bool,
    /// What the engine has.
    pub directory: Arc<Directory>,
    /// The way to it.
    pub links: Arc<Links>,
    /// Room for bodies, see [`Repository::slots`].
    pub slots: Arc<Slots>,
}

/// Orders whose bodies are being read at the same time.
const BODIES_MAX: usize = 16;

/// Bodies here are a few words.
const BODY: BodyLimits = BodyLimits { bytes_max: 64 << 10, time_max: Duration::from_secs(10) };

/// A model that takes longer to load goes on loading, but nobody is told when it is done.
const ORDER_MAX: Duration = Duration::from_secs(600);

/// After an order was carried out, the news of it is underway on another connection.
const NEWS_MAX: Duration = Duration::from_secs(5);

/// One version, in Triton's words.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RepositoryEntry)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
}

/// Which versions are wanted.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IndexBody {
    #[serde(default)]
    ready: bool,
}

/// What an order says beside its path.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderBody {
    #[serde(default)]
    parameters: BTreeMap<String, serde_json::Value>,
}

impl Repository {
    /// Not those of inference requests: a model is unloaded or replaced just when these are all taken.
    pub(crate) fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(BODIES_MAX, BODIES_MAX * BODY.bytes_max))
    }

    /// `POST /v2/repository/index`: all versions, or those that are ready.
    pub(crate) async fn index(&self, session: &mut ServerSession) -> Result<Vec<Entry>, Refusal> {
        let wanted: IndexBody = parse(&self.body(session).await?)?;
        let entries = self.entries().into_iter();
        Ok(entries.filter(|entry| !wanted.ready || entry.state == "READY").collect())
    }

    /// All versions.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let models = self.directory.load();
        let entries = models.entries().map(|entry| Entry {
            name: entry.name.clone(),
            version: entry.version.to_string(),
            state: if models.is_ready(&entry.name, entry.version) { "READY" } else { word(entry.state()) },
            reason: entry.reason.clone(),
        });
        entries.collect()
    }

    /// `POST /v2/repository/models/{m}[/versions/{v}]/{load|unload}`.
    pub(crate) async fn order(
        &self,
        session: &mut ServerSession,
        action: Action,
        target: Target<'_>,
    ) -> Result<(), Refusal> {
        self.takes_orders()?;
        let body: OrderBody = parse(&self.body(session).await?)?;
        self.obey(action, target, body.parameters.keys().map(String::as_str)).await
    }

    /// Whether the configuration says so.
    fn takes_orders(&self) -> Result<(), Refusal> {
        if self.control {
            return Ok(());
        }
        Err(Refusal::Forbidden(
            "models are not loaded on request here; `engine: {control: true}` in the configuration allows it"
                .into(),
        ))
    }

    /// Carries out an order, which may have come with `parameters`: returns when it has been done, and when every request
    /// from then on sees it.
    pub(crate) async fn obey(
        &self,
        action: Action,
        target: Target<'_>,
        parameters: impl Iterator<Item = &str>,
    ) -> Result<(), Refusal> {
        self.takes_orders()?;
        check_parameters(action, parameters)?;
        if self.links.is_handing_over.load(Ordering::Relaxed) {
            return Err(Refusal::NotReady("another engine is about to take over; ask again soon".into()));
        }
        let control = Control {
            action: action as i32,
            model: target.model.to_owned(),
            version: target.pinned.unwrap_or(0),
        };
        let link = self.links.worker().await?;
        let mut pending = link.order(&control)?;
        let frame = tokio::time::timeout(ORDER_MAX, pending.answer()).await.map_err(|_| {
            Refusal::Busy { why: format!("not done within {ORDER_MAX:?}"), retry_after: ORDER_MAX }
        })??;
        let reply: Reply = prost::Message::decode(frame.metadata)
            .map_err(|error| Refusal::Internal(format!("the engine's reply does not decode: {error}")))?;
        let news = self.directory.reached(reply.revision);
        let is_known = tokio::time::timeout(NEWS_MAX, news)
            .await
            .map_err(|_| Refusal::Internal(format!("it is done, but not known here after {NEWS_MAX:?}")))?;
        came_of(reply, is_known)
    }

    pub(crate) async fn body(&self, session: &mut ServerSession) -> Result<Bytes, Refusal> {
        body::read_plain(session, &BODY, &mut self.slots.enter(Room::ALL)?).await
    }
}

/// What an order has come to: the engine's reply, and whether what it has done is known here. It never is if another engine has
/// taken its place since, which knows nothing of it.
fn came_of(reply: Reply, is_known: bool) -> Result<(), Refusal> {
    match reply.status() {
        Status::Ok if is_known => Ok(()),
        Status::Ok => Err(Refusal::NotReady("the engine that was told so is gone; ask again soon".into())),
        Status::NotFound => Err(Refusal::NotFound(reply.message)),
        Status::Overloaded => Err(Refusal::Overloaded(reply.message)),
        Status::Unavailable => Err(Refusal::EngineDown(reply.message)),
        // Triton's status for a model that cannot be loaded.
        Status::InvalidArgument | Status::ModelFailed => Err(Refusal::Invalid(reply.message)),
        Status::Internal | Status::DeadlineExceeded | Status::DeviceLost | Status::OutputsTooLarge => {
            Err(Refusal::Internal(reply.message))
        }
    }
}

/// A few words of JSON. Triton's client sends an empty body where there is nothing to say.
pub(crate) fn parse<T: Default + for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let Object(parsed) =
        serde_json::from_slice(body).map_err(|error| Refusal::Invalid(format!("the body: {error}")))?;
    Ok(parsed)
}

fn check_parameters<'a>(
    action: Action,
    mut parameters: impl Iterator<Item = &'a str>,
) -> Result<(), Refusal> {
    // There are no dependents.
    let is_known = |name: &str| action == Action::Unload && name == "unload_dependents";
    match parameters.find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::Invalid(format!(
            "parameters.{name} is not supported: a model is what its folder on this machine holds"
        ))),
    }
}

fn word(state: wire::ModelState) -> &'static str {
    match state {
        wire::ModelState::Loading => "LOADING",
        // Ready, but the engine is away.
        wire::ModelState::Ready | wire::ModelState::Unavailable => "UNAVAILABLE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_a_model_and_brings_no_files() {
        let parameters =
            |text: &str| parse::<OrderBody>(text.as_bytes()).map(|body| body.parameters).unwrap();
        let check = |action, parameters: &BTreeMap<String, serde_json::Value>| {
            check_parameters(action, parameters.keys().map(String::as_str))
        };
        assert_eq!(check(Action::Load, &parameters("")), Ok(()));
        assert_eq!(check(Action::Load, &parameters("{}")), Ok(()));
        let unload = parameters(r#"{"parameters": {"unload_dependents": false}}"#);
        assert_eq!(check(Action::Unload, &unload), Ok(()));
        let upload = parameters(r#"{"parameters": {"file:1/model.pt": "AAAA"}}"#);
        let refusal = check(Action::Load, &upload).unwrap_err().to_string();
        assert!(refusal.starts_with("parameters.file:1/model.pt is not supported"), "{refusal}");
        assert!(parse::<OrderBody>(b"{\"paramters\": {}}").is_err());
    }

    #[test]
    fn an_order_that_was_done_by_an_engine_which_is_gone_is_to_be_given_again() {
        let reply =
            |status: Status| Reply { status: status as i32, message: "why".into(), ..Reply::default() };
        assert_eq!(came_of(reply(Status::Ok), true), Ok(()));
        assert!(matches!(came_of(reply(Status::Ok), false), Err(Refusal::NotReady(_))));
        // What was not done, the next one does not do either.
        assert_eq!(came_of(reply(Status::NotFound), false), Err(Refusal::NotFound("why".into())));
    }
}
