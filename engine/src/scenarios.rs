//! Stories of a whole engine in this process, told over its real socket with models that do what the test says.
//! Nothing waits for time to pass: a [`Gate`] holds a lane until the story lets it go, and a [`Client::barrier`]
//! is answered only after every frame before it was taken in.

use crate::batcher::Limits;
use crate::config::Settings;
use crate::library::{Candidate, Library, Load, Loaded, Stamp};
use crate::listener::{Listener, StartError};
use crate::memory::Memory;
use crate::model::{Dimension, Gathered, ModelError, Named, Output, Rows, Slot};
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
    Datatype, Decoder, DeviceMemory, Frame, Health, Hello, Index, Infer, Kind, Layout, ModelEntry,
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
            device: "cpu".into(),
            lanes: 1,
            threads_per_lane: None,
            run_max: Duration::from_secs(60),
            load_max: Duration::from_secs(60),
            queue: Limits { rows: 1000, bytes: 1 << 20 },
            memory: Memory { limit: u64::MAX, available: u64::MAX },
            device_memory: None,
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

    fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    fn join(&mut self) {
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
    fn barrier(&mut self) -> Vec<Answer> {
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

    fn caller(mut self, caller: u64) -> Self {
        self.infer.caller = caller;
        self
    }

    fn budget_us(mut self, budget_us: u64) -> Self {
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
        Ok(Loaded { model, golden: None })
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

#[test]
fn a_connection_begins_with_who_the_engine_is_and_what_it_has() {
    let (let_load, may_load) = mpsc::channel::<()>();
    let load: Load = Box::new(move || {
        may_load.recv().unwrap();
        Err("not today".into())
    });
    let slow = to_load("slow", 7, load);
    let engine = Engine::start(vec![candidate("double", double), slow]);
    let mut client = engine.connect();

    let hello = client.frame().unwrap();
    assert_eq!(hello.kind, Kind::Hello);
    let hello = Hello::decode(hello.metadata).unwrap();
    assert_eq!(hello.pid, std::process::id());
    assert_eq!(hello.payload_bytes_max, 1 << 20, "no request may take more than the whole queue");
    let mut index = Vec::new();
    while index.first().is_none_or(|entry: &ModelEntry| entry.state != ModelState::Ready as i32) {
        index = Index::decode(client.frame().unwrap().metadata).unwrap().models;
    }
    assert_eq!((index[0].name.as_str(), index[0].version, index[0].max_batch), ("double", 1, 16));
    assert_eq!(index[0].inputs[0].shape, [-1, 2]);
    assert_eq!(index[1].state(), ModelState::Loading);

    let ask_slow = Asked { infer: Infer { version: 7, ..Asked::of("slow").infer }, ..Asked::of("slow") };
    client.infer(1, ask_slow);
    let answer = client.reply().unwrap();
    assert_eq!(answer.status(), Status::NotFound);
    assert_eq!(answer.reply.message, "model `slow` version 7 is still loading; known versions are 7");

    let_load.send(()).unwrap();
    let index = client.index();
    assert_eq!((index[1].state(), index[1].reason.as_str()), (ModelState::Unavailable, "not today"));
}

#[test]
fn requests_that_wait_run_together_and_each_gets_its_own_rows() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.infer(3, Asked::of("double").fp32("x", &[2, 2], &[3.0, 4.0, 5.0, 6.0]));
    client.infer(4, ask(7.0));
    client.barrier();
    gate.open();
    let replies = client.replies(4);
    assert_eq!(replies[0].fp32("y"), [2.0, 1.0]);
    assert_eq!(replies[1].fp32("y"), [4.0, 1.0]);
    assert_eq!(replies[2].fp32("y"), [6.0, 8.0, 10.0, 12.0]);
    assert_eq!(replies[2].output("y").0.shape, [2, 2]);
    assert_eq!(replies[3].fp32("y"), [14.0, 1.0]);
    for reply in &replies[1..] {
        let timing = reply.reply.timing.as_ref().unwrap();
        assert_eq!((timing.batch_rows, timing.batch_requests), (4, 3));
        assert_eq!((timing.received_unix_ns, &timing.batch), (0, &None));
    }
}

#[test]
fn the_first_traced_member_of_a_batch_carries_the_list_of_all() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.infer(3, ask(3.0).traced(3));
    client.infer(4, ask(4.0).traced(4));
    client.barrier();
    gate.open();
    let timings: Vec<_> = client.replies(4).into_iter().map(|answer| answer.reply.timing.unwrap()).collect();
    assert_eq!(timings[1].batch, None);
    let (first, second) = (timings[2].batch.clone().unwrap(), timings[3].batch.clone().unwrap());
    assert_eq!(first.span, second.span);
    let span = first.span.unwrap();
    assert_eq!((&span.trace_id[..], span.span_id.len()), (&[3; 16][..], 8));
    let members = |batch: &[TraceContext]| batch.iter().map(|member| member.span_id[0]).collect::<Vec<_>>();
    assert_eq!((members(&first.members), members(&second.members)), (vec![3, 4], vec![]));
    assert!(timings[2].received_unix_ns > 1_600_000_000_000_000_000);
}

#[test]
fn the_poisonous_requests_fail_alone_and_cost_few_runs() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("double", move |inputs| {
        passing.pass();
        counted.fetch_add(1, Ordering::Relaxed);
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    let poisonous = |id| id == 9 || id == 15;
    client.infer_all((2..=17).map(|id| (id, ask(if poisonous(id) { -1.0 } else { id as f32 }))));
    client.barrier();
    runs.store(0, Ordering::Relaxed);
    gate.open();
    for answer in client.replies(17).into_iter().skip(1) {
        if poisonous(answer.id) {
            assert_eq!((answer.status(), &answer.reply.message[..]), (Status::ModelFailed, "negative input"));
        } else {
            assert_eq!(answer.fp32("y"), [2.0 * answer.id as f32, 1.0]);
        }
    }
    let runs = runs.load(Ordering::Relaxed);
    assert!(runs <= 1 + 2 * (1 + 2 * 4), "{runs} runs for two of sixteen");
}

#[test]
fn who_makes_batches_fail_again_and_again_runs_alone() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    let mut id = 1;
    let mut round = |client: &mut Client, gate: &Gate, held: bool| {
        if !held {
            gate.shut();
            id += 1;
            client.infer(id, ask(1.0));
            gate.await_held(1);
        }
        let first = id + 1;
        id += 4;
        client.infer_all(
            (first..=id).map(|id| (id, ask(if id == first { -1.0 } else { 1.0 }).caller(id - first + 1))),
        );
        client.barrier();
        gate.open();
        let answers = client.replies(5);
        answers[2].reply.timing.as_ref().unwrap().batch_requests
    };
    assert!(round(&mut client, &gate, true) < 3, "it was divided");
    assert!(round(&mut client, &gate, false) < 3, "again");
    assert_eq!(round(&mut client, &gate, false), 3, "the others are undisturbed");
}

#[test]
fn what_is_larger_than_a_batch_runs_in_pieces_and_comes_back_whole() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].max_batch, 16);
    let values: Vec<f32> = (0..100).map(|value| value as f32).collect();
    client.infer(1, Asked::of("double").fp32("x", &[50, 2], &values));
    let answer = client.reply().unwrap();
    assert_eq!(answer.output("y").0.shape, [50, 2]);
    assert_eq!(answer.fp32("y"), values.iter().map(|value| value * 2.0).collect::<Vec<_>>());
    // A piece that fails is the request's failure, told once.
    let values: Vec<f32> = (0..100).map(|value| if value == 70 { -1.0 } else { 1.0 }).collect();
    client.infer(2, Asked::of("double").fp32("x", &[50, 2], &values));
    let answer = client.reply().unwrap();
    assert_eq!((answer.id, answer.status()), (2, Status::ModelFailed));
    assert!(client.barrier().is_empty(), "one answer");
}

