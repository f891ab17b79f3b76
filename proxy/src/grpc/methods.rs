//! The methods of the service, and those of them that ask no model: health, metadata, the repository; Triton's other
//! extensions stand in [`super::extensions`]. Decides what each is called; what is answered is decided where REST's
//! answers are.

use super::Grpc;
use super::extensions::log_settings;
use super::message::{Messages, Outgoing};
use crate::body::BodyLimits;
use crate::describe;
use crate::refusal::Refusal;
use crate::route::Target;
use crate::slots::Slots;
use hyper::body::Incoming;
use policies::Room;
use prost::Message;
use protocol::inference;
use protocol::inference::model_metadata_response::TensorMetadata;
use protocol::inference::repository_index_response::ModelIndex;
use std::sync::Arc;
use std::time::Duration;
use wire::Action;

/// A method of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    ModelInfer,
    ModelStreamInfer,
    /// One that asks no model.
    Ask(Question),
}

/// What is asked of no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
    TraceSetting,
    LogSettings,
}

impl Method {
    const ALL: [Self; 14] = [
        Self::ModelInfer,
        Self::ModelStreamInfer,
        Self::Ask(Question::ServerLive),
        Self::Ask(Question::ServerReady),
        Self::Ask(Question::ModelReady),
        Self::Ask(Question::ServerMetadata),
        Self::Ask(Question::ModelMetadata),
        Self::Ask(Question::ModelConfig),
        Self::Ask(Question::ModelStatistics),
        Self::Ask(Question::RepositoryIndex),
        Self::Ask(Question::RepositoryModelLoad),
        Self::Ask(Question::RepositoryModelUnload),
        Self::Ask(Question::TraceSetting),
        Self::Ask(Question::LogSettings),
    ];

    /// By the name that it has in the service.
    pub(super) fn of_name(name: &str) -> Result<Self, Refusal> {
        let is_named = |method: &Self| method.route().rsplit_once('/').is_some_and(|(_, own)| own == name);
        if let Some(method) = Self::ALL.into_iter().find(is_named) {
            return Ok(method);
        }
        let why = match name {
            name if name.contains("SharedMemory") => {
                "shared memory is not supported; tensors go with the request"
            }
            _ => "there is no such method",
        };
        Err(Refusal::Unsupported(format!("{}/{name}: {why}", protocol::SERVICE)))
    }

    /// Its full name, for spans.
    pub(super) fn route(self) -> &'static str {
        match self {
            Self::Ask(Question::ServerLive) => "inference.GRPCInferenceService/ServerLive",
            Self::Ask(Question::ServerReady) => "inference.GRPCInferenceService/ServerReady",
            Self::Ask(Question::ModelReady) => "inference.GRPCInferenceService/ModelReady",
            Self::Ask(Question::ServerMetadata) => "inference.GRPCInferenceService/ServerMetadata",
            Self::Ask(Question::ModelMetadata) => "inference.GRPCInferenceService/ModelMetadata",
            Self::Ask(Question::ModelConfig) => "inference.GRPCInferenceService/ModelConfig",
            Self::Ask(Question::ModelStatistics) => "inference.GRPCInferenceService/ModelStatistics",
            Self::ModelInfer => "inference.GRPCInferenceService/ModelInfer",
            Self::ModelStreamInfer => "inference.GRPCInferenceService/ModelStreamInfer",
            Self::Ask(Question::RepositoryIndex) => "inference.GRPCInferenceService/RepositoryIndex",
            Self::Ask(Question::RepositoryModelLoad) => "inference.GRPCInferenceService/RepositoryModelLoad",
            Self::Ask(Question::RepositoryModelUnload) => {
                "inference.GRPCInferenceService/RepositoryModelUnload"
            }
            Self::Ask(Question::TraceSetting) => "inference.GRPCInferenceService/TraceSetting",
            Self::Ask(Question::LogSettings) => "inference.GRPCInferenceService/LogSettings",
        }
    }
}

/// Messages here are a few words.
const SMALL: BodyLimits = BodyLimits { bytes_max: 64 << 10, time_max: Duration::from_secs(10) };

