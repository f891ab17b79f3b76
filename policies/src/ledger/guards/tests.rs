//! Guards where callers meet.

mod interleaved;
