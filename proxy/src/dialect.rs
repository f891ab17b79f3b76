//! The protocols over HTTP whose clients are understood, and what differs between them outside of bodies: how a refusal
//! is written. Decides which one a path speaks.
//!
//! A dialect says how a body becomes tensors and how tensors become a body; the path of a request is the same for all.

mod classes;
pub(crate) mod management;
pub(crate) mod tf_serving;
pub(crate) mod torchserve;
pub(crate) mod v1;

use crate::call::Inferred;
use crate::refusal::Refusal;
use serde_json::json;
use wire::{Datatype, ModelEntry};

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Open Inference Protocol v2: Triton, KServe.
    OpenInference,
    /// TensorFlow Serving's REST API, and KServe's V1, which is the same but for a few answers.
    TfServing,
    /// TorchServe's inference and management APIs.
    TorchServe,
}

/// What an answer consists of, as its request wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// One answer for each of so many rows.
    Rows(u64),
    /// The answer for the only row.
    Row,
    /// One answer for each output.
    #[default]
    Outputs,
}

impl Dialect {
    /// Which one is spoken at this path, whether it exists or not.
    pub fn of_path(path: &str) -> Self {
        let first = path.get(1..).and_then(|path| path.split('/').next()).unwrap_or_default();
        match first {
            "v1" => Self::TfServing,
            "ping" | "predictions" | "models" => Self::TorchServe,
            _ => Self::OpenInference,
        }
    }

    /// The body that tells a refusal.
    pub(crate) fn refusal(self, refusal: &Refusal) -> serde_json::Value {
        match self {
            Self::OpenInference | Self::TfServing => json!({"error": refusal.message()}),
            Self::TorchServe => {
                let (code, exception) = (refusal.status().as_u16(), torchserve::exception(refusal));
                json!({"code": code, "type": exception, "message": refusal.message()})
            }
        }
    }
}

/// What the engine says of the model that is asked.
pub(crate) fn declared(entry: Option<&ModelEntry>) -> Result<&ModelEntry, Refusal> {
    entry.ok_or_else(|| {
        Refusal::Unsupported(
            "only another server has this model, and what it takes is not known here: use /v2".into(),
        )
    })
}

/// An output of an answer, and its bytes from where it has been written to.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: Datatype,
    pub(crate) shape: &'a [u64],
    pub(crate) bytes: &'a [u8],
}

/// The outputs of an answer, each checked to lie within its payload.
pub(crate) fn outputs<'a>(inferred: &Inferred<'a>) -> Result<Vec<Output<'a>>, Refusal> {
    let outputs = inferred.reply.outputs.iter().map(|meta| {
        let located = meta.locate(inferred.payload);
        let (datatype, range) =
            located.map_err(|error| Refusal::Internal(format!("engine reply: {error}")))?;
        Ok(Output { name: &meta.name, datatype, shape: &meta.shape, bytes: &inferred.payload[range] })
    });
    outputs.collect()
}

/// Appends a JSON string.
pub(crate) fn string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a string serialises and a Vec takes it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_path_tells_its_protocol_even_if_it_does_not_exist() {
        for (path, dialect) in [
            ("/v2/models/m/infer", Dialect::OpenInference),
            ("/v1/models/m:predict", Dialect::TfServing),
            ("/v1", Dialect::TfServing),
            ("/v1x", Dialect::OpenInference),
            ("/predictions/m", Dialect::TorchServe),
            ("/models", Dialect::TorchServe),
            ("/ping", Dialect::TorchServe),
            ("/", Dialect::OpenInference),
            ("", Dialect::OpenInference),
        ] {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }

    #[test]
    fn each_protocol_tells_errors_in_its_own_form() {
        let refusal = Refusal::NotFound("no model `x`".into());
        assert_eq!(Dialect::TfServing.refusal(&refusal), json!({"error": "no model `x`"}));
        assert_eq!(
            Dialect::TorchServe.refusal(&refusal),
            json!({"code": 404, "type": "ModelNotFoundException", "message": "no model `x`"})
        );
    }

    #[test]
    fn a_limit_overload_and_a_missed_deadline_can_be_told_apart_in_each() {
        let three = [
            Refusal::Limited { limit: "per-user".into(), retry_after: Duration::from_secs(1) },
            Refusal::Overloaded("full".into()),
            Refusal::DeadlineExceeded { deadline: Duration::from_secs(1), predicted: None },
        ];
        assert_eq!(three.each_ref().map(|refusal| refusal.status().as_u16()), [429, 503, 504]);
        let codes = three.each_ref().map(|refusal| Dialect::TorchServe.refusal(refusal)["code"].as_u64());
        assert_eq!(codes, [Some(429), Some(503), Some(504)]);
    }
}
