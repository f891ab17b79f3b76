//! The commands that talk to a running `penstock` through its admin port, and how its answers are shown to people.

use anyhow::{Context, bail};
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

/// A running process that may be told what to do.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `host:port` of its `listen.admin`.
    pub admin: String,
}

impl Remote {
    /// How far every canary is, as JSON or in words.
    pub fn status(&self, json: bool) -> anyhow::Result<String> {
        let canaries = self.call("GET", "/canaries", "")?;
        Ok(if json { format!("{canaries:#}\n") } else { in_words(&canaries) })
    }

    /// Pauses, resumes, promotes or aborts; how far it then is.
    pub fn canary(&self, model: &str, word: &str, reason: &str, json: bool) -> anyhow::Result<String> {
        let model_path = percent_encoding::utf8_percent_encode(model, percent_encoding::NON_ALPHANUMERIC);
        let canary = self.call("POST", &format!("/canaries/{model_path}/{word}"), reason)?;
        Ok(if json { format!("{canary:#}\n") } else { one_in_words(model, &canary) })
    }

    fn call(&self, method: &str, path: &str, reason: &str) -> anyhow::Result<Value> {
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(Duration::from_secs(5))).http_status_as_error(false).build();
        let agent = ureq::Agent::new_with_config(config);
        let url = format!("http://{}{path}", self.admin);
        let answer = match method {
            "GET" => agent.get(&url).call(),
            _ => agent.post(&url).query("reason", reason).send_empty(),
        };
        let mut answer = answer.with_context(|| {
            format!("no penstock answers at {}; is `listen: {{admin: …}}` in its configuration?", self.admin)
        })?;
        let text = answer.body_mut().read_to_string()?;
        let body: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} does not answer like a penstock", self.admin))?;
        if !answer.status().is_success() {
            bail!("{}", body["error"].as_str().unwrap_or(&text));
        }
        Ok(body)
    }
}

/// Evidence grows without bound; beyond enough nobody reads its digits.
fn rounded(evidence: f64) -> String {
    if evidence < 1000.0 { format!("{evidence:.1}") } else { "over 1000".into() }
}

fn in_words(canaries: &Value) -> String {
    let Some(canaries) = canaries.as_object().filter(|canaries| !canaries.is_empty()) else {
        return "no model has a canary\n".into();
    };
    canaries.iter().map(|(model, canary)| one_in_words(model, canary)).collect()
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
