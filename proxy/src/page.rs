//! What a person sees at `/`: the models, their versions, and for each a request that can be copied; as text or as HTML
//! that asks for nothing else. Decides nothing; whatever comes from outside is escaped.

use crate::directory::Models;
use crate::example;
use policies::{Ledger, Snapshot};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The page, before it has a form.
#[derive(Debug)]
pub(crate) struct Page {
    models: Vec<Model>,
    /// Such as `http://localhost:8000`.
    origin: String,
    is_connected: bool,
}

#[derive(Debug)]
struct Model {
    name: String,
    versions: Vec<Version>,
    curl: Option<String>,
}

#[derive(Debug)]
struct Version {
    number: u64,
    state: &'static str,
    /// Of the requests without a rule of their own, percent.
    share: Option<f64>,
    labels: Vec<String>,
    reason: String,
}

impl Page {
    /// What is there now; `host` is the one that the caller has asked for.
    pub(crate) fn new(models: &Models, snapshot: &Snapshot, ledger: &Ledger, host: Option<&str>) -> Self {
        let is_plain = |host: &&str| {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
        };
        let origin = format!("http://{}", host.filter(is_plain).unwrap_or("localhost:8000"));
        let rollouts = ledger.rollouts();
        let mostly = |name: &str| Some(ledger.mostly(snapshot, name)?.0);
        let model = |name: &str| {
            let policy = snapshot.model(name);
            let entries = || models.versions(name).into_iter().flat_map(BTreeMap::values);
            // Versions may take different things: whoever answers most is asked.
            let typical = mostly(name).filter(|version| models.is_ready(name, *version));
            let typical = typical.or_else(|| models.highest_ready(name));
            let share = |number: u64| match rollouts.get(name) {
                Some(rollout) if rollout.candidate == number => Some(rollout.percent),
                Some(rollout) if rollout.baseline == number => Some(100.0 - rollout.percent),
                Some(_) => None,
                None => {
                    let mine = policy?.shares().filter(|(version, _)| version.0 == number);
                    let shares: Vec<f64> = mine.map(|(_, share)| share * 100.0).collect();
                    (!shares.is_empty()).then(|| shares.iter().sum())
                }
            };
            let labels = |number: u64| {
                let all = policy.into_iter().flat_map(|policy| policy.labels());
                all.filter(|(_, version)| version.0 == number).map(|(label, _)| label.to_owned()).collect()
            };
            Model {
                name: name.to_owned(),
                versions: entries()
                    .map(|entry| Version {
                        number: entry.version,
                        state: entry.state().as_word(),
                        share: share(entry.version),
                        labels: labels(entry.version),
                        reason: entry.reason.clone(),
                    })
                    .collect(),
                curl: typical
                    .and_then(|version| models.entry(name, version))
                    .and_then(|entry| example::curl(entry, &origin)),
            }
        };
        Self { models: models.names().map(model).collect(), origin, is_connected: models.connected }
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("Penstock {}\n{}\n", env!("CARGO_PKG_VERSION"), self.about());
        for model in &self.models {
            let _ = writeln!(out, "\n{}", printable(&model.name));
            for version in &model.versions {
                let _ = writeln!(out, "  version {}", printable(&version.line()));
            }
            if let Some(curl) = &model.curl {
                let _ = writeln!(out, "  {}", printable(curl));
            }
        }
        let _ = writeln!(out, "\nEvery route, for machines: {}/openapi.json", self.origin);
        out
    }

    /// For a browser.
    pub(crate) fn html(&self) -> String {
        let mut out = String::from(HEAD);
        let _ = writeln!(
            out,
            "<h1>Penstock <small>{}</small></h1>\n<p>{}</p>",
            env!("CARGO_PKG_VERSION"),
            self.about()
        );
        for model in &self.models {
            let _ = writeln!(out, "<section>\n<h2>{}</h2>\n<ul>", escaped(&model.name));
            for version in &model.versions {
                let _ = writeln!(
                    out,
                    "<li class=\"{}\">version {}</li>",
                    version.state,
                    escaped(&version.line())
                );
            }
            out.push_str("</ul>\n");
            if let Some(curl) = &model.curl {
                let _ = writeln!(out, "<pre>{}</pre>", escaped(curl));
            }
            out.push_str("</section>\n");
        }
        out.push_str("<p>Every route, for machines: <a href=\"/openapi.json\">/openapi.json</a></p>\n</body>\n</html>\n");
        out
    }

