//! Stories of models that come and go while an engine serves, told over its real socket, with models that do what
//! the test says.

use crate::config::Settings;
use crate::golden::Golden;
use crate::library::{Candidate, Files, Library, Loaded, Stamp};
use crate::memory::Memory;
use crate::scenarios::{Asked, Client, Engine, Gate};
use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{Action, Control, Kind, ModelEntry, ModelState, Reply, Status};

/// A models folder that holds what a test puts there: model `m`, whose versions multiply.
#[derive(Clone, Default)]
struct Folder {
    versions: Arc<Mutex<BTreeMap<u64, File>>>,
    /// Every run enters here.
    gate: Arc<Gate>,
    /// Whoever reads a file that hangs enters here.
    disk: Arc<Gate>,
    /// Models that have not been freed.
    alive: Arc<AtomicUsize>,
    /// How often one was loaded.
    loads: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct File {
    stamp: i64,
    bytes: u64,
    /// An error instead of a model, or by what it multiplies.
    factor: Result<f32, &'static str>,
    golden: Option<&'static str>,
    hangs: bool,
    /// Bytes that it takes beside, as long as it is loaded.
    takes: usize,
}

/// What a model of a test holds as long as it is loaded.
struct Alive(Arc<AtomicUsize>, #[expect(dead_code, reason = "held to be resident")] Vec<u8>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Folder {
    /// Writes `model.pt`.
    fn put(&self, version: u64, factor: Result<f32, &'static str>) {
        self.put_file(version, |file| file.factor = factor);
    }

    fn put_file(&self, version: u64, change: impl FnOnce(&mut File)) {
        let mut versions = self.versions.lock().unwrap();
        let blank = File { stamp: 0, bytes: 0, factor: Ok(1.0), golden: None, hangs: false, takes: 0 };
        let file = versions.entry(version).or_insert(blank);
        file.stamp += 1;
        change(file);
    }

    fn remove(&self, version: u64) {
        self.versions.lock().unwrap().remove(&version);
    }

    fn library(&self) -> Library {
        let folder = self.clone();
        Library::new(move || {
            let versions = folder.versions.lock().unwrap().clone();
            Ok(versions.into_iter().map(|(version, file)| folder.candidate(version, file)).collect())
        })
    }

    fn candidate(&self, version: u64, file: File) -> Candidate {
        let (gate, count) = (Arc::clone(&self.gate), Arc::clone(&self.alive));
        let (loads, disk) = (Arc::clone(&self.loads), Arc::clone(&self.disk));
        let load = move || {
            if file.hangs {
                disk.pass();
            }
            let factor = file.factor?;
            loads.fetch_add(1, Ordering::SeqCst);
            count.fetch_add(1, Ordering::SeqCst);
            let alive = Alive(count, vec![1; file.takes]);
            let model = Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 16), move |inputs| {
                let _alive = &alive;
                gate.pass();
                let y: Vec<f32> = fp32(&inputs[0]).iter().map(|x| x * factor).collect();
                Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
            });
            Ok(Loaded {
                model: Box::new(model),
                golden: file.golden.map(Golden::parse).transpose()?,
                preprocess: None,
                files: Some(Files {
                    stamp: Stamp::made_up(file.stamp),
                    content: Some([file.stamp as u8; 16]),
                }),
            })
        };
        Candidate {
            name: "m".into(),
            version,
            stamp: Stamp::made_up(file.stamp),
            bytes: file.bytes,
            load: Box::new(load),
        }
    }

    fn start(&self) -> (Engine, Client) {
        self.start_with(|_| {})
    }

    fn start_with(&self, change: impl FnOnce(&mut Settings)) -> (Engine, Client) {
        let engine = Engine::start_library(self.library(), change);
        let mut client = engine.connect();
        client.index();
        (engine, client)
    }
}

const ORDER: u64 = 1 << 50;

fn order(client: &mut Client, action: Action, version: u64) {
    let control = Control { action: action as i32, model: "m".into(), version };
    client.send(Kind::Control, ORDER, &control, Bytes::new());
}

