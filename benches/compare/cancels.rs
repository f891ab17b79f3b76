//! How soon the engine is told of a client that has left: from the moment at which the client closes its connection to the
//! moment at which the engine has read that what it asked for is cancelled. The engine is a stand-in that never answers. A real one
//! takes what is cancelled out of its queue as soon as it has read so, and `tests/scenarios/engine_loss.rs` shows that it never runs.

use crate::server::Server;
use anyhow::Context;
use harness::{Behaviour, ScriptedEngine, infer_body};
use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

const CLIENTS: usize = 200;

/// Prints it.
pub(crate) fn cancels() -> anyhow::Result<()> {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let server = Server::penstock_at(engine.socket(), "models: {}\n")?;
    let body = infer_body("x", [1, 1], &[0.0]);
    let length = body.len();
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n\r\n");
    let mut took = Vec::new();
    for number in 1..=CLIENTS {
        let mut client = TcpStream::connect(server.address)?;
        client.write_all(&[head.as_bytes(), &body].concat())?;
        engine.wait_until_asked(number);
        let left = Instant::now();
        drop(client);
        engine.next_cancel().context("a client has left, and the engine is not told")?;
        took.push(left.elapsed());
    }
    took.sort_unstable();
    let at = |share: f64| took[(CLIENTS as f64 * share) as usize];
    println!(
        "\na client closes its connection: the engine has read so within {:.2?} (median of {CLIENTS}), {:.2?} (p99)",
        at(0.5),
        at(0.99)
    );
    Ok(())
}