#[test]
fn who_leaves_while_a_batch_runs_does_not_shift_the_answers_of_the_others() {
    let (first, second) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let passing = (Arc::clone(&first), Arc::clone(&second));
    let model = candidate("double", move |inputs| {
        if inputs[0].shape[0] == 1 {
            passing.0.pass()
        } else {
            passing.1.pass()
        }
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let (mut leaver, mut stayer) = (engine.connect(), engine.connect());
    leaver.index();
    stayer.index();
    first.shut();
    second.shut();
    leaver.infer(1, ask(1.0));
    first.await_held(1);
    leaver.infer(2, ask(2.0));
    leaver.barrier();
    stayer.infer(3, ask(3.0));
    stayer.barrier();
    first.open();
    second.await_held(1);
    drop(leaver);
    stayer.barrier();
    second.open();
    let answer = stayer.reply().unwrap();
    assert_eq!((answer.id, answer.fp32("y")), (3, vec![6.0, 1.0]));
}

#[test]
fn a_model_that_hangs_ends_the_engine_by_its_name() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("stuck", move |inputs| {
        passing.pass();
        double(inputs)
    });
    let mut engine = Engine::start_with(vec![model], |settings| settings.run_max = Duration::from_millis(50));
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, Asked::of("stuck").fp32("x", &[1, 2], &[1.0, 0.5]));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert!(ended.starts_with("model `stuck` version 1 has not come back for"), "{ended}");
    gate.open();
}

