//! A lane: one OS thread that runs batches, one after the other. It decides what becomes of a batch that fails: its
//! halves run again, from the original bytes, and their halves, so that only what the model cannot take fails. What a version
//! has answered together is sent to nobody once it is known that it may not be batched: each request runs again, alone. It
//! holds no lock while a model runs.
//!
//! It also turns away requests with values that the model does not take. To find those, whole tensors are read: the thread
//! that reads frames has no time for that, and who is refused for another reason must not cost it.

use crate::audit::Sample;
use crate::batcher::{Batch, Ended, Grouping, Piece};
use crate::config::WarmUp;
use crate::job::{Job, Refusal};
use crate::model::{Gathered, ModelError, Output, Rows, Version, WrongOutput};
use crate::queue::Queue;
use crate::split::{self, Ran};
use crate::watchdog::Watchdog;
use std::borrow::Cow;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wire::{Closed, Status};

/// Details of failures are logged this often at most: whoever can make a model fail must not fill the disk.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Starts the lanes. The receiver ends when all of them have.
pub(crate) fn start(
    count: usize,
    queue: &Arc<Queue>,
    watchdog: &Arc<Watchdog>,
    warm_up: Option<&WarmUp>,
) -> std::io::Result<mpsc::Receiver<Infallible>> {
    let (alive, ended) = mpsc::channel(1);
    for number in 0..count {
        let (queue, watchdog) = (Arc::clone(queue), Arc::clone(watchdog));
        let mut lane = Lane { number, queue, watchdog, sample: None, logged: None, unlogged: 0 };
        let (alive, warm_up) = (alive.clone(), warm_up.cloned());
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
            let _alive = alive;
            // Models are guarded one by one, so a panic here is the engine's own mistake. A supervisor that starts a
            // new engine helps; a lane that is silently gone does not.
            let work = || {
                if let Some(warm_up) = warm_up {
                    warm_up();
                }
                lane.run();
            };
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                std::process::abort();
            }
        })?;
    }
    Ok(ended)
}

struct Lane {
    number: usize,
    queue: Arc<Queue>,
    watchdog: Arc<Watchdog>,
    /// Of the batch that was answered last, if it is to be looked at.
    sample: Option<Sample>,
    logged: Option<Instant>,
    unlogged: u64,
}

/// Why a batch gave no answers.
struct Failure {
    status: Status,
    error: ModelError,
    /// Another number of rows came out than went in.
    has_miscounted: bool,
}

impl Failure {
    fn of_model(error: ModelError) -> Self {
        Self { status: Status::ModelFailed, error, has_miscounted: false }
    }
}

/// Why a batch has no more rows, and what it is expected to take, if that is known.
type Formed = (Closed, Option<Duration>);

type Pieces = Vec<Piece<Arc<Job>>>;

/// What became of the members of a batch that failed.
struct Bisection {
    /// When the batch was begun, and why it had no more rows, if it is not divided.
    ran: (Instant, Closed),
    failed: Vec<Arc<Job>>,
    /// Those that were late before they could run again, or for which nobody waited any more.
    left: Vec<Arc<Job>>,
    some_ran: bool,
}

impl Lane {
    fn run(&mut self) {
        while let Some(Batch { pieces, late, closed, expected, mut claim }) = self.queue.next(self.number) {
            turn_away(&late);
            let ended =
                if pieces.is_empty() { Ended::Failed } else { self.answer(&pieces, (closed, expected)) };
            if let Some(sample) = self.sample.take() {
                let Piece { job, rows, .. } = sample.piece();
                if self.queue.may_look(self.number, &mut claim, *rows) {
                    self.look_at(&sample);
                } else {
                    job.request.version.audit.not_now();
                }
            }
            self.queue.finish(self.number, claim, ended);
        }
    }

    /// Runs a request once more that has run with others, and a last time if it is answered otherwise.
    fn look_at(&self, sample: &Sample) {
        let piece = std::slice::from_ref(sample.piece());
        let version = &sample.piece().job.request.version;
        let run_alone = || {
            self.watchdog.began(self.number, version, Instant::now());
            let ran = run(piece, &mut Instant::now());
            self.watchdog.ended(self.number);
            let is_about_memory =
                |failure: &Failure| failure.error.out_of_memory || failure.error.device_lost;
            if ran.as_ref().is_err_and(is_about_memory) { None } else { Some(ran.ok()) }
        };
        let Some(alone) = run_alone() else { return };
        if version.audit.is_alike(sample, alone.as_deref()) {
            return;
        }
        let Some(again) = run_alone() else { return };
        if version.audit.note([alone.as_deref(), again.as_deref()]) {
            self.tell_of(version);
        }
    }

