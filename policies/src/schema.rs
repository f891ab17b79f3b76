//! The policy file as its author writes it: beside `number.rs` the only file that knows what is read. What `plain.rs` rests on: every
//! mapping refuses a key that is there twice, every list of fields one that it does not know, and no type contains itself.
//!
//! These types hold spelling, not meaning. Quantities stay text and numbers here and become units in `compile.rs`, so
//! that every mistake in a file is reported at once and not one per attempt. The doc comments are what an editor shows
//! beside a field: they speak to the author of a policy, and [`schema`] turns them into the JSON schema.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::number::Number;

/// The JSON schema (2020-12) of a policy file, pretty-printed, for editors and for `configs/policies.schema.json`.
pub fn schema() -> String {
    let settings = SchemaSettings::default().with_transform(without_null);
    let schema = settings.into_generator().into_root_schema_for::<File>();
    format!("{:#}\n", schema.as_value())
}

/// What need not be there is not there, see [`given`].
fn without_null(schema: &mut Schema) {
    transform_subschemas(&mut without_null, schema);
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = &mut types[..] {
            let one = one.take();
            schema.insert("type".into(), one);
        }
    }
    let Some(Value::Array(mut ways)) = schema.remove("anyOf") else { return };
    ways.retain(|one| one.get("type").is_none_or(|one| one != "null"));
    match &mut ways[..] {
        [Value::Object(one)] => {
            std::mem::take(one).into_iter().for_each(|(key, value)| drop(schema.insert(key, value)))
        }
        _ => drop(schema.insert("anyOf".into(), ways.into())),
    }
}

/// Which version of a model answers, who may enter, and when a version counts as failing.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Penstock policies")]
pub(crate) struct File {
    /// Policies by model name. A model that is not named here is answered by its highest ready version.
    #[serde(deserialize_with = "given_by_name")]
    pub(crate) models: Option<BTreeMap<String, Model>>,
    /// Limits. A request must pass every one that covers its model; a refused request spends nothing at any.
    #[schemars(length(max = 256))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) limits: Option<Vec<Limit>>,
    /// Who is turned away first when there is not enough for all.
    #[serde(default, deserialize_with = "given")]
    pub(crate) overload: Option<Overload>,
}

/// The least critical requests first; among equals those of the tenant who has most waiting.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Overload {
    /// What tells tenants apart: who asks for less than an equal share gets it. Without it, nobody is told apart.
    #[serde(default, deserialize_with = "given")]
    pub(crate) tenant: Option<Attribute>,
    /// The first that holds decides; a request for which none does is `normal`.
    #[schemars(length(max = 64))]
    pub(crate) criticality: Vec<CriticalityRule>,
}

/// How critical some requests are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CriticalityRule {
    /// When it holds.
    pub(crate) when: Condition,
    /// How critical the request then is.
    pub(crate) is: Criticality,
}

/// `critical` requests are turned away last, `sheddable` ones first.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Criticality {
    Critical,
    Normal,
    Sheddable,
}

/// The policy of one model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Model {
    /// Names for versions, such as `stable: 1`. A name starts with a letter.
    #[schemars(
        with = "BTreeMap<String, u64>",
        extend("additionalProperties" = {"type": "integer", "minimum": 1, "maximum": u64::MAX})
    )]
    #[serde(deserialize_with = "by_name")]
    pub(crate) labels: BTreeMap<String, Number>,
    /// Versions, by number, that another server answers and not the engine beside this proxy: a Triton, say, from which
    /// traffic is moved here step by step, or to which it is sent when all else fails.
    #[serde(deserialize_with = "by_name")]
    pub(crate) remote: BTreeMap<String, Remote>,
    /// How requests are divided between versions. Without it, the highest ready version answers.
    #[serde(default, deserialize_with = "given")]
    pub(crate) split: Option<Split>,
    /// Rolls a version out step by step, in place of a split.
    #[serde(default, deserialize_with = "given")]
    pub(crate) canary: Option<Canary>,
    /// Has another version answer copies of the requests, to compare what it says; nobody gets its answers.
    #[serde(default, deserialize_with = "given")]
    pub(crate) shadow: Option<Shadow>,
    /// Looked at in order before the split; the first that holds decides.
    pub(crate) rules: Vec<Rule>,
    /// Time for requests that bring no deadline of their own, 1ms to 24h. Default: 10s.
    #[schemars(extend("examples" = ["500ms", "2s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) deadline: Option<String>,
    /// When a version of this model counts as failing. Default: on, with the defaults of its fields.
    pub(crate) breaker: Breaker,
}

