//! What clients say over gRPC: the messages of `inference.proto` and `model_config.proto`, made at build time. Bytes are
//! slices of what was received. Decides nothing; the proxy reads the largest message, `ModelInferRequest`, without it, see
//! `grpc/decode.rs` there.

/// Package `inference`.
#[expect(missing_docs, reason = "generated, documented in the .proto files where a name does not say it")]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The same as an encoded `FileDescriptorSet`, for reflection.
pub const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));

/// Full name of the service.
pub const SERVICE: &str = "inference.GRPCInferenceService";
