//! Why a request is not run, in one line that says what was expected and what came; and what kind of answer that is.

use crate::model::Version;
use std::time::Duration;
use wire::{Status, TensorError};

/// Why a request is not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no model `{model}`; there are {known}")]
    UnknownModel { model: String, known: String },
    #[error("model `{model}` has no version {version}; there are {known}")]
    UnknownVersion { model: String, version: u64, known: String },
    #[error("model `{model}` version {version} is still loading; known versions are {known}")]
    Loading { model: String, version: u64, known: String },
    #[error("model `{model}` version {version} is unavailable ({why}); known versions are {known}")]
    Unavailable { model: String, version: u64, why: String, known: String },
    #[error("unknown input `{name}`; the model takes {known}")]
    UnknownInput { name: String, known: String },
    #[error("input `{name}` is given twice")]
    InputTwice { name: String },
    #[error("input `{name}` is missing")]
    InputMissing { name: String },
    #[error("input `{name}`: {got} given, {want} expected")]
    Datatype { name: String, want: &'static str, got: &'static str },
    #[error("input `{name}`: BYTES given, and no `preprocess` of its model.yaml makes numbers of them")]
    NoNumbers { name: String },
    #[error("input `{name}`: shape {got:?} does not match {want}")]
    Shape { name: String, want: String, got: Vec<u64> },
    #[error("input `{name}` has {rank} dimensions, {want} expected")]
    Rank { name: String, rank: usize, want: String },
    #[error("input `{name}`: dimension {position} of {got:?} is 0; empty tensors are not run")]
    Empty { name: String, position: usize, got: Vec<u64> },
    #[error("input `{name}` has {got} rows, input `{other}` has {rows}")]
    RowsDiffer { name: String, got: u64, other: String, rows: u64 },
    #[error("input `{name}`: dimension `{dimension}` is {got}, in `{other}` it is {size}")]
    SizesDiffer { dimension: String, name: String, got: u64, other: String, size: u64 },
    #[error("input `{name}`: dimension `{dimension}` is {got}, at most {max} is allowed")]
    TooLong { dimension: String, name: String, got: u64, max: u64 },
    #[error("{rows} rows in one request, at most {most} run together")]
    TooManyRows { rows: u64, most: u32 },
    #[error("input `{name}`: a BOOL byte is {got}, only 0 and 1 are")]
    Bool { name: String, got: u8 },
    #[error("input `{name}`: {got} is not within {min} to {max}")]
    Bounds { name: String, got: i128, min: i128, max: i128 },
    #[error("input `{name}`, row {row} {why}")]
    Unfit { name: String, row: usize, why: String },
    #[error("one of its inputs cannot be decoded")]
    Undecodable,
    #[error("unknown output `{name}`; the model gives {known}")]
    UnknownOutput { name: String, known: String },
    #[error("output `{name}` is requested twice")]
    OutputTwice { name: String },
    #[error("input {0}")]
    Tensor(#[from] TensorError),
    #[error("request id {id} is already waiting on this connection")]
    Duplicate { id: u64 },
    #[error("the queue is full; what waits takes about {} ms", wait.as_millis())]
    Overloaded { wait: Duration },
    #[error("{got} {what} in one request, at most {most} are held at once")]
    TooLarge { what: &'static str, got: u64, most: u64 },
    #[error("it would be late: about {} ms of work stand before it", wait.as_millis())]
    TooLate { wait: Duration },
    #[error("it made way for somebody who matters more or asks less; what waits takes about {} ms", wait.as_millis())]
    Shed { wait: Duration },
    #[error("the deadline passed while the request was queued")]
    Expired,
    #[error("too little is left of the deadline for a run, which takes longer")]
    Hopeless,
    #[error("the engine is stopping")]
    Stopping,
}

impl Refusal {
    pub(crate) fn too_many_bytes(got: usize, most: usize) -> Self {
        Self::TooLarge { what: "bytes", got: got as u64, most: most as u64 }
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::UnknownModel { .. }
            | Self::UnknownVersion { .. }
            | Self::Loading { .. }
            | Self::Unavailable { .. } => Status::NotFound,
            Self::UnknownInput { .. }
            | Self::InputTwice { .. }
            | Self::InputMissing { .. }
            | Self::Datatype { .. }
            | Self::NoNumbers { .. }
            | Self::Unfit { .. }
            | Self::Undecodable
            | Self::Shape { .. }
            | Self::Rank { .. }
            | Self::Empty { .. }
            | Self::RowsDiffer { .. }
            | Self::SizesDiffer { .. }
            | Self::TooLong { .. }
            | Self::TooManyRows { .. }
            | Self::Bool { .. }
            | Self::Bounds { .. }
            | Self::TooLarge { .. }
            | Self::UnknownOutput { .. }
            | Self::OutputTwice { .. }
            | Self::Tensor(_)
            | Self::Duplicate { .. } => Status::InvalidArgument,
            Self::Overloaded { .. } | Self::TooLate { .. } | Self::Shed { .. } => Status::Overloaded,
            Self::Expired | Self::Hopeless => Status::DeadlineExceeded,
            Self::Stopping => Status::Unavailable,
        }
    }

    /// Names what a version takes in place of its tensors as well.
    pub(super) fn with_raw(self, version: &Version) -> Self {
        match (self, &version.preprocess) {
            (Self::UnknownInput { name, known }, Some(preprocess)) => {
                let known = format!("{known}, or {}", preprocess.names());
                Self::UnknownInput { name, known }
            }
            (refusal, _) => refusal,
        }
    }

    /// When it makes sense to ask again, where that is known.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Overloaded { wait } | Self::TooLate { wait } | Self::Shed { wait } => *wait,
            _ => Duration::ZERO,
        }
    }
}

/// A name that the caller made up, cut to what fits a line.
pub(crate) fn shortened(name: &str) -> String {
    shortened_to(name, 80)
}

pub(crate) fn shortened_to(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
