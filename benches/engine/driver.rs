//! Talks to an engine as a proxy does, and keeps count. Requests are made ahead; inputs are random numbers from a
//! fixed seed, because what a model answers is not the matter here.

use crate::region::Region;
use anyhow::{Context, ensure};
use bytes::{Buf, Bytes};
use engine::model::Gathered;
use hdrhistogram::Histogram;
use std::fmt;
use std::io::{IoSlice, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::{
    Action, Control, Datatype, Decoder, Frame, Index, Infer, Kind, Layout, Limits, ModelEntry, ModelState,
    Outbox, Reply, Status, TensorMeta, Timing,
};

/// Requests that all have the same number of rows.
pub(crate) struct Workload {
    pub(crate) model: &'static str,
    /// Inputs of the requests that are sent in turn.
    inputs: Vec<Vec<Tensor>>,
    /// The same as they are sent.
    requests: Vec<(Infer, Bytes)>,
    /// Rows of each request.
    each: u64,
    /// Requests in flight when the engine is saturated.
    in_flight: usize,
}

#[derive(Clone)]
struct Tensor {
    slot: usize,
    name: &'static str,
    datatype: Datatype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Workload {
    /// One image of 224 by 224.
    pub(crate) fn efficientnet() -> Self {
        let mut seed = 1u64;
        let image = |_| {
            let bytes = (0..3 * 224 * 224).flat_map(|_| next(&mut seed).to_le_bytes()).collect();
            vec![Tensor {
                slot: 0,
                name: "image",
                datatype: Datatype::Fp32,
                shape: vec![1, 3, 224, 224],
                bytes,
            }]
        };
        Self::new("efficientnet", (0..8).map(image).collect(), 32)
    }

    /// One image of 224 by 224, in bytes.
    pub(crate) fn resnet18() -> Self {
        let mut seed = 1u64;
        let image = |_| {
            let bytes = (0..3 * 224 * 224).map(|_| (next(&mut seed).abs() * 255.0) as u8).collect();
            vec![Tensor {
                slot: 0,
                name: "image",
                datatype: Datatype::Uint8,
                shape: vec![1, 3, 224, 224],
                bytes,
            }]
        };
        Self::new("resnet18", (0..8).map(image).collect(), 256)
    }

    /// 32 rows of 256 features: rows cost so little that one a request would show what requests cost.
    pub(crate) fn perceptron() -> Self {
        let mut seed = 1u64;
        let row = |_| {
            let bytes = (0..256).flat_map(|_| next(&mut seed).to_le_bytes()).collect();
            vec![Tensor { slot: 0, name: "features", datatype: Datatype::Fp32, shape: vec![1, 256], bytes }]
        };
        Self::of_rows("perceptron", (0..8).map(row).collect(), 32, 64)
    }

    /// One digit of 8 by 8.
    pub(crate) fn digits() -> Self {
        let mut seed = 1u64;
        let bytes = (0..64).flat_map(|_| next(&mut seed).abs().to_le_bytes()).collect();
        let pixels = Tensor { slot: 0, name: "pixels", datatype: Datatype::Fp32, shape: vec![1, 64], bytes };
        Self::new("digits", vec![vec![pixels]], 256)
    }

    /// One sentence of 8 to 128 tokens, a multiple of 8.
    pub(crate) fn minilm() -> Self {
        let mut seed = 1u64;
        let lengths = [8u64, 16, 16, 24, 24, 32, 48, 64, 96, 128];
        let sentence = |length: &u64| {
            let ids =
                (0..*length).flat_map(|_| ((next(&mut seed).abs() * 20_000.0) as i64 + 1000).to_le_bytes());
            let tensor = |slot, name, bytes| Tensor {
                slot,
                name,
                datatype: Datatype::Int64,
                shape: vec![1, *length],
                bytes,
            };
            vec![
                tensor(0, "input_ids", ids.collect()),
                tensor(1, "attention_mask", (0..*length).flat_map(|_| 1i64.to_le_bytes()).collect()),
            ]
        };
        Self::new("minilm", lengths.iter().map(sentence).collect(), 320)
    }

    fn new(model: &'static str, rows: Vec<Vec<Tensor>>, in_flight: usize) -> Self {
        Self::of_rows(model, rows, 1, in_flight)
    }

    fn of_rows(model: &'static str, rows: Vec<Vec<Tensor>>, each: u64, in_flight: usize) -> Self {
        let inputs: Vec<_> = rows.iter().map(|row| repeated(row, each)).collect();
        let requests = inputs.iter().map(|inputs| request(model, inputs)).collect();
        Self { model, inputs, requests, each, in_flight }
    }

    /// Requests of which a batch can be made, by their numbers: those whose tensors have the same shapes.
    pub(crate) fn forms(&self) -> Vec<Vec<usize>> {
        let mut forms: Vec<Vec<usize>> = Vec::new();
        let shape = |at: usize| &self.inputs[at][0].shape;
        for at in 0..self.inputs.len() {
            match forms.iter_mut().find(|form| shape(form[0]) == shape(at)) {
                Some(form) => form.push(at),
                None => forms.push(vec![at]),
            }
        }
        forms
    }

    /// So many rows of a form, for a bare loop: where they lie, as the engine gives them to a model.
    pub(crate) fn batch(&self, form: &[usize], rows: u32) -> Vec<Gathered<'_>> {
        let gathered = |at: usize| {
            let (mut parts, mut left) = (Vec::new(), u64::from(rows));
            for number in form.iter().cycle() {
                let (bytes, taken) = (&self.inputs[*number][at].bytes, left.min(self.each));
                parts.push(&bytes[..bytes.len() / self.each as usize * taken as usize]);
                left -= taken;
                if left == 0 {
                    break;
                }
            }
            let Tensor { slot, datatype, shape, .. } = &self.inputs[form[0]][at];
            let mut shape = shape.clone();
            shape[0] = u64::from(rows);
            Gathered { slot: *slot, datatype: *datatype, shape, parts }
        };
        (0..self.inputs[form[0]].len()).map(gathered).collect()
    }

    /// Batches with as many rows of each request, where those of each form have a size of their own: powers of two.
    pub(crate) fn turn(&self, sizes: &[u32]) -> Vec<Vec<Gathered<'_>>> {
        let most = sizes.iter().copied().max().unwrap_or(1);
        let of_form = |(form, rows): (&Vec<usize>, &u32)| {
            let times = form.len() * (most / rows) as usize;
            vec![self.batch(form, *rows); times]
        };
        self.forms().iter().zip(sizes).flat_map(of_form).collect()
    }

    fn request(&self, at: usize, budget: Duration) -> (Infer, Bytes) {
        let (infer, payload) = self.requests[at % self.requests.len()].clone();
        (Infer { budget_us: budget.as_micros() as u64, ..infer }, payload)
    }
}

