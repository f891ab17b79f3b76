//! The third port, on loopback and only if it is configured: what a person may change while the process runs.
//! Decides what is said; who may ask is `origin.rs`'s, what is done is the ledger's and, for the policy, `reload.rs`'s.

use crate::body::{self, BodyLimits};
use crate::dashboard;
use crate::monitor::{respond, show_status};
use crate::origin;
use crate::overview::{Asker, Overview};
use crate::refusal::Refusal;
use crate::reload::POLICY_BYTES_MAX;
use crate::revisions::{Ask, Asked, Denied, Edit, Revision};
use crate::rollouts::Saved;
use crate::slots::Slots;
use async_trait::async_trait;
use http::{HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use policies::{Command, CommandError, Ledger, Room};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Serves the dashboard with its buttons, `/canaries`, `/splits`, `/rings`, `/policy` and `/status`.
#[derive(Debug)]
pub struct Admin {
    /// Where canaries are.
    pub ledger: Arc<Ledger>,
    /// What is shown.
    pub overview: Overview,
    /// Who owns the policy file; `None` if there is none.
    pub policy: Option<mpsc::Sender<Asked>>,
    /// Who sees that what was ordered outlives the process.
    pub rollouts: mpsc::Sender<Saved>,
    /// Room for bodies, see [`Admin::slots`].
    pub slots: Arc<Slots>,
}

/// People, and the programs that they start, who change something at the same time.
const BODIES_MAX: usize = 16;

/// What was done is on the disk within this, or it is told that it is not yet. Commands wait for five seconds in all.
const SAVED_MAX: Duration = Duration::from_secs(2);

/// Why it is not, beside an answer that is accepted only.
pub(crate) const NOT_SAVED: &str = "x-penstock-not-saved";

/// Characters of a reason that are kept.
const REASON_MAX: usize = 200;

/// As much as a policy may have.
const POLICY: BodyLimits = BodyLimits { bytes_max: POLICY_BYTES_MAX, time_max: Duration::from_secs(10) };

/// Rings have a history: 25 bytes for each of their parts, of which a change of weights makes a few, and 1,024 at most. This is a
/// thousand models with all that they can have.
const RINGS: BodyLimits = BodyLimits { bytes_max: 32 << 20, time_max: Duration::from_secs(10) };

const HELP: &str = "here are / for people, GET /status, GET /canaries, GET /splits, GET and PUT /rings, POST /canaries/{model}/{pause|resume|advance|promote|abort}?reason=... (advance?from=STEP, only if it is still in that step), GET and PUT /policy, \
     GET /policy/history, POST /policy/plan and POST /policy/rollback?to=GENERATION";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        // Anybody may be led to the page: it can be looked at alone.
        let allowed = match (&head.method, head.uri.path()) {
            (&Method::GET, "/") => origin::own_host(&head.headers).map(drop),
            _ => origin::check(&head.method, &head.headers),
        };
        if let Err(why) = allowed {
            return refuse(StatusCode::FORBIDDEN, why);
        }
        let (method, uri) = (head.method.clone(), head.uri.clone());
        let (path, query): (Vec<&str>, _) =
            (uri.path().split('/').skip(1).collect(), uri.query().unwrap_or(""));
        match (&method, &path[..]) {
            // What is in it may have been meant to hold it back.
            (&Method::POST, ["canaries", ..] | ["policy", "rollback"]) if !session.is_body_empty() => refuse(
                StatusCode::BAD_REQUEST,
                "parameters go into the query, as in `?reason=...`; a body is not read here",
            ),
            (&Method::GET, [""]) => dashboard::page(),
            (&Method::GET, ["status"]) => show_status(&self.overview, Asker::Admin),
            (&Method::GET, ["canaries"]) => {
                json_of(&serde_json::to_value(self.ledger.rollouts()).expect("names and numbers"))
            }
            (&Method::GET, ["splits"]) => {
                json_of(&serde_json::to_value(self.ledger.splits(Instant::now())).expect("names and numbers"))
            }
            (&Method::GET, ["rings"]) => {
                let rings = self.ledger.rings(&self.overview.live.load().snapshot);
                json_of(&serde_json::to_value(rings).expect("names and numbers"))
            }
            (&Method::PUT, ["rings"]) => match self.text(session, &RINGS).await {
                Ok(text) => self.adopt(&text).await,
                Err(refusal) => refuse(refusal.status(), &refusal.to_string()),
            },
            (&Method::POST, ["canaries", model, word]) => {
                let model = percent_decode_str(model).decode_utf8_lossy();
                self.obey(&model, word, query).await
            }
            (&Method::GET, ["policy"]) => self.ask(Ask::Show).await,
            (&Method::GET, ["policy", "history"]) => self.ask(Ask::History).await,
            (&Method::POST, ["policy", "plan"]) => match self.text(session, &POLICY).await {
                Ok(text) => self.ask(Ask::Plan { text }).await,
                Err(refusal) => refuse(refusal.status(), &refusal.to_string()),
            },
            (&Method::PUT, ["policy"]) => self.put(session).await,
            (&Method::POST, ["policy", "rollback"]) => self.roll_back(session, query).await,
            _ => refuse(StatusCode::NOT_FOUND, HELP),
        }
    }
}

