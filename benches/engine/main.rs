//! What the engine makes of libtorch, against bare loops of the same run on the same threads.
//!
//! For each real model, in alternating rounds: a plain loop (`torch.jit.load` and `forward`), the best bare loop (the
//! form of the model that the engine has chosen, run directly), and the engine, saturated over its socket. The loops find
//! their rows in memory, copy them into a tensor and run it, at the batch size that is best for each length of rows. Then
//! three times more work than it can do. Where rows cost unlike much, what was answered within a few seconds counts as so many average
//! rows, by what each length takes in the best loop, and of a batch that part which ran within them. Beside that, `lone` and `swaps`, with
//! the demo's models. The driver shares the cores with what it measures, and what it takes of them is in the CPU of a row. Saturated rates
//! are in the README.
//!
//! What came of the rest, medians of rounds: a lone request comes to its model after 76 to 93 µs, 25 to 35 more than where a thread that reads
//! as urgently (`CAP_SYS_NICE`) only hands it to another, which takes 44 to 64. It is answered 32 to 66 µs later than there, and 92 to 151
//! later than by the thread that reads, of 567 to 643 after 20 ms of rest; the model ran for 26. Where the other thread that reads is an
//! ordinary one, the kernel wakes the next on another core: that takes 101 to 110, 12 to 20 more than the engine, which wakes a lane before
//! it reads and checks the request. On a machine half as fast it comes to its model after 99 to 141, 22 to 54 more, and is answered 37 to 127 later.
//!
//! At three times the load with 200 ms each, 0.978, 0.975 and 0.977 of the peak is answered in time (images, which lie in memory that the
//! engine shares, as a proxy's do; 0.93 to 0.98 in six runs before, in which the driver cleared 64 kB for each answer; medians of eight
//! windows of 4 s, each between two of the peak, on the slow machine, whose capacity goes from 46 to 71 rows/s within minutes). Batches have one row
//! on average, as at the peak; the lanes have 96.3 % of the cores, where they have 98.9 % at the peak: the thread that reads and refuses takes 1.5 %,
//! the driver's two as much, and they wake up 400 times a second in the lanes' place. Of sentences it is 1.2 to 1.5: the short ones are answered. By
//! what they cost it is 0.56 to 0.73 (13 rounds, on a machine half as fast): within 200 ms no more than five of a length come there, and a short one
//! in a batch of so many takes 1.4 times as long as in one of 32, as capacity is measured. Refusals come within 0.03 to 0.7 ms at p99, but for three
//! of 60 rounds: 1.7, 5.5 and 6.6. That takes the right to run at once (`CAP_SYS_NICE`, or `docker run --ulimit rtprio=1`) for the thread that reads;
//! without it, and where the kernel interrupts nobody for an ordinary thread (`PREEMPT_NONE`, 250 Hz, as here), they came within 2.2 to 4 ms.
//!
//! A hundred swaps of a model at 70 % of the load (3 to 7 s each, no request of 7 to 8 million lost) took the p99 of those who ask meanwhile
//! from 1.9 to 1.9 ms in one run, from 1.5 to 2.0 (and 1.8 after them) in another, from 1.4 to 1.9 (and 1.7 after them) in a third, from
//! 1.7 to 1.7 (and 1.4 after them) in a fourth, from 1.5 to 1.8 in a fifth, up to 2.4 in others. In ten pairs of parts it was 1.04 times as
//! long. Where the machine had nothing to spare for loading a model (15 s for each swap), it was 1.01 to 1.17 times what it was between
//! them, in each of three parts, and 0.93 to 1.13 (quartiles of ten parts, the median 1.00) where each swap took 12 s on a machine half as
//! fast. There it was 3.6 ms between them and meanwhile in another run, and 1.03 to 1.17 (1.10) in its parts, with 16 s for each swap, and no
//! request of 10.5 million was lost.
//!
//! On two cores of an Intel Xeon, where it takes 100 to 225 µs to wake a thread on another core and nine to be woken on one's own, a lone
//! request comes to its model after 292 to 608, 155 to 418 more than beside. At three times the load 0.92 and 0.94 of the peak is answered in
//! time: within 200 ms no more than four images run together there, and eight to sixteen at the peak. A row of EfficientNet takes 1.04
//! and 1.03 times the CPU that it takes in the best loop (0.96 and 0.98 of its rate), one of MiniLM 1.07 (0.94).
//! A hundred swaps made the p99 1.12 times as long (1.03 to 1.15 in ten parts), and of 9.5 million requests none was lost.
//!
//! With `bf16: true` the model of sentences runs 1.5 to 1.75 times as fast on a CPU that has the instructions.
//!
//! On a GPU (one NVIDIA H100, 16 cores) a lone request comes to its model after 40 to 113 µs, where waking any thread takes 29 to 84. A plain loop
//! in Python does 12,400 to 13,500 rows/s of the ResNet-18 and 668,000 to 698,000 of the perceptron. On an H200 images at three times the load
//! are answered as fast as without (1.01), refusals come within 0.5 ms; of the perceptron, at 80,000 requests/s, 0.94 and 7.8 ms. A loop in
//! Python does 14,300 and 670,000 rows/s there.

