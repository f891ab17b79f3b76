//! What a request costs, against HAProxy answering a constant in the same run, or against another inference server.
//!
//! Machines differ and shared ones drift, so the result is a ratio of CPU time per request, taken in alternating
//! rounds: what disturbs one disturbs the other. The driver shares the cores with what it measures, and its own CPU
//! is not counted. Everything that a user would have on is on: split, limiter, breaker, metrics, traces of 1 %.
//!
//! What came of it, in seven runs on two cores of an AMD EPYC beside neighbours who are now and then busy: HAProxy 2.6 (`apt-get install haproxy`), one thread with
//! `http-request return`, took 7.7 to 10.2 µs of CPU per request, penstock with two linear versions 30.1 to 42.4, 3.9 to 4.8 times as
//! much, and with the demo's linear version and its CNN 39.2 to 57.6, 5.1 to 6.3 times. The former is what stands around a model; the
//! latter adds what a convolutional network costs on a CPU. The ratio is the lower one when the neighbours are not busy. Between 25,000
//! and 39,000 requests/s pass on the two cores that the load driver also uses; an idle `penstock` takes about 42 MB, half of which are
//! pages of its binary.
//!
//! With `--tensors` an image of 600 kB goes to a model that does next to nothing: 178 to 271 µs, 24 to 35 times HAProxy's constant. Half
//! of it is copying, once from the connection and once into the batch, and takes as long as others on the machine leave of its memory.
//!
//! With `--mlserver` the small requests go to MLServer 1.7.1 as well, which runs the same linear model in its cheapest form, one process
//! that logs nothing. Over eight connections a request takes 58 µs of CPU here and 634 there, 11 times as much (20,900 to 22,300
//! requests/s, and 1,500 to 1,600); over 32, 31 and 593 µs, 19 times; over one, where most of both is threads that are put to sleep and
//! woken, 210 and 665 µs.

mod cancels;
mod json;
#[path = "../large_policy.rs"]
mod large_policy;
mod load;
mod paired;
mod reloads;
mod scrapes;
mod server;
mod soak;
mod watched;

use anyhow::Context;
use clap::Parser;
use load::Load;
use server::{Server, Versions, Watched};
use std::time::Duration;

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_secs(2);
const ROUND: Duration = Duration::from_secs(4);

/// What is measured.
#[derive(Parser)]
struct Options {
    /// Instead of small requests, images of 600 kB as binary tensors, and how long they take to decode as JSON.
    #[arg(long, conflicts_with = "soak")]
    tensors: bool,
    /// Instead of HAProxy, MLServer with the same linear model, over one connection, eight, and as many as else.
    #[arg(long, conflicts_with_all = ["soak", "tensors", "watched"])]
    mlserver: bool,
    /// Instead of HAProxy, what it costs to be watched.
    #[arg(long, conflicts_with_all = ["soak", "tensors"])]
    watched: bool,
    /// Instead of HAProxy, what a change of a large policy takes, and what requests notice of it.
    #[arg(long, conflicts_with_all = ["soak", "tensors", "watched"])]
    reloads: bool,
    /// Instead of the comparison, everything at once for so long.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let collector = harness::Collector::start();
    let watched = Watched { traces: Some(collector.address), lines: true };
    let penstock = |name, versions| Server::penstock(name, versions, watched);
    match Options::parse() {
        Options { watched: true, .. } => {
            let nobody = Watched::default();
            let ways = [
                ("alone", nobody),
                ("both", watched),
                ("lines", Watched { lines: true, ..nobody }),
                ("traces", Watched { traces: watched.traces, ..nobody }),
                ("again", nobody),
            ];
            println!(
                "{CONNECTIONS} connections, 64 floats as JSON to linear versions; alone, with an access line for each request and 1 % of \
                 traces, with either, once more alone"
            );
            let penstock = |(name, watched)| Server::penstock(name, Versions::Linear, watched);
            paired::compare(&ways.map(penstock).into_iter().collect::<anyhow::Result<Vec<_>>>()?)?;
            watched::line();
            watched::account();
            watched::scrape();
            scrapes::scrapes()?;
        }
        Options { mlserver: true, .. } => {
            println!("64 floats as JSON to a linear model");
            let servers = [penstock("penstock", Versions::Linear)?, Server::mlserver()?];
            for connections in [1, 8, CONNECTIONS] {
                println!("\nconnections: {connections}");
                rounds(&servers, connections)?;
            }
        }
        Options { reloads: true, .. } => {
            return reloads::reloads(&Server::penstock("penstock", Versions::Linear, Watched::default())?);
        }
        Options { soak: Some(minutes), .. } => {
            return soak::soak(&penstock("penstock", Versions::Demo)?, minutes);
        }
        Options { tensors: true, .. } => {
            println!(
                "{CONNECTIONS} connections; HAProxy is asked with 64 floats, penstock with 1x3x224x224 in binary"
            );
            rounds(&[Server::haproxy()?, penstock("penstock", Versions::Pixels)?], CONNECTIONS)?;
            json::compare();
        }
        Options { .. } => {
            println!(
                "{CONNECTIONS} connections, 64 floats as JSON: two linear versions; a linear one and 10 % to a CNN"
            );
            let linear = penstock("penstock", Versions::Linear)?;
            let servers = [Server::haproxy()?, linear, penstock("with CNN", Versions::Demo)?];
            rounds(&servers, CONNECTIONS)?;
            cancels::cancels()?;
        }
    }
    println!("{} spans were exported meanwhile", collector.spans().len());
    Ok(())
}

/// Loads each of them in turn. The first is what the others are compared with.
fn rounds(servers: &[Server], connections: usize) -> anyhow::Result<()> {
    println!("{ROUNDS} alternating rounds of {} s", ROUND.as_secs());
    let mut loads: Vec<_> =
        servers.iter().map(|server| Load::new(server.address, &server.request, connections)).collect();
    for load in &mut loads {
        load.run(WARM_UP).context("warming up")?;
    }
    let mut totals: Vec<_> = servers.iter().map(|_| Total::default()).collect();
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
    println!("\nCPU per request, all processes of each together:");
    let baseline = totals[0].per_request();
    for (server, total) in servers.iter().zip(&totals) {
        let each = total.per_request();
        println!("  {:9} {each:6.1} µs, {:.2} times {}", server.name, each / baseline, servers[0].name);
    }
    Ok(())
}

#[derive(Default)]
struct Total {
    requests: u64,
    cpu: Duration,
}

impl Total {
    /// Microseconds of CPU time.
    fn per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }
}
