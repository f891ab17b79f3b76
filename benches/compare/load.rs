//! Closed-loop load: each connection sends its next request when the last one is answered. Checks every status;
//! never decides what is good.

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Connections that stay open between runs.
pub(crate) struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    connections: usize,
    runtime: tokio::runtime::Runtime,
}

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Load {
    pub(crate) fn new(address: SocketAddr, request: &[u8], connections: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { address, request: request.to_vec(), connections, runtime }
    }

    /// Loads for `time`. Any status but 200 is an error.
    pub(crate) fn run(&mut self, time: Duration) -> anyhow::Result<Outcome> {
        let (address, connections) = (self.address, self.connections);
        let request: std::sync::Arc<[u8]> = self.request.as_slice().into();
        self.runtime.block_on(async move {
            let until = Instant::now() + time;
            let mut tasks = JoinSet::new();
            for _ in 0..connections {
                tasks.spawn(connection(address, request.clone(), until));
            }
            let mut latency = histogram();
            while let Some(done) = tasks.join_next().await {
                latency.add(done??)?;
            }
            Ok(Outcome { requests: latency.len(), latency })
        })
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are legal")
}

async fn connection(
    address: SocketAddr,
    request: std::sync::Arc<[u8]>,
    until: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram();
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let sent = Instant::now();
        if sent >= until {
            return Ok(latency);
        }
        stream.write_all(&request).await?;
        buffer.clear();
        while !is_whole(&buffer)? {
            ensure!(
                stream.read_buf(&mut buffer).await? > 0,
                "closed after {:?}",
                String::from_utf8_lossy(&buffer)
            );
        }
        latency.record(sent.elapsed().as_micros() as u64)?;
    }
}

/// Whether `buffer` holds one whole response with a Content-Length.
pub(crate) fn is_whole(buffer: &[u8]) -> anyhow::Result<bool> {
    let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(buffer));
    let text = std::str::from_utf8(&buffer[..head])?;
    let length: usize = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("a response without Content-Length")?
        .1
        .trim()
        .parse()?;
    Ok(buffer.len() >= head + 4 + length)
}
