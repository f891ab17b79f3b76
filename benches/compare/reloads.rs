//! What a change of a large policy takes, and what requests notice of it: how long from the moment at which the file is moved
//! there to the first answer that is decided by it; and the latency of requests at a steady rate, in windows with changes and
//! windows without, which alternate. Each request has a time at which it is due, so that an answer that is late hides no other.
//!
//! There are windows with one change, which is still more than a person makes, and windows with one after another. Beside what
//! they do stands what the machine does: what windows without changes differ by, and windows in which another process reads the
//! same policies, one after another, and goes after all others as well. In those without changes files are moved too, to where
//! nobody looks.
//!
//! What came of it: from the move to the first request that is decided by the new policy, 42 to 50 ms at the median (eight runs, nine in ten
//! of each within 29 to 60), beside a client that asks all the time, on a machine half as fast, beside busy neighbours. It took 73 to 89
//! there, and 29 to 54 on others, before plain policies were read in half the time. A file counts once its writer has closed it and it
//! has been the same for 10 ms, during which it is read and compared already by a thread of the lowest priority, or for 100 ms while
//! somebody has it open. To put it in force takes 0.1 ms, to read it 18 to 31 on the slow machine where nobody asks meanwhile. On a quiet
//! Xeon it was 20 and 21 ms from the move on (nine in ten within 17 to 34).
//!
//! In four runs of twelve windows with one change the p99, 0.5 to 0.6 ms, was 0.97, 1.04, 1.06 and 1.07 times what it was beside them, while
//! quiet windows differed among themselves by 0.84 to 1.19. In four runs of 64 on the slow machine, whose quiet windows have a p99 of 2.1
//! to 5.3 ms, it was 1.09, 0.97, 1.01 and 0.98 times what came of quiet ones in the same way, the median 1.00 to 1.01: none of it
//! tells 5 % from nothing (the first run is of all its windows and arithmetic means, the others of geometric ones).
//!
//! What tells more is the window itself, with the second after its middle, when a change comes, and without: 64 with a change have 0.987
//! times the p99 with it (95 %: 0.962 to 1.016; one run), quiet ones 0.979 (0.965 to 1.002), so a change makes it 1.01 times as long (0.98
//! to 1.05), and in other runs 1.01 (0.98 to 1.05), 1.01 (0.98 to 1.06) and 1.02 (0.99 to 1.05); on the Xeon, in 32 windows each, 1.05
//! (1.03 to 1.10) and 1.06 (1.02 to 1.10). That is of all requests of five seconds, and bounds no single one that comes while a policy is read.
//!
//! Changes every 250 ms are felt: the p99 takes 1.7 times as long beside neighbours, and 4.4 times, 2.0 ms, on a quiet machine; where it is
//! another process that reads the policy as often in the same way, 1.6 and 3.3 times.

use crate::large_policy;
use crate::load::is_whole;
use crate::server::Server;
use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Changes of which each is waited for.
const CHANGES: usize = 60;

/// Connections with a thread each, and how often each of them asks: 1,600 requests in a second.
const CONNECTIONS: u32 = 16;
const EVERY: Duration = Duration::from_millis(10);

/// How often all kinds of windows take turns, each with a quiet one before it and one after it. Those with one change take several
/// turns: twelve cannot tell some percent from nothing on a machine whose quiet ones differ by more.
const ROUNDS: usize = 8;
const KINDS: [(&str, Beside, usize); 3] = [
    ("one change", Beside::Changes(WINDOW), 8),
    ("many", Beside::Changes(OFTEN), 1),
    ("none, and another process", Beside::Work, 1),
];
const WINDOW: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(250);

/// All that a change makes late is due within so long after it.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What happens in a window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// A file is moved, but not to where penstock looks.
    Quiet,
    /// Another policy comes into force, once every so often.
    Changes(Duration),
    /// The same as in a quiet one, and another process reads a policy each time.
    Work,
}

/// Prints both.
pub(crate) fn reloads(server: &Server) -> anyhow::Result<()> {
    let file = PolicyFile { file: server.folder().join("policies.yaml"), failures: AtomicU64::new(5) };
    let mut client = Connection::open(server)?;
    effect(&mut client, &file)?;
    traffic(server, &file)
}

