//! The way back: cuts the outputs of a batch into one reply per job and leaves each in its caller's mailbox.
//! The only place that writes replies.

use crate::batcher::Piece;
use crate::job::{Job, Refusal, shortened};
use crate::mailbox::Mailbox;
use crate::model::Output;
use crate::padding::crop;
use crate::values::{all_finite, width};
use bytes::{BufMut, Bytes, BytesMut};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{
    Batch, Closed, Kind, Layout, Limits, Outbox, Phases, Reply, Run, Status, TensorMeta, Timing, TraceContext,
};

/// What a caller is told whose answer has no room any more on its way out.
const UNREAD: &str = "it was run, and its answer has no room beside those that are still to be read";

/// By when some of those may be read.
const READ_BY: Duration = Duration::from_secs(1);

/// Answers an order to the loader.
pub(crate) fn answer_order(mailbox: &Mailbox, id: u64, failure: Option<(Status, String)>, revision: u64) {
    let (status, message) = failure.unwrap_or((Status::Ok, String::new()));
    let reply = Reply { status: status as i32, message, revision, ..Reply::default() };
    mailbox.post(|outbox| outbox.push(Kind::Reply, id, &reply, Bytes::new()));
}

/// When and how large a batch ran.
#[derive(Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) started: Instant,
    /// When its inputs were.
    pub(crate) in_place: Instant,
    pub(crate) ended: Instant,
    pub(crate) rows: u32,
    /// Why it had no more rows.
    pub(crate) closed: Closed,
    /// What it was expected to take, if that was known.
    pub(crate) expected: Option<Duration>,
    /// Of the elements that it was given, those that are padding.
    pub(crate) padding_millionths: u32,
}

impl Ran {
    /// Where its time went, if its outputs are cut by now.
    fn phases(&self) -> Phases {
        let (input, infer) = (self.in_place - self.started, self.ended - self.in_place);
        Phases { input_ns: nanos(input), infer_ns: nanos(infer), output_ns: nanos(self.ended.elapsed()) }
    }

    fn told(&self) -> Run {
        Run {
            rows: self.rows,
            phases: Some(self.phases()),
            closed: self.closed as i32,
            expected_us: self.expected.map_or(0, |expected| micros(expected).max(1)),
            padding_millionths: self.padding_millionths,
        }
    }
}

/// A whole request, and its rows among those of the outputs.
struct Part<'a> {
    job: &'a Job,
    before: usize,
}

impl Part<'_> {
    /// Its rows of one output, without what was padded.
    fn of<'o>(&self, output: &'o Output, alone: bool) -> Cow<'o, [u8]> {
        let request = &self.job.request;
        let bytes = if alone { &output.bytes } else { rows_of(output, self.before, request.rows) };
        let shape = self.shape(output, alone);
        if request.real.is_none() || bytes.len() == elements(&shape) * width(output.datatype) {
            return Cow::Borrowed(bytes);
        }
        let mut padded = output.shape.clone();
        if !alone {
            padded[0] = u64::from(request.rows);
        }
        let mut cropped = Vec::with_capacity(elements(&shape) * width(output.datatype));
        crop(bytes, &padded, &shape, &mut cropped);
        Cow::Owned(cropped)
    }

    /// The shape of that.
    fn shape(&self, output: &Output, alone: bool) -> Vec<u64> {
        let request = &self.job.request;
        let mut shape = output.shape.clone();
        if !alone {
            shape[0] = u64::from(request.rows);
        }
        if let Some(real) = &request.real {
            request.version.model.spec().unpad(&output.name, real, &mut shape);
        }
        shape
    }
}

fn elements(shape: &[u64]) -> usize {
    shape.iter().product::<u64>() as usize
}

