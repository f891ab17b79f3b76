//! Where clients come that speak gRPC. Decides which thread serves a connection; never looks at a request.
//!
//! Every thread is a runtime of its own, as pingora's workers are: a request, its frame and its answer share a thread, and
//! each thread has its own link to the engine. Clients of gRPC keep few connections for long, so chance would leave threads
//! idle beside busy ones: one place accepts them all, and gives each to the thread that has the fewest.

use super::Grpc;
use super::connection;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// Connections at once; more are closed again.
const CONNECTIONS_MAX: usize = 1024;

/// When no connection can be accepted, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until told to stop, then sees to it that they end.
#[derive(Debug)]
pub struct Listen {
    /// Bound already, so that an address in use is an error at start.
    pub listener: TcpListener,
    /// What answers.
    pub grpc: Arc<Grpc>,
    /// Threads that serve connections.
    pub threads: usize,
}

#[async_trait]
impl BackgroundService for Listen {
    async fn start(&self, mut listeners_close: ShutdownWatch) {
        let (closing, closed) = watch::channel(false);
        let accepting = async {
            let listener = self.listener.try_clone().and_then(|listener| {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            })?;
            let threads: Vec<_> = (0..self.threads).map(Thread::start).collect::<Result<_, _>>()?;
            self.accept(&listener, &threads, &closed).await
        };
        tokio::select! {
            stopped = accepting => if let Err(error) = stopped {
                tracing::error!("gRPC is not served: {error}");
                let _ = listeners_close.changed().await;
            },
            _ = listeners_close.changed() => {}
        }
        // Connections see to their own end, and what is left of them ends with the process.
        closing.send_replace(true);
    }
}

impl Listen {
    async fn accept(
        &self,
        listener: &tokio::net::TcpListener,
        threads: &[Thread],
        closed: &watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        loop {
            let stream = match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!("no gRPC connection can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let all: usize = threads.iter().map(Thread::connections).sum();
            let Some(thread) = threads.iter().min_by_key(|thread| thread.connections()) else { continue };
            if all >= CONNECTIONS_MAX {
                continue; // dropped, and with it closed
            }
            let (grpc, closed, place) = (self.grpc.clone(), closed.clone(), Place::take(&thread.connections));
            thread.handle.spawn(async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection::serve(stream, grpc, closed).await;
                }
                drop(place);
            });
        }
    }
}

/// A thread that serves connections, for as long as this stands.
struct Thread {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

impl Thread {
    fn start(number: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(format!("grpc {number}")).spawn(move || {
            // The process ends without it.
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { handle, connections: Arc::default() })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A connection's place among those of its thread.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(connections.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