mod driver;
mod lone;
mod region;

use anyhow::{Context, bail};
use clap::Parser;
use driver::{Driver, Saturated, Speed, Workload};
use engine::manifest::Manifest;
use engine::model::{Gathered, Model, Optimisation};
use engine::{Config, Device, Library, Listener, schedule, torch};
use hdrhistogram::Histogram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::ModelEntry;

/// Of what saturates the machine: many short ones, of which two neighbours see the same of whoever else is on it.
const SATURATED_ROUNDS: usize = 8;

/// In so many parts, each beside one without.
const SWAPS: u32 = 100;
const SWAPS_PARTS: u32 = 10;
const CLIENTS: usize = 16;
const BUDGET: Duration = Duration::from_millis(200);

/// What is measured, and where.
#[derive(Parser)]
struct Options {
    /// Folder of models that benches/models/make.py or untrained.py has made.
    models: PathBuf,
    /// Only this model, or `lone` or `swaps`; by default all.
    only: Option<String>,
    /// Only this part of what is measured of models.
    #[arg(long)]
    part: Option<Part>,
    /// Where models run: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Length of a round; half of it, where there are many.
    #[arg(long, value_name = "SECONDS", default_value = "8")]
    round: u64,
}

/// What takes little time to measure.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// What is answered in time when there is too much to do.
    Overload,
}

fn main() -> anyhow::Result<()> {
    let Options { models, only, part, device, round } = Options::parse();
    let filter = tracing_subscriber::EnvFilter::new("warn");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let device = torch::resolve(device).map_err(anyhow::Error::msg)?;
    let round = Duration::from_secs(round);
    let is_wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    let workloads =
        [Workload::efficientnet(), Workload::minilm(), Workload::resnet18(), Workload::perceptron()];
    for workload in workloads.into_iter().filter(|workload| is_wanted(workload.model)) {
        if models.join(workload.model).exists() {
            let measured = match part {
                Some(part) => measure_part(part, &models, &workload, device, round),
                None => measure(&models, &workload, device, round),
            };
            measured.with_context(|| workload.model.to_owned())?;
        }
    }
    if is_wanted("lone") {
        lone::lone(device).context("lone")?;
    }
    if is_wanted("swaps") { swaps(device, round).context("swaps") } else { Ok(()) }
}

/// A folder that has this version of the demo's model, as its only one.
fn demo_version(number: &str) -> anyhow::Result<tempfile::TempDir> {
    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo/models/digits");
    let folder = tempfile::tempdir()?;
    let version = folder.path().join("digits/1");
    std::fs::create_dir_all(&version)?;
    for file in ["model.pt", "model.yaml"] {
        std::fs::copy(Path::new(DEMO).join(number).join(file), version.join(file))?;
    }
    Ok(folder)
}