/// Answers requests that ran together, in the order of their rows. The outputs have been checked: as many rows
/// came out as went in. A request that runs in pieces is answered with its last one.
pub(crate) fn reply(pieces: &[Piece<Arc<Job>>], outputs: &[Output], ran: Ran) {
    let mut parts = Vec::with_capacity(pieces.len());
    let mut before = 0;
    let is_whole = |piece: &Piece<Arc<Job>>| piece.rows == piece.job.request.rows && !piece.job.is_answered();
    // Where no answer comes of it yet, its first piece keeps in mind that there was this run.
    let mut is_told = pieces.iter().any(is_whole);
    for piece in pieces {
        let Piece { job, first, rows } = piece;
        if job.is_answered() {
            // It was cancelled meanwhile, or another of its pieces has failed.
        } else if is_whole(piece) {
            parts.push(Part { job, before });
        } else {
            let part = outputs.iter().map(|output| Output {
                bytes: Bytes::copy_from_slice(rows_of(output, before, *rows)),
                shape: with_rows(&output.shape, u64::from(*rows)),
                ..output.clone()
            });
            rejoin(job, *first, part.collect(), (ran, !is_told));
            is_told = true;
        }
        before += *rows as usize;
    }
    let whole = parts.len() == 1 && pieces.len() == 1;
    reply_parts(&parts, outputs, (ran, None), pieces.len() as u32, whole);
}

/// Keeps the outputs of one piece; answers once they are all there, or cannot be put together. Whether it is this
/// request that tells of the run, it is told.
fn rejoin(job: &Job, first: u32, outputs: Vec<Output>, (ran, tells): (Ran, bool)) {
    let bytes: usize = outputs.iter().map(|output| output.bytes.len()).sum();
    let rows = outputs.first().map_or(0, |output| output.shape[0]);
    let mut done = job.done.lock().expect("no panic while pieces are kept");
    let same = |(_, other): &(u32, Vec<Output>)| {
        let pairs = other.iter().zip(&outputs);
        pairs.clone().count() == outputs.len()
            && pairs
                .into_iter()
                .all(|(one, two)| one.datatype == two.datatype && one.shape[1..] == two.shape[1..])
    };
    if !done.pieces.first().is_none_or(same) {
        drop(done);
        return fail(job, Status::ModelFailed, "its pieces gave outputs of different shapes");
    }
    done.bytes += bytes;
    done.rows += rows;
    done.pieces.push((first, outputs));
    done.runs.extend(tells.then(|| ran.told()));
    if done.bytes > Limits::default().payload_bytes {
        let message =
            format!("outputs of more than {} bytes are too large to send", Limits::default().payload_bytes);
        drop(done);
        return fail(job, Status::OutputsTooLarge, &message);
    }
    if done.rows < u64::from(job.request.rows) {
        return;
    }
    let (mut pieces, rows) = (std::mem::take(&mut done.pieces), done.rows);
    let runs = std::mem::take(&mut done.runs);
    drop(done);
    pieces.sort_unstable_by_key(|(first, _)| *first);
    let whole = (0..pieces[0].1.len()).map(|at| {
        let bytes: Vec<&[u8]> = pieces.iter().map(|(_, outputs)| &outputs[at].bytes[..]).collect();
        let shape = with_rows(&pieces[0].1[at].shape, rows);
        Output { bytes: bytes.concat().into(), shape, ..pieces[0].1[at].clone() }
    });
    reply_parts(&[Part { job, before: 0 }], &whole.collect::<Vec<_>>(), (ran, Some(runs)), 1, true);
}

fn with_rows(shape: &[u64], rows: u64) -> Vec<u64> {
    let mut shape = shape.to_vec();
    shape[0] = rows;
    shape
}

/// Those of some rows of a batch.
pub(crate) fn rows_of(output: &Output, before: usize, rows: u32) -> &[u8] {
    let row = output.bytes.len() / output.shape[0] as usize;
    &output.bytes[before * row..(before + rows as usize) * row]
}

