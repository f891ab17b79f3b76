//! The commands that talk to a running `penstock` through its admin port, and how its answers are shown to people.

use crate::admin::NOT_SAVED;
use crate::shares;
use crate::top::{self, Watched};
use anyhow::{Context, bail};
use serde_json::Value;
use std::fmt::Write;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

/// A running process that may be told what to do.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `host:port` of its `listen.admin`.
    pub admin: String,
}

impl Remote {
    /// How far every canary is, how every split is seen, and how the process is, in words; or all that it says of itself, as
    /// JSON.
    pub fn status(&self, json: bool) -> anyhow::Result<String> {
        let all = self.call("GET", "/status")?;
        if json {
            return Ok(format!("{all:#}\n"));
        }
        let text = in_words(&all["canaries"]) + &shares::in_words(&all["splits"], &all["canaries"]);
        let text = if text.is_empty() { "no model has a canary or a split\n".into() } else { text };
        let mut watched = Watched::new(&self.admin);
        watched.take(serde_json::from_value(all).context("the answer is no status")?);
        Ok(format!("{text}\n{}", top::plain(&watched)))
    }

    /// Pauses, resumes, advances (if it is still in step `from`), promotes or aborts; how far it then is.
    pub fn canary(
        &self,
        model: &str,
        word: &str,
        reason: &str,
        from: Option<usize>,
        json: bool,
    ) -> anyhow::Result<String> {
        let encoded = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
        let (model_path, reason) = (encoded(model), encoded(reason));
        let from = from.map(|step| format!("&from={step}")).unwrap_or_default();
        let canary = self.call("POST", &format!("/canaries/{model_path}/{word}?reason={reason}{from}"))?;
        Ok(if json { format!("{canary:#}\n") } else { one_in_words(model, &canary) })
    }

    /// What a policy would change, and the tag of the one that it was compared with.
    pub fn plan(&self, text: &str, json: bool) -> anyhow::Result<String> {
        let plan = self.ask(http::Request::post(self.url("/policy/plan")).body(text.to_owned())?)?;
        let plan = body_of(plan)?;
        let shown = shown(&plan, json)?;
        Ok(if json {
            shown
        } else {
            format!("{shown}compared with {}, see `apply --if`\n", bare(&plan["tag"]))
        })
    }

    /// Puts a policy in the place of the one that has this tag. Without one, that is the policy in force: nobody can
    /// change it at the same time, but whatever has come since anybody looked is replaced.
    pub fn apply(&self, text: &str, tag: Option<&str>, json: bool) -> anyhow::Result<String> {
        let put = http::Request::put(self.url("/policy")).header(http::header::IF_MATCH, self.tag(tag)?);
        applied(&body_of(self.ask(put.body(text.to_owned())?)?)?, json)
    }

    /// Goes back to the policy before, or to that of a generation, from the one that has this tag or is in force.
    pub fn roll_back(&self, to: Option<u64>, tag: Option<&str>, json: bool) -> anyhow::Result<String> {
        let to = to.map(|to| format!("?to={to}")).unwrap_or_default();
        let url = self.url(&format!("/policy/rollback{to}"));
        let post = http::Request::post(url).header(http::header::IF_MATCH, self.tag(tag)?);
        applied(&body_of(self.ask(post.body(String::new())?)?)?, json)
    }

    /// As the header has it: what a person gives, or that of the policy in force.
    fn tag(&self, given: Option<&str>) -> anyhow::Result<http::HeaderValue> {
        if let Some(given) = given {
            return Ok(http::HeaderValue::from_str(&format!("\"{}\"", given.trim_matches('"')))?);
        }
        let now = self.ask(http::Request::get(self.url("/policy")).body(String::new())?)?;
        now.headers().get(http::header::ETAG).cloned().context("no ETag in the answer")
    }

