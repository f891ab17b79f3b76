//! How a request ended, in the only five ways a breaker needs to tell apart.
//!
//! The question is always "what does this say about the version?", never "what did the client see?".

/// How a request that entered a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The version answered.
    Served,
    /// Says nothing about the version: its caller's fault, overload, a missed deadline, an engine that is not there.
    Refused,
    /// The engine went away while it had the request. The version may be why, and so may any other that ran.
    Lost,
    /// The version's own fault: its model failed, or gave what it must not.
    Failed,
    /// The client went away or the request was cancelled; also what dropping an unsettled [`Pass`](crate::Pass) means.
    Abandoned,
}