/// Where another server answers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remote {
    /// An `http` or `https` URL, to which requests are sent as they came.
    #[schemars(extend("examples" = ["http://triton:8000/v2/models/digits/infer"]))]
    pub(crate) url: String,
    /// How it is told the tensors of a request that cannot be passed on as it came. Default: binary.
    #[serde(default)]
    pub(crate) tensors: Tensors,
    /// A PEM file, by its whole path, of the certificates that vouch for an `https` server. Default: those of the system.
    #[schemars(extend("examples" = ["/etc/penstock/ca.pem"]))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) ca: Option<String>,
    /// A PEM file, by its whole path, of the certificate that an `https` server is shown. Default: none.
    #[schemars(extend("examples" = ["/etc/penstock/client.pem"]))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) cert: Option<String>,
    /// A PEM file, by its whole path, of the key of that.
    #[schemars(extend("examples" = ["/etc/penstock/client.key"]))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) key: Option<String>,
}

/// `binary` tensors follow the JSON, as Triton has it; `json` is for servers that know none, such as MLServer: what comes with
/// binary tensors is not passed on to them as it is either.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tensors {
    #[default]
    Binary,
    Json,
}

/// How requests are divided between versions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Split {
    /// Label or version number to weight: a number from 0 to 1000000 with up to six significant digits. A share is
    /// weight / sum of weights.
    #[schemars(
        with = "BTreeMap<String, f64>",
        extend(
            "additionalProperties" = {"type": "number", "minimum": 0, "maximum": 1_000_000},
            "minProperties" = 1,
            "maxProperties" = 64,
        )
    )]
    #[serde(deserialize_with = "by_name")]
    pub(crate) weights: BTreeMap<String, Number>,
    /// What identifies a user: one user always gets the same version. Without it, each request draws anew.
    #[serde(default, deserialize_with = "given")]
    pub(crate) sticky: Option<StickyKey>,
    /// What happens when the sticky key is missing: `random` (default), a label or a version number.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) without_key: Option<String>,
}

/// Gives a new version more and more of the requests for as long as it does well, and none as soon as it does not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Canary {
    /// Label or number of the version that has answered so far.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    pub(crate) baseline: String,
    /// Label or number of the version that is rolled out.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    pub(crate) candidate: String,
    /// Percent of the requests that the candidate gets, step by step, each above the one before and below 100. After
    /// the last step it gets everything. Default: 1, 5, 25, 50.
    #[schemars(
        with = "Option<Vec<f64>>",
        length(min = 1, max = 20),
        inner(range(min = 0.0001, max = 99.9999))
    )]
    #[serde(default, deserialize_with = "given")]
    pub(crate) steps: Option<Vec<Number>>,
    /// How long each step lasts at least. Default: 10m.
    #[schemars(extend("examples" = ["10m"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) dwell: Option<String>,
    /// What identifies a user, who then changes to the candidate once and not back. Without it, each request draws.
    #[serde(default, deserialize_with = "given")]
    pub(crate) sticky: Option<StickyKey>,
    /// What happens when the sticky key is missing: `random` (default), a label or a version number.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) without_key: Option<String>,
    /// What the candidate has to show in each step.
    #[serde(default)]
    pub(crate) gates: Gates,
}

/// Copies of answered requests. They wait behind all others, and are dropped rather than delay any.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shadow {
    /// Label or number of the version that gets them.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    pub(crate) version: String,
    /// Percent of the requests that are copied. Default: 100.
    #[schemars(with = "Option<f64>", range(min = 0.0001, max = 100))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) percent: Option<Number>,
    /// Copies under way at a time; further ones are dropped. Default: 8.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) in_flight_max: Option<Number>,
    /// How long a copy may take. Default: as long as its request.
    #[schemars(extend("examples" = ["500ms"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) deadline: Option<String>,
    /// When two answers agree.
    #[serde(default)]
    pub(crate) compare: Compare,
}

