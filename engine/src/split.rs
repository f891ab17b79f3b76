//! The way back: cuts the outputs of a batch into one reply per job and leaves each in its caller's mailbox.
//! The only place that writes replies.

use crate::connection::Mailbox;
use crate::job::{Job, Refusal, shortened};
use crate::model::Output;
use bytes::{BufMut, Bytes, BytesMut};
use std::time::Instant;
use wire::{Batch, Kind, Layout, Limits, Outbox, Reply, Status, TensorMeta, Timing, TraceContext};

/// When and how large a batch ran.
#[derive(Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) rows: u32,
}

/// Answers jobs that ran together, in the order of their rows. The outputs have been checked: as many rows came
/// out as went in.
pub(crate) fn reply(jobs: &[Box<Job>], outputs: &[Output], ran: Ran) {
    // Copied before a mailbox is locked: outputs may be large, and a lock is held for the frame heads only.
    let mut payloads = cut(jobs, outputs).into_iter();
    let mut writer = Writer {
        outputs,
        ran,
        requests: jobs.len() as u32,
        batch: span_of(jobs),
        reply: Reply { status: Status::Ok as i32, ..Reply::default() },
        describes_all: false,
    };
    for jobs in jobs.chunk_by(|one, other| one.mailbox.connection == other.mailbox.connection) {
        jobs[0].mailbox.post(|outbox| {
            for (job, payload) in jobs.iter().zip(payloads.by_ref()) {
                writer.push(outbox, job, payload);
            }
        });
    }
}

/// Tells a connection which of its requests were not run, and empties the list.
pub(crate) fn refuse(mailbox: &Mailbox, refused: &mut Vec<(u64, Refusal)>) {
    if refused.is_empty() {
        return;
    }
    mailbox.post(|outbox| {
        for (id, refusal) in refused.drain(..) {
            outbox.push(Kind::Reply, id, &failure(refusal.status(), refusal.to_string()), Bytes::new());
        }
    });
}

/// Tells a caller how its request ended when it has no outputs.
pub(crate) fn fail(mailbox: &Mailbox, id: u64, status: Status, message: &str) {
    let reply = failure(status, message.to_owned());
    mailbox.post(|outbox| outbox.push(Kind::Reply, id, &reply, Bytes::new()));
}

fn failure(status: Status, message: String) -> Reply {
    Reply { status: status as i32, message, ..Reply::default() }
}

/// The payload of each job's reply: its rows of the outputs it wants, each at its place.
fn cut(jobs: &[Box<Job>], outputs: &[Output]) -> Vec<Bytes> {
    let bytes: usize = outputs.iter().map(|output| output.bytes.len()).sum();
    let padding = jobs.len() * outputs.len() * wire::frame::ALIGNMENT;
    let mut buffer = BytesMut::with_capacity(bytes + padding);
    let mut payloads = Vec::with_capacity(jobs.len());
    let mut before = 0;
    for job in jobs {
        let rows = job.request.rows as usize;
        let mut layout = Layout::default();
        for output in chosen(&job.request.wanted, outputs) {
            let whole = &output.bytes[..];
            let part = if jobs.len() == 1 {
                whole
            } else {
                let row = whole.len() / output.shape[0] as usize;
                &whole[before * row..(before + rows) * row]
            };
            let start = layout.place(part.len());
            buffer.put_bytes(0, start - buffer.len());
            buffer.extend_from_slice(part);
        }
        before += rows;
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
    batch: Option<Batch>,
    reply: Reply,
    /// The reply was last written for a job that wanted all outputs.
    describes_all: bool,
}

impl Writer<'_> {
    fn push(&mut self, outbox: &mut Outbox, job: &Job, payload: Bytes) {
        // The proxy would have to close the connection, and with it everybody's requests.
        if payload.len() > Limits::default().payload_bytes {
            let message = format!("outputs of {} bytes are too large to send", payload.len());
            outbox.push(Kind::Reply, job.id, &failure(Status::ModelFailed, message), Bytes::new());
            return;
        }
        if let Some(name) = self.not_given(&job.request.wanted) {
            let known = self.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ");
            let refusal = Refusal::UnknownOutput { name: shortened(name), known };
            let reply = failure(refusal.status(), refusal.to_string());
            outbox.push(Kind::Reply, job.id, &reply, Bytes::new());
            return;
        }
        self.describe(job);
        self.reply.timing = Some(self.timing(job));
        outbox.push(Kind::Reply, job.id, &self.reply, payload);
    }

    /// An output that is wanted but does not exist; only a model that declares none gets this far with one.
    fn not_given<'w>(&self, wanted: &'w [String]) -> Option<&'w str> {
        let missing = wanted.iter().find(|name| !self.outputs.iter().any(|output| output.name == **name));
        missing.map(String::as_str)
    }

    /// Says where each output lies, which is where [`cut`] has put it.
    fn describe(&mut self, job: &Job) {
        let wanted = &job.request.wanted;
        let metas = &mut self.reply.outputs;
        if !self.describes_all || !wanted.is_empty() {
            metas.clear();
            metas.extend(chosen(wanted, self.outputs).map(|output| TensorMeta {
                name: output.name.clone(),
                datatype: output.datatype as u32,
                shape: output.shape.clone(),
                offset: 0,
            }));
            self.describes_all = wanted.is_empty();
        }
        let mut layout = Layout::default();
        for (meta, output) in metas.iter_mut().zip(chosen(wanted, self.outputs)) {
            let mut bytes = output.bytes.len();
            if self.requests > 1 {
                bytes = bytes / output.shape[0] as usize * job.request.rows as usize;
                meta.shape[0] = u64::from(job.request.rows);
            }
            meta.offset = layout.place(bytes) as u64;
        }
    }

    fn timing(&mut self, job: &Job) -> Timing {
        let mut timing = Timing {
            queue_us: micros(self.ran.started.saturating_duration_since(job.received)),
            run_us: micros(self.ran.ended.saturating_duration_since(self.ran.started)),
            batch_rows: self.ran.rows,
            batch_requests: self.requests,
            ..Timing::default()
        };
        if let (Some(trace), Some(batch)) = (&job.trace, &mut self.batch) {
            timing.received_unix_ns = trace.received_unix_ns;
            // The first traced member takes the list along; the others learn the span only.
            let members = std::mem::take(&mut batch.members);
            timing.batch = Some(Batch { span: batch.span.clone(), members });
        }
        timing
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The span of a batch, in the trace of its first traced member.
fn span_of(jobs: &[Box<Job>]) -> Option<Batch> {
    let members: Vec<TraceContext> =
        jobs.iter().filter_map(|job| job.trace.as_ref()).map(|trace| trace.context.clone()).collect();
    let trace_id = members.first()?.trace_id.clone();
    let span_id = Bytes::copy_from_slice(&rand::random::<[u8; 8]>());
    Some(Batch { span: Some(TraceContext { trace_id, span_id }), members })
}
