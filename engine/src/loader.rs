//! Brings versions up and takes them down, on one thread of its own: the engine listens at once, answers while
//! others load, and a broken version disturbs nobody. One that gets nowhere is set aside, and the next one is loaded.
//!
//! ```text
//!   attempt (load, trial, measure) ─▶ in the catalog, in place of what was there
//!   unload ─▶ out of the catalog ─▶ what waits and runs is finished ─▶ freed here ─▶ the caller is told
//! ```
//!
//! A version whose files have changed is loaded beside the one that serves, which serves on if the new one is no
//! good. Nothing is ever unloaded because it is old: it is what one rolls back to.

mod aside;

use crate::attempt::{Attempt, Running, Tried};
use crate::audit::Audit;
use crate::batcher::{Bucket, Grouping};
use crate::calibrate::{Calibration, Cores, Precedent, Way};
use crate::catalog::{Catalog, State};
use crate::config::DeviceProbe;
use crate::curve::Curve;
use crate::drift::{Drift, References};
use crate::interrupted::{LeftOut, Notes, Step};
use crate::job::{shortened, shortened_to};
use crate::library::{Candidate, Library, Stamp};
use crate::memory::{self, Memory};
use crate::model::{Model, OutputBytes, Version};
use crate::orders::{Answer, ENDED, Failure, Orders, Retirement, Told};
use crate::pace::Pace;
use crate::preprocess::Preprocess;
use crate::queue::Queue;
use crate::ready_first::ReadyFirst;
use crate::schedule;
use crate::trial::Verdict;
use crate::watchdog::Watchdog;
use aside::{ASIDE_MAX, Aside};
use prost::Message;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use wire::{Action, Control, Limits, Status};

/// The loader's thread, for as long as this lives.
pub(crate) struct Loader {
    told: mpsc::Sender<Told>,
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = self.told.send(Told::Stop);
    }
}

/// What the thread works with.
pub(crate) struct Setup {
    pub(crate) library: Library,
    /// Where every change is announced.
    pub(crate) catalog: watch::Sender<Arc<Catalog>>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) cores: Cores,
    /// A version of which no run has ended for so long is set aside,
    pub(crate) load_patience: Duration,
    /// and after so long given up.
    pub(crate) load_max: Duration,
    pub(crate) audit_every: Option<Duration>,
    pub(crate) memory: Memory,
    /// Bytes of that which requests may hold.
    pub(crate) request_bytes_max: u64,
    pub(crate) device_memory: Option<DeviceProbe>,
    pub(crate) interrupted: Notes,
    pub(crate) ready_first: ReadyFirst,
    pub(crate) references: References,
}

/// Loads `candidates`, all that the library has, and then whatever is ordered.
pub(crate) fn start(setup: Setup, mut candidates: Vec<Candidate>) -> io::Result<(Loader, Orders)> {
    setup.ready_first.sort(&mut candidates);
    let mut shelf = Shelf::new(setup);
    let told = shelf.told.clone();
    shelf.announce_loading(&candidates);
    std::thread::Builder::new().name("loader".into()).spawn(move || {
        schedule::beside_others();
        shelf.load_all(candidates);
        schedule::in_the_background(); // what was loaded is asked now
        shelf.carry_out();
        shelf.stop();
    })?;
    Ok((Loader { told: told.clone() }, Orders::new(told)))
}

/// All that is loaded; the one owner of the catalog.
struct Shelf {
    setup: Setup,
    catalog: Catalog,
    /// Of the files of what is ready.
    stamps: BTreeMap<(String, u64), Stamp>,
    /// What is watched of each version's tensors, and of which files: unloaded and loaded again, the same ones go on.
    drifts: BTreeMap<(String, u64), (Stamp, Arc<Drift>)>,
    /// By key, until no request needs it: models are freed here, not on a lane.
    held: HashMap<u32, Held>,
    keys: std::ops::RangeFrom<u32>,
    aside: Vec<Aside>,
    /// Versions that are left out, and until when.
    left_out: Vec<(Instant, String, u64)>,
    told: mpsc::Sender<Told>,
    inbox: mpsc::Receiver<Told>,
    /// Orders that came while another was carried out.
    later: VecDeque<Told>,
    is_stopping: bool,
}