impl Grpc {
    /// Answers what asks no model.
    pub(super) async fn ask(
        &self,
        question: Question,
        messages: Messages<Incoming>,
    ) -> Result<Outgoing, Refusal> {
        match question {
            Question::ServerLive => {
                read::<inference::ServerLiveRequest>(messages).await?;
                Ok(Outgoing::of(&inference::ServerLiveResponse { live: true }))
            }
            Question::ServerReady => {
                read::<inference::ServerReadyRequest>(messages).await?;
                let ready = self.readiness.server().is_ok();
                Ok(Outgoing::of(&inference::ServerReadyResponse { ready }))
            }
            Question::ModelReady => {
                let asked: inference::ModelReadyRequest = read(messages).await?;
                // As in Triton, a model that nobody knows is not ready, which is no error.
                let ready = match target(&asked.name, &asked.version) {
                    Ok(target) => matches!(self.readiness.target(target), Ok(Ok(()))),
                    Err(Refusal::NotFound(_)) => false,
                    Err(refusal) => return Err(refusal),
                };
                Ok(Outgoing::of(&inference::ModelReadyResponse { ready }))
            }
            Question::ServerMetadata => {
                read::<inference::ServerMetadataRequest>(messages).await?;
                let server = describe::server(self.repository.control);
                let extensions = server.extensions.iter().filter(|name| **name != OVER_HTTP_ONLY);
                Ok(Outgoing::of(&inference::ServerMetadataResponse {
                    name: server.name.into(),
                    version: server.version.into(),
                    extensions: extensions.map(|name| (*name).to_owned()).collect(),
                }))
            }
            Question::ModelMetadata => {
                let asked: inference::ModelMetadataRequest = read(messages).await?;
                let models = self.path.directory.load();
                let target = self.path.typical(&models, target(&asked.name, &asked.version)?);
                let model = describe::model(&models, target)?;
                Ok(Outgoing::of(&inference::ModelMetadataResponse {
                    name: model.name,
                    versions: model.versions,
                    platform: model.platform.into(),
                    inputs: model.inputs.into_iter().map(tensor).collect(),
                    outputs: model.outputs.into_iter().map(tensor).collect(),
                }))
            }
            Question::ModelConfig => self.model_config(&read(messages).await?),
            Question::ModelStatistics => self.model_statistics(&read(messages).await?),
            Question::TraceSetting => self.trace_setting(read(messages).await?),
            Question::LogSettings => log_settings(read(messages).await?),
            Question::RepositoryIndex => {
                let asked: inference::RepositoryIndexRequest = read(messages).await?;
                no_repository(&asked.repository_name)?;
                let entries = self.repository.entries().into_iter();
                let models =
                    entries.filter(|entry| !asked.ready || entry.state == "READY").map(|entry| ModelIndex {
                        name: entry.name,
                        version: entry.version,
                        state: entry.state.into(),
                        reason: entry.reason,
                    });
                Ok(Outgoing::of(&inference::RepositoryIndexResponse { models: models.collect() }))
            }
            Question::RepositoryModelLoad => {
                let asked: inference::RepositoryModelLoadRequest = read(messages).await?;
                no_repository(&asked.repository_name)?;
                let parameters = asked.parameters.keys().map(String::as_str);
                self.repository.obey(Action::Load, target(&asked.model_name, "")?, parameters).await?;
                Ok(Outgoing::of(&inference::RepositoryModelLoadResponse {}))
            }
            Question::RepositoryModelUnload => {
                let asked: inference::RepositoryModelUnloadRequest = read(messages).await?;
                no_repository(&asked.repository_name)?;
                let parameters = asked.parameters.keys().map(String::as_str);
                self.repository.obey(Action::Unload, target(&asked.model_name, "")?, parameters).await?;
                Ok(Outgoing::of(&inference::RepositoryModelUnloadResponse {}))
            }
        }
    }
}

/// An extension of REST's bodies, whose place raw contents take.
const OVER_HTTP_ONLY: &str = "binary_tensor_data";

/// The one message of a request.
async fn read<T: Message + Default>(mut messages: Messages<Incoming>) -> Result<T, Refusal> {
    let read = async {
        let prefix = messages.next().await?.ok_or_else(|| Refusal::Invalid("there is no message".into()))?;
        // Their bytes are few, and do not count among those of tensors.
        let mut slot = Arc::new(Slots::new(1, 2 * SMALL.bytes_max)).enter(Room::ALL)?;
        prefix.reserve(SMALL.bytes_max, &mut slot)?;
        messages.rest(prefix, SMALL.bytes_max, &mut slot).await
    };
    T::decode(super::call::within(&SMALL, read).await?)
        .map_err(|error| Refusal::Invalid(format!("the message does not decode: {error}")))
}

pub(super) fn target<'a>(model: &'a str, version: &str) -> Result<Target<'a>, Refusal> {
    Ok(Target { model, pinned: super::decode::version(version)? })
}

fn no_repository(name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Ok(());
    }
    Err(Refusal::NotFound(format!("no repository `{name}`: there is one, and it has no name")))
}

fn tensor(described: describe::TensorMetadata) -> TensorMetadata {
    TensorMetadata { name: described.name, datatype: described.datatype.into(), shape: described.shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_the_names_that_the_service_is_described_with() {
        for method in Method::ALL {
            let (service, name) = method.route().split_once('/').unwrap();
            assert_eq!((service, Method::of_name(name)), (protocol::SERVICE, Ok(method)));
            let described = protocol::DESCRIPTION.windows(name.len()).any(|bytes| bytes == name.as_bytes());
            assert!(described, "{name} is not described");
        }
        for (name, says) in [
            ("SystemSharedMemoryRegister", "shared memory is not supported"),
            ("ModelInferr", "no such method"),
            ("", "no such method"),
        ] {
            let refusal = Method::of_name(name).unwrap_err();
            assert!(matches!(&refusal, Refusal::Unsupported(why) if why.contains(says)), "{refusal}");
        }
    }
}
