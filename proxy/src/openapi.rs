//! The OpenAPI 3.1 document of what this port answers, made from the types that are answered with. Decides which routes
//! are told and what may come back; a test compares the list with [`crate::route`], in both directions.

mod bodies;

use crate::dialect::{Dialect, management, v1};
use crate::{describe, model_config, repository, service, settings, statistics};
use bodies::{
    ErrorBody, InferAnswer, InferBody, PredictAnswer, PredictBody, TorchServeError, TorchServePrediction,
};
use bytes::Bytes;
use std::sync::LazyLock;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required,
    ResponseBuilder, ResponsesBuilder, Schema,
};
use utoipa::{PartialSchema, ToSchema};

/// The document as it goes out.
pub(crate) fn json() -> Bytes {
    static JSON: LazyLock<Bytes> =
        LazyLock::new(|| document().to_json().expect("our own types serialise").into());
    JSON.clone()
}

const JSON: &str = "application/json";
const OCTETS: &str = "application/octet-stream";

/// What can be asked, and what comes back if all is well.
struct Operation {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    body: Vec<(&'static str, RefOr<Schema>)>,
    query: &'static [&'static str],
    answers: Vec<(&'static str, RefOr<Schema>)>,
    /// Statuses of refusals.
    refusals: Vec<u16>,
}

/// Refusals of everything that names a model.
const OF_MODEL: &[u16] = &[404];
/// Refusals of requests that a model is to answer.
const OF_INFERENCE: &[u16] = &[400, 404, 408, 413, 415, 429, 500, 501, 502, 503, 504, 508];
/// Refusals of orders.
const OF_ORDER: &[u16] = &[400, 403, 404, 408, 413, 415, 500, 503];
/// Refusals of changes of settings.
const OF_SETTING: &[u16] = &[400, 403, 404, 408, 413, 415, 503];

fn get(path: &'static str, summary: &'static str, answer: RefOr<Schema>, refusals: &[u16]) -> Operation {
    Operation {
        method: HttpMethod::Get,
        path,
        summary,
        body: vec![],
        query: &[],
        answers: vec![(JSON, answer)],
        refusals: refusals.to_vec(),
    }
}

fn post(
    path: &'static str,
    summary: &'static str,
    body: Vec<(&'static str, RefOr<Schema>)>,
    answer: RefOr<Schema>,
    refusals: &[u16],
) -> Operation {
    Operation { method: HttpMethod::Post, body, ..get(path, summary, answer, refusals) }
}

/// All that this port answers.
fn operations() -> Vec<Operation> {
    let ready = of::<service::ReadyBody<'static>>;
    let mut all = vec![
        Operation {
            answers: vec![("text/html", text()), ("text/plain", text())],
            ..get("/", "The loaded models, each with a request to try", text(), &[])
        },
        get("/openapi.json", "This document", any(), &[]),
        get("/v2", "Who this server is", of::<describe::ServerMetadata>(), &[]),
        get("/v2/health/live", "Whether the process lives", of::<describe::Live>(), &[]),
        get("/v2/health/ready", "Whether traffic may come", ready(), &[503]),
    ];
    for path in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        all.push(get(path, "Inputs and outputs", of::<describe::ModelMetadata>(), OF_MODEL));
    }
    for path in ["/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"] {
        all.push(get(path, "Whether it answers", ready(), &[404, 503]));
    }
    for path in [
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/models/{model}/labels/{label}/infer",
    ] {
        all.push(Operation {
            answers: vec![(JSON, of::<InferAnswer>()), (OCTETS, text())],
            ..post(path, "Run a model", vec![(JSON, of::<InferBody>())], any(), OF_INFERENCE)
        });
    }
    let entries = utoipa::openapi::schema::ArrayBuilder::new().items(of::<repository::Entry>());
    let index = vec![(JSON, of::<repository::IndexBody>())];
    all.push(post("/v2/repository/index", "All versions", index, entries.into(), &[400, 408, 413, 415, 503]));
    for path in [
        "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/versions/{version}/load",
        "/v2/repository/models/{model}/unload",
        "/v2/repository/models/{model}/versions/{version}/unload",
    ] {
        let body = vec![(JSON, of::<repository::OrderBody>())];
        all.push(Operation {
            answers: vec![],
            ..post(path, "Load or unload, where `control` is on", body, any(), OF_ORDER)
        });
    }
    all.extend(extension_operations());
    all.extend(v1_operations());
    all.extend(torchserve_operations());
    all
}

fn extension_operations() -> Vec<Operation> {
    let counted = of::<statistics::AllStatistics>;
    let mut all = vec![
        get("/v2/models", "Names of all models", of::<v1::ModelNames>(), &[]),
        get("/v2/models/stats", "What has been counted of all models", counted(), &[]),
    ];
    for path in ["/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats"] {
        all.push(get(path, "What has been counted", counted(), OF_MODEL));
    }
    for path in ["/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"] {
        all.push(get(path, "How it is served", of::<model_config::ModelConfig>(), &[404, 503]));
    }
    let asked = || vec![(JSON, ObjectBuilder::new().schema_type(Type::Object).into())];
    for (path, summary, settings) in [
        ("/v2/trace/setting", "What is traced", of::<settings::TraceSettings>()),
        ("/v2/models/{model}/trace/setting", "What is traced", of::<settings::TraceSettings>()),
        ("/v2/logging", "What is logged", of::<settings::LogSettings>()),
    ] {
        all.push(get(path, summary, settings.clone(), OF_MODEL));
        all.push(post(path, "Change it, as far as may be", asked(), settings, OF_SETTING));
    }
    all
}

fn v1_operations() -> Vec<Operation> {
    let mut all = vec![get("/v1/models", "Names of all models", of::<v1::ModelNames>(), &[])];
    for path in
        ["/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"]
    {
        all.push(get(path, "Versions and their states", of::<v1::ModelStatus>(), OF_MODEL));
    }
    for path in [
        "/v1/models/{model}/metadata",
        "/v1/models/{model}/versions/{version}/metadata",
        "/v1/models/{model}/labels/{label}/metadata",
    ] {
        all.push(get(path, "Inputs and outputs", of::<v1::SignatureMetadata>(), OF_MODEL));
    }
    for path in [
        "/v1/models/{model}:predict",
        "/v1/models/{model}/versions/{version}:predict",
        "/v1/models/{model}/labels/{label}:predict",
    ] {
        let body = vec![(JSON, of::<PredictBody>())];
        all.push(post(path, "Run a model", body, of::<PredictAnswer>(), OF_INFERENCE));
    }
    all
}

fn torchserve_operations() -> Vec<Operation> {
    let described = || utoipa::openapi::schema::ArrayBuilder::new().items(of::<management::Description>());
    let mut all = vec![
        get("/ping", "Whether traffic may come", of::<management::Health>(), &[]),
        Operation {
            query: &["limit", "next_page_token"],
            ..get("/models", "Names of all models, in pages", of::<management::ModelList>(), &[400])
        },
        Operation {
            query: &["url", "model_name"],
            ..post(
                "/models",
                "Load a model, where `control` is on",
                vec![],
                of::<management::Done>(),
                OF_ORDER,
            )
        },
        get("/models/{model}/all", "How all versions run", described().into(), OF_MODEL),
    ];
    for path in ["/models/{model}", "/models/{model}/{version}"] {
        all.push(get(path, "How a version runs", described().into(), OF_MODEL));
        all.push(Operation {
            method: HttpMethod::Delete,
            ..post(path, "Unload it, where `control` is on", vec![], of::<management::Done>(), OF_ORDER)
        });
    }
    for path in ["/predictions/{model}", "/predictions/{model}/{version}"] {
        for method in [HttpMethod::Post, HttpMethod::Put] {
            let body = vec![
                (JSON, any()),
                ("multipart/form-data", ObjectBuilder::new().schema_type(Type::Object).into()),
            ];
            all.push(Operation {
                method,
                ..post(path, "Run a model", body, of::<TorchServePrediction>(), OF_INFERENCE)
            });
        }
    }
    all
}

/// The document.
fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    for operation in operations() {
        paths = paths.path(operation.path, operation.item());
    }
    let info = InfoBuilder::new().title("Penstock").version(env!("CARGO_PKG_VERSION")).description(Some(
        "Inference in four protocols: Open Inference Protocol v2, TensorFlow Serving, KServe V1, TorchServe.",
    ));
    let components = ComponentsBuilder::new().schemas_from_iter(schemas());
    OpenApiBuilder::new().info(info.build()).paths(paths.build()).components(Some(components.build())).build()
}

