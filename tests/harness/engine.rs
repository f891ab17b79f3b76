//! A scripted engine. It stands for `penstock-engine` where a scenario needs an engine to misbehave in a way
//! that a real model cannot be made to; it speaks the real wire over a real socket.

use bytes::Bytes;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use wire::{
    Datatype, Decoder, Frame, Hello, Index, Infer, Kind, Limits, ModelEntry, ModelState, Outbox, Reply,
    Status, TensorMeta, TensorSpec,
};

/// What a version does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers with its own version number.
    Answer,
    /// Answers with its own version number, so often that this takes [`ScriptedEngine::LONG_BYTES`].
    AnswerAtLength,
    /// Fails.
    Fail,
    /// Never answers.
    Hang,
    /// Says that its queue is full.
    Overloaded,
    /// Says that three seconds of work stand before it.
    Busy,
    /// Says that the version is not there any more, and takes it out of its index.
    Vanish,
    /// Says that it is stopping.
    Stopping,
    /// Closes the connection in the middle of a frame.
    CutFrame,
    /// Does nothing until it is told to behave otherwise.
    Hold,
}

/// What the engine is told with a request, in the words of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which version is to answer.
    pub version: u64,
    /// Whose request it is.
    pub tenant: u64,
    /// How much it matters.
    pub criticality: u32,
    /// Within how many microseconds it has to be answered.
    pub budget_us: u64,
}

/// What the engine remembers of so many requests.
const TOLD_MAX: usize = 1 << 14;

/// What each (model, version) does.
#[derive(Default)]
struct Scripts {
    behaviours: Mutex<HashMap<(String, u64), Behaviour>>,
    changed: Condvar,
    /// Versions that have vanished.
    gone: Mutex<HashSet<(String, u64)>>,
    /// How many requests there have been.
    asked: AtomicUsize,
    /// What came with the latest requests.
    told: Mutex<VecDeque<Told>>,
    /// Who has to be told so.
    listeners: Mutex<Vec<Arc<Listener>>>,
}

/// A connection of the proxy's.
struct Listener {
    stream: Mutex<UnixStream>,
    /// Whether requests came over it: the one that listens to what the engine says has none.
    has_asked: AtomicBool,
}

impl Scripts {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, u64), Behaviour>> {
        self.behaviours.lock().expect("unpoisoned")
    }

    /// Tells everybody, once, that a version is not there any more.
    fn vanish(&self, version: (String, u64)) {
        if !self.gone.lock().expect("unpoisoned").insert(version) {
            return;
        }
        let mut outbox = Outbox::new();
        outbox.push(Kind::Index, 0, &index(self), Bytes::new());
        let news = outbox.take().concat();
        for listener in self.listeners.lock().expect("unpoisoned").iter() {
            let _ = listener.stream.lock().expect("unpoisoned").write_all(&news); // who has left needs no news
        }
    }

    /// Waits for as long as the version is on hold.
    fn behaviour(&self, version: &(String, u64)) -> Behaviour {
        let held = self.changed.wait_while(self.lock(), |all| all[version] == Behaviour::Hold);
        held.expect("unpoisoned")[version]
    }
}

/// An engine that does as it is told.
pub struct ScriptedEngine {
    /// Where it listens.
    pub socket: PathBuf,
    scripts: Arc<Scripts>,
    cancels: Mutex<Receiver<u64>>,
    _folder: Option<tempfile::TempDir>,
}

impl ScriptedEngine {
    /// Bytes of tensors that it takes with one request.
    pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

    /// A long answer: more than two sockets hold of it.
    pub const LONG_BYTES: usize = 24 << 20;

