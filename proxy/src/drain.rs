//! Stopping without losing a request: readiness turns false, listeners go on for a while so that balancers
//! notice, then they close and what is in flight finishes. Decides when the process may exit; never cuts a
//! request before the configured time is up.
//!
//! Pingora on its own would close the listeners at once, readiness included, and then sleep for the whole grace
//! period even when idle.

use crate::metrics::Metrics;
use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long stopping may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// From the signal to the closing of listeners.
    pub delay: Duration,
    /// From then until requests in flight are given up.
    pub timeout: Duration,
}

/// Whether the process is stopping.
#[derive(Debug, Default)]
pub struct Drain {
    begun: AtomicBool,
}

impl Drain {
    /// Whether a signal to stop has come: readiness is false from then on, and connections close after their answer.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

/// A connection may have been accepted, and its request not yet counted, when the listeners close.
const IDLE_FOR: Duration = Duration::from_millis(50);

/// Returns once nothing has been in flight for a moment, or after `timeout`. For when the listeners are closed.
pub async fn idle(metrics: &Metrics, timeout: Duration) {
    let quiet = async {
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < IDLE_FOR {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if metrics.in_flight.get() > 0 {
                idle_since = Instant::now();
            }
        }
    };
    if tokio::time::timeout(timeout + IDLE_FOR, quiet).await.is_err() {
        tracing::warn!(
            "{} requests are still in flight after {timeout:?}: stopping the engine",
            metrics.in_flight.get()
        );
    } else {
        tracing::info!("nothing is in flight any more: stopping the engine");
    }
}

/// Tells pingora when to close its listeners.
#[derive(Debug)]
pub struct StopSignal {
    /// Shared with whoever answers readiness.
    pub drain: Arc<Drain>,
    /// The delay before listeners close.
    pub delay: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for StopSignal {
    async fn recv(&self) -> ShutdownSignal {
        let mut terminate =
            signal(SignalKind::terminate()).expect("signal handlers can be installed at start");
        let mut interrupt =
            signal(SignalKind::interrupt()).expect("signal handlers can be installed at start");
        // Ctrl-C is somebody at a terminal: no balancer needs time to notice.
        let delay = tokio::select! {
            _ = terminate.recv() => self.delay,
            _ = interrupt.recv() => Duration::ZERO,
        };
        tracing::info!("stopping: not ready from now on, listeners close in {delay:?}");
        self.drain.begun.store(true, Ordering::Relaxed);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = interrupt.recv() => {}
        }
        ShutdownSignal::GracefulTerminate
    }
}