    /// The policies that were in force.
    pub fn history(&self, json: bool) -> anyhow::Result<String> {
        let history =
            body_of(self.ask(http::Request::get(self.url("/policy/history")).body(String::new())?)?)?;
        if json {
            return Ok(format!("{history:#}\n"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let line = |revision: &Value| {
            let (number, since) = (&revision["generation"], revision["since_unix_s"].as_u64().unwrap_or(now));
            let source = revision["source"].as_str().unwrap_or("?").replace('_', " ");
            let restores = revision["restores"].as_u64().map(|first| format!(" to {first}"));
            let (ago, tag) = (now.saturating_sub(since), bare(&revision["tag"]));
            format!("generation {number}: {tag}, {ago} s ago, {source}{}\n", restores.unwrap_or_default())
        };
        Ok(history.as_array().into_iter().flatten().map(line).collect())
    }

    /// Who answers at which point, of every model that is divided: for another process.
    pub fn rings(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", self.call("GET", "/rings")?))
    }

    /// Divides requests as the process does from which these rings are.
    pub fn adopt(&self, rings: &str, json: bool) -> anyhow::Result<String> {
        let put = http::Request::put(self.url("/rings")).body(rings.to_owned())?;
        let adopted = body_of(self.ask(put)?)?;
        if json {
            return Ok(format!("{adopted:#}\n"));
        }
        let line = |(model, adopted): (&String, &Value)| {
            let moved = adopted["moved_percent"].as_f64().unwrap_or(f64::NAN);
            let agrees = adopted["agrees"] == true;
            let is = if agrees { "as there" } else { "not as there: the shares are others" };
            format!("{model}: {is}; {moved:.4} % are answered by another version than before\n")
        };
        let text: String = adopted.as_object().into_iter().flatten().map(line).collect();
        Ok(if text.is_empty() { "no model is divided both here and there\n".into() } else { text })
    }

    fn call(&self, method: &str, path: &str) -> anyhow::Result<Value> {
        let request = http::Request::builder().method(method).uri(self.url(path));
        body_of(self.ask(request.body(String::new())?)?)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// The answer, if it is a good one.
    fn ask(&self, request: http::Request<String>) -> anyhow::Result<http::Response<ureq::Body>> {
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(Duration::from_secs(5))).http_status_as_error(false).build();
        let agent = ureq::Agent::new_with_config(config);
        let changes = request.method() != http::Method::GET && request.uri().path() != "/policy/plan";
        let mut answer = agent.run(request).map_err(|error| self.unanswered(error, changes))?;
        if !answer.status().is_success() {
            let text = answer.body_mut().read_to_string()?;
            let body: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} does not answer like a penstock", self.admin))?;
            bail!("{}", body["error"].as_str().unwrap_or(&text));
        }
        if let Some(why) = answer.headers().get(NOT_SAVED).and_then(|why| why.to_str().ok()) {
            let _ = writeln!(std::io::stderr(), "penstock: done, and not yet saved: {why}"); // whoever reads it may be gone
        }
        Ok(answer)
    }

    /// Why there is no answer, and what that leaves open.
    fn unanswered(&self, error: ureq::Error, changes: bool) -> anyhow::Error {
        let admin = &self.admin;
        let was_never_asked = match &error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            _ => false,
        };
        let says = if was_never_asked {
            format!("no penstock answers at {admin}; is `listen: {{admin: …}}` in its configuration?")
        } else if changes {
            format!(
                "{admin} was asked and has not answered: it may have been done all the same; look at `penstock history` or \
                 `penstock status` before you try again"
            )
        } else {
            format!("{admin} was asked and has not answered")
        };
        anyhow::Error::new(error).context(says)
    }
}

fn body_of(mut answer: http::Response<ureq::Body>) -> anyhow::Result<Value> {
    serde_json::from_str(&answer.body_mut().read_to_string()?).context("the answer is not JSON")
}

fn shown(plan: &Value, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(format!("{plan:#}\n"));
    }
    Ok(plan["text"].as_str().context("the answer has no text")?.to_owned())
}

fn applied(answer: &Value, json: bool) -> anyhow::Result<String> {
    let shown = shown(answer, json)?;
    if json {
        return Ok(shown);
    }
    let (generation, tag) = (&answer["generation"], bare(&answer["tag"]));
    let draft = answer["draft"]
        .as_str()
        .map(|draft| format!("what stood in the policy file was not in force; it is in {draft} now\n"));
    Ok(format!("{shown}{}generation {generation} is in force: {tag}\n", draft.unwrap_or_default()))
}