struct Held {
    name: String,
    number: u64,
    _model: Arc<dyn Model>,
    /// Who waits for it to be gone.
    unloading: Vec<Arc<Answer>>,
}

impl Shelf {
    fn new(setup: Setup) -> Self {
        let (told, inbox) = mpsc::channel();
        Self {
            setup,
            catalog: Catalog::default(),
            stamps: BTreeMap::new(),
            drifts: BTreeMap::new(),
            held: HashMap::new(),
            keys: 0..,
            aside: Vec::new(),
            left_out: Vec::new(),
            told,
            inbox,
            later: VecDeque::new(),
            is_stopping: false,
        }
    }

    /// Loads them one after the other.
    fn load_all(&mut self, candidates: Vec<Candidate>) {
        for candidate in candidates {
            let _ = self.bring_up(candidate, None);
            self.look_in();
            if self.is_stopping {
                return;
            }
        }
    }

    fn carry_out(&mut self) {
        loop {
            self.look_in();
            if self.is_stopping {
                return;
            }
            match self.later.pop_front() {
                Some(Told::Order { control, answer }) => self.obey(&control, &answer),
                Some(Told::Retired(_) | Told::Tried | Told::Changed | Told::Stop) => {
                    unreachable!("only orders are kept")
                }
                None => {
                    if let Some(told) = self.next_told() {
                        self.hear(told);
                    }
                }
            }
        }
    }

    /// What is told next; nothing if what was set aside or left out has to be looked at before.
    fn next_told(&mut self) -> Option<Told> {
        match self.has_to_look_in(Instant::now()) {
            Some(left) => self.inbox.recv_timeout(left).ok(),
            None => self.inbox.recv().ok(),
        }
    }

    /// How long it may wait for what is told; nothing if for ever.
    fn has_to_look_in(&mut self, now: Instant) -> Option<Duration> {
        let most = self.setup.load_max;
        let hopeful = self.aside.iter_mut().filter(|aside| !aside.is_given_up);
        let aside = hopeful.map(|aside| most.saturating_sub(aside.attempt.stands_still(now)));
        let left_out = self.left_out.iter().map(|(until, ..)| until.saturating_duration_since(now));
        aside.chain(left_out).min()
    }

    fn stop(&mut self) {
        for answer in self.aside.drain(..).flat_map(|aside| aside.answers) {
            answer.tell(Some((Status::Internal, ENDED.into())), self.catalog.revision());
        }
    }

    /// Hears what has been told meanwhile. What nobody needs any more is freed at once: what is loaded next may need its
    /// memory.
    fn look_in(&mut self) {
        while let Ok(told) = self.inbox.try_recv() {
            self.hear(told);
        }
        self.look_aside();
        self.try_again(Instant::now());
    }

    /// Tries what was left out for long enough.
    fn try_again(&mut self, now: Instant) {
        while let Some(at) = self.left_out.iter().position(|(until, ..)| *until <= now) {
            let (_, name, number) = self.left_out.swap_remove(at);
            if !matches!(self.catalog.state(&name, number), Some(State::Unavailable { .. })) {
                continue; // somebody has loaded it, or taken it away
            }
            let found = self.setup.library.find(Some(&name)).unwrap_or_default();
            if let Some(candidate) =
                found.into_iter().find(|found| found.name == name && found.version == number)
            {
                tracing::info!(
                    model = name,
                    version = number,
                    "tried again, after its trials have ended the engine"
                );
                self.setup.interrupted.lock().has_waited(&name, number);
                let _ = self.bring_up(candidate, None);
            }
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Order { .. } => self.later.push_back(told),
            Told::Retired(key) => {
                drop(self.held.remove(&key));
                self.setup.queue.forget_version(key);
                memory::give_back();
            }
            Told::Tried => {} // whoever waits looks at it next
            Told::Changed => self.announce(),
            Told::Stop => self.is_stopping = true,
        }
    }