impl Admin {
    /// Not those of the requests: a person has something to change just when these are all taken.
    pub fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(BODIES_MAX, BODIES_MAX * POLICY.bytes_max + RINGS.bytes_max))
    }

    async fn obey(&self, model: &str, word: &str, query: &str) -> Response<Vec<u8>> {
        let names: &[&str] = if word == "advance" { &["reason", "from"] } else { &["reason"] };
        // What is not understood may have been meant to hold it back.
        let parameters = match parameters(query, names) {
            Ok(parameters) => parameters,
            Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
        };
        let command = match word {
            "pause" => Command::Pause,
            "resume" => Command::Resume,
            "advance" => match parameters.get("from").map(|step| step.parse()).transpose() {
                Ok(from) => Command::Advance { from },
                Err(_) => return refuse(StatusCode::BAD_REQUEST, "`from` is the number of a step, from 1"),
            },
            "promote" => Command::Promote,
            "abort" => Command::Abort,
            _ => {
                return refuse(
                    StatusCode::NOT_FOUND,
                    "a canary can be paused, resumed, advanced, promoted and aborted",
                );
            }
        };
        let reason = parameters.get("reason").map(|reason| reason.chars().take(REASON_MAX).collect());
        let reason: String = reason.unwrap_or_default();
        match self.ledger.command(model, command, &reason, Instant::now()) {
            Ok(status) => {
                let done = json_of(&serde_json::to_value(status).expect("names and numbers"));
                once_saved(done, &self.rollouts).await
            }
            Err(unknown @ CommandError::NoCanary(_)) => refuse(StatusCode::NOT_FOUND, &unknown.to_string()),
            Err(not_now @ CommandError::NotNow(_)) => {
                refuse(StatusCode::CONFLICT, &format!("cannot {word}: {not_now}"))
            }
        }
    }

    async fn put(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let Some(tag) = tag_of(session) else { return untagged() };
        match self.text(session, &POLICY).await {
            Ok(text) => self.ask(Ask::Put { text, tag }).await,
            Err(refusal) => refuse(refusal.status(), &refusal.to_string()),
        }
    }

    async fn roll_back(&self, session: &mut ServerSession, query: &str) -> Response<Vec<u8>> {
        let Some(tag) = tag_of(session) else { return untagged() };
        let parameters = match parameters(query, &["to"]) {
            Ok(parameters) => parameters,
            Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
        };
        match parameters.get("to").map(|to| to.parse()).transpose() {
            Ok(to) => self.ask(Ask::RollBack { to, tag }).await,
            Err(_) => refuse(StatusCode::BAD_REQUEST, "`to` is the number of a generation"),
        }
    }

    async fn adopt(&self, text: &str) -> Response<Vec<u8>> {
        match serde_json::from_str::<policies::Rings>(text) {
            Ok(rings) => match rings.unsound() {
                Some(model) => {
                    let why = format!(
                        "the ring of `{model}` is none: its parts begin at 0, each later than the one before it, 1,024 at most"
                    );
                    refuse(StatusCode::UNPROCESSABLE_ENTITY, &why)
                }
                None => self.ask(Ask::Adopt { rings }).await,
            },
            Err(error) => {
                refuse(StatusCode::UNPROCESSABLE_ENTITY, &format!("not what GET /rings shows: {error}"))
            }
        }
    }

    async fn text(&self, session: &mut ServerSession, limits: &BodyLimits) -> Result<String, Refusal> {
        let body = body::read_plain(session, limits, &mut self.slots.enter(Room::ALL)?).await?;
        String::from_utf8(body.into()).map_err(|error| Refusal::Invalid(format!("not UTF-8: {error}")))
    }

    async fn ask(&self, ask: Ask) -> Response<Vec<u8>> {
        let Some(policy) = &self.policy else {
            return refuse(StatusCode::NOT_FOUND, "this penstock has no policy file: set `policies`");
        };
        let (answer, answered) = oneshot::channel();
        let asked = policy.send(Asked { ask, answer }).await;
        match (asked, answered.await) {
            (Ok(()), Ok(Ok(edit))) => {
                // Of what a policy has ended, and of the rings, a restart knows by the state alone.
                let is_kept = match &edit {
                    Edit::Applied { .. } | Edit::Adopted(_) => true,
                    Edit::Shown(_) | Edit::History(_) | Edit::Planned { .. } => false,
                };
                let shown = show(edit);
                if is_kept { once_saved(shown, &self.rollouts).await } else { shown }
            }
            (Ok(()), Ok(Err(denied))) => refuse(status_of(&denied), &denied.to_string()),
            (Err(_), _) | (_, Err(_)) => refuse(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        }
    }
}