/// A tag without the quotes that HTTP wants and a shell takes away.
fn bare(tag: &Value) -> &str {
    tag.as_str().unwrap_or("?").trim_matches('"')
}

/// Evidence grows without bound; beyond enough nobody reads its digits.
pub(crate) fn rounded(evidence: f64) -> String {
    match evidence {
        ..1_000.0 => format!("{evidence:.1}"),
        ..100_000.0 => format!("{evidence:.0}"),
        _ => "over 100000".into(),
    }
}

fn in_words(canaries: &Value) -> String {
    let canaries = canaries.as_object();
    canaries.into_iter().flatten().map(|(model, canary)| one_in_words(model, canary)).collect()
}

fn one_in_words(model: &str, canary: &Value) -> String {
    let mut text = format!(
        "{model}: version {} gets {} %, version {} the rest; {}, step {} of {}\n",
        canary["candidate"],
        canary["percent"],
        canary["baseline"],
        canary["phase"].as_str().unwrap_or("?").replace('_', " "),
        canary["step"],
        canary["steps"],
    );
    let list = |name: &str| canary[name].as_array().cloned().unwrap_or_default();
    for gate in list("gates") {
        let number = |name: &str| gate[name].as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(
            text,
            "  {}: {} of {} requests; evidence that it is worse {} of {:.0}, that it is well {} of {:.0}",
            gate["gate"].as_str().unwrap_or("?"),
            gate["events"],
            gate["requests"],
            rounded(number("worse")),
            number("roll_back_at"),
            rounded(number("rare")),
            number("pass_at"),
        );
    }
    if let Some(why) = canary["waits_for"].as_str() {
        let _ = writeln!(text, "  waits: {why}");
    }
    for record in list("verdicts") {
        let _ = writeln!(
            text,
            "  step {} at {} %: {}: {}",
            record["step"],
            record["percent"],
            record["verdict"].as_str().unwrap_or("?").replace('_', " "),
            record["why"].as_str().unwrap_or("?"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn what_a_step_waits_for_is_told_before_its_verdicts() {
        let verdict = json!({"step": 1, "percent": 10.0, "verdict": "hold", "why": "errors: 3 of 160"});
        let canary = json!({"waits_for": "errors: 9 of 900", "verdicts": [verdict]});
        let told = one_in_words("digits", &canary);
        let (waits, found) = (told.find("  waits: errors: 9 of 900\n"), told.find("hold: errors: 3 of 160"));
        assert!(waits.is_some() && waits < found, "{told}");
        assert!(!one_in_words("digits", &json!({"waits_for": null})).contains("waits"));
    }

    #[test]
    fn a_verdict_of_a_process_that_does_not_know_who_gave_it_is_read() {
        let whole = serde_json::to_value(crate::status::Verdict::default()).unwrap();
        let mut older = whole.clone();
        older.as_object_mut().unwrap().remove("by_person").unwrap();
        let read =
            |value| serde_json::from_value::<crate::status::Verdict>(value).map(|verdict| verdict.by_person);
        assert_eq!((read(older).ok(), read(whole).ok()), (Some(false), Some(false)));
    }

    #[test]
    fn what_was_asked_and_not_answered_may_have_been_done() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = Remote { admin: listener.local_addr().unwrap().to_string() };
        // Stands for a process that takes an order and does not come to say so.
        let silent = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
            }
        });
        let done = remote.roll_back(None, Some("0123456789abcdef"), false).unwrap_err();
        assert!(
            done.to_string().contains("may have been done all the same; look at `penstock history`"),
            "{done}"
        );
        let read = remote.history(false).unwrap_err();
        assert!(read.to_string().ends_with("was asked and has not answered"), "{read}");
        silent.join().unwrap();
        let nobody = remote.roll_back(None, Some("0123456789abcdef"), false).unwrap_err();
        assert!(nobody.to_string().starts_with("no penstock answers at"), "{nobody}");
    }
}