#[test]
fn a_gpu_that_has_failed_for_good_ends_the_engine_which_says_why() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    // Stands for libtorch on a GPU after a device-side assertion.
    let model = candidate("double", move |inputs| {
        if is_broken.load(Ordering::Relaxed) {
            let error = ModelError::new("cuda:0 works no more: device-side assert triggered");
            return Err(ModelError { device_lost: true, ..error });
        }
        double(inputs)
    });
    let mut engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    broken.store(true, Ordering::Relaxed);
    client.infer(1, Asked::of("double").fp32("x", &[1, 2], &[1.0, 0.5]));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert_eq!(ended, "cuda:0 works no more: device-side assert triggered; the engine has to be replaced");
}

#[test]
fn a_gpu_that_fails_while_a_model_is_loaded_ends_the_engine_too() {
    let fails = Candidate {
        load: Box::new(|| Err("model.pt: device-side assert triggered".into())),
        ..candidate("m", double)
    };
    let mut engine =
        Engine::start_with(vec![fails], |settings| settings.device_memory = Some(Arc::new(|| None)));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert!(ended.starts_with("the GPU works no more: model.pt: device-side assert"), "{ended}");
}

#[test]
fn the_memory_of_a_gpu_is_told() {
    let memory = DeviceMemory { held_bytes: 1, free_bytes: 2, total_bytes: 4 };
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| {
        settings.device_memory = Some(Arc::new(move || Some(memory)));
    });
    let mut client = engine.connect();
    client.send(Kind::Ping, 7, &Hello::default(), Bytes::new());
    loop {
        let frame = client.frame().expect("the engine lives");
        if frame.kind == Kind::Pong {
            match Health::decode(frame.metadata).unwrap().device {
                // It has been asked, and the engine waits for nobody.
                None => client.send(Kind::Ping, 7, &Hello::default(), Bytes::new()),
                told => return assert_eq!(told, Some(memory)),
            }
        }
    }
}

