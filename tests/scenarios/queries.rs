//! What the Grafana dashboard and the alerts ask of Prometheus, against what a stack exports that has done all of it. Not a
//! scenario of its own: the longest one hands its metrics page over.

use harness::repository;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Labels that Prometheus adds.
const OF_THE_SCRAPE: [&str; 1] = ["instance"];

/// Fails unless every query names series that stand on this page, with labels that they have.
pub(crate) fn check(page: &str) {
    let exported = exported(page);
    let alerts = std::fs::read_to_string(repository("configs/prometheus/alerts.yaml")).expect("a file");
    let recorded: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let dashboard = std::fs::read_to_string(repository("configs/grafana/penstock.json")).expect("a file");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let targets = dashboard["panels"].as_array().expect("panels").iter();
    let targets = targets.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let queries = targets.map(|target| {
        let text = |field: &str| target[field].as_str().unwrap_or_default().to_owned();
        (text("expr"), text("legendFormat"))
    });
    let queries: Vec<_> = queries.chain([(alerts.clone(), String::new())]).collect();
    assert!(queries.len() > 20, "{queries:?}");
    for (query, legend) in queries {
        let mut known: BTreeSet<&str> = OF_THE_SCRAPE.into();
        for (name, labels) in asked(&query) {
            if name.contains(':') {
                assert!(recorded.contains(name), "{query}: nothing is recorded as {name}");
                continue;
            }
            let has = exported.get(name).unwrap_or_else(|| panic!("{query}: {name} is not exported"));
            known.extend(has);
            for label in labels {
                assert!(
                    OF_THE_SCRAPE.contains(&label) || has.contains(label),
                    "{query}: {name} has no label {label}"
                );
            }
        }
        for label in grouped(&query).into_iter().chain(legends(&legend)) {
            assert!(known.contains(label), "{query}: nothing here has the label {label}");
        }
    }
}

/// By name of a series, all labels that it has anywhere on the page.
fn exported(page: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = word(line);
        let labels = line[name.len()..].strip_prefix('{').map(names).unwrap_or_default();
        all.entry(name).or_default().extend(labels);
    }
    all
}

/// Series that a query names, with the labels that it wants of each.
fn asked(query: &str) -> Vec<(&str, Vec<&str>)> {
    let starts = query.match_indices("penstock").map(|(at, _)| at);
    let starts = starts
        .filter(|at| !query[..*at].ends_with(|before: char| before.is_ascii_alphanumeric() || before == '`'));
    let series = starts.map(|at| {
        let name = word(&query[at..]);
        (name, query[at + name.len()..].strip_prefix('{').map(names).unwrap_or_default())
    });
    series.filter(|(name, _)| name.starts_with("penstock_") || name.starts_with("penstock:")).collect()
}

/// Labels by which it groups or joins.
fn grouped(query: &str) -> Vec<&str> {
    let lists = ["by (", "on ("].into_iter().flat_map(|word| query.split(word).skip(1));
    let inside = lists.filter_map(|rest| rest.split_once(')')).flat_map(|(inside, _)| inside.split(','));
    inside.map(str::trim).collect()
}

fn legends(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label).collect()
}

fn word(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    &text[..end.unwrap_or(text.len())]
}

/// Names of labels up to the end of a selector. Values of ours hold neither commas nor braces.
fn names(selector: &str) -> Vec<&str> {
    let inside = selector.split_once('}').map_or(selector, |(inside, _)| inside);
    inside.split(',').map(|label| word(label.trim())).filter(|label| !label.is_empty()).collect()
}