/// What an order was answered, and what proxies were told of it.
fn obeyed(client: &mut Client) -> (Status, String, Vec<ModelEntry>) {
    let mut answered: Option<Reply> = None;
    loop {
        if let Some(reply) = answered.take_if(|reply| client.latest.revision >= reply.revision) {
            return (reply.status(), reply.message, client.latest.models.clone());
        }
        let frame = client.frame().expect("the engine lives");
        if (frame.kind, frame.id) == (Kind::Reply, ORDER) {
            answered = Some(Reply::decode(frame.metadata).unwrap());
        }
    }
}

fn load(client: &mut Client) -> (Status, String, Vec<ModelEntry>) {
    order(client, Action::Load, 0);
    obeyed(client)
}

fn ask(version: u64, x: f32) -> Asked {
    let mut ask = Asked::of("m").fp32("x", &[1, 1], &[x]);
    ask.infer.version = version;
    ask
}

fn answer(client: &mut Client, version: u64) -> Result<f32, String> {
    client.infer(7, ask(version, 10.0));
    let answer = client.reply().unwrap();
    if answer.status() == Status::Ok { Ok(answer.fp32("y")[0]) } else { Err(answer.reply.message) }
}

#[test]
fn a_new_version_is_loaded_beside_the_old_one_and_one_whose_folder_is_gone_is_taken_out() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start();
    folder.put(2, Ok(2.0));
    let (status, _, index) = load(&mut client);
    assert_eq!((status, index.len()), (Status::Ok, 2));
    assert_eq!((answer(&mut client, 1), answer(&mut client, 2)), (Ok(10.0), Ok(20.0)));
    folder.remove(1);
    let (status, _, index) = load(&mut client);
    assert_eq!((status, index.len(), index[0].version), (Status::Ok, 1, 2));
    assert_eq!(answer(&mut client, 1), Err("model `m` has no version 1; there are 2".into()));
}

#[test]
fn what_has_not_changed_is_not_loaded_again_and_what_has_changed_is_swapped() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start();
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(folder.loads.load(Ordering::SeqCst), 1);
    folder.put(1, Ok(3.0));
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(folder.loads.load(Ordering::SeqCst), 2);
    assert_eq!(answer(&mut client, 1), Ok(30.0));
    // Orders are carried out one after the other, and so is what they leave to be freed.
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(folder.alive.load(Ordering::SeqCst), 1, "the old one is freed");
}

#[test]
fn a_reload_that_fails_leaves_the_old_one_serving_and_says_why() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start();
    folder.put(1, Err("model.pt: torn"));
    let (status, why, index) = load(&mut client);
    assert_eq!((status, index[0].state()), (Status::ModelFailed, ModelState::Ready));
    assert_eq!(why, "version 1: model.pt: torn; what was loaded before serves on");
    assert_eq!(answer(&mut client, 1), Ok(10.0));
    folder.put(2, Err("model.pt: torn"));
    let (_, why, index) = load(&mut client);
    assert!(why.ends_with("version 2: model.pt: torn"), "{why}");
    assert_eq!((index[1].state(), index[1].reason.as_str()), (ModelState::Unavailable, "model.pt: torn"));
    assert!(!index[1].unloaded, "nobody wanted that");
}

#[test]
fn a_version_that_does_not_give_its_golden_answers_never_answers() {
    const GOLDEN: &str = r#"{"cases": [{
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [4]}]}]}"#;
    let folder = Folder::default();
    folder.put_file(1, |file| (file.factor, file.golden) = (Ok(2.0), Some(GOLDEN)));
    folder.put_file(2, |file| (file.factor, file.golden) = (Ok(3.0), Some(GOLDEN)));
    let engine = Engine::start_library(folder.library(), |_| {});
    let index = engine.connect().index();
    assert_eq!((index[0].state(), index[1].state()), (ModelState::Ready, ModelState::Unavailable));
    assert_eq!(index[1].reason, "golden.json, case 1: output `y` differs by 2 from what is expected");
}