/// Tells what was done once that outlives the process. A disk that hangs holds nobody up: then it says that it does not yet.
async fn once_saved(done: Response<Vec<u8>>, rollouts: &mpsc::Sender<Saved>) -> Response<Vec<u8>> {
    let saved = async {
        let (told, is_saved) = oneshot::channel();
        let gone = || "penstock is stopping".to_owned();
        rollouts.send(told).await.map_err(|_| gone())?;
        is_saved.await.unwrap_or_else(|_| Err(gone()))
    };
    match tokio::time::timeout(SAVED_MAX, saved).await {
        Ok(Ok(())) => done,
        Ok(Err(why)) => {
            let why = format!("done, but a restart would not know of it: {why}");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &why)
        }
        Err(_) => {
            let mut accepted = done;
            *accepted.status_mut() = StatusCode::ACCEPTED;
            let why = "the disk takes its time: until it has answered, a restart would not know of it";
            accepted.headers_mut().insert(NOT_SAVED, HeaderValue::from_static(why));
            accepted
        }
    }
}

/// Of what is to be replaced.
fn tag_of(session: &ServerSession) -> Option<String> {
    session.req_header().headers.get(header::IF_MATCH)?.to_str().ok().map(str::to_owned)
}

/// Without a tag, two people would undo each other's work.
fn untagged() -> Response<Vec<u8>> {
    let why = "If-Match is missing: it is the ETag of what this replaces, as GET /policy shows it";
    refuse(StatusCode::PRECONDITION_REQUIRED, why)
}

fn status_of(denied: &Denied) -> StatusCode {
    match denied {
        Denied::Faulty(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Denied::Changed { .. } | Denied::FileChanged => StatusCode::PRECONDITION_FAILED,
        Denied::NoSuchRevision | Denied::InForce { .. } => StatusCode::CONFLICT,
        Denied::NotWritten(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn show(edit: Edit) -> Response<Vec<u8>> {
    match edit {
        Edit::Shown(revision) => {
            let tag = HeaderValue::from_str(&revision.tag()).expect("digits in quotes");
            let mut response = respond(StatusCode::OK, "application/yaml", revision.text);
            response.headers_mut().insert(header::ETAG, tag);
            response.headers_mut().insert("x-penstock-generation", revision.generation.into());
            response
        }
        Edit::History(revisions) => {
            let tagged = |revision: &Revision| {
                let mut shown = json!(revision);
                shown["tag"] = revision.tag().into();
                shown
            };
            json_of(&revisions.iter().map(tagged).collect())
        }
        Edit::Adopted(models) => json_of(&json!(models)),
        Edit::Planned { plan, tag, at_restart } => {
            let words = at_restart.in_words().map(|words| format!("{words}\n")).unwrap_or_default();
            let text = format!("{plan}{words}");
            json_of(&json!({"tag": tag, "changes": plan.changes, "at_restart": at_restart, "text": text}))
        }
        Edit::Applied { plan, revision, draft } => {
            let text = plan.to_string();
            let (generation, tag, draft) =
                (revision.generation, revision.tag(), draft.map(|draft| draft.display().to_string()));
            json_of(
                &json!({"generation": generation, "tag": tag, "changes": plan.changes, "text": text, "draft": draft}),
            )
        }
    }
}

/// The parameters of a query by name, decoded and without control characters; or what is wrong with it: each has one of these names
/// and a value, and stands there once.
fn parameters<'q>(query: &'q str, names: &[&str]) -> Result<BTreeMap<&'q str, String>, String> {
    let mut all = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !names.contains(&name) {
            let known = names.join("` and `");
            return Err(format!("`{name}` is no parameter here; `{known}` can be given"));
        }
        if !pair.contains('=') {
            return Err(format!("`{name}` has no value"));
        }
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8_lossy();
        if all.insert(name, value.chars().filter(|letter| !letter.is_control()).collect()).is_some() {
            return Err(format!("`{name}` is given twice"));
        }
    }
    Ok(all)
}

fn json_of(value: &serde_json::Value) -> Response<Vec<u8>> {
    respond(StatusCode::OK, "application/json", value.to_string())
}

fn refuse(status: StatusCode, why: &str) -> Response<Vec<u8>> {
    respond(status, "application/json", json!({"error": why}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_holds_up_nobody_and_what_is_not_on_it_is_told() {
        let (ordering, mut orders) = mpsc::channel::<Saved>(1);
        let done = || json_of(&json!({"phase": "paused"}));
        let (answer, ()) = tokio::join!(once_saved(done(), &ordering), async {
            orders.recv().await.unwrap().send(Ok(())).unwrap();
        });
        assert_eq!((answer.status(), answer.headers().get(NOT_SAVED)), (StatusCode::OK, None));
        let (answer, ()) = tokio::join!(once_saved(done(), &ordering), async {
            orders.recv().await.unwrap().send(Err("it is full".to_owned())).unwrap();
        });
        let why = String::from_utf8(answer.body().clone()).unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(why.contains("done, but a restart would not know of it: it is full"), "{why}");
        // Nobody takes the first, and there is no room for the second.
        for _ in 0..2 {
            let answer = once_saved(done(), &ordering).await;
            assert_eq!((answer.status(), answer.body()), (StatusCode::ACCEPTED, done().body()));
            assert!(answer.headers().contains_key(NOT_SAVED));
        }
    }
}