/// Every type that is named, and those that these are made of.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut all = Vec::new();
    with::<ErrorBody>(&mut all);
    with::<TorchServeError>(&mut all);
    with::<InferBody>(&mut all);
    with::<InferAnswer>(&mut all);
    with::<PredictBody>(&mut all);
    with::<PredictAnswer>(&mut all);
    with::<TorchServePrediction>(&mut all);
    with::<describe::ServerMetadata>(&mut all);
    with::<describe::Live>(&mut all);
    with::<describe::ModelMetadata>(&mut all);
    with::<service::ReadyBody<'static>>(&mut all);
    with::<repository::Entry>(&mut all);
    with::<repository::IndexBody>(&mut all);
    with::<repository::OrderBody>(&mut all);
    with::<statistics::AllStatistics>(&mut all);
    with::<model_config::ModelConfig>(&mut all);
    with::<settings::TraceSettings>(&mut all);
    with::<settings::LogSettings>(&mut all);
    with::<v1::ModelNames>(&mut all);
    with::<v1::ModelStatus>(&mut all);
    with::<v1::SignatureMetadata>(&mut all);
    with::<management::Health>(&mut all);
    with::<management::ModelList>(&mut all);
    with::<management::Description>(&mut all);
    with::<management::Done>(&mut all);
    all
}