#[test]
fn unloading_is_done_once_what_waits_and_runs_is_answered() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    folder.put(2, Ok(2.0));
    let (_engine, mut client) = folder.start();
    folder.gate.shut();
    client.infer(1, ask(1, 1.0));
    folder.gate.await_held(1);
    client.infer(2, ask(1, 2.0));
    order(&mut client, Action::Unload, 1);
    while client.latest.models[0].state() == ModelState::Ready {
        assert_ne!(client.frame().unwrap().kind, Kind::Reply);
    }
    assert!(client.latest.models[0].unloaded && !client.latest.models[1].unloaded);
    client.infer(3, ask(1, 3.0));
    let refused = client.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (3, Status::NotFound));
    assert!(refused.reply.message.contains("it was unloaded"), "{}", refused.reply.message);
    assert_eq!(folder.alive.load(Ordering::SeqCst), 2);
    folder.gate.open();
    let answers: Vec<_> = (0..3).map(|_| client.reply().unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| answer.id).collect::<Vec<_>>(), [1, 2, ORDER]);
    assert!(answers.iter().all(|answer| answer.status() == Status::Ok));
    assert_eq!(folder.alive.load(Ordering::SeqCst), 1);
    assert_eq!(answer(&mut client, 2), Ok(20.0));
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(answer(&mut client, 1), Ok(10.0), "loaded again");
}

#[test]
fn a_version_that_does_not_fit_into_memory_is_refused_and_the_others_serve() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) =
        folder.start_with(|settings| settings.memory = Memory { limit: 8 << 30, available: 9 << 30 });
    folder.put_file(2, |file| file.bytes = 8 << 30);
    let (status, why, _) = load(&mut client);
    assert_eq!(status, Status::ModelFailed);
    assert!(why.starts_with("version 2: no memory to load it: about 32768 MiB are needed, "), "{why}");
    assert_eq!(answer(&mut client, 1), Ok(10.0));
}

/// As one does whose code makes a large constant, which the file does not have.
#[test]
fn a_version_that_takes_more_than_its_file_and_than_there_is_goes_again() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start_with(|settings| {
        // Other tests take memory and give it back meanwhile.
        settings.memory = Memory { limit: crate::memory::resident() + (1 << 30), available: 1 << 40 };
        settings.queue = crate::batcher::Limits::halving(1000, 1 << 20);
    });
    folder.put_file(1, |file| file.takes = 3 << 29);
    let (status, why, _) = load(&mut client);
    assert_eq!(status, Status::ModelFailed);
    assert!(why.starts_with("version 1: it takes too much memory: with it "), "{why}");
    assert!(why.ends_with("; what was loaded before serves on"), "{why}");
    assert_eq!(answer(&mut client, 1), Ok(10.0));
    folder.put_file(1, |file| file.takes = 1 << 20);
    assert_eq!(load(&mut client).0, Status::Ok, "the other one's memory is free again");
}

#[test]
fn what_requests_may_hold_is_not_to_be_had_for_models() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start_with(|settings| {
        settings.memory = Memory { limit: 8 << 30, available: 9 << 30 };
        settings.queue = crate::batcher::Limits::halving(1000, 4 << 30);
    });
    folder.put_file(2, |file| file.bytes = 1 << 29);
    let (status, why, _) = load(&mut client);
    assert_eq!(status, Status::ModelFailed);
    assert!(why.contains("and requests may take 6144 more"), "{why}");
    folder.put_file(2, |file| file.bytes = 1 << 28);
    assert_eq!(load(&mut client).0, Status::Ok);
}

#[test]
fn an_order_for_what_is_not_there_is_refused() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start();
    order(&mut client, Action::Unload, 9);
    assert_eq!(obeyed(&mut client).0, Status::NotFound);
    order(&mut client, Action::Load, 9);
    let (status, why, _) = obeyed(&mut client);
    assert_eq!(
        (status, why.as_str()),
        (Status::NotFound, "there is no model `m` version 9 in the models folder")
    );
    order(&mut client, Action::Unspecified, 0);
    assert_eq!(obeyed(&mut client).0, Status::InvalidArgument);
}

#[test]
fn only_orders_that_wait_count_as_waiting() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (engine, mut client) = folder.start();
    let _others: Vec<_> = (0..100).map(|_| engine.connect()).collect();
    for _ in 0..2 * 64 {
        assert_eq!(load(&mut client).0, Status::Ok);
    }
}