/// Integers and texts agree when they are equal, numbers with a fraction when they differ by no more than
/// `absolute` plus `relative` times the larger one; and integers that have bounds of their own, like those.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Compare {
    /// In the unit of the output. Default: 0.0001.
    #[schemars(with = "Option<f64>", range(min = 0))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) absolute: Option<Number>,
    /// As a part of the larger value. Default: 0.0001.
    #[schemars(with = "Option<f64>", range(min = 0))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) relative: Option<Number>,
    /// Outputs that agree when the largest value of each row, along the last dimension, has the same place.
    pub(crate) argmax: Vec<String>,
    /// Outputs that may differ by more or less than the others, by name.
    #[serde(deserialize_with = "by_name")]
    pub(crate) outputs: BTreeMap<String, Bounds>,
}

/// By how much the numbers of an output may differ, whole ones as well.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bounds {
    /// In the unit of the output. Default: 0.
    #[schemars(with = "Option<f64>", range(min = 0))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) absolute: Option<Number>,
    /// As a part of the larger value. Default: 0.
    #[schemars(with = "Option<f64>", range(min = 0))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) relative: Option<Number>,
}

/// A candidate that is worse than the baseline is rolled back, whatever stands here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gates {
    /// Failures, and requests that were not answered in time.
    #[serde(default, deserialize_with = "given")]
    pub(crate) errors: Option<ErrorGate>,
    /// Slow answers. Without it, nobody looks how long answers take.
    #[serde(default, deserialize_with = "given")]
    pub(crate) latency: Option<LatencyGate>,
    /// Requests of which whoever runs the version says that it has failed, or that went down with the engine; not those that
    /// were late, turned away, or left by their clients.
    #[serde(default, deserialize_with = "given")]
    pub(crate) faults: Option<FaultGate>,
    /// Answers that are not the baseline's. Needs a `shadow` of the candidate, which says when two answers agree.
    #[serde(default, deserialize_with = "given")]
    pub(crate) disagreement: Option<DisagreementGate>,
    /// Inputs and answers that are not distributed as they were when the candidate was new.
    #[serde(default, deserialize_with = "given")]
    pub(crate) drift: Option<DriftGate>,
}

/// How many requests may fail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ErrorGate {
    /// Percent of the candidate's requests that must be shown not to fail before it gets more. The smaller, the more
    /// requests that takes: about 400 without a failure for 1, 4000 for 0.1. Default: 1.
    #[schemars(with = "f64", range(min = 0.0001, max = 99.9999))]
    pub(crate) at_most: Number,
}

/// How many requests may be the version's own fault.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultGate {
    /// Percent of the candidate's requests that it has answered or failed.
    #[schemars(with = "f64", range(min = 0.0001, max = 99.9999))]
    pub(crate) at_most: Number,
}

/// How many answers may be others than the baseline's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DisagreementGate {
    /// Percent of the compared copies.
    #[schemars(with = "f64", range(min = 0.0001, max = 99.9999))]
    pub(crate) at_most: Number,
}

/// How far inputs and answers may have moved from the first rows that the candidate was given. Where the baseline has moved
/// as well, the rollout is held and not rolled back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriftGate {
    /// Jensen–Shannon divergence, in bits: 0 where nothing has changed, 1 where nothing is as it was. A mean that has moved
    /// by a standard deviation makes about 0.15. A window of 512 rows can show that it is below 0.03.
    #[schemars(with = "f64", range(min = 0.0001, max = 0.9999))]
    pub(crate) at_most: Number,
}

/// How many answers may be slow.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatencyGate {
    /// An answer that takes longer is slow.
    #[schemars(extend("examples" = ["200ms"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    pub(crate) over: String,
    /// Percent of the candidate's answers that may be slow.
    #[schemars(with = "f64", range(min = 0.0001, max = 99.9999))]
    pub(crate) at_most: Number,
}

/// What to read from a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Attribute {
    /// The value of this header; case does not matter.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this parameter in the URL's query, decoded.
    Query(String),
}