    fn obey(&mut self, control: &Control, answer: &Arc<Answer>) {
        let done = match control.action() {
            Action::Load => self.load(control, answer),
            Action::Unload => self.unload(control, answer),
            Action::Unspecified => Err((Status::InvalidArgument, "an order of no known kind".into())),
        };
        let failure = done.err();
        if let Some((_, why)) = &failure {
            tracing::warn!(model = control.model, "{why}");
        }
        answer.tell(failure, self.catalog.revision());
    }

    /// Makes a model what its folder says: loads what is new or has changed, takes out what is gone.
    fn load(&mut self, control: &Control, answer: &Arc<Answer>) -> Result<(), Failure> {
        let is_meant = |name: &str, version: u64| {
            name == control.model && (control.version == 0 || control.version == version)
        };
        let found = self.setup.library.find(Some(&control.model));
        let mut found = found.map_err(|error| (Status::Internal, error.to_string()))?;
        found.retain(|candidate| is_meant(&candidate.name, candidate.version));
        let known = self.catalog.versions(Some(&control.model)).filter(|(name, version)| {
            let is_there =
                found.iter().any(|found| (found.name.as_str(), found.version) == (*name, *version));
            is_meant(name, *version) && !is_there
        });
        let gone: Vec<u64> = known.map(|(_, version)| version).collect();
        if found.is_empty() && gone.is_empty() {
            let which =
                if control.version == 0 { String::new() } else { format!(" version {}", control.version) };
            let why =
                format!("there is no model `{}`{which} in the models folder", shortened(&control.model));
            return Err((Status::NotFound, why));
        }
        found.retain(|candidate| {
            let is_ready =
                matches!(self.catalog.state(&candidate.name, candidate.version), Some(State::Ready(_)));
            let stamp = self.stamps.get(&(candidate.name.clone(), candidate.version));
            !is_ready || stamp != Some(&candidate.stamp)
        });
        self.setup.interrupted.lock().forgive(&control.model);
        self.left_out.retain(|(_, name, _)| *name != control.model);
        self.announce_loading(&found);
        let failed: Vec<String> = found
            .into_iter()
            .filter_map(|candidate| {
                self.look_in();
                let number = candidate.version;
                self.bring_up(candidate, Some(answer)).err().map(|why| format!("version {number}: {why}"))
            })
            .collect();
        let is_gone = !gone.is_empty();
        for version in gone {
            self.take_aside(&control.model, version, "its folder is gone");
            self.stamps.remove(&(control.model.clone(), version));
            self.drifts.remove(&(control.model.clone(), version));
            self.catalog.remove(&control.model, version);
            tracing::info!(model = control.model, version, "unloaded: its folder is gone");
        }
        if is_gone {
            self.announce();
        }
        if failed.is_empty() { Ok(()) } else { Err((Status::ModelFailed, failed.join("; "))) }
    }

    /// Takes a model, or one version, out of the catalog.
    fn unload(&mut self, control: &Control, answer: &Arc<Answer>) -> Result<(), Failure> {
        let name = control.model.as_str();
        let versions = self.catalog.versions(Some(name)).map(|(_, version)| version);
        let versions: Vec<u64> =
            versions.filter(|version| control.version == 0 || control.version == *version).collect();
        if versions.is_empty() {
            return Err((
                Status::NotFound,
                format!("there is no such version of model `{}`", shortened(name)),
            ));
        }
        // What an earlier order has taken out may still be answering.
        let is_meant =
            |held: &&mut Held| held.name == name && (control.version == 0 || control.version == held.number);
        for held in self.held.values_mut().filter(|held| !held.unloading.is_empty()).filter(is_meant) {
            held.unloading.push(Arc::clone(answer));
        }
        self.left_out.retain(|(_, left_out, number)| left_out != name || !versions.contains(number));
        for version in versions {
            self.take_aside(name, version, "it was unloaded");
            let Some(State::Ready(ready)) = self.catalog.state(name, version) else { continue };
            let held = self.held.get_mut(&ready.key).expect("what is ready is held");
            held.unloading.push(Arc::clone(answer));
            self.stamps.remove(&(name.to_owned(), version));
            self.catalog.set(name, version, State::Unloaded);
            tracing::info!(model = name, version, "unloaded");
        }
        self.announce();
        Ok(())
    }

