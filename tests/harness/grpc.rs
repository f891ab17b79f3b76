//! A client of gRPC that sends what it is given, and the requests that scenarios send most.

use protocol::inference::model_infer_request::InferInputTensor;
use protocol::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use std::net::SocketAddr;
use std::str::FromStr;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// A client with one connection.
pub struct GrpcClient {
    /// Where its requests run.
    pub runtime: tokio::runtime::Runtime,
    channel: Channel,
}

/// One call, to be awaited on the client's runtime.
#[derive(Clone)]
pub struct GrpcCaller(Channel);

impl GrpcClient {
    /// Talks to one address.
    pub fn new(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    /// For several calls at once.
    pub fn caller(&self) -> GrpcCaller {
        GrpcCaller(self.channel.clone())
    }

    /// Asks a method of the service, such as `ModelReady`.
    pub fn ask<Q, A>(&self, method: &str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/{}/{method}", protocol::SERVICE);
        self.runtime.block_on(self.caller().call(&path, message, &[])).map(Response::into_inner)
    }

    /// `ModelInfer`.
    pub fn infer(
        &self,
        message: ModelInferRequest,
        metadata: &[(&str, &str)],
    ) -> Result<Response<ModelInferResponse>, Status> {
        self.runtime.block_on(self.caller().infer(message, metadata))
    }

    /// `ModelStreamInfer`: all answers, and how it ended.
    pub fn stream(
        &self,
        messages: Vec<ModelInferRequest>,
    ) -> (Vec<ModelStreamInferResponse>, Result<(), Status>) {
        self.runtime.block_on(async {
            let mut answers = Vec::new();
            let mut stream = match self.caller().stream(messages).await {
                Ok(stream) => stream,
                Err(status) => return (answers, Err(status)),
            };
            loop {
                match stream.message().await {
                    Ok(Some(answer)) => answers.push(answer),
                    Ok(None) => return (answers, Ok(())),
                    Err(status) => return (answers, Err(status)),
                }
            }
        })
    }
}

impl GrpcCaller {
    /// Asks whatever method there is.
    pub async fn call<Q, A>(
        self,
        path: &str,
        message: Q,
        metadata: &[(&str, &str)],
    ) -> Result<Response<A>, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.0).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(message);
        put(request.metadata_mut(), metadata);
        grpc.unary(request, PathAndQuery::from_str(path).expect("a path"), ProstCodec::<Q, A>::default())
            .await
    }

    /// `ModelInfer`.
    pub async fn infer(
        self,
        message: ModelInferRequest,
        metadata: &[(&str, &str)],
    ) -> Result<Response<ModelInferResponse>, Status> {
        self.call(&format!("/{}/ModelInfer", protocol::SERVICE), message, metadata).await
    }

    /// `ModelStreamInfer` of all these.
    pub async fn stream(
        self,
        messages: Vec<ModelInferRequest>,
    ) -> Result<Streaming<ModelStreamInferResponse>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path =
            PathAndQuery::from_str(&format!("/{}/ModelStreamInfer", protocol::SERVICE)).expect("a path");
        let codec = ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
        let request = Request::new(tokio_stream::iter(messages));
        grpc.streaming(request, path, codec).await.map(Response::into_inner)
    }
}

fn put(map: &mut MetadataMap, metadata: &[(&str, &str)]) {
    for (name, value) in metadata {
        let name = AsciiMetadataKey::from_str(name).expect("a name");
        map.append(name, value.parse().expect("a value"));
    }
}

/// Asks a model about one FP32 input, with typed contents.
pub fn grpc_request(model: &str, input: &str, shape: [usize; 2], data: &[f32]) -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: data.into(), ..InferTensorContents::default() };
    let input = InferInputTensor {
        name: input.into(),
        datatype: "FP32".into(),
        shape: shape.iter().map(|dimension| *dimension as i64).collect(),
        contents: Some(contents),
        ..InferInputTensor::default()
    };
    ModelInferRequest { model_name: model.into(), inputs: vec![input], ..ModelInferRequest::default() }
}
