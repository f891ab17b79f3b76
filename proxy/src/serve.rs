//! Builds the process from its configuration and runs it: pingora's services, the background work, the way
//! out. Decides who owns what; never handles a request.
//!
//! ```text
//! http    pingora, `workers` threads     Service ── Path ── Links ══▶ engine
//! grpc    `workers` threads of its own   Grpc    ── Path ── Links ══▶ engine, unless it is turned off
//! monitor pingora, 1 thread              Monitor
//! admin   pingora, 1 thread              Admin, if it is configured
//! control pingora background, 1 thread   Supervisor, Reload, Rollouts, the end of Drain
//! ```

use crate::access::AccessLog;
use crate::admin::Admin;
use crate::config::Config;
use crate::directory::Directory;
use crate::drain::{self, Drain, StopSignal};
use crate::files;
use crate::fixed::Fixed;
use crate::grpc::{Grpc, Listen};
use crate::infer::InferPath;
use crate::keeping::{Keeping, KeptFiles};
use crate::large_body::Downstream;
use crate::links::Links;
use crate::log::Format;
use crate::metrics::Metrics;
use crate::monitor::Monitor;
use crate::overview::Overview;
use crate::policy_state::PolicyState;
use crate::readiness::Readiness;
use crate::record::Watchers;
use crate::reload::{self, Reload, Seen};
use crate::remote::Remotes;
use crate::repository::Repository;
use crate::revisions::{self, Revisions};
use crate::rollout_history::RolloutHistory;
use crate::rollouts::{self, Kept, Rollouts};
use crate::service::Service;
use crate::shadow::Shadows;
use crate::slots::Slots;
use crate::supervisor::Supervisor;
use crate::trace::Tracer;
use anyhow::Context;
use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::services::listening::Service as ListeningService;
use policies::{Ledger, Live, Snapshot};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Serves until told to stop. `banner` is printed when nothing stands in the way of listening any more.
pub fn serve(config: Config, banner: String) -> anyhow::Result<()> {
    let grpc = free_addresses(&config)?;
    let _alone = config.beside_state("lock").map(|lock| files::alone(&lock)).transpose().context("state")?;
    let kept = config.state.as_deref().map(rollouts::read).transpose()?.unwrap_or_default();
    let FirstPolicy { snapshot, seen, state, revisions, kept_files } = first_policy(&config)?;
    let metrics = Arc::new(Metrics::new());
    let tracer = config.traces.as_ref().map(|traces| Tracer::new(traces, metrics.spans.clone()));
    let tracer = tracer.transpose().context("traces")?.map(Arc::new);
    let access = config.access.map(AccessLog::new).map(Arc::new);
    let drain = Arc::new(Drain::default());
    let live = Live::going_on(revisions.current().generation, snapshot.follow(&kept.rings));
    let path = infer_path(&config, &metrics, live, kept);
    let readiness = Readiness {
        drain: drain.clone(),
        directory: path.directory.clone(),
        live: path.live.clone(),
        ledger: path.ledger.clone(),
    };
    let (history, fixed) = (Arc::new(RolloutHistory::default()), Arc::new(Fixed::new(config.clone())));
    let overview = Overview {
        metrics: metrics.clone(),
        ledger: path.ledger.clone(),
        live: path.live.clone(),
        policy: state.clone(),
        fixed: fixed.clone(),
        directory: path.directory.clone(),
        links: path.links.clone(),
        remotes: path.remotes.clone(),
        slots: path.slots.clone(),
        readiness: readiness.clone(),
        history: history.clone(),
        admin: config.admin,
        started: Instant::now(),
    };
    let watchers = Watchers {
        metrics: metrics.clone(),
        ledger: path.ledger.clone(),
        tracer: tracer.clone(),
        access: access.clone(),
    };

    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    serve_requests(&mut server, &config, grpc, &path, &readiness, watchers);
    let monitor = Monitor { overview: overview.clone(), access: access.clone() };
    server.add_service(on_one_thread("monitor", config.monitor, monitor));
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let (ordering, orders) = mpsc::channel(rollouts::ORDERS_MAX);
    if let Some(address) = config.admin {
        let policy = config.policies.is_some().then(|| asks.clone());
        let ledger = path.ledger.clone();
        let admin = Admin { ledger, overview, policy, rollouts: ordering, slots: Admin::slots() };
        server.add_service(on_one_thread("admin", address, admin));
    }
    let rollouts = Rollouts {
        ledger: path.ledger.clone(),
        live: path.live.clone(),
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        tracer: tracer.clone(),
        history: history.clone(),
        file: config.state.clone(),
        orders,
    };
    let reload = config.policies.clone().map(|file| Reload {
        keeping: Keeping::new(kept_files, metrics.clone()),
        file,
        live: path.live.clone(),
        before: None,
        ledger: path.ledger.clone(),
        readiness,
        metrics: metrics.clone(),
        courses: history.clone(),
        state,
        seen,
        revisions,
        asked,
        fixed: fixed.clone(),
    });
    let supervisor = Supervisor {
        socket: config.socket.clone(),
        command: config.engine.clone(),
        directory: path.directory.clone(),
        live: path.live.clone(),
        ledger: path.ledger.clone(),
        links: path.links.clone(),
        metrics: metrics.clone(),
    };
    let work = Mutex::new(Some((supervisor, reload, rollouts)));
    let control = Control { work, drain_timeout: config.drain.timeout, fixed, metrics, tracer, access };
    server.add_service(background_service("control", control));
    match config.log {
        // Who started it may not read what it says.
        Format::Pretty => drop(writeln!(std::io::stdout(), "{banner}")),
        Format::Json => tracing::info!("{banner}"),
    }
    server.run(RunArgs { shutdown_signal: Box::new(StopSignal { drain, delay: config.drain.delay }) });
    Ok(())
}

