//! What every scenario needs: the whole stack on free ports in a temporary folder, clients, and stand-ins for
//! what cannot be here. Starts the binaries that cargo built; never shares anything between scenarios.
//!
//! Waiting is by asking until something holds ([`eventually`]), because other processes tell no condition
//! variables; a scenario that waits in vain fails with what it waited for.

mod client;
mod collector;
mod engine;
mod grpc;
mod stack;
mod terminal;

pub use client::{Client, Response, infer_body, raw_exchange};
pub use collector::Collector;
pub use engine::{Behaviour, ScriptedEngine, Told};
pub use grpc::{GrpcCaller, GrpcClient, grpc_request};
pub use stack::{
    Out, Stack, StackBuilder, binary, can_hide_memory, free_address, free_addresses, repository,
};
pub use terminal::{Screen, Terminal};

use std::time::{Duration, Instant};

/// Asks until `condition` gives a value; panics with `what` after three minutes: a busy machine takes its time.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