/// What identifies a user. A version is chosen after the body has been read where it is in there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StickyKey {
    /// The value of this header; case does not matter.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this parameter in the URL's query, decoded.
    Query(String),
    /// The value of this parameter of the request, `parameters` in its body: a text, a whole number, or `true` or `false`.
    Parameter(String),
    /// The first element of this input, which holds whole numbers or is BYTES.
    Input(String),
}

/// A decision taken before the split.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// When the rule holds.
    pub(crate) when: Condition,
    /// The label or version number that then answers.
    #[serde(rename = "use")]
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    pub(crate) choice: String,
}

/// One of `header`, `cookie` and `query`, and one of `equals` and `present`; or `path` or `tenant` alone.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    {"oneOf": [
        {"required": ["header"]}, {"required": ["cookie"]}, {"required": ["query"]}, {"required": ["path"]},
        {"required": ["tenant"]},
    ]},
    {"oneOf": [
        {"required": ["equals"]}, {"required": ["present"]}, {"required": ["path"]}, {"required": ["tenant"]},
    ]},
]))]
pub(crate) struct Condition {
    /// Looks at this header; case does not matter.
    #[serde(default, deserialize_with = "given")]
    pub(crate) header: Option<String>,
    /// Looks at this cookie.
    #[serde(default, deserialize_with = "given")]
    pub(crate) cookie: Option<String>,
    /// Looks at this parameter in the URL's query, decoded.
    #[serde(default, deserialize_with = "given")]
    pub(crate) query: Option<String>,
    /// Looks at the path.
    #[serde(default, deserialize_with = "given")]
    pub(crate) path: Option<PathCondition>,
    /// Holds for this tenant, by what tells tenants apart under `overload`.
    #[schemars(length(min = 1))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) tenant: Option<String>,
    /// Holds when the value is exactly this text.
    #[serde(default, deserialize_with = "given")]
    pub(crate) equals: Option<String>,
    /// `true` holds when there is a value that is not empty, `false` when there is none.
    #[serde(default, deserialize_with = "given")]
    pub(crate) present: Option<bool>,
}

/// One of `equals` and `starts_with`. The path is that of the URL, decoded and without the query, and of a gRPC call
/// `/SERVICE/METHOD`: it tells by which protocol a request comes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["equals"]}, {"required": ["starts_with"]}]))]
pub(crate) struct PathCondition {
    /// Holds when it is exactly this.
    #[schemars(extend("examples" = ["/inference.GRPCInferenceService/ModelInfer"]), regex(pattern = "^/[^?#]*$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) equals: Option<String>,
    /// Holds when it starts with this.
    #[schemars(extend("examples" = ["/predictions/"]), regex(pattern = "^/[^?#]*$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) starts_with: Option<String>,
}

/// A version that fails several times in a row is left alone for a while, then probed with a few requests.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Breaker {
    /// Failures in a row that trip it. Default: 5.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) failures: Option<Number>,
    /// Percent of the requests in `window` whose failure trips it as well. Default: only failures in a row do.
    #[schemars(with = "Option<f64>", range(min = 0.0001, max = 99.9999))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) failing: Option<Number>,
    /// Slow answers that trip it as well.
    #[serde(default, deserialize_with = "given")]
    pub(crate) slow: Option<SlowCalls>,
    /// How far back `failing` and `slow` look. Default: 10s.
    #[schemars(extend("examples" = ["10s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) window: Option<String>,
    /// With fewer requests in `window`, neither `failing` nor `slow` says anything. Default: 20.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) of_at_least: Option<Number>,
    /// Who answers meanwhile. Without it, nobody: a request that draws the version is refused.
    #[serde(default, deserialize_with = "given")]
    pub(crate) fallback: Option<Fallback>,
    /// How long it refuses after the first trip; doubles with every failed probing. Default: 10s.
    #[schemars(extend("examples" = ["10s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) open_for: Option<String>,
    /// The longest it refuses. Default: 60s, or `open_for` if that is longer.
    #[schemars(extend("examples" = ["60s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) max_open_for: Option<String>,
    /// Requests let through while probing, all of which must be answered before everyone may enter. Default: 1.
    #[schemars(with = "Option<u32>", range(min = 1, max = 100))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) probes: Option<Number>,
    /// A probe without an answer for this long has failed. Set it above the slowest healthy answer. Default: the
    /// model's deadline.
    #[schemars(extend("examples" = ["5s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) probe_timeout: Option<String>,
}

