//! The engine computes: requests come in over one Unix socket, wait in queues, run in batches on lanes, and
//! leave as replies. It knows nothing of HTTP, policies or users; what it is told is in [`wire`].
//!
//! Reading order is a request's life:
//!
//! ```text
//!   listener ─▶ connection ─▶ job ─▶ queue (batcher) ─▶ lane ─▶ model (torch) ─▶ split ─▶ connection
//!               frames  ▲     checked   who with whom   runs                     one reply each
//!                       └──▶ preparers (preprocess): pictures and texts become tensors, where that is declared
//!
//!   library (manifest, golden) ─▶ loader, attempt: torch::load ─▶ trial ─▶ optimise ─▶ calibrate ─▶ catalog: ready
//! ```
//!
//! Invariants:
//! - Every `Infer` frame gets one reply at most, and exactly one unless it was cancelled or its connection is gone.
//! - Nothing reaches a model that `job.rs` has not checked, and nothing leaves whose row count is wrong.
//! - A request that was cancelled or has expired is never run, one that would be late is refused when it comes, and
//!   one that fails fails alone.
//! - tokio never calls a model, and a lane never waits for a socket.
//! - Everything that can grow has a bound: frames, queue, unread replies, connections, versions.
//! - What is watched of tensors (`drift.rs`) is watched after the answers are on their way, and never waited for.
//! - [`batcher`] and [`curve`] know no clock, thread or tensor; `torch.rs` alone names libtorch.

pub mod config;
pub mod listener;
mod connection;
mod mailbox;
mod values;
mod padding;
mod job;
pub mod preprocess;
mod preparers;
mod suspects;
mod queue;
mod ready_first;
mod region;
pub mod batcher;
pub mod curve;
mod watchdog;
pub mod schedule;
pub mod pace;
mod lane;
pub mod model;
#[cfg(feature = "torch")]
pub mod torch;
mod split;
mod drift;
pub mod library;
pub mod manifest;
mod postprocess;
pub mod golden;
pub mod memory;
mod catalog;
mod interrupted;
mod kept;
mod orders;
mod loader;
mod attempt;
mod audit;
mod trial;
pub mod optimise;
mod calibrate;

#[cfg(test)]
mod simulator;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod scenarios;

pub use config::{Config, Device, LogFormat, Settings};
pub use library::{Candidate, Library};
pub use listener::{Listener, StartError};
pub use model::{Model, Spec};
