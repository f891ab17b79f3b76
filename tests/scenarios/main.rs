//! Scenarios at the socket: real binaries, real models, real connections. Cores are tested beside their code.
//!
//! What must hold, each with a test here or there:
//!
//! - A request loads the policy once and never sees two generations; a reload under load fails none.
//! - A file that does not compile changes nothing; what did not change in a file keeps its state (breakers, limits).
//! - A rate-limited request spends nothing at any limit.
//! - A breaker counts only the failures of the version's own files, as they were last loaded, and cannot wedge: a probe is a lease.
//! - Every dtype, rank, dimension and byte length is checked before libtorch sees it.
//! - Models whose rows change when they run together are found at load and never batched.
//! - A request that is cancelled, expired or orphaned is never run, nor run again if its batch fails; one bad row fails alone.
//! - One that would be late behind what waits is refused when it comes; 100,000 random schedules lose none and answer none twice.
//! - Memory that both have mapped has one writer, who waits for the last reader, and is free again whoever leaves or is killed.
//! - An engine that follows one that was killed loads first what was ready, and of that first what takes least.
//! - Answers that nobody reads take the room of bodies and no more, and give it back when their clients have gone.
//! - While nothing that runs comes back, who would wait for it beyond its deadline is refused at once.
//! - A killed proxy leaves no engine behind; a stopping one answers what it has accepted and tells clients to close.

mod access_log;
mod bad_input;
mod breaker_and_limits;
mod canary;
mod compression;
mod configs;
mod dialects;
mod dashboard;
mod declarations;
mod drain;
mod drift;
mod engine_loss;
mod grpc;
mod grpc_edges;
mod grpc_extensions;
mod extensions;
mod fairness;
mod hot_swap;
mod large_answers;
mod large_bodies;
mod pictures;
mod policy_commands;
mod http_edges;
mod queries;
mod readme;
mod remote;
mod remote_protocols;
mod remote_tls;
mod retry;
mod request_path;
mod reservations;
mod shadow;
mod split;
mod startup;
mod sticky_field;
mod tidy;
mod top;
mod traces;