/// The version that answers in place of one that has tripped, unless it has tripped as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fallback {
    /// Its label or number.
    #[schemars(extend("type" = ["string", "integer"], "minimum" = 1, "maximum" = u64::MAX))]
    pub(crate) version: String,
    /// Such requests that it works on at a time; further ones are refused, so that a failing version cannot take
    /// another one down. Default: 32.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) in_flight_max: Option<Number>,
}

/// Answers that take too long, and requests that get none in time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlowCalls {
    /// An answer that takes longer is slow.
    #[schemars(extend("examples" = ["1s"]), regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    pub(crate) over: String,
    /// Percent of the requests that are slow when it trips.
    #[schemars(with = "f64", range(min = 0.0001, max = 99.9999))]
    pub(crate) percent: Number,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cost {
    Requests,
    Rows,
    Bytes,
}

/// A limit, of the rate of requests or of those under way: one for each value of its key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    /// Its name in metrics and refusals, unique in the file.
    #[schemars(length(min = 1))]
    pub(crate) name: String,
    /// What tells callers apart; those without it share one bucket. Without a key, everyone shares one bucket.
    #[serde(default, deserialize_with = "given")]
    pub(crate) key: Option<Attribute>,
    /// The models it covers. Without it, every model.
    #[schemars(length(min = 1))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) models: Option<Vec<String>>,
    /// What is counted: requests (default), rows, which are the first dimension of the inputs, or bytes of bodies.
    #[serde(default, deserialize_with = "given")]
    pub(crate) cost: Option<Cost>,
    /// How many per second, minute or hour.
    #[schemars(extend("examples" = ["100/s", "6000/m", "10/h"]), regex(pattern = "^[0-9]+/(s|m|h)$"))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) rate: Option<String>,
    /// In place of a rate: how many requests may be under way at once.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) in_flight_max: Option<Number>,
    /// How many may come at once after a pause. Default: the count of the rate, so 100 for `100/s`.
    #[schemars(with = "Option<u32>", range(min = 1, max = u32::MAX))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) burst: Option<Number>,
    /// Callers remembered at a time; further ones share one bucket until an old one has rested. Default: 100000.
    #[schemars(with = "Option<u32>", range(min = 1, max = 10_000_000))]
    #[serde(default, deserialize_with = "given")]
    pub(crate) max_keys: Option<Number>,
}

/// Values by names that may be numbers. `1` and `"1"` are two keys to YAML, and the same name here.
fn by_name<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct ByName<T>(PhantomData<T>);

    /// A seed, so that the fault has the place of the name.
    struct NewName<'a, T>(&'a BTreeMap<String, T>);

    impl<'de, T> DeserializeSeed<'de> for NewName<'_, T> {
        type Value = String;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
            let name = String::deserialize(deserializer)?;
            if self.0.contains_key(&name) {
                return Err(D::Error::custom(format_args!(
                    "duplicate mapping key `{name}` is not allowed here"
                )));
            }
            Ok(name)
        }
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ByName<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a mapping")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut written: A) -> Result<Self::Value, A::Error> {
            let mut values = BTreeMap::new();
            while let Some(name) = written.next_key_seed(NewName(&values))? {
                values.insert(name, written.next_value()?);
            }
            Ok(values)
        }
    }

    deserializer.deserialize_map(ByName(PhantomData))
}

/// The same of what need not be there.
fn given_by_name<'de, D, T>(deserializer: D) -> Result<Option<BTreeMap<String, T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(bound = "T: Deserialize<'de>", transparent)]
    struct Named<T>(#[serde(deserialize_with = "by_name")] BTreeMap<String, T>);

    Ok(given::<D, Named<T>>(deserializer)?.map(|Named(values)| values))
}

/// What is off, or as usual, where its key is not there. A key with nothing after it, as in a file that was cut off, would be the same
/// without a word.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let given = Option::deserialize(deserializer)?;
    given.map(Some).ok_or_else(|| D::Error::custom("expected a value; without one, leave the key out"))
}
