//! Compares servers with the first of them, in many short rounds by turns: what disturbs a machine disturbs neighbouring
//! rounds alike, so that each ratio is one of neighbours, and the median of many is the result.
//!
//! CPU is counted from one turn of a server to its next, because what is gathered in a round may be sent after it, less what
//! it takes when nobody asks it anything.

use crate::CONNECTIONS;
use crate::load::Load;
use crate::server::Server;
use anyhow::Context;
use std::time::{Duration, Instant};

const ROUNDS: usize = 80;
const ROUND: Duration = Duration::from_millis(250);
const WARM_UP: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(3);

/// A server, and what it has done.
struct Side<'a> {
    server: &'a Server,
    load: Load,
    /// CPU seconds in a second in which nobody asks.
    idle: f64,
    /// Until the end of a round, and of the pause after it.
    rounds: Vec<Round>,
}

struct Round {
    requests: u64,
    cpu_before: Duration,
    began: Instant,
}

/// Prints how many times as much CPU a request takes at each as at the first.
pub(crate) fn compare(servers: &[Server]) -> anyhow::Result<()> {
    println!("{ROUNDS} rounds of {} s for each by turns", ROUND.as_secs_f64());
    let mut sides = servers.iter().map(Side::new).collect::<anyhow::Result<Vec<_>>>()?;
    idle(&mut sides)?;
    // The last one only ends the one before.
    for _ in 0..=ROUNDS {
        sides.iter_mut().try_for_each(Side::round)?;
    }
    println!(
        "\nCPU per request, all processes of each together; times the first one's, the median of {ROUNDS} pairs:"
    );
    let first = sides[0].per_request();
    for side in &sides {
        let own = side.per_request();
        let ratios = sorted(own.iter().zip(&first).map(|(own, first)| own / first).collect());
        let (low, high) = bounds_of_median(ratios.len());
        println!(
            "  {:8} {:6.2} µs  {:.3} ({:.3} to {:.3})  idle {:.2} ms/s",
            side.server.name,
            median(&sorted(own.clone())),
            median(&ratios),
            ratios[low],
            ratios[high],
            side.idle * 1e3,
        );
    }
    println!("in brackets: where the median lies in 19 of 20 cases");
    Ok(())
}

fn idle(sides: &mut [Side<'_>]) -> anyhow::Result<()> {
    std::thread::sleep(IDLE); // what was gathered while they warmed up is sent
    let before = sides.iter().map(|side| side.server.cpu()).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(IDLE);
    for (side, before) in sides.iter_mut().zip(before) {
        side.idle = (side.server.cpu()? - before).as_secs_f64() / IDLE.as_secs_f64();
    }
    Ok(())
}

impl<'a> Side<'a> {
    fn new(server: &'a Server) -> anyhow::Result<Self> {
        let mut load = Load::new(server.address, &server.request, CONNECTIONS);
        load.run(WARM_UP).context("warming up")?;
        Ok(Self { server, load, idle: 0.0, rounds: Vec::new() })
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let (cpu_before, began) = (self.server.cpu()?, Instant::now());
        let result = self.load.run(ROUND).with_context(|| format!("loading {}", self.server.name))?;
        self.rounds.push(Round { requests: result.requests, cpu_before, began });
        Ok(())
    }

    /// Microseconds of CPU, by round.
    fn per_request(&self) -> Vec<f64> {
        let pairs = self.rounds.windows(2);
        pairs
            .map(|pair| {
                let pause = (pair[1].began - pair[0].began).saturating_sub(ROUND).as_secs_f64();
                let cpu = (pair[1].cpu_before - pair[0].cpu_before).as_secs_f64() - self.idle * pause;
                cpu * 1e6 / pair[0].requests as f64
            })
            .collect()
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Of sorted ones.
fn median(values: &[f64]) -> f64 {
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) }
}

/// Between which of so many sorted ones the true median lies with 95 % (binomial, by its normal approximation).
fn bounds_of_median(count: usize) -> (usize, usize) {
    let (middle, reach) = (count as f64 / 2.0, 0.98 * (count as f64).sqrt());
    let low = (middle - reach).floor().max(0.0) as usize;
    (low, count - 1 - low)
}
