//! What was left out, because its trials have ended engines, is tried again while the others serve.

use super::*;
use crate::batcher;
use crate::interrupted::Interrupted;
use crate::library::Loaded;
use crate::model::Optimisation;
use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The files of two models: `sound`, and `frail`, whose trial is what engines have ended in.
struct Folder {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    /// Trials that have begun.
    begun: Arc<Mutex<Vec<&'static str>>>,
    /// What is noted beside the socket while `frail` is being tried.
    noted: Arc<Mutex<Vec<u8>>>,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        Self { _folder: folder, socket, begun: Arc::default(), noted: Arc::default() }
    }

    /// The engine that follows those before, once it has loaded all that it tries at once.
    fn next_engine(&self) -> Shelf {
        let (begun, noted, notes) = (Arc::clone(&self.begun), Arc::clone(&self.noted), notes(&self.socket));
        let find = move || {
            let candidate = |name: &'static str| {
                let (begun, noted, notes) = (Arc::clone(&begun), Arc::clone(&noted), notes.clone());
                let load = move || {
                    begun.lock().unwrap().push(name);
                    if name == "frail" {
                        *noted.lock().unwrap() = std::fs::read(notes).unwrap();
                    }
                    Ok(doubling())
                };
                Candidate {
                    name: name.into(),
                    version: 1,
                    stamp: Stamp::made_up(1),
                    bytes: 0,
                    load: Box::new(load),
                }
            };
            Ok(["frail", "sound"].map(candidate).into())
        };
        let mut library = Library::new(find);
        let candidates = library.find(None).unwrap();
        let mut shelf = Shelf::new(setup(&self.socket, library));
        shelf.load_all(candidates);
        shelf
    }

    /// As an engine leaves it that ends in its trial of `frail`.
    fn engine_ends_in_the_trial(&self) {
        std::fs::write(notes(&self.socket), &*self.noted.lock().unwrap()).unwrap();
        crate::ready_first::forget(&self.socket);
    }

    fn begun(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.begun.lock().unwrap())
    }
}

fn notes(socket: &Path) -> PathBuf {
    socket.with_file_name("engine.sock.trial")
}

fn doubling() -> Loaded {
    Loaded { model: Box::new(scripted()), golden: None, preprocess: None, files: None }
}

fn scripted() -> Scripted {
    Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 4), |inputs| {
        let y: Vec<f32> = fp32(&inputs[0]).iter().map(|x| x * 2.0).collect();
        Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
    })
}

fn setup(socket: &Path, library: Library) -> Setup {
    Setup {
        library,
        catalog: watch::channel(Arc::default()).0,
        queue: Arc::new(Queue::new(batcher::Limits::halving(10, 1000), 1)),
        watchdog: Arc::new(Watchdog::new(1)),
        cores: Cores { lanes: 1, cores: 1, threads: Some(1) },
        load_patience: Duration::from_secs(60),
        load_max: Duration::from_secs(60),
        audit_every: None,
        memory: Memory { limit: u64::MAX, available: u64::MAX },
        request_bytes_max: 1000,
        device_memory: None,
        interrupted: Notes::of(Interrupted::beside(socket)),
        ready_first: ReadyFirst::beside(socket),
        references: References::within(socket.with_extension("references")),
    }
}

/// The version that answers; else why there is none.
fn ready<'a>(shelf: &'a Shelf, name: &str) -> Result<&'a Arc<Version>, &'a str> {
    match shelf.catalog.state(name, 1).expect("it is there") {
        State::Ready(version) => Ok(version),
        State::Loading { why } | State::Unavailable { why } => Err(why),
        State::Unloaded => Err("it was unloaded"),
    }
}

const LEFT_OUT: &str = "its trial has ended the engine 2 times; it is tried again in 5 min";
const LEFT_OUT_LONGER: &str = "its trial has ended the engine 3 times; it is tried again in 10 min";

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// A folder in whose `frail` two engines have ended, and the third.
fn after_two_engines() -> (Folder, Shelf) {
    let folder = Folder::new();
    for _ in 0..2 {
        drop(folder.next_engine());
        folder.engine_ends_in_the_trial();
    }
    assert_eq!(folder.begun(), ["frail", "sound"].repeat(2));
    let shelf = folder.next_engine();
    (folder, shelf)
}

