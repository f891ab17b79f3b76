//! What a refusal is in gRPC's words: a status code from a closed list, a message, and when to come back. Decides no
//! more than that; where refusals arise is not its business.

use crate::refusal::Refusal;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tonic::{Code, Status};

/// What clients that retry by themselves heed (gRPC proposal A6).
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The status code.
pub(crate) fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid(_) | Refusal::OutputsTooLarge(_) => Code::InvalidArgument,
        Refusal::NotFound(_) => Code::NotFound,
        Refusal::Forbidden(_) => Code::PermissionDenied,
        Refusal::Method { .. } | Refusal::Unsupported(_) | Refusal::Encoding { .. } => Code::Unimplemented,
        Refusal::TooLarge { .. }
        | Refusal::Oversized { .. }
        | Refusal::Limited { .. }
        | Refusal::Crowded(_) => Code::ResourceExhausted,
        Refusal::Overloaded(_)
        | Refusal::Busy { .. }
        | Refusal::Tripped { .. }
        | Refusal::NotReady(_)
        | Refusal::EngineDown(_)
        | Refusal::RemoteFailed(_)
        | Refusal::RemoteUnreachable(_) => Code::Unavailable,
        Refusal::BodyTimeout { .. } | Refusal::DeadlineExceeded { .. } | Refusal::RemoteTimeout { .. } => {
            Code::DeadlineExceeded
        }
        Refusal::Looping { .. } => Code::FailedPrecondition,
        Refusal::ModelFailed(_) | Refusal::Internal(_) => Code::Internal,
        Refusal::ClientGone => Code::Cancelled,
    }
}

/// The code in the protocol's own words, for spans.
pub(crate) fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What ends an answer that went well.
pub(crate) fn ok() -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

/// What stands in place of an answer.
pub(crate) fn metadata(refusal: &Refusal) -> HeaderMap {
    let mut headers = HeaderMap::new();
    Status::new(code(refusal), refusal.message())
        .add_header(&mut headers)
        .expect("a message is percent-encoded");
    if let Some(wait) = refusal.retry_after() {
        // Rounded up: earlier would be refused again.
        headers.insert(PUSHBACK, whole(wait.as_nanos().div_ceil(1_000_000)));
        headers.insert(header::RETRY_AFTER, whole(wait.as_nanos().div_ceil(1_000_000_000)));
    }
    headers
}

fn whole(number: u128) -> HeaderValue {
    HeaderValue::from(u64::try_from(number.max(1)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn whoever_should_come_back_is_told_when() {
        let retry_after = Duration::from_micros(1_200_300);
        let limited = metadata(&Refusal::Limited { limit: "per-user".into(), retry_after });
        assert_eq!(limited["grpc-status"], "8");
        assert_eq!(limited["grpc-retry-pushback-ms"], "1201");
        assert_eq!(limited["retry-after"], "2");
        let invalid = metadata(&Refusal::Invalid("größer".into()));
        assert_eq!(invalid["grpc-status"], "3");
        assert_eq!(invalid["grpc-message"], "gr%C3%B6%C3%9Fer");
        assert!(!invalid.contains_key("retry-after") && !invalid.contains_key("grpc-retry-pushback-ms"));
    }

    #[test]
    fn a_message_fits_what_clients_take() {
        let long = metadata(&Refusal::NotFound(format!("no model `{}`", "ü".repeat(1 << 20))));
        assert!(long["grpc-message"].len() < 7 << 10, "{}", long["grpc-message"].len());
    }
}