    fn about(&self) -> &'static str {
        match (self.is_connected, self.models.is_empty()) {
            (false, _) => "The engine is not there: it is starting or restarting.",
            (true, true) => "No model is loaded.",
            (true, false) => "These models answer here; each line with curl is a request to copy.",
        }
    }
}

impl Version {
    fn line(&self) -> String {
        let mut line = format!("{}: {}", self.number, self.state);
        if let Some(share) = self.share {
            let _ = write!(line, ", {share:.1} % of the requests");
        }
        if !self.labels.is_empty() {
            let _ = write!(line, ", {}", self.labels.join(", "));
        }
        if !self.reason.is_empty() {
            let _ = write!(line, " ({})", self.reason);
        }
        line
    }
}

/// Nothing that would move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>Penstock</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
h1 small { font-weight: normal; opacity: .6 }
ul { padding-left: 1.2rem }
li.ready::marker { color: #2a8a4a }
li.loading::marker { color: #b8860b }
li.unavailable::marker { color: #c0392b }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem; border: 1px solid; border-radius: .3rem }
</style>
</head>
<body>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tf_serving::tests::entry;
    use crate::directory::Directory;
    use wire::{Example, Index, ModelEntry, ModelState};

    const POLICY: &str =
        "models: {m: {labels: {stable: 1, canary: 2}, split: {weights: {stable: 75, canary: 25}}}}";

    fn page(policy: &str, name: &str, host: Option<&str>) -> Page {
        let example =
            |shape: &[u64]| Example { shape: shape.into(), number: "1".into(), ..Example::default() };
        let version = |version, state, reason: &str| ModelEntry {
            name: name.into(),
            version,
            state: state as i32,
            reason: reason.into(),
            examples: vec![example(&[1, 2]), example(&[1])],
            ..entry()
        };
        let directory = Directory::default();
        let models = vec![version(1, ModelState::Ready, ""), version(2, ModelState::Unavailable, "<torn>")];
        directory.publish(Index { models, ..Index::default() });
        let snapshot = policies::parse(policy, "policies.yaml").unwrap();
        Page::new(&directory.load(), &snapshot, &Ledger::new(), host)
    }

    #[test]
    fn a_terminal_gets_the_models_and_a_request_to_copy() {
        let text = page(POLICY, "m", Some("gpu-1:8000")).text();
        for line in [
            "\nm\n",
            "  version 1: ready, 75.0 % of the requests, stable\n",
            "  version 2: unavailable, 25.0 % of the requests, canary (<torn>)\n",
            "  curl http://gpu-1:8000/predictions/m -d '{\"ids\": [1, 1], \"weight\": 1}'\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_browser_gets_the_same_and_nothing_from_elsewhere() {
        let html = page(POLICY, "<m>", Some("<script>")).html();
        assert!(html.contains("<h2>&lt;m&gt;</h2>") && html.contains("(&lt;torn&gt;)"), "{html}");
        assert!(html.contains("curl http://localhost:8000/predictions/%3Cm%3E"), "{html}");
        assert!(
            !html.contains("src=") && !html.contains("<script") && !html.contains("href=\"http"),
            "{html}"
        );
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        let text = page("models: {}", "m\u{1b}[2J", None).text();
        assert!(!text.contains('\u{1b}'), "{text}");
        let lost = Directory::default();
        let snapshot = policies::parse("models: {}", "policies.yaml").unwrap();
        let page = Page::new(&lost.load(), &snapshot, &Ledger::new(), None);
        assert!(page.text().contains("The engine is not there"), "{}", page.text());
    }
}
