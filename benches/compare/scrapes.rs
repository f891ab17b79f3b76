//! What a scrape of `/metrics` takes whoever asks for it, over a socket, where 1,000 models have a version each, or three, with breakers,
//! and a limit that has refused somebody, and each has been asked. The engine is a stand-in that answers at once.

use crate::large_policy::{self, MODELS};
use crate::server::Server;
use anyhow::{Context, ensure};
use harness::{Behaviour, ScriptedEngine, infer_body};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const SCRAPES: usize = 21;

/// Prints it.
pub(crate) fn scrapes() -> anyhow::Result<()> {
    let one = |at| {
        format!(
            "  model-{at}:\n    split: {{weights: {{1: 1}}}}\n    breaker: {{failures: 5, failing: 50}}\n"
        )
    };
    scrapes_of(1, &(0..MODELS).map(one).collect::<String>())?;
    scrapes_of(3, &large_policy::models(5))
}

fn scrapes_of(versions_each: u64, models: &str) -> anyhow::Result<()> {
    let names: Vec<String> = (0..MODELS).map(|at| format!("model-{at}")).collect();
    let versions = names
        .iter()
        .flat_map(|name| (1..=versions_each).map(|number| (name.as_str(), number, Behaviour::Answer)));
    let engine = ScriptedEngine::start(&versions.collect::<Vec<_>>());
    let limits = "limits:\n  - {name: each, key: {header: x-user-id}, rate: 1/h, burst: 2}\n";
    let policies = format!("models:\n{models}{limits}");
    let server = Server::penstock_at(engine.socket(), &policies)?;
    let monitor = server.monitor.context("penstock is watched somewhere")?;
    let client = harness::Client::new(server.address);
    let body = infer_body("x", [1, 1], &[0.0]);
    for name in &names {
        for number in 1..=versions_each {
            let user = number.to_string() + name;
            let answer = client.post(
                &format!("/v2/models/{name}/versions/{number}/infer"),
                &[("x-user-id", &user)],
                &body,
            );
            ensure!(answer.status == 200, "{name} {number}: {}", answer.text());
        }
    }
    let often = || client.infer(&names[0], &[("x-user-id", "often")], &body).status;
    ensure!([often(), often(), often()] == [200, 200, 429], "the limit is two in an hour");
    for accept in ["application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4"] {
        let scrapes = (0..SCRAPES).map(|_| scrape(monitor, accept)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut took: Vec<Duration> = scrapes.iter().map(|(took, _)| *took).collect();
        took.sort_unstable();
        let text = &scrapes[0].1;
        println!(
            "a scrape over a socket of {MODELS} models of {versions_each} each, {accept}: {:.1?} at the median, {:.1?} at most; {} lines, {} kB",
            took[SCRAPES / 2],
            took[SCRAPES - 1],
            text.lines().count(),
            text.len() / 1000
        );
    }
    Ok(())
}

fn scrape(address: SocketAddr, accept: &str) -> anyhow::Result<(Duration, String)> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: bench\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    let (began, mut text) = (Instant::now(), String::new());
    stream.write_all(request.as_bytes())?;
    stream.read_to_string(&mut text)?;
    let took = began.elapsed();
    ensure!(text.starts_with("HTTP/1.1 200"), "{}", text.lines().next().unwrap_or_default());
    Ok((took, text))
}
