//! What an engine adds to a lone request: the time until its model runs, and until its answer is there, by turns with two servers that
//! have no batcher. Both read the same frame from the same kind of socket, run the same form of the model and answer with its outputs; they
//! check, count and watch nothing. One hands the request to a thread that sleeps until then, as an engine must that goes on reading
//! while a model runs; the other runs it on the thread that reads.

use crate::driver::{self, Driver, Workload};
use anyhow::Context;
use bytes::{BufMut, BytesMut};
use engine::model::{Gathered, Model};
use engine::{Device, schedule};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Instant;
use wire::{Decoder, Frame, Infer, Kind, Layout, Limits, Outbox, Reply, Status, TensorMeta, Timing};

const ROUNDS: usize = 5;
const TURNS: usize = 150;

/// libtorch profiles the first runs and compiles in the next.
const WARM_UPS: usize = 5;

/// Where a server without a batcher runs its model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    WhereItReads,
    OnAnotherThread,
}

pub(crate) fn lone(device: Device) -> anyhow::Result<()> {
    let folder = crate::demo_version("1")?;
    let workload = Workload::digits();
    let (served, _) = crate::serve(folder.path(), workload.model, device)?;
    let (mut engine, entry) = Driver::connect(&served, &workload)?;
    let beside = |name: &str, runs| {
        let socket = folder.path().join(name);
        let listener = UnixListener::bind(&socket)?;
        let model = crate::load(folder.path(), &entry.form, &entry, device)?;
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the driver connects");
            let _ = schedule::at_once(); // as the engine's thread that reads
            serve(stream, model, runs).expect("the driver is the one to end it");
        });
        Driver::join(&socket, &workload)
    };
    let mut handing = beside("handing.sock", Runs::OnAnotherThread)?;
    let mut at_once = beside("at-once.sock", Runs::WhereItReads)?;
    for driver in [&mut engine, &mut handing, &mut at_once] {
        for _ in 0..WARM_UPS {
            driver.one()?;
        }
    }
    for _ in 0..ROUNDS {
        let (mut waited, mut took) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        for turn in 0..TURNS {
            let drivers = [&mut engine, &mut handing, &mut at_once];
            for at in 0..drivers.len() {
                let at = (at + turn) % drivers.len(); // none is always behind the same one
                std::thread::sleep(driver::LONE_EVERY);
                let (until_answered, reply) = drivers[at].one()?;
                took[at].push(until_answered.as_micros() as u64);
                waited[at].push(reply.timing.context("it ran")?.queue_us);
            }
        }
        println!("a lone request has come to its model after {}", shown(waited));
        println!("               and is answered after       {}", shown(took));
    }
    Ok(())
}

/// What each of the three took at the median and at p99, and what came of the turns, each by itself.
fn shown(all: [Vec<u64>; 3]) -> String {
    let added = all[0].iter().zip(&all[1]).map(|(engine, handing)| *engine as f64 - *handing as f64);
    let added = crate::quartiles(added.collect());
    let [engine, handing, at_once] = all.map(driver::median_and_p99);
    format!(
        "{engine:?} µs (median, p99); without a batcher {handing:?} by a thread that is woken for it, {at_once:?} by the one that reads; \
         the engine adds {added} to the former"
    )
}

/// One connection, until its end.
fn serve(mut stream: UnixStream, model: Box<dyn Model>, runs: Runs) -> anyhow::Result<()> {
    let mut answering = stream.try_clone()?;
    let mut answer = move |(frame, came)| answer(&mut answering, &*model, frame, came);
    let (give, take) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut handing = move |frame| Ok(give.send(frame)?);
        if runs == Runs::OnAnotherThread {
            scope.spawn(move || take.iter().try_for_each(answer));
            read(&mut stream, &mut handing)
        } else {
            read(&mut stream, &mut answer)
        }
    })
}

fn read(
    stream: &mut UnixStream,
    each: &mut dyn FnMut((Frame, Instant)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut decoder = Decoder::new(Limits::default());
    loop {
        let came = Instant::now();
        while let Some(frame) = decoder.decode()? {
            if frame.kind == Kind::Infer {
                each((frame, came))?;
            }
        }
        let mut chunk = [0; 64 << 10];
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        decoder.buffer().extend_from_slice(&chunk[..read]);
    }
}

fn answer(stream: &mut UnixStream, model: &dyn Model, frame: Frame, came: Instant) -> anyhow::Result<()> {
    let infer = <Infer as prost::Message>::decode(frame.metadata)?;
    let mut inputs = Vec::new();
    for (slot, meta) in infer.inputs.iter().enumerate() {
        let (datatype, range) = meta.locate(&frame.payload)?;
        let parts = vec![&frame.payload[range]];
        inputs.push(Gathered { slot, datatype, shape: meta.shape.clone(), parts });
    }
    let timing = Timing { queue_us: came.elapsed().as_micros() as u64, ..Timing::default() };
    let mut reply = Reply { status: Status::Ok as i32, timing: Some(timing), ..Reply::default() };
    let (mut payload, mut layout) = (BytesMut::new(), Layout::default());
    for output in model.run(&inputs)? {
        let offset = layout.place(output.bytes.len());
        payload.put_bytes(0, offset - payload.len());
        payload.extend_from_slice(&output.bytes);
        let (datatype, offset) = (output.datatype as u32, offset as u64);
        reply.outputs.push(TensorMeta { name: output.name, datatype, shape: output.shape, offset, bytes: 0 });
    }
    let mut outbox = Outbox::new();
    outbox.push(Kind::Reply, frame.id, &reply, payload.freeze());
    Ok(stream.write_all(&outbox.take().concat())?)
}
