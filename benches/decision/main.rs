//! What a decision costs: with a thousand models of three versions and a hundred thousand callers who are remembered, the
//! snapshot is loaded, a version picked, the limits asked, the breaker entered and settled, the answer counted. Then what it takes to swap that
//! policy, and what a caller's bucket takes of memory.
//!
//! What came of it, in 70 runs beside neighbours who take the shared cache, so that a line of memory is 200 ns away, and often half of a
//! core: 0.59 to 1.19 µs at the median, in half of the runs less than 0.96, and 1.2 to 2.3 at p99, by some 4,200 instructions; and 1.4 to
//! 2.2 and 4.5 to 5.8 where each model is rolled out. There the decision took 0.92 to 2.1 and 2.1 to 4.6, in runs between these, as long as
//! callers were looked for in a table of places of levels, and limiters, breakers, rollouts and tallies had a pointer each. On a quiet
//! machine that took 0.71 to 0.84. On a quiet Xeon this one took 0.43 to 0.47 µs, and 1.4 to 2.8 at p99, in eight runs; 0.72 to 0.83
//! and 3.3 to 4.1 where each model is rolled out.
//!
//! What a thousand models need is more than a core's own cache has, some 20 lines for each decision. So what counts is how many lines are
//! fetched, and that few wait for another one: a caller's level is in one line that can be asked for as soon as its key is known, in place
//! of three behind one another, which took a quarter of the whole. Then it is how often a processor has to wait for itself, which it does
//! at each lock, and twice for each pointer that may be swapped.
//!
//! A remembered caller takes 168 to 173 bytes, with what breakers and tallies take of the versions that such callers are the first to ask.
//! Swapping that policy, 200 kB of YAML, takes 20 to 38 ms, all but 3 to 8 of them for reading it; 10 and 1 on the Xeon.
//!
//! `MIMALLOC_PURGE_DELAY=0`, by which memory that is free is given back at once, makes the bytes of a caller right, and a decision a
//! sixth slower: a process that answers requests has it at its default.
//!
//! `decision` measures times. `decision N` only decides N times: under `valgrind --tool=callgrind`, the difference between
//! two numbers is exact, whatever the machine does meanwhile; `benches/decision/instructions.sh` does that. `decision 0 N` only swaps N
//! times, for `perf record`.

#[path = "../large_policy.rs"]
mod large_policy;

use hdrhistogram::Histogram;
use large_policy::MODELS;
use policies::{Attributes, Ledger, Live, Outcome, Sight, Snapshot};
use std::borrow::Cow;
use std::time::{Duration, Instant};

// The proxy's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: usize = 100_000;
const DECISIONS: usize = 2_000_000;

const LIMITS: &str = "limits:\n  - {name: per-user, key: {header: x-user-id}, rate: 1000000/h, burst: 1000000, max_keys: 200000}\n  - {name: total, rate: 1000000000/h, burst: 1000000000}\n";

fn main() -> anyhow::Result<()> {
    let count = |at| std::env::args().nth(at).map(|count| count.parse::<usize>()).transpose();
    let text = policy(5);
    let world = World::new(parsed(&text)?);
    if let Some(decisions) = count(1)? {
        (0..decisions).for_each(|at| world.decide(&world.request(at), at as u64, world.start));
        (0..count(2)?.unwrap_or(0)).try_for_each(|at| world.swap(&policy(6 + at)).map(drop))?;
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

    measure("a decision", &world)?;
    let rolled_out = World::new(parsed(&format!("models:\n{}{LIMITS}", rollouts()))?);
    (0..CALLERS).for_each(|at| rolled_out.decide(&rolled_out.request(at), at as u64, rolled_out.start));
    measure("the same where each model is rolled out, which hears of every answer", &rolled_out)?;
    drop(rolled_out);

    let swaps: Result<Vec<_>, _> = (0..20).map(|round| world.swap(&policy(6 + round))).collect();
    let mut swaps = swaps?;
    swaps.sort_unstable();
    let (whole, parsed): (Duration, Duration) = swaps[swaps.len() / 2];
    println!(
        "a swap of the policy of {} kB: {whole:.1?}, of which reading it takes {parsed:.1?} (median)",
        text.len() >> 10
    );
    Ok(())
}

fn measure(what: &str, world: &World) -> anyhow::Result<()> {
    let (mut took, mut clock) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for round in 0..DECISIONS {
        let at = round.wrapping_mul(7919);
        // A hundred thousand in a second.
        let now = world.start + Duration::from_micros(10 * round as u64);
        let request = world.request(at);
        let began = Instant::now();
        let read = Instant::now();
        world.decide(&request, at as u64, now);
        took.record(read.elapsed().as_nanos() as u64)?;
        clock.record((read - began).as_nanos() as u64)?;
    }
    let (median, p99) = (took.value_at_quantile(0.5), took.value_at_quantile(0.99));
    println!(
        "{what}: median {median} ns, p99 {p99} ns, mean {:.0} ns, of which reading the clock takes {}",
        took.mean(),
        clock.value_at_quantile(0.5)
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

    /// Reads another policy and puts it in force: how long both took together, and the reading alone.
    fn swap(&self, text: &str) -> anyhow::Result<(Duration, Duration)> {
        let began = Instant::now();
        let snapshot = parsed(text)?;
        let read = began.elapsed();
        self.live.publish(snapshot, &self.ledger, Instant::now());
        self.ledger.retain(&self.live.load().snapshot, |_, _| true);
        Ok((began.elapsed(), read))
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
        let pick =
            self.ledger.pick(snapshot, model, &caller, draw, |_| true).expect("the policy says who answers");
        self.ledger.admit(snapshot, model, &caller, || None, now).expect("they have enough");
        let pass = self.ledger.enter(snapshot, model, pick.version, now).expect("nothing fails");
        pass.settle(Outcome::Served, now);
        if let Some(assigned) = pick.assigned {
            let under_way = self.ledger.ask(model, assigned);
            let took = Duration::from_micros(1_000 + draw % 3_000);
            self.ledger.witness(model, assigned, pick.key, Sight::Answered(took), now);
            drop(under_way);
        }
        self.ledger.count(
            model,
            pick.drawn.expect("a split or a rollout has decided"),
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
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        (name == "x-user-id").then_some(Cow::Borrowed(self.0))
    }

    fn cookie(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn query(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn path(&self) -> Cow<'_, str> {
        "/v2/models/digits/infer".into()
    }
}

fn policy(failures: usize) -> String {
    format!("models:\n{}{LIMITS}", large_policy::models(failures))
}

/// As many models, each with a rollout in place of its split.
fn rollouts() -> String {
    let model = |at| {
        format!(
            "  model-{at}:\n    labels: {{stable: 1, next: 2}}\n    canary: {{baseline: stable, candidate: next, steps: [20], dwell: 1h, sticky: {{header: x-user-id}}}}\n    \
             deadline: 2s\n    breaker: {{failures: 5, failing: 50}}\n"
        )
    };
    (0..MODELS).map(model).collect()
}

fn parsed(text: &str) -> anyhow::Result<Snapshot> {
    policies::parse(text, "policies.yaml").map_err(|errors| anyhow::anyhow!("{errors}"))
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
