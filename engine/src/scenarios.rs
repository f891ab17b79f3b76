//! Stories of a whole engine in this process, told over its real socket with models that do what the test says.
//! Nothing waits for time to pass: a [`Gate`] holds a lane until the story lets it go, and a [`Client::barrier`]
//! is answered only after every frame before it was taken in.

mod connections;
mod failures;
mod models;
mod padding;
mod preprocessing;
mod stateful;
mod together;
mod turned_away;

use crate::batcher::Limits;
use crate::config::Settings;
use crate::library::{Candidate, Library, Load, Loaded, Stamp};
use crate::listener::{Listener, StartError};
use crate::memory::Memory;
use crate::model::{Dimension, Gathered, ModelError, Named, Output, Rows, Slot, Spec};
use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
use bytes::Bytes;
use prost::Message;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::oneshot;
use wire::{
    Closed, Datatype, Decoder, DeviceMemory, Frame, Health, Hello, Index, Infer, Kind, Layout, ModelEntry,
    ModelState, Outbox, Reply, Status, TensorMeta, TraceContext,
};

/// An engine with one lane, unless told otherwise.
pub(crate) struct Engine {
    pub(crate) socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), StartError>>>,
    _folder: TempDir,
}

impl Engine {
    pub(crate) fn start(candidates: Vec<Candidate>) -> Self {
        Self::start_with(candidates, |_| {})
    }

    /// With models that are there once, and found to be gone when they are looked for again.
    pub(crate) fn start_with(candidates: Vec<Candidate>, change: impl FnOnce(&mut Settings)) -> Self {
        let mut candidates = Some(candidates);
        Self::start_library(Library::new(move || Ok(candidates.take().unwrap_or_default())), change)
    }

    pub(crate) fn start_library(library: Library, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let mut settings = Settings {
            socket: socket.clone(),
            references: folder.path().join("references"),
            device: "cpu".into(),
            lanes: 1,
            cores: 1,
            threads_per_lane: None,
            run_max: Duration::from_secs(60),
            load_patience: Duration::from_secs(60),
            load_max: Duration::from_secs(60),
            audit_every: None,
            queue: Limits::halving(1000, 1 << 20),
            memory: Memory { limit: u64::MAX, available: u64::MAX },
            device_memory: None,
            warm_up: None,
            unread_bytes_max: 1 << 20,
        };
        change(&mut settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(settings)?;
                bound.send(()).unwrap();
                listener.serve(library, async { drop(stopped.await) }).await
            })
        });
        is_bound.recv().expect("the engine must bind");
        Self { socket, stop: Some(stop), thread: Some(thread), _folder: folder }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub(crate) fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) fn join(&mut self) {
        self.thread.take().expect("joined once").join().unwrap().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tell_to_stop();
        if self.thread.is_some() && !std::thread::panicking() {
            self.join();
        }
    }
}

/// A proxy's end of a connection.
pub(crate) struct Client {
    socket: UnixStream,
    decoder: Decoder,
    barriers: u64,
    /// The last that came.
    pub(crate) latest: Index,
}

impl Client {
    fn connect(path: &PathBuf) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        Self {
            socket,
            decoder: Decoder::new(wire::Limits::default()),
            barriers: 1 << 40,
            latest: Index::default(),
        }
    }

    /// The next frame; `None` when the engine has closed the connection.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode().unwrap() {
                if frame.kind == Kind::Index {
                    self.latest = Index::decode(frame.metadata.clone()).unwrap();
                }
                return Some(frame);
            }
            let mut chunk = [0; 4096];
            let read = self.socket.read(&mut chunk).unwrap_or(0);
            if read == 0 {
                return None;
            }
            self.decoder.buffer().extend_from_slice(&chunk[..read]);
        }
    }

    /// Reads until no version is loading any more.
    pub(crate) fn index(&mut self) -> Vec<ModelEntry> {
        loop {
            let frame = self.frame().expect("the engine lives");
            if frame.kind == Kind::Index {
                let models = Index::decode(frame.metadata).unwrap().models;
                if models.iter().all(|entry| entry.state != ModelState::Loading as i32) {
                    return models;
                }
            }
        }
    }

    pub(crate) fn send(&mut self, kind: Kind, id: u64, metadata: &impl Message, payload: Bytes) {
        let mut outbox = Outbox::new();
        outbox.push(kind, id, metadata, payload);
        self.socket.write_all(&outbox.take().concat()).unwrap();
    }

    pub(crate) fn infer(&mut self, id: u64, request: Asked) {
        self.send(Kind::Infer, id, &request.infer, request.payload.into());
    }

    /// Sends all in one write, so that they enter the queue together.
    pub(crate) fn infer_all(&mut self, requests: impl IntoIterator<Item = (u64, Asked)>) {
        let mut outbox = Outbox::new();
        for (id, request) in requests {
            outbox.push(Kind::Infer, id, &request.infer, request.payload.into());
        }
        self.socket.write_all(&outbox.take().concat()).unwrap();
    }

    /// Sends all in one write.
    pub(crate) fn send_all(&mut self, mut outbox: Outbox) {
        self.socket.write_all(&outbox.take().concat()).unwrap();
    }

    /// The next reply, with its outputs as bytes.
    pub(crate) fn reply(&mut self) -> Option<Answer> {
        loop {
            let frame = self.frame()?;
            if frame.kind == Kind::Reply {
                return Some(Answer::read(&frame));
            }
        }
    }

    pub(crate) fn replies(&mut self, count: usize) -> Vec<Answer> {
        let mut replies: Vec<_> = (0..count).map(|_| self.reply().expect("the engine lives")).collect();
        replies.sort_by_key(|answer| answer.id);
        replies
    }

    /// Returns once the engine has taken in all that was sent before, with what it has answered meanwhile.
    pub(crate) fn barrier(&mut self) -> Vec<Answer> {
        let mut before = Vec::new();
        // Twice: what the queue refuses is answered after what else the same read has brought.
        for _ in 0..2 {
            self.barriers += 1;
            let unknown = Infer { model: "barrier".into(), ..Infer::default() };
            self.send(Kind::Infer, self.barriers, &unknown, Bytes::new());
            loop {
                let answer = self.reply().expect("the engine lives");
                if answer.id == self.barriers {
                    break;
                }
                before.push(answer);
            }
        }
        before
    }

    /// What the engine holds at the moment; replies that come before that are lost.
    pub(crate) fn health(&mut self) -> Health {
        self.send(Kind::Ping, 7, &Hello::default(), Bytes::new());
        loop {
            let frame = self.frame().expect("the engine lives");
            if frame.kind == Kind::Pong {
                return Health::decode(frame.metadata).unwrap();
            }
        }
    }

    /// Sends a request that cannot run yet; says whether the engine refuses it at once.
    fn is_refused(&mut self, id: u64, request: Asked) -> bool {
        self.infer(id, request);
        self.barrier().iter().any(|answer| answer.id == id)
    }
}

