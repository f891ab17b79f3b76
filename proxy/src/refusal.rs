//! The closed list of ways in which a request can end without an answer, and what each looks like from
//! outside. Decides status, wording and retry advice; never where a refusal arises.

use http::StatusCode;
use std::time::Duration;

/// Why there is no answer. The text goes to the client as `{"error": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request does not make sense: syntax, names, shapes, values.
    #[error("{0}")]
    Invalid(String),
    /// What came of its rows is too large to send: fewer rows may do.
    #[error("{0}")]
    OutputsTooLarge(String),
    /// No such path, model or version.
    #[error("{0}")]
    NotFound(String),
    /// The configuration does not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// The path exists, this method of it does not.
    #[error("use {allow} here")]
    Method {
        /// What the path answers to.
        allow: &'static str,
    },
    /// The protocol has it, this server does not.
    #[error("{0}")]
    Unsupported(String),
    /// The body, or what it says, is larger than the configuration or the engine allows.
    #[error("{what} exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Such as `the body`.
        what: &'static str,
        /// Bytes allowed.
        limit: usize,
    },
    /// The body is compressed in a way that nobody here can read.
    #[error("Content-Encoding `{encoding}` is not supported: send the body as it is, or as gzip or deflate")]
    Encoding {
        /// What was declared.
        encoding: String,
    },
    /// The body stopped coming before it was whole.
    #[error("the body did not arrive within {waited:?}")]
    BodyTimeout {
        /// How long it was waited for.
        waited: Duration,
    },
    /// A rate limit of the policy.
    #[error("limit `{limit}` is exhausted, retry in {:.3} s", seconds(*retry_after))]
    Limited {
        /// Its name in the policy.
        limit: std::sync::Arc<str>,
        /// Exact time until this request would pass.
        retry_after: Duration,
    },
    /// As many requests of this caller are under way as the policy lets.
    #[error("{0}, and as many are")]
    Crowded(policies::Crowded),
    /// More than a rate limit of the policy ever lets through at once.
    #[error("limit `{limit}` lets at most {most} through at once, this request has {got}")]
    Oversized {
        /// Its name in the policy.
        limit: std::sync::Arc<str>,
        /// Its burst.
        most: u32,
        /// What came.
        got: u32,
    },
    /// Too many requests in flight, here or in the engine's queue.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The engine has more to do than this request has time for.
    #[error("overloaded: {why}")]
    Busy {
        /// What the engine says.
        why: String,
        /// When the same request would have a chance.
        retry_after: Duration,
    },
    /// The version's breaker is open.
    #[error("version {version} of model `{model}` keeps failing, its breaker lets nothing through for {:.3} s", seconds(*retry_after))]
    Tripped {
        /// Which model.
        model: String,
        /// Which version.
        version: u64,
        /// Time until the breaker tries again.
        retry_after: Duration,
    },
    /// The version exists in policy or index but does not answer now.
    #[error("{0}")]
    NotReady(String),
    /// The engine is down or went down with this request.
    #[error("the engine is not available: {0}")]
    EngineDown(String),
    /// The deadline passed first.
    #[error("{}", late(*deadline, predicted.as_deref()))]
    DeadlineExceeded {
        /// The time this request was given.
        deadline: Duration,
        /// Why it would have passed, where that was known before: then it was not waited for.
        predicted: Option<String>,
    },
    /// The model failed on this input.
    #[error("the model failed: {0}")]
    ModelFailed(String),
    /// The server that answers this version fails.
    #[error("the server of this version: {0}")]
    RemoteFailed(String),
    /// The server that answers this version is not there: nothing was sent.
    #[error("the server of this version cannot be reached: {0}")]
    RemoteUnreachable(String),
    /// The server that answers this version has not, in all the time that the policy gives it.
    #[error("the server of this version has not answered within {}", time(*waited))]
    RemoteTimeout {
        /// That time.
        waited: Duration,
    },
    /// It has been sent from one server to the next, and may come back for ever.
    #[error("the request has been passed on {hops} times already")]
    Looping {
        /// How many times.
        hops: usize,
    },
    /// The engine or this process broke a promise.
    #[error("internal error: {0}")]
    Internal(String),
    /// The client closed the connection; nobody reads this.
    #[error("the client went away")]
    ClientGone,
}

/// Whole milliseconds, rounded up: who waits that long is let in.
fn seconds(wait: Duration) -> f64 {
    wait.as_nanos().div_ceil(1_000_000) as f64 / 1e3
}

fn late(deadline: Duration, predicted: Option<&str>) -> String {
    let deadline = time(deadline);
    match predicted {
        Some(why) => format!("would not be answered within the deadline of {deadline}: {why}"),
        None => format!("no answer within the deadline of {deadline}"),
    }
}

/// However short, never 0.
pub(crate) fn time(time: Duration) -> String {
    if time < Duration::from_millis(1) {
        format!("{} µs", time.as_micros())
    } else {
        format!("{:.3} s", time.as_secs_f64())
    }
}

impl Refusal {
    /// Clients take as much in the metadata of gRPC, of which they refuse more than 8 KiB and where a byte may take three.
    const MESSAGE_BYTES_MAX: usize = 2 << 10;