/// What reloading a model again and again does to those who ask it meanwhile.
fn swaps(device: Device, round: Duration) -> anyhow::Result<()> {
    let folder = demo_version("2")?;
    let version = folder.path().join("digits/1");
    let workload = Workload::digits();
    let (socket, _) = serve(folder.path(), workload.model, device)?;
    let (mut orders, _) = Driver::connect(&socket, &workload)?;
    let during = |pause, work: &mut dyn FnMut() -> anyhow::Result<()>| {
        let is_over = AtomicBool::new(false);
        let one = || Driver::join(&socket, &workload)?.paced(pause, &is_over);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one)).collect();
            let worked = work();
            is_over.store(true, Ordering::Relaxed);
            let mut all = Histogram::<u64>::new(3)?;
            for client in clients {
                all.add(client.join().expect("no panic")?)?;
            }
            worked.map(|()| all)
        })
    };
    let mut calm = || {
        std::thread::sleep(round);
        Ok(())
    };
    // So long a pause that seven tenths are left of what the clients do without one.
    let hurried = during(Duration::ZERO, &mut calm)?.len() as f64 / round.as_secs_f64();
    let pause = Duration::from_secs_f64(CLIENTS as f64 / hurried * (1.0 / 0.7 - 1.0));
    let mut swap = || {
        // Another file of the same content.
        std::fs::copy(version.join("model.pt"), version.join("new"))?;
        std::fs::rename(version.join("new"), version.join("model.pt"))?;
        orders.load()
    };
    let (mut between, mut meanwhile) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    let (mut ratios, mut swapping) = (Vec::new(), Duration::ZERO);
    let show =
        |took: &Histogram<u64>| (took.value_at_quantile(0.5), took.value_at_quantile(0.99), took.max());
    for part in 1..=SWAPS_PARTS {
        let without = during(pause, &mut calm)?;
        let began = Instant::now();
        let with = during(pause, &mut || (0..SWAPS / SWAPS_PARTS).try_for_each(|_| swap()))?;
        let took = began.elapsed();
        swapping += took;
        ratios.push(show(&with).1 as f64 / show(&without).1 as f64);
        println!(
            "part {part}  {} swaps in {took:.0?}: (p50, p99, longest) µs {:?} before them, {:?} meanwhile",
            SWAPS / SWAPS_PARTS,
            show(&without),
            show(&with)
        );
        between.add(&without)?;
        meanwhile.add(&with)?;
    }
    let each = swapping / SWAPS;
    println!(
        "{SWAPS} swaps of {each:.0?} each while {CLIENTS} clients ask for 70 % of {hurried:.0} rows/s: (p50, p99, longest) µs \
         between them {:?}, meanwhile {:?} of {} requests; p99 meanwhile {:.2} times that between them, {} in each of {SWAPS_PARTS} parts",
        show(&between),
        show(&meanwhile),
        meanwhile.len(),
        show(&meanwhile).1 as f64 / show(&between).1 as f64,
        quartiles(ratios)
    );
    Ok(())
}

fn measure(models: &Path, workload: &Workload, device: Device, takes: Duration) -> anyhow::Result<()> {
    let (served, lanes) = serve(models, workload.model, device)?;
    let (mut driver, entry) = Driver::connect(&served, workload)?;
    let plain = load(models, "as loaded", &entry, device)?;
    let best = load(models, &entry.form, &entry, device)?;
    println!("on {device}, {lanes} lanes, {SATURATED_ROUNDS} alternating rounds of {:?}", takes / 2);

    let plain_sizes = fastest(&*plain, workload, &entry).1;
    let best_sizes = weigh(&mut driver, &*best, workload, &entry);
    let (plain_turn, best_turn) = (workload.turn(&plain_sizes), workload.turn(&best_sizes));
    driver.saturate(Duration::from_secs(2))?;
    let mut rounds = Vec::new();
    for round in 1..=SATURATED_ROUNDS {
        let run = |model: &dyn Model, turn: &[_]| bare(model, turn, entry.at_once as usize, takes / 2);
        let plain_first = (round % 2 == 1).then(|| run(&*plain, &plain_turn));
        let best_first = (round % 2 == 1).then(|| run(&*best, &best_turn));
        let saturated = driver.saturate(takes / 2)?;
        let bare = best_first.unwrap_or_else(|| run(&*best, &best_turn));
        let plain = plain_first.unwrap_or_else(|| run(&*plain, &plain_turn));
        println!(
            "round {round}  plain loop {plain} (batches {plain_sizes:?})  best loop {bare} (batches {best_sizes:?})  served \
             {} (mean batch {:.1})",
            saturated.speed, saturated.mean_batch
        );
        rounds.push([saturated.speed.against(plain), saturated.speed.against(bare)]);
    }
    let all = |ratio: fn(&[Speed; 2]) -> f64| quartiles(rounds.iter().map(ratio).collect());
    println!(
        "served against the plain loop {}, against the best loop {}; CPU of a row {} and {} times as much (median and quartiles \
         of {SATURATED_ROUNDS})",
        all(|[plain, _]| plain.rows_per_second),
        all(|[_, best]| best.rows_per_second),
        all(|[plain, _]| plain.cpu_of_a_row),
        all(|[_, best]| best.cpu_of_a_row),
    );
    overloaded(&mut driver, takes / 2)
}

