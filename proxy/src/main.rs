//! The command line of `penstock`. Decides which command runs; no logic of its own.

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use proxy::command::Remote;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Request buffers come and go by the million; this allocator hands their pages back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An inference sidecar: splits traffic between model versions and answers from the same machine.
#[derive(Parser)]
#[command(name = "penstock", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve: start the engine and answer requests until told to stop.
    Serve {
        /// Process configuration.
        #[arg(long, default_value = "penstock.yaml")]
        config: PathBuf,
    },
    /// Check a policy file and explain what it does.
    Check {
        /// The policy file; `-` for standard input.
        file: PathBuf,
        /// Answer in JSON: whether it is valid, and what it does or what is wrong with it, line by line.
        #[arg(long)]
        json: bool,
    },
    /// Show what a policy file would change in a running penstock: who moves, and what is forgotten.
    Plan {
        /// The policy file; `-` for standard input.
        file: PathBuf,
        #[command(flatten)]
        remote: Running,
    },
    /// Put a policy file in force in a running penstock, and into the file that it watches.
    Apply {
        /// The policy file; `-` for standard input.
        file: PathBuf,
        /// Only in the place of the policy that has this tag, as `plan` has shown it.
        #[arg(long = "if", value_name = "TAG")]
        tag: Option<String>,
        #[command(flatten)]
        remote: Running,
    },
    /// Go back to the policy that was in force before.
    Rollback {
        /// Or to that of this generation, see `history`.
        #[arg(long, value_name = "GENERATION")]
        to: Option<u64>,
        /// Only from the policy that has this tag, see `history`.
        #[arg(long = "if", value_name = "TAG")]
        tag: Option<String>,
        #[command(flatten)]
        remote: Running,
    },
    /// Show which policies were in force in a running penstock.
    History {
        #[command(flatten)]
        remote: Running,
    },
    /// Show who answers at which point of the rings of a running penstock; or take over those of another one, whose users
    /// then have the same versions here: `penstock rings --admin A | penstock rings --admin B -`.
    Rings {
        /// What another one has shown; `-` for standard input.
        file: Option<PathBuf>,
        #[command(flatten)]
        remote: Running,
    },
    /// Print the JSON schema of policy files, for editors.
    Schema,
    /// Show a running penstock in the terminal: who answers what share, where time goes, what was refused and why.
    Top {
        /// Its `listen.monitor`.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8002", value_parser = address)]
        address: String,
    },
    /// Show how far the canaries of a running penstock are, how its splits are seen, and how it is.
    Status {
        #[command(flatten)]
        remote: Running,
    },
    /// Pause, resume, advance, promote or abort a canary of a running penstock.
    Canary {
        /// What to do: `resume` begins again what was rolled back; `advance` gives the next step's share now, `promote` everything.
        #[arg(value_enum)]
        action: Action,
        /// The model.
        model: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        /// Advance only if it is still in this step, as `status` shows it: whoever says so twice goes one step.
        #[arg(long, value_name = "STEP")]
        from: Option<usize>,
        #[command(flatten)]
        remote: Running,
    },
}

#[derive(clap::Args)]
struct Running {
    /// Its `listen.admin`.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8003", value_parser = address)]
    admin: String,
    /// Answer in JSON, also where the answer is an error.
    #[arg(long)]
    json: bool,
}

impl Running {
    fn ask(self, ask: impl FnOnce(&Remote, bool) -> anyhow::Result<String>) -> anyhow::Result<()> {
        let answer = ask(&Remote { admin: self.admin }, self.json);
        if let (Err(error), true) = (&answer, self.json) {
            say(&format!("{:#}\n", serde_json::json!({"error": format!("{error:#}")})));
        }
        answer.map(|text| say(&text))
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Action {
    Pause,
    Resume,
    Advance,
    Promote,
    Abort,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Advance => "advance",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve { config } => serve(config),
        Command::Check { file, json } => check(&file, json),
        Command::Plan { file, remote } => remote.ask(|remote, json| remote.plan(&read(&file)?, json)),
        Command::Apply { file, tag, remote } => {
            remote.ask(|remote, json| remote.apply(&read(&file)?, tag.as_deref(), json))
        }
        Command::Rollback { to, tag, remote } => {
            remote.ask(|remote, json| remote.roll_back(to, tag.as_deref(), json))
        }
        Command::History { remote } => remote.ask(|remote, json| remote.history(json)),
        Command::Rings { file: None, remote } => remote.ask(|remote, _| remote.rings()),
        Command::Rings { file: Some(file), remote } => {
            remote.ask(|remote, json| remote.adopt(&rings(&file)?, json))
        }
        Command::Top { address } => proxy::top::run(&address),
        Command::Status { remote } => remote.ask(|remote, json| remote.status(json)),
        Command::Canary { action, from: Some(_), .. } if !matches!(action, Action::Advance) => {
            let says = "`--from` can be used with `advance` alone";
            Cli::command().error(clap::error::ErrorKind::ArgumentConflict, says).exit()
        }
        Command::Canary { action, model, reason, from, remote } => {
            remote.ask(|remote, json| remote.canary(&model, action.as_str(), &reason, from, json))
        }
        Command::Schema => {
            say(&policies::schema());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "penstock: {error:#}"); // the status says it as well
            ExitCode::FAILURE
        }
    }
}

fn serve(config: PathBuf) -> anyhow::Result<()> {
    let config = proxy::config::Config::read(&config)?;
    proxy::log::start(config.log)?;
    let grpc = config.grpc.map(|grpc| format!(", {grpc} (gRPC)")).unwrap_or_default();
    let banner = format!(
        "penstock listens on http://{} (inference){grpc} and http://{}/metrics",
        config.http, config.monitor
    );
    proxy::serve::serve(config, banner)
}

/// `host:port`, also of somebody who has copied it from a browser.
fn address(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let parsed = bare.parse::<http::uri::Authority>().ok();
    let is_whole = |parsed: &http::uri::Authority| parsed.port_u16().is_some() && !bare.contains('@');
    parsed.filter(is_whole).map(|_| bare.to_owned()).ok_or_else(|| "expected HOST:PORT".to_owned())
}

/// A file that is checked elsewhere: here first, so that the error names it.
fn read(file: &Path) -> anyhow::Result<String> {
    let (_, bytes) = proxy::reload::read(file)?;
    String::from_utf8(bytes).with_context(|| format!("{}", file.display()))
}

fn rings(file: &Path) -> anyhow::Result<String> {
    let stdin = file == Path::new("-");
    let text = if stdin { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    text.with_context(|| format!("cannot read {}", file.display()))
}

fn check(file: &Path, json: bool) -> anyhow::Result<()> {
    let checked = proxy::reload::read(file).map(|(snapshot, _)| snapshot.explain());
    if !json {
        return checked.map(|text| say(&text));
    }
    let says = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (valid, lines) = match &checked {
        Ok(text) => (true, says(text)),
        Err(error) => (false, says(&format!("{error:#}"))),
    };
    say(&format!("{:#}\n", serde_json::json!({"valid": valid, "lines": lines})));
    if valid { Ok(()) } else { anyhow::bail!("{} is not valid", file.display()) }
}

/// Tells it whoever reads standard output, who may have read enough.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
