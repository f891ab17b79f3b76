//! What the metadata of each frame says. Prost messages, so that fields can be added without a new protocol
//! version: an unknown field is skipped, a missing one is its default.
//!
//! Times are durations, in microseconds where their name says nothing else, never clock readings, except
//! [`Timing::received_unix_ns`]: two processes of one machine share the wall clock, not an epoch of their monotonic ones.

use crate::tensor::TensorMeta;

/// First frame of a connection: who the engine is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// Process id, for logs.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Release, for logs.
    #[prost(string, tag = "2")]
    pub release: String,
    /// Where models run: `cpu` or `cuda:0`.
    #[prost(string, tag = "3")]
    pub device: String,
    /// Bytes of tensors that one request may have; a longer frame costs the connection. 0 is the most that
    /// [`Limits`](crate::Limits) let.
    #[prost(uint64, tag = "4")]
    pub payload_bytes_max: u64,
    /// Whether payloads may lie in memory of both, see [`Region`].
    #[prost(bool, tag = "5")]
    pub takes_regions: bool,
}

/// Memory in which payloads may lie in place of the stream. It is the connection's, and ends with it.
///
/// Two memory files travel beside it, in this order. In the first lie payloads, each in a run of blocks: the proxy writes
/// there what nobody reads, and only reads what it has lent; the engine only reads. The second has a little-endian `u32` for
/// each block, which the engine increases when it gives back a payload that has its credit there. Both sides count, and
/// neither believes what it cannot check: lengths travel in the stream.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Region {
    /// Bytes for payloads: that of the first file, and a multiple of a block.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Bytes of a block.
    #[prost(uint64, tag = "2")]
    pub block_bytes: u64,
}

/// Where a payload lies in the [`Region`] of its connection.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Placed {
    /// Its first byte there.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// How many it has.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// The block whose count says that it was given back.
    #[prost(uint32, tag = "3")]
    pub credit: u32,
}

/// How the engine is, asked by every `Ping`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Health {
    /// Bytes of it that are in memory.
    #[prost(uint64, tag = "1")]
    pub resident_bytes: u64,
    /// Bytes that it may hold.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Bytes that its machine or control group has.
    #[prost(uint64, tag = "3")]
    pub available_bytes: u64,
    /// Of the GPU, where models run on one.
    #[prost(message, optional, tag = "4")]
    pub device: Option<DeviceMemory>,
    /// Requests that wait, and runs that have not ended.
    #[prost(uint64, tag = "5")]
    pub under_way: u64,
    /// Bytes of those requests, with the copies that runs are made from.
    #[prost(uint64, tag = "6")]
    pub request_bytes: u64,
    /// Bytes that these may be.
    #[prost(uint64, tag = "7")]
    pub request_bytes_max: u64,
    /// What is known of the tensors of some versions, of those that have been asked since this connection was told of
    /// them: a few at a time, all in turn.
    #[prost(message, repeated, tag = "8")]
    pub drifts: Vec<VersionDrift>,
    /// Runs that have not ended.
    #[prost(uint64, tag = "9")]
    pub running: u64,
    /// Bytes of it that were in memory once all that its allocator keeps had been given back, where much is; told once.
    #[prost(uint64, optional, tag = "10")]
    pub held_bytes: Option<u64>,
    /// Of the runs that have not ended, those that nobody waits for any more.
    #[prost(uint64, tag = "11")]
    pub given_up: u64,
}

/// How far what a version is given, and what it answers, have moved from its reference: the first rows that its files
/// were given. By a sample of its rows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionDrift {
    /// Of the model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Which version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// See [`ModelEntry::load`].
    #[prost(uint64, tag = "3")]
    pub load: u64,
    /// Rows that were looked at.
    #[prost(uint64, tag = "4")]
    pub seen: u64,
    /// Whether the reference is complete.
    #[prost(bool, tag = "5")]
    pub has_reference: bool,
    /// Windows of rows that were compared with it.
    #[prost(uint64, tag = "6")]
    pub windows: u64,
    /// What the last one has shown; empty before there was one.
    #[prost(message, repeated, tag = "7")]
    pub tensors: Vec<TensorDrift>,
    /// How sure it is of its answers; absent unless an output is declared to hold classes.
    #[prost(message, optional, tag = "8")]
    pub confidence: Option<Confidence>,
    /// How long ago the last window ended, ms.
    #[prost(uint64, tag = "9")]
    pub ended_ms: u64,
    /// How long it has lasted, ms.
    #[prost(uint64, tag = "10")]
    pub lasted_ms: u64,
}