/// One of the replies tells of `runs`; by default of the one that the outputs come from.
fn reply_parts(
    parts: &[Part<'_>],
    outputs: &[Output],
    (ran, runs): (Ran, Option<Vec<Run>>),
    requests: u32,
    alone: bool,
) {
    // Copied before a mailbox is locked: outputs may be large, and a lock is held for the frame heads only.
    let mut payloads = cut(parts, outputs, alone).into_iter();
    let mut writer = Writer {
        outputs,
        ran,
        requests,
        alone,
        phases: ran.phases(),
        runs: runs.unwrap_or_else(|| vec![ran.told()]),
        told: Told::of(parts),
        reply: Reply { status: Status::Ok as i32, ..Reply::default() },
        describes_all: false,
    };
    for parts in parts.chunk_by(|one, other| one.job.mailbox.connection == other.job.mailbox.connection) {
        // Taken here: what is posted to a closed mailbox is never asked for, and must not be left to the next.
        let own: Vec<Bytes> = payloads.by_ref().take(parts.len()).collect();
        let mailbox = &parts[0].job.mailbox;
        mailbox.post(|outbox| {
            for (part, payload) in parts.iter().zip(own) {
                if part.job.may_answer() {
                    let is_sendable = payload.len() <= Limits::default().payload_bytes;
                    if !is_sendable || outbox.pending_bytes() + payload.len() <= mailbox.answer_bytes_max() {
                        writer.push(outbox, part, payload);
                    } else {
                        // More would end the connection, and with it everybody's requests.
                        let reply = Reply {
                            retry_after_us: micros(READ_BY),
                            ..failure(Status::Overloaded, UNREAD.to_owned())
                        };
                        outbox.push(Kind::Reply, part.job.terms.id, &reply, Bytes::new());
                    }
                }
            }
        });
    }
}

/// Tells a caller why its request was not run, unless it knows already how that ended.
pub(crate) fn turn_away(job: &Job, refusal: &Refusal) {
    if job.may_answer() {
        job.mailbox.post(|outbox| outbox.push(Kind::Reply, job.terms.id, &no_run(refusal), Bytes::new()));
    }
}

/// Tells a connection which of its requests were not run, and empties the list.
pub(crate) fn refuse(mailbox: &Mailbox, refused: &mut Vec<(u64, Refusal)>) {
    if refused.is_empty() {
        return;
    }
    mailbox.post(|outbox| {
        for (id, refusal) in refused.drain(..) {
            outbox.push(Kind::Reply, id, &no_run(&refusal), Bytes::new());
        }
    });
}

/// Tells a caller how its request ended when it has no outputs, unless it knows already.
pub(crate) fn fail(job: &Job, status: Status, message: &str) {
    if job.may_answer() {
        let reply = failure(status, message.to_owned());
        job.mailbox.post(|outbox| outbox.push(Kind::Reply, job.terms.id, &reply, Bytes::new()));
    }
}

/// The same of one that ran from then on, alone at last, without a batch that anybody could be told of.
pub(crate) fn fail_run(job: &Job, status: Status, message: &str, (started, closed): (Instant, Closed)) {
    if job.may_answer() {
        let timing = Timing {
            prepare_us: micros(job.terms.prepared),
            queue_us: micros(started.saturating_duration_since(job.terms.received + job.terms.prepared)),
            run_us: micros(started.elapsed()),
            batch_rows: job.request.rows,
            batch_requests: 1,
            rows: job.request.rows,
            closed: closed as i32,
            received_unix_ns: job.terms.trace.as_ref().map_or(0, |trace| trace.received_unix_ns),
            ..Timing::default()
        };
        let reply = Reply { timing: Some(timing), ..failure(status, message.to_owned()) };
        job.mailbox.post(|outbox| outbox.push(Kind::Reply, job.terms.id, &reply, Bytes::new()));
    }
}

fn no_run(refusal: &Refusal) -> Reply {
    let retry_after_us = micros(refusal.retry_after());
    Reply { retry_after_us, ..failure(refusal.status(), refusal.to_string()) }
}

fn failure(status: Status, message: String) -> Reply {
    Reply { status: status as i32, message, ..Reply::default() }
}

/// The payload of each reply: the request's rows of the outputs it wants, each at its place.
fn cut(parts: &[Part<'_>], outputs: &[Output], alone: bool) -> Vec<Bytes> {
    if parts.is_empty() {
        return Vec::new();
    }
    let bytes: usize = outputs.iter().map(|output| output.bytes.len()).sum();
    let padding = parts.len() * outputs.len() * wire::frame::ALIGNMENT;
    let mut buffer = BytesMut::with_capacity(bytes + padding);
    let mut payloads = Vec::with_capacity(parts.len());
    for part in parts {
        let mut layout = Layout::default();
        for output in chosen(&part.job.request.wanted, outputs) {
            let bytes = part.of(output, alone);
            let start = layout.place(bytes.len());
            buffer.put_bytes(0, start - buffer.len());
            buffer.extend_from_slice(&bytes);
        }
        payloads.push(buffer.split().freeze());
    }
    payloads
}

fn chosen<'a>(wanted: &'a [String], outputs: &'a [Output]) -> impl Iterator<Item = &'a Output> {
    let all = if wanted.is_empty() { outputs } else { &[] };
    let named = wanted.iter().filter_map(|name| outputs.iter().find(|output| output.name == *name));
    all.iter().chain(named)
}

/// Writes the replies of one batch. They differ in little, so one is kept and altered.
struct Writer<'a> {
    outputs: &'a [Output],
    ran: Ran,
    requests: u32,
    /// One request has all rows, or there are none.
    alone: bool,
    phases: Phases,
    /// Taken by the first that is answered.
    runs: Vec<Run>,
    told: Told,
    reply: Reply,
    /// The reply was last written for a job that wanted all outputs.
    describes_all: bool,
}

impl Writer<'_> {
    fn push(&mut self, outbox: &mut Outbox, part: &Part<'_>, payload: Bytes) {
        let job = part.job;
        // The proxy would have to close the connection, and with it everybody's requests.
        if payload.len() > Limits::default().payload_bytes {
            let message = format!("outputs of {} bytes are too large to send", payload.len());
            // Of several rows its caller can ask for fewer.
            let status = if job.request.rows > 1 { Status::OutputsTooLarge } else { Status::ModelFailed };
            outbox.push(Kind::Reply, job.terms.id, &failure(status, message), Bytes::new());
            return;
        }
        if let Some(name) = self.not_given(&job.request.wanted) {
            let known = self.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ");
            let refusal = Refusal::UnknownOutput { name: shortened(name), known };
            let reply = failure(refusal.status(), refusal.to_string());
            outbox.push(Kind::Reply, job.terms.id, &reply, Bytes::new());
            return;
        }
        if let Some(name) = self.not_finite(part) {
            let message = format!("output `{name}` is not finite");
            outbox.push(Kind::Reply, job.terms.id, &failure(Status::ModelFailed, message), Bytes::new());
            return;
        }
        self.describe(part);
        self.reply.timing = Some(self.timing(part));
        outbox.push(Kind::Reply, job.terms.id, &self.reply, payload);
    }

    /// An output that is wanted but does not exist; only a model that declares none gets this far with one.
    fn not_given<'w>(&self, wanted: &'w [String]) -> Option<&'w str> {
        let missing = wanted.iter().find(|name| !self.outputs.iter().any(|output| output.name == **name));
        missing.map(String::as_str)
    }

    /// An output of which the model's author says that it must be finite, and that is not in these rows.
    fn not_finite<'p>(&self, part: &Part<'p>) -> Option<&'p str> {
        let slots = &part.job.request.version.model.spec().outputs;
        let mut pairs = slots.iter().zip(self.outputs).filter(|(slot, _)| slot.finite);
        let found = pairs.find(|(_, output)| !all_finite(output.datatype, &part.of(output, self.alone)));
        found.map(|(slot, _)| slot.name.as_str())
    }

    /// Says where each output lies, which is where [`cut`] has put it.
    fn describe(&mut self, part: &Part<'_>) {
        let job = part.job;
        let wanted = &job.request.wanted;
        let metas = &mut self.reply.outputs;
        if job.request.real.is_some() {
            let mut layout = Layout::default();
            let meta = |output: &Output| {
                let shape = part.shape(output, self.alone);
                let offset = layout.place(elements(&shape) * width(output.datatype)) as u64;
                TensorMeta {
                    name: output.name.clone(),
                    datatype: output.datatype as u32,
                    shape,
                    offset,
                    bytes: 0,
                }
            };
            *metas = chosen(wanted, self.outputs).map(meta).collect();
            self.describes_all = false;
            return;
        }
        if !self.describes_all || !wanted.is_empty() {
            metas.clear();
            metas.extend(chosen(wanted, self.outputs).map(|output| TensorMeta {
                name: output.name.clone(),
                datatype: output.datatype as u32,
                shape: output.shape.clone(),
                offset: 0,
                bytes: 0,
            }));
            self.describes_all = wanted.is_empty();
        }
        let mut layout = Layout::default();
        for (meta, output) in metas.iter_mut().zip(chosen(wanted, self.outputs)) {
            let mut bytes = output.bytes.len();
            if !self.alone {
                bytes = bytes / output.shape[0] as usize * job.request.rows as usize;
                meta.shape[0] = u64::from(job.request.rows);
            }
            meta.offset = layout.place(bytes) as u64;
        }
    }

    fn timing(&mut self, part: &Part<'_>) -> Timing {
        let job = part.job;
        let mut timing = Timing {
            prepare_us: micros(job.terms.prepared),
            queue_us: micros(
                self.ran.started.saturating_duration_since(job.terms.received + job.terms.prepared),
            ),
            run_us: micros(self.ran.ended.saturating_duration_since(self.ran.started)),
            batch_rows: self.ran.rows,
            batch_requests: self.requests,
            rows: job.request.rows,
            phases: Some(self.phases),
            runs: std::mem::take(&mut self.runs),
            batch_id: self.told.id,
            batch_trace_high: self.told.trace[0],
            batch_trace_low: self.told.trace[1],
            position: part.before as u32,
            closed: self.ran.closed as i32,
            padding_millionths: self.ran.padding_millionths,
            ..Timing::default()
        };
        if let Some(trace) = &job.terms.trace {
            timing.received_unix_ns = trace.received_unix_ns;
            // The first traced member takes the list along.
            timing.batch = self.told.members.take();
        }
        timing
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What all members of a batch are told of it, for whoever looks at their traces.
struct Told {
    id: u64,
    /// That of the first traced member.
    trace: [u64; 2],
    members: Option<Batch>,
}

impl Told {
    fn of(parts: &[Part<'_>]) -> Self {
        let traced =
            parts.iter().filter_map(|part| Some((part.job.terms.trace.as_ref()?, part.before as u32)));
        let (members, positions): (Vec<TraceContext>, Vec<u32>) =
            traced.map(|(trace, position)| (trace.context.clone(), position)).unzip();
        let half = |at: usize| {
            let id = members.first().map(|member| &member.trace_id[..]).unwrap_or_default();
            id.get(at..at + 8)
                .map_or(0, |half| u64::from_be_bytes(half.try_into().expect("it has eight bytes")))
        };
        Self {
            id: rand::random::<u64>().max(1),
            trace: [half(0), half(8)],
            members: (!members.is_empty()).then_some(Batch { members, positions }),
        }
    }
}

/// Of the elements that these ran with, those that are padding.
pub(crate) fn padding_millionths(pieces: &[Piece<Arc<Job>>]) -> u32 {
    if pieces.iter().all(|piece| piece.job.request.real.is_none()) {
        return 0;
    }
    let (mut all, mut own) = (0.0, 0.0);
    for Piece { job, rows, .. } in pieces {
        let request = &job.request;
        let part = f64::from(*rows) / f64::from(request.rows);
        let slots = &request.version.model.spec().inputs;
        for given in &request.inputs {
            all += elements(&given.shape) as f64 * part;
            own += slots[given.slot].own_elements(&given.shape, request.real.as_deref()) as f64 * part;
        }
    }
    ((all - own) / all.max(1.0) * 1e6) as u32
}
