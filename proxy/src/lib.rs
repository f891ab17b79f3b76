//! The proxy: everything between a client's socket and the engine's.
//!
//! Modules stand in the order in which a request meets them; read [`service`] and [`infer`] first.
//! `penstock` never links libtorch: when a model takes its process down, this one answers 503 and restarts it.
//!
//! Invariants:
//! - a request loads the policy once and never sees two generations;
//! - every request that pingora can parse ends in exactly one [`record::Record`], whatever cut it short;
//! - requests in flight, their bodies and queued frames have limits, and what waits for a client or the engine a deadline.

pub mod config;
pub mod fixed;
pub mod serve;

pub mod service;
mod slow_reader;
pub mod route;
pub mod dialect;
mod label;
pub mod caller;
pub mod body;
mod breakers;
mod large_body;
mod growing;
mod compression;
pub mod call;
pub mod grpc;
pub mod infer;
pub mod slots;
pub mod decode;
mod raw_request;
mod deadline;
mod field;
pub mod shadow;
pub mod tensor_json;
mod skeleton;
mod numbers;
mod object;
mod nested;
mod columns;
pub mod link;
pub mod links;
mod region;
mod pulse;
pub mod encode;
mod classification;
pub mod refusal;
pub mod describe;
mod extensions;
pub mod model_config;
pub mod settings;
mod openapi;
mod page;
mod example;
pub mod repository;
pub mod readiness;
pub mod record;
pub mod request_id;
pub mod metrics;
pub mod exposition;
pub mod statistics;
mod triton_metrics;
pub mod drift;
pub mod histogram;
pub mod refused;
pub mod trace;
pub mod spans;
pub mod export;
pub mod access;
pub mod log;

mod gate;
mod certificates;
mod connectors;
pub mod remote;
mod unreachable;
mod translated;
pub mod directory;
pub mod supervisor;
pub mod reload;
pub mod keeping;
pub mod revisions;
mod files;
pub mod drain;
pub mod policy_state;
pub mod rollout_history;
pub mod status;
pub mod overview;
mod dashboard;
pub mod monitor;
mod origin;
pub mod admin;
mod aside;
pub mod rollouts;
pub mod command;
mod shares;
pub mod top;