    /// What was found out of a version that answers holds for what waits of it as well, and is told.
    fn tell_of(&self, version: &Version) {
        self.queue.regroup(version);
        tracing::error!(model = version.name, version = version.number, "{}", version.why_alone());
        version.retirement.changed();
    }

    fn answer(&mut self, pieces: &[Piece<Arc<Job>>], formed: Formed) -> Ended {
        let fit = self.fit(pieces);
        if fit.is_empty() {
            return Ended::Failed;
        }
        let formed = if fit.len() < pieces.len() { (formed.0, None) } else { formed };
        match self.answer_fit(&fit, formed) {
            // That says nothing about a run of all.
            Ended::Ran | Ended::Divided { .. } if fit.len() < pieces.len() => Ended::Failed,
            ended => ended,
        }
    }

    /// Without those whose values the model does not take, who are told so.
    fn fit<'a>(&self, pieces: &'a [Piece<Arc<Job>>]) -> Cow<'a, [Piece<Arc<Job>>]> {
        let check = |piece: &Piece<Arc<Job>>| piece.job.request.check_values(piece.first, piece.rows);
        let Some(first) = pieces.iter().position(|piece| check(piece).is_err()) else {
            return Cow::Borrowed(pieces);
        };
        let mut fit = pieces[..first].to_vec();
        for piece in &pieces[first..] {
            match check(piece) {
                Ok(()) => fit.push(piece.clone()),
                Err(refusal) => {
                    split::turn_away(&piece.job, &refusal);
                    // Of a request in pieces the rest waits.
                    self.queue.forget(&piece.job);
                }
            }
        }
        Cow::Owned(fit)
    }

    fn answer_fit(&mut self, pieces: &[Piece<Arc<Job>>], formed: Formed) -> Ended {
        let started = Instant::now();
        let failure = match self.attempt(pieces, formed) {
            Ok(()) => return Ended::Ran,
            Err(failure) => failure,
        };
        if failure.error.device_lost {
            // Nothing will run here again, and that is no fault of this model.
            let ran = (started, formed.0);
            pieces.iter().for_each(|piece| self.give_up(&piece.job, Status::DeviceLost, &failure, ran));
            return Ended::Failed;
        }
        if pieces.len() > 1 {
            self.queue.divides(self.number);
        }
        let closed = if pieces.len() > 1 { Closed::Divided } else { formed.0 };
        let mut bisection =
            Bisection { ran: (started, closed), failed: Vec::new(), left: Vec::new(), some_ran: false };
        self.bisect(pieces, &failure, &mut bisection);
        let Bisection { failed, left, some_ran, .. } = bisection;
        // Where all fail, the model is to blame.
        if some_ran {
            failed.iter().for_each(|job| self.queue.convict(job));
        }
        // Who brings a key soon runs alone, and is nothing to reckon with.
        let unknown = failed.iter().filter(|job| job.terms.caller == 0).count();
        // A row that wants more than there is, while others run, says nothing about how many of those fit.
        let is_one_row = some_ran && !failed.is_empty();
        if failure.error.out_of_memory && !is_one_row {
            Ended::OutOfMemory
        } else if some_ran && (failed.is_empty() || unknown > 0) {
            Ended::Divided { failed: unknown as u32, left: left.len() as u32 }
        } else {
            Ended::Failed
        }
    }

    /// Runs the parts of what failed, gathered again from the original bytes, until those that the model cannot take
    /// are alone: at most twice as many runs as there are pieces, or as there are rows where memory does not suffice.
    fn bisect(&mut self, pieces: &[Piece<Arc<Job>>], failure: &Failure, into: &mut Bisection) {
        let Some(parts) = parts(pieces, failure) else {
            let job = &pieces[0].job;
            self.give_up(job, failure.status, failure, into.ran);
            into.failed.push(Arc::clone(job));
            return;
        };
        for part in parts {
            let (part, left) = still_wanted(part);
            into.leave(left);
            if part.is_empty() {
                continue;
            }
            match self.attempt(&part, (Closed::Divided, None)) {
                Ok(()) => into.some_ran = true,
                Err(failure) => self.bisect(&part, &failure, into),
            }
        }
    }

    fn give_up(&self, job: &Arc<Job>, status: Status, failure: &Failure, ran: (Instant, Closed)) {
        split::fail_run(job, status, &failure.error.message, ran);
        self.queue.forget(job);
    }

    /// Runs pieces of one bucket together and answers them. A panic is a failure like any other.
    fn attempt(&mut self, pieces: &[Piece<Arc<Job>>], formed: Formed) -> Result<(), Failure> {
        let started = Instant::now();
        let (rows, version) = (rows_of(pieces), &pieces[0].job.request.version);
        self.watchdog.began(self.number, version, started);
        let mut in_place = started;
        let outputs = run(pieces, &mut in_place);
        self.watchdog.ended(self.number);
        let outputs = outputs.inspect_err(|failure| {
            self.log(&pieces[0].job, failure);
            if failure.error.device_lost {
                self.watchdog.device_lost(failure.error.message.clone());
            }
            let is_batched = matches!(version.grouping, Grouping::Together { max_rows: 2.. });
            if failure.has_miscounted && is_batched && version.audit.has_miscounted() {
                self.tell_of(version);
            }
        })?;
        // Found out by another lane, when this had been formed.
        if let Some(found) = version.audit.found()
            && (pieces.len() > 1 || pieces[0].rows < pieces[0].job.request.rows)
        {
            return Err(Failure::of_model(ModelError::new(found.why)));
        }
        let given = pieces.iter().map(|piece| piece.job.request.input_bytes(piece.rows)).sum();
        let came = outputs.iter().map(|output| output.bytes.len() as u64).sum();
        version.outputs.learn(rows, given, came);
        let (ended, (closed, expected)) = (Instant::now(), formed);
        let padding_millionths = split::padding_millionths(pieces);
        let ran = Ran { started, in_place, ended, rows, closed, expected, padding_millionths };
        split::reply(pieces, &outputs, ran);
        version.drift.observe(pieces, &outputs, ended);
        if version.grouping != Grouping::Serial && version.audit.finds_writes(&*version.model, ended) {
            self.tell_of(version);
        }
        self.sample = version.audit.sample(pieces, outputs, ended);
        for Piece { job, rows, .. } in pieces {
            // A piece may have told its caller that the whole has failed.
            if *rows < job.request.rows && !job.is_wanted() {
                self.queue.forget(job);
            }
        }
        Ok(())
    }

    fn log(&mut self, job: &Job, failure: &Failure) {
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now < logged + LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        let version = &job.request.version;
        tracing::warn!(
            model = version.name,
            version = version.number,
            detail = ?failure.error.detail,
            not_logged = self.unlogged,
            "the model failed: {}",
            failure.error.message
        );
        (self.logged, self.unlogged) = (Some(now), 0);
    }
}