/// How far one tensor has moved: Jensen–Shannon divergences, 0 to 1 bit, in millionths.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TensorDrift {
    /// What it is.
    #[prost(enumeration = "DriftSide", tag = "1")]
    pub side: i32,
    /// Its name; of what comes as bytes, its lengths are meant.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The best guess; of the column that has moved most, where each is looked at by itself.
    #[prost(uint32, tag = "3")]
    pub bits_millionths: u32,
    /// It is at least so much. More than 0 by chance in at most one of ten million windows of all that is watched of a version.
    #[prost(uint32, tag = "4")]
    pub least_millionths: u32,
    /// It is at most so much, in any column.
    #[prost(uint32, tag = "5")]
    pub most_millionths: u32,
    /// Which column.
    #[prost(uint32, optional, tag = "6")]
    pub column: Option<u32>,
    /// Rows of the window.
    #[prost(uint32, tag = "7")]
    pub rows: u32,
}

/// What has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DriftSide {
    /// What a version is given.
    Input = 0,
    /// What it answers.
    Output = 1,
    /// How probable it holds the class to be that it holds most probable.
    Confidence = 2,
}

/// Probabilities of the most probable class.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Confidence {
    /// How many were within each tenth, from 0 to 1; always ten.
    #[prost(uint64, repeated, tag = "1")]
    pub tenths: Vec<u64>,
    /// All of them together, in millionths.
    #[prost(uint64, tag = "2")]
    pub sum_millionths: u64,
}

/// The memory of a GPU.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DeviceMemory {
    /// Bytes that this engine holds, in use or kept for later.
    #[prost(uint64, tag = "1")]
    pub held_bytes: u64,
    /// Bytes that nobody holds.
    #[prost(uint64, tag = "2")]
    pub free_bytes: u64,
    /// Bytes in all.
    #[prost(uint64, tag = "3")]
    pub total_bytes: u64,
}

/// Every version the engine knows, ready or not. Sent whole at each change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Index {
    /// Sorted by name, then version.
    #[prost(message, repeated, tag = "1")]
    pub models: Vec<ModelEntry>,
    /// Grows with every change in the life of an engine.
    #[prost(uint64, tag = "2")]
    pub revision: u64,
}

/// One version of one model.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ModelEntry {
    /// Folder name under the model repository.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Folder name under the model, at least 1.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Whether it answers.
    #[prost(enumeration = "ModelState", tag = "3")]
    pub state: i32,
    /// Why it is unavailable, or why it is not batched; empty otherwise.
    #[prost(string, tag = "4")]
    pub reason: String,
    /// Inputs in the order of the model's `forward`.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the order in which the model returns them.
    #[prost(message, repeated, tag = "6")]
    pub outputs: Vec<TensorSpec>,
    /// Rows that run together at most; 1 means never batched; 0 means the first dimension is not a batch.
    #[prost(uint32, tag = "7")]
    pub max_batch: u32,
    /// Threads of each run, measured or configured; 0 unless ready.
    #[prost(uint32, tag = "8")]
    pub threads: u32,
    /// Runs at the same time, at most.
    #[prost(uint32, tag = "9")]
    pub at_once: u32,
    /// Which form of the model runs (as loaded, frozen, ..), and what was measured about it.
    #[prost(string, tag = "10")]
    pub form: String,
    /// How long runs took when it was loaded, by rows.
    #[prost(message, repeated, tag = "11")]
    pub curve: Vec<CurvePoint>,
    /// Which load of its files answers: another number whenever they were loaded anew, and 0 unless ready. Numbers of two
    /// engine processes have nothing to do with each other.
    #[prost(uint64, tag = "12")]
    pub load: u64,
    /// Which files answer: the same number for the same ones, in another engine as well. 0 where that is not known.
    #[prost(fixed64, tag = "15")]
    pub files: u64,
    /// What it takes and can be asked for, as a number: two versions of one engine for which it is the same, and not 0, refuse the same requests.
    #[prost(fixed64, tag = "13")]
    pub takes: u64,
    /// For each input, something that it takes.
    #[prost(message, repeated, tag = "16")]
    pub examples: Vec<Example>,
    /// What its outputs mean, for protocols that have no tensors.
    #[prost(message, optional, tag = "20")]
    pub postprocess: Option<Postprocess>,
    /// It is unavailable because somebody has ordered that, and for no other reason.
    #[prost(bool, tag = "21")]
    pub unloaded: bool,
}