/// Of each form of requests, the most rows that bare loops do in a second, and the size of the batches in which they do that.
fn fastest(model: &dyn Model, workload: &Workload, entry: &ModelEntry) -> (Vec<f64>, Vec<u32>) {
    let sizes = (0..=8).map(|power| 1 << power).filter(|rows| *rows <= entry.max_batch).collect::<Vec<u32>>();
    let of_form = |form: &Vec<usize>| {
        let speed = |rows: &u32, takes| {
            let turn = [workload.batch(form, *rows)];
            bare(model, &turn, entry.at_once as usize, takes).rows_per_second
        };
        // libtorch compiles in the first runs.
        for rows in &sizes {
            speed(rows, Duration::from_millis(200));
        }
        // A busy moment makes none of them slow twice.
        let twice = sizes.repeat(2).into_iter().map(|rows| (speed(&rows, Duration::from_secs(1)), rows));
        twice.max_by(|one, other| one.0.total_cmp(&other.0)).expect("there are sizes")
    };
    workload.forms().iter().map(of_form).unzip()
}

/// Has rows count by what they cost where batches of each form have the size that is best for them; these sizes.
fn weigh(driver: &mut Driver<'_>, best: &dyn Model, workload: &Workload, entry: &ModelEntry) -> Vec<u32> {
    let (speeds, sizes) = fastest(best, workload, entry);
    driver.weigh(&speeds.iter().map(|speed| 1.0 / speed).collect::<Vec<_>>());
    sizes
}

