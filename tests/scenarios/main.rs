//! Scenarios at the socket: real binaries, real models, real connections. Cores are tested beside their code.

mod access_log;
mod bad_input;
mod breaker_and_limits;
mod canary;
mod compression;
mod configs;
mod drain;
mod engine_loss;
mod grpc;
mod grpc_edges;
mod extensions;
mod hot_swap;
mod pictures;
mod policy_commands;
mod http_edges;
mod readme;
mod remote;
mod remote_tls;
mod retry;
mod request_path;
mod shadow;
mod split;
mod startup;
mod sticky_field;
mod tidy;
mod traces;