/// What stands in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Holds {
    /// The same number everywhere.
    Numbers = 0,
    /// Files with pictures.
    Pictures = 1,
    /// Texts.
    Texts = 2,
}

/// A tensor that an input takes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Example {
    /// Of one row, where it has rows. Empty where nothing is declared.
    #[prost(uint64, repeated, tag = "1")]
    pub shape: Vec<u64>,
    /// A whole number in decimal.
    #[prost(string, tag = "2")]
    pub number: String,
    /// What stands in it.
    #[prost(enumeration = "Holds", tag = "3")]
    pub holds: i32,
}

/// An output that holds classes, as a model's author declares it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Postprocess {
    /// Its name; its last dimension has a place for each class.
    #[prost(string, tag = "1")]
    pub output: String,
    /// Whether it holds logits, of which probabilities are still to be made.
    #[prost(bool, tag = "2")]
    pub softmax: bool,
    /// How many classes a ranking has, at most.
    #[prost(uint32, tag = "3")]
    pub top_k: u32,
    /// How they are told.
    #[prost(enumeration = "ClassForm", tag = "4")]
    pub form: i32,
}

/// How classes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ClassForm {
    /// The most probable ones, each with its probability.
    Ranking = 0,
    /// The most probable one, and the probabilities of all.
    Prediction = 1,
}

/// How long a run of so many rows takes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CurvePoint {
    /// Rows of one run.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// What it typically takes, µs.
    #[prost(uint64, tag = "2")]
    pub typical_us: u64,
}

impl CurvePoint {
    /// Rounded down to microseconds.
    pub fn new(rows: u32, typical: std::time::Duration) -> Self {
        Self { rows, typical_us: typical.as_micros() as u64 }
    }
}

/// Life of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ModelState {
    /// Being loaded, warmed up and tested.
    Loading = 0,
    /// Answers requests.
    Ready = 1,
    /// Could not be loaded; see the reason.
    Unavailable = 2,
}

impl ModelState {
    /// For people.
    pub fn as_word(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Declared form of an input or output.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TensorSpec {
    /// Name on the wire and in JSON.
    #[prost(string, tag = "1")]
    pub name: String,
    /// [`crate::Datatype`] as a number; 0 when the model does not declare it.
    #[prost(uint32, tag = "2")]
    pub datatype: u32,
    /// Dimensions, −1 where any size goes; meaningless when `datatype` is 0.
    #[prost(sint64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    /// What the indices of the last dimension mean, for classifiers; usually empty.
    #[prost(string, repeated, tag = "4")]
    pub labels: Vec<String>,
}

/// Bring a model up or take it down.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Control {
    /// Which of the two.
    #[prost(enumeration = "Action", tag = "1")]
    pub action: i32,
    /// Which model.
    #[prost(string, tag = "2")]
    pub model: String,
    /// Which of its versions; 0 means all.
    #[prost(uint64, tag = "3")]
    pub version: u64,
}

/// What a [`Control`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Action {
    /// Nothing that this side knows.
    Unspecified = 0,
    /// Load what is new in the model's folder or has changed, and take out what is gone.
    Load = 1,
    /// Take it out once nothing of it waits or runs.
    Unload = 2,
}