/// What to run next of what failed together; nothing if it cannot be divided.
fn parts(pieces: &[Piece<Arc<Job>>], failure: &Failure) -> Option<Vec<Vec<Piece<Arc<Job>>>>> {
    let version = &pieces[0].job.request.version;
    if let [piece] = pieces {
        let divides = matches!(version.grouping, Grouping::Together { .. });
        if !failure.error.out_of_memory || !divides || piece.rows < 2 {
            return None;
        }
        let half = piece.rows / 2;
        let first = Piece { rows: half, ..piece.clone() };
        let second = Piece { first: piece.first + half, rows: piece.rows - half, ..piece.clone() };
        return Some(vec![vec![first], vec![second]]);
    }
    let at_most = if version.audit.found().is_some() { 1 } else { pieces.len().div_ceil(2) };
    Some(pieces.chunks(at_most).map(<[_]>::to_vec).collect())
}

impl Bisection {
    /// These do not run again. Of a request in pieces one is enough, and one that has failed has not left.
    fn leave(&mut self, pieces: Pieces) {
        for Piece { job, .. } in pieces {
            if !self.failed.iter().chain(&self.left).any(|known| Arc::ptr_eq(known, &job)) {
                self.left.push(job);
            }
        }
    }
}

/// Those that may run, and the others: those for which an answer would come too late, who are told so, and those for which nobody
/// waits.
fn still_wanted(pieces: Pieces) -> (Pieces, Pieces) {
    let now = Instant::now();
    pieces.iter().filter(|piece| piece.job.has_expired(now)).for_each(|piece| {
        split::turn_away(&piece.job, &Refusal::Expired);
    });
    pieces.into_iter().partition(|piece| piece.job.is_wanted())
}