#[test]
fn memory_that_runs_out_divides_the_batch_until_it_fits() {
    let short = Arc::new(AtomicBool::new(false));
    let is_short = Arc::clone(&short);
    let model = candidate("double", move |inputs| {
        if is_short.load(Ordering::Relaxed) && inputs[0].shape[0] > 3 {
            return Err(ModelError { out_of_memory: true, ..ModelError::new("out of memory") });
        }
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    short.store(true, Ordering::Relaxed);
    let values: Vec<f32> = (0..32).map(|value| value as f32).collect();
    for id in 1..4 {
        client.infer(id, Asked::of("double").fp32("x", &[16, 2], &values));
        assert_eq!(client.reply().unwrap().fp32("y")[31], 62.0);
    }
}

#[test]
fn a_full_queue_has_room_for_who_matters_more_and_for_another_tenant() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("double", move |inputs| {
        passing.pass();
        double(inputs)
    });
    let engine = Engine::start_with(vec![model], |settings| settings.queue.rows = 4);
    let (mut many, mut few) = (engine.connect(), engine.connect());
    many.index();
    few.index();
    let ask = |tenant, criticality| {
        let mut asked = Asked::of("double").fp32("x", &[1, 2], &[1.0, 0.5]);
        (asked.infer.tenant, asked.infer.criticality) = (tenant, criticality);
        asked
    };
    gate.shut();
    many.infer(1, ask(7, 0));
    gate.await_held(1);
    many.infer_all((2..=5).map(|id| (id, ask(7, 0))));
    many.barrier();
    few.infer(1, ask(8, 0));
    few.infer(2, ask(9, 1));
    let gone = [many.reply().unwrap(), many.reply().unwrap()];
    for (answer, id) in gone.iter().zip([5, 4]) {
        assert_eq!((answer.id, answer.status()), (id, Status::Overloaded));
        assert!(answer.reply.message.starts_with("it made way for somebody"), "{}", answer.reply.message);
    }
    many.infer(6, ask(7, 3));
    let refused = many.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (6, Status::Overloaded), "nobody matters less");
    gate.open();
    assert!(many.replies(3).iter().chain(&few.replies(2)).all(|answer| answer.status() == Status::Ok));
}

#[test]
fn a_request_that_would_be_late_is_refused_at_once_and_told_how_long_it_would_wait() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("slow", move |inputs| {
        std::thread::sleep(Duration::from_millis(20));
        passing.pass();
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    client.infer(0, Asked::of("slow").fp32("x", &[16, 2], &[1.0; 32]).budget_us(2_000_000));
    assert_eq!(client.reply().unwrap().status(), Status::Ok);
    // A lane answers first and tells the queue then: until it has, nothing is known.
    let answer = (100..200)
        .map(|id| {
            client.infer(id, Asked::of("slow").fp32("x", &[1, 2], &[1.0, 0.5]).budget_us(5_000));
            client.reply().unwrap()
        })
        .find(|answer| answer.status() != Status::DeadlineExceeded)
        .expect("it is known in the end");
    assert_eq!(answer.status(), Status::Overloaded, "{}", answer.reply.message);
    assert!(answer.reply.message.starts_with("it would be late"), "{}", answer.reply.message);
    gate.shut();
    client.infer(2, Asked::of("slow").fp32("x", &[1, 2], &[1.0, 0.5]).budget_us(2_000_000));
    gate.await_held(1);
    client.infer_all(
        (3..60).map(|id| (id, Asked::of("slow").fp32("x", &[16, 2], &[1.0; 32]).budget_us(500_000))),
    );
    let refused = client.barrier();
    gate.open();
    assert!(
        (25..50).contains(&refused.len()),
        "{} of 57 batches of 20 ms and a little do not fit",
        refused.len()
    );
    for answer in refused {
        assert_eq!(answer.status(), Status::Overloaded);
        assert!(answer.reply.retry_after_us > 400_000, "{}", answer.reply.retry_after_us);
    }
}

#[test]
fn a_panic_fails_the_request_and_not_the_lane() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let mut client = engine.connect();
    client.index();
    client.infer(1, ask(f32::INFINITY));
    let answer = client.reply().unwrap();
    assert_eq!((answer.status(), answer.reply.message.as_str()), (Status::Internal, "panic: unlucky"));
    client.infer(2, ask(2.0));
    assert_eq!(client.reply().unwrap().status(), Status::Ok);
}