/// Run a version on the tensors of the payload.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Infer {
    /// Which model.
    #[prost(string, tag = "1")]
    pub model: String,
    /// Which version; the proxy has decided.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// What is left of the caller's patience when the frame is written, µs; 0 means none was set.
    #[prost(uint64, tag = "3")]
    pub budget_us: u64,
    /// Where each input lies in the payload.
    #[prost(message, repeated, tag = "4")]
    pub inputs: Vec<TensorMeta>,
    /// Names of the outputs wanted; empty means all.
    #[prost(string, repeated, tag = "5")]
    pub outputs: Vec<String>,
    /// Present when the request is traced: the engine then reports its timing in wall-clock terms.
    #[prost(message, optional, tag = "6")]
    pub trace: Option<TraceContext>,
    /// 1 before others, 2 (or 0) as usual, 3 and above after others.
    #[prost(uint32, tag = "7")]
    pub priority: u32,
    /// Who asks, as a hash: callers whose requests make batches fail are kept from the others. 0 if nobody says.
    #[prost(fixed64, tag = "8")]
    pub caller: u64,
    /// Who goes when there is not enough for all: 1 after others, 2 (or 0) as usual, 3 and above before others.
    #[prost(uint32, tag = "9")]
    pub criticality: u32,
    /// With whom it shares what there is, as a hash: among equally critical ones, those of the tenant go who has most
    /// waiting. 0 if nobody says.
    #[prost(fixed64, tag = "10")]
    pub tenant: u64,
    /// Where the payload lies, if not in this frame, which has none then.
    #[prost(message, optional, tag = "11")]
    pub placed: Option<Placed>,
    /// Nobody waits for the answer: it runs when nothing else waits, whatever its priority.
    #[prost(bool, tag = "12")]
    pub is_copy: bool,
}

/// W3C identity of the span that a request belongs to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TraceContext {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub trace_id: bytes::Bytes,
    /// 8 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub span_id: bytes::Bytes,
}

/// The one answer to an [`Infer`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reply {
    /// How it went.
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// Why it did not go well: one line for the caller; empty when ok.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Where each output lies in the payload.
    #[prost(message, repeated, tag = "3")]
    pub outputs: Vec<TensorMeta>,
    /// Where the time went; absent when nothing ran.
    #[prost(message, optional, tag = "4")]
    pub timing: Option<Timing>,
    /// When it makes sense to ask again, µs; 0 if that is not known.
    #[prost(uint64, tag = "5")]
    pub retry_after_us: u64,
    /// Of a [`Control`]: the first index that shows what it did. Tag 6 was another field's.
    #[prost(uint64, tag = "7")]
    pub revision: u64,
}

/// How an [`Infer`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// The engine itself failed. The default, so that a reply that says nothing is no success.
    Internal = 0,
    /// Outputs are in the payload.
    Ok = 1,
    /// The caller's tensors do not fit the model; nothing ran.
    InvalidArgument = 2,
    /// No such model or version, or it is not ready; nothing ran.
    NotFound = 3,
    /// The queue is full, or the answer would come too late, and nothing ran; or it has run, and its answer has no room on its way out.
    Overloaded = 4,
    /// The deadline passed while the request was queued, or would have before it could have run.
    DeadlineExceeded = 5,
    /// The model failed on it.
    ModelFailed = 6,
    /// The engine is stopping; nothing ran.
    Unavailable = 7,
    /// What it ran on is lost, and so is the engine soon; the request may have been what did it.
    DeviceLost = 8,
    /// It ran, and the outputs of so many rows are too large to send: its caller can ask for fewer.
    OutputsTooLarge = 9,
}