fn with<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}

impl Operation {
    fn item(&self) -> PathItem {
        let mut operation = OperationBuilder::new().summary(Some(self.summary));
        for name in ["model", "version", "label"] {
            if self.path.contains(&format!("{{{name}}}")) {
                operation = operation.parameter(parameter(name, ParameterIn::Path));
            }
        }
        for name in self.query {
            operation = operation.parameter(parameter(name, ParameterIn::Query));
        }
        if !self.body.is_empty() {
            let mut body = RequestBodyBuilder::new();
            for (media, schema) in &self.body {
                body = body.content(*media, ContentBuilder::new().schema(Some(schema.clone())).build());
            }
            operation = operation.request_body(Some(body.build()));
        }
        let mut answer = ResponseBuilder::new().description("What was asked for");
        for (media, schema) in &self.answers {
            answer = answer.content(*media, ContentBuilder::new().schema(Some(schema.clone())).build());
        }
        let mut responses = ResponsesBuilder::new().response("200", answer.build());
        for status in &self.refusals {
            responses = responses.response(status.to_string(), self.refusal(*status));
        }
        if self.path == "/ping" {
            let unhealthy = ContentBuilder::new().schema(Some(of::<management::Health>())).build();
            let response = ResponseBuilder::new().description("Not now").content(JSON, unhealthy);
            responses = responses.response("503", response.build());
        }
        PathItem::new(self.method.clone(), operation.responses(responses.build()))
    }

    fn refusal(&self, status: u16) -> utoipa::openapi::Response {
        let is_probe = self.path.ends_with("/ready") && status == 503;
        let schema = match Dialect::of_path(self.path) {
            Dialect::OpenInference if is_probe => of::<service::ReadyBody<'static>>(),
            Dialect::OpenInference | Dialect::TfServing => of::<ErrorBody>(),
            Dialect::TorchServe => of::<TorchServeError>(),
        };
        let why = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        ResponseBuilder::new().description(why.unwrap_or_default()).content(JSON, content).build()
    }
}

fn parameter(name: &str, place: ParameterIn) -> ParameterBuilder {
    let schema = match name {
        "version" | "limit" => {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(u32::MAX))
        }
        "next_page_token" => {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX))
        }
        _ => ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)),
    };
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new().name(name).parameter_in(place).required(required).schema(Some(schema))
}

/// The schema of a type, by its name.
fn of<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

fn text() -> RefOr<Schema> {
    <String as PartialSchema>::schema()
}

/// Anything at all.
fn any() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;
    use std::collections::BTreeSet;

    fn filled(path: &str) -> String {
        path.replace("{model}", "m").replace("{version}", "1").replace("{label}", "l")
    }

    #[test]
    fn every_path_of_the_document_is_answered_under_its_name() {
        for Operation { method, path, .. } in operations() {
            let method = serde_json::to_value(&method).unwrap().as_str().unwrap().to_uppercase();
            let method = http::Method::from_bytes(method.as_bytes()).unwrap();
            let filled = filled(path);
            let route = Route::parse(&method, &filled);
            assert_eq!(route.map(|route| route.name()), Ok(path), "{method} {path}");
        }
    }

    /// The names are text in the sources: a match has no list of its cases.
    #[test]
    fn every_route_is_in_the_document() {
        let told: BTreeSet<_> = operations().iter().map(|operation| operation.path).collect();
        let mut names = 0;
        for source in [
            include_str!("route.rs"),
            include_str!("route/v1.rs"),
            include_str!("route/torchserve.rs"),
            include_str!("extensions.rs"),
        ] {
            let function = source.split("fn name(&self)").nth(1);
            let function = function.and_then(|rest| rest.split("\n    }\n").next());
            for name in function.unwrap().split('"').skip(1).step_by(2) {
                assert!(told.contains(name), "{name} is no path of openapi.rs");
                names += 1;
            }
        }
        assert!(names >= told.len(), "{names} names, {} paths", told.len());
    }

    #[test]
    fn it_is_openapi_3_1_and_every_reference_leads_somewhere() {
        let document: serde_json::Value = serde_json::from_slice(&json()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        assert!(text.matches("#/components/schemas/").count() > 50);
    }
}