    /// Starts listening with these versions, all ready.
    pub fn start(versions: &[(&str, u64, Behaviour)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("engine.sock");
        Self::start_at(socket, Some(folder), versions)
    }

    /// Another one takes this one's place, with these versions. What this one has been asked stays with it.
    pub fn succeeded_by(&self, versions: &[(&str, u64, Behaviour)]) -> Self {
        std::fs::remove_file(&self.socket).expect("it listens there");
        let successor = Self::start_at(self.socket.clone(), None, versions);
        for listener in self.scripts.listeners.lock().expect("unpoisoned").iter() {
            if !listener.has_asked.load(Ordering::Relaxed) {
                let stream = listener.stream.lock().expect("unpoisoned");
                let _ = stream.shutdown(std::net::Shutdown::Both); // it may have left
            }
        }
        successor
    }

    fn start_at(
        socket: PathBuf,
        folder: Option<tempfile::TempDir>,
        versions: &[(&str, u64, Behaviour)],
    ) -> Self {
        let listener = UnixListener::bind(&socket).expect("a free path");
        let scripts: Arc<Scripts> = Arc::default();
        scripts
            .lock()
            .extend(versions.iter().map(|(model, version, what)| (((*model).to_owned(), *version), *what)));
        let (cancelled, cancels) = channel();
        let shared = scripts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (scripts, cancelled) = (shared.clone(), cancelled.clone());
                std::thread::spawn(move || serve(stream, &scripts, &cancelled));
            }
        });
        Self { socket, scripts, cancels: Mutex::new(cancels), _folder: folder }
    }

    /// From now on this version does that.
    pub fn set(&self, model: &str, version: u64, behaviour: Behaviour) {
        self.scripts.lock().insert((model.to_owned(), version), behaviour);
        self.scripts.changed.notify_all();
    }

    /// Waits until there have been as many requests.
    pub fn wait_until_asked(&self, times: usize) {
        crate::eventually("the engine to be asked", || {
            (self.scripts.asked.load(Ordering::Relaxed) >= times).then_some(())
        });
    }

    /// Waits for a request to be cancelled.
    pub fn next_cancel(&self) -> Option<u64> {
        self.next_cancel_within(Duration::from_secs(10))
    }

    /// The same, for no longer than this.
    pub fn next_cancel_within(&self, time: Duration) -> Option<u64> {
        self.cancels.lock().expect("unpoisoned").recv_timeout(time).ok()
    }

    /// What came with the latest requests, in the order in which they came.
    pub fn told(&self) -> Vec<Told> {
        self.scripts.told.lock().expect("unpoisoned").iter().copied().collect()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn serve(mut stream: UnixStream, scripts: &Scripts, cancelled: &Sender<u64>) {
    let mut outbox = Outbox::new();
    let frames = Limits { payload_bytes: ScriptedEngine::PAYLOAD_BYTES_MAX, ..Limits::default() };
    let payload_bytes_max = frames.payload_bytes as u64;
    let hello = Hello { release: "scripted".into(), payload_bytes_max, ..Hello::default() };
    outbox.push(Kind::Hello, 0, &hello, Bytes::new());
    outbox.push(Kind::Index, 0, &index(scripts), Bytes::new());
    let mut decoder = Decoder::new(frames);
    let writer = Mutex::new(stream.try_clone().expect("a socket can be shared"));
    let listener = Arc::new(Listener { stream: writer, has_asked: AtomicBool::new(false) });
    scripts.listeners.lock().expect("unpoisoned").push(listener.clone());
    let write = |bytes: &[u8]| listener.stream.lock().expect("unpoisoned").write_all(bytes);
    loop {
        if write(&outbox.take().concat()).is_err() {
            return;
        }
        let mut chunk = [0; 64 << 10];
        let Ok(read @ 1..) = stream.read(&mut chunk) else { return };
        decoder.buffer().extend_from_slice(&chunk[..read]);
        while let Some(frame) = decoder.decode().expect("the proxy sends frames") {
            match frame.kind {
                Kind::Infer => {
                    listener.has_asked.store(true, Ordering::Relaxed);
                    if answer(&frame, scripts, &mut outbox).is_break() {
                        let cut = outbox.take().concat();
                        let _ = write(&cut[..cut.len() - 1]);
                        let _ = stream.shutdown(std::net::Shutdown::Both); // others have it as well
                        return;
                    }
                }
                Kind::Cancel => drop(cancelled.send(frame.id)),
                Kind::Ping => outbox.push(Kind::Pong, frame.id, &wire::Health::default(), Bytes::new()),
                Kind::Hello | Kind::Index | Kind::Reply | Kind::Pong | Kind::Control | Kind::Region => {
                    panic!("the proxy has no reason to send {:?} to this engine", frame.kind)
                }
            }
        }
    }
}

fn answer(frame: &Frame, scripts: &Scripts, outbox: &mut Outbox) -> std::ops::ControlFlow<()> {
    let infer: Infer = prost::Message::decode(frame.metadata.clone()).expect("metadata decodes");
    let Infer { version, tenant, criticality, budget_us, .. } = infer;
    let mut told = scripts.told.lock().expect("unpoisoned");
    if told.len() == TOLD_MAX {
        told.pop_front();
    }
    told.push_back(Told { version, tenant, criticality, budget_us });
    drop(told);
    scripts.asked.fetch_add(1, Ordering::Relaxed);
    let version = (infer.model, infer.version);
    let behaviour = scripts.behaviour(&version);
    let refuse = |status: Status, message: &str| Reply {
        status: status as i32,
        message: message.into(),
        ..Reply::default()
    };
    match behaviour {
        Behaviour::Answer | Behaviour::AnswerAtLength | Behaviour::CutFrame => {
            let number = infer.version.to_le_bytes();
            let is_long = behaviour == Behaviour::AnswerAtLength;
            let payload = number.repeat(if is_long { ScriptedEngine::LONG_BYTES / number.len() } else { 1 });
            let output = TensorMeta {
                name: "version".into(),
                datatype: Datatype::Int64 as u32,
                shape: vec![(payload.len() / number.len()) as u64],
                offset: 0,
                bytes: 0,
            };
            outbox.push(
                Kind::Reply,
                frame.id,
                &Reply { status: Status::Ok as i32, outputs: vec![output], ..Reply::default() },
                payload.into(),
            );
        }
        Behaviour::Fail => {
            outbox.push(Kind::Reply, frame.id, &refuse(Status::ModelFailed, "scripted failure"), Bytes::new())
        }
        Behaviour::Overloaded => {
            outbox.push(Kind::Reply, frame.id, &refuse(Status::Overloaded, "the queue is full"), Bytes::new())
        }
        Behaviour::Busy => {
            let refusal = refuse(Status::Overloaded, "it would be late");
            let reply = Reply { retry_after_us: 3_000_000, ..refusal };
            outbox.push(Kind::Reply, frame.id, &reply, Bytes::new())
        }
        Behaviour::Vanish => {
            scripts.vanish(version);
            outbox.push(Kind::Reply, frame.id, &refuse(Status::NotFound, "it is gone"), Bytes::new())
        }
        Behaviour::Stopping => {
            outbox.push(Kind::Reply, frame.id, &refuse(Status::Unavailable, "it is stopping"), Bytes::new())
        }
        Behaviour::Hang | Behaviour::Hold => {}
    }
    if behaviour == Behaviour::CutFrame {
        std::ops::ControlFlow::Break(())
    } else {
        std::ops::ControlFlow::Continue(())
    }
}

fn index(scripts: &Scripts) -> Index {
    let (behaviours, gone) = (scripts.lock(), scripts.gone.lock().expect("unpoisoned"));
    let entry = |(model, version): &(String, u64)| ModelEntry {
        name: model.clone(),
        version: *version,
        state: ModelState::Ready as i32,
        inputs: vec![TensorSpec {
            name: "x".into(),
            datatype: Datatype::Fp32 as u32,
            shape: vec![-1, 1],
            labels: vec![],
        }],
        outputs: vec![TensorSpec {
            name: "version".into(),
            datatype: Datatype::Int64 as u32,
            shape: vec![-1],
            labels: vec![],
        }],
        max_batch: 1,
        ..ModelEntry::default()
    };
    let mut models: Vec<_> =
        behaviours.keys().filter(|version| !gone.contains(*version)).map(entry).collect();
    models.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    Index { models, revision: 1 + gone.len() as u64 }
}