fn effect(client: &mut Connection, file: &PolicyFile) -> anyhow::Result<()> {
    let mut took = Vec::new();
    for _ in 0..CHANGES {
        let before = client.generation()?;
        let beside = file.write_another()?;
        let began = Instant::now();
        std::fs::rename(beside, &file.file)?;
        while client.generation()? == before {
            ensure!(began.elapsed() < Duration::from_secs(10), "the policy has not changed");
        }
        took.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    took.remove(0); // the small policy that was there at first
    took.sort_unstable();
    let at = |share: f64| took[(took.len() as f64 * share) as usize];
    println!(
        "a policy of {} models, from its file to the first answer by it: {:.1?} at the median, {:.1?} to {:.1?} for nine in ten, {:.1?} at most",
        large_policy::MODELS,
        at(0.5),
        at(0.05),
        at(0.95),
        took[took.len() - 1]
    );
    Ok(())
}

fn traffic(server: &Server, file: &PolicyFile) -> anyhow::Result<()> {
    let rate = CONNECTIONS as f64 / EVERY.as_secs_f64();
    println!(
        "{rate} requests/s over {CONNECTIONS} connections, in windows of {WINDOW:?}: with one change, with a change every {OFTEN:?}, \
         and in which another process reads one as often, with quiet ones between them"
    );
    window(server, file, Beside::Quiet)?; // to warm up
    let mut quiet = vec![window(server, file, Beside::Quiet)?];
    let mut others = KINDS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (all, (_, beside, turns)) in others.iter_mut().zip(KINDS) {
            for _ in 0..turns {
                all.push((quiet.len() - 1, window(server, file, beside)?));
                quiet.push(window(server, file, Beside::Quiet)?);
            }
        }
    }
    println!(
        "  p99 of a window, against that of the same one without the {AFTERMATH:?} after its middle, at which a change comes"
    );
    let calm: Vec<_> = quiet.iter().map(Window::with_its_middle).collect();
    let changed: Vec<_> = others[0].iter().map(|(_, one)| one.with_its_middle()).collect();
    println!(
        "    quiet windows {}, one change {}: {}",
        spread(calm.clone()),
        spread(changed.clone()),
        ratio(&changed, &calm)
    );
    let quiet: Vec<_> = quiet.iter().collect();
    let among_themselves = quiet.windows(3).map(|of| (of[1], [of[0], of[2]])).collect();
    compare("quiet windows", among_themselves);
    for ((kind, ..), all) in KINDS.iter().zip(&others) {
        let all = all.iter().map(|(before, one)| (one, [quiet[*before], quiet[before + 1]]));
        compare(kind, all.collect());
    }
    Ok(())
}

/// Prints how windows compare with their two neighbours (geometric mean), so that a machine that gets slower is no ratio: the half of
/// them from which other machines on the same cores took the least.
fn compare(kind: &str, mut all: Vec<(&Window, [&Window; 2])>) {
    all.sort_by_key(|(one, beside)| one.stolen + beside[0].stolen + beside[1].stolen);
    all.truncate(all.len().div_ceil(2));
    let stolen = median(all.iter().map(|(one, _)| one.stolen.as_secs_f64()).collect());
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    println!(
        "  {kind}: {} windows, from which others took {:.1} % of the cores",
        all.len(),
        100.0 * stolen / WINDOW.as_secs_f64() / cores
    );
    for (name, share) in [("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        let of = |window: &Window| quantile(&window.took, share);
        let ratios = all.iter().map(|(one, beside)| of(one) / (of(beside[0]) * of(beside[1])).sqrt());
        let own = median(all.iter().map(|(one, _)| of(one)).collect());
        println!("    {name:6} {own:5.0} µs, {} times as beside them", spread(ratios.collect()));
    }
}

struct Window {
    /// Latencies in microseconds, sorted.
    took: Vec<f64>,
    /// Of these, those of requests that were not due within [`AFTERMATH`] after its middle.
    elsewhere: Vec<f64>,
    /// What all cores together could not do for us because they worked for other machines.
    stolen: Duration,
}

impl Window {
    /// What the requests around a change make of its p99: those before and after share it with all that else disturbs the machine.
    fn with_its_middle(&self) -> f64 {
        quantile(&self.took, 0.99) / quantile(&self.elsewhere, 0.99)
    }
}

fn window(server: &Server, file: &PolicyFile, beside: Beside) -> anyhow::Result<Window> {
    let (every, to) = match beside {
        Beside::Changes(every) => (every, file.file.clone()),
        Beside::Quiet => (WINDOW, file.file.with_extension("unread")),
        Beside::Work => (OFTEN, file.file.with_extension("unread")),
    };
    let times = WINDOW.div_duration_f64(every) as u32;
    // Written before, because that takes time as well.
    let written = (0..times).map(|_| file.write_another()).collect::<Result<Vec<_>, _>>()?;
    let text = format!("models:\n{}", large_policy::models(5));
    let mut client = Connection::open(server)?;
    let generation = client.generation()?;
    let (begin, before) = (Instant::now() + Duration::from_millis(50), stolen()?);
    std::thread::scope(|scope| {
        let steady = |number: u32| {
            let first = begin + EVERY * number / CONNECTIONS;
            scope.spawn(move || Connection::open(server)?.steady(first, begin + WINDOW))
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(steady).collect();
        for (at, written) in (0..).zip(written) {
            let next = begin + every / 2 + every * at;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            std::fs::rename(written, &to)?;
            if beside == Beside::Work {
                scope.spawn(|| work_behind_all(&text));
            }
        }
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("no panic")?);
        }
        if let Beside::Changes(_) = beside {
            // Of those that come one after another, one may be read with the next, and the last may still be on its way.
            let (changed, changes) = (client.generation()? - generation, u64::from(times));
            let is_most = changed <= changes && 2 * changed > changes;
            ensure!(is_most, "{changed} changes of {changes} came into force");
        }
        all.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        let middle = begin + WINDOW / 2..begin + WINDOW / 2 + AFTERMATH;
        let elsewhere = all.iter().filter(|(due, _)| !middle.contains(due)).map(|(_, took)| *took).collect();
        let took = all.iter().map(|(_, took)| *took).collect();
        Ok(Window { took, elsewhere, stolen: stolen()?.saturating_sub(before) })
    })
}

