//! `penstock-engine`: reads the command line, finds the models, serves them until told to stop.

use anyhow::Context;
use clap::Parser;
use engine::{Config, Library, Listener, LogFormat, schedule, torch};
use std::io::{Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

fn main() {
    let config = Config::parse();
    log_to_stderr(config.log_format);
    match run(&config) {
        Ok(()) => torch::leave(0),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "penstock-engine: {error:#}"); // the status says it as well
            torch::leave(1);
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("PENSTOCK_LOG").unwrap_or_else(|_| "info".into());
    event_log::start(filter, matches!(format, LogFormat::Json));
    // A panic of a lane is caught and answered; its backtrace would be dozens of lines.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{}", panic.to_string().replace('\n', " "));
    }));
}

fn run(config: &Config) -> anyhow::Result<()> {
    let device = torch::resolve(config.device).map_err(anyhow::Error::msg)?;
    let models = config.models.clone();
    let library = Library::folder(models, move |path, manifest| torch::load(path, manifest, device));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let mut settings = config.settings(device, torch::device_memory);
    settings.warm_up = torch::warm_up(device);
    torch::prepare(settings.lanes);
    let goes_first = schedule::at_once();
    runtime.block_on(async {
        let listener = Listener::bind(settings)?;
        // Told here: of a start that fails there is but one line to read.
        if let Err(error) = goes_first {
            tracing::info!(
                "requests may be read and refused some milliseconds late while models run, for want of CAP_SYS_NICE or \
                 a limit of real-time priorities of 1: {error}"
            );
        }
        listener.serve(library, stop(config.supervised)?).await?;
        Ok(())
    })
}

/// Completes when the engine is told to stop.
fn stop(supervised: bool) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let orphaned = if supervised { Some(end_of_stdin()?) } else { None };
    Ok(async move {
        match orphaned {
            // Ctrl-C reaches the whole terminal; the supervisor, not we, decides what it means.
            Some(orphaned) => tokio::select! {
                _ = terminate.recv() => {}
                _ = orphaned => tracing::info!("standard input has ended"),
            },
            None => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            },
        }
    })
}

/// A thread, because standard input cannot be polled everywhere.
fn end_of_stdin() -> anyhow::Result<oneshot::Receiver<()>> {
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut unused = [0; 256];
            while std::io::stdin().read(&mut unused).is_ok_and(|read| read > 0) {}
            let _ = ended.send(());
        })
        .context("watch standard input")?;
    Ok(end)
}
