//! What a decision costs: with a thousand models of three versions and a hundred thousand callers who are remembered, the
//! snapshot is loaded, a version picked, the limits asked, the breaker entered and settled, the answer counted. Then what it takes to swap that
//! policy, and what a caller's bucket takes of memory.
//!
//! `decision` measures times. `decision N` only decides N times: under `valgrind --tool=callgrind`, the difference between
//! two numbers is exact, whatever the machine does meanwhile; `benches/decision/instructions.sh` does that.

use hdrhistogram::Histogram;
use policies::{Attributes, Ledger, Live, Outcome, Snapshot};
use std::time::{Duration, Instant};

// The proxy's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MODELS: usize = 1_000;
const CALLERS: usize = 100_000;
const DECISIONS: usize = 2_000_000;

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map(|count| count.parse::<usize>()).transpose()?;
    let text = policy();
    let snapshot = || policies::parse(&text, "policies.yaml").map_err(|errors| anyhow::anyhow!("{errors}"));
    let world = World::new(snapshot()?);
    if let Some(count) = count {
        (0..count).for_each(|at| world.decide(&world.request(at), at as u64, world.start));
        return Ok(());
    }

    // Every model keeps a bit for each of its users, from the first one on.
    let decide = |at: usize| world.decide(&world.request(at), at as u64, world.start);
    (0..MODELS).for_each(decide);
    let before = resident();
    (0..CALLERS).for_each(decide);
    let per_caller = (resident() - before) as f64 / CALLERS as f64;
    println!(
        "{MODELS} models of 3 versions, {CALLERS} callers who are remembered, {per_caller:.0} bytes each"
    );

    let (mut took, mut clock) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for at in 0..DECISIONS {
        let at = at.wrapping_mul(7919);
        let request = world.request(at);
        let began = Instant::now();
        let read = Instant::now();
        world.decide(&request, at as u64, world.start);
        took.record(read.elapsed().as_nanos() as u64)?;
        clock.record((read - began).as_nanos() as u64)?;
    }
    let (median, p99) = (took.value_at_quantile(0.5), took.value_at_quantile(0.99));
    println!(
        "a decision: median {median} ns, p99 {p99} ns, mean {:.0} ns, of which reading the clock takes {}",
        took.mean(),
        clock.value_at_quantile(0.5)
    );

    let mut swaps = Vec::new();
    for round in 0..20 {
        let other = text.replace("failures: 5", &format!("failures: {}", 6 + round));
        let began = Instant::now();
        let snapshot =
            policies::parse(&other, "policies.yaml").map_err(|errors| anyhow::anyhow!("{errors}"))?;
        let parsed = began.elapsed();
        world.live.publish(snapshot, &world.ledger, Instant::now());
        world.ledger.retain(&world.live.load().snapshot, |_, _| true);
        swaps.push((began.elapsed(), parsed));
    }
    swaps.sort_unstable();
    let (whole, parsed): (Duration, Duration) = swaps[swaps.len() / 2];
    println!(
        "a swap of the policy of {} kB: {whole:.1?}, of which reading it takes {parsed:.1?} (median)",
        text.len() >> 10
    );
    Ok(())
}

struct World {
    live: Live,
    ledger: Ledger,
    models: Vec<String>,
    callers: Vec<String>,
    start: Instant,
}

impl World {
    fn new(snapshot: Snapshot) -> Self {
        let models = (0..MODELS).map(|at| format!("model-{at}")).collect();
        let callers = (0..CALLERS).map(|at| format!("user-{at}")).collect();
        let (ledger, start) = (Ledger::new(), Instant::now());
        ledger.roll_out(&snapshot, start);
        Self { live: Live::new(snapshot), ledger, models, callers, start }
    }

    /// What the proxy has just read from a socket.
    fn request(&self, at: usize) -> Request {
        Request { model: self.models[at % MODELS].clone(), caller: self.callers[at % CALLERS].clone() }
    }

    /// As the proxy does for each request.
    fn decide(&self, Request { model, caller }: &Request, draw: u64, now: Instant) {
        let caller = Caller(caller);
        let generation = self.live.load();
        let snapshot = &generation.snapshot;
        let pick = self.ledger.pick(snapshot, model, &caller, draw, |_| true).expect("there is a split");
        self.ledger.admit(snapshot, model, &caller, || None, now).expect("they have enough");
        let pass = self.ledger.enter(snapshot, model, pick.version, now).expect("nothing fails");
        pass.settle(Outcome::Served, now);
        self.ledger.count(
            model,
            pick.drawn.expect("the split has decided"),
            pick.key,
            Some(pick.version),
            None,
        );
    }
}

struct Request {
    model: String,
    caller: String,
}

struct Caller<'a>(&'a str);

impl Attributes for Caller<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        (name == "x-user-id").then_some(self.0)
    }

    fn cookie(&self, _name: &str) -> Option<&str> {
        None
    }

    fn query(&self, _name: &str) -> Option<&str> {
        None
    }
}

fn policy() -> String {
    let mut text = String::from("models:\n");
    for at in 0..MODELS {
        text += &format!(
            "  model-{at}:\n    labels: {{stable: 1, next: 2, trial: 3}}\n    split:\n      weights: {{stable: 80, next: 15, trial: 5}}\n      sticky: {{header: x-user-id}}\n    deadline: 2s\n    breaker: {{failures: 5, failing: 50}}\n"
        );
    }
    text + "limits:\n  - {name: per-user, key: {header: x-user-id}, rate: 1000000/h, burst: 1000000, max_keys: 200000}\n  - {name: total, rate: 1000000000/h, burst: 1000000000}\n"
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