    /// Loads one version and puts it in its place, or sets it aside. What was ready there stays if the new one is no good.
    fn bring_up(&mut self, candidate: Candidate, answer: Option<&Arc<Answer>>) -> Result<(), String> {
        let Candidate { name, version: number, stamp, bytes, load } = candidate;
        if let Some(aside) = self.aside_of(&name, number).filter(|aside| aside.stamp == stamp) {
            aside.answers.extend(answer.cloned());
            return Ok(());
        }
        if self.aside_of(&name, number).is_some() {
            self.take_aside(&name, number, "its files were replaced");
            if !matches!(self.catalog.state(&name, number), Some(State::Ready(_))) {
                self.catalog.set(&name, number, State::Loading { why: String::new() });
                self.announce();
            }
        }
        let begun = self
            .has_room(bytes)
            .and_then(|()| self.does_not_hang(&name, number, &stamp))
            .and_then(|()| self.note_trial(&name, number, &stamp))
            .and_then(|spared| self.begin(&name, number, &stamp, spared, load));
        let attempt = match begun {
            Ok(attempt) => attempt,
            Err(why) => return self.settle(name, number, stamp, Err(why)),
        };
        let answers = answer.cloned().into_iter().collect();
        let since = Instant::now();
        let mut aside = Aside { name, number, stamp, bytes, attempt, since, answers, is_given_up: false };
        let most = self.setup.load_max;
        let patience = self.setup.load_patience.min(most);
        if let Some(tried) = aside.attempt.wait(patience) {
            return self.end(aside, tried).1;
        }
        let why = if patience == most {
            hangs(most)
        } else if self.aside.iter().filter(|aside| !aside.is_given_up).count() < ASIDE_MAX {
            self.set_aside(aside);
            return Ok(());
        } else {
            let seconds = patience.as_secs();
            format!(
                "no run of its trial has ended for {seconds} s, as of {ASIDE_MAX} others: load it again when one has"
            )
        };
        // Its answer is this one's.
        aside.answers.clear();
        self.aside.push(aside);
        self.give_up(self.aside.len() - 1, &why)
    }

    fn tell(&self, answers: Vec<Arc<Answer>>, number: u64, result: Result<(), String>) {
        let failure = result.err().map(|why| (Status::ModelFailed, format!("version {number}: {why}")));
        answers.iter().for_each(|answer| answer.tell(failure.clone(), self.catalog.revision()));
    }

    /// An attempt has ended; gives back who waits for what has come of it.
    fn end(&mut self, aside: Aside, tried: Result<Tried, String>) -> (Vec<Arc<Answer>>, Result<(), String>) {
        let Aside { name, number, stamp, since, answers, .. } = aside;
        memory::give_back();
        let tried = tried.and_then(|tried| {
            self.setup.memory.may_hold(memory::resident())?;
            Ok(tried)
        });
        if !self.device_is_lost() {
            self.setup.interrupted.lock().end(&name, number);
        }
        // Others may have taken their place while it waited for its turn.
        let read = tried.as_ref().ok().and_then(|tried| tried.files.as_ref());
        let stamp = read.map_or(stamp, |files| files.stamp.clone());
        let version = tried.map(|tried| (self.version(&name, number, &stamp, tried), since.elapsed()));
        (answers, self.settle(name, number, stamp, version))
    }

    /// Puts a version that took so long in its place, or says why there is none.
    fn settle(
        &mut self,
        name: String,
        number: u64,
        stamp: Stamp,
        version: Result<(Version, Duration), String>,
    ) -> Result<(), String> {
        let was_ready = matches!(self.catalog.state(&name, number), Some(State::Ready(_)));
        let put = version.and_then(|(version, took)| Ok((self.put_in_place(version)?, took)));
        match put {
            Ok((version, took)) => {
                // Should this process end once somebody has heard of it, the next one knows.
                self.setup.ready_first.note(&name, number, &stamp, took);
                self.stamps.insert((name, number), stamp);
                self.announce();
                let Version { name: model, form, way: Way { threads, at_once, .. }, .. } = &*version;
                tracing::info!(model, version = number, form, threads, at_once, "ready, {}", how(&version));
                Ok(())
            }
            Err(why) if self.device_is_lost() => {
                self.setup.watchdog.device_lost(format!("the GPU works no more: {why}"));
                Err(why)
            }
            Err(why) if was_ready => {
                tracing::error!(model = name, version = number, "not reloaded, the old one serves on: {why}");
                Err(format!("{}; what was loaded before serves on", shortened_to(&why, 400)))
            }
            Err(why) => {
                tracing::error!(model = name, version = number, "unavailable: {why}");
                let why = shortened_to(&why, 400);
                self.catalog.set(&name, number, State::Unavailable { why: why.clone() });
                self.announce();
                Err(why)
            }
        }
    }