#[test]
fn an_output_with_another_number_of_rows_reaches_nobody() {
    let model = candidate("double", |inputs| {
        let mut outputs = double(inputs)?;
        if fp32(&inputs[0]).contains(&99.0) {
            outputs = vec![output_fp32("y", &[1, 2], &[0.0, 0.0])];
        }
        Ok(outputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].max_batch, 16, "the trial could not know");
    client.infer(1, Asked::of("double").fp32("x", &[2, 2], &[99.0, 0.0, 0.0, 0.0]));
    let answer = client.reply().unwrap();
    assert_eq!(answer.status(), Status::ModelFailed);
    assert_eq!(answer.reply.message, "output `y` has 1 row, 2 went in");
}

#[test]
fn a_cancelled_request_is_not_run() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(-2.0));
    client.infer(3, ask(3.0));
    client.send(Kind::Cancel, 2, &Infer::default(), Bytes::new());
    client.barrier();
    gate.open();
    let replies = client.replies(2);
    assert_eq!((replies[0].id, replies[1].id), (1, 3));
    assert_eq!(replies[1].reply.timing.as_ref().unwrap().batch_requests, 1);
    client.barrier();
}

#[test]
fn an_expired_request_is_told_so_and_not_run() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    let sent = Instant::now();
    client.infer(2, ask(-2.0).budget_us(30_000));
    client.infer(3, ask(3.0).budget_us(3_600_000_000));
    while sent.elapsed() < Duration::from_millis(30) {
        assert!(client.barrier().is_empty(), "it waits");
    }
    gate.open();
    let replies = client.replies(3);
    assert_eq!(replies[1].status(), Status::DeadlineExceeded);
    assert_eq!(replies[2].fp32("y"), [6.0, 1.0]);
}

#[test]
fn a_full_queue_refuses_and_a_lost_connection_frees_its_place() {
    let (engine, mut client, gate) = engine_with_held_lane(|settings| settings.queue.rows = 1);
    client.infer(2, ask(-2.0));
    client.infer(3, ask(3.0));
    let refused = client.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (3, Status::Overloaded));
    drop(client);

    let mut other = engine.connect();
    let mut id = 10;
    while other.is_refused(id, ask(4.0)) {
        id += 1;
    }
    gate.open();
    let answer = other.reply().unwrap();
    assert_eq!((answer.id, answer.fp32("y")), (id, vec![8.0, 1.0]));
}

#[test]
fn in_a_crowd_every_caller_gets_its_own_answer_once() {
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| settings.lanes = 3);
    engine.connect().index();
    let engine = &engine;
    let caller = move |number: u64| {
        let mut client = engine.connect();
        for round in 0..40 {
            let ids: Vec<u64> = (1..=20).map(|at| round * 100 + at).collect();
            let value = |id: u64| (number * 10_000 + id) as f32;
            client.infer_all(ids.iter().map(|id| (*id, ask(value(*id)))));
            for id in ids.iter().filter(|id| id.is_multiple_of(7)) {
                client.send(Kind::Cancel, *id, &Infer::default(), Bytes::new());
            }
            let mut owed: Vec<u64> = ids.iter().copied().filter(|id| !id.is_multiple_of(7)).collect();
            let mut cancelled: Vec<u64> = ids.iter().copied().filter(|id| id.is_multiple_of(7)).collect();
            while !owed.is_empty() {
                let answer = client.reply().unwrap();
                assert_eq!(answer.fp32("y"), [2.0 * value(answer.id), 1.0]);
                // What was already running when it was cancelled may still be answered, in this round or a later one.
                if answer.id / 100 == round {
                    let list = if answer.id.is_multiple_of(7) { &mut cancelled } else { &mut owed };
                    let at = list.iter().position(|id| *id == answer.id).expect("one answer each");
                    list.remove(at);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || caller(number));
        }
    });
}

