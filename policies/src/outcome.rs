//! How a request ended, in the only four ways a breaker needs to tell apart.
//!
//! The question is always "what does this say about the version?", never "what did the client see?".

/// How a request that entered a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The version answered.
    Served,
    /// The caller's fault, or overload: says nothing about the version.
    Refused,
    /// The version's own fault: a fault in the model, a lost engine, no answer within the deadline.
    Failed,
    /// The client went away or the request was cancelled; also what dropping an unsettled [`Pass`](crate::Pass) means.
    Abandoned,
}
