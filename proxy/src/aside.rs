//! Work that can wait for requests, on a thread of its own: it runs where and when nobody else wants to, and whoever wakes up on
//! its core has it at once. A thread that is only nice keeps the core for a slice, which is 3 ms.
//!
//! There is one such thread, from the first work on: to start one takes requests' time, and what this one frees is where its next
//! work finds memory. Where there is never a free moment, work that somebody waits for is begun once more on a thread that
//! takes its turn. It holds no lock of ours meanwhile, so nobody waits for it; the kernel's for a process's memory it cannot avoid.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// In a thread's own units: a tenth of what a request's thread weighs.
const NICE: i32 = 10;
/// Several times what the largest policy takes.
const PATIENCE: Duration = Duration::from_millis(250);
/// Works that wait for a free moment: a change of policy is two.
const WAITING_MAX: usize = 16;

type Work = Box<dyn FnOnce() + Send>;

/// Begins at once. `None`: it could not be begun, or has panicked.
pub(crate) fn begin<T: Send + 'static>(
    work: impl Fn() -> T + Send + Sync + 'static,
) -> impl Future<Output = Option<T>> + Send {
    let work = Arc::new(work);
    let (first, mut done) = told(work.clone());
    // What there is no room for is begun once more.
    let waits = behind_all(first).is_ok();
    async move {
        if waits && let Ok(done) = tokio::time::timeout(PATIENCE, &mut done).await {
            return done.ok();
        }
        let (again, done_again) = told(work);
        on_a_thread(move || {
            nicely();
            again();
        });
        tokio::select! {
            Ok(done) = done => Some(done),
            Ok(done) = done_again => Some(done),
            else => None,
        }
    }
}

/// Frees what it is given.
pub(crate) fn free<T: Send + 'static>(old: T) {
    // Where there is no room for it, it has been freed.
    let _ = behind_all(Box::new(move || drop(old)));
}

/// Does it, and tells what has come of it.
fn told<T: Send + 'static>(
    work: Arc<impl Fn() -> T + Send + Sync + 'static>,
) -> (Work, oneshot::Receiver<T>) {
    let (done, result) = oneshot::channel();
    let work = move || {
        // It may be long before its turn comes, and who asked may want something else by then, or have it already.
        if !done.is_closed() {
            let _ = done.send(work());
        }
    };
    (Box::new(work), result)
}

/// On the thread that goes after all others, after what waits for it already.
fn behind_all(work: Work) -> Result<(), Work> {
    static WAITING: OnceLock<SyncSender<Work>> = OnceLock::new();
    let waiting = WAITING.get_or_init(|| {
        let (waiting, works) = mpsc::sync_channel::<Work>(WAITING_MAX);
        on_a_thread(move || {
            go_behind_all();
            for work in works {
                // Who waits for it learns of a panic by what it does not send.
                let _ = catch_unwind(AssertUnwindSafe(work));
            }
        });
        waiting
    });
    waiting.try_send(work).map_err(|error| match error {
        mpsc::TrySendError::Full(work) | mpsc::TrySendError::Disconnected(work) => work,
    })
}

/// Where no thread can be had, the work is dropped.
fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("policy".into()).spawn(work) {
        tracing::warn!("no thread can be had to read policies: {error}");
    }
}

fn nicely() {
    let _ = rustix::process::nice(NICE); // where it may not, it takes its turn like others
}

fn go_behind_all() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a structure that lives; 0 is this thread.
    let told = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if told != 0 {
        tracing::debug!("the kernel takes no advice: {}", io::Error::last_os_error());
        nicely();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn what_was_begun_is_done_and_a_panic_is_told() {
        assert_eq!(begin(|| 5).await, Some(5));
        assert_eq!(begin(|| assert_eq!(1, 2)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_free_moment_is_begun_once_more() {
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(Some(held));
        let counted = begun.clone();
        let work = move || {
            let turn = counted.fetch_add(1, Ordering::Relaxed);
            let first = held.lock().expect("unpoisoned").take();
            if let Some(held) = first {
                let _ = held.recv(); // it never comes to run
            }
            turn
        };
        assert_eq!(begin(work).await, Some(1));
        drop(release);
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