/// An `Infer` that is being put together.
pub(crate) struct Asked {
    pub(crate) infer: Infer,
    payload: Vec<u8>,
    layout: Layout,
}

impl Asked {
    pub(crate) fn of(model: &str) -> Self {
        let infer = Infer { model: model.into(), version: 1, ..Infer::default() };
        Self { infer, payload: Vec::new(), layout: Layout::default() }
    }

    pub(crate) fn input(mut self, name: &str, datatype: Datatype, shape: &[u64], bytes: &[u8]) -> Self {
        let offset = self.layout.place(bytes.len());
        self.payload.resize(offset, 0);
        self.payload.extend_from_slice(bytes);
        let bytes = if datatype == Datatype::Bytes { bytes.len() as u64 } else { 0 };
        let (name, datatype, shape) = (name.into(), datatype as u32, shape.into());
        self.infer.inputs.push(TensorMeta { name, datatype, shape, offset: offset as u64, bytes });
        self
    }

    pub(crate) fn fp32(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.input(name, Datatype::Fp32, shape, &bytes)
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        self.payload.clone()
    }

    fn caller(mut self, caller: u64) -> Self {
        self.infer.caller = caller;
        self
    }

    pub(crate) fn budget_us(mut self, budget_us: u64) -> Self {
        self.infer.budget_us = budget_us;
        self
    }

    fn traced(mut self, span: u8) -> Self {
        self.infer.trace =
            Some(TraceContext { trace_id: Bytes::from(vec![span; 16]), span_id: Bytes::from(vec![span; 8]) });
        self
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) reply: Reply,
    outputs: Vec<Bytes>,
}

impl Answer {
    fn read(frame: &Frame) -> Self {
        let reply = Reply::decode(frame.metadata.clone()).unwrap();
        let bytes = |meta: &TensorMeta| frame.payload.slice(meta.locate(&frame.payload).unwrap().1);
        Self { id: frame.id, outputs: reply.outputs.iter().map(bytes).collect(), reply }
    }

    pub(crate) fn status(&self) -> Status {
        self.reply.status()
    }

    pub(crate) fn output(&self, name: &str) -> (&TensorMeta, &[u8]) {
        let position = self.reply.outputs.iter().position(|meta| meta.name == name);
        let position = position.unwrap_or_else(|| panic!("no output {name} in {:?}", self.reply));
        (&self.reply.outputs[position], &self.outputs[position])
    }

    pub(crate) fn fp32(&self, name: &str) -> Vec<f32> {
        self.output(name)
            .1
            .chunks_exact(4)
            .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
            .collect()
    }
}

/// Holds whoever enters while it is shut.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if state.0 {
            state.1 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |state| state.0).unwrap());
        }
    }

    pub(crate) fn shut(&self) {
        *self.state.lock().unwrap() = (true, 0);
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    pub(crate) fn await_held(&self, count: usize) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |state| state.1 < count).unwrap());
    }
}

/// A model `x: [-1, 2] → y: [-1, 2]`, at most 16 rows.
fn candidate<S>(name: &str, script: S) -> Candidate
where
    S: Fn(&[Gathered<'_>]) -> Result<Vec<Output>, ModelError> + Send + Sync + 'static,
{
    let load: Load = Box::new(|| {
        let model = Box::new(Scripted::new(rows_spec(&[("x", 2)], &[("y", 2)], 16), script));
        Ok(Loaded { model, golden: None, preprocess: None, files: None })
    });
    to_load(name, 1, load)
}

fn to_load(name: &str, version: u64, load: Load) -> Candidate {
    Candidate { name: name.into(), version, stamp: Stamp::default(), bytes: 0, load }
}

/// Doubles; refuses negative numbers; panics at infinity.
fn double(inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError> {
    let x = fp32(&inputs[0]);
    if x.iter().any(|value| *value < 0.0) {
        return Err(ModelError::new("negative input"));
    }
    assert!(!x.contains(&f32::INFINITY), "unlucky");
    let y: Vec<f32> = x.iter().map(|value| value * 2.0).collect();
    Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
}

/// An engine whose one model doubles behind a gate, shut with request 1 of the client held inside.
fn engine_with_held_lane(change: impl FnOnce(&mut Settings)) -> (Engine, Client, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("double", move |inputs| {
        passing.pass();
        double(inputs)
    });
    let engine = Engine::start_with(vec![model], change);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    (engine, client, gate)
}

fn ask(value: f32) -> Asked {
    Asked::of("double").fp32("x", &[1, 2], &[value, 0.5])
}