#[test]
fn what_was_left_out_becomes_ready_after_its_pause_while_the_other_serves() {
    let (folder, mut shelf) = after_two_engines();
    let now = Instant::now();
    assert_eq!(folder.begun(), ["sound"]);
    assert!(ready(&shelf, "frail").is_err_and(|why| why.starts_with(LEFT_OUT)));
    let sound = Arc::clone(ready(&shelf, "sound").unwrap());
    let left = shelf.has_to_look_in(now + minutes(3)).unwrap();
    assert!(left <= minutes(2) && left > minutes(1), "it looks in by itself: {left:?}");

    shelf.try_again(now + minutes(4));
    assert!(ready(&shelf, "frail").is_err() && folder.begun().is_empty(), "it is too early");
    shelf.try_again(now + minutes(5));
    assert!(ready(&shelf, "frail").is_ok());
    assert_eq!(folder.begun(), ["frail"]);
    assert!(Arc::ptr_eq(&sound, ready(&shelf, "sound").unwrap()), "the other has served on");
    assert_eq!(shelf.has_to_look_in(now), None);

    drop(shelf);
    assert!(ready(&folder.next_engine(), "frail").is_ok(), "a trial that ended well makes up for the others");
}

#[test]
fn what_ends_the_engine_when_it_is_tried_again_is_left_out_for_twice_as_long() {
    let (folder, mut shelf) = after_two_engines();
    shelf.try_again(Instant::now() + minutes(5));
    drop(shelf);
    folder.engine_ends_in_the_trial();
    folder.begun();

    let mut shelf = folder.next_engine();
    let now = Instant::now();
    assert!(ready(&shelf, "frail").is_err_and(|why| why.starts_with(LEFT_OUT_LONGER)));
    shelf.try_again(now + minutes(9));
    assert_eq!(folder.begun(), ["sound"], "it is too early");
    shelf.try_again(now + minutes(10));
    assert!(ready(&shelf, "frail").is_ok() && ready(&shelf, "sound").is_ok());
}

/// An engine that ends while `frail` is frozen for a faster form, or does not get there.
fn engine_that_ends_in_a_form(socket: &Path) -> (Shelf, bool) {
    let (left, noted): (_, Arc<Mutex<Option<Vec<u8>>>>) = (notes(socket), Arc::default());
    let notes_it = Arc::clone(&noted);
    let find = move || {
        let candidate = |name: &'static str| {
            let (left, noted) = (left.clone(), Arc::clone(&notes_it));
            let load = move || {
                let Loaded { golden, preprocess, files, .. } = doubling();
                let mut model = scripted();
                if name == "frail" {
                    model = model.with_form(Optimisation::Freeze, move || {
                        *noted.lock().unwrap() = Some(std::fs::read(&left).unwrap());
                        Err("the process is gone".into())
                    });
                }
                Ok(Loaded { model: Box::new(model), golden, preprocess, files })
            };
            let load = Box::new(load);
            Candidate { name: name.into(), version: 1, stamp: Stamp::made_up(1), bytes: 0, load }
        };
        Ok(["frail", "sound"].map(candidate).into())
    };
    let mut library = Library::new(find);
    let candidates = library.find(None).unwrap();
    let mut shelf = Shelf::new(setup(socket, library));
    shelf.load_all(candidates);
    let ended = noted.lock().unwrap().take();
    if let Some(notes_left) = &ended {
        std::fs::write(notes(socket), notes_left).unwrap();
        crate::ready_first::forget(socket);
    }
    (shelf, ended.is_some())
}

#[test]
fn a_version_whose_faster_form_has_ended_the_engine_serves_without_one_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    // The first time may have been an accident.
    for (number, ends) in [true, false, true, false, false].into_iter().enumerate() {
        let (shelf, ended) = engine_that_ends_in_a_form(&socket);
        assert_eq!(ended, ends, "engine {number}");
        if ended {
            continue;
        }
        let frail = ready(&shelf, "frail").unwrap();
        assert_eq!(frail.form, "as loaded: optimising it has ended the engine");
        assert_eq!((frail.grouping, frail.why_alone()), (Grouping::Together { max_rows: 4 }, ""));
        assert_eq!(ready(&shelf, "sound").unwrap().form, "as loaded", "nobody else suffers for it");
    }
}