    /// Whether a model of so many bytes fits.
    fn has_room(&self, bytes: u64) -> Result<(), String> {
        let Setup { memory, request_bytes_max, ref queue, .. } = self.setup;
        // Those that are being loaded have not taken yet what they need; those that were given up take no more.
        let loading = self.aside.iter().filter(|aside| !aside.is_given_up);
        let bytes = loading.map(|aside| aside.bytes).sum::<u64>().saturating_add(bytes);
        let requests = request_bytes_max.saturating_sub(queue.bytes() as u64);
        memory.has_room(bytes, requests, memory::resident, memory::give_back)
    }

    /// A GPU that has failed for good does not even say how much memory it has.
    fn device_is_lost(&self) -> bool {
        self.setup.device_memory.as_ref().is_some_and(|probe| probe().is_none())
    }

    /// Unless proxies could not be told of it.
    fn put_in_place(&mut self, version: Version) -> Result<Arc<Version>, String> {
        let (version, before) = (Arc::new(version), self.catalog.clone());
        self.catalog.set(&version.name, version.number, State::Ready(Arc::clone(&version)));
        if self.catalog.index().encoded_len() > Limits::default().metadata_bytes {
            self.catalog = before;
            return Err("its labels do not fit into what proxies are told; shorten them".into());
        }
        Ok(version)
    }

    /// Notes that a trial begins, unless those before have ended the engine; then it is begun later.
    fn note_trial(&mut self, name: &str, number: u64, stamp: &Stamp) -> Result<Option<Step>, String> {
        let has_passed = self.setup.ready_first.knows(name, number, stamp);
        let begun = self.setup.interrupted.lock().begin(name, number, stamp, has_passed);
        let spared = begun.map_err(|left_out: LeftOut| {
            self.left_out.push((Instant::now() + left_out.wait, name.to_owned(), number));
            left_out.to_string()
        })?;
        if let Some(step) = spared {
            tracing::warn!(model = name, version = number, "{step} before; it is tried without");
        }
        Ok(spared)
    }

    /// Begins to find out everything that has to be known about a version before it answers.
    fn begin(
        &self,
        name: &str,
        number: u64,
        stamp: &Stamp,
        spared: Option<Step>,
        load: crate::library::Load,
    ) -> Result<Running, String> {
        let (queue, told) = (Arc::clone(&self.setup.queue), self.told.clone());
        let (notes, of, stamp) = (self.setup.interrupted.clone(), name.to_owned(), stamp.clone());
        let attempt = Attempt {
            spared,
            note: Box::new(move |step| notes.lock().note(&of, number, &stamp, step)),
            load,
            cores: self.setup.cores,
            beside: self.beside(name, number).map(Precedent::of),
            pace: Pace::beside(move || queue.begun()),
        };
        attempt.begin(move || drop(told.send(Told::Tried)))
    }