/// Others that write the policy file as well are done with it within this.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// Sees that nobody else listens where this process is to; gRPC's listener, which is ours to keep.
fn free_addresses(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    must_be_free(config.http, "listen.http")?;
    let grpc = config.grpc.map(|grpc| bind(grpc, "listen.grpc")).transpose()?;
    must_be_free(config.monitor, "listen.monitor")?;
    if let Some(admin) = config.admin {
        must_be_free(admin, "listen.admin")?;
    }
    Ok(grpc)
}

/// The policy that the process begins with, and what is known of those before it.
struct FirstPolicy {
    snapshot: Snapshot,
    seen: Seen,
    state: Arc<PolicyState>,
    revisions: Revisions,
    kept_files: Option<KeptFiles>,
}

fn first_policy(config: &Config) -> anyhow::Result<FirstPolicy> {
    let last_good = config.beside_state("policy.yaml");
    let history_file = config.beside_state("history.json");
    // Of the state there is one owner.
    let own = [config.state.as_deref(), last_good.as_deref(), history_file.as_deref()];
    own.into_iter().flatten().for_each(|file| files::sweep(file, Duration::ZERO));
    if let Some(policies) = &config.policies {
        files::sweep(policies, WRITTEN_WITHIN);
    }
    let state = Arc::new(PolicyState::new(SystemTime::now()));
    let (snapshot, text, seen) = match &config.policies {
        Some(file) => reload::first(file, last_good.as_deref(), &state)?,
        None => (Snapshot::default(), Vec::new(), Seen::Nothing),
    };
    let text = String::from_utf8(text).context("the policy file: not UTF-8")?;
    let earlier = history_file.as_deref().map(revisions::read).unwrap_or_default();
    let decides_alike =
        |before: &str| policies::parse(before, "history").is_ok_and(|before| before == snapshot);
    let revisions = Revisions::new(earlier, text, decides_alike, SystemTime::now());
    let kept_files = last_good.zip(history_file).map(|(policy, history)| KeptFiles { policy, history });
    Ok(FirstPolicy { snapshot, seen, state, revisions, kept_files })
}

/// What a request meets, with rollouts as far as an earlier process has come.
fn infer_path(config: &Config, metrics: &Arc<Metrics>, live: Live, kept: Kept) -> Arc<InferPath> {
    let links = Arc::new(Links::new(config.socket.clone()).sharing(config.shared_bytes));
    let ledger = Arc::new(Ledger::new());
    let remotes = Arc::new(Remotes::default());
    let path = InferPath {
        remotes: remotes.clone(),
        metrics: metrics.clone(),
        live: Arc::new(live),
        ledger: ledger.clone(),
        directory: Arc::new(Directory::default()),
        shadows: Shadows::new(links.clone(), remotes, metrics.clone(), ledger),
        links,
        body: config.body,
        slots: Arc::new(Slots::new(config.in_flight_max, config.in_flight_bytes_max)),
    };
    metrics.policy_generation.set(path.live.load().number);
    path.ledger.go_on(&path.live.load().snapshot, (&kept.canaries, kept.ended), Instant::now());
    Arc::new(path)
}

