//! What `penstock` and `penstock-engine` say to each other, as bytes. Sans-IO: callers move the bytes.
//!
//! One Unix socket carries many requests at once; frames of different requests interleave freely and are
//! told apart by [`Frame::id`]. Reading order: [`frame`] (the envelope and its limits), [`message`] (what the
//! metadata says), [`tensor`] (datatypes and where a tensor lies in the payload), [`outbox`] (coalesced writing),
//! [`mapping`] (memory of both, in which large payloads lie in place of the stream).
//!
//! ```text
//!  0        4        6        8                16        20        24                32
//!  ├────────┼────────┼────────┼─────────────────┼─────────┼─────────┼─────────────────┤
//!  │ magic  │version │  kind  │       id        │meta len │ zero    │   payload len   │  header, little-endian
//!  ├────────┴────────┴────────┴─────────────────┴─────────┴─────────┴─────────────────┤
//!  │ metadata (prost), zero-padded until the payload starts at a multiple of 64       │
//!  ├──────────────────────────────────────────────────────────────────────────────────┤
//!  │ payload: raw little-endian tensors, each at a multiple of 64 (absent if length 0)│
//!  └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: a length is compared with [`Limits`] before a byte is reserved for it; a corrupt frame is an
//! error and never a panic; any cut of the byte stream decodes to the same frames. A side that reads a
//! [`FrameError`] closes the connection, because the stream has lost its framing.

pub mod elements;
pub mod frame;
pub mod mapping;
pub mod message;
pub mod outbox;
pub mod tensor;
pub mod whole;

pub use elements::{Elements, push_element};
pub use frame::{Decoder, Frame, FrameError, Kind, Limits, PROTOCOL_VERSION};
pub use mapping::Mapping;
pub use message::{
    Action, Batch, ClassForm, Closed, Confidence, Control, CurvePoint, DeviceMemory, DriftSide, Example,
    Health, Hello, Holds, Index, Infer, ModelEntry, ModelState, Phases, Placed, Postprocess, Region, Reply,
    Run, Status, TensorDrift, TensorSpec, Timing, TraceContext, VersionDrift,
};
pub use outbox::{Outbox, Segments};
pub use tensor::{Datatype, Layout, TensorError, TensorMeta, element_count};
pub use whole::whole_of;
