//! TorchServe's management API: models listed and described. What it would change is Triton's repository to do
//! ([`crate::repository`]). Decides only what things are called.

use crate::directory::Models;
use crate::refusal::Refusal;
use crate::route::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use wire::ModelEntry;

/// `GET /ping`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `Healthy` or `Unhealthy`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) fn health(readiness: Result<(), String>) -> Health {
    match readiness {
        Ok(()) => Health { status: "Healthy", reason: None },
        Err(reason) => Health { status: "Unhealthy", reason: Some(reason) },
    }
}

/// `GET /models`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelList {
    /// Where the next page begins, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    models: Vec<Listed>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Listed {
    model_name: String,
    model_url: String,
}

/// Models of a page, as TorchServe has it unless the query says otherwise.
const PAGE: usize = 100;

/// A page of the models' names; the query may have `limit` and `next_page_token`.
pub(crate) fn list(models: &Models, query: &str) -> Result<ModelList, Refusal> {
    let number = |name: &str, default: usize| {
        parameter(query, name).map_or(Ok(default), |text| {
            text.parse().map_err(|_| Refusal::Invalid(format!("{name} `{text}` is not a whole number")))
        })
    };
    let (from, limit) = (number("next_page_token", 0)?, number("limit", PAGE)?);
    if limit == 0 {
        return Err(Refusal::Invalid("limit must be at least 1".into()));
    }
    let all: Vec<_> = models.names().collect();
    let end = from.saturating_add(limit).min(all.len());
    let page = all.get(from..end).unwrap_or_default().iter();
    Ok(ModelList {
        next_page_token: (end < all.len()).then(|| end.to_string()),
        models: page.map(|name| Listed { model_name: (*name).into(), model_url: (*name).into() }).collect(),
    })
}

/// A parameter of a query, as it is written.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// Which model a registration means: one that is in the models folder, by its name or by that of its archive.
pub(crate) fn registered(query: &str) -> Result<&str, Refusal> {
    let named = parameter(query, "model_name").or_else(|| parameter(query, "url"));
    let name = named.map(|name| name.strip_suffix(".mar").unwrap_or(name)).unwrap_or_default();
    if name.is_empty() || name.contains(['/', ':', '%']) {
        return Err(Refusal::Invalid(
            "name a model of the models folder, as ?url=NAME: archives are not fetched here".into(),
        ));
    }
    Ok(name)
}

/// What registering and unregistering say.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Done {
    status: String,
}

pub(crate) fn done(target: Target<'_>, what: &str) -> Done {
    let version = target.pinned.map_or_else(String::new, |version| format!(" version {version}"));
    Done { status: format!("Model \"{}\"{version} {what}", target.model) }
}

/// How one version runs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Description {
    model_name: String,
    model_version: String,
    model_url: String,
    runtime: &'static str,
    min_workers: u32,
    max_workers: u32,
    /// Rows that run together at most.
    batch_size: u32,
    /// Nobody waits for others to come.
    max_batch_delay: u32,
    /// As many as run at the same time.
    workers: Vec<Worker>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Worker {
    id: String,
    /// `READY` or `UNLOADING`.
    status: &'static str,
}

/// The version that is asked for, or the one with the highest number.
pub(crate) fn describe(models: &Models, target: Target<'_>) -> Result<Vec<Description>, Refusal> {
    Ok(vec![description(models, models.find(target)?)])
}

/// Every version of a model.
pub(crate) fn describe_all(models: &Models, model: &str) -> Result<Vec<Description>, Refusal> {
    models.find(Target { model, pinned: None })?;
    let versions = models.versions(model).into_iter().flat_map(BTreeMap::values);
    Ok(versions.map(|entry| description(models, entry)).collect())
}

fn description(models: &Models, entry: &ModelEntry) -> Description {
    let workers = if models.is_ready(&entry.name, entry.version) { entry.at_once } else { 0 };
    Description {
        model_name: entry.name.clone(),
        model_version: entry.version.to_string(),
        model_url: format!("{}/{}", entry.name, entry.version),
        runtime: "libtorch",
        min_workers: entry.at_once,
        max_workers: entry.at_once,
        batch_size: entry.max_batch.max(1),
        max_batch_delay: 0,
        workers: (0..workers).map(|at| Worker { id: at.to_string(), status: "READY" }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;
    use serde_json::{Value, json};
    use wire::{Index, ModelState};

    fn models(names: &[&str]) -> Directory {
        let entry = |name: &&str| ModelEntry {
            name: (*name).into(),
            version: 2,
            state: ModelState::Ready as i32,
            at_once: 2,
            max_batch: 8,
            ..ModelEntry::default()
        };
        let directory = Directory::default();
        directory.publish(Index { models: names.iter().map(entry).collect(), ..Index::default() });
        directory
    }

    #[test]
    fn models_come_in_pages() {
        let models = models(&["a", "b", "c"]).load();
        let page = |query| list(&models, query).map(|list| serde_json::to_value(list).unwrap());
        let of = |name: &str| json!({"modelName": name, "modelUrl": name});
        assert_eq!(page(""), Ok(json!({"models": [of("a"), of("b"), of("c")]})));
        assert_eq!(page("limit=2"), Ok(json!({"nextPageToken": "2", "models": [of("a"), of("b")]})));
        assert_eq!(page("limit=2&next_page_token=2"), Ok(json!({"models": [of("c")]})));
        assert_eq!(page("next_page_token=9"), Ok(json!({"models": []})));
        for query in ["limit=0", "limit=-1", "next_page_token=x", "limit="] {
            assert!(matches!(page(query), Err(Refusal::Invalid(_))), "{query}");
        }
    }

    #[test]
    fn a_version_is_described_by_how_it_runs() {
        let models = models(&["m"]).load();
        let described = describe(&models, Target { model: "m", pinned: None }).unwrap();
        let described: Value = serde_json::to_value(described).unwrap();
        assert_eq!((&described[0]["modelVersion"], &described[0]["batchSize"]), (&json!("2"), &json!(8)));
        assert_eq!(described[0]["workers"][1], json!({"id": "1", "status": "READY"}));
        assert_eq!(described, serde_json::to_value(describe_all(&models, "m").unwrap()).unwrap());
        assert!(describe_all(&models, "n").is_err());
    }

    #[test]
    fn a_registration_names_a_folder_and_fetches_nothing() {
        assert_eq!(registered("url=digits.mar&initial_workers=1"), Ok("digits"));
        assert_eq!(registered("url=x.mar&model_name=digits"), Ok("digits"));
        for query in ["", "url=", "url=https://example.com/digits.mar", "url=..%2Fdigits", "model_name=a/b"] {
            assert!(matches!(registered(query), Err(Refusal::Invalid(_))), "{query}");
        }
    }
}