/// Where the time of one request went inside the engine.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Timing {
    /// From arrival, or from the end of its pre-processing, to leaving the queue, µs.
    #[prost(uint64, tag = "1")]
    pub queue_us: u64,
    /// From leaving the queue to the end of the batch it ran in, µs: gather, forward, split.
    #[prost(uint64, tag = "2")]
    pub run_us: u64,
    /// Rows that ran together.
    #[prost(uint32, tag = "3")]
    pub batch_rows: u32,
    /// Requests that ran together.
    #[prost(uint32, tag = "4")]
    pub batch_requests: u32,
    /// Arrival by the wall clock, ns since 1970; 0 unless the request is traced.
    #[prost(fixed64, tag = "5")]
    pub received_unix_ns: u64,
    /// Of the request that tells of the batch it ran in: the first one of it that is traced.
    #[prost(message, optional, tag = "6")]
    pub batch: Option<Batch>,
    /// Rows of this request; 1 where the model's first dimension is not a batch.
    #[prost(uint32, tag = "7")]
    pub rows: u32,
    /// Of the run that completed it, where its time went.
    #[prost(message, optional, tag = "8")]
    pub phases: Option<Phases>,
    /// Runs that no other reply tells of. Each batch is told by one of its members, and what ran in pieces tells of
    /// all that had nobody else in them. A run of which nobody waits for any answer is told by nobody.
    #[prost(message, repeated, tag = "9")]
    pub runs: Vec<Run>,
    /// From arrival until its tensors were made of what was sent, µs; 0 if they were sent.
    #[prost(uint64, tag = "10")]
    pub prepare_us: u64,
    /// The batch's span, drawn anew for each; never 0. Also of requests that are not traced, since some are only found worth
    /// it at their end.
    #[prost(fixed64, tag = "11")]
    pub batch_id: u64,
    /// The first half of the trace that tells of the batch; 0 where none of its requests was traced.
    #[prost(fixed64, tag = "12")]
    pub batch_trace_high: u64,
    /// The second half.
    #[prost(fixed64, tag = "13")]
    pub batch_trace_low: u64,
    /// Rows of the batch before those of this request.
    #[prost(uint32, tag = "14")]
    pub position: u32,
    /// Why no more rows ran with these.
    #[prost(enumeration = "Closed", tag = "15")]
    pub closed: i32,
    /// Of the elements that the batch was given, those that were padded, in millionths.
    #[prost(uint32, tag = "16")]
    pub padding_millionths: u32,
}

/// Why a batch has no more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Closed {
    /// Nobody has said.
    Unspecified = 0,
    /// That was all that waited.
    Everything = 1,
    /// That was all, after it had waited for more.
    Waited = 2,
    /// As many rows as may run together.
    Full = 3,
    /// More would not have made rows any faster.
    Efficient = 4,
    /// More would have made somebody late.
    Deadline = 5,
    /// Its version runs one request at a time.
    Alone = 6,
    /// It is a part of a batch that has failed.
    Divided = 7,
}

impl Closed {
    /// All of them, by their numbers.
    pub const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::Everything,
        Self::Waited,
        Self::Full,
        Self::Efficient,
        Self::Deadline,
        Self::Alone,
        Self::Divided,
    ];

    /// For metrics and spans.
    pub fn as_word(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Everything => "everything",
            Self::Waited => "waited",
            Self::Full => "full",
            Self::Efficient => "efficient",
            Self::Deadline => "deadline",
            Self::Alone => "alone",
            Self::Divided => "divided",
        }
    }
}

/// Where the time of one run went.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Phases {
    /// From leaving the queue until the inputs of all rows lay side by side, ns.
    #[prost(uint64, tag = "1")]
    pub input_ns: u64,
    /// From then until the model had given its outputs, ns; copies to a GPU and back are in it.
    #[prost(uint64, tag = "2")]
    pub infer_ns: u64,
    /// From then until they were cut into one answer per request, ns.
    #[prost(uint64, tag = "3")]
    pub output_ns: u64,
}

/// One run of the model.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Run {
    /// Rows that ran together.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Where its time went.
    #[prost(message, optional, tag = "2")]
    pub phases: Option<Phases>,
    /// Why it had no more rows.
    #[prost(enumeration = "Closed", tag = "3")]
    pub closed: i32,
    /// What it was expected to take when it was formed, µs; 0 where nothing was known.
    #[prost(uint64, tag = "4")]
    pub expected_us: u64,
    /// Of the elements that it was given, those that were padded, in millionths.
    #[prost(uint32, tag = "5")]
    pub padding_millionths: u32,
}

impl Run {
    /// What it took, divided by what it was expected to take; `None` where nothing was known.
    pub fn over_expected(&self) -> Option<f64> {
        let Phases { input_ns, infer_ns, output_ns } = self.phases?;
        let took_us = (input_ns + infer_ns + output_ns) as f64 / 1e3;
        (self.expected_us > 0).then(|| took_us / self.expected_us as f64)
    }
}

/// Who ran together. It comes with the reply to the first of them that is traced, whose receiver exports the batch's span;
/// every member knows that span by [`Timing::batch_id`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Batch {
    /// All traced members.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<TraceContext>,
    /// Of each, the rows before its own.
    #[prost(uint32, repeated, tag = "3")]
    pub positions: Vec<u32>,
}