    /// A version of which everything is known.
    fn version(&mut self, name: &str, number: u64, stamp: &Stamp, tried: Tried) -> Version {
        let Tried {
            model,
            verdict: Verdict { grouping, mut why_alone, output_bytes, draws },
            report,
            spared,
            calibration,
            preprocess,
            padding,
            reference,
            files,
        } = tried;
        let content = files.and_then(|files| files.content);
        if let Err(why) = &padding {
            let separator = if why_alone.is_empty() { "" } else { "; " };
            why_alone = format!("{why_alone}{separator}not padded: {why}");
        }
        let Calibration { way, runs, free } = calibration;
        let key = self.keys.next().expect("four thousand million models are not loaded in one life");
        let mut curve = Curve::default();
        runs.iter().for_each(|(rows, took)| curve.observe(*rows, *took));
        let points = curve.points().collect();
        self.setup.queue.seed(&Bucket { version: key, free, suspect: false }, curve);
        let model: Arc<dyn Model> = model.into();
        let raw = preprocess.as_ref().map(Preprocess::raw_names).unwrap_or_default();
        let kept = content.and_then(|content| self.setup.references.read(name, number, content));
        let drift = self.drift(name, number, stamp, || {
            let drift = Drift::of(model.spec(), raw, &reference, Instant::now());
            kept.iter().for_each(|kept| drift.go_on(kept));
            drift
        });
        let held = Held { name: name.to_owned(), number, _model: Arc::clone(&model), unloading: Vec::new() };
        self.held.insert(key, held);
        Version {
            key,
            name: name.to_owned(),
            number,
            model,
            grouping,
            way,
            why_alone,
            outputs: OutputBytes::of_trial(output_bytes),
            preprocess,
            pads: padding.is_ok(),
            form: spared.map_or_else(|| report.to_string(), |step| format!("{report}: {step}")),
            curve: points,
            drift,
            content,
            files: stamp.print(),
            audit: Audit::of(self.setup.audit_every, draws),
            retirement: Retirement::new(key, self.told.clone()),
        }
    }

    /// What is watched of a version's tensors: of the same files goes on, of others begins anew.
    fn drift(&mut self, name: &str, number: u64, stamp: &Stamp, anew: impl FnOnce() -> Drift) -> Arc<Drift> {
        let which = (name.to_owned(), number);
        if let Some((of, drift)) = self.drifts.get(&which)
            && of == stamp
        {
            return Arc::clone(drift);
        }
        let drift = Arc::new(anew());
        self.drifts.insert(which, (stamp.clone(), Arc::clone(&drift)));
        drift
    }

    /// The version that this one replaces; else the newest of its model that answers.
    fn beside(&self, name: &str, number: u64) -> Option<&Version> {
        let ready = |number| match self.catalog.state(name, number) {
            Some(State::Ready(version)) => Some(&**version),
            _ => None,
        };
        let newest = || self.catalog.versions(Some(name)).filter_map(|(_, number)| ready(number)).last();
        ready(number).or_else(newest)
    }

    /// What does not answer yet is going to.
    fn announce_loading(&mut self, candidates: &[Candidate]) {
        for Candidate { name, version, .. } in candidates {
            let is_ready = matches!(self.catalog.state(name, *version), Some(State::Ready(_)));
            if !is_ready && self.aside_of(name, *version).is_none() {
                self.catalog.set(name, *version, State::Loading { why: String::new() });
            }
        }
        if !candidates.is_empty() {
            self.announce();
        }
    }

    fn announce(&mut self) {
        let Self { catalog, setup, left_out, .. } = self;
        let may_answer = |name: &str, version| {
            // What is left out has passed its trial all the same.
            left_out.iter().any(|(_, left_out, number)| left_out == name && *number == version)
                || matches!(catalog.state(name, version), Some(State::Loading { .. } | State::Ready(_)))
        };
        setup.ready_first.retain(may_answer);
        self.setup.catalog.send_replace(Arc::new(self.catalog.revised()));
    }
}

fn hangs(most: Duration) -> String {
    let seconds = most.as_secs();
    format!("no run of its trial has ended within {seconds} s; its thread runs on until the engine ends")
}

/// How a version's requests are run.
fn how(version: &Version) -> String {
    let why_alone = &version.why_alone;
    match version.grouping {
        Grouping::Together { max_rows: 1 } if why_alone.is_empty() => "one row at a time".to_owned(),
        Grouping::Together { max_rows: 1 } => why_alone.clone(),
        Grouping::Together { max_rows } => {
            format!("up to {max_rows} rows together {why_alone}").trim_end().to_owned()
        }
        Grouping::Alone | Grouping::Serial => why_alone.clone(),
    }
}

#[cfg(test)]
mod tests;