fn rows_of(pieces: &[Piece<Arc<Job>>]) -> u32 {
    pieces.iter().map(|piece| piece.rows).sum()
}

fn run(pieces: &[Piece<Arc<Job>>], in_place: &mut Instant) -> Result<Vec<Output>, Failure> {
    let model = &*pieces[0].job.request.version.model;
    let outputs = catch_unwind(AssertUnwindSafe(|| model.run_noting(&gather(pieces), in_place)))
        .map_err(|panic| {
            let error = ModelError::new(format!("panic: {}", text_of(&*panic)));
            Failure { status: Status::Internal, ..Failure::of_model(error) }
        })?
        .map_err(Failure::of_model)?;
    model.spec().check_outputs(u64::from(rows_of(pieces)), &outputs).map_err(|wrong| Failure {
        has_miscounted: matches!(wrong, WrongOutput::Rows { .. }),
        ..Failure::of_model(ModelError::new(wrong.to_string()))
    })?;
    Ok(outputs)
}

/// Tells those that are late, or are going to be.
fn turn_away(late: &[Arc<Job>]) {
    let now = Instant::now();
    for job in late {
        split::turn_away(job, if job.has_expired(now) { &Refusal::Expired } else { &Refusal::Hopeless });
    }
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The inputs of all pieces, one after the other. Nothing is copied yet: that is the model's one copy.
fn gather(pieces: &[Piece<Arc<Job>>]) -> Vec<Gathered<'_>> {
    let first = &pieces[0].job.request;
    let has_rows = matches!(first.version.model.spec().rows, Rows::UpTo(_));
    debug_assert!(has_rows || pieces.len() == 1, "without rows there is nothing to put together");
    let mut gathered = Vec::with_capacity(first.inputs.len());
    for (position, given) in first.inputs.iter().enumerate() {
        let mut shape = given.shape.clone();
        if has_rows {
            shape[0] = u64::from(rows_of(pieces));
        }
        let parts =
            pieces.iter().map(|piece| piece.job.request.part(position, piece.first, piece.rows)).collect();
        gathered.push(Gathered { slot: given.slot, datatype: given.datatype, shape, parts });
    }
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::Limits;
    use crate::job::{Request, Terms};
    use crate::mailbox::Mailbox;
    use crate::model::Spec;
    use crate::scripted::{Scripted, catalog_of, fp32, one_row, output_fp32, rows_spec, terms};
    use prost::Message;
    use socket::Socket;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::{Mutex, OnceLock, Weak};
    use wire::{Datatype, Decoder, Reply, TensorMeta};

    /// A lane, a version whose requests it runs, and the socket on which their answers come.
    struct World {
        lane: Lane,
        version: Arc<Version>,
        mailbox: Arc<Mailbox>,
        theirs: UnixStream,
        _runtime: tokio::runtime::Runtime,
    }

    impl World {
        fn of(
            script: impl Fn(&[Gathered<'_>]) -> Result<Vec<Output>, ModelError> + Send + Sync + 'static,
        ) -> Self {
            Self::with(rows_spec(&[("x", 1)], &[("y", 1)], 4), script)
        }

        fn with(
            spec: Spec,
            script: impl Fn(&[Gathered<'_>]) -> Result<Vec<Output>, ModelError> + Send + Sync + 'static,
        ) -> Self {
            let model = Scripted::new(spec, script);
            let version = Arc::clone(catalog_of("m", 1, model).find("m", 1).ok().unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let entered = runtime.enter();
            let ours = tokio::net::UnixStream::from_std(ours).unwrap();
            let mailbox = Arc::new(Mailbox::new(1, 1 << 20, Arc::new(Socket::new(ours).unwrap())));
            drop(entered);
            let queue = Arc::new(Queue::new(Limits::halving(10, 1000), 1));
            let watchdog = Arc::new(Watchdog::new(1));
            let lane = Lane { number: 0, queue, watchdog, sample: None, logged: None, unlogged: 0 };
            Self { lane, version, mailbox, theirs, _runtime: runtime }
        }

        /// A request of one row, which is its id.
        fn piece(&self, id: u64, deadline: Option<Instant>) -> Piece<Arc<Job>> {
            self.piece_of(one_row(&self.version, &[id as f32]), Terms { deadline, ..terms(id) })
        }

        fn piece_of(&self, request: Request, terms: Terms) -> Piece<Arc<Job>> {
            let job = Job::new(request, terms, Arc::clone(&self.mailbox));
            Piece { job: Arc::new(job), first: 0, rows: 1 }
        }

        fn answer(&mut self, pieces: &[Piece<Arc<Job>>]) -> Ended {
            self.lane.answer(pieces, (Closed::Everything, None))
        }
    }

    /// So many replies, by id.
    fn replies(mut socket: UnixStream, count: usize) -> Vec<(u64, Status, String)> {
        let (mut decoder, mut replies) = (Decoder::new(wire::Limits::default()), Vec::new());
        while replies.len() < count {
            let mut chunk = [0; 4096];
            let read = socket.read(&mut chunk).unwrap();
            decoder.buffer().extend_from_slice(&chunk[..read]);
            while let Some(frame) = decoder.decode().unwrap() {
                let reply = Reply::decode(frame.metadata).unwrap();
                replies.push((frame.id, reply.status(), reply.message));
            }
        }
        replies.sort();
        replies
    }

    #[test]
    fn what_expires_while_its_batch_is_divided_is_told_so_and_does_not_run_again() {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&runs);
        let expires = Instant::now() + Duration::from_millis(2);
        let mut world = World::of(move |inputs| {
            noted.lock().unwrap().push(fp32(&inputs[0]));
            // It takes longer than some have time for.
            while Instant::now() <= expires {
                std::thread::yield_now();
            }
            Err(ModelError::new("poison"))
        });
        let deadlines = [Some(expires), None, Some(expires), Some(expires)];
        let pieces: Vec<_> = (1..).zip(deadlines).map(|(id, deadline)| world.piece(id, deadline)).collect();
        assert_eq!(world.answer(&pieces), Ended::Failed);
        assert_eq!(*runs.lock().unwrap(), [vec![1.0, 2.0, 3.0, 4.0], vec![2.0]]);
        let late = |id| (id, Status::DeadlineExceeded, Refusal::Expired.to_string());
        let failed = (2, Status::ModelFailed, "poison".to_owned());
        assert_eq!(replies(world.theirs, 4), [late(1), failed, late(3), late(4)]);
    }

    /// How a run of four requests ends, if one that has these values fails so.
    fn ended(fails: impl Fn(&[f32]) -> Option<ModelError> + Send + Sync + 'static) -> Ended {
        let mut world = World::of(move |inputs| {
            let x = fp32(&inputs[0]);
            fails(&x).map_or_else(|| Ok(vec![output_fp32("y", &inputs[0].shape, &x)]), Err)
        });
        let pieces = [1, 2, 3, 4].map(|id| world.piece(id, None));
        world.answer(&pieces)
    }

    #[test]
    fn of_a_batch_that_is_divided_is_told_how_many_requests_failed_alone() {
        let poison = |is_poison: bool| is_poison.then(|| ModelError::new("poison"));
        assert_eq!(ended(move |_| poison(false)), Ended::Ran);
        assert_eq!(ended(move |x| poison(x.contains(&3.0))), Ended::Divided { failed: 1, left: 0 });
        assert_eq!(
            ended(move |x| poison(x.len() > 2 || x.contains(&3.0) || x.contains(&2.0))),
            Ended::Divided { failed: 2, left: 0 }
        );
        assert_eq!(
            ended(move |x| poison(x.len() > 2)),
            Ended::Divided { failed: 0, left: 0 },
            "none of them was to blame"
        );
        assert_eq!(ended(move |_| poison(true)), Ended::Failed, "and here the model is");
        let too_large = |x: &[f32]| {
            (x.len() > 2).then(|| ModelError { out_of_memory: true, ..ModelError::new("no memory") })
        };
        assert_eq!(ended(too_large), Ended::OutOfMemory);
    }

    #[test]
    fn a_batch_of_which_some_do_not_fit_says_nothing_about_one_of_all() {
        let ended = |largest: i32, fails: bool| {
            let mut spec = rows_spec(&[("x", 1)], &[("y", 1)], 4);
            spec.inputs[0].form.as_mut().unwrap().datatype = Datatype::Int32;
            spec.inputs[0].bounds = Some((1, largest.into()));
            let mut world = World::with(spec, move |inputs| {
                let rows = inputs[0].shape[0];
                if fails && rows > 1 {
                    return Err(ModelError::new("by chance"));
                }
                Ok(vec![output_fp32("y", &[rows, 1], &vec![0.0; rows as usize])])
            });
            let piece = |id: i32| {
                let datatype = Datatype::Int32 as u32;
                let meta = TensorMeta { name: "x".into(), datatype, shape: vec![1, 1], offset: 0, bytes: 0 };
                let bytes = id.to_le_bytes().to_vec();
                let request = Request::check_for(&world.version, vec![meta], Vec::new(), bytes.into());
                world.piece_of(request.expect("only its value is wrong"), terms(id as u64))
            };
            let pieces = [1, 2, 3, 4].map(piece);
            world.answer(&pieces)
        };
        assert_eq!(ended(4, false), Ended::Ran);
        assert_eq!(ended(4, true), Ended::Divided { failed: 0, left: 0 });
        assert_eq!([ended(3, false), ended(3, true)], [Ended::Failed; 2], "the fourth is not in it");
    }

    #[test]
    fn who_leaves_while_a_batch_is_divided_is_neither_found_nor_acquitted() {
        let expires = Instant::now() + Duration::from_millis(50);
        let mut world = World::of(move |inputs| {
            let x = fp32(&inputs[0]);
            if x == [1.0, 2.0] {
                while Instant::now() <= expires {
                    std::thread::yield_now();
                }
            }
            let is_poison = x.contains(&4.0);
            if is_poison {
                Err(ModelError::new("poison"))
            } else {
                Ok(vec![output_fp32("y", &inputs[0].shape, &x)])
            }
        });
        let pieces = [1, 2, 3, 4].map(|id| world.piece(id, (id == 4).then_some(expires)));
        assert_eq!(world.answer(&pieces), Ended::Divided { failed: 0, left: 1 });
    }

    #[test]
    fn a_request_in_pieces_leaves_once_and_one_that_has_failed_does_not() {
        let world = World::of(|_| Err(ModelError::new("poison")));
        let [failed, gone] = [1, 2].map(|id| world.piece(id, None));
        let ran = (Instant::now(), Closed::Divided);
        let mut bisection =
            Bisection { ran, failed: vec![Arc::clone(&failed.job)], left: Vec::new(), some_ran: false };
        bisection.leave(vec![failed, gone.clone()]);
        bisection.leave(vec![gone]);
        assert_eq!(bisection.left.iter().map(|job| job.terms.id).collect::<Vec<_>>(), [2]);
    }

    /// Four requests run together, and then each again by itself.
    fn each_runs_again(mut world: World, runs: &Mutex<Vec<Vec<f32>>>) {
        let pieces = [1, 2, 3, 4].map(|id| world.piece(id, None));
        assert_eq!(world.answer(&pieces), Ended::Divided { failed: 0, left: 0 });
        assert_eq!(*runs.lock().unwrap(), [&[1.0, 2.0, 3.0, 4.0][..], &[1.0], &[2.0], &[3.0], &[4.0]]);
        let answered = |id| (id, Status::Ok, String::new());
        assert_eq!(replies(world.theirs, 4), [1, 2, 3, 4].map(answered));
    }

    #[test]
    fn what_was_miscounted_together_runs_again_one_by_one_and_not_by_halves() {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&runs);
        let world = World::of(move |inputs| {
            let mut x = fp32(&inputs[0]);
            noted.lock().unwrap().push(x.clone());
            // Of more than three it loses some.
            x.truncate(3);
            Ok(vec![output_fp32("y", &[x.len() as u64, 1], &x)])
        });
        each_runs_again(world, &runs);
    }

    #[test]
    fn what_ran_together_while_its_version_was_found_out_is_answered_by_runs_of_its_own() {
        let (runs, version) = (Arc::new(Mutex::new(Vec::new())), Arc::new(OnceLock::<Weak<Version>>::new()));
        let (noted, found_out) = (Arc::clone(&runs), Arc::clone(&version));
        let world = World::of(move |inputs| {
            let x = fp32(&inputs[0]);
            // Stands for what another lane has seen.
            found_out.get().unwrap().upgrade().unwrap().audit.has_miscounted();
            noted.lock().unwrap().push(x.clone());
            Ok(vec![output_fp32("y", &inputs[0].shape, &x)])
        });
        version.set(Arc::downgrade(&world.version)).unwrap();
        each_runs_again(world, &runs);
    }
}