    /// What the client is told. It may have given names of any length, which errors repeat.
    pub(crate) fn message(&self) -> String {
        let mut message = self.to_string();
        if message.len() > Self::MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(Self::MESSAGE_BYTES_MAX));
            message.push('…');
        }
        message
    }

    /// How long a client should wait at least, where waiting helps and the policy does not say better.
    const RETRY_SOON: Duration = Duration::from_secs(1);

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::OutputsTooLarge(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::TooLarge { .. } | Self::Oversized { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Encoding { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Limited { .. } | Self::Crowded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded(_)
            | Self::Busy { .. }
            | Self::Tripped { .. }
            | Self::NotReady(_)
            | Self::EngineDown(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded { .. } | Self::RemoteTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::ModelFailed(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::RemoteFailed(_) | Self::RemoteUnreachable(_) => StatusCode::BAD_GATEWAY,
            Self::Looping { .. } => StatusCode::LOOP_DETECTED,
            // Nobody reads it; nginx's number keeps metrics telling.
            Self::ClientGone => StatusCode::from_u16(499).expect("499 is a three-digit status"),
        }
    }

    /// The value of the `reason` label in metrics and spans.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::OutputsTooLarge(_) => "outputs_too_large",
            Self::NotFound(_) => "not_found",
            Self::Forbidden(_) => "forbidden",
            Self::Method { .. } => "method",
            Self::Unsupported(_) => "unsupported",
            Self::TooLarge { .. } => "too_large",
            Self::Oversized { .. } => "oversized",
            Self::Encoding { .. } => "encoding",
            Self::BodyTimeout { .. } => "body_timeout",
            Self::Limited { .. } => "rate_limited",
            Self::Crowded(_) => "crowded",
            Self::Overloaded(_) | Self::Busy { .. } => "overloaded",
            Self::Tripped { .. } => "breaker",
            Self::NotReady(_) => "not_ready",
            Self::EngineDown(_) => "engine_down",
            Self::DeadlineExceeded { .. } => "deadline",
            Self::ModelFailed(_) => "model_failed",
            Self::RemoteFailed(_) | Self::RemoteUnreachable(_) | Self::RemoteTimeout { .. } => "remote",
            Self::Looping { .. } => "loop",
            Self::Internal(_) => "internal",
            Self::ClientGone => "client_gone",
        }
    }

    /// All that [`Refusal::reason`] says.
    pub(crate) const REASONS: [&str; 22] = [
        "invalid",
        "outputs_too_large",
        "not_found",
        "forbidden",
        "method",
        "unsupported",
        "too_large",
        "oversized",
        "encoding",
        "body_timeout",
        "rate_limited",
        "crowded",
        "overloaded",
        "breaker",
        "not_ready",
        "engine_down",
        "deadline",
        "model_failed",
        "remote",
        "loop",
        "internal",
        "client_gone",
    ];

    /// The limit that says so, by its name in the policy.
    pub fn limit(&self) -> Option<&std::sync::Arc<str>> {
        match self {
            Self::Limited { limit, .. } | Self::Oversized { limit, .. } => Some(limit),
            Self::Crowded(crowded) => Some(&crowded.limit),
            Self::Invalid(_)
            | Self::OutputsTooLarge(_)
            | Self::NotFound(_)
            | Self::Forbidden(_)
            | Self::Method { .. }
            | Self::TooLarge { .. }
            | Self::Encoding { .. }
            | Self::BodyTimeout { .. }
            | Self::Overloaded(_)
            | Self::Busy { .. }
            | Self::Tripped { .. }
            | Self::NotReady(_)
            | Self::EngineDown(_)
            | Self::DeadlineExceeded { .. }
            | Self::ModelFailed(_)
            | Self::RemoteFailed(_)
            | Self::RemoteUnreachable(_)
            | Self::RemoteTimeout { .. }
            | Self::Looping { .. }
            | Self::Internal(_)
            | Self::Unsupported(_)
            | Self::ClientGone => None,
        }
    }

    /// When to come back; `None` where coming back with the same request is pointless or unsafe.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. }
            | Self::Tripped { retry_after, .. }
            | Self::Busy { retry_after, .. } => Some(*retry_after),
            Self::Crowded(_) | Self::Overloaded(_) | Self::NotReady(_) | Self::EngineDown(_) => {
                Some(Self::RETRY_SOON)
            }
            Self::Invalid(_)
            | Self::OutputsTooLarge(_)
            | Self::NotFound(_)
            | Self::Forbidden(_)
            | Self::Method { .. }
            | Self::Unsupported(_)
            | Self::TooLarge { .. }
            | Self::Oversized { .. }
            | Self::Encoding { .. }
            | Self::BodyTimeout { .. }
            | Self::DeadlineExceeded { .. }
            | Self::ModelFailed(_)
            | Self::RemoteFailed(_)
            | Self::RemoteUnreachable(_)
            | Self::RemoteTimeout { .. }
            | Self::Looping { .. }
            | Self::Internal(_)
            | Self::ClientGone => None,
        }
    }
}