#[test]
fn a_broken_stream_ends_its_own_connection_only() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let (mut broken, mut sound) = (engine.connect(), engine.connect());
    sound.index();
    broken.socket.write_all(&[b'X'; 64]).unwrap();
    while broken.frame().is_some() {}
    let mut wrong_way = engine.connect();
    wrong_way.send(Kind::Reply, 1, &Reply::default(), Bytes::new());
    while wrong_way.frame().is_some() {}
    sound.infer(1, ask(1.0));
    assert_eq!(sound.reply().unwrap().status(), Status::Ok);
}

#[test]
fn a_proxy_that_does_not_read_is_let_go() {
    let engine = Engine::start_with(vec![], |settings| settings.unread_bytes_max = 10_000);
    let mut deaf = engine.connect();
    let mut outbox = Outbox::new();
    outbox.push(Kind::Infer, 1, &Infer { model: "nobody".into(), ..Infer::default() }, Bytes::new());
    let frame = outbox.take().concat();
    while deaf.socket.write_all(&frame).is_ok() {}
    let mut other = engine.connect();
    other.barrier();
}

#[test]
fn a_model_that_failed_its_trial_never_runs_twice_at_once() {
    let inside = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Gate::default());
    let (counted, highest, passing) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&gate));
    let model = candidate("double", move |inputs| {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        passing.pass();
        counted.fetch_sub(1, Ordering::SeqCst);
        let coupled = inputs[0].shape[0] as f32;
        Ok(vec![output_fp32(
            "y",
            &inputs[0].shape,
            &fp32(&inputs[0]).iter().map(|x| x + coupled).collect::<Vec<_>>(),
        )])
    });
    let engine = Engine::start_with(vec![model, candidate("other", double)], |settings| settings.lanes = 3);
    let mut client = engine.connect();
    let index = client.index();
    assert_eq!(index[0].max_batch, 1);
    assert!(index[0].reason.starts_with("not batched: rows change when they run together"), "{index:?}");
    gate.shut();
    for id in 1..=8 {
        client.infer(id, ask(id as f32));
    }
    gate.await_held(1);
    // Another model is not held up, and its answer shows that idle lanes have looked.
    client.infer(9, Asked::of("other").fp32("x", &[1, 2], &[1.0, 2.0]));
    assert_eq!(client.reply().unwrap().id, 9);
    gate.open();
    for answer in client.replies(8) {
        assert_eq!(answer.fp32("y"), [answer.id as f32 + 1.0, 1.5]);
        assert_eq!(answer.reply.timing.unwrap().batch_requests, 1);
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn when_told_to_stop_it_finishes_what_waits_and_takes_nothing_new() {
    let (mut engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.barrier();
    engine.tell_to_stop();
    // The socket file goes when the listener does.
    while engine.socket.exists() {
        std::thread::yield_now();
    }
    let mut id = 3;
    while !client.is_refused(id, ask(3.0)) {
        client.send(Kind::Cancel, id, &Infer::default(), Bytes::new());
        id += 1;
    }
    gate.open();
    let answers: Vec<_> = std::iter::from_fn(|| client.reply()).filter(|answer| answer.id < 3).collect();
    assert_eq!(answers.iter().map(|answer| answer.status()).collect::<Vec<_>>(), [Status::Ok, Status::Ok]);
    engine.join();
}

#[test]
fn a_socket_is_taken_over_only_from_the_dead() {
    let engine = Engine::start(vec![]);
    let settings = |path: &PathBuf| Settings {
        socket: path.clone(),
        device: "cpu".into(),
        lanes: 1,
        threads_per_lane: None,
        run_max: Duration::from_secs(60),
        load_max: Duration::from_secs(60),
        queue: Limits { rows: 1, bytes: 1 },
        memory: Memory { limit: u64::MAX, available: u64::MAX },
        device_memory: None,
        unread_bytes_max: 1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let refusal = |path: &PathBuf| Listener::bind(settings(path)).err().expect("must be refused").to_string();
    assert!(refusal(&engine.socket).starts_with("an engine is already listening on "));

    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(Listener::bind(settings(&stale)).is_ok());

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refusal(&file).ends_with("exists and is not a socket; remove it or give another --socket"));
    assert!(refusal(&folder.path().join("no/socket")).ends_with("does not exist; create it"));
    assert!(refusal(&folder.path().join("x".repeat(120))).starts_with("socket path has "));
}

/// A model `x: [-1, n], seen: [-1, n] (a mask) → y: [-1, n], total: [-1]`, padded to 4 and 8.
fn padding_model(gate: Arc<Gate>, honest: bool) -> Candidate {
    let load: Load = Box::new(move || {
        let mut spec = rows_spec(&[("x", 1), ("seen", 1)], &[("y", 1), ("total", 1)], 16);
        let dimension = Named { name: "n".into(), pad_to: vec![4, 8], waste_max: 0.5 };
        spec.dimensions.push(dimension);
        fn shape(slot: &mut Slot) -> &mut Vec<Dimension> {
            &mut slot.form.as_mut().unwrap().shape
        }
        for slot in spec.inputs.iter_mut().chain(&mut spec.outputs[..1]) {
            shape(slot)[1] = Dimension::Named(0);
        }
        shape(&mut spec.outputs[1]).truncate(1);
        (spec.inputs[0].pad, spec.inputs[1].mask) = (7.0, true);
        let model = Scripted::new(spec, move |inputs| {
            gate.pass();
            let (x, seen) = (fp32(&inputs[0]), fp32(&inputs[1]));
            let n = inputs[0].shape[1] as usize;
            let y: Vec<f32> = x.iter().map(|x| x * 2.0).collect();
            let seen_of = |at: usize| if honest { seen[at] } else { 1.0 };
            let totals: Vec<f32> = (0..x.len() / n)
                .map(|row| (row * n..row * n + n).map(|at| x[at] * seen_of(at)).sum())
                .collect();
            Ok(vec![
                output_fp32("y", &inputs[0].shape, &y),
                output_fp32("total", &[totals.len() as u64], &totals),
            ])
        });
        Ok(Loaded { model: Box::new(model), golden: None })
    });
    to_load("padded", 1, load)
}

#[test]
fn requests_of_many_sizes_are_padded_to_few_and_run_together() {
    let gate = Arc::new(Gate::default());
    let engine = Engine::start(vec![padding_model(Arc::clone(&gate), true)]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].reason, "");
    let ask = |x: &[f32]| Asked::of("padded").fp32("x", &[1, x.len() as u64], x);
    gate.shut();
    client.infer(1, ask(&[1.0]));
    gate.await_held(1);
    client.infer(2, ask(&[1.0, 2.0, 3.0]));
    client.infer(3, ask(&[1.0, 2.0, 3.0, 4.0]));
    client.infer(4, ask(&[1.0, 2.0]).fp32("seen", &[1, 2], &[0.0, 1.0]));
    client.infer(5, ask(&[1.0; 9]));
    let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    client.infer(6, Asked::of("padded").fp32("x", &[2, 3], &rows));
    client.barrier();
    gate.open();
    let answers = client.replies(6);
    assert_eq!(answers[0].fp32("total"), [1.0], "alone, because three quarters would be padding");
    assert_eq!((answers[1].fp32("y"), answers[1].fp32("total")), (vec![2.0, 4.0, 6.0], vec![6.0]));
    assert_eq!(answers[1].output("y").0.shape, [1, 3]);
    assert_eq!(answers[2].fp32("total"), [10.0]);
    assert_eq!((answers[3].fp32("y"), answers[3].fp32("total")), (vec![2.0, 4.0], vec![2.0]));
    assert_eq!((answers[4].fp32("y").len(), answers[4].fp32("total")), (9, vec![9.0]));
    assert_eq!(answers[5].output("y").0.shape, [2, 3]);
    assert_eq!(
        (answers[5].fp32("y"), answers[5].fp32("total")),
        (rows.map(|x| 2.0 * x).to_vec(), vec![6.0, 15.0])
    );
    let ran_with = |at: usize| answers[at].reply.timing.as_ref().unwrap().batch_requests;
    assert_eq!([1, 2, 3, 5].map(ran_with), [4; 4]);
    assert_eq!(ran_with(4), 1, "larger than any size that is padded to");
}

/// A model `x: [1, n] → y: [n, 2], sum: [1]`, which has no rows, padded to 4.
#[test]
fn outputs_of_a_padded_model_without_rows_are_cut_back_in_all_dimensions() {
    let load: Load = Box::new(|| {
        let mut spec = rows_spec(&[("x", 4)], &[("y", 2), ("sum", 1)], 16);
        spec.rows = Rows::None { why: "output `y` does not start with -1".into() };
        spec.dimensions.push(Named { name: "n".into(), pad_to: vec![4], waste_max: 0.9 });
        let shapes = [
            vec![Dimension::Fixed(1), Dimension::Named(0)],
            vec![Dimension::Named(0), Dimension::Fixed(2)],
            vec![Dimension::Fixed(1)],
        ];
        for (slot, shape) in spec.inputs.iter_mut().chain(&mut spec.outputs).zip(shapes) {
            slot.form.as_mut().unwrap().shape = shape;
        }
        let model = Scripted::new(spec, |inputs| {
            let x = fp32(&inputs[0]);
            let y: Vec<f32> = x.iter().flat_map(|x| [*x, 2.0 * x]).collect();
            let sum = x.iter().sum();
            Ok(vec![output_fp32("y", &[x.len() as u64, 2], &y), output_fp32("sum", &[1], &[sum])])
        });
        Ok(Loaded { model: Box::new(model), golden: None })
    });
    let engine = Engine::start(vec![to_load("spread", 1, load)]);
    let mut client = engine.connect();
    client.index();
    client.infer(1, Asked::of("spread").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    let answer = client.reply().unwrap();
    assert_eq!((answer.output("y").0.shape.clone(), answer.fp32("sum")), (vec![3, 2], vec![6.0]));
    assert_eq!(answer.fp32("y"), [1.0, 2.0, 2.0, 4.0, 3.0, 6.0]);
}

#[test]
fn what_would_be_too_large_once_padded_is_refused_before_it_is_made() {
    let load: Load = Box::new(|| {
        let mut spec = rows_spec(&[("x", 1), ("seen", 1)], &[("y", 1)], 16);
        spec.dimensions.push(Named { name: "n".into(), pad_to: vec![1 << 40], waste_max: 0.999_999_999_999 });
        for slot in spec.inputs.iter_mut().chain(&mut spec.outputs) {
            slot.form.as_mut().unwrap().shape[1] = Dimension::Named(0);
        }
        spec.inputs[1].mask = true;
        let model =
            Scripted::new(spec, |inputs| Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))]));
        Ok(Loaded { model: Box::new(model), golden: None })
    });
    let engine = Engine::start(vec![to_load("wide", 1, load)]);
    let mut client = engine.connect();
    let reason = client.index().remove(0).reason;
    assert!(reason.contains("not padded: "), "{reason}");
    client.infer(1, Asked::of("wide").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    assert_eq!(client.reply().unwrap().fp32("y"), [1.0, 2.0, 3.0]);
}

#[test]
fn a_model_that_takes_padding_for_input_is_not_padded() {
    let engine = Engine::start(vec![padding_model(Arc::default(), false)]);
    let mut client = engine.connect();
    let reason = client.index().remove(0).reason;
    assert!(reason.starts_with("not padded: answers change (output `total`, "), "{reason}");
    client.infer(1, Asked::of("padded").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    assert_eq!(client.reply().unwrap().fp32("total"), [6.0]);
    let uneven = Asked::of("padded").fp32("x", &[1, 3], &[0.0; 3]).fp32("seen", &[1, 2], &[1.0; 2]);
    client.infer(2, uneven);
    assert_eq!(client.reply().unwrap().reply.message, "input `seen`: dimension `n` is 2, in `x` it is 3");
}
