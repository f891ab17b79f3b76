//! How a request ended, in the only four ways a breaker needs to tell apart.
//!
//! The question is always "what does this say about the version?", never "what did the client see?".

/// How a request that entered a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The version answered.
    Served,
    /// Says nothing about the version: its caller's fault, overload, a missed deadline, a lost engine.
    Refused,
    /// The version's own fault: its model failed, or gave what it must not.
    Failed,
    /// The client went away or the request was cancelled; also what dropping an unsettled [`Pass`](crate::Pass) means.
    Abandoned,
}
