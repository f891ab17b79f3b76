//! What a small request costs, against HAProxy answering a constant in the same run.
//!
//! Machines differ and shared ones drift, so the result is a ratio of CPU time per request, taken in alternating
//! rounds: what disturbs one disturbs the other. The driver shares the cores with what it measures, and its own CPU
//! is not counted. Everything that a user would have on is on: split, limiter, breaker, metrics, traces of 1 %.

mod load;
mod server;
mod soak;

use anyhow::Context;
use clap::Parser;
use load::Load;
use server::{Server, Versions};
use std::time::Duration;

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_secs(2);
const ROUND: Duration = Duration::from_secs(4);

/// What is measured.
#[derive(Parser)]
struct Options {
    /// Instead of the comparison, everything at once for so long.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let collector = harness::Collector::start();
    if let Some(minutes) = Options::parse().soak {
        return soak::soak(&Server::penstock("penstock", Versions::Demo, collector.address)?, minutes);
    }
    let servers = [
        Server::haproxy()?,
        Server::penstock("penstock", Versions::Linear, collector.address)?,
        Server::penstock("with CNN", Versions::Demo, collector.address)?,
    ];
    println!(
        "{CONNECTIONS} connections, 64 floats as JSON, {ROUNDS} alternating rounds of {} s",
        ROUND.as_secs()
    );
    let mut loads = servers
        .iter()
        .map(|server| Load::new(server.address, &server.request, CONNECTIONS))
        .collect::<Vec<_>>();
    for load in &mut loads {
        load.run(WARM_UP).context("warming up")?;
    }
    let mut totals = [Total::default(), Total::default(), Total::default()];
    for round in 1..=ROUNDS {
        for ((server, load), total) in servers.iter().zip(&mut loads).zip(&mut totals) {
            let before = server.cpu()?;
            let result = load.run(ROUND).with_context(|| format!("loading {}", server.name))?;
            let cpu = server.cpu()? - before;
            println!(
                "round {round}  {:9} {:7.0} requests/s  {:5.1} µs CPU/request  p50 {:4} µs  p99 {:5} µs",
                server.name,
                result.requests as f64 / ROUND.as_secs_f64(),
                cpu.as_secs_f64() * 1e6 / result.requests as f64,
                result.latency.value_at_quantile(0.5),
                result.latency.value_at_quantile(0.99),
            );
            total.requests += result.requests;
            total.cpu += cpu;
        }
    }
    let [haproxy, linear, demo] = totals.map(|total| total.cpu.as_secs_f64() * 1e6 / total.requests as f64);
    println!("\nCPU per request, all processes of each together: HAProxy {haproxy:.1} µs");
    println!(
        "  penstock, two linear versions           {linear:5.1} µs, {:.2} times HAProxy",
        linear / haproxy
    );
    println!("  penstock, the demo with 10 % to its CNN {demo:5.1} µs, {:.2} times HAProxy", demo / haproxy);
    println!("{} spans were exported meanwhile", collector.spans().len());
    Ok(())
}

#[derive(Default)]
struct Total {
    requests: u64,
    cpu: Duration,
}