/// Since the machine has started, as Linux tells it in hundredths of a second.
fn stolen() -> anyhow::Result<Duration> {
    let counts = std::fs::read_to_string("/proc/stat")?;
    let stolen = counts.lines().next().and_then(|all| all.split_whitespace().nth(8));
    Ok(Duration::from_millis(10 * stolen.context("a count")?.parse::<u64>()?))
}

/// As much as a change of policy is, and as it is done there.
fn work_behind_all(text: &str) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a structure that lives; 0 is this thread.
    let told = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    assert_eq!(told, 0, "everybody may go after all others");
    drop(policies::parse(text, "policy").expect("it is a policy"));
}

/// Each change is another policy.
struct PolicyFile {
    file: PathBuf,
    failures: AtomicU64,
}

impl PolicyFile {
    /// Writes one beside it, to be moved there.
    fn write_another(&self) -> anyhow::Result<PathBuf> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) as usize;
        let own = "models:\n  digits:\n    split: {weights: {1: 90, 2: 10}}\n";
        let beside = self.file.with_extension(failures.to_string());
        std::fs::write(&beside, format!("{own}{}", large_policy::models(failures)))?;
        Ok(beside)
    }
}

/// One that blocks: its thread does nothing else, so what it measures is not what else its thread has to do.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(server: &Server) -> anyhow::Result<Self> {
        let address: SocketAddr = server.address;
        let stream = TcpStream::connect(address).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, request: server.request.clone(), answer: Vec::new() })
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.request)?;
        self.answer.clear();
        let mut chunk = [0; 4096];
        while !is_whole(&self.answer)? {
            let read = self.stream.read(&mut chunk)?;
            ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&self.answer));
            self.answer.extend_from_slice(&chunk[..read]);
        }
        Ok(())
    }

    fn generation(&mut self) -> anyhow::Result<u64> {
        self.ask()?;
        let text = String::from_utf8_lossy(&self.answer);
        let line = text.lines().find_map(|line| line.strip_prefix("x-penstock-generation: "));
        Ok(line.context("a generation")?.parse()?)
    }

    /// Asks at `next` and so on: when each request was due, and the microseconds that it took.
    fn steady(mut self, mut next: Instant, until: Instant) -> anyhow::Result<Vec<(Instant, f64)>> {
        let mut took = Vec::new();
        while next < until {
            let due = next.saturating_duration_since(Instant::now());
            std::thread::sleep(due);
            // One that had to wait for the answer before it counts from when it was due.
            let sent = if due.is_zero() { next } else { Instant::now() };
            self.ask()?;
            took.push((next, sent.elapsed().as_secs_f64() * 1e6));
            next += EVERY;
        }
        Ok(took)
    }
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    quantile(&all, 0.5)
}

/// How many times the others' median theirs is, and between what that lies with 95 %: as it does where as many are drawn from among them,
/// again and again.
fn ratio(these: &[f64], others: &[f64]) -> String {
    let mut dice = StdRng::seed_from_u64(1);
    let mut drawn =
        |from: &[f64]| median((0..from.len()).map(|_| from[dice.random_range(0..from.len())]).collect());
    let mut ratios: Vec<f64> = (0..2_000).map(|_| drawn(these) / drawn(others)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = median(these.to_vec()) / median(others.to_vec());
    format!("{ratio:.3} times (95 %: {:.3} to {:.3})", quantile(&ratios, 0.025), quantile(&ratios, 0.975))
}

/// The median, between what it lies with 95 %, and the quartiles.
fn spread(mut sorted: Vec<f64>) -> String {
    sorted.sort_by(f64::total_cmp);
    // Of n values as many lie below their median as of n coins show heads.
    let off = 0.98 / (sorted.len() as f64).sqrt();
    format!(
        "{:.3} (95 %: {:.3} to {:.3}; quartiles {:.2} to {:.2})",
        quantile(&sorted, 0.5),
        quantile(&sorted, (0.5 - off).max(0.0)),
        quantile(&sorted, (0.5 + off).min(1.0)),
        quantile(&sorted, 0.25),
        quantile(&sorted, 0.75)
    )
}