fn repeated(row: &[Tensor], times: u64) -> Vec<Tensor> {
    let repeat = |tensor: &Tensor| {
        let mut tensor = tensor.clone();
        tensor.shape[0] = times;
        tensor.bytes = tensor.bytes.repeat(times as usize);
        tensor
    };
    row.iter().map(repeat).collect()
}

fn request(model: &str, row: &[Tensor]) -> (Infer, Bytes) {
    let (mut inputs, mut payload, mut layout) = (Vec::new(), Vec::new(), Layout::default());
    for Tensor { name, datatype, shape, bytes, .. } in row {
        let offset = layout.place(bytes.len());
        payload.resize(offset, 0);
        payload.extend_from_slice(bytes);
        let (name, datatype, shape) = ((*name).to_owned(), *datatype as u32, shape.clone());
        inputs.push(TensorMeta { name, datatype, shape, offset: offset as u64, bytes: 0 });
    }
    (Infer { model: model.into(), version: 1, inputs, ..Infer::default() }, payload.into())
}

pub(crate) fn median_and_p99(mut all: Vec<u64>) -> (u64, u64) {
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

/// Numbers between −1 and 1.
fn next(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// A request is alone, and finds all cores asleep.
pub(crate) const LONE_EVERY: Duration = Duration::from_millis(20);

/// The queues fill before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) struct Driver<'w> {
    workload: &'w Workload,
    socket: UnixStream,
    region: Region,
    decoder: Decoder,
    sent: u64,
    /// Of each request that is sent in turn, what its rows cost beside an average one.
    costs: Vec<f64>,
}

pub(crate) struct Saturated {
    /// In average rows.
    pub(crate) speed: Speed,
    /// Of any.
    pub(crate) rows_per_second: f64,
    pub(crate) mean_batch: f64,
}

/// How fast rows are done, and what of the process's CPU each takes: that is not less because others have the cores.
#[derive(Clone, Copy)]
pub(crate) struct Speed {
    pub(crate) rows_per_second: f64,
    /// Milliseconds.
    pub(crate) cpu_of_a_row: f64,
}

impl Speed {
    pub(crate) fn new(rows_per_second: f64, cpu: Duration, rows: u64) -> Self {
        Self { rows_per_second, cpu_of_a_row: cpu.as_secs_f64() * 1e3 / rows as f64 }
    }

    /// So many times the other's.
    pub(crate) fn against(self, other: Self) -> Self {
        Self {
            rows_per_second: self.rows_per_second / other.rows_per_second,
            cpu_of_a_row: self.cpu_of_a_row / other.cpu_of_a_row,
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:7.1} rows/s, {:6.3} ms of CPU each", self.rows_per_second, self.cpu_of_a_row)
    }
}

/// What this process has used.
pub(crate) fn cpu() -> Duration {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`, which lives.
    let told = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut used) };
    assert_eq!(told, 0, "every process has this clock");
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

pub(crate) struct Overload {
    /// Rows that were sent, per second.
    pub(crate) rate: f64,
    /// Rows that were answered in time, per second.
    pub(crate) goodput: f64,
    /// The same in average rows: where there is not time for all, those that cost little are answered.
    pub(crate) average_goodput: f64,
    /// How soon the others were refused; `None` if nobody was.
    pub(crate) refusal_p99: Option<Duration>,
    /// Rows of a run.
    pub(crate) mean_batch: f64,
    /// Share of what was not answered in time that was found to be late only when its turn came.
    pub(crate) late: f64,
    /// Share of it that was answered too late.
    pub(crate) too_late: f64,
}

impl<'w> Driver<'w> {
    /// Another connection to an engine that is ready.
    pub(crate) fn join(socket: &Path, workload: &'w Workload) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(socket)?;
        let payloads: Vec<&Bytes> = workload.requests.iter().map(|(_, payload)| payload).collect();
        let region = Region::offer(&socket, &payloads)?;
        let costs = vec![1.0; workload.requests.len()];
        Ok(Self { workload, socket, region, decoder: Decoder::new(Limits::default()), sent: 0, costs })
    }

    /// One request after the other with a pause after each, until told to stop; microseconds of each.
    pub(crate) fn paced(&mut self, pause: Duration, is_over: &AtomicBool) -> anyhow::Result<Histogram<u64>> {
        let mut took = Histogram::new(3)?;
        while !is_over.load(Ordering::Relaxed) {
            took.record(self.one()?.0.as_micros() as u64)?;
            std::thread::sleep(pause);
        }
        Ok(took)
    }

    /// One request; how long until its answer was there, and that.
    pub(crate) fn one(&mut self) -> anyhow::Result<(Duration, Reply)> {
        let began = Instant::now();
        self.send(Duration::from_secs(60))?;
        let reply = self.reply(None)?.context("an answer")?.1;
        ensure!(reply.status() == Status::Ok, "{:?}: {}", reply.status(), reply.message);
        Ok((began.elapsed(), reply))
    }

    /// Has the model loaded again.
    pub(crate) fn load(&mut self) -> anyhow::Result<()> {
        self.sent += 1;
        let model = self.workload.model.to_owned();
        let mut outbox = Outbox::new();
        let control = Control { action: Action::Load as i32, model, version: 0 };
        outbox.push(Kind::Control, self.sent, &control, Bytes::new());
        self.socket.write_all(&outbox.take().concat())?;
        let reply = self.reply(None)?.context("an answer")?.1;
        ensure!(reply.status() == Status::Ok, "{:?}: {}", reply.status(), reply.message);
        Ok(())
    }

    /// Once the model is ready; with what the engine says of it.
    pub(crate) fn connect(socket: &Path, workload: &'w Workload) -> anyhow::Result<(Self, ModelEntry)> {
        let mut driver = Self::join(socket, workload)?;
        loop {
            let frame = driver.frame(None)?.context("the engine says what it has")?;
            if frame.kind != Kind::Index {
                continue;
            }
            let index = <Index as prost::Message>::decode(frame.metadata)?;
            match index.models.first().map(|entry| (entry.state(), entry)) {
                Some((ModelState::Ready, entry)) => {
                    println!(
                        "\n{}: {}; up to {} rows {}, {} threads, {} at once, curve in µs by rows:",
                        workload.model,
                        entry.form,
                        entry.max_batch,
                        entry.reason,
                        entry.threads,
                        entry.at_once
                    );
                    for point in &entry.curve {
                        print!(" {}: {}", point.rows, point.typical_us);
                    }
                    println!();
                    return Ok((driver, entry.clone()));
                }
                Some((ModelState::Unavailable, entry)) => anyhow::bail!("{}", entry.reason),
                Some((ModelState::Loading, _)) | None => {}
            }
        }
    }

    /// Rows of these forms cost so much: what is answered within a few seconds is never as many of each.
    pub(crate) fn weigh(&mut self, of_forms: &[f64]) {
        for (form, cost) in self.workload.forms().iter().zip(of_forms) {
            form.iter().for_each(|at| self.costs[*at] = *cost);
        }
        let mean = self.costs.iter().sum::<f64>() / self.costs.len() as f64;
        self.costs.iter_mut().for_each(|cost| *cost /= mean);
    }

    /// As many in flight as the workload says, for a while.
    pub(crate) fn saturate(&mut self, takes: Duration) -> anyhow::Result<Saturated> {
        let (budget, cpu) = (Duration::from_secs(600), cpu());
        for _ in 0..self.workload.in_flight {
            self.send(budget)?;
        }
        let began = Instant::now();
        let counted = began + WARM_UP..began + WARM_UP + takes;
        let (mut all_rows, mut rows, mut average_rows, mut runs) = (0, 0.0, 0.0, 0.0);
        let mut in_flight = self.workload.in_flight;
        while in_flight > 0 {
            let (id, reply) = self.reply(None)?.context("an answer")?;
            in_flight -= 1;
            ensure!(reply.status() == Status::Ok, "not answered: {}", reply.message);
            let timing = reply.timing.context("what is answered has run")?;
            let ended = Instant::now();
            let part = part_within(&counted, ended, &timing);
            all_rows += self.workload.each;
            rows += part * self.workload.each as f64;
            average_rows += part * self.workload.each as f64 * self.costs[id as usize % self.costs.len()];
            runs += part / f64::from(timing.batch_requests);
            if ended < counted.end {
                self.send(budget)?;
                in_flight += 1;
            }
        }
        let speed = Speed::new(average_rows / takes.as_secs_f64(), self::cpu() - cpu, all_rows);
        Ok(Saturated { speed, rows_per_second: rows / takes.as_secs_f64(), mean_batch: rows / runs })
    }

    /// So many rows per second, evenly, whatever comes back.
    pub(crate) fn overload(
        &mut self,
        rate: f64,
        budget: Duration,
        takes: Duration,
    ) -> anyhow::Result<Overload> {
        let mut refusals = Histogram::<u64>::new(3)?;
        let gap = Duration::from_secs_f64(self.workload.each as f64 / rate);
        let count = (takes.as_secs_f64() / gap.as_secs_f64()) as u64;
        let (mut in_time, mut average_in_time, mut runs, mut late, mut too_late) =
            (0.0, 0.0, 0.0, 0u64, 0u64);
        // Somebody else reads: who writes large requests would find every answer late.
        let mut socket = self.socket.try_clone()?;
        let mut decoder = std::mem::replace(&mut self.decoder, Decoder::new(Limits::default()));
        let reading = move || {
            let _ = engine::schedule::at_once(); // a caller elsewhere would not wait for our cores
            let mut came = Vec::new();
            while came.len() < count as usize {
                let wait = Some(Duration::from_secs(10));
                let (id, reply) = reply(&mut socket, &mut decoder, wait)?.context("an answer")?;
                came.push((id, Instant::now(), reply));
            }
            anyhow::Ok(came)
        };
        let first = self.sent + 1;
        let (sent, began, ended, came) = std::thread::scope(|scope| {
            let reading = scope.spawn(reading);
            let began = Instant::now();
            let mut sent = Vec::new();
            for due in (0..count).map(|number| began + gap.mul_f64(number as f64)) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                sent.push(Instant::now());
                self.send(budget)?;
            }
            let ended = Instant::now();
            anyhow::Ok((sent, began, ended, reading.join().expect("no panic")?))
        })?;
        for (id, came, reply) in came {
            let took = came - sent[(id - first) as usize];
            match reply.status() {
                Status::Ok if took <= budget => {
                    let timing = reply.timing.as_ref().context("what is answered has run")?;
                    let part = part_within(&(began..ended), came, timing);
                    let rows = self.workload.each as f64 * part;
                    in_time += rows;
                    runs += part / f64::from(timing.batch_requests);
                    average_in_time += rows * self.costs[id as usize % self.costs.len()];
                }
                Status::Ok => too_late += 1,
                Status::Overloaded => refusals.record(took.as_micros() as u64)?,
                Status::DeadlineExceeded => late += 1,
                status => anyhow::bail!("{status:?}: {}", reply.message),
            }
        }
        let refusal_p99 = Duration::from_micros(refusals.value_at_quantile(0.99));
        let refusal_p99 = (!refusals.is_empty()).then_some(refusal_p99);
        let not_in_time = (late + too_late + refusals.len()).max(1) as f64;
        let [late, too_late] = [late, too_late].map(|count| count as f64 / not_in_time);
        // Who sends large requests may take longer for them than was asked for.
        let [rate, goodput, average_goodput] =
            [(count * self.workload.each) as f64, in_time, average_in_time]
                .map(|rows| rows / (ended - began).as_secs_f64());
        let mean_batch = in_time / runs;
        Ok(Overload { rate, goodput, average_goodput, refusal_p99, mean_batch, late, too_late })
    }

    fn send(&mut self, budget: Duration) -> anyhow::Result<u64> {
        self.sent += 1;
        let (mut infer, mut payload) = self.workload.request(self.sent as usize, budget);
        infer.placed = self.region.place(self.sent as usize);
        if infer.placed.is_some() {
            payload = Bytes::new();
        }
        let mut outbox = Outbox::new();
        outbox.push(Kind::Infer, self.sent, &infer, payload);
        let mut segments = outbox.take();
        while segments.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = segments.chunks_vectored(&mut slices);
            let written = self.socket.write_vectored(&slices[..filled])?;
            segments.advance(written);
        }
        Ok(self.sent)
    }

    fn reply(&mut self, wait: Option<Duration>) -> anyhow::Result<Option<(u64, Reply)>> {
        reply(&mut self.socket, &mut self.decoder, wait)
    }

    fn frame(&mut self, wait: Option<Duration>) -> anyhow::Result<Option<Frame>> {
        frame(&mut self.socket, &mut self.decoder, wait)
    }
}

/// Batches take up to seconds, and of some only a part lies within what is counted.
fn part_within(counted: &Range<Instant>, ended: Instant, timing: &Timing) -> f64 {
    let ran = Duration::from_micros(timing.run_us.max(1));
    let within = ended.min(counted.end).saturating_duration_since((ended - ran).max(counted.start));
    within.as_secs_f64() / ran.as_secs_f64()
}

fn reply(
    socket: &mut UnixStream,
    decoder: &mut Decoder,
    wait: Option<Duration>,
) -> anyhow::Result<Option<(u64, Reply)>> {
    while let Some(frame) = frame(socket, decoder, wait)? {
        if frame.kind == Kind::Reply {
            return Ok(Some((frame.id, <Reply as prost::Message>::decode(frame.metadata)?)));
        }
    }
    Ok(None)
}

/// Nothing if none has come for so long.
fn frame(
    socket: &mut UnixStream,
    decoder: &mut Decoder,
    wait: Option<Duration>,
) -> anyhow::Result<Option<Frame>> {
    loop {
        if let Some(frame) = decoder.decode()? {
            return Ok(Some(frame));
        }
        // Replies are small, and what is cleared for each is taken of the cache that the engine's lanes compute in.
        let mut chunk = [0; 8 << 10];
        socket.set_read_timeout(wait)?;
        match socket.read(&mut chunk) {
            Ok(0) => anyhow::bail!("the engine has closed the connection"),
            Ok(read) => decoder.buffer().extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
