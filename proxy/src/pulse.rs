//! A clock with a coarse hand, one for each link: tells a request that it has waited for a few milliseconds, for next to
//! nothing. Decides nothing. A timer of each request's own would cost more than most answers take to come, and one
//! that is the only one wakes its whole worker with a system call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two beats; tokio's clock adds up to as much.
const BEAT: Duration = Duration::from_millis(1);

/// Two beats take no longer than this.
pub(crate) const SOON: Duration = Duration::from_millis(4);

/// After so many beats that nobody waited for it stands still.
const IDLE_BEATS: u32 = 100;

#[derive(Debug)]
pub(crate) struct Pulse {
    beats: Notify,
    /// Somebody has waited since the last beat.
    used: AtomicBool,
    asleep: AtomicBool,
    wake: Notify,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            beats: Notify::new(),
            used: AtomicBool::new(false),
            asleep: AtomicBool::new(true),
            wake: Notify::new(),
        }
    }
}

impl Pulse {
    /// Beats until `is_over`; whoever makes it so wakes it.
    pub(crate) async fn run(&self, is_over: impl Fn() -> bool) {
        let mut idle = IDLE_BEATS;
        loop {
            if idle >= IDLE_BEATS {
                self.asleep.store(true, Ordering::SeqCst);
                if is_over() {
                    return;
                }
                self.wake.notified().await;
                self.asleep.store(false, Ordering::Relaxed);
                idle = 0;
            }
            if is_over() {
                return;
            }
            tokio::time::sleep(BEAT).await;
            self.beats.notify_waiters();
            idle = if self.used.swap(false, Ordering::Relaxed) { 0 } else { idle + 1 };
        }
    }

    /// Makes it beat.
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Between one beat and [`SOON`] from now.
    pub(crate) async fn soon(&self) {
        self.used.store(true, Ordering::Relaxed);
        self.wake();
        self.beats.notified().await;
        self.used.store(true, Ordering::Relaxed);
        self.beats.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn two_beats_pass_and_nobody_keeps_it_awake() {
        let pulse = Arc::new(Pulse::default());
        let over = Arc::new(AtomicBool::new(false));
        let running = tokio::spawn({
            let (pulse, over) = (Arc::clone(&pulse), Arc::clone(&over));
            async move { pulse.run(|| over.load(Ordering::Relaxed)).await }
        });
        for _ in 0..3 {
            let began = Instant::now();
            pulse.soon().await;
            assert!(began.elapsed() > BEAT && began.elapsed() <= SOON, "{:?}", began.elapsed());
        }
        assert!(!pulse.asleep.load(Ordering::Relaxed));
        tokio::time::sleep(BEAT * (2 * IDLE_BEATS)).await;
        assert!(pulse.asleep.load(Ordering::Relaxed), "nobody waits for it");
        pulse.soon().await;
        over.store(true, Ordering::Relaxed);
        running.await.unwrap();
    }
}