#[test]
fn a_hundred_swaps_under_load_lose_no_request_mix_no_models_and_leave_one_in_memory() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (engine, mut client) = folder.start_with(|settings| {
        settings.lanes = 2;
        settings.threads_per_lane = std::num::NonZeroUsize::new(1);
    });
    let mut other = engine.connect();
    let stop = AtomicBool::new(false);
    // Factors of the last swap that may be noticed, and of the last that everybody notices; rounds that were answered.
    let (begun, done, rounds) = (AtomicUsize::new(1), AtomicUsize::new(1), AtomicUsize::new(0));
    let ask_on = || {
        while !stop.load(Ordering::SeqCst) {
            let before = done.load(Ordering::SeqCst);
            other.infer_all((0..16).map(|id| (id, ask(1, 1.0))));
            let answers = other.replies(16);
            let after = begun.load(Ordering::SeqCst);
            assert!(after - before <= 1, "rounds end while the next model is being loaded");
            for answer in answers {
                assert_eq!(answer.status(), Status::Ok, "{}", answer.reply.message);
                let factor = answer.fp32("y")[0];
                assert!([before, after].map(|factor| factor as f32).contains(&factor), "{before} {factor}");
            }
            rounds.fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        let asking = scope.spawn(ask_on);
        let await_rounds = |more: usize| {
            let enough = rounds.load(Ordering::SeqCst) + more;
            while rounds.load(Ordering::SeqCst) < enough {
                assert!(!asking.is_finished(), "it goes on asking");
                std::thread::yield_now();
            }
        };
        for swap in 2..=101 {
            folder.disk.shut();
            folder.put_file(1, |file| (file.factor, file.hangs) = (Ok(swap as f32), true));
            order(&mut client, Action::Load, 0);
            folder.disk.await_held(1);
            // Whoever has asked before this swap, and somebody who asks during it.
            await_rounds(2);
            begun.store(swap, Ordering::SeqCst);
            folder.disk.open();
            assert_eq!(obeyed(&mut client).0, Status::Ok);
            done.store(swap, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(rounds.load(Ordering::SeqCst) >= 2 * 100, "answers while each of the swaps was under way");
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(answer(&mut client, 1), Ok(1010.0));
    order(&mut client, Action::Unload, 0);
    assert_eq!(obeyed(&mut client).0, Status::Ok);
    // A lane that has answered for one of the others may not have let go of it yet.
    let waited = std::time::Instant::now();
    while folder.alive.load(Ordering::SeqCst) > 0 {
        assert!(waited.elapsed() < Duration::from_secs(60), "one is never let go");
        std::thread::yield_now();
    }
}

#[test]
fn while_a_trial_that_was_given_up_still_runs_there_is_no_other_of_those_files() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let (_engine, mut client) = folder.start_with(|settings| settings.load_max = Duration::from_secs(1));
    folder.disk.shut();
    folder.put_file(1, |file| (file.hangs, file.factor) = (true, Ok(2.0)));
    let (status, why, index) = load(&mut client);
    assert_eq!((status, index[0].state()), (Status::ModelFailed, ModelState::Ready), "the old one serves on");
    assert!(why.starts_with("version 1: no run of its trial has ended within"), "{why}");
    let loads = folder.loads.load(Ordering::SeqCst);
    let (status, why, _) = load(&mut client);
    assert_eq!(status, Status::ModelFailed);
    assert!(why.starts_with("version 1: its last trial has not ended, and still runs"), "{why}");
    assert_eq!(folder.loads.load(Ordering::SeqCst), loads, "nothing was loaded for it");
    // Whoever has mended it need not wait for that.
    folder.put_file(1, |file| (file.hangs, file.factor) = (false, Ok(3.0)));
    assert_eq!(load(&mut client).0, Status::Ok);
    assert_eq!(answer(&mut client, 1), Ok(30.0));
    folder.disk.open();
}

/// Reads until `holds` of the versions that are told of.
fn until(client: &mut Client, holds: impl Fn(&[ModelEntry]) -> bool) {
    while !holds(&client.latest.models) {
        client.frame().expect("the engine lives");
    }
}

fn is_aside(entry: &ModelEntry) -> bool {
    entry.state() == ModelState::Loading && entry.reason.starts_with("no run of its trial has ended for")
}

#[test]
fn while_one_version_hangs_the_others_are_loaded_and_it_becomes_ready_when_it_comes_back() {
    let folder = Folder::default();
    folder.disk.shut();
    folder.put_file(1, |file| (file.hangs, file.factor) = (true, Ok(2.0)));
    folder.put(2, Ok(3.0));
    let patience = Duration::from_millis(200);
    let engine = Engine::start_library(folder.library(), |settings| settings.load_patience = patience);
    let mut client = engine.connect();
    until(&mut client, |index| {
        index.len() == 2 && is_aside(&index[0]) && index[1].state() == ModelState::Ready
    });
    assert_eq!(answer(&mut client, 2), Ok(30.0));
    assert!(answer(&mut client, 1).unwrap_err().contains("is still loading"));
    // Who orders it now waits for it, and so does nobody else.
    order(&mut client, Action::Load, 0);
    folder.put(3, Ok(4.0));
    let mut other = engine.connect();
    order(&mut other, Action::Load, 3);
    assert_eq!(obeyed(&mut other).0, Status::Ok);
    folder.disk.open();
    let (status, why, index) = obeyed(&mut client);
    assert_eq!((status, index[0].state()), (Status::Ok, ModelState::Ready), "{why}");
    assert_eq!(answer(&mut client, 1), Ok(20.0));
    assert_eq!(folder.loads.load(Ordering::SeqCst), 3, "each was loaded once");
}

#[test]
fn no_more_orders_wait_for_a_version_that_hangs_than_may_wait() {
    let folder = Folder::default();
    folder.disk.shut();
    folder.put_file(1, |file| file.hangs = true);
    let patience = Duration::from_millis(10);
    let engine = Engine::start_library(folder.library(), |settings| settings.load_patience = patience);
    let mut client = engine.connect();
    until(&mut client, |index| index.len() == 1 && is_aside(&index[0]));
    let control = Control { action: Action::Load as i32, model: "m".into(), version: 1 };
    (0..65).for_each(|at| client.send(Kind::Control, ORDER + at, &control, Bytes::new()));
    let refused = client.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (ORDER + 64, Status::Overloaded));
    folder.disk.open();
    assert!(client.replies(64).iter().all(|answer| answer.status() == Status::Ok));
}

#[test]
fn a_version_that_is_unloaded_while_its_files_hang_does_not_come_back() {
    let folder = Folder::default();
    folder.put(1, Ok(1.0));
    let patience = Duration::from_millis(20);
    let (engine, mut client) = folder.start_with(|settings| settings.load_patience = patience);
    folder.disk.shut();
    folder.put_file(1, |file| (file.hangs, file.factor) = (true, Ok(2.0)));
    order(&mut client, Action::Load, 0);
    folder.disk.await_held(1);
    let mut other = engine.connect();
    assert_eq!(answer(&mut other, 1), Ok(10.0), "the old one serves on");
    order(&mut other, Action::Unload, 1);
    assert_eq!(obeyed(&mut other).0, Status::Ok);
    let (status, why, _) = obeyed(&mut client);
    assert_eq!(status, Status::ModelFailed);
    assert_eq!(why, "version 1: it was unloaded; what was loaded before serves on");
    folder.disk.open();
    while load(&mut client).0 != Status::Ok {}
    let loads = folder.loads.load(Ordering::SeqCst);
    assert_eq!((answer(&mut client, 1), loads), (Ok(20.0), 3), "what hung was thrown away");
}

#[test]
fn however_many_hang_the_last_is_loaded_and_each_is_named() {
    let folder = Folder::default();
    folder.disk.shut();
    (1..=6).for_each(|version| folder.put_file(version, |file| file.hangs = true));
    folder.put(7, Ok(1.0));
    let (_engine, mut client) = folder.start_with(|settings| {
        // The last one is sound, and has to end a run of its trial in time on a busy machine as well.
        (settings.load_patience, settings.load_max) = (Duration::from_millis(500), Duration::from_secs(6));
    });
    let index = client.latest.models.clone();
    for (at, entry) in index[..6].iter().enumerate() {
        assert_eq!(entry.state(), ModelState::Unavailable);
        let why =
            if at < 4 { "no run of its trial has ended within" } else { "no run of its trial has ended for" };
        assert!(entry.reason.starts_with(why), "{entry:?}");
    }
    assert_eq!(answer(&mut client, 7), Ok(10.0));
    let (status, why, _) = load(&mut client);
    assert_eq!(
        (status, why.matches("its last trial has not ended").count()),
        (Status::ModelFailed, 6),
        "{why}"
    );
    folder.disk.open();
}