/// The ports for applications.
fn serve_requests(
    server: &mut Server,
    config: &Config,
    grpc: Option<TcpListener>,
    path: &Arc<InferPath>,
    readiness: &Readiness,
    watchers: Watchers,
) {
    let repository = Repository {
        control: config.control,
        directory: path.directory.clone(),
        links: path.links.clone(),
        slots: Repository::slots(),
    };
    let (path, readiness) = (path.clone(), readiness.clone());
    if let Some(listener) = grpc {
        let grpc = Grpc::new(path.clone(), repository.clone(), readiness.clone(), watchers.clone());
        let listen = Listen { listener, grpc: Arc::new(grpc), threads: config.workers };
        server.add_service(background_service("grpc", listen));
    }
    let mut options = HttpServerOptions::default();
    options.keepalive_request_limit = Some(KEEPALIVE_REQUESTS_MAX);
    let service = Service { path, repository, readiness, watchers, options };
    let mut http = ListeningService::new("http".into(), Downstream(Arc::new(service)));
    // Large bodies are read past the buffer, and it stays as long as the connection.
    let buffer = L4BufferSettings::default().read(READ_BUFFER_BYTES);
    http.add_listener(ListenerConfig::tcp(config.http.to_string()).l4_buffer(buffer));
    http.threads = Some(config.workers);
    server.add_service(http);
}

/// A port for those who watch, or change something: few, and none of them in a hurry.
fn on_one_thread<A>(name: &str, address: SocketAddr, app: A) -> ListeningService<A> {
    let mut service = ListeningService::new(name.into(), app);
    service.add_tcp(&address.to_string());
    service.threads = Some(1);
    service
}

/// Questions about the policy that may wait for their turn.
const ASKS_MAX: usize = 16;

/// What is read at once of a head and a small body.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// A connection is closed after this many requests, and with it goes what its buffers have grown to.
const KEEPALIVE_REQUESTS_MAX: u32 = 100_000;

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        // Each worker is a runtime of its own: a request, its frame and its answer share a thread.
        work_stealing: false,
        // An upper bound: `Control` ends the process as soon as the last request is answered.
        grace_period_seconds: Some(config.drain.timeout.as_secs() + EXIT_MAX.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Pingora binds in a background task and panics there: look before.
fn must_be_free(address: SocketAddr, setting: &str) -> anyhow::Result<()> {
    bind(address, setting).map(drop)
}

fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("{setting}: cannot listen on {address}; is another penstock running?"))
}

/// Time for the engine to stop and for the last spans to leave.
const EXIT_MAX: Duration = Duration::from_secs(15);

/// The background work.
struct Control {
    /// Taken when the service starts.
    work: Mutex<Option<(Supervisor, Option<Reload>, Rollouts)>>,
    drain_timeout: Duration,
    fixed: Arc<Fixed>,
    metrics: Arc<Metrics>,
    tracer: Option<Arc<Tracer>>,
    access: Option<Arc<AccessLog>>,
}

#[async_trait]
impl BackgroundService for Control {
    async fn start(&self, mut listeners_close: ShutdownWatch) {
        let work = self.work.lock().expect("never poisoned: taken once").take();
        let Some((supervisor, reload, rollouts)) = work else { return };
        // Hanging up must not end a process that has no file to read again.
        let _hangup = signal(SignalKind::hangup());
        tokio::spawn(self.fixed.clone().watch());
        let (stop, stopped) = watch::channel(false);
        let reload = reload.map(|reload| tokio::spawn(reload.run(stopped.clone())));
        let rollouts = tokio::spawn(rollouts.run(stopped.clone()));
        let engine = tokio::spawn(async move { supervisor.run(stopped).await });
        // An error means that the server is gone, which is a reason to stop as well.
        let _ = listeners_close.changed().await;
        drain::idle(&self.metrics, self.drain_timeout).await;
        stop.send_replace(true);
        if rollouts.await.is_err() {
            tracing::error!("whoever looks after canaries panicked: their last progress is not saved");
        }
        if let Some(reload) = reload
            && !matches!(tokio::time::timeout(rollouts::SAVE_MAX, reload).await, Ok(Ok(())))
        {
            tracing::error!("whoever looks after the policy has not ended: the one in force may not be kept");
        }
        if engine.await.is_err() {
            tracing::error!("the supervisor panicked");
        }
        let tracer = self.tracer.clone();
        let flushed =
            tokio::task::spawn_blocking(move || tracer.map(|tracer| tracer.shutdown(Duration::from_secs(2))));
        let _ = flushed.await;
        if let Some(access) = &self.access {
            access.close();
        }
        // Everything is answered; pingora would sleep for the rest of its grace period.
        std::process::exit(0);
    }
}
