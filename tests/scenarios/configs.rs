//! What we ship for people to copy compiles.

use harness::repository;
use std::collections::HashSet;

#[test]
fn every_policy_that_is_shipped_compiles() {
    let mut files = vec![repository("configs/demo/policies.yaml")];
    files.extend(
        std::fs::read_dir(repository("configs/policies"))
            .expect("examples")
            .map(|entry| entry.expect("an entry").path()),
    );
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a file");
        if let Err(errors) = policies::parse(&text, &file.display().to_string()) {
            panic!("{errors}");
        }
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    // A page shows no family of which there is nothing yet, so where they are declared is read.
    let declared = std::fs::read_to_string(repository("proxy/src/metrics.rs")).expect("a file");
    for file in ["configs/prometheus/alerts.yaml", "configs/grafana/penstock.json"] {
        let text = std::fs::read_to_string(repository(file)).expect("a file");
        let words =
            text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
        let asked: HashSet<&str> = words.filter(|word| word.starts_with("penstock_")).collect();
        assert!(asked.len() > 5, "{file} asks for {asked:?}");
        for name in asked {
            let family = ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            let family = family.strip_prefix("penstock_").expect("it begins so");
            let family = family.strip_suffix("_seconds").unwrap_or(family);
            assert!(declared.contains(&format!("\"{family}\"")), "{file}: no metric is called {name}");
        }
    }
}