/// The median, and between which quartiles it is.
fn quartiles(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| {
        let place = (ratios.len() - 1) as f64 * part as f64 / 4.0;
        let (low, high) = (ratios[place.floor() as usize], ratios[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    format!("{:.3} ({:.3} to {:.3})", at(2), at(1), at(3))
}

/// How much is answered in time of three times too much work, against the peak just before and just after, and how soon the rest is
/// refused.
fn overloaded(driver: &mut Driver<'_>, takes: Duration) -> anyhow::Result<()> {
    let mut before = driver.saturate(takes)?;
    let (mut goodput, mut average_goodput, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=SATURATED_ROUNDS {
        let overload = driver.overload(3.0 * before.rows_per_second, BUDGET, takes)?;
        let after = driver.saturate(takes)?;
        // A machine that gets slower meanwhile, or faster, is as fast as just before and just after it.
        let peak = |rows: fn(&Saturated) -> f64| (rows(&before) + rows(&after)) / 2.0;
        let capacity = peak(|of| of.rows_per_second);
        let refusal_p99 = overload.refusal_p99.context("nobody was refused")?.as_secs_f64() * 1e3;
        println!(
            "round {round}  {:.1} times as much work as it can do, {} ms each: {:.1} answered in time per second, mean batch {:.1}, {:.2} \
             of {capacity:.1}; refused within {refusal_p99:.2} ms (p99), {:.1} % of the rest only found late when their turn came, {:.1} % \
             answered too late",
            overload.rate / capacity,
            BUDGET.as_millis(),
            overload.goodput,
            overload.mean_batch,
            overload.goodput / capacity,
            overload.late * 100.0,
            overload.too_late * 100.0,
        );
        goodput.push(overload.goodput / capacity);
        average_goodput.push(overload.average_goodput / peak(|of| of.speed.rows_per_second));
        refusals.push(refusal_p99);
        before = after;
    }
    println!(
        "answered in time at three times the load, of the peak: {}; in average rows {}; refused within {} ms at p99 (median and quartiles \
         of {SATURATED_ROUNDS})",
        quartiles(goodput),
        quartiles(average_goodput),
        quartiles(refusals),
    );
    Ok(())
}

fn measure_part(
    part: Part,
    models: &Path,
    workload: &Workload,
    device: Device,
    takes: Duration,
) -> anyhow::Result<()> {
    let (served, lanes) = serve(models, workload.model, device)?;
    let (mut driver, entry) = Driver::connect(&served, workload)?;
    println!("on {device}, {lanes} lanes");
    match part {
        Part::Overload => {
            weigh(&mut driver, &*load(models, &entry.form, &entry, device)?, workload, &entry);
            driver.saturate(Duration::from_secs(2))?;
            overloaded(&mut driver, takes / 2)
        }
    }
}

/// What so many threads do that do nothing but run the model on these batches, one after the other. Each begins at
/// another of them, and stops after a whole turn: they do not take the same time.
fn bare(model: &dyn Model, turn: &[Vec<Gathered<'_>>], threads: usize, takes: Duration) -> Speed {
    let rows: u64 = turn.iter().map(|inputs| inputs[0].shape[0]).sum();
    let one = |thread: usize| {
        let (ahead, behind) = turn.split_at(thread * turn.len() / threads);
        let (began, mut done) = (Instant::now(), 0);
        while began.elapsed() < takes {
            for inputs in behind.iter().chain(ahead) {
                model.run(inputs).expect("it runs");
            }
            done += rows;
        }
        (done, done as f64 / began.elapsed().as_secs_f64())
    };
    let cpu = driver::cpu();
    let each: Vec<(u64, f64)> = std::thread::scope(|scope| {
        let loops: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        loops.into_iter().map(|running| running.join().expect("it runs")).collect()
    });
    let rows: u64 = each.iter().map(|(done, _)| done).sum();
    Speed::new(each.iter().map(|(_, speed)| speed).sum(), driver::cpu() - cpu, rows)
}

/// Version 1 of a model that an engine serves, in this form, with as many threads as the engine uses.
fn load(models: &Path, form: &str, entry: &ModelEntry, device: Device) -> anyhow::Result<Box<dyn Model>> {
    let file = models.join(&entry.name).join("1/model.pt");
    let manifest = Manifest::parse(&std::fs::read_to_string(file.with_file_name("model.yaml"))?)?;
    let model = torch::load(&file, Some(manifest), device).map_err(anyhow::Error::msg)?;
    let chosen = Optimisation::ALL.into_iter().find(|chosen| form.starts_with(&chosen.to_string()));
    let model = match chosen {
        Some(chosen) => model.optimised(chosen).map_err(anyhow::Error::msg)?,
        None if form.starts_with("as loaded") => model,
        None => bail!("no such form: {form}"),
    };
    model.use_threads(entry.threads as usize);
    Ok(model)
}

/// An engine in this process that has only this model; its socket, and how many lanes it has.
fn serve(models: &Path, model: &str, device: Device) -> anyhow::Result<(PathBuf, usize)> {
    let folder = tempfile::tempdir()?.keep();
    std::os::unix::fs::symlink(models.join(model), folder.join(model))?;
    let socket = folder.join("engine.sock");
    let config = Config::try_parse_from([
        "penstock-engine".as_ref(),
        "--socket".as_ref(),
        socket.as_os_str(),
        "--models".as_ref(),
        folder.as_os_str(),
    ])?;
    let library = Library::folder(folder, move |path, manifest| torch::load(path, manifest, device));
    let settings = config.settings(device, torch::device_memory);
    let lanes = settings.lanes;
    let (bound, is_bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
        let _ = schedule::at_once(); // as the engine's own main does
        runtime.block_on(async {
            let listener = Listener::bind(settings).expect("the socket is free");
            bound.send(()).expect("somebody waits");
            listener.serve(library, std::future::pending()).await.expect("the engine serves");
        });
    });
    is_bound.recv()?;
    Ok((socket, lanes))
}
