//! Work that can wait for requests, on a thread of its own: it runs where and when nobody else wants to, and whoever wakes up on
//! its core has it at once. A thread that is only nice keeps the core for a slice, which is 3 ms.
//!
//! Where there is never a free moment, work that somebody waits for is begun once more on a thread that takes its turn.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// In a thread's own units: a tenth of what a request's thread weighs.
const NICE: i32 = 10;
/// Several times what the largest policy takes.
const PATIENCE: Duration = Duration::from_millis(250);

/// Begins at once. `None`: it could not be begun, or has panicked.
pub(crate) fn begin<T: Send + 'static>(
    work: impl Fn() -> T + Send + Sync + 'static,
) -> impl Future<Output = Option<T>> + Send {
    let work = Arc::new(work);
    let mut first = on_a_thread(behind_all, work.clone());
    async move {
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut first).await {
            return done.ok();
        }
        tokio::select! {
            Ok(done) = first => Some(done),
            Ok(done) = on_a_thread(nicely, work) => Some(done),
            else => None,
        }
    }
}

/// Frees what it is given.
pub(crate) fn free<T: Send + 'static>(old: T) {
    let work = move || {
        behind_all();
        drop(old);
    };
    // Where no thread can be had, it has been freed.
    let _ = std::thread::Builder::new().name("policy".into()).spawn(work);
}

fn on_a_thread<T: Send + 'static>(
    stand: fn(),
    work: Arc<impl Fn() -> T + Send + Sync + 'static>,
) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    let work = move || {
        stand();
        // It may be long before its turn comes, and who asked may want something else by then, or have it already.
        if !done.is_closed() {
            let _ = done.send(work());
        }
    };
    // Where no thread can be had, nobody will send.
    let _ = std::thread::Builder::new().name("policy".into()).spawn(work);
    result
}

fn nicely() {
    let _ = rustix::process::nice(NICE); // where it may not, it takes its turn like others
}

fn behind_all() {
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
